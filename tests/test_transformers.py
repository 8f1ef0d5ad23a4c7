"""Proven constants and rounding charges of transformers, against matrices and exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.datasets import load_digits
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

from sklip import LipschitzClassifier, certificates, transformers
from sklip.rounding import Step
from sklip.transformers import register_transformer_bound, transformer_bound, transformer_steps

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


def test_bound_of_a_pipeline_is_the_product_and_dominates_its_matrix():
    inner = make_pipeline(StandardScaler(), MinMaxScaler((0, 9)))
    pipeline = make_pipeline(MinMaxScaler(), "passthrough", None, inner).fit(TABLE)
    bound = transformer_bound(pipeline)
    assert np.linalg.norm(transformer_matrix(pipeline), 2) <= bound + DIFFERENCE_ERROR
    product = math.prod(transformer_bound(step) for step in (pipeline[0], inner[0], inner[1]))
    assert product <= bound <= product * (1 + 16 * EPS)


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
    (step,) = transformer_steps(fitted, dtype)
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


@pytest.mark.parametrize(
    "steps",
    [
        [StandardScaler()],
        [RobustScaler(), MinMaxScaler((-1, 1))],
        [VarianceThreshold(), PCA(20)],
        [StandardScaler(with_std=False), PCA(20, whiten=True)],
        [MaxAbsScaler(), TruncatedSVD(20)],
        [VarianceThreshold(), SelectKBest(k=30), StandardScaler()],
    ],
    ids=str,
)
def test_a_step_along_the_worst_direction_in_raw_units_does_not_flip(steps):
    """A linear classifier behind the steps: the pulled-back gradient is the worst direction."""
    X, y = load_digits(return_X_y=True)
    X, y = X[:300], (y > 4)[:300]
    model = LipschitzClassifier(hidden_layer_sizes=(), max_epochs=30, random_state=0)
    pipeline = make_pipeline(*(clone(step) for step in steps), model).fit(X, y)
    scores, radii = pipeline.decision_function(X), certificates(pipeline, X)
    gradient = pipeline.decision_function(np.eye(64)) - pipeline.decision_function(np.zeros((1, 64)))
    direction = np.where(scores > 0, -1, 1)[:, None] * gradient / np.linalg.norm(gradient)
    for share in (0.5, 1 - 1e-9):
        moved = X + direction * radii[:, None] * share
        assert (pipeline.predict(moved) == pipeline.predict(X)).all()
    # The product of constants is attained up to how the directions of the steps fit together.
    flips = X + direction * np.abs(scores)[:, None] / np.linalg.norm(gradient) * (1 + 1e-6)
    assert (pipeline.predict(flips) != pipeline.predict(X)).all()
    assert (radii > 0).all()
    assert (radii <= np.abs(scores) / np.linalg.norm(gradient) * (1 + 1e-9)).all()


def test_a_step_that_computes_in_float32_is_charged_whatever_comes_after():
    """PCA fitted in float64 gives float64 for float32 rows, behind a scaler that has rounded them."""
    X, y = load_digits(return_X_y=True)
    steps = (StandardScaler(with_std=False), PCA(20))
    clf = LipschitzClassifier(dtype="float64", max_epochs=2, random_state=0)
    pipeline = make_pipeline(*steps, clf).fit(X, y > 4)
    wide, narrow = (certificates(pipeline, X.astype(dtype)) for dtype in (np.float64, np.float32))
    assert pipeline[:-1].transform(X.astype(np.float32)).dtype == np.float64
    # At least a unit of float32 on rows of length 10 and more, at x and at x'.
    positive = narrow > 0
    assert (wide - narrow)[positive].min() > 2 * 10 * 2.0**-24


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
