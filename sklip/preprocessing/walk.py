r"""Rows on their way through the steps of a Pipeline: what comes out, and how far rounding moved it.

x is the caller's row, x' one at distance r of it, each column in a unit of its own. The steps' values
at x are computed, so their lengths are known; those at x' are bounded with the help of r. Three
distances are carried along, each affine in r: between exact steps at x and at x', the gains' bound
times r; between computed and exact steps at x, which does not depend on r; and the same at x'. See
:mod:`sklip.certified.maps` for the recurrence.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.utils.extmath import row_norms

from sklip.certified.arithmetic import Affine, Arithmetic
from sklip.certified.gains import Gains
from sklip.certified.maps import MapBound
from sklip.certified.radii import row_lengths_upper
from sklip.preprocessing.steps import check_width, described_steps, may_narrow, weighted_reads

__all__ = [
    "Distances",
    "check_columns",
    "check_shape",
    "column_positions",
    "fixed_mask",
    "longest_row",
    "walk",
]

Distances = NDArray[np.float64] | float


def column_positions(
    columns: Iterable[str | int], names: NDArray[Any] | None, n_columns: int, argument: str
) -> list[int]:
    """Return positions at ``fit`` of columns that are given by name or position.

    Parameters
    ----------
    columns : iterable of str or int
    names : ndarray of shape (n_columns,), or None
        Names of the columns, where they have any.
    n_columns : int
    argument : str
        What the caller calls `columns`, for errors.

    Returns
    -------
    positions : list of int

    Raises
    ------
    ValueError
        For what names no column.
    """
    if isinstance(columns, str | bytes) or not isinstance(columns, Iterable):
        raise ValueError(f"{argument} must be an iterable of columns, got {columns!r}.")
    known = {} if names is None else {name: position for position, name in enumerate(names)}
    positions = []
    for column in columns:
        position = known.get(column) if isinstance(column, str) else column
        if isinstance(position, bool) or not isinstance(position, int | np.integer):
            raise ValueError(
                f"{argument} must be names of columns seen at fit, or positions, got "
                f"{column!r}; the names are {list(known)}."
            )
        if not 0 <= position < n_columns:
            raise ValueError(
                f"{argument} must be positions of at least 0 and below {n_columns}, got {column!r}."
            )
        positions.append(int(position))
    return positions


def fixed_mask(
    fixed_columns: Iterable[str | int], names: NDArray[Any] | None, n_columns: int
) -> NDArray[np.bool_]:
    """Return which columns are held fixed.

    Parameters
    ----------
    fixed_columns : iterable of str or int
        Names, or positions at ``fit``.
    names : ndarray of shape (n_columns,), or None
        Names of the columns, where they have any.
    n_columns : int

    Returns
    -------
    fixed : ndarray of shape (n_columns,), bool

    Raises
    ------
    ValueError
        For what names no column, and if no column is left to change.
    """
    fixed = np.zeros(n_columns, dtype=bool)
    fixed[column_positions(fixed_columns, names, n_columns, "fixed_columns")] = True
    if fixed.all():
        raise ValueError("fixed_columns must leave at least one column that can change.")
    return fixed


def walk(
    steps: Sequence[Any], X: Any, names: NDArray[Any] | None, start: Gains
) -> tuple[Any, Gains, Affine, Distances]:
    """Take rows through fitted steps, with what is proven of the way.

    Parameters
    ----------
    steps : sequence of fitted transformers
        None of them a Pipeline.
    X : array-like, sparse matrix or DataFrame
        What the first step takes.
    names : ndarray of shape (n_columns,), or None
        Names of the columns seen at ``fit``, if any.
    start : Gains
        Which columns can change, and in which units that is measured.

    Returns
    -------
    values : array-like
        What the steps make of X.
    gains : Gains
        How far a change of X comes, the steps being exact.
    drift : Affine
        How far rounding may have moved the values at x and at x' together, by the distance of x' in
        those units.
    longest : ndarray of shape (n_samples,), or float
        Distance of x', in those units, up to which no step can overflow; 0 for rows that lack values.

    Raises
    ------
    TypeError
        For a step without a proven bound, before any work is done.
    ValueError
        For a step that gives another number of values than its rule says.
    """
    known, gains = described_steps(steps, start)
    check_shape(X)
    check_columns(steps, X, names)
    # A scaler with copy=False overwrites what it is given, and so may any step on fixed columns: not
    # the caller's X.
    fixed = start.moves is None or not start.moves.all()
    in_place = fixed or not all(getattr(transformer, "copy", True) for transformer in steps)
    values, lengths, coarse = copy.deepcopy(X) if in_place else X, [], _has_float32(X)
    longest: Distances = math.inf
    behind = [*(before for _, before in known), gains][1:]
    for transformer, (bound, before), after in zip(steps, known, behind, strict=True):
        rows = _numbers(values, names, bound, before)
        weighted = weighted_reads(transformer, before)
        if len(weighted) and not _all_floating(_columns(values, names, weighted)):
            raise TypeError(
                f"{type(transformer).__name__} with transformer_weights may overflow on integers; "
                "convert X to floating point."
            )
        names = None  # of the caller's columns
        missing = np.isnan(rows)
        longest = np.where(missing.any(axis=1), 0.0, longest)
        lengths.append(row_lengths_upper(np.where(missing, 0.0, rows)))
        values = transformer.transform(values)
        check_width(transformer, after, np.shape(values)[1])
        coarse = coarse or _has_float32(values) or may_narrow(transformer)
    # Each step may compute in the coarsest precision that occurs.
    arithmetic = Arithmetic("float32" if coarse else "float64")
    error_at_x, error_at_neighbour = Affine(), Affine()
    for (bound, before), length in zip(known, lengths, strict=True):
        own = bound.error_in(arithmetic)
        reached = Affine(length) + error_at_x + error_at_neighbour + Affine(0.0, before.bound)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            room = (longest_row(own, arithmetic) - reached.offset) / reached.slope
        longest = np.minimum(longest, np.where(np.isnan(room), 0.0, room))
        error_at_neighbour = bound.carry(error_at_neighbour, reached, own)
        error_at_x = bound.carry(error_at_x, Affine(length), own)
    return values, gains, (error_at_x + error_at_neighbour).rounded_up(), longest


def longest_row(own: Affine, arithmetic: Arithmetic) -> float:
    """Length up to which no row can overflow in a step, as in `sklip.certified.maps.longest_input`."""
    room = math.sqrt(arithmetic.largest) / 8
    if own.slope == 0:
        return room
    return float(min(room, (arithmetic.unit * room - own.offset) / own.slope))


def _numbers(
    values: Any, names: NDArray[Any] | None, bound: MapBound, gains: Gains
) -> NDArray[np.float64]:
    """Return the columns that a step reads; 0 for what is held fixed and no number."""
    if hasattr(values, "tocsr"):
        if not getattr(values, "has_canonical_format", True):
            raise ValueError(
                "sparse X must hold each entry once to be certified; pass a CSR matrix after "
                "X.sum_duplicates()."
            )
        # Of sparse rows the length is all that matters.
        return np.asarray(row_norms(values.astype(np.float64)))[:, None]
    reads = bound.reads
    if hasattr(values, "columns") and names is not None:
        # By name, as scikit-learn's ColumnTransformer takes them: the order may be another.
        reads = np.arange(len(names)) if reads is None else reads
        missing = [name for name in names[reads] if name not in values.columns]
        if missing:
            raise ValueError(f"columns are missing: {missing}; X must have those seen at fit.")
        columns = [values[name] for name in names[reads]]
    else:
        rows = np.asarray(values)
        if gains.moves is not None and rows.shape[1] != len(gains.moves):
            raise ValueError(
                f"X has {rows.shape[1]} features, but {len(gains.moves)} were seen at fit."
            )
        reads = np.arange(rows.shape[1]) if reads is None else reads
        columns = list(rows.T[reads])
    moves = np.ones(len(reads), dtype=bool) if gains.moves is None else gains.moves[reads]
    numbers = np.zeros((len(values), len(reads)))
    for position, (column, moving) in enumerate(zip(columns, moves, strict=True)):
        try:
            numbers[:, position] = np.asarray(column, dtype=np.float64)
        except OverflowError as error:
            raise ValueError(
                f"column {reads[position]} of X has an integer that is too large for float64."
            ) from error
        except (TypeError, ValueError) as error:
            if moving:
                raise TypeError(
                    f"column {reads[position]} of X must hold floating-point numbers to be certified, "
                    f"got {column.dtype}; convert it, or name it in fixed_columns."
                ) from error
        if not moving:
            # What is missing stays missing.
            np.nan_to_num(numbers[:, position], copy=False, nan=0.0)
    return numbers


def _columns(values: Any, names: NDArray[Any] | None, positions: NDArray[np.intp]) -> Any:
    """Return some columns where types may differ between them, else all."""
    if names is None or not hasattr(values, "columns"):
        return values
    return values[list(names[positions])]


def check_shape(X: Any) -> None:
    """Refuse what scikit-learn's steps would refuse, in their words."""
    shape = np.shape(X)
    if len(shape) != 2:
        raise ValueError(f"Expected 2D array, got {len(shape)}D array instead, of shape {shape}.")
    if shape[0] == 0:
        raise ValueError(
            f"Found array with 0 sample(s) (shape={shape}) while a minimum of 1 is required."
        )
    if getattr(getattr(X, "dtype", None), "kind", None) == "c":
        raise ValueError("Complex data not supported: X must hold real numbers.")


