"""Rows on their way through a pipeline: columns by name, held fixed, missing, of every type."""

import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    StandardScaler,
)

from sklip import (
    LipschitzClassifier,
    average_certified_radius_scorer,
    certificates,
    certified_accuracy_scorer,
    most_robust,
)
from sklip.certified import Affine, Arithmetic, Gains, MapBound
from sklip.preprocessing import register_transformer
from sklip.preprocessing.rules import TRANSFORMERS, described_transformer
from sklip.preprocessing.steps import may_narrow
from sklip.preprocessing.walk import longest_row, walk

# Behind a StandardScaler, a pixel that is rarely used limits the radii of digits.
pytestmark = pytest.mark.filterwarnings("ignore:The steps enlarge a change of column")


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (16,), "max_epochs": 5, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


# -- mixed tables ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed_table():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "city": rng.choice(["Lyon", "Oslo", "Rome"], size=300),
            "age": rng.uniform(20, 70, size=300),
            "visits": rng.integers(0, 30, size=300),
            "income": rng.lognormal(10, 1, size=300),
            "key": rng.integers(10**9, 2 * 10**9, size=300),
        }
    )
    y = np.where(frame["age"] + frame["visits"] + 20 * (frame["city"] == "Oslo") > 65, "yes", "no")
    return frame, y


def mixed_pipeline(**parameters):
    prepare = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "visits", "income"]),
            ("names", OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["city", "key"]),
        ]
    )
    return make_pipeline(prepare, quick(max_epochs=30, **parameters))


@pytest.mark.parametrize("parameters", [{}, {"dtype": "float32"}, {"hidden_layer_sizes": ()}], ids=str)
def test_a_mixed_table_is_certified_with_columns_held_fixed(mixed_table, parameters):
    X, y = mixed_table
    pipeline = mixed_pipeline(**parameters).fit(X, y)
    radii = certificates(pipeline, X, fixed_columns=["city", "key"])
    assert (radii > 0).mean() > 0.9
    # In the columns' units: a year of age may matter, 1000 of income don't.
    assert 0.01 < np.median(radii) < 50
    labels = pipeline.predict(X)
    gradients = np.zeros((len(X), 3))
    numbers = ["age", "visits", "income"]
    for position, name in enumerate(numbers):
        steps = 1e-3 * X[name].std()
        moved = X.assign(**{name: X[name] + steps})
        gradients[:, position] = (
            pipeline.decision_function(moved) - pipeline.decision_function(X)
        ) / steps
    directions = np.where(labels == "yes", -1, 1)[:, None] * gradients
    directions /= np.maximum(np.linalg.norm(directions, axis=1), 1e-300)[:, None]
    share_flipped = {}
    for share in (0.5, 1 - 1e-9, 1.5, 100):
        moved = X.copy().astype(dict.fromkeys(numbers, np.float64))
        moved[numbers] += directions * (radii * share)[:, None]
        share_flipped[share] = (pipeline.predict(moved) != labels).mean()
    assert share_flipped[0.5] == share_flipped[1 - 1e-9] == 0
    assert share_flipped[100] > 0.5
    if parameters.get("hidden_layer_sizes") == ():
        # A linear classifier: the direction is the worst one, and the radius all but the distance.
        assert share_flipped[1.5] > 0.9


def test_columns_are_known_by_name_whatever_their_order(mixed_table):
    X, y = mixed_table
    pipeline = mixed_pipeline().fit(X, y)
    fixed = ["city", "key"]
    radii = certificates(pipeline, X, fixed_columns=fixed)
    shuffled = X[["key", "income", "city", "age", "visits"]].assign(more=1e30)
    np.testing.assert_array_equal(certificates(pipeline, shuffled, fixed_columns=fixed), radii)
    np.testing.assert_array_equal(certificates(pipeline, X, fixed_columns=[0, 4]), radii)
    assert (certificates(pipeline, X, fixed_columns=[*fixed, "income"]) >= radii).all()


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_arrays_go_by_position_where_columns_had_names():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(60, 3)) * [1.0, 2.0, 3.0], columns=["a", "b", "c"])
    pipeline = make_pipeline(StandardScaler(), quick()).fit(X, X["a"] > 0)
    for fixed in ((), ["b"]):
        expected = certificates(pipeline, X, fixed_columns=fixed)
        assert expected.max() > 0
        found = certificates(pipeline, X.to_numpy(), fixed_columns=fixed)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_rows_that_lack_values_certify_nothing_unless_held_fixed(mixed_table):
    X, y = mixed_table
    pipeline = mixed_pipeline().fit(X, y)
    lacking = X.copy()
    lacking.loc[:9, "age"] = np.nan
    radii = certificates(pipeline, lacking, fixed_columns=["city", "key"])
    assert (radii[:10] == 0).all()
    assert (radii[10:] > 0).any()
    held = certificates(pipeline, lacking, fixed_columns=["city", "key", "age"])
    assert (held[:10] > 0).any()


