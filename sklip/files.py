r"""Files that are there as a whole, or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that is there as a whole, or not at all.

    Parameters
    ----------
    path : str or path-like
        What is no file (a device, a pipe) is written to, never replaced; nor is a link, but what it
        leads to.
    data : bytes

    Raises
    ------
    OSError
        If it can't be written; what stood there before still does.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
            return
        # In the same folder, so that it can take the other's place in one step.
        beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with beside.open("xb") as file:
                file.write(data)
                # Before its name: else the machine could die with the name on disk and nothing in it.
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"path can't be written ({error.strerror}); give a file in a folder that exists and that "
            "you may write to",
            os.fspath(path),
        ) from error
