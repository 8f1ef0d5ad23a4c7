r"""Proven bounds of fitted scikit-learn transformers: constant, and rounding error.

A rule is looked up by exact type; a transformer without one is refused. A radius can only be brought
back through a step whose constant is proven.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_selection import (
    RFE,
    RFECV,
    GenericUnivariateSelect,
    SelectFdr,
    SelectFpr,
    SelectFromModel,
    SelectFwe,
    SelectKBest,
    SelectPercentile,
    SequentialFeatureSelector,
    VarianceThreshold,
)
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklip.bounds import checked_bound
from sklip.norms import matrix_norm_upper
from sklip.rounding import Precision, Step

__all__ = [
    "ColumnStep",
    "LinearStep",
    "refuse_replaced",
    "register_transformer_bound",
    "stored_matrix_norm_upper",
    "transformer_step",
]

Rule = TypeVar("Rule", bound=Callable[[Any, Precision], Step])

_RULES: dict[type, Callable[[Any, Precision], Step]] = {}


def register_transformer_bound(*transformer_types: type) -> Callable[[Rule], Rule]:
    """Decorator: the function describes fitted transformers of exactly these types.

    The function takes ``(transformer, precision)`` and returns a :class:`sklip.rounding.Step`: the L2
    Lipschitz constant of the exact map, the length of its value at 0, and (c, d) such that what
    ``transform`` computes for a row of length t lies within c t + d of the exact value.

    Parameters
    ----------
    *transformer_types : type
        Classes of scikit-learn transformers. Subclasses are not covered.

    Examples
    --------
    >>> from sklearn.base import BaseEstimator, TransformerMixin
    >>> from sklip.rounding import Step
    >>> from sklip.pipelines import transformer_bound
    >>> from sklip.transformers import register_transformer_bound
    >>> class Halve(TransformerMixin, BaseEstimator):
    ...     def fit(self, X, y=None):
    ...         self.n_features_in_ = X.shape[1]
    ...         return self
    ...     def transform(self, X):
    ...         return X / 2
    >>> @register_transformer_bound(Halve)
    ... def _(transformer, precision):
    ...     lost = precision.smallest * transformer.n_features_in_
    ...     return Step(0.5, at_zero=0.0, error_slope=precision.unit, error_offset=lost)
    >>> import numpy as np
    >>> round(transformer_bound(Halve().fit(np.ones((2, 2)))), 9)
    0.5
    """

    def register(rule: Rule) -> Rule:
        for transformer_type in transformer_types:
            _RULES[transformer_type] = rule
        return rule

    return register


@dataclass(frozen=True)
class LinearStep(Step):
    r"""A step whose differences are those of a matrix, :math:`T(x) - T(x') = M (x - x')`.

    Each entry of `matrix` may be off by 2 ** -50 of itself.
    """

    matrix: Tensor


def stored_matrix_norm_upper(matrix: Tensor, factors: Tensor | None = None) -> float:
    """Return a bound on the norm of a LinearStep's matrix, its columns multiplied by `factors`."""
    # Entries that are off by 2 ** -50 of themselves make an error of at most so much of the Frobenius
    # norm, which is at most the root of the rank times the norm.
    return matrix_norm_upper(matrix, factors) * (1 + 2.0**-50 * min(matrix.shape))


@dataclass(frozen=True)
class ColumnStep(Step):
    r"""A step that acts value by value.

    Output j depends on input ``sources[j]`` alone, and a change of that by d moves it by at most
    ``factors[j]`` times d; a factor of 0 says that it doesn't move.
    """

    sources: NDArray[np.intp]
    factors: NDArray[np.float64]