def test_a_step_without_a_bound_says_that_columns_can_be_held_fixed(mixed_table):
    X, y = mixed_table
    pipeline = mixed_pipeline().fit(X, y)
    for fixed in ((), ["city"]):
        with pytest.raises(TypeError, match=r"^OneHotEncoder has no Lipschitz bound.*fixed_columns"):
            certificates(pipeline, X, fixed_columns=fixed)


def test_a_column_of_words_that_may_change_is_refused_by_name(mixed_table):
    X, y = mixed_table
    imputer = SimpleImputer(strategy="most_frequent").set_output(transform="pandas")
    pipeline = make_pipeline(imputer, mixed_pipeline()).fit(X, y)
    with pytest.raises(TypeError, match=r"OneHotEncoder|must hold floating-point numbers"):
        certificates(pipeline, X, fixed_columns=["key"])


def test_searches_over_mixed_tables_take_scorers_with_fixed_columns(mixed_table):
    X, y = mixed_table
    fixed = ["city", "key"]
    scoring = {
        "accuracy": "accuracy",
        "certified": certified_accuracy_scorer(eps=0.5, fixed_columns=fixed),
        "radius": average_certified_radius_scorer(fixed_columns=fixed),
    }
    search = GridSearchCV(
        mixed_pipeline(),
        {"lipschitzclassifier__tau": [1.0, 10.0]},
        scoring=scoring,
        refit=most_robust(),
        cv=2,
        error_score="raise",
    ).fit(X, y)
    assert (search.cv_results_["mean_test_certified"] > 0).all()
    np.testing.assert_array_equal(
        certificates(search, X, fixed_columns=fixed),
        certificates(search.best_estimator_, X, fixed_columns=fixed),
    )


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        (["town"], "must be names of columns seen at fit, or positions, got 'town'.*'city'"),
        ("city", "must be an iterable of columns, got 'city'"),
        ([5], "below 5, got 5"),
        ([-1], "at least 0 and below 5, got -1"),
        ([True], "got True"),
        (["city", "age", "visits", "income", "key"], "must leave at least one column"),
    ],
)
def test_fixed_columns_that_are_none_are_refused(mixed_table, fixed, message):
    X, y = mixed_table
    pipeline = mixed_pipeline().fit(X, y)
    with pytest.raises(ValueError, match=f"fixed_columns.*{message}"):
        certificates(pipeline, X, fixed_columns=fixed)


def test_sparse_rows_are_certified_through_a_truncated_svd(few_digits):
    X, y = few_digits
    pipeline = make_pipeline(MaxAbsScaler(), TruncatedSVD(20), quick()).fit(X, y)
    np.testing.assert_allclose(
        certificates(pipeline, sparse.csr_array(X)), certificates(pipeline, X), rtol=1e-6, atol=1e-12
    )


# -- columns, types and containers ------------------------------------------------------------------