def check_columns(steps: Sequence[Any], X: Any, names: NDArray[Any] | None) -> None:
    """Only a ColumnTransformer goes by names: elsewhere another order is another row."""
    if not hasattr(X, "columns"):
        return
    columns = list(X.columns)
    if len(set(columns)) < len(columns):
        raise ValueError(f"columns of X must have different names, got {columns}.")
    if names is None:
        return
    by_name = steps and type(steps[0]) is ColumnTransformer
    if not by_name and columns != list(names):
        raise ValueError(
            f"columns of X must be those seen at fit in the same order, {list(names)}, got {columns}."
        )


def _dtypes(values: Any) -> set[str]:
    """Names of the types that occur, and those of NumPy's floats inside objects."""
    if hasattr(values, "columns"):
        objects = [values[name] for name in values.columns if values[name].dtype == object]
        found = {str(dtype).lower() for dtype in values.dtypes}
    else:
        array = values if hasattr(values, "tocsr") else np.asarray(values)
        objects, found = [array] if array.dtype == object else [], {str(array.dtype)}
    if isinstance(values, list | tuple):
        # Converted to the widest; scikit-learn may convert them apart.
        objects.append(np.asarray(values, dtype=object))
    inside = (value for column in objects for value in np.asarray(column, dtype=object).flat)
    return found | {value.dtype.name for value in inside if isinstance(value, np.floating)}


def _has_float32(values: Any) -> bool:
    """Whether any value is of single precision; half precision is refused."""
    found = " ".join(_dtypes(values))
    if "float16" in found:
        raise TypeError(
            "certificates behind steps or in other units need X of float32 or wider, got float16; pass "
            "X.astype(np.float32)."
        )
    return "float32" in found


def _all_floating(values: Any) -> bool:
    return all("float" in name for name in _dtypes(values))
