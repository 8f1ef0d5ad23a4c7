"""Where networks lie."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["available_device", "fits_on", "resolve_device"]


def resolve_device(device: str | torch.device) -> str:
    """Return the first CUDA device if there is one, else the CPU; or the one that is named."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(0, device=device).is_meta:
            raise NotImplementedError("the meta device computes nothing")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(
            f"device must name a device of this machine, got {str(device)!r}; available are "
            f"{available}, and 'auto' picks one."
        ) from error
    return str(device)


def available_device(device: str) -> str:
    """Return `device`, or "cpu" where this machine has no such device: a stored model must load."""
    try:
        return resolve_device(device)
    except ValueError:
        return "cpu"


def fits_on(device: str, values: Tensor) -> bool:
    """Whether there is room for `values` on a device, with as much left for everything else."""
    if torch.device(device).type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return values.nbytes <= free // 2