def test_rows_of_integers_may_not_be_weighted():
    """scikit-learn multiplies bytes by an integer weight in bytes: 2 * 128 is 0."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (100, 4)).astype(np.uint8)
    union = FeatureUnion([("a", "passthrough")], transformer_weights={"a": 2})
    pipeline = make_pipeline(union, quick(hidden_layer_sizes=())).fit(X, X[:, 0] > 127)
    with pytest.raises(TypeError, match="may overflow on integers"):
        certificates(pipeline, X)
    assert certificates(pipeline, X.astype(float)).shape == (100,)


def test_a_scaler_switched_after_fit_still_divides_sparse_rows(few_digits):
    X, y = sparse.csr_array(few_digits[0]), few_digits[1]
    pipeline = make_pipeline(StandardScaler(with_mean=False), TruncatedSVD(5), quick()).fit(X, y)
    before = certificates(pipeline, X)
    pipeline[0].set_params(with_std=False)
    assert (certificates(pipeline, X) <= before * (1 + 1e-9)).all()


@pytest.mark.parametrize("narrow", [list, tuple])
def test_float32_in_any_container_is_charged(narrow):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(60, 3)) + 2.0**12).astype(np.float32)
    pipeline = make_pipeline(StandardScaler(with_std=False), PCA(2), quick(dtype="float64"))
    pipeline.fit(X.astype(np.float64), X[:, 0] > 2.0**12)
    rows = [list(row) for row in X]
    np.testing.assert_array_equal(
        certificates(pipeline, narrow(rows)) == 0, certificates(pipeline, X) == 0
    )
    assert (certificates(pipeline, narrow(rows)) <= certificates(pipeline, X.astype(float))).all()


def test_half_precision_is_refused_in_any_container(few_digits):
    pipeline = make_pipeline(StandardScaler(), quick(max_epochs=1)).fit(*few_digits)
    half = few_digits[0].astype(np.float16)
    for X in (half, [list(row) for row in half], pd.DataFrame(half)):
        with pytest.raises(TypeError, match="float16"):
            certificates(pipeline, X)


def test_another_order_of_columns_is_refused_where_names_do_not_count():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(60, 3)), columns=["a", "b", "c"])
    union = FeatureUnion([("p", "passthrough")])
    pipeline = make_pipeline(union, quick(hidden_layer_sizes=())).fit(X, X["a"] > 0)
    with pytest.raises(ValueError, match="in the same order"):
        certificates(pipeline, X[["b", "c", "a"]], fixed_columns=["b"])


def test_columns_that_are_missing_or_twice_there_are_named(mixed_table):
    X, y = mixed_table
    pipeline = mixed_pipeline().fit(X, y)
    with pytest.raises(ValueError, match=r"columns are missing: \['age'\]"):
        certificates(pipeline, X.drop(columns="age"), fixed_columns=["city", "key"])
    twice = pd.concat([X, X[["age"]]], axis=1)
    with pytest.raises(ValueError, match="different names"):
        certificates(pipeline, twice, fixed_columns=["city", "key"])


def test_sparse_rows_with_entries_twice_are_refused(few_digits):
    pipeline = make_pipeline(TruncatedSVD(5), quick(max_epochs=1)).fit(*few_digits)
    twice = sparse.csr_array((np.ones(2), [0, 0], [0, 2]), shape=(1, 64))
    with pytest.raises(ValueError, match="each entry once"):
        certificates(pipeline, twice)


def test_rows_that_are_not_finite_certify_nothing(few_digits):
    """As scikit-learn lets them through where it is told to assume that they are finite."""
    X, y = few_digits[0].astype(np.float64).copy(), few_digits[1]
    pipeline = make_pipeline(StandardScaler(), quick(max_epochs=1)).fit(X, y)
    X[0, 0], X[1, 0] = np.nan, np.inf
    with sklearn.config_context(assume_finite=True):
        for radii in (pipeline[-1].certificates_(X), certificates(pipeline, X)):
            assert radii[:2].tolist() == [0, 0]
            assert not np.isnan(radii).any()


def test_columns_that_are_dropped_may_be_missing(mixed_table):
    X, y = mixed_table
    prepare = ColumnTransformer([("numbers", StandardScaler(), ["age", "visits"])])
    pipeline = make_pipeline(prepare, quick()).fit(X, y)
    radii = certificates(pipeline, X[["visits", "age"]])
    np.testing.assert_array_equal(radii, certificates(pipeline, X))
    assert radii.max() > 0


@pytest.mark.parametrize("copy", [True, False])
def test_the_callers_rows_are_left_as_they_are(few_digits, copy):
    X, y = few_digits[0].astype(np.float64), few_digits[1]
    pipeline = make_pipeline(StandardScaler(copy=copy), quick(max_epochs=1)).fit(X.copy(), y)
    before = X.copy()
    certificates(pipeline, X)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("scaler", [StandardScaler, MinMaxScaler])
def test_parts_on_fixed_columns_may_not_overwrite_them(few_digits, scaler):
    parts = [("a", scaler(copy=False), slice(0, 3)), ("b", StandardScaler(), slice(3, 64))]
    pipeline = make_pipeline(ColumnTransformer(parts), quick(max_epochs=1)).fit(
        few_digits[0].copy(), few_digits[1]
    )
    with pytest.raises(TypeError, match="with copy=False overwrites"):
        certificates(pipeline, few_digits[0], fixed_columns=[0, 1, 2])


def overwrite(values):
    values *= 2
    return values


def test_the_callers_rows_are_left_as_they_are_by_parts_on_fixed_columns(few_digits):
    X = few_digits[0].astype(np.float64)
    parts = [("a", FunctionTransformer(overwrite), slice(0, 3)), ("b", StandardScaler(), slice(3, 64))]
    pipeline = make_pipeline(ColumnTransformer(parts), quick(max_epochs=1)).fit(X.copy(), few_digits[1])
    before = X.copy()
    certificates(pipeline, X, fixed_columns=[0, 1, 2])
    np.testing.assert_array_equal(X, before)


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


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((0, 3)), r"Found array with 0 sample\(s\)"),
        (np.zeros(3), "Expected 2D array, got 1D array"),
        (np.zeros((2, 1, 3)), "Expected 2D array, got 3D array"),
    ],
)
def test_what_is_no_table_is_refused_in_scikit_learns_words(rows, message):
    X = np.random.default_rng(0).normal(size=(40, 3))
    pipeline = make_pipeline(StandardScaler(), LipschitzClassifier(max_epochs=1, random_state=0))
    pipeline.fit(X, X[:, 0] > 0)
    with pytest.raises(ValueError, match=message):
        certificates(pipeline, rows)


def test_weights_of_parts_on_fixed_columns_need_no_floating_point(mixed_table):
    """Words are taken as given, and integers that no weight multiplies can't overflow."""
    X, y = mixed_table
    parts = [
        ("numbers", StandardScaler(), ["age", "visits"]),
        ("names", OneHotEncoder(sparse_output=False), ["city"]),
    ]
    pipeline = make_pipeline(ColumnTransformer(parts, transformer_weights={"names": 0.5}), quick())
    assert certificates(pipeline.fit(X, y), X, fixed_columns=["city"]).max() > 0
    pipeline[0].set_params(transformer_weights={"names": 0.5, "numbers": 2.0})
    with pytest.raises(TypeError, match="may overflow on integers"):
        certificates(pipeline.fit(X, y), X, fixed_columns=["city"])
    floats = X.astype({"visits": float})
    assert certificates(pipeline, floats, fixed_columns=["city"]).max() > 0
    nested = ColumnTransformer([("outer", FeatureUnion([("a", pipeline[0])]), list(X.columns))])
    pipeline = make_pipeline(nested, quick()).fit(X, y)
    with pytest.raises(TypeError, match="may overflow on integers"):
        certificates(pipeline, X, fixed_columns=["city"])


