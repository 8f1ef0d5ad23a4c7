r"""Rules of fitted scikit-learn transformers: constant, and rounding error.

A rule is looked up by exact type; a transformer without one is refused. A radius can only be brought
back through a step whose constant is proven.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

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

from sklip.certified.arithmetic import FLOOR, Affine, Arithmetic
from sklip.certified.maps import MapBound, Registry
from sklip.certified.norms import matrix_norm_upper

__all__ = ["TRANSFORMERS", "described_transformer", "register_transformer"]

TRANSFORMERS = Registry(
    "{name} has no Lipschitz bound, so a radius can't be brought back to the units of its input; leave "
    "the step out, transform X beforehand and certify in the transformed units, name the columns it "
    "reads in fixed_columns if they can't change, set categorical_edits if it encodes categories, or "
    "add a proven rule with sklip.preprocessing.register_transformer."
)


def register_transformer(*transformer_types: type) -> Callable[..., Any]:
    """Decorator: the function says what is proven of fitted transformers of exactly these types.

    The function takes the transformer and returns a :class:`sklip.certified.MapBound`: the L2 Lipschitz
    constant of the exact map, the length of its value at 0, and how far what ``transform`` computes for
    a row of length t may lie from the exact value.

    Parameters
    ----------
    *transformer_types : type
        Classes of scikit-learn transformers. Subclasses are not covered.

    Examples
    --------
    >>> from sklearn.base import BaseEstimator, TransformerMixin
    >>> from sklip.certified import Affine, MapBound
    >>> from sklip.preprocessing import register_transformer, transformer_bound
    >>> class Halve(TransformerMixin, BaseEstimator):
    ...     def fit(self, X, y=None):
    ...         self.n_features_in_ = X.shape[1]
    ...         return self
    ...     def transform(self, X):
    ...         return X / 2
    >>> @register_transformer(Halve)
    ... def _(transformer):
    ...     n_features = transformer.n_features_in_
    ...     def rounding(arithmetic):
    ...         return Affine(arithmetic.smallest * n_features, arithmetic.unit)
    ...     return MapBound(0.5, rounding, factors=0.5, linear=True)
    >>> import numpy as np
    >>> round(transformer_bound(Halve().fit(np.ones((2, 2)))), 9)
    0.5
    """
    return TRANSFORMERS.register(*transformer_types)


def described_transformer(transformer: Any) -> MapBound:
    """Say what is proven of one fitted transformer that is no Pipeline and no collection of others.

    Raises
    ------
    TypeError
        For a transformer without a rule, or with a replaced ``transform``.
    NotFittedError
        If it is not fitted.
    """
    TRANSFORMERS.refuse_unknown(transformer)
    check_is_fitted(transformer)
    return TRANSFORMERS.bound(transformer)


def _stored_matrix_norm_upper(matrix: Tensor) -> float:
    """Return a bound on the norm of a MapBound's matrix."""
    # Entries that are off by 2 ** -50 of themselves make an error of at most so much of the Frobenius
    # norm, which is at most the root of the rank times the norm.
    return matrix_norm_upper(matrix) * (1 + 2.0**-50 * min(matrix.shape))


# What transform does depends on the parameters as they are now, so the rules read them, not only what
# fit stored: with_std=False set after fit leaves scale_ in place and unused.


@register_transformer(StandardScaler)
def _standard_scaler(scaler: StandardScaler) -> MapBound:
    scale, mean = scaler.scale_, scaler.mean_ if scaler.with_mean else 0.0
    if scale is None or scaler.with_std:
        return _divided(scale, mean, scaler)
    # Switched off after fit: dense rows are divided no more, sparse ones still are.
    return replace(_divided(np.minimum(scale, 1.0), mean, scaler), linear=False)


@register_transformer(RobustScaler)
def _robust_scaler(scaler: RobustScaler) -> MapBound:
    scale = scaler.scale_ if scaler.with_scaling else None
    return _divided(scale, scaler.center_ if scaler.with_centering else 0.0, scaler)


@register_transformer(MaxAbsScaler)
def _max_abs_scaler(scaler: MaxAbsScaler) -> MapBound:
    # Sparse rows are multiplied by inverses that have the precision of the scale.
    known = _divided(scaler.scale_, 0.0, scaler, scaler.scale_)
    # Later versions of scikit-learn may clip to [-1, 1].
    return replace(known, linear=known.linear and not getattr(scaler, "clip", False))


def _divided(scale: Any, shift: Any, scaler: Any, *stored: NDArray[Any]) -> MapBound:
    """(x - shift) / scale, value by value."""
    # In float64, since the stored numbers may be float32.
    divisor = np.ones(scaler.n_features_in_) if scale is None else np.asarray(scale, np.float64)
    with np.errstate(divide="ignore"):
        factors = 1.0 / divisor
    return _diagonal(factors, np.asarray(shift, np.float64) * factors, *stored)


