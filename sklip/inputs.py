r"""How X comes in: tables, flat images, image arrays; NumPy, pandas, torch.

Everything ends as rows, (n_samples, n_features), which scikit-learn validates, and as an
`input_shape` that says how the network is to see a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import check_array

from sklip.rows import as_numpy, row_pieces

__all__ = [
    "as_images",
    "as_labels",
    "as_rows",
    "cast_rows",
    "check_castable",
    "check_input_shape",
    "check_sample_weight",
    "class_weighted",
    "encode_labels",
    "inferred_input_shape",
    "too_large_refused",
]

_CHANNEL_COUNTS = (1, 2, 3, 4)
# What a torch tensor can hold, and index, on every device.
_TORCH_TYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


def check_input_shape(input_shape: Any) -> tuple[int, int, int] | None:
    """Return `input_shape` as (C, H, W), or None."""
    if input_shape is None:
        return None
    shape = tuple(input_shape)
    if len(shape) != 3 or not all(
        isinstance(side, int | np.integer) and not isinstance(side, bool) and side >= 1
        for side in shape
    ):
        raise ValueError(
            "input_shape must be three positive integers (channels, height, width), got "
            f"{input_shape!r}."
        )
    return int(shape[0]), int(shape[1]), int(shape[2])


def inferred_input_shape(X: Any, input_shape: tuple[int, int, int] | None) -> tuple[int, ...] | None:
    """The shape in which the network sees a row; None for what scikit-learn's check must refuse."""
    shape = getattr(X, "shape", None)
    if input_shape is not None or shape is None or len(shape) not in (3, 4):
        return input_shape
    if len(shape) == 3:
        return (1, *shape[1:])
    if shape[3] in _CHANNEL_COUNTS and shape[1] > shape[3]:
        raise ValueError(
            f"X of shape {tuple(shape)} looks like images with the channels last; pass "
            f"input_shape=({shape[3]}, {shape[1]}, {shape[2]}) to have them read so, or "
            f"input_shape={tuple(int(side) for side in shape[1:])} if the channels are first."
        )
    return tuple(shape[1:])


def as_images(X: Any, input_shape: tuple[int, ...] | None, estimator_name: str) -> Any:
    """Return images as a view whose axes are those of `input_shape`; leave anything else as it is."""
    X = as_numpy(X)
    if np.ma.is_masked(X):
        raise ValueError("Input X has masked values, which would count; pass X.filled(value).")
    shape = getattr(X, "shape", None)
    if shape is None or input_shape is None:
        return X
    _refuse_one_image(tuple(shape), input_shape)
    if len(shape) not in (3, 4):
        return X
    images = np.asarray(X)
    got = (1, *images.shape[1:]) if images.ndim == 3 else images.shape[1:]
    if len(input_shape) == 3:
        channels_last = (*input_shape[1:], input_shape[0])
        if images.ndim == 4 and got == channels_last and got != input_shape:
            images, got = images.transpose(0, 3, 1, 2), input_shape
    if got != input_shape:
        expected = f"images of shape {input_shape}" if len(input_shape) == 3 else "flat rows"
        raise ValueError(
            f"X has images of shape {tuple(got)}, but {estimator_name} is expecting {expected} as "
            "input."
        )
    return images.reshape(len(images), *input_shape)


def as_rows(X: Any, input_shape: tuple[int, ...] | None, estimator_name: str) -> Any:
    """Return images as flat channels-first rows; leave anything else to scikit-learn's check."""
    X = as_images(X, input_shape, estimator_name)
    if input_shape is None or getattr(X, "ndim", 0) != 4:
        return X
    return X.reshape(len(X), math.prod(input_shape))


def _refuse_one_image(shape: tuple[int, ...], input_shape: tuple[int, ...]) -> None:
    """Raise an error for X that is one image, without an axis of samples."""
    if len(input_shape) != 3 or shape[1:] == (math.prod(input_shape),):
        return
    channels, height, width = input_shape
    of_one_image = [input_shape, (height, width, channels)] if channels > 1 else [(height, width)]
    if shape in of_one_image:
        raise ValueError(
            f"Expected images of shape (n_samples, {', '.join(map(str, input_shape))}), got one image "
            f"of shape {shape} instead. Reshape your data using X[np.newaxis] if it contains a single "
            "image."
        )


