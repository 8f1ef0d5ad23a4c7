r"""How far a change of the raw columns carries through the steps of a Pipeline.

Note [Columns]
--------------
A bound on a whole step, times a bound on the next, gives away what is known of single columns: that a
ColumnTransformer's parts see columns of their own, that a scaler moves each value by its own factor,
that some columns are held fixed. So a :class:`Reach` keeps a gain :math:`g_c` for each raw column c,
with

.. math:: \|T(x) - T(x')\|_2^2 \le \sum_c g_c^2 (x_c - x'_c)^2 \le \max_c g_c^2 \; \|x - x'\|_2^2 .

Maps side by side add up: :math:`g_c^2 = \sum_b g_{bc}^2`, which gives the largest bound for disjoint
columns and the root of the sum of squares for equal ones. A map of bound L multiplies all by L. As long
as no step mixes columns, each value also keeps the raw column that it comes from and a factor of its
own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted

from sklip.bounds import checked_bound
from sklip.rounding import Precision, Step, propagate
from sklip.transformers import (
    ColumnStep,
    LinearStep,
    refuse_replaced,
    stored_matrix_norm_upper,
    transformer_step,
)

__all__ = ["Reach", "SideBySide", "described", "flat_steps", "is_weighted", "transformer_bound"]

_UP = 1 + 2.0**-51


@dataclass(frozen=True)
class Reach:
    """How far a change of the raw columns has come: see Note [Columns].

    Parameters
    ----------
    gains : ndarray of shape (n_columns,)
        Gain of each raw column, 0 for one that is held fixed.
    sources, factors : ndarray of shape (n_values,), or None
        Raw column that each value comes from, and how much of a change arrives; None once columns have
        been mixed.
    """

    gains: NDArray[np.float64]
    sources: NDArray[np.intp] | None
    factors: NDArray[np.float64] | None

    @classmethod
    def of_columns(cls, n_columns: int, fixed: NDArray[np.bool_] | bool = False) -> Reach:
        """Return the beginning: every column as it is."""
        moving = np.where(np.broadcast_to(fixed, n_columns), 0.0, 1.0)
        return cls(moving, np.arange(n_columns), moving)

    @property
    def bound(self) -> float:
        """Lipschitz constant with respect to all columns that may move."""
        return float(self.gains.max(initial=0.0))

    @property
    def separate_factors(self) -> NDArray[np.float64] | None:
        """The factors, if no two values come from one column."""
        if self.sources is None or self.factors is None:
            return None
        repeats = np.bincount(self.sources[self.factors > 0]).max(initial=0)
        return self.factors if repeats <= 1 else None

    def through(self, step: Step) -> Reach:
        """Return what is known after one more step."""
        factors = self.separate_factors
        if isinstance(step, LinearStep) and self.sources is not None and factors is not None:
            # The factors are folded into the matrix: the norm of the product is the constant.
            gains = np.zeros_like(self.gains)
            norm = stored_matrix_norm_upper(step.matrix, torch.from_numpy(factors))
            gains[self.sources[factors > 0]] = norm
            return Reach(gains, None, None)
        if self.sources is None or self.factors is None or not isinstance(step, ColumnStep):
            return Reach(self.gains * step.constant * _UP, None, None)
        return self._of_values(self.sources[step.sources], self.factors[step.sources], step.factors)

    def of_values(self, indices: NDArray[np.intp]) -> Reach:
        """Return what is known of some of the values."""
        if self.sources is None or self.factors is None:
            return self
        return self._of_values(self.sources[indices], self.factors[indices], np.ones(len(indices)))

    def _of_values(
        self, sources: NDArray[np.intp], factors: NDArray[np.float64], more: NDArray[np.float64]
    ) -> Reach:
        product = factors * more * np.where(more == 1.0, 1.0, _UP)
        # A product that underflows must not read as a value that is held fixed.
        product = np.where((factors > 0) & (more > 0), np.maximum(product, 5e-324), 0.0)
        gains = np.zeros_like(self.gains)
        np.hypot.at(gains, sources, product)
        repeats = np.bincount(sources[product > 0]).max(initial=0)
        # One rounding for each value of a column beyond the first.
        return Reach(gains * (1 + (repeats > 1) * repeats * 2.0**-50), sources, product)

    def beside(self, others: list[Reach]) -> Reach:
        """Return what is known of several maps of the same columns, one beside the other."""
        parts = [self, *others]
        gains = functools.reduce(np.hypot, [part.gains for part in parts])
        gains = gains * (1 + (len(parts) - 1) * 2.0**-50)
        sources = [part.sources for part in parts if part.sources is not None]
        factors = [part.factors for part in parts if part.factors is not None]
        if len(factors) < len(parts):
            return Reach(gains, None, None)
        return Reach(gains, np.concatenate(sources), np.concatenate(factors))


@dataclass(frozen=True)
class _Part:
    """One of several maps side by side: what it reads, and what is known of it."""

    reads: NDArray[np.intp]
    step: Step
    reach: Reach
    given: bool


@dataclass(frozen=True)
class SideBySide(Step):
    """Maps side by side; `reads` are the inputs of those that are not held fixed."""

    reads: NDArray[np.intp]


def transformer_bound(transformer: Any) -> float:
    r"""Proven L2 Lipschitz constant of a fitted scikit-learn transformer.

    Parameters
    ----------
    transformer : fitted transformer, "passthrough" or None
        StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler, PCA, TruncatedSVD, SimpleImputer, a
        feature selector, a type with a registered rule; a Pipeline, ColumnTransformer or FeatureUnion
        of such.

    Returns
    -------
    bound : float

    Raises
    ------
    TypeError
        For a transformer without a rule, which
        :func:`sklip.transformers.register_transformer_bound` adds.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.preprocessing import MinMaxScaler
    >>> from sklip.pipelines import transformer_bound
    >>> round(transformer_bound(MinMaxScaler().fit(np.array([[0.0], [4.0]]))), 9)
    0.25
    """
    steps = list(flat_steps(transformer))
    if not steps:
        return 1.0
    for step in steps:
        check_is_fitted(step)
    reach = Reach.of_columns(getattr(steps[0], "n_features_in_", 1))
    if not hasattr(steps[0], "n_features_in_"):
        reach = Reach(reach.gains, None, None)
    for step in steps:
        _, reach = described(step, reach, Precision.of(np.float64))
    return checked_bound(reach.bound, transformer)


def flat_steps(transformer: Any) -> Iterator[Any]:
    """Yield the steps of nested Pipelines in order, without those that pass their input on.

    Parameters
    ----------
    transformer : transformer, "passthrough" or None

    Yields
    ------
    step : transformer that is no Pipeline
    """
    if type(transformer) is FrozenEstimator:
        refuse_replaced(transformer)
        yield from flat_steps(transformer.estimator)
    elif type(transformer) is Pipeline:
        refuse_replaced(transformer)
        for _, step in transformer.steps:
            yield from flat_steps(step)
    elif transformer is not None and not _is_named(transformer, "passthrough"):
        yield transformer


def _is_named(transformer: Any, word: str) -> bool:
    """Whether one of scikit-learn's words stands in the place of a transformer."""
    return isinstance(transformer, str) and transformer == word


