r"""Rows in which some categories are others, and the least radius over all of them.

Note [Edits]
------------
Let E(x) be the rows that differ from x in at most k columns of categories, each value being a known
one, and :math:`r_e` the radius of e in E(x) with all categories held fixed. If every e has the class of
x, so has every x' whose categories are those of some e and whose other columns lie within
:math:`r(x) = \min_e r_e` of those of x, since they lie within :math:`r_e` of those of e. Otherwise r(x)
is 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklip.preprocessing.changes import Changes
from sklip.preprocessing.encoders import Reading, as_key, category_readings, known_values
from sklip.preprocessing.tables import ArrayTable, FrameTable, table_of
from sklip.preprocessing.walk import check_columns, check_shape, column_positions, fixed_mask

__all__ = ["CategoricalEdits", "Found"]

_MOST_EVALUATIONS = 10**8
_VALUES_AT_ONCE = 2**21

# Codes, radii and rivals of some rows.
Found = tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.intp]]


class CategoricalEdits:
    """The edits that a caller allows in some rows: see Note [Edits].

    Parameters
    ----------
    changes : Changes
        With a number of `categorical_edits`.
    ways : sequence of sequences of fitted transformers
        What comes before each of the networks; none of the steps a Pipeline.
    X : array-like or DataFrame of shape (n_samples, n_columns)
    names : ndarray of shape (n_columns,), or None
        Names of the columns seen at ``fit``, if any.
    n_columns : int
        Number of columns seen at ``fit``.

    Attributes
    ----------
    held : tuple of int
        Columns that stay as they are once a row is edited: all that are not read as numbers.

    Raises
    ------
    ValueError
        For columns that can't be edited, values that are not known, and too many evaluations.
    TypeError
        For X in which values can't be replaced.
    """

    def __init__(
        self,
        changes: Changes,
        ways: Sequence[Sequence[Any]],
        X: Any,
        names: NDArray[Any] | None,
        n_columns: int,
    ) -> None:
        edits = changes.categorical_edits
        if isinstance(edits, bool) or not isinstance(edits, int | np.integer) or edits < 0:
            raise ValueError(
                f"categorical_edits must be None or an integer of at least 0, got {edits!r}."
            )
        readings = category_readings(ways, n_columns)
        if not any(reading.by_encoder for reading in itertools.chain(*readings.values())):
            raise ValueError(
                "categorical_edits needs columns that an encoder (OneHotEncoder, OrdinalEncoder, "
                "TargetEncoder) of a ColumnTransformer at the beginning of a Pipeline reads, and there "
                "are none; leave it out."
            )
        fixed = fixed_mask(changes.fixed_columns, names, n_columns)
        encoded = _only_encoded(readings, fixed, names)
        self.held = tuple(sorted({*np.flatnonzero(fixed).tolist(), *encoded}))
        if len(self.held) == n_columns:
            raise ValueError(
                "categorical_edits needs a column of numbers, which the radius is about, but all "
                "columns are categories or held fixed."
            )
        chosen = list(encoded)
        if changes.categorical_columns is not None:
            chosen = column_positions(
                changes.categorical_columns, names, n_columns, "categorical_columns"
            )
            _refuse_uneditable(chosen, readings, fixed, names)
        self._number = min(int(edits), len(chosen))
        self._n_columns = n_columns
        self._columns: list[_Column] = []
        if self._number == 0:
            return
        check_shape(X)
        for steps in ways:
            check_columns(steps, X, names)
        if np.shape(X)[1] != n_columns and (names is None or not hasattr(X, "columns")):
            raise ValueError(f"X must have the {n_columns} columns seen at fit, got {np.shape(X)[1]}.")
        self._table = table_of(X, names)
        self._columns = [
            _Column.of(self._table, position, encoded[position], _named(position, names))
            for position in sorted(set(chosen))
        ]
        n_rows, n_edits = np.shape(X)[0], _n_edits(self._sizes, self._number)
        if n_rows * (1 + n_edits) > _MOST_EVALUATIONS:
            raise ValueError(
                f"categorical_edits={edits} must take at most {_MOST_EVALUATIONS} evaluations, got "
                f"{n_rows} rows with {n_edits} edits each; allow fewer edits, name fewer columns in "
                "categorical_columns, or pass fewer rows at a time."
            )

    @property
    def _sizes(self) -> list[int]:
        return [column.n_classes for column in self._columns]

    def least(self, evaluate: Callable[[Any], Found], found: Found, n_values: int) -> Found:
        """Return the least radius of each row over all edits, 0 where one has another label.

        Parameters
        ----------
        evaluate : callable
            Finds codes, radii and rivals of rows, the columns in `held` being fixed.
        found : tuple
            What it finds for the rows as they are.
        n_values : int
            Largest number of values that a network sees of a row.

        Returns
        -------
        found : tuple
            The same codes; where an edit lowers the radius, its rival, or its code if that is another.
        """
        labels, least, rivals = found[0], found[1].copy(), found[2].copy()
        if self._number == 0:
            return labels, least, rivals
        at_once = max(1, _VALUES_AT_ONCE // max(self._n_columns, n_values))
        shifts, sizes = _shifts(self._sizes, self._number), np.array(self._sizes)
        codes = np.stack([column.codes for column in self._columns], axis=1)
        # Of a row with radius 0 there is nothing more to find out.
        pending = np.flatnonzero(least > 0)
        while len(pending) and (
            block := list(itertools.islice(shifts, max(1, at_once // len(pending))))
        ):
            several = np.array(block)
            touched = np.flatnonzero(several.any(axis=0)).tolist()
            for start in range(0, len(pending), at_once):
                rows = pending[start : start + at_once]
                # One edit after another, each of all rows.
                edited = ((codes[rows] + several[:, None]) % sizes).reshape(-1, len(sizes))
                replaced = {self._columns[place].position: edited[:, place] for place in touched}
                repeated = np.tile(rows, len(several))
                others, radii, nearest = evaluate(self._table.edited(repeated, replaced))
                same = others == labels[repeated]
                radii = np.where(same, radii, 0.0).reshape(len(several), -1)
                nearest = np.where(same, nearest, others).reshape(len(several), -1)
                worst, every = radii.argmin(axis=0), np.arange(len(rows))
                rivals[rows] = np.where(
                    radii[worst, every] < least[rows], nearest[worst, every], rivals[rows]
                )
                least[rows] = np.minimum(radii[worst, every], least[rows])
            pending = pending[least[pending] > 0]
        return labels, least, rivals


def _n_edits(sizes: Sequence[int], edits: int) -> int:
    """Return how many rows differ in 1 to `edits` columns, which have so many values each."""
    # Coefficients of the product of (1 + (m - 1) t) over all columns.
    counts = [1] + [0] * min(edits, len(sizes))
    for size in sizes:
        for number in range(len(counts) - 1, 0, -1):
            counts[number] += counts[number - 1] * (size - 1)
    return sum(counts[1:])


def _shifts(sizes: Sequence[int], edits: int) -> Iterator[list[int]]:
    """Yield all edits as what to add to the codes of each column; few columns first."""
    for number in range(1, min(edits, len(sizes)) + 1):
        for places in itertools.combinations(range(len(sizes)), number):
            for steps in itertools.product(*(range(1, sizes[place]) for place in places)):
                shift = [0] * len(sizes)
                for place, step in zip(places, steps, strict=True):
                    shift[place] = step
                yield shift


@dataclass(frozen=True)
class _Column:
    """A column of categories: which class of values that nothing tells apart each row has.

    Parameters
    ----------
    position : int
    codes : ndarray of shape (n_samples,)
    n_classes : int
    """

    position: int
    codes: NDArray[np.intp]
    n_classes: int

    @classmethod
    def of(
        cls, table: FrameTable | ArrayTable, position: int, readings: Sequence[Reading], name: Any
    ) -> _Column:
        """Read a column, and have the table prepare one value of each class."""
        values = known_values(readings)
        told = zip(*(reading.told_apart(values) for reading in readings), strict=True)
        classes: dict[Any, int] = {}
        of_values = [classes.setdefault(key, len(classes)) for key in told]
        first = [values[of_values.index(number)] for number in range(len(classes))]
        code_of = {as_key(value): code for value, code in zip(values, of_values, strict=True)}
        found, inverse = _distinct(table.column(position))
        codes = [code_of.get(as_key(value)) for value in found]
        if None in codes:
            unknown = found[codes.index(None)]
            raise ValueError(
                f"column {name!r} must hold values that its encoder knows, {values}, to be edited, got "
                f"{unknown!r}; give the encoder all categories, name the column in fixed_columns, "
                "or leave such rows out."
            )
        table.allow(position, first)
        return cls(position, np.array(codes, dtype=np.intp)[inverse], len(classes))


def _distinct(column: NDArray[Any]) -> tuple[list[Any], NDArray[np.intp]]:
    """Return distinct values, and which of them each row has."""
    if column.dtype.kind != "O":
        values, inverse = np.unique(column, return_inverse=True)
        return values.tolist(), inverse.reshape(-1)
    # Objects may have no order.
    places: dict[Any, int] = {}
    inverse = np.array([places.setdefault(as_key(value), len(places)) for value in column])
    first = np.unique(inverse, return_index=True)[1]
    return column[first].tolist(), inverse


def _only_encoded(
    readings: dict[int, list[Reading]], fixed: NDArray[np.bool_], names: NDArray[Any] | None
) -> dict[int, list[Reading]]:
    """Return the columns that are read as categories; to read one in other ways as well is an error."""
    encoded = {}
    for position, of_column in readings.items():
        by_encoder = [reading.by_encoder for reading in of_column]
        if fixed[position] or not any(by_encoder):
            continue
        if not all(by_encoder):
            raise ValueError(
                f"column {_named(position, names)!r} must be read by encoders only, or not at all, for "
                f"categorical_edits, but {_readers(of_column)} read it; name it in fixed_columns."
            )
        encoded[position] = of_column
    return encoded


def _refuse_uneditable(
    chosen: Iterable[int],
    readings: dict[int, list[Reading]],
    fixed: NDArray[np.bool_],
    names: NDArray[Any] | None,
) -> None:
    for position in chosen:
        name = _named(position, names)
        if fixed[position]:
            raise ValueError(f"column {name!r} is named in categorical_columns and in fixed_columns.")
        of_column = readings.get(position, [])
        if not of_column or not of_column[0].by_encoder:
            raise ValueError(
                f"categorical_columns must be columns that an encoder reads, got {name!r}, which is "
                f"read by {_readers(of_column)}."
            )


def _readers(readings: Sequence[Reading]) -> str:
    """Name what reads a column."""
    found = dict.fromkeys(
        "the network" if reading.reader is None else type(reading.reader).__name__
        for reading in readings
    )
    return " and ".join(found) or "nothing"


def _named(position: int, names: NDArray[Any] | None) -> Any:
    return position if names is None else str(names[position])
