"""Rows as NumPy and torch share them: read where they lie, a piece at a time, and never written to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["as_numpy", "as_tensor", "is_mapped", "row_pieces"]

_VALUES_AT_ONCE = 2**22


def row_pieces(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the rows a few million values at a time: X may be a file larger than memory."""
    step = max(1, _VALUES_AT_ONCE // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def is_mapped(rows: NDArray[Any]) -> bool:
    """Whether an array is a view of a file mapped into memory."""
    array: Any = rows
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


def as_numpy(values: Any) -> Any:
    """Return a torch tensor as a NumPy array, anything else as it is."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def as_tensor(array: NDArray[Any]) -> Tensor:
    """Return a tensor that shares the memory of an array, which must not be written to."""
    if any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch has no negative strides
    if not array.flags.writeable:
        # torch has no read-only tensors, and warns of arrays that are; a filter of warnings would be
        # shared by all threads.
        array = np.asarray(_Writable(array))
    return torch.from_numpy(array)


class _Writable:
    """Presents the memory of a read-only array as that of a writable one."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array  # keeps the memory alive
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
