"""Rows as NumPy and torch share them: read where they lie, a piece at a time, and never written to."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    *("VALUES_AT_ONCE", "as_numpy", "as_stored", "as_tensor", "is_mapped", "joined", "row_pieces"),
    "row_slices",
]

VALUES_AT_ONCE = 2**22
_FLOATS_OF_NUMPY = (torch.float16, torch.float32, torch.float64)


def row_slices(n_rows: int, n_values: int) -> Iterator[slice]:
    """Yield the places of rows a few million values at a time; at least once, if there are no rows."""
    step = max(1, VALUES_AT_ONCE // max(1, n_values))
    for start in range(0, max(1, n_rows), step):
        yield slice(start, start + step)


def row_pieces(rows: NDArray[Any], n_values: int = 0) -> Iterator[NDArray[Any]]:
    """Yield flat rows a few million values at a time: X may be a file larger than memory.

    Parameters
    ----------
    rows : ndarray of shape (n_samples, ...)
        In whatever order of memory.
    n_values : int, default=0
        Number of values that are made of a row, where they are more than its own.
    """
    width = math.prod(rows.shape[1:])
    for place in row_slices(len(rows), max(width, n_values)):
        piece = rows[place]
        yield np.ascontiguousarray(piece.reshape(len(piece), width))


def joined(n_rows: int, pieces: Iterable[tuple[NDArray[Any], ...]]) -> tuple[NDArray[Any], ...]:
    """Return arrays whose pieces, at least one of each, come one after the other and are not kept."""
    whole: list[NDArray[Any]] = []
    start = 0
    for piece in pieces:
        whole = whole or [np.empty((n_rows, *part.shape[1:]), part.dtype) for part in piece]
        end = start + len(piece[0])
        for place, part in enumerate(piece):
            if not np.can_cast(part.dtype, whole[place].dtype):  # longer words, say
                whole[place] = whole[place].astype(np.promote_types(whole[place].dtype, part.dtype))
            whole[place][start:end] = part
        start = end
    return tuple(whole)


def as_stored(X: Any) -> tuple[Any, Callable[[NDArray[Any]], NDArray[Any]]]:
    """Return images as flat rows in their order in memory, and what makes images of such rows again.

    Both are views where the images lie without gaps, whichever of their axes comes last there. What is
    no array of images comes back as it is.
    """
    if not isinstance(X, np.ndarray) or X.ndim != 4:
        return X, lambda rows: rows
    order = (0, *sorted((1, 2, 3), key=lambda axis: -abs(X.strides[axis])))
    stored = X.transpose(order)
    back = np.argsort(order)
    return stored.reshape(len(X), -1), lambda rows: rows.reshape(stored.shape).transpose(back)


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