def described(transformer: Any, reach: Reach, precision: Precision) -> tuple[Step, Reach]:
    """Describe one step, and how far a change has come after it.

    Parameters
    ----------
    transformer : fitted transformer that is no Pipeline
    reach : Reach
        How far a change has come before it.
    precision : Precision
        The coarsest in which it computes.

    Returns
    -------
    step : Step
        For errors, which may be of any value: nothing is held fixed in it.
    reach : Reach

    Raises
    ------
    TypeError
        For a transformer without a rule.
    """
    if type(transformer) not in (ColumnTransformer, FeatureUnion):
        step = transformer_step(transformer, precision)
        return step, reach.through(step)
    check_is_fitted(transformer)
    refuse_replaced(transformer)
    # After a mixing step, the parts see columns of their own again: those of the mixture.
    start = Reach.of_columns(_n_inputs(transformer)) if reach.sources is None else reach
    n_values = 0 if start.sources is None else len(start.sources)
    weights = transformer.transformer_weights or {}
    branches = _branches(transformer, n_values)
    parts = [
        _part(branch, reads, weights.get(name), n_outputs, start, precision)
        for name, branch, reads, n_outputs in branches
    ]
    nothing = start.of_values(np.arange(0))
    after = nothing.beside([part.reach for part in parts])
    if reach.sources is None:
        after = Reach(reach.gains * after.bound * _UP, None, None)
    return _side_by_side(parts, n_values), after


def _branches(
    transformer: Any, n_values: int
) -> Iterator[tuple[str, Any, NDArray[np.intp], int | None]]:
    """Yield name, transformer, indices of what it reads, and the number of its outputs if known."""
    for name, branch in _kept_parts(transformer):
        if type(transformer) is FeatureUnion:
            yield name, _identity_or(branch), np.arange(n_values), None
            continue
        # The one private name: which columns fit resolved names, slices, masks and callables to.
        reads = np.asarray(transformer._transformer_to_input_indices[name], dtype=np.intp)
        if len(reads) > 0:
            outputs = transformer.output_indices_[name]
            yield name, _identity_or(branch), reads, outputs.stop - outputs.start


