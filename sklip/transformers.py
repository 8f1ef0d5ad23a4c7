r"""Proven bounds of fitted scikit-learn transformers: constant, and rounding error.

A rule is looked up by exact type; a transformer without one is refused. A radius can only be brought
back through a step whose constant is proven.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler
from sklearn.utils.validation import check_is_fitted

from sklip.bounds import checked_bound, rounded_up_product
from sklip.norms import matrix_norm_upper
from sklip.rounding import Precision, Step

__all__ = ["register_transformer_bound", "transformer_bound", "transformer_steps"]

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
    >>> from sklip.transformers import register_transformer_bound, transformer_bound
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


def transformer_bound(transformer: Any) -> float:
    r"""Proven L2 Lipschitz constant of a fitted scikit-learn transformer.

    Parameters
    ----------
    transformer : fitted transformer, "passthrough" or None
        StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler, PCA, TruncatedSVD, a feature selector,
        a Pipeline of such, or a type with a registered rule.

    Returns
    -------
    bound : float

    Raises
    ------
    TypeError
        For a transformer without a rule; :func:`register_transformer_bound` adds one.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.preprocessing import MinMaxScaler
    >>> from sklip.transformers import transformer_bound
    >>> round(transformer_bound(MinMaxScaler().fit(np.array([[0.0], [4.0]]))), 9)
    0.25
    """
    return rounded_up_product(step.constant for step in transformer_steps(transformer, np.float64))


def transformer_steps(transformer: Any, dtype: Any) -> list[Step]:
    """Describe a fitted transformer that computes in `dtype`, a Pipeline step by step.

    Parameters
    ----------
    transformer : fitted transformer, "passthrough" or None
    dtype : dtype
        Precision of its output.

    Returns
    -------
    steps : list of Step
        For :func:`sklip.rounding.propagate`.

    Raises
    ------
    TypeError
        For a transformer without a rule.
    """
    if transformer is None or (isinstance(transformer, str) and transformer == "passthrough"):
        return []
    if type(transformer) is Pipeline:
        return [s for _, part in transformer.steps for s in transformer_steps(part, dtype)]
    name = type(transformer).__name__
    rule = _RULES.get(type(transformer))
    if rule is None:
        raise TypeError(
            f"{name} has no Lipschitz bound, so a radius can't be brought back to the units of its "
            "input; leave the step out, transform X beforehand and certify in the transformed units, "
            "or add a proven rule with sklip.transformers.register_transformer_bound."
        )
    check_is_fitted(transformer)
    if "transform" in vars(transformer):
        raise TypeError(f"{name} has a replaced transform method; restore that of its class.")
    step = rule(transformer, Precision.of(dtype))
    checked_bound(step.constant, transformer)
    return [step]


# What transform does depends on the parameters as they are now, so the rules read them, not only what
# fit stored: with_std=False set after fit leaves scale_ in place and unused.


@register_transformer_bound(StandardScaler)
def _standard_scaler(scaler: StandardScaler, precision: Precision) -> Step:
    scale = scaler.scale_ if scaler.with_std else np.ones(1)
    shift = scaler.mean_ if scaler.with_mean else np.zeros(1)
    return _diagonal(1.0 / scale, shift / scale, scaler.n_features_in_, precision)


@register_transformer_bound(RobustScaler)
def _robust_scaler(scaler: RobustScaler, precision: Precision) -> Step:
    scale = scaler.scale_ if scaler.with_scaling else np.ones(1)
    shift = scaler.center_ if scaler.with_centering else np.zeros(1)
    return _diagonal(1.0 / scale, shift / scale, scaler.n_features_in_, precision)


@register_transformer_bound(MaxAbsScaler)
def _max_abs_scaler(scaler: MaxAbsScaler, precision: Precision) -> Step:
    return _diagonal(1.0 / scaler.scale_, np.zeros(1), scaler.n_features_in_, precision)


@register_transformer_bound(MinMaxScaler)
def _min_max_scaler(scaler: MinMaxScaler, precision: Precision) -> Step:
    # Clipping moves no two values apart, but it moves the value at 0: the larger of both is a bound.
    at_zero = np.maximum(np.abs(scaler.min_), np.max(np.abs(scaler.feature_range)))
    return _diagonal(scaler.scale_, at_zero, scaler.n_features_in_, precision)


def _diagonal(factors: Any, at_zero: Any, n_features: int, precision: Precision) -> Step:
    """Two operations a value, on stored numbers that were rounded, on an input that was cast.

    Each loses a unit of |scaled x| + |value at 0| at most.
    """
    constant = float(np.max(np.abs(np.asarray(factors, dtype=np.float64))))
    if not math.isfinite(constant):
        raise ValueError(f"the transformer's scale must be finite and non-zero, got {constant}.")
    constant *= 1 + 2.0**-50  # the division that made the factor, twice over
    length = float(np.linalg.norm(at_zero)) * (1 + 2.0**-30)
    gamma = precision.gamma(6)
    # What is flushed before a division grows by the factor of the division.
    flushed = precision.smallest * 4 * math.sqrt(n_features) * (1 + constant)
    return Step(constant, length, gamma * constant, gamma * length + flushed)


@register_transformer_bound(PCA)
def _pca(pca: PCA, precision: Precision) -> Step:
    matrix = np.asarray(pca.components_, dtype=np.float64)
    if pca.whiten:
        # transform divides by no less than this; a smaller divisor gives a larger bound.
        smallest = np.finfo(np.float64).eps
        matrix = matrix / np.maximum(np.sqrt(pca.explained_variance_), smallest)[:, None]
    return _linear(matrix, pca.mean_, precision)


@register_transformer_bound(TruncatedSVD)
def _truncated_svd(svd: TruncatedSVD, precision: Precision) -> Step:
    return _linear(svd.components_, np.zeros(1), precision)


def _linear(matrix: NDArray[Any], shift: NDArray[Any], precision: Precision) -> Step:
    """Products of rows of `matrix` with x - shift, in either order of product and difference."""
    weights = torch.from_numpy(np.array(matrix, dtype=np.float64))
    rows, columns = weights.shape
    # Four roundings made the matrix out of stored numbers.
    constant = matrix_norm_upper(weights) * (1 + 2.0**-50)
    absolute = matrix_norm_upper(weights.abs()) * (1 + 2.0**-50)
    length = float(np.linalg.norm(shift)) * (1 + 2.0**-30)
    gamma = precision.gamma(columns + 8)
    flushed = precision.smallest * 4 * (columns + 2) * math.sqrt(rows) * (1 + absolute)
    return Step(constant, constant * length, gamma * absolute, gamma * absolute * length + flushed)


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
    """Columns are copied: distances can only shrink, nothing is rounded but the cast of X."""
    return Step(1.0, 0.0, precision.unit, 0.0)
