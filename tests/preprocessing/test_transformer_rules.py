"""Proven constants and rounding charges of transformers, against matrices and exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA, KernelPCA, TruncatedSVD
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)

from sklip import LipschitzClassifier, certificates
from sklip.certified import Affine, Arithmetic, MapBound, exact
from sklip.certified.arithmetic import FLOOR
from sklip.certified.norms import matrix_norm_upper
from sklip.preprocessing import register_transformer, transformer_bound
from sklip.preprocessing.rules import (
    TRANSFORMERS,
    _stored_matrix_norm_upper,
    described_transformer,
)

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
        Binarizer(),
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
    own = described_transformer(fitted).error_in(Arithmetic(np.dtype(dtype).name))
    computed = fitted.transform(X).astype(np.longdouble)
    precise = X.astype(np.longdouble)
    if isinstance(fitted, PCA | TruncatedSVD):
        wanted = (precise - getattr(fitted, "mean_", np.zeros(6))) @ fitted.components_.T.astype(
            np.longdouble
        )
        if getattr(fitted, "whiten", False):
            wanted /= np.sqrt(fitted.explained_variance_.astype(np.longdouble))
    else:
        wanted = (precise - getattr(fitted, "center_", np.zeros(6))) / fitted.scale_
    errors = np.linalg.norm((computed - wanted).astype(np.float64), axis=1)
    lengths = np.linalg.norm(X.astype(np.float64), axis=1)
    assert (errors <= own.slope * lengths + own.offset).all()


def test_float32_components_on_float64_rows_are_charged_with_float32():
    """The mean's image is computed from stored float32 numbers alone, in float32."""
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(50, 6)) + 1e3).astype(np.float32)
    for whiten in (False, True):
        pca = PCA(3, whiten=whiten).fit(table)
        assert pca.components_.dtype == np.float32
        rows = table.astype(np.float64)
        own = described_transformer(pca).error_in(Arithmetic("float64"))
        wanted = (rows - pca.mean_.astype(np.float64)) @ pca.components_.T.astype(np.float64)
        if whiten:
            wanted /= np.sqrt(pca.explained_variance_.astype(np.float64))
        errors = np.linalg.norm(pca.transform(rows) - wanted, axis=1)
        assert errors.max() > 1e-9
        assert (errors <= own.slope * np.linalg.norm(rows, axis=1) + own.offset).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("whiten", [False, True])
def test_rows_near_zero_are_charged_for_a_mean_far_away(whiten, dtype):
    """They have next to no length, and differences of the mean's size."""
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(50, 6)) + 1e4).astype(dtype)
    pca = PCA(3, whiten=whiten).fit(table)
    rows = (1e-3 * rng.normal(size=(30, 6))).astype(dtype)
    own = described_transformer(pca).error_in(Arithmetic(np.dtype(dtype).name))
    precise = rows.astype(np.longdouble) - pca.mean_.astype(np.longdouble)
    wanted = precise @ pca.components_.T.astype(np.longdouble)
    if whiten:
        wanted /= np.sqrt(pca.explained_variance_.astype(np.longdouble))
    errors = np.linalg.norm((pca.transform(rows) - wanted).astype(np.float64), axis=1)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    assert errors.max() > 1e4 * np.finfo(dtype).eps * lengths.max()
    assert (errors <= own.slope * lengths + own.offset).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_quotients_that_are_flushed_to_zero_are_charged(scale, dtype):
    """A processor may take whatever is below the smallest normal number for 0, before and behind."""
    scaler = MaxAbsScaler().fit(np.array([[scale]]))
    arithmetic = Arithmetic(dtype)
    own, smallest = described_transformer(scaler).error_in(arithmetic), Fraction(arithmetic.smallest)
    # What is lost where the row is 0 in effect, and where its quotient is.
    for row, lost in ((smallest, smallest / Fraction(scale)), (smallest * Fraction(scale), smallest)):
        assert Fraction(float(own.offset)) + Fraction(float(own.slope)) * row >= lost