def transformer_step(transformer: Any, precision: Precision) -> Step:
    """Describe one fitted transformer that is no Pipeline and no collection of others.

    Parameters
    ----------
    transformer : fitted transformer
    precision : Precision
        The coarsest in which it computes.

    Returns
    -------
    step : Step

    Raises
    ------
    TypeError
        For a transformer without a rule, or with a replaced ``transform``.
    """
    rule = _RULES.get(type(transformer))
    if rule is None:
        raise TypeError(
            f"{type(transformer).__name__} has no Lipschitz bound, so a radius can't be brought back "
            "to the units of its input; leave the step out, transform X beforehand and certify in "
            "the transformed units, name the columns it reads in fixed_columns if they can't change, "
            "or add a proven rule with sklip.transformers.register_transformer_bound."
        )
    check_is_fitted(transformer)
    refuse_replaced(transformer)
    step = rule(transformer, precision)
    for value in (step.constant, step.at_zero, step.error_slope, step.error_offset):
        checked_bound(value, transformer)
    return step


def refuse_replaced(estimator: Any) -> None:
    """Refuse an estimator whose instance computes something else than its class says."""
    for name, value in getattr(estimator, "__dict__", {}).items():
        if callable(value) and hasattr(type(estimator), name):
            raise TypeError(
                f"{type(estimator).__name__} has a replaced {name} method; restore that of its class."
            )


# What transform does depends on the parameters as they are now, so the rules read them, not only what
# fit stored: with_std=False set after fit leaves scale_ in place and unused.


@register_transformer_bound(StandardScaler)
def _standard_scaler(scaler: StandardScaler, precision: Precision) -> Step:
    scale = scaler.scale_
    if scale is not None and not scaler.with_std:
        # Switched off after fit: dense rows are divided no more, sparse ones still are.
        scale = np.minimum(scale, 1.0)
    return _divided(scale, scaler.mean_ if scaler.with_mean else 0.0, scaler, precision)


@register_transformer_bound(RobustScaler)
def _robust_scaler(scaler: RobustScaler, precision: Precision) -> Step:
    scale = scaler.scale_ if scaler.with_scaling else None
    return _divided(scale, scaler.center_ if scaler.with_centering else 0.0, scaler, precision)


@register_transformer_bound(MaxAbsScaler)
def _max_abs_scaler(scaler: MaxAbsScaler, precision: Precision) -> Step:
    # Sparse rows are multiplied by inverses that have the precision of the scale.
    return _divided(scaler.scale_, 0.0, scaler, _coarser(precision, scaler.scale_))


def _divided(scale: Any, shift: Any, scaler: Any, precision: Precision) -> Step:
    """(x - shift) / scale, value by value."""
    # In float64, since the stored numbers may be float32.
    divisor = np.ones(scaler.n_features_in_) if scale is None else np.asarray(scale, np.float64)
    with np.errstate(divide="ignore"):
        factors = 1.0 / divisor
    return _diagonal(factors, np.asarray(shift, np.float64) * factors, precision)


@register_transformer_bound(MinMaxScaler)
def _min_max_scaler(scaler: MinMaxScaler, precision: Precision) -> Step:
    # Clipping moves no two values apart, but it moves the value at 0: the larger of both is a bound.
    at_zero = np.maximum(np.abs(scaler.min_), np.max(np.abs(scaler.feature_range)))
    return _diagonal(np.asarray(scaler.scale_, np.float64), at_zero, precision)


def _diagonal(factors: NDArray[np.float64], at_zero: Any, precision: Precision) -> Step:
    """Two operations a value, on stored numbers that were rounded, on an input that was cast.

    Each loses a unit of |scaled x| + |value at 0| at most.
    """
    if not np.isfinite(factors).all():
        raise ValueError(f"the transformer's scale must be finite and non-zero, got factors {factors}.")
    factors = np.abs(factors) * (1 + 2.0**-51)  # the division that made them
    constant, length = float(factors.max()), float(np.linalg.norm(at_zero)) * (1 + 2.0**-30)
    gamma = precision.gamma(6)
    # What is flushed before a division grows by the factor of the division.
    flushed = precision.smallest * 4 * math.sqrt(len(factors)) * (1 + constant)
    sources = np.arange(len(factors))
    return ColumnStep(constant, length, gamma * constant, gamma * length + flushed, sources, factors)


