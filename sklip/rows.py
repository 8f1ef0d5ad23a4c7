"""Rows as NumPy and torch share them: read where they lie, a piece at a time, and never written to."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["as_numpy", "as_tensor", "is_mapped", "row_pieces"]

_VALUES_AT_ONCE = 2**22
_FLOATS_OF_NUMPY = (torch.float16, torch.float32, torch.float64)


def row_pieces(rows: NDArray[Any], n_outputs: int = 0) -> Iterator[NDArray[Any]]:
    """Yield rows, a few million values or outputs at a time: X may be a file larger than memory."""
    step = max(1, _VALUES_AT_ONCE // max(1, rows.shape[1], n_outputs))
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
    """Return torch tensors, or a list of images, as NumPy arrays; anything else as it is."""
    if isinstance(values, torch.Tensor):
        return _of_tensor(values)
    if _is_pillow_image(values):
        raise ValueError("Expected a list of images, got one image instead; pass [image].")
    if isinstance(values, list | tuple) and len(values) and _is_image(values[0]):
        return _stacked(values)
    if isinstance(values, list | tuple) and len(values) and isinstance(values[0], torch.Tensor):
        return [as_numpy(value) for value in values]
    return values


def _of_tensor(tensor: Tensor) -> NDArray[Any]:
    try:
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
        if tensor.is_floating_point() and tensor.dtype not in _FLOATS_OF_NUMPY:
            tensor = tensor.float()  # holds every bfloat16, and every number of 8 bits, exactly
        array: NDArray[Any] = tensor.numpy()
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"a tensor must be dense and hold its values to be read, got one that is not ({error}); "
            "pass X.to_dense(), say."
        ) from error
    return array


def _is_pillow_image(value: Any) -> bool:
    # An image of Pillow is one only where Pillow was imported; it is none of sklip's requirements.
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _is_image(value: Any) -> bool:
    """Whether a member of a list is an image, not a row."""
    if _is_pillow_image(value) or getattr(value, "ndim", 0) >= 2:
        return True
    try:
        return isinstance(value, list | tuple) and np.ndim(value) >= 2
    except ValueError:  # ragged
        return False


def _stacked(images: Sequence[Any]) -> NDArray[Any]:
    arrays = [_channels_first(image) for image in images]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        raise ValueError(
            "X must be images of one shape, got a list of images of shapes "
            f"{', '.join(map(str, shapes))}; resize them to one, and convert them to one mode."
        )
    return np.stack(arrays)


def _channels_first(image: Any) -> NDArray[Any]:
    """Return one image as an array: Pillow's have their channels last, others are taken as they are."""
    if not _is_pillow_image(image):
        return np.asarray(as_numpy(image))
    if image.mode in ("P", "PA"):
        raise ValueError(
            f"X has an image of mode {image.mode!r}, whose values are places in a palette, not "
            "colours; pass image.convert('RGB')."
        )
    array = np.asarray(image)
    return np.moveaxis(array, -1, 0) if array.ndim == 3 else array


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
