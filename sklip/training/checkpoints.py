r"""What a training has reached, in a file from which it goes on.

Note [Bit for bit]
------------------
What is left of a training is a function of few things: weights, the optimiser's moments and settings,
where the generators of shuffling, augmentation and dropout stand, the steps that the schedule has
counted, what callbacks remember, and the history, from which "best so far" is judged. All of that is
stored at the end of an epoch, exactly, and nothing else is: initial weights, held-out rows and
constants are made again from the same seed and data. So a fit that was killed and is started again
does what it would have done, step by step, and ends with the same bits, on the same machine with as
many threads. That is more than one needs for a good model, and it is the only thing that can be
tested: whatever was forgotten (that torch's ``load_state_dict`` turns a float32 count of steps into
float64, say) shows as another bit somewhere, and as nothing else.

When a file is written is a matter of time and decides nothing. It is written beside the one before and
takes its place in one step, so that a process that is killed leaves one of the two. It holds tensors,
numbers and words: reading it runs no code.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sklip
from sklip.files import write_whole
from sklip.training.parallel import current_processes

__all__ = ["Checkpoint", "restore_optimizer_"]

# Seconds between files, at least; and files may take this share of the time. One of the default network
# on MNIST has 10.6 MB and takes 0.05 s of one core.
_SECONDS, _SHARE = 5.0, 0.05
# A file starts with this word and a digest of what follows.
_WORD, _DIGEST_SIZE = b"sklip checkpoint\n", 32


class Checkpoint:
    """What one fit has reached, by name; it is in a file, if there is to be one.

    Parameters
    ----------
    path : path-like, or None
        Where the file is, or will be. None: nothing is stored.

    Attributes
    ----------
    kept : dict
        What was stored, by an earlier process or by this one.

    Raises
    ------
    ValueError
        For a file that is damaged, or of another version.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self.kept: dict[str, Any] = current_processes().from_first(self._read())
        self._next = time.monotonic() + _SECONDS

    def keep(self, name: str, value: Callable[[], Any]) -> None:
        """Store what a function returns: tensors, numbers, words, and dicts, lists and tuples of such.

        Where the file can't be written, a warning says so and the one before remains: a long training
        is not to end because a disk is full.
        """
        if self.path is None:
            return
        start = time.monotonic()
        self.kept[name] = value()
        file = io.BytesIO()
        torch.save(_plain({**self.kept, "versions": _versions()}), file)
        data = file.getvalue()
        try:
            write_whole(self.path, _WORD + _digest(data) + data)
        except OSError as error:
            warnings.warn(f"Training goes on without a new checkpoint: {error}", stacklevel=2)
        now = time.monotonic()
        self._next = now + max(_SECONDS, (now - start) / _SHARE)

    def keep_if_due(self, name: str, value: Callable[[], Any]) -> None:
        """Store what a function returns, if the file was written long enough ago."""
        if time.monotonic() >= self._next:
            self.keep(name, value)

    def _read(self) -> dict[str, Any]:
        if self.path is None or not self.path.exists():
            return {}
        data = self.path.read_bytes()
        start = len(_WORD) + _DIGEST_SIZE
        if data[:start] != _WORD + _digest(data[start:]):
            raise ValueError(
                f"the checkpoint {os.fspath(self.path)!r} is damaged: it is not what was written; "
                "delete it to start this fit anew, or take another copy of it."
            )
        kept: dict[str, Any] = torch.load(io.BytesIO(data[start:]), "cpu", weights_only=True)
        versions = kept.pop("versions")
        if versions != _versions():
            raise ValueError(
                f"the checkpoint {os.fspath(self.path)!r} was written by {versions}, this is "
                f"{_versions()}: go on with those, or delete it to start this fit anew."
            )
        return kept


def restore_optimizer_(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's state as it was: ``load_state_dict`` casts to the type of the parameters."""
    for group, kept in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for name, value in kept.items():
            setting = value.item() if isinstance(value, Tensor) else value
            if isinstance(group.get(name), Tensor):  # a rate that a graph reads
                group[name].fill_(setting)
            elif name != "params":
                group[name] = setting
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for index, values in state["state"].items():
        device = parameters[index].device
        optimizer.state[parameters[index]] = {name: each.to(device) for name, each in values.items()}


def _versions() -> str:
    return f"sklip {sklip.__version__} and torch {torch.__version__}"


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_SIZE).digest()


def _plain(value: Any) -> Any:
    """Return a value as what can be read without running code, or raise a TypeError."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {_plain(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        inner = map(_plain, value)
        return list(inner) if isinstance(value, list) else tuple(inner)
    raise TypeError(
        f"a checkpoint holds tensors, numbers and words, got {type(value).__name__}; have callbacks "
        "record and remember nothing else, or set checkpoint_dir=None."
    )