@register_transformer_bound(PCA)
def _pca(pca: PCA, precision: Precision) -> Step:
    matrix = np.asarray(pca.components_, dtype=np.float64)
    if pca.whiten:
        # transform divides by no less than this; a smaller divisor gives a larger bound.
        smallest = np.finfo(np.float64).eps
        matrix = matrix / np.maximum(np.sqrt(pca.explained_variance_), smallest)[:, None]
    # What is computed from stored numbers alone, the mean's image and the roots, has their precision.
    stored = _coarser(precision, pca.components_, pca.mean_, pca.explained_variance_)
    return _linear(matrix, pca.mean_, stored)


@register_transformer_bound(TruncatedSVD)
def _truncated_svd(svd: TruncatedSVD, precision: Precision) -> Step:
    # Rows of integers are multiplied in the precision of the components.
    return _linear(svd.components_, np.zeros(1), _coarser(precision, svd.components_))


def _coarser(precision: Precision, *stored: NDArray[Any]) -> Precision:
    """The coarsest of a precision and those of stored arrays."""
    return max(precision, *(Precision.of(array.dtype) for array in stored), key=lambda p: p.unit)


def _linear(matrix: NDArray[Any], shift: NDArray[Any], precision: Precision) -> Step:
    """Products of rows of `matrix` with x - shift, in either order of product and difference."""
    weights = torch.from_numpy(np.array(matrix, dtype=np.float64))
    rows, columns = weights.shape
    # Four roundings made the matrix out of stored numbers.
    constant = stored_matrix_norm_upper(weights)
    absolute = stored_matrix_norm_upper(weights.abs())
    length = float(np.linalg.norm(shift)) * (1 + 2.0**-30)
    gamma = precision.gamma(columns + 8)
    flushed = precision.smallest * 4 * (columns + 2) * math.sqrt(rows) * (1 + absolute)
    error_offset = gamma * absolute * length + flushed
    return LinearStep(constant, constant * length, gamma * absolute, error_offset, weights)


@register_transformer_bound(
    GenericUnivariateSelect,
    RFE,
    RFECV,
    SelectFdr,
    SelectFpr,
    SelectFromModel,
    SelectFwe,
    SelectKBest,
    SelectPercentile,
    SequentialFeatureSelector,
    VarianceThreshold,
)
def _selection(selector: Any, precision: Precision) -> Step:
    return _copied(selector.get_support(indices=True), precision)


def _copied(sources: NDArray[np.intp], precision: Precision) -> ColumnStep:
    """Values are copied: nothing is rounded but the cast of X."""
    lost = precision.smallest * math.sqrt(len(sources))
    return ColumnStep(1.0, 0.0, precision.unit, lost, sources, np.ones(len(sources)))


@register_transformer_bound(SimpleImputer)
def _simple_imputer(imputer: SimpleImputer, precision: Precision) -> Step:
    """A copy on rows without missing values; other rows get no radius, see certificates."""
    if not _is_nan(imputer.missing_values):
        raise TypeError(
            f"SimpleImputer with missing_values={imputer.missing_values!r} has no Lipschitz bound, "
            "since a value close to that is not replaced; mark missing values by NaN."
        )
    kept = np.arange(imputer.n_features_in_)
    if not imputer.keep_empty_features:
        kept = kept[[not _is_nan(value) for value in imputer.statistics_]]
    # The columns that tell what was missing stay as they are in a row that misses nothing.
    told = imputer.indicator_.features_ if imputer.add_indicator else kept[:0]
    step = _copied(np.concatenate([kept, told]), precision)
    step.factors[len(kept) :] = 0.0
    # Whatever may stand in a column that is held fixed.
    found = imputer.statistics_[kept]
    numbers = [float(value) for value in found if isinstance(value, int | float | np.number)]
    at_zero = math.hypot(np.linalg.norm(numbers), math.sqrt(len(told))) * (1 + 2.0**-30)
    lost = step.error_offset + precision.unit * at_zero
    return replace(step, at_zero=at_zero, error_offset=lost)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | np.floating) and math.isnan(value)
