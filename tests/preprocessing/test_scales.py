"""Radii in units of each column: chosen numbers, those of the training data, and attacks in both."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, make_pipeline, make_union
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, OneHotEncoder, StandardScaler

from sklip import (
    CertifiedAccuracyDisplay,
    LipschitzClassifier,
    average_certified_radius_scorer,
    certificates,
    certified_accuracy_scorer,
    certified_ranges,
    predict_with_radii,
)
from sklip.certified import Affine, MapBound
from sklip.preprocessing import register_transformer
from sklip.preprocessing.rules import TRANSFORMERS
from sklip.preprocessing.scales import given_scale, standard_deviations

SPREAD = np.array([0.01, 1.0, 30.0, 2000.0, 5.0])


def table(n_classes=3, n_rows=240, seed=0):
    """Columns of very different spread, correlated, of which each counts for the class."""
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n_rows, 5)) @ (np.eye(5) + 0.3 * rng.normal(size=(5, 5)))
    return Z * SPREAD + [0, 1, 100, 0, -3], (Z @ rng.normal(size=(5, n_classes))).argmax(axis=1)


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 10, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


def columns(*parts, **parameters):
    return ColumnTransformer([(str(i), *part) for i, part in enumerate(parts)], **parameters)


PREPARE = {
    "nothing": [],
    "scaler": [StandardScaler()],
    "projection between scalers": [StandardScaler(), PCA(3), StandardScaler()],
    "clipped": [MinMaxScaler(clip=True), PCA(4), MaxAbsScaler()],
    "clipped behind": [StandardScaler(), PCA(4), MinMaxScaler(clip=True)],
    "union": [make_union(StandardScaler(), make_pipeline(MaxAbsScaler(), PCA(2)))],
    "parts": [
        columns((StandardScaler(), [0, 3]), (make_pipeline(StandardScaler(), PCA(1)), [1, 2, 3]))
    ],
    "weighted, twice": [
        FeatureUnion([("a", StandardScaler()), ("b", MinMaxScaler())], transformer_weights={"b": -3.0}),
        PCA(4),
    ],
}


def attacked(pipeline, X, radii, scale, fixed, rng):
    """Whether any row gets another label just inside its radius, along gradients and at random."""
    labels = pipeline.predict(X)
    codes = np.searchsorted(pipeline.classes_, labels)
    moving = np.setdiff1d(np.arange(X.shape[1]), fixed)

    def margin(rows):
        scores = pipeline.decision_function(rows)
        if scores.ndim == 1:
            return np.where(codes == 1, scores, -scores)
        scores = scores.copy()
        own = scores[np.arange(len(rows)), codes].copy()
        scores[np.arange(len(rows)), codes] = -np.inf
        return own - scores.max(axis=1)

    found = np.zeros(len(X), dtype=bool)
    for _ in range(3):
        position = X + 0.3 * radii[:, None] * rng.normal(size=X.shape) * scale
        position[:, fixed] = X[:, fixed]
        for _ in range(5):
            base, gradient = margin(position), np.zeros_like(X)
            for column in moving:
                step = 1e-4 * scale[column] * np.maximum(radii, 1e-9)
                ahead = position.copy()
                ahead[:, column] += step
                gradient[:, column] = (margin(ahead) - base) / step * scale[column]
            lengths = np.linalg.norm(gradient, axis=1, keepdims=True)
            direction = -gradient / np.where(lengths > 0, lengths, 1.0)
            position = X + direction * (1 - 1e-9) * radii[:, None] * scale
            position[:, fixed] = X[:, fixed]
            found |= pipeline.predict(position) != labels
    return found


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("fixed", [[], [2]], ids=["free", "one fixed"])
@pytest.mark.parametrize("hidden", [(), (8,)], ids=["linear", "one hidden layer"])
@pytest.mark.parametrize("name", PREPARE)
def test_no_attack_in_chosen_units_succeeds_inside_the_radius(name, hidden, fixed, n_classes):
    X, y = table(n_classes)
    model = quick(hidden_layer_sizes=hidden, dtype="float32" if n_classes == 2 else "float64")
    pipeline = make_pipeline(*map(clone, PREPARE[name]), model).fit(X, y)
    X, rng = X[:40], np.random.default_rng(1)
    for scale in (SPREAD, SPREAD * np.exp(rng.normal(scale=2, size=5))):
        radii = certificates(pipeline, X, fixed_columns=fixed, scale=scale)
        assert (radii > 0).mean() > 0.9
        assert not attacked(pipeline, X, radii, scale, fixed, rng).any()


@pytest.mark.parametrize("name", ["nothing", "scaler", "projection between scalers", "weighted, twice"])
def test_radii_of_a_linear_classifier_are_the_distances_in_chosen_units(name):
    X, y = table()
    pipeline = make_pipeline(*map(clone, PREPARE[name]), quick(hidden_layer_sizes=())).fit(X, y)
    radii = certificates(pipeline, X, scale=SPREAD)
    middle = X.mean(axis=0)
    scores = pipeline.decision_function(X)
    gradients = (
        pipeline.decision_function(middle + np.diag(SPREAD)) - pipeline.decision_function(middle[None])
    ).T
    rows, top = np.arange(len(X)), scores.argmax(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.linalg.norm(gradients[top][:, None] - gradients, axis=2)
        distances = (scores.max(axis=1)[:, None] - scores) / lengths
    distances[rows, top] = np.inf
    np.testing.assert_allclose(radii, distances.min(axis=1), rtol=1e-6)


def test_a_scale_of_one_is_no_scale_and_of_two_halves_the_radius():
    X, y = table()
    for steps in PREPARE.values():
        pipeline = make_pipeline(*map(clone, steps), quick()).fit(X, y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = certificates(pipeline, X)
        np.testing.assert_allclose(certificates(pipeline, X, scale=np.ones(5)), plain, rtol=1e-9)
        np.testing.assert_allclose(certificates(pipeline, X, scale=[2] * 5), plain / 2, rtol=1e-9)


# -- ways to give it ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frame():
    X, y = table(2)
    X = pd.DataFrame(X, columns=list("abcde"))
    return X.assign(city=np.where(y == 1, "Oslo", "Rome")), y


@pytest.fixture(scope="module")
def of_frame(frame):
    X, y = frame
    prepare = columns((StandardScaler(), list("abcde")), (OneHotEncoder(sparse_output=False), ["city"]))
    return make_pipeline(prepare, quick()).fit(X, y)


def test_columns_go_by_name_or_position(frame, of_frame):
    X, _ = frame
    numbers = dict(zip("abcde", SPREAD.tolist(), strict=True))
    expected = certificates(of_frame, X, fixed_columns=["city"], scale=[*SPREAD, 1.0])
    for scale in (
        numbers,
        {**numbers, "city": np.nan},
        dict(reversed(numbers.items())),
        pd.Series(numbers),
        dict(enumerate(SPREAD)),
        np.array([*SPREAD, -1.0]),
        (*SPREAD, None),
        pd.Series([*SPREAD, 0.0], index=[*"abcde", "city"]),
    ):
        radii = certificates(of_frame, X, fixed_columns=["city"], scale=scale)
        np.testing.assert_array_equal(radii, expected)
    std = X.drop(columns="city").std(ddof=0)
    np.testing.assert_allclose(
        certificates(of_frame, X, fixed_columns=["city"], scale="std"),
        certificates(of_frame, X, fixed_columns=["city"], scale=std),
        rtol=1e-9,
    )


@pytest.mark.parametrize("value", [0, 0.0, -1.0, np.nan, np.inf, 1e-310, 10**400, "wide", None])
@pytest.mark.parametrize("as_array", [False, True])
def test_numbers_that_are_no_units_are_refused_by_the_name_of_their_column(
    frame, of_frame, value, as_array
):
    X, _ = frame
    scale = [1.0, 1.0, value, 1.0, 1.0, 1.0] if as_array else {**dict.fromkeys("abde", 1.0), "c": value}
    message = "'c'" if value is not None or as_array else r"lacks \['c'\]"
    with pytest.raises(ValueError, match=rf"^scale must be .*{message}"):
        certificates(of_frame, X, fixed_columns=["city"], scale=scale)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"a": 1.0, "b": 1.0}, r"every column that can change, but lacks \['c', 'd', 'e'\]"),
        ({**dict.fromkeys("abcde", 1.0), "town": 1.0}, "columns seen at fit.*got 'town'"),
        ({**dict.fromkeys("abcde", 1.0), 7: 1.0}, r"positions below 6, or names of \['a', .*got 7"),
        ({**dict.fromkeys("abcde", 1.0), 6: 1.0}, "positions below 6.*got 6"),
        ({**dict.fromkeys("abcde", 1.0), -1: 1.0}, "positions below 6.*got -1"),
        ({**dict.fromkeys("abcde", 1.0), True: 1.0}, "got True"),
        ({**dict.fromkeys("abcde", 1.0), 0: 1.0}, "once for each column, got 0 twice"),
        (pd.Series(1.0, index=list("abcdea")), "once for each column, got 'a' twice"),
        (np.ones(5), r"each of 6 columns, got shape \(5,\)"),
        (np.ones((6, 1)), r"each of 6 columns, got shape \(6, 1\)"),
        (2.0, r"each of 6 columns, got shape \(\)"),
        ("variance", "'std' or a positive number for each column, got 'variance'"),
    ],
)
def test_scales_that_miss_columns_or_name_others_are_refused(frame, of_frame, scale, message):
    X, _ = frame
    for attempt in (certificates, predict_with_radii):
        with pytest.raises(ValueError, match=rf"^scale must .*{message}"):
            attempt(of_frame, X, fixed_columns=["city"], scale=scale)


def test_columns_without_names_are_named_by_their_position():
    with pytest.raises(ValueError, match=r"got 0\.0 for column 1"):
        given_scale([1.0, 0.0], None, np.zeros(2, dtype=bool))
    with pytest.raises(ValueError, match=r"lacks \[1\]"):
        given_scale({0: 1.0}, None, np.zeros(2, dtype=bool))
    with pytest.raises(ValueError, match="got 'a'"):
        given_scale({"a": 1.0}, None, np.zeros(2, dtype=bool))


@pytest.mark.parametrize("scale", ["std", np.ones(64)], ids=["std", "array"])
def test_images_are_refused(few_digits, scale):
    images = few_digits[0].reshape(-1, 8, 8)
    clf = quick(architecture="mlp", max_epochs=1).fit(images, few_digits[1])
    with pytest.raises(ValueError, match="scale needs X of flat rows"):
        certificates(clf, images, scale=scale)
    with pytest.raises(ValueError, match="certified_ranges needs X of flat rows"):
        certified_ranges(clf, images)
    if not isinstance(scale, str):
        # As flat rows, they have columns.
        assert (certificates(clf, few_digits[0], scale=scale) > 0).any()


# -- standard deviations of the training data ---------------------------------------------------------

KNOWN = {
    "nothing": [],
    "scaler": [StandardScaler()],
    "without std": [StandardScaler(with_std=False)],
    "two scalers": [MinMaxScaler((-2, 5)), StandardScaler()],
    "negative weight": [FeatureUnion([("a", MaxAbsScaler())], transformer_weights={"a": -3.0})],
    "scaler before a projection": [MaxAbsScaler(), StandardScaler(), PCA(2)],
    "scalers inside of parts": [
        columns(
            (make_pipeline(MaxAbsScaler(), StandardScaler(), PCA(2)), [0, 1, 4]),
            ("passthrough", [3, 2]),
        )
    ],
    "a union": [make_union(StandardScaler(), PCA(2))],
    "nested": [
        columns(
            (columns((StandardScaler(), [1, 0]), (make_pipeline("passthrough"), [2])), [2, 3, 4]),
            (StandardScaler(), [0, 1]),
        )
    ],
    "imputed": [SimpleImputer(), StandardScaler()],
    "selected, others fixed": [SelectKBest(k=5)],
}


@pytest.mark.parametrize("name", KNOWN)
def test_standard_deviations_are_those_of_the_training_data(name):
    X, y = table()
    pipeline = make_pipeline(*map(clone, KNOWN[name]), quick(max_epochs=1)).fit(X, y)
    names, fixed = None, np.zeros(5, dtype=bool)
    found = standard_deviations(
        [([step for _, step in pipeline.steps[:-1]], pipeline[-1].feature_std_)], names, fixed
    )
    np.testing.assert_allclose(found, X.std(axis=0), rtol=1e-9)
    np.testing.assert_allclose(
        certificates(pipeline, X, scale="std"),
        certificates(pipeline, X, scale=X.std(axis=0)),
        rtol=1e-7,
    )


UNKNOWN = {
    "mixed": ([PCA(2)], "[0, 1, 2, 3, 4]"),
    "mixed before the scaler": ([PCA(2), StandardScaler()], "[0, 1, 2, 3, 4]"),
    "clipped": ([MinMaxScaler(clip=True)], "[0, 1, 2, 3, 4]"),
    "dropped": ([columns((StandardScaler(), [0, 1, 3]))], "[2, 4]"),
    "mixed in part": ([columns((PCA(1), [0, 4]), ("passthrough", [1, 2, 3]))], "[0, 4]"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_standard_deviations_that_are_not_known_are_refused_by_name(name):
    X, y = table()
    steps, missing = UNKNOWN[name]
    pipeline = make_pipeline(*map(clone, steps), quick(max_epochs=1)).fit(X, y)
    with pytest.raises(
        ValueError, match=r"scale='std' needs columns that reach.*X_train.std\(\)"
    ) as caught:
        certificates(pipeline, X, scale="std")
    assert missing in str(caught.value)
    if missing != "[0, 1, 2, 3, 4]":
        fixed = [int(column) for column in missing.strip("[]").split(", ")]
        assert (certificates(pipeline, X, scale="std", fixed_columns=fixed) > 0).any()


MIXED = {
    "a projection": [PCA(2)],
    "before the scaler": [PCA(2), StandardScaler()],
    "inside of a part": [columns((PCA(2), [0, 1]), ("passthrough", [2, 3, 4]))],
    "of parts side by side": [make_union(PCA(2), make_pipeline(PCA(3), StandardScaler()))],
    "of a part beside it": [columns(("passthrough", [0, 2]), (StandardScaler(), [1, 3, 4])), PCA(4)],
    "two steps deep": [columns((columns((PCA(1), [1, 0])), [0, 1, 2]), ("passthrough", [2, 3, 4]))],
}


@pytest.mark.parametrize("name", MIXED)
def test_a_column_mixed_with_one_that_is_held_has_no_standard_deviation_of_its_own(name):
    """What is held had a spread in training, which is in that of what comes out."""
    X, y = table()
    pipeline = make_pipeline(*map(clone, MIXED[name]), quick(max_epochs=1)).fit(X, y)
    with pytest.raises(ValueError, match=r"which is not so for \[.*0"):
        certificates(pipeline, X, scale="std", fixed_columns=[1, 2, 3, 4])


def test_columns_beside_a_mixture_keep_their_standard_deviations():
    X, y = table()
    words = np.where(y == 1, "a", "b").astype(object)[:, None]
    parts = columns(
        (make_pipeline(StandardScaler(), PCA(2)), [0, 1, 2]),
        ("passthrough", [4, 3]),
        (OneHotEncoder(sparse_output=False), [5]),
    )
    pipeline = make_pipeline(parts, quick(max_epochs=1)).fit(np.hstack([X, words]), y)
    fixed = np.isin(np.arange(6), [1, 5])
    found = standard_deviations([([pipeline[0]], pipeline[-1].feature_std_)], None, fixed)
    np.testing.assert_allclose(found[:5], np.where(fixed[:5], 1.0, X.std(axis=0)), rtol=1e-9)


class Bent(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):
        return np.tanh(X)


def test_behind_a_step_of_which_only_the_constant_is_known_no_standard_deviation_is(monkeypatch):
    monkeypatch.setattr(TRANSFORMERS, "_rules", dict(TRANSFORMERS._rules))
    register_transformer(Bent)(
        lambda _: MapBound(1.0, lambda arithmetic: Affine(arithmetic.unit, 8 * arithmetic.unit))
    )
    X, y = table()
    pipeline = make_pipeline(PCA(1), Bent(), quick(max_epochs=1)).fit(X[:, [1]], y)
    assert certificates(pipeline, X[:, [1]]).max() > 0
    with pytest.raises(ValueError, match=r"which is not so for \[0\]"):
        certificates(pipeline, X[:, [1]], scale="std")


@pytest.mark.parametrize("scaled", [False, True])
def test_constant_columns_have_no_standard_deviation(scaled):
    X, y = table()
    X[:, 3] = 0.1
    steps = [StandardScaler()] if scaled else []
    pipeline = make_pipeline(*steps, quick(max_epochs=1)).fit(X, y)
    with pytest.raises(ValueError, match=r"constant there were \[3\]"):
        certificates(pipeline, X, scale="std")
    assert (certificates(pipeline, X, scale="std", fixed_columns=[3]) > 0).any()


# -- wherever radii are asked for ----------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["std", SPREAD], ids=["std", "array"])
def test_scorers_displays_and_wrapped_estimators_take_a_scale(scale):
    X, y = table(2)
    pipeline = make_pipeline(StandardScaler(), quick(max_epochs=20)).fit(X, y)
    labels, radii = predict_with_radii(pipeline, X, scale=scale)
    np.testing.assert_array_equal(radii, certificates(pipeline, X, scale=scale))
    np.testing.assert_array_equal(labels, pipeline.predict(X))
    right = labels == y
    certified = certified_accuracy_scorer(eps=0.1, scale=scale)
    assert certified(pipeline, X, y) == pytest.approx((right & (radii > 0.1)).mean())
    average = average_certified_radius_scorer(scale=scale)
    assert average(pipeline, X, y) == pytest.approx((right * radii).mean())
    for scorer in (certified, average):
        assert pickle.loads(pickle.dumps(scorer))(pipeline, X, y) == scorer(pipeline, X, y)
        assert clone(scorer)(pipeline, X, y) == scorer(pipeline, X, y)
    assert "scale=" in repr(certified)
    display = CertifiedAccuracyDisplay.from_estimator(pipeline, X, y, scale=scale)
    assert display.eps[-1] == pytest.approx(1.02 * radii.max())
    search = GridSearchCV(pipeline, {"lipschitzclassifier__tau": [1.0]}, scoring=certified, cv=2).fit(
        X, y
    )
    assert certificates(search, X, scale=scale).max() > 0
    calibrated = CalibratedClassifierCV(FrozenEstimator(pipeline), method="temperature", ensemble=False)
    calibrated.fit(X, y)
    np.testing.assert_allclose(certificates(calibrated, X, scale=scale), radii, rtol=1e-6, atol=1e-9)


# -- the warning -------------------------------------------------------------------------------------


def test_a_column_that_limits_all_radii_is_named_once_with_the_remedy(frame, monkeypatch):
    monkeypatch.setattr("sklip.certification.chains._WARNED", set())
    X, y = frame
    X = X[list("abcde")]
    pipeline = make_pipeline(StandardScaler(), quick(max_epochs=1)).fit(X, y)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for rows in (X, X[:50], X[10:20]):
            certificates(pipeline, rows)
            predict_with_radii(pipeline, rows)
    (warning,) = caught
    assert warning.category is UserWarning
    assert warning.filename == __file__
    assert "column 'a'" in str(warning.message)
    assert "scale='std'" in str(warning.message)
    # Warnings are errors here.
    monkeypatch.setattr("sklip.certification.chains._WARNED", set())
    certificates(pipeline, X, scale="std")
    certificates(pipeline, X, scale=np.ones(5))
    certificates(pipeline, X, fixed_columns=["a", "b"])
    certified_ranges(pipeline, X)


def test_columns_of_like_gains_are_no_reason_to_warn():
    X, y = table()
    X = X / SPREAD
    certificates(make_pipeline(StandardScaler(), quick(max_epochs=1)).fit(X, y), X)
    certificates(make_pipeline(quick(max_epochs=1)).fit(X * SPREAD, y), X * SPREAD)
