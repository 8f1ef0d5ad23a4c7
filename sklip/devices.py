"""Where networks lie, what seeds them, and how they are stored: torch's side of an estimator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import Tensor, nn

__all__ = [
    "available_device",
    "digest",
    "draw_seed",
    "fits_on",
    "from_arrays",
    "resolve_device",
    "seeded",
    "to_arrays",
]


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


def draw_seed(random_state: Any) -> int:
    """Return an integer seed drawn as scikit-learn's `random_state` says."""
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch's default generators inside, and leave them as they were."""
    on_cuda = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[torch.device(device)] if on_cuda else []):
        # torch.manual_seed would seed every device; only those forked may be touched.
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            torch.cuda.manual_seed(seed)
        yield


def to_arrays(module: nn.Module) -> dict[str, NDArray[Any]]:
    """Return the parameters and buffers of `module` as NumPy arrays."""
    return {name: value.cpu().numpy().copy() for name, value in module.state_dict().items()}


def digest(module: nn.Module) -> str:
    """Return a digest of all that decides what `module` computes: layers, settings, mode, weights."""
    state = hashlib.blake2b(digest_size=16)
    state.update(f"{module!r}{[part.training for part in module.modules()]}".encode())
    # A repr does not show everything: AvgPool2d leaves out what it divides by.
    state.update(repr([_settings(part) for part in module.modules()]).encode())
    for name, array in to_arrays(module).items():
        state.update(f"{name}{array.dtype}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def _settings(part: nn.Module) -> list[tuple[str, Any]]:
    """Return the attributes that were set by the constructor, or since, and are plain values."""
    inherited = vars(nn.Module())
    return sorted(
        (name, value)
        for name, value in vars(part).items()
        if name not in inherited and _is_plain(value)
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def from_arrays(module: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> nn.Module:
    """Load arrays of :func:`to_arrays` into `module`, which takes their precision."""
    values = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    module.load_state_dict(values, assign=True)
    return module
