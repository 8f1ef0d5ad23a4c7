"""Rows whose columns of numbers are moved, in the container and the types in which they came."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Neighbours", "neighbours_of"]


def neighbours_of(X: Any, names: NDArray[Any] | None, moves: NDArray[np.bool_]) -> Neighbours:
    """Return rows that can be moved.

    Parameters
    ----------
    X : DataFrame, sparse matrix or array-like of shape (n_samples, ...)
        Left as it is.
    names : ndarray of shape (n_columns,), or None
        Names of the columns seen at ``fit``, if any.
    moves : ndarray of shape (n_columns,), bool
        Which columns may be moved.

    Raises
    ------
    TypeError
        For columns that may be moved and hold no numbers, and for a DataFrame that is not pandas'.
    """
    if not hasattr(X, "columns"):
        return _Array(X, moves)
    if not hasattr(X, "iloc"):
        raise TypeError(
            f"counterfactual needs a pandas DataFrame or an array, got {type(X).__module__}."
            f"{type(X).__name__}; convert X."
        )
    return _Frame(X, X.columns if names is None else names, moves)


class Neighbours:
    """Rows x, and rows that differ from them in some columns of numbers.

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_columns)
        The numbers in x; 0 in columns that can't be moved.

    Attributes
    ----------
    values : ndarray of shape (n_samples, n_columns)
        The same, with 0 where a value is missing.
    movable : ndarray of shape (n_samples, n_columns), bool
        What can be moved: numbers that are not missing.
    """

    def __init__(self, values: NDArray[np.float64], moves: NDArray[np.bool_]) -> None:
        self.movable = moves & np.isfinite(values)
        self.values = np.where(self.movable, values, 0.0)

    def __len__(self) -> int:
        return len(self.values)

    def at(self, rows: NDArray[np.intp], changes: NDArray[np.float64]) -> Any:
        """Return rows in a container of their own, some of their columns moved.

        Parameters
        ----------
        rows : ndarray of shape (n_moved,)
            Positions of rows.
        changes : ndarray of shape (n_moved, n_columns)
            What is added; columns of integers become float64 by it, other types stay.
        """
        raise NotImplementedError

    def moved(self, rows: NDArray[np.intp], found: Any) -> NDArray[np.float64]:
        """Return by how much the values of rows from :meth:`at` differ from those of x."""
        return np.where(self.movable[rows], self._read(found) - self.values[rows], 0.0)

    def _read(self, found: Any) -> NDArray[np.float64]:
        raise NotImplementedError


class _Frame(Neighbours):
    """Rows of a pandas DataFrame."""

    def __init__(self, X: Any, names: Any, moves: NDArray[np.bool_]) -> None:
        # scikit-learn would read sparse columns as dense ones, with a warning in each step.
        sparse = {name: X[name].dtype.subtype for name in X.columns if hasattr(X[name], "sparse")}
        self._X, self._names, self._moves = X.astype(sparse), names, moves
        super().__init__(self._read(X), moves)

    def at(self, rows: NDArray[np.intp], changes: NDArray[np.float64]) -> Any:
        found = self._X.take(rows)
        movable, values = self.movable[rows], self.values[rows] + changes
        for position in np.flatnonzero(self._moves).tolist():
            name, column = self._names[position], values[:, position]
            kept = found[name].dtype
            if movable[:, position].all() and isinstance(kept, np.dtype) and kept.kind != "O":
                # A new column is faster than one that is filled in.
                found[name] = column.astype(_floating(kept))
            else:
                wide = found[name].astype(kept if kept.kind in "fO" else np.float64)
                found[name] = wide.mask(movable[:, position], column.astype(_floating(kept)))
        return found

    def _read(self, found: Any) -> NDArray[np.float64]:
        values = np.zeros((len(found), len(self._moves)))
        for position in np.flatnonzero(self._moves).tolist():
            name = self._names[position]
            if name not in found.columns:
                raise ValueError(f"columns are missing: {[name]}; X must have those seen at fit.")
            values[:, position] = _numbers(found[name], name)
        return values


class _Array(Neighbours):
    """Rows of an array, a list or a sparse matrix; images as well."""

    def __init__(self, X: Any, moves: NDArray[np.bool_]) -> None:
        dense = X.toarray() if hasattr(X, "toarray") else np.asarray(X)
        if dense.dtype.kind in "US":
            dense = np.asarray(X, dtype=object)
        self._sparse = type(X) if hasattr(X, "toarray") else None
        self._shape, self._rows = dense.shape[1:], dense.reshape(len(dense), -1)
        if dense.dtype.kind != "O":
            self._rows = self._rows.astype(_floating(dense.dtype), copy=False)
        if self._rows.shape[1] != len(moves):
            raise ValueError(
                f"X has {self._rows.shape[1]} features, but {len(moves)} were seen at fit."
            )
        self._moves = moves
        super().__init__(self._read(self._rows), moves)

    def at(self, rows: NDArray[np.intp], changes: NDArray[np.float64]) -> Any:
        found, movable = self._rows[rows], self.movable[rows]
        found[movable] = (self.values[rows] + changes)[movable]
        if self._sparse is not None:
            return self._sparse(found)
        return found.reshape(len(found), *self._shape)

    def _read(self, found: Any) -> NDArray[np.float64]:
        dense = found.toarray() if self._sparse is not None and found is not self._rows else found
        flat = dense.reshape(len(dense), -1)
        if flat.dtype.kind != "O":
            return np.asarray(flat, dtype=np.float64)
        values = np.zeros((len(flat), len(self._moves)))
        for position in np.flatnonzero(self._moves).tolist():
            values[:, position] = _numbers(flat[:, position], position)
        return values


def _floating(dtype: Any) -> Any:
    """Return the type of moved values: float32 and wider stay what they are."""
    kept = dtype.kind == "f" and dtype.itemsize >= 4
    return np.dtype(f"f{dtype.itemsize}") if kept else np.dtype(np.float64)


def _numbers(column: Any, name: Any) -> NDArray[np.float64]:
    try:
        if hasattr(column, "to_numpy"):
            column = column.to_numpy(dtype=np.float64, na_value=np.nan)
        return np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"column {name!r} of X must hold numbers to be moved, got {column.dtype}; convert it, or "
            "name it in fixed_columns."
        ) from error