@register_transformer(MinMaxScaler)
def _min_max_scaler(scaler: MinMaxScaler) -> MapBound:
    # Clipping moves no two values apart, but it moves the value at 0: the larger of both is a bound.
    at_zero = np.maximum(np.abs(scaler.min_), np.max(np.abs(scaler.feature_range)))
    known = _diagonal(np.asarray(scaler.scale_, np.float64), at_zero)
    return replace(known, linear=known.linear and not scaler.clip)


def _diagonal(factors: NDArray[np.float64], at_zero: Any, *stored: NDArray[Any]) -> MapBound:
    """Two operations a value, on stored numbers that were rounded, on an input that was cast.

    Each loses a unit of |scaled x| + |value at 0| at most.
    """
    if not np.isfinite(factors).all():
        raise ValueError(f"the transformer's scale must be finite and non-zero, got factors {factors}.")
    # The division that made them is rounded.
    sizes = np.maximum(np.abs(factors) * (1 + 2.0**-51), FLOOR)
    constant, length = float(sizes.max()), float(np.linalg.norm(at_zero)) * (1 + 2.0**-30)

    def rounding(arithmetic: Arithmetic) -> Affine:
        arithmetic = _coarser(arithmetic, *stored)
        gamma = arithmetic.gamma(6)
        # What is flushed before a division grows by the factor of the division.
        flushed = arithmetic.smallest * 4 * math.sqrt(len(sizes)) * (1 + constant)
        return Affine(gamma * length + flushed, gamma * constant)

    if (sizes == FLOOR).any():
        return MapBound(constant, rounding, length, sizes)
    return MapBound(constant, rounding, length, np.copysign(sizes, factors), linear=True)


@register_transformer(PCA)
def _pca(pca: PCA) -> MapBound:
    matrix = np.asarray(pca.components_, dtype=np.float64)
    if pca.whiten:
        # transform divides by no less than this; a smaller divisor gives a larger bound.
        smallest = np.finfo(np.float64).eps
        matrix = matrix / np.maximum(np.sqrt(pca.explained_variance_), smallest)[:, None]
    # What is computed from stored numbers alone, the mean's image and the roots, has their precision.
    return _linear(matrix, pca.mean_, pca.components_, pca.mean_, pca.explained_variance_)


@register_transformer(TruncatedSVD)
def _truncated_svd(svd: TruncatedSVD) -> MapBound:
    # Rows of integers are multiplied in the precision of the components.
    return _linear(svd.components_, np.zeros(1), svd.components_)


def _coarser(arithmetic: Arithmetic, *stored: NDArray[Any]) -> Arithmetic:
    """The coarsest of an arithmetic and those of stored arrays."""
    others = (Arithmetic(array.dtype.name) for array in stored)
    return max(arithmetic, *others, key=lambda each: each.unit) if stored else arithmetic


def _linear(matrix: NDArray[Any], shift: NDArray[Any], *stored: NDArray[Any]) -> MapBound:
    """Products of rows of `matrix` with x - shift, in either order of product and difference."""
    weights = torch.from_numpy(np.array(matrix, dtype=np.float64))
    rows, columns = weights.shape
    # Four roundings made the matrix out of stored numbers.
    constant = _stored_matrix_norm_upper(weights)
    length = float(np.linalg.norm(shift)) * (1 + 2.0**-30)

    def rounding(arithmetic: Arithmetic) -> Affine:
        arithmetic = _coarser(arithmetic, *stored)
        absolute, gamma = _stored_matrix_norm_upper(weights.abs()), arithmetic.gamma(columns + 8)
        flushed = arithmetic.smallest * 4 * (columns + 2) * math.sqrt(rows) * (1 + absolute)
        return Affine(gamma * absolute * length + flushed, gamma * absolute)

    return MapBound(constant, rounding, constant * length, matrix=weights)


@register_transformer(
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
def _selection(selector: Any) -> MapBound:
    sources = selector.get_support(indices=True)
    return _copied(sources, np.ones(len(sources)))


def _copied(sources: NDArray[np.intp], factors: NDArray[np.float64], at_zero: float = 0.0) -> MapBound:
    """Values are copied: only the cast of X rounds, and that of what stands for missing values."""

    def rounding(arithmetic: Arithmetic) -> Affine:
        lost = arithmetic.smallest * math.sqrt(len(sources))
        return Affine(lost + arithmetic.unit * at_zero, arithmetic.unit)

    return MapBound(1.0, rounding, at_zero, factors, sources, linear=True)


@register_transformer(SimpleImputer)
def _simple_imputer(imputer: SimpleImputer) -> MapBound:
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
    # Whatever may stand in a column that is held fixed.
    found = imputer.statistics_[kept]
    numbers = [float(value) for value in found if isinstance(value, int | float | np.number)]
    at_zero = math.hypot(np.linalg.norm(numbers), math.sqrt(len(told))) * (1 + 2.0**-30)
    factors = np.concatenate([np.ones(len(kept)), np.zeros(len(told))])
    return _copied(np.concatenate([kept, told]), factors, at_zero)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | np.floating) and math.isnan(value)