@pytest.mark.parametrize("n_columns", [2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_and_sums_that_are_flushed_to_zero_are_charged(n_columns, dtype):
    """Each product, and each sum of some of them, may lose the smallest normal number."""
    svd = TruncatedSVD(1).fit(np.random.default_rng(0).normal(size=(20, n_columns)))
    own = described_transformer(svd).error_in(Arithmetic(dtype))
    lost = (2 * n_columns - 1) * Arithmetic(dtype).smallest
    assert own.offset + own.slope * lost >= lost


@pytest.mark.parametrize("scaler", [MaxAbsScaler(), MinMaxScaler()], ids=str)
def test_factors_that_were_raised_to_the_floor_are_those_of_no_linear_map(scaler):
    table = np.array([[0.0, 0.0], [1e300, 2.0]])
    known = described_transformer(scaler.fit(table))
    np.testing.assert_allclose(known.factors, [FLOOR, 0.5])
    assert not known.linear
    assert described_transformer(scaler.fit(table[:, 1:])).linear


@pytest.mark.parametrize("shape", [(1, 1), (9, 9), (4, 30)], ids=str)
def test_the_norm_of_a_stored_matrix_covers_what_each_of_its_entries_may_be_off_by(shape):
    """By 2 ** -50 of itself: together they may be so much of the root of the sum of squares."""
    matrix = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], size=shape))
    error = Fraction(2) ** -50 * Fraction(math.prod(shape) ** 0.5)
    bound = Fraction(_stored_matrix_norm_upper(matrix))
    assert bound >= Fraction(matrix_norm_upper(matrix)) + error - Fraction(2) ** -52 * bound


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_components_of_float32_are_charged_on_rows_of_any_type(few_digits, dtype):
    X = few_digits[0]
    svd = TruncatedSVD(5).fit(X.astype(np.float32))
    own = described_transformer(svd).error_in(Arithmetic("float64"))
    wanted = X @ svd.components_.T.astype(np.float64)
    errors = np.linalg.norm(svd.transform(X.astype(dtype)) - wanted, axis=1)
    assert (errors <= own.slope * np.linalg.norm(X, axis=1) + own.offset).all()


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
    monkeypatch.setattr(TRANSFORMERS, "_rules", dict(TRANSFORMERS._rules))


@pytest.mark.usefixtures("registry")
def test_a_registered_transformer_counts_in_pipelines():
    @register_transformer(Halve)
    def _(transformer):
        return MapBound(0.5, lambda arithmetic: Affine(0.0, arithmetic.unit))

    pipeline = make_pipeline(Halve(), Halve()).fit(TABLE)
    assert 0.25 <= transformer_bound(pipeline) <= 0.25 * (1 + 4 * EPS)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_rule_that_gives_no_constant_is_an_error(value):
    for bound in (MapBound(value, exact), MapBound(0.5, exact, at_zero=value)):
        register_transformer(Halve)(lambda transformer, bound=bound: bound)
        with pytest.raises(ValueError, match=f"Halve must be finite and at least 0, got {value}"):
            transformer_bound(Halve().fit(TABLE))


def certificates_behind_halving(rounding):
    register_transformer(Halve)(lambda transformer: MapBound(0.5, rounding))
    clf = LipschitzClassifier(hidden_layer_sizes=(), max_epochs=20, random_state=0)
    X = TABLE * [1e3, 10, 1, 1, 1]
    return certificates(make_pipeline(Halve(), clf).fit(X, X[:, 0] > 0), X)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("value", [math.nan, -1.0])
@pytest.mark.parametrize("name", ["offset", "slope"])
def test_a_rule_that_gives_no_rounding_error_is_an_error(name, value):
    with pytest.raises(ValueError, match=f"rounding bound must be at least 0, got .*{name}={value}"):
        certificates_behind_halving(lambda arithmetic: Affine(**{name: value}))


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("name", ["offset", "slope"])
def test_where_a_rule_knows_no_end_of_the_rounding_error_nothing_is_certified(name):
    assert certificates_behind_halving(lambda arithmetic: Affine(0.0, arithmetic.unit)).max() > 0
    assert not certificates_behind_halving(lambda arithmetic: Affine(**{name: math.inf})).any()


