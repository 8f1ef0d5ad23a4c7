r"""Rules of transformers that bend each column by a rising function of its own.

A radius holds in all directions and at all places, so what counts is the steepest slope of all. Where a
function jumps, or is as steep as one likes, there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import PowerTransformer, QuantileTransformer

from sklip.certified.arithmetic import FLOOR, Affine, Arithmetic
from sklip.certified.maps import MapBound, composed
from sklip.preprocessing.rules import described_transformer, register_transformer
from sklip.preprocessing.steps import nested_steps

__all__ = ["refuse_sparse_quantiles"]

# QuantileTransformer's BOUNDS_THRESHOLD: with normal output, what lies nearer to an end than this is
# taken for the end, and probabilities nearer to 0 and 1 are cut. The second is less by a unit.
_END = 1e-7
_CUT = NormalDist().inv_cdf(1 - (_END - 2.0**-52)) * (1 + 2.0**-30)


@register_transformer(QuantileTransformer)
def _quantile_transformer(transformer: QuantileTransformer) -> MapBound:
    r"""Piecewise linear between the quantiles, constant beyond; then the normal quantile function.

    The two interpolations of which scikit-learn takes the mean, from below and from above, differ at
    repeated quantiles only.
    """
    quantiles = np.asarray(transformer.quantiles_, dtype=np.float64)
    gaps = np.diff(quantiles, axis=0)
    # What is subnormal may be flushed, and the root of the largest number bounds differences.
    apart = (gaps > 1e-290) & (np.abs(quantiles[1:]) < 1e150) & (np.abs(quantiles[:-1]) < 1e150)
    jumps = np.asarray(~apart.all(axis=0) | (len(gaps) == 0))
    _refuse_columns(transformer, jumps, "jumps where quantiles repeat, as values that occur often do,")
    references = np.asarray(transformer.references_, dtype=np.float64)
    slopes = np.diff(references)[:, None] / gaps * (1 + 2.0**-50)
    normal = transformer.output_distribution == "normal"
    if normal:
        # What is moved to the end must have been cut already. Any step there would be a jump.
        ends = slopes[[0, -1]].max(axis=0), gaps[[0, -1]].min(axis=0)
        _refuse_columns(
            transformer,
            (ends[0] > 1 - 1e-6) | (ends[1] < 2 * _END),
            "with output_distribution='normal' jumps 1e-7 from the ends of a range, where quantiles "
            "lie too close,",
        )
        slopes = slopes * _steepest_normal(references)[:, None]
    factors = np.maximum(slopes.max(axis=0), FLOOR)
    constant, root = float(factors.max()), math.sqrt(len(factors))
    # Of interpolation alone; the values at the ends, and how steep the normal quantiles are at most.
    steepest = float(np.max(np.diff(references)[:, None] / gaps))
    longest = float(np.abs(quantiles[[0, -1]]).max())
    largest, bend = (_CUT, _normal_slope(_CUT)) if normal else (1.0, 1.0)

    def rounding(arithmetic: Arithmetic) -> Affine:
        # A slope of three roundings, two differences, a product and a sum for each interpolation, the
        # mean of both, and a cast to the type of X: of values that are at most 1. X itself is cast.
        lost = arithmetic.gamma(12) + arithmetic.smallest * 4 * (1 + steepest)
        if normal:
            # Where the end begins is found by a rounded difference.
            lost += 4 * arithmetic.unit * steepest * (longest + 1)
        # The normal quantiles: cephes' rational functions claim a few units, 64 are charged.
        lost = bend * lost + (64 * arithmetic.unit * largest if normal else 0.0)
        return Affine(root * lost, arithmetic.gamma(2) * constant)

    return MapBound(constant, rounding, root * largest, factors)


def _normal_slope(value: float) -> float:
    """Slope of the normal quantile function where it takes a value, rounded up."""
    # Where it is cut its values are good to 1e-9, for 1 - 1e-7 is rounded.
    return math.sqrt(2 * math.pi) * math.exp(value**2 / 2) * (1 + 2.0**-26)


def _steepest_normal(references: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest slope of the normal quantile function, cut at its ends, in each piece."""
    cut = _END - 2.0**-52
    values = [NormalDist().inv_cdf(min(max(each, cut), 1 - cut)) for each in references.tolist()]
    # Steeper the further from the middle: at one of a piece's ends.
    slopes = np.array([_normal_slope(value) for value in values])
    return np.asarray(np.maximum(slopes[1:], slopes[:-1]))


@register_transformer(PowerTransformer)
def _power_transformer(transformer: PowerTransformer) -> MapBound:
    """An exponent of 1 leaves values as they are; any other is steep without end on one side."""
    exponents = np.asarray(transformer.lambdas_, dtype=np.float64)
    bent = (exponents != 1) | (transformer.method != "yeo-johnson")
    _refuse_columns(transformer, bent, "has no largest slope, since its exponent is not 1,")
    ones = np.ones(len(exponents))

    def rounding(arithmetic: Arithmetic) -> Affine:
        # The exponential function of a logarithm, each right to 8 units: an error of the logarithm
        # grows by 1 + |x|.
        lost = arithmetic.gamma(8 * math.ceil(math.log(arithmetic.largest)) + 16)
        return Affine(lost * math.sqrt(len(ones)), lost)

    powers = MapBound(1.0, rounding)
    if not transformer.standardize:
        return replace(powers, factors=ones, linear=True)
    # The private name of what fit keeps.
    scaled = described_transformer(transformer._scaler)
    return replace(composed([powers, scaled]), factors=scaled.factors, linear=scaled.linear)


def _refuse_columns(transformer: Any, refused: NDArray[np.bool_], why: str) -> None:
    """Raise a TypeError that names the columns for which no slope is the largest."""
    if refused.any():
        names = getattr(transformer, "feature_names_in_", np.arange(len(refused)))
        raise TypeError(
            f"{type(transformer).__name__} {why} so it has no Lipschitz bound in the columns "
            f"{names[refused].tolist()}; scale these in another way (StandardScaler, say), or, if they "
            "can't change, give them a part of their own in a ColumnTransformer and name them in "
            "fixed_columns."
        )


def refuse_sparse_quantiles(steps: Iterable[Any], X: Any) -> None:
    """Refuse sparse rows before a QuantileTransformer, which leaves zeros that are not stored alone.

    Raises
    ------
    TypeError
        If such a step may be given a sparse matrix.
    """
    every = [part for step in steps for part in nested_steps(step)]
    if not any(type(part) is QuantileTransformer for part in every):
        return
    sparse = hasattr(X, "tocsr") or any("Sparse" in str(dtype) for dtype in getattr(X, "dtypes", ()))
    if sparse or any(getattr(part, "sparse_output_", False) for part in every):
        raise TypeError(
            "QuantileTransformer has no Lipschitz bound on sparse rows, since it leaves zeros that are "
            "not stored as they are; pass dense X, and set sparse_threshold=0 of a ColumnTransformer."
        )
