r"""How far a change of the raw columns carries through the steps of a Pipeline.

Note [Columns]
--------------
A bound on a whole step, times a bound on the next, gives away what is known of single columns: that a
ColumnTransformer's parts see columns of their own, that a scaler moves each value by its own factor,
that some columns are held fixed. So a gain :math:`g_c` is kept for each raw column c, with

.. math:: \|T(x) - T(x')\|_2^2 \le \sum_c g_c^2 (x_c - x'_c)^2 \le \max_c g_c^2 \; \|x - x'\|_2^2 .

Maps side by side add up: :math:`g_c^2 = \sum_b g_{bc}^2`, which gives the largest bound for disjoint
columns and the root of the sum of squares for equal ones. A map of bound L multiplies all by L. As long
as no step mixes columns, each value also keeps the raw column that it comes from and a factor of its
own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sklip.certified.arithmetic import above_floor
from sklip.certified.maps import MapBound
from sklip.preprocessing.rules import stored_matrix_norm_upper

__all__ = ["Gains"]

_ROUND_UP = 1 + 2.0**-51


@dataclass(frozen=True)
class Gains:
    """How far a change of the raw columns has come: see Note [Columns].

    Parameters
    ----------
    of_columns : ndarray of shape (n_columns,)
        Gain of each raw column, 0 for one that is held fixed.
    sources, factors : ndarray of shape (n_values,), or None
        Raw column that each value comes from, and how much of a change arrives; None once columns have
        been mixed.
    """

    of_columns: NDArray[np.float64]
    sources: NDArray[np.intp] | None
    factors: NDArray[np.float64] | None

    @classmethod
    def at_start(cls, n_columns: int, fixed: NDArray[np.bool_] | bool = False) -> Gains:
        """Return the beginning: every column as it is."""
        moving = np.where(np.broadcast_to(fixed, n_columns), 0.0, 1.0)
        return cls(moving, np.arange(n_columns), moving)

    @property
    def bound(self) -> float:
        """Lipschitz constant with respect to all columns that may move."""
        return float(self.of_columns.max(initial=0.0))

    @property
    def separate_factors(self) -> NDArray[np.float64] | None:
        """The factors, if no two values come from one column."""
        if self.sources is None or self.factors is None:
            return None
        repeats = np.bincount(self.sources[self.factors > 0]).max(initial=0)
        return self.factors if repeats <= 1 else None

    def times(self, constant: float) -> Gains:
        """Return what is known after a map of which only the constant is."""
        product = self.of_columns * constant * _ROUND_UP
        return Gains(above_floor(product, self.of_columns, constant), None, None)

    def through(self, step: MapBound) -> Gains:
        """Return what is known after one more step."""
        factors = self.separate_factors
        if step.matrix is not None and self.sources is not None and factors is not None:
            # The factors are folded into the matrix: the norm of the product is the constant.
            gains = np.zeros_like(self.of_columns)
            norm = stored_matrix_norm_upper(step.matrix, torch.from_numpy(factors))
            gains[self.sources[factors > 0]] = norm
            return Gains(gains, None, None)
        if self.sources is None or self.factors is None or step.factors is None:
            return self.times(step.constant)
        every = np.arange(len(self.factors)) if step.sources is None else step.sources
        more = np.broadcast_to(step.factors, len(every))
        return self._of_values(self.sources[every], self.factors[every], more)

    def of_values(self, indices: NDArray[np.intp]) -> Gains:
        """Return what is known of some of the values."""
        if self.sources is None or self.factors is None:
            return self
        return self._of_values(self.sources[indices], self.factors[indices], np.ones(len(indices)))

    def _of_values(
        self, sources: NDArray[np.intp], factors: NDArray[np.float64], more: NDArray[np.float64]
    ) -> Gains:
        product = factors * more * np.where(more == 1.0, 1.0, _ROUND_UP)
        product = above_floor(product, factors, more)
        gains = np.zeros_like(self.of_columns)
        np.hypot.at(gains, sources, product)
        repeats = np.bincount(sources[product > 0]).max(initial=0)
        # One rounding for each value of a column beyond the first.
        return Gains(gains * (1 + (repeats > 1) * repeats * 2.0**-50), sources, product)

    def beside(self, others: list[Gains]) -> Gains:
        """Return what is known of several maps of the same columns, one beside the other."""
        parts = [self, *others]
        gains = functools.reduce(np.hypot, [part.of_columns for part in parts])
        gains = gains * (1 + (len(parts) - 1) * 2.0**-50)
        sources = [part.sources for part in parts if part.sources is not None]
        factors = [part.factors for part in parts if part.factors is not None]
        if len(factors) < len(parts):
            return Gains(gains, None, None)
        return Gains(gains, np.concatenate(sources), np.concatenate(factors))