def test_the_refusal_says_how_to_register_a_rule():
    with pytest.raises(TypeError, match=r"Halve has .*\.register_transformer"):
        transformer_bound(Halve().fit(TABLE))


@pytest.mark.skipif(not hasattr(MaxAbsScaler(), "clip"), reason="needs a later scikit-learn")
@pytest.mark.parametrize("seed", range(4))
def test_a_max_abs_scaler_that_clips_is_not_linear(seed):
    """Beyond the range only one of two copies moves: the sum of their weights may be far less."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, size=(40, 1))
    both = make_union(MaxAbsScaler(clip=True), MaxAbsScaler())
    model = LipschitzClassifier(
        hidden_layer_sizes=(), max_epochs=1, learning_rate=1e-9, random_state=seed, dtype="float64"
    )
    pipeline = make_pipeline(both, model).fit(X, (X[:, 0] > 0).astype(int))
    assert not described_transformer(both.fit(X).transformer_list[0][1]).linear
    for x in np.linspace(-4, 4, 17):
        radius = min(float(certificates(pipeline, [[x]])[0]), 1e3)
        nearby = x + radius * np.linspace(-0.999, 0.999, 401)
        assert np.unique(pipeline.predict(nearby[:, None])).size == 1


class Doubled(TransformerMixin, BaseEstimator):
    """Gives every column twice."""

    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):
        return np.hstack([X, X])


@pytest.mark.parametrize("inside", [False, True])
def test_a_rule_about_another_number_of_outputs_is_refused(inside):
    """A single factor, and no sources, speaks of as many outputs as inputs."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 2))
    step = ColumnTransformer([("twice", Doubled(), [0, 1])]) if inside else Doubled()
    model = LipschitzClassifier(hidden_layer_sizes=(), max_epochs=2, random_state=0)
    pipeline = make_pipeline(step, model).fit(X, X[:, 0] > 0)
    try:
        register_transformer(Doubled)(
            lambda _: MapBound(2**0.5, lambda _: Affine(), factors=1.0, linear=True)
        )
        with pytest.raises(ValueError, match="the rule of Doubled is about 2 outputs, but there are 4"):
            certificates(pipeline, X)
        places = np.array([0, 1, 0, 1])
        register_transformer(Doubled)(
            lambda _: MapBound(2**0.5, lambda _: Affine(), factors=1.0, sources=places, linear=True)
        )
        assert (certificates(pipeline, X) > 0).all()
    finally:
        TRANSFORMERS._rules.pop(Doubled, None)


class Single(TransformerMixin, BaseEstimator):
    """Casts to single precision."""

    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):
        return np.asarray(X).astype(np.float32)


def test_what_a_part_computes_in_single_precision_is_charged_so():
    """The part beside it makes float64 of all that comes out."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2))
    part = make_pipeline(Single(), MinMaxScaler((1000, 1001)), MinMaxScaler())
    steps = ColumnTransformer([("single", part, [0]), ("double", "passthrough", [1])])
    model = LipschitzClassifier(hidden_layer_sizes=(), max_epochs=20, random_state=0, dtype="float64")
    pipeline = make_pipeline(steps, model).fit(X, X[:, 0] > 0)
    assert steps.fit_transform(X).dtype == np.float64
    same, other = X[~pipeline.predict(X)][0], X[pipeline.predict(X)][0]
    for _ in range(60):
        middle = (same + other) / 2
        same, other = (same, middle) if pipeline.predict(middle[None])[0] else (middle, other)
    near = same + np.outer([*-np.logspace(-7, -1, 40), *np.logspace(-7, -1, 40)], [1.0, 0.0])
    register_transformer(Single)(
        lambda _: MapBound(1.0, lambda _: Affine(1e-38, 2.0**-24), factors=1.0)
    )
    try:
        radii = certificates(pipeline, near)
    finally:
        TRANSFORMERS._rules.pop(Single)
    assert radii.max() > 1e-3
    for row, radius, label in zip(near, radii, pipeline.predict(near), strict=True):
        around = row + np.outer(np.linspace(-1, 1, 501) * radius * (1 - 1e-9), [1.0, 0.0])
        assert radius == 0 or (pipeline.predict(around) == label).all()