class Cast(TransformerMixin, BaseEstimator):
    """Brings values to a type."""

    def __init__(self, dtype):
        self.dtype = dtype

    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):
        return X.astype(self.dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_a_step_makes_narrower_is_charged_for_its_precision(dtype, monkeypatch):
    monkeypatch.setattr(TRANSFORMERS, "_rules", dict(TRANSFORMERS._rules))
    register_transformer(Cast)(
        lambda transformer: MapBound(1.0, lambda arithmetic: Affine(0.0, arithmetic.unit))
    )
    X = np.random.default_rng(0).normal(size=(20, 3))
    steps = [Cast("float64").fit(X), Cast(dtype).fit(X), Cast("float64").fit(X)]
    values, _, drift, _ = walk(steps, X, None, Gains.at_start(3))
    moved = np.linalg.norm(values - X, axis=1)
    assert moved.any() == (dtype == "float32")
    assert (drift.offset >= moved).all()
    assert (drift.offset < 1e-5 if dtype == "float32" else drift.offset < 1e-14).all()


class Holed(Cast):
    """Loses what lies beyond 1."""

    def transform(self, X):
        return np.where(X > 1, np.nan, X)


def test_what_a_step_has_lost_is_missing_where_only_lengths_are_known(monkeypatch):
    monkeypatch.setattr(TRANSFORMERS, "_rules", dict(TRANSFORMERS._rules))
    register_transformer(Cast, Holed)(
        lambda transformer: MapBound(1.0, lambda arithmetic: Affine(0.0, arithmetic.unit))
    )
    X = np.array([[0.5, 2.0], [0.5, 0.25]])
    steps = [Holed("float64").fit(X), Cast("float64").fit(X)]
    values, gains, _, longest = walk(steps, X, None, Gains.at_start(2))
    assert gains.moves is None
    assert np.isnan(values).any(axis=1).tolist() == [True, False]
    assert longest[0] == 0 < longest[1]


def test_only_what_comes_before_the_last_step_of_a_part_may_hide_its_precision(monkeypatch):
    """What the last step gives is seen by its type."""
    monkeypatch.setattr(TRANSFORMERS, "_rules", dict(TRANSFORMERS._rules))
    register_transformer(Cast)(lambda transformer: MapBound(1.0))
    last, before = Cast("float64"), make_pipeline(Cast("float32"), StandardScaler())
    for part, hidden in ((last, False), (before, True), (make_pipeline(StandardScaler(), last), False)):
        for inside in (part, make_pipeline(ColumnTransformer([("inner", part, [0])]))):
            step = ColumnTransformer([("outer", inside, [0])]).fit(np.ones((2, 1)))
            assert may_narrow(step) == hidden
            assert not may_narrow(part)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_rows_go_as_far_as_no_step_overflows(size):
    X = size * np.random.default_rng(0).normal(size=(20, 3))
    scaler, unit = MaxAbsScaler().fit(X), 5.0
    start = Gains.at_start(3, False, np.full(3, unit))
    _, _, _, longest = walk([scaler], X, None, start)
    float64 = Arithmetic("float64")
    room = longest_row(described_transformer(scaler).error_in(float64), float64)
    np.testing.assert_allclose(longest, room / unit, rtol=1e-9)
