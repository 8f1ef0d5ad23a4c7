r"""How far a change of single columns carries through maps, one after another and side by side.

Note [Columns]
--------------
A bound on a whole map, times a bound on the next, gives away what is known of single columns: that
scalers before and behind a projection act as one matrix with it, that the parts of a ColumnTransformer
see columns of their own, that some columns are held fixed. So the change itself is kept. Write
:math:`u_c = (x'_c - x_c) / s_c` for the change of column c, in a unit :math:`s_c` that the caller
chooses, and :math:`\Delta` for how far the values behind the maps have moved. Then

.. math:: \Delta = Q (M + E) \Theta u , \qquad \|E_c\|_2 \le e_c

with a matrix M that is known, its error E, of which the lengths of the columns are bounded, and

* :math:`\Theta` diagonal with entries in [-1, 1]: the identity if all maps were linear. A map that acts
  value by value and moves none by more than a factor is :math:`D \Theta' = \Theta' D`, whatever it does
  in between: with D its steepest slopes, :math:`\theta' = (f(x') - f(x)) / (D (x' - x))`, which lies
  in [0, 1] if f only rises (clipping, interpolated quantiles) and in [-1, 1] if it does not. In front
  of a matrix :math:`\Theta'` joins :math:`\Theta`, as long as no two values come from one column.
* Q the identity as long as values are known; behind a map of which only its constant is known (which
  scales M), or behind a clipping of mixed values, some map that lengthens no vector.

Hence :math:`\|\Delta\|_2 \le (\|M\|_2 + \|e\|_2) \|u\|_2`, and :math:`(\|M_c\|_2 + e_c) |u_c|` where
column c alone changes. As long as no map mixes columns, M has one entry a row, and only these are kept.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sklip.certified.arithmetic import FLOOR
from sklip.certified.maps import MapBound
from sklip.certified.norms import column_lengths_upper, matrix_norm_upper

__all__ = ["Gains"]

# What a factor of a linear map and a product with it may be off by: 2 ** -50, as rules say, and a
# rounding.
_OFF = 2.0**-49
# Covers the rounding of the sums of a few positive numbers.
_SLACK = 1 + 2.0**-40
# More than underflow takes from the products and sums of a matrix, each off by 2 ** -1020 at most.
_LOST = FLOOR * 2.0**30
# Entries that a matrix may have, where it has more than what it is made of: 128 MB.
_LARGEST = 2**24


@dataclass(frozen=True)
class Gains:
    r"""How far a change of columns has come: see Note [Columns].

    Parameters
    ----------
    matrix : ndarray of shape (n_values,) or (n_values, n_columns)
        M, or its one entry in each row where `sources` says in which column that is.
    sources : ndarray of shape (n_values,), or None
        Column that each value comes from; None once columns have been mixed.
    errors : ndarray of shape (n_columns,)
        e.
    linear : bool
        Whether :math:`\Theta` is the identity. Where M has one entry a row, and is no linear map, each
        value may have a :math:`\theta` of its own.
    moves : ndarray of shape (n_values,), bool, or None
        Which values change at all; None where Q is not the identity, and only the length of the change
        is known.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sklip.certified.gains import Gains
    >>> from sklip.certified import MapBound
    >>> halved = Gains.at_start(2).through(MapBound(1.0, factors=np.array([0.5, 1.0]), linear=True))
    >>> summed = halved.through(MapBound(2**0.5, matrix=torch.ones(1, 2)))
    >>> summed.of_columns.round(6), round(summed.bound, 6)
    (array([0.5, 1. ]), 1.118034)
    """

    matrix: NDArray[np.float64]
    sources: NDArray[np.intp] | None
    errors: NDArray[np.float64]
    linear: bool
    moves: NDArray[np.bool_] | None

    @classmethod
    def at_start(
        cls,
        n_columns: int,
        fixed: NDArray[np.bool_] | bool = False,
        scale: NDArray[np.float64] | float = 1.0,
    ) -> Gains:
        """Return the beginning: every column as it is, in units of its scale, or held fixed.

        Parameters
        ----------
        n_columns : int
        fixed : ndarray of shape (n_columns,), bool, default=False
        scale : ndarray of shape (n_columns,), default=1.0
            Positive, where columns are not fixed.

        Returns
        -------
        gains : Gains
        """
        entries = np.where(np.broadcast_to(fixed, n_columns), 0.0, scale)
        return cls(entries, np.arange(n_columns), np.zeros(n_columns), True, entries != 0)

    @classmethod
    def held(cls, n_columns: int, n_values: int) -> Gains:
        """Return values that don't change at all."""
        nowhere = np.zeros(n_values, dtype=np.intp)
        still = np.zeros(n_values, dtype=bool)
        return cls(np.zeros(n_values), nowhere, np.zeros(n_columns), True, still)

    # -- what is known -----------------------------------------------------------------------

    @functools.cached_property
    def bound(self) -> float:
        """Lipschitz constant with respect to all columns that may change."""
        if self.sources is not None:
            # Columns of M that are orthogonal.
            return float(self.of_columns.max(initial=0.0))
        if not np.isfinite(self.of_columns).all():
            return np.inf
        error = float(column_lengths_upper(self.errors[:, None])[0])
        return (matrix_norm_upper(torch.from_numpy(self.matrix)) + error) * (1 + 2.0**-52)

    @functools.cached_property
    def of_columns(self) -> NDArray[np.float64]:
        """Gain of each column where it changes alone: 0 if that changes nothing."""
        return (self._lengths + self.errors) * np.where(self.errors > 0, 1 + 2.0**-52, 1.0)

    @functools.cached_property
    def _lengths(self) -> NDArray[np.float64]:
        """Upper bounds on the lengths of the columns of M."""
        return self._of_sources(np.abs(self.matrix), column_lengths_upper(self.matrix))

    def _of_sources(
        self, sizes: NDArray[np.float64], of_columns: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Root of the sum of squares of the sizes of each column's values; `of_columns` once mixed."""
        if self.sources is None:
            return of_columns
        lengths = np.zeros(len(self.errors))
        np.hypot.at(lengths, self.sources, sizes)
        # One rounding for each value of a column.
        return lengths * (1 + (self._repeats > 1) * self._repeats * 2.0**-50)

    @functools.cached_property
    def _repeats(self) -> int:
        """Most values that come from one column."""
        if self.sources is None or len(self.sources) == 0:
            return 0
        return int(np.bincount(self.sources[self.matrix != 0]).max(initial=0))

    def carried(self, changes: NDArray[np.float64]) -> NDArray[np.float64]:
        r"""Return vectors that are as long as given changes come at most, but for rounding.

        They are :math:`\Delta` itself where values are known and all maps are linear, and in any case
        linear in the changes.

        Parameters
        ----------
        changes : ndarray of shape (n_changes, n_columns)

        Returns
        -------
        vectors : ndarray of shape (n_changes, n_values), or (n_changes, n_columns)
        """
        if self.sources is not None and changes.shape[1] == 0:
            # What is held fixed has a source, even where there is no column.
            return np.zeros((len(changes), len(self.matrix)))
        if self.sources is not None:
            return changes[:, self.sources] * self.matrix
        if self.linear:
            return np.asarray(changes @ self.matrix.T)
        return changes * self.bound

    # -- one map after another ---------------------------------------------------------------

    def times(self, constant: float) -> Gains:
        """Return what is known behind a map of which only its constant is."""
        factors = np.full(len(self.matrix), float(constant))
        return replace(self._scaled(factors, 2.0**-52), moves=None)

    def through(self, step: MapBound) -> Gains:
        """Return what is known behind one more map."""
        if self.moves is None:
            return self.times(step.constant)
        if step.matrix is not None:
            size = step.matrix.shape[0] * len(self.errors)
            formed = size <= max(_LARGEST, step.matrix.numel(), self.matrix.size)
            # With values of one column damped apart, no Theta stands in front of the matrix.
            if formed and (self.linear or self.sources is None or self._repeats <= 1):
                return self._composed(step)
        elif step.factors is not None:
            every = np.arange(len(self.moves)) if step.sources is None else step.sources
            factors = np.broadcast_to(np.asarray(step.factors, dtype=np.float64), len(every))
            scaled = self.of_values(every)._scaled(factors, _OFF)
            if step.linear:
                return scaled
            return replace(scaled, linear=False) if self.sources is not None else scaled.times(1.0)
        return self.times(step.constant)

    def of_values(self, indices: NDArray[np.intp]) -> Gains:
        """Return what is known of some of the values; of all, where values are not known."""
        if self.moves is None:
            return self
        moves = self.moves[indices]
        sources = None if self.sources is None else self.sources[indices]
        touched = np.zeros(len(self.errors), dtype=bool)
        touched[slice(None) if sources is None else sources[moves]] = moves.any()
        # A row that is there several times has its error several times.
        repeats = np.bincount(indices).max(initial=0) if len(indices) else 0
        errors = self.errors * (np.sqrt(repeats) * _SLACK if repeats > 1 else 1.0)
        return Gains(self.matrix[indices], sources, np.where(touched, errors, 0.0), self.linear, moves)

    def _scaled(self, factors: NDArray[np.float64], off: float) -> Gains:
        """Return what is known once values are multiplied by factors; products are off by a share."""
        rounds = (factors != 1.0) & (factors != 0.0)
        if (factors == 1.0).all():
            return self
        sizes, growth, rough = np.abs(factors), np.zeros(len(self.errors)), np.zeros(len(self.errors))
        with np.errstate(over="ignore", invalid="ignore"):
            if self.sources is None:
                growth += sizes.max(initial=0.0)
                rough += rounds.any()
                matrix = self.matrix * factors[:, None]
            else:
                np.maximum.at(growth, self.sources, sizes)
                np.maximum.at(rough, self.sources, rounds.astype(float))
                matrix = self.matrix * factors
                # What moves is told from what is fixed by its entry: none may vanish.
                vanished = (self.matrix != 0) & (factors != 0) & (np.abs(matrix) < FLOOR)
                sign = np.sign(self.matrix) * np.sign(factors)
                matrix = np.where(vanished, np.where(sign < 0, -FLOOR, FLOOR), matrix)
            lost = _LOST * (1 + growth) * (1 + self._lengths)
            rough *= (growth > 0) & (self.of_columns > 0)
            errors = growth * self.errors + np.where(
                rough > 0, growth * self._lengths * off + lost, 0.0
            )
        moves = None if self.moves is None else self.moves & (factors != 0)
        return Gains(matrix, self.sources, errors * _SLACK, self.linear, moves)

    def _composed(self, step: MapBound) -> Gains:
        r"""Return what is known behind a matrix A, which makes A M of M.

        With n terms a sum, :math:`|fl(A M) - A M| \le \gamma_n |A| |M|`, so that its column c is at
        most :math:`\gamma_n \|A\|_F \|M_c\|_2` long (Higham 2002, section 3.5). As long as values have
        one entry each, the columns of A that meet those of column c count in its place.
        """
        assert step.matrix is not None
        matrix = step.matrix.detach().cpu().double().numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            every = float(column_lengths_upper(matrix.reshape(-1, 1))[0])
            if self.sources is None:
                product, n_terms = matrix @ self.matrix, len(self.matrix)
            else:
                product, n_terms = np.zeros((len(matrix), len(self.errors))), self._repeats
                spread = matrix * self.matrix
                if self._repeats <= 1:
                    meets = self.matrix != 0
                    product[:, self.sources[meets]] = spread[:, meets]
                else:
                    np.add.at(product.T, self.sources, spread.T)
            met = self._of_sources(column_lengths_upper(matrix), np.full(len(self.errors), every))
            off = 2.0**-50 + (n_terms + 2) * 2.0**-52
            errors = met * (self.errors + off * self._lengths)
            errors = (errors + _LOST * (1 + met) * (1 + self._lengths)) * _SLACK
        errors = np.where(self.of_columns > 0, errors, 0.0)
        assert self.moves is not None
        moves = np.full(len(matrix), self.moves.any())
        return Gains(product, None, errors, self.linear, moves)

    # -- maps side by side -------------------------------------------------------------------

    @classmethod
    def side_by_side(cls, parts: Sequence[Gains], n_columns: int) -> Gains:
        """Return what is known of several maps of the same columns, one beside the other.

        Parameters
        ----------
        parts : sequence of Gains
        n_columns : int

        Returns
        -------
        gains : Gains
        """
        parts = [cls.held(n_columns, 0), *parts]
        if all(part.sources is not None and part.moves is not None for part in parts):
            return cls._stacked(parts)
        # One Theta for all: what damps a column may not do so in one part alone.
        shared = np.sum([part.of_columns > 0 for part in parts], axis=0) > 1
        parts = [part._undamped() if part._damps(shared) else part for part in parts]
        if sum(len(part.matrix) for part in parts) * n_columns > _LARGEST:
            parts = [part._spread() for part in parts]
        return cls._stacked(parts)

    @classmethod
    def _stacked(cls, parts: Sequence[Gains]) -> Gains:
        moves = [part.moves for part in parts if part.moves is not None]
        sources = [part.sources for part in parts if part.sources is not None]
        apart = len(sources) == len(parts)
        matrices = [part.matrix if apart else part._dense() for part in parts]
        errors = functools.reduce(np.hypot, [part.errors for part in parts])
        return cls(
            np.concatenate(matrices),
            np.concatenate(sources) if apart else None,
            errors * _SLACK,
            all(part.linear for part in parts),
            np.concatenate(moves) if len(moves) == len(parts) else None,
        )

    def _damps(self, shared: NDArray[np.bool_]) -> bool:
        """Whether this is no matrix times the one Theta that maps beside it have, too."""
        several = bool((shared & (self.of_columns > 0)).any())
        return not self.linear and (several or self._repeats > 1)

    def _undamped(self) -> Gains:
        """Return a bound on the length of the change alone, as of a linear map of the columns."""
        if self.sources is None:
            return self._spread()
        # Each value has a theta of its own, which lengthens nothing from the left either.
        return replace(self, linear=True, moves=None)

    def _spread(self) -> Gains:
        """Return the bound as that of a diagonal map of the columns that change anything."""
        if self.sources is not None:
            return self
        columns = np.flatnonzero(self.of_columns > 0)
        bounds = np.full(len(columns), self.bound)
        return Gains(bounds, columns, np.zeros(len(self.errors)), True, None)

    def _dense(self) -> NDArray[np.float64]:
        if self.sources is None:
            return self.matrix
        matrix = np.zeros((len(self.matrix), len(self.errors)))
        matrix[np.arange(len(self.matrix)), self.sources] = self.matrix
        return matrix
