"""Tables in which values of some columns are replaced: DataFrames and arrays, their types kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_array

from sklip.preprocessing.encoders import is_nan, same_value

__all__ = ["ArrayTable", "FrameTable", "table_of"]


def table_of(X: Any, names: NDArray[Any] | None) -> FrameTable | ArrayTable:
    """Return rows whose values can be replaced.

    Parameters
    ----------
    X : DataFrame or array-like of shape (n_samples, n_columns)
        Left as it is.
    names : ndarray of shape (n_columns,), or None
        Names of the columns seen at ``fit``, if any.

    Raises
    ------
    TypeError
        For a sparse matrix, or a DataFrame that is not pandas'.
    """
    if hasattr(X, "tocsr"):
        raise TypeError("categorical_edits needs dense X, got a sparse matrix; pass X.toarray().")
    if not hasattr(X, "columns"):
        # Lists become what a ColumnTransformer makes of them.
        return ArrayTable(X if hasattr(X, "dtype") else np.asarray(X, dtype=object))
    if not hasattr(X, "iloc"):
        raise TypeError(
            f"categorical_edits needs a pandas DataFrame or an array, got {type(X).__module__}."
            f"{type(X).__name__}; convert X."
        )
    return FrameTable(X, names)


class FrameTable:
    """A pandas DataFrame."""

    def __init__(self, X: Any, names: NDArray[Any] | None) -> None:
        self._frame, self._names = X, X.columns if names is None else names
        self._palettes: dict[int, Any] = {}

    def column(self, position: int) -> NDArray[Any]:
        """Return a column's values as encoders read them."""
        return _read(self._column(position))

    def _column(self, position: int) -> Any:
        name = self._names[position]
        if name not in self._frame.columns:
            raise ValueError(f"columns are missing: {[name]}; X must have those seen at fit.")
        return self._frame[name]

    def allow(self, position: int, values: Sequence[Any]) -> None:
        """Prepare a column's other values, in its own type if that can hold all of them."""
        column = self._column(position)
        objects = _as_objects(values)
        dtype = column.dtype
        if hasattr(dtype, "categories"):
            known = set(dtype.categories)
            new = [value for value in values if not _is_missing(value) and value not in known]
            dtype = column.cat.add_categories(new).dtype
        for candidate in (dtype, np.array(list(values)).dtype, object):
            palette = _converted(lambda dtype: type(column)(objects, dtype=dtype), candidate)
            if palette is not None and _same(palette, values):
                break
        self._palettes[position] = palette

    def edited(self, rows: NDArray[np.intp], codes: Mapping[int, NDArray[np.intp]]) -> Any:
        """Return some rows, with values of some columns replaced by prepared ones.

        Parameters
        ----------
        rows : ndarray of shape (n_edited,)
            Positions of rows.
        codes : mapping of int to ndarray of shape (n_edited,)
            By column, positions among what was given to :meth:`allow`.
        """
        edited = self._frame.take(rows)
        edited.index = range(len(rows))
        for position, places in codes.items():
            replaced = self._palettes[position].take(places)
            replaced.index = edited.index
            edited[self._names[position]] = replaced
        return edited


class ArrayTable:
    """An array, of objects or of numbers."""

    def __init__(self, X: NDArray[Any]) -> None:
        self._array = X
        self._palettes: dict[int, NDArray[Any]] = {}

    def column(self, position: int) -> NDArray[Any]:
        """Return a column's values as encoders read them."""
        return _read(self._array[:, position])

    def allow(self, position: int, values: Sequence[Any]) -> None:
        """Prepare a column's other values; an array of integers or words is widened to hold them."""
        objects, dtype = _as_objects(values), self._array.dtype
        wide = np.result_type(dtype, np.array(list(values)).dtype) if dtype.kind in "biuU" else dtype
        for candidate in (dtype, wide):
            palette = _converted(objects.astype, candidate)
            if palette is not None and _same(palette, values):
                break
        else:
            raise TypeError(
                f"X must be able to hold all that the encoder of column {position} knows, {values}, "
                f"got {dtype}; convert X."
            )
        self._array = self._array.astype(candidate, copy=False)
        self._palettes[position] = palette

    def edited(self, rows: NDArray[np.intp], codes: Mapping[int, NDArray[np.intp]]) -> NDArray[Any]:
        """Return some rows, with values of some columns replaced, as :meth:`FrameTable.edited`."""
        edited = self._array[rows]
        for position, places in codes.items():
            edited[:, position] = self._palettes[position][places]
        return edited


def _read(column: Any) -> NDArray[Any]:
    """Return a column's values as scikit-learn's encoders take them."""
    values = check_array(column, ensure_2d=False, dtype=None, ensure_all_finite=False)
    return np.asarray(values)


def _as_objects(values: Sequence[Any]) -> NDArray[Any]:
    """Return an array of whatever objects."""
    objects = np.empty(len(values), dtype=object)
    objects[:] = values
    return objects


def _converted(convert: Callable[[Any], Any], dtype: Any) -> Any:
    """Return what a conversion gives, or None if it can't be."""
    try:
        return convert(dtype)
    except (TypeError, ValueError, OverflowError):
        return None


def _same(palette: Any, values: Sequence[Any]) -> bool:
    """Whether no value has changed."""
    pairs = zip(_read(palette).tolist(), values, strict=True)
    return all(same_value(one, other) for one, other in pairs)


def _is_missing(value: Any) -> bool:
    """Whether a value is None, NaN or pandas' NA."""
    return value is None or is_nan(value) or type(value).__name__ == "NAType"
