"""Proven constants and rounding charges of transformers, against matrices and exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.decomposition import PCA, KernelPCA, TruncatedSVD
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)

from sklip import transformers
from sklip.pipelines import transformer_bound
from sklip.rounding import Precision, Step
from sklip.transformers import register_transformer_bound, transformer_step

EPS = float(np.finfo(np.float64).eps)

# Columns of different spread, and two constant ones.
TABLE = np.random.default_rng(0).normal(size=(20, 5)) * [1e-3, 0.1, 5.0, 0.0, 0.0] + [0, 1, 2, 3, 0]
SCALERS = [
    StandardScaler(),
    StandardScaler(with_mean=False),
    StandardScaler(with_std=False),
    MinMaxScaler(),
    MinMaxScaler((-2, 5)),
    MinMaxScaler(clip=True),
    MaxAbsScaler(),
    RobustScaler(),
    RobustScaler(with_scaling=False),
    RobustScaler(with_centering=False, unit_variance=True),
]


def transformer_matrix(transformer):
    """Matrix of an affine transformer, from its values around the middle of the table."""
    # The step is below the range of the narrowest column, so that nothing is clipped.
    middle, step = (TABLE.max(0) + TABLE.min(0)) / 2, 2.0**-14
    steps = middle + step * np.eye(TABLE.shape[1])
    return (transformer.transform(steps) - transformer.transform(middle[None])) / step


# Differences of numbers up to 1e4, each off by eps, over a step of 2^-14.
DIFFERENCE_ERROR = 8 * 1e4 * EPS * 2**14


@pytest.mark.parametrize("transformer", SCALERS, ids=str)
@pytest.mark.parametrize("column", [None, 0, 1, 2, 3])
def test_bound_of_a_scaler_is_the_norm_of_its_matrix(transformer, column):
    table = TABLE if column is None else np.where(np.arange(5) == column, TABLE, 0.0)
    transformer = clone(transformer).fit(table)
    norm = np.linalg.norm(transformer_matrix(transformer), 2)
    assert transformer_bound(transformer) == pytest.approx(norm, rel=0, abs=DIFFERENCE_ERROR)


def test_bound_of_scalers_in_a_pipeline_is_the_norm_of_their_product():
    inner = make_pipeline(StandardScaler(), MinMaxScaler((0, 9)))
    pipeline = make_pipeline(MinMaxScaler(), "passthrough", None, inner).fit(TABLE)
    norm = np.linalg.norm(transformer_matrix(pipeline), 2)
    assert transformer_bound(pipeline) == pytest.approx(norm, rel=0, abs=DIFFERENCE_ERROR)
    # Far less than the product of the steps, whose largest factors belong to different columns.
    product = math.prod(transformer_bound(step) for step in (pipeline[0], inner[0], inner[1]))
    assert transformer_bound(pipeline) < product / 2


@pytest.mark.parametrize("table", [TABLE, TABLE.astype(np.float32)], ids=["float64", "float32"])
def test_bound_of_a_scaler_dominates_its_factors_exactly(table):
    standard = StandardScaler().fit(table)
    assert Fraction(transformer_bound(standard)) >= 1 / Fraction(float(standard.scale_.min()))
    min_max = MinMaxScaler().fit(table)
    assert Fraction(transformer_bound(min_max)) >= Fraction(float(min_max.scale_.max()))


@pytest.mark.parametrize("nothing", [None, "passthrough", make_pipeline("passthrough")], ids=str)
def test_passing_through_has_bound_one(nothing):
    fitted = nothing.fit(TABLE) if isinstance(nothing, Pipeline) else nothing
    assert 1 <= transformer_bound(fitted) <= 1 + 4 * EPS


class LouderScaler(StandardScaler):
    def transform(self, X):
        return 10 * super().transform(X)


@pytest.mark.parametrize(
    "transformer",
    [
        KernelPCA(2),
        Normalizer(),
        FunctionTransformer(),
        PolynomialFeatures(),
        QuantileTransformer(n_quantiles=5),
        LouderScaler(),
    ],
    ids=str,
)
def test_transformers_without_a_rule_are_refused_by_name(transformer):
    name = type(transformer).__name__
    for attempt in (transformer, make_pipeline(StandardScaler(), transformer)):
        with pytest.raises(TypeError, match=name):
            transformer_bound(attempt.fit(TABLE))


@pytest.mark.parametrize(
    "transformer", [*SCALERS, make_pipeline(StandardScaler(), MinMaxScaler())], ids=str
)
def test_transformers_that_are_not_fitted_have_no_bound(transformer):
    with pytest.raises(NotFittedError):
        transformer_bound(clone(transformer))


@pytest.mark.parametrize("scale", [0.0, math.nan])
def test_a_scale_that_is_not_finite_is_refused(scale):
    scaler = StandardScaler().fit(TABLE)
    scaler.scale_[0] = scale
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match="finite and non-zero"):
        transformer_bound(scaler)


def test_bound_of_a_scaler_follows_a_later_change_of_with_std():
    scaler = StandardScaler().fit(100 * TABLE[:, [2]]).set_params(with_std=False)
    assert transformer_bound(scaler) >= 1


def test_a_replaced_transform_is_refused():
    scaler = StandardScaler().fit(TABLE)
    scaler.transform = lambda X: 1e6 * X
    with pytest.raises(TypeError, match="StandardScaler"):
        transformer_bound(scaler)


@pytest.mark.parametrize("whiten", [False, True])
def test_bound_of_pca_is_the_norm_of_what_it_multiplies_by(whiten):
    X = np.random.default_rng(1).normal(size=(40, 4)) * [1, 2, 3, 0.1] + 5
    pca = PCA(3, whiten=whiten).fit(X)
    matrix = pca.transform(np.eye(4)) - pca.transform(np.zeros((1, 4)))
    norm = np.linalg.norm(matrix, 2)
    # Differences of numbers up to 100, some hundred roundings.
    assert norm - 1e-12 <= transformer_bound(pca) <= norm + 1e-10
    if not whiten:
        assert transformer_bound(pca) <= 1 + 1e-12


def test_bound_of_truncated_svd_charges_components_that_are_too_long():
    svd = TruncatedSVD(2).fit(np.random.default_rng(1).normal(size=(20, 4)))
    svd.components_ *= 1.5
    assert 1.5 <= transformer_bound(svd) <= 1.5 * (1 + 1e-9)


@pytest.mark.parametrize("selector", [SelectKBest(k=2), VarianceThreshold()], ids=str)
def test_choosing_columns_has_bound_one(selector):
    y = np.arange(20) % 2
    assert 1 <= transformer_bound(selector.fit(TABLE[:, :3], y)) <= 1 + 4 * EPS


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "transformer",
    [PCA(3), PCA(3, whiten=True), TruncatedSVD(3), RobustScaler(), MaxAbsScaler()],
    ids=str,
)
def test_the_charge_covers_the_rounding_of_a_transformer(transformer, dtype):
    """Against the same stored numbers in a precision that loses nothing here."""
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(30, 6)) * [1, 1e-2, 1e2, 1, 1, 1] + [0, 5, -1e3, 1e4, 0, 0]).astype(dtype)
    fitted = clone(transformer).fit(X.astype(np.float64))
    step = transformer_step(fitted, Precision.of(dtype))
    computed = fitted.transform(X).astype(np.longdouble)
    precise = X.astype(np.longdouble)
    if isinstance(fitted, PCA | TruncatedSVD):
        exact = (precise - getattr(fitted, "mean_", np.zeros(6))) @ fitted.components_.T.astype(
            np.longdouble
        )
        if getattr(fitted, "whiten", False):
            exact /= np.sqrt(fitted.explained_variance_.astype(np.longdouble))
    else:
        exact = (precise - getattr(fitted, "center_", np.zeros(6))) / fitted.scale_
    errors = np.linalg.norm((computed - exact).astype(np.float64), axis=1)
    lengths = np.linalg.norm(X.astype(np.float64), axis=1)
    assert (errors <= step.error_slope * lengths + step.error_offset).all()


# -- rules of one's own ------------------------------------------------------------------------


class Halve(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):
        return X / 2


@pytest.fixture
def registry(monkeypatch):
    """Whatever a test registers is forgotten after it."""
    monkeypatch.setattr(transformers, "_RULES", dict(transformers._RULES))


@pytest.mark.usefixtures("registry")
def test_a_registered_transformer_counts_in_pipelines():
    @register_transformer_bound(Halve)
    def _(transformer, precision):
        return Step(0.5, 0.0, precision.unit, 0.0)

    pipeline = make_pipeline(Halve(), Halve()).fit(TABLE)
    assert 0.25 <= transformer_bound(pipeline) <= 0.25 * (1 + 4 * EPS)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_rule_that_gives_no_constant_is_an_error(value):
    register_transformer_bound(Halve)(lambda transformer, precision: Step(value, 0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=f"Halve must be finite and at least 0, got {value}"):
        transformer_bound(Halve().fit(TABLE))


def test_the_refusal_says_how_to_register_a_rule():
    with pytest.raises(TypeError, match=r"Halve has .*\.register_transformer_bound"):
        transformer_bound(Halve().fit(TABLE))