def _kept_parts(transformer: Any) -> list[tuple[str, Any]]:
    """Names and parts of a fitted ColumnTransformer or FeatureUnion, without those that are dropped."""
    of_columns = type(transformer) is ColumnTransformer
    entries = transformer.transformers_ if of_columns else transformer.transformer_list
    return [(name, part) for name, part, *_ in entries if not _is_named(part, "drop")]


def _identity_or(branch: Any) -> Any:
    """Undo what fit makes of "passthrough"."""
    if type(branch) is not FunctionTransformer or branch.func is not None:
        return branch
    refuse_replaced(branch)
    return "passthrough"


def _n_inputs(transformer: Any) -> int:
    """Number of inputs; a FeatureUnion knows it from its parts, of which some may be dropped."""
    if type(transformer) is ColumnTransformer:
        return int(transformer.n_features_in_)
    parts = [part for _, part in _kept_parts(transformer)]
    return next(int(part.n_features_in_) for part in parts if hasattr(part, "n_features_in_"))


def is_weighted(transformer: Any) -> bool:
    """Whether any part of a step is multiplied by an entry of transformer_weights."""
    if type(transformer) not in (ColumnTransformer, FeatureUnion):
        return False
    steps = (step for _, part in _kept_parts(transformer) for step in flat_steps(part))
    return bool(transformer.transformer_weights) or any(map(is_weighted, steps))


def _part(
    branch: Any,
    reads: NDArray[np.intp],
    weight: float | None,
    n_outputs: int | None,
    start: Reach,
    precision: Precision,
) -> _Part:
    reach = start.of_values(reads)
    for transformer in flat_steps(branch):
        if not getattr(transformer, "copy", True):
            raise TypeError(
                f"{type(transformer).__name__} with copy=False overwrites what the parts beside it "
                "read; set copy=True."
            )
    if n_outputs is not None and reach.bound == 0:
        # Computed from fixed columns alone: whatever comes out is the same for every x'.
        held = Reach(start.gains * 0.0, np.zeros(n_outputs, dtype=np.intp), np.zeros(n_outputs))
        return _Part(reads, Step(0.0, np.inf, 0.0, 0.0), held, given=True)
    steps = []
    for transformer in flat_steps(branch):
        step, reach = described(transformer, reach, precision)
        steps.append(step)
    if weight is not None:
        step = _weighting(float(weight), reach, precision)
        reach = reach.through(step)
        steps.append(step)
    value, error = propagate(steps, 0.0, 0.0)
    if not np.isfinite(error.offset):
        raise TypeError(
            f"{type(branch).__name__} works on what other steps made of fixed columns, so its rounding "
            "has no bound; move the steps on fixed columns to the outermost ColumnTransformer."
        )
    summary = Step(value.slope, value.offset, error.slope, error.offset)
    return _Part(reads, summary, reach, given=False)


def _weighting(weight: float, reach: Reach, precision: Precision) -> Step:
    """Multiplication by an entry of transformer_weights."""
    size = checked_bound(abs(weight), weight)
    # Each value may lose a subnormal number; there are no 2 ** 40 values in a row.
    slope, lost = precision.gamma(2) * size, precision.smallest * 2.0**20
    if reach.sources is None:
        return Step(size, 0.0, slope, lost)
    values = np.arange(len(reach.sources))
    # A weight of 0 leaves the sign: its values are not fixed.
    factors = np.full(len(values), max(size, 5e-324))
    return ColumnStep(size, 0.0, slope, lost, values, factors)


def _side_by_side(parts: list[_Part], n_values: int) -> SideBySide:
    """Constants and errors of each input's parts add up like gains; offsets as lengths do."""
    constants, slopes = np.zeros(n_values), np.zeros(n_values)
    live = [part for part in parts if not part.given]
    for part in live:
        # A part may read a column several times.
        repeats = np.sqrt(np.bincount(part.reads).max())
        reads = np.unique(part.reads)
        constants[reads] = np.hypot(constants[reads], part.step.constant * repeats)
        slopes[reads] = np.hypot(slopes[reads], part.step.error_slope * repeats)
    up = 1 + 2.0**-40
    return SideBySide(
        float(constants.max(initial=0.0)) * up,
        float(np.linalg.norm([part.step.at_zero for part in parts])) * up,
        float(slopes.max(initial=0.0)) * up,
        float(np.linalg.norm([part.step.error_offset for part in parts])) * up,
        np.unique(np.concatenate([np.arange(0), *(part.reads for part in live)])),
    )