def as_labels(y: Any, name: str = "y") -> Any:
    """Return labels for scikit-learn's check; those that NumPy can't hold as they are, are errors.

    It would turn a list of numbers and words into words, and large integers beside floats into others,
    without a word of it.
    """
    y = as_numpy(y)
    if np.ma.is_masked(y):
        raise ValueError(f"Input {name} has masked values, which would count; leave these rows out.")
    dtype = getattr(y, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype != np.dtype(object):
        _refuse_missing(dtype.kind in "fmM" and np.isnan(y).any(), name)
        return y
    # pandas has types of its own, in which anything may be missing.
    of_pandas = dtype is not None and dtype != np.dtype(object) and np.ndim(y) == 1
    if not isinstance(y, list | tuple) and dtype != np.dtype(object) and not of_pandas:
        return y
    values = [value.item() if isinstance(value, np.number | np.bool_) else value for value in y]
    _refuse_missing(any(map(_is_missing, values)), name)
    kinds = {type(value) for value in values}
    words = {kind for kind in kinds if issubclass(kind, str)}
    if words and kinds != words:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(
            f"{name} must have labels of one kind, got {names}; pass [str(label) for label in {name}], "
            "say."
        )
    numbers = bool(kinds) and all(issubclass(kind, Number) for kind in kinds)
    if dtype == np.dtype(object) and numbers:
        raise ValueError(
            f"Unknown label type: {name} has numbers of type object, which scikit-learn's metrics do "
            f"not take; pass np.asarray({name}.tolist())."
        )
    if dtype == np.dtype(object) or not (words or numbers):
        return y
    held = _held(values, name)
    # scikit-learn would make floats of what pandas has as integers and booleans.
    return held if of_pandas and numbers else y


def _held(labels: list[Any], name: str) -> NDArray[Any]:
    """Return words or numbers as an array, refusing those that are not what they were."""
    held = np.asarray(labels)
    for label, kept in zip(labels, held.tolist(), strict=True):
        if kept != label:
            raise ValueError(
                f"{name} has {label!r}, which becomes {kept!r} beside the other labels; pass numbers "
                "of one type, or other words."
            )
    return held


def _refuse_missing(missing: Any, name: str) -> None:
    if missing:
        raise ValueError(f"Input {name} contains NaN or None, which is no label; leave these rows out.")


def _is_missing(value: Any) -> bool:
    # pandas' NA answers no question about itself.
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    # Not a number, or not a time.
    may_miss = isinstance(value, float | np.floating | np.datetime64 | np.timedelta64)
    return may_miss and bool(value != value)


@contextmanager
def too_large_refused(name: str) -> Iterator[None]:
    """Refuse an integer that float64 can't hold, at which scikit-learn's validation stumbles."""
    try:
        yield
    except OverflowError as error:
        raise ValueError(f"{name} has an integer that is too large for float64.") from error


def cast_rows(rows: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return rows in the network's precision; a value that it can't hold is an error."""
    with np.errstate(over="ignore"):
        cast: NDArray[Any] = rows.astype(dtype, copy=False)
    if cast.dtype != rows.dtype and not np.isfinite(cast).all():
        raise ValueError(f"Input X contains infinity or a value too large for {cast.dtype!r}.")
    return cast


def check_castable(rows: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return rows as they are, or in a type that torch has; too large a value for `dtype` is an error.

    No value is rounded coarser than to float64.
    """
    if rows.dtype.kind not in "biuf":
        raise ValueError(f"X must hold numbers, got {rows.dtype}; convert it.")
    if rows.dtype.name not in _TORCH_TYPES or not rows.dtype.isnative:
        exact = np.promote_types(rows.dtype, np.float32)
        rows = cast_rows(rows, exact.name if exact.itemsize <= 8 else "float64")
    if rows.dtype.kind == "f" and rows.dtype.itemsize > np.dtype(dtype).itemsize:
        for piece in row_pieces(rows):
            cast_rows(piece, dtype)
    return rows


def encode_labels(
    labels: NDArray[Any], classes: NDArray[Any], repeated_classes: ArrayLike | None
) -> NDArray[np.intp]:
    """Return the index of each label in `classes`.

    `repeated_classes` is what a later call of partial_fit gave as classes, if anything.
    """
    if repeated_classes is not None and not np.array_equal(np.unique(repeated_classes), classes):
        raise ValueError(
            f"classes must be those of the first call to partial_fit, {classes.tolist()}, got "
            f"{np.asarray(repeated_classes).tolist()}."
        )
    codes: NDArray[np.intp] = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    unseen = np.unique(labels[classes[codes] != labels])
    if len(unseen):
        raise ValueError(
            f"y contains labels that are not in classes={classes.tolist()}: {unseen.tolist()}."
        )
    return codes


def check_sample_weight(sample_weight: ArrayLike | None, n_samples: int) -> NDArray[np.float64] | None:
    """Return weights as floats, checked to be one a sample, at least 0, with a sum that is a number."""
    if sample_weight is None:
        return None
    with too_large_refused("sample_weight"), np.errstate(over="ignore"):
        weight: NDArray[np.float64] = check_array(
            as_numpy(sample_weight), dtype=np.float64, ensure_2d=False, input_name="sample_weight"
        )
    if weight.ndim != 1:
        raise ValueError(f"sample_weight must be 1D, got shape {weight.shape}.")
    if weight.shape != (n_samples,):
        raise ValueError(f"sample_weight.shape == {weight.shape}, expected {(n_samples,)}!")
    return _check_weight("sample_weight", weight)


def class_weighted(
    class_weight: Any,
    classes: NDArray[Any],
    labels: NDArray[Any],
    codes: NDArray[np.intp],
    sample_weight: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Return weights of samples times those of their classes, which are checked in the same way."""
    # A class may have no weight at all, and any number be a dict's.
    with np.errstate(all="ignore"):
        per_class = compute_class_weight(
            class_weight, classes=classes, y=labels, sample_weight=sample_weight
        )
        weight: NDArray[np.float64] = per_class[codes]
        if sample_weight is not None:
            weight = np.where(sample_weight > 0, sample_weight * weight, 0.0)
    return _check_weight("class_weight", weight)


def _check_weight(name: str, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    if (weight < 0).any():
        raise ValueError(f"Negative values in data passed to `{name}`.")
    if not weight.any():
        raise ValueError(f"{name} must contain at least one non-zero value.")
    with np.errstate(over="ignore"):
        total = weight.sum()
    if not np.finfo(np.float64).tiny <= total < np.inf:
        raise ValueError(
            f"{name} must have a sum that is finite and no subnormal number, got {total}; divide it by "
            "its largest value."
        )
    return weight
