"""Certificates of tuned and fixed thresholds, under attack in raw units."""

import math

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import f1_score, make_scorer
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklip import (
    LipschitzClassifier,
    certificates,
    nearest_rival,
    predict_with_radii,
)

# Tables have columns that count far more than others.
pytestmark = pytest.mark.filterwarnings("ignore:The steps enlarge a change of column")


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 10, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


@pytest.fixture(scope="module")
def table():
    X, y = load_digits(return_X_y=True)
    X = X[:300, 2:40] + np.random.default_rng(0).normal(size=(300, 38))
    return X, y[:300] > 4


@pytest.fixture(scope="module")
def linear(table):
    """Linear classifiers behind a scaler, and in float64 their logits' gradient in raw units."""
    fitted = {}
    for dtype in ("float32", "float64"):
        model = quick(hidden_layer_sizes=(), max_epochs=30, dtype=dtype)
        fitted[dtype] = make_pipeline(StandardScaler(), model).fit(*table)
    return fitted


def exact_logits(pipeline, X):
    network = pipeline[-1].to_torch().double()
    weight, bias = np.zeros(X.shape[1]), 0.0
    rows = pipeline[0].transform(X)
    for layer in network:
        if hasattr(layer, "weight"):
            weight, bias = layer.weight.numpy()[0], layer.bias.numpy()[0]
        elif hasattr(layer, "bias"):
            rows = rows + layer.bias.numpy()
        else:
            assert type(layer).__name__ in ("Flatten", "Identity", "Center"), layer
    return rows @ weight + bias, weight / pipeline[0].scale_


LOGIT_THRESHOLDS = [-0.4, 0.0, 0.1, 1.3]
PROBABILITY_THRESHOLDS = [0.02, 0.3, 0.5, 0.501, 0.97]
CASES = [
    *(("decision_function", threshold) for threshold in LOGIT_THRESHOLDS),
    *(("predict_proba", threshold) for threshold in PROBABILITY_THRESHOLDS),
]


@pytest.mark.parametrize("positive", [None, False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("method", "threshold"), CASES)
def test_the_shortest_way_to_a_threshold_is_certified_and_no_longer_one(
    linear, table, method, threshold, dtype, positive
):
    X, pipeline = table[0], linear[dtype]
    estimator = FixedThresholdClassifier(
        FrozenEstimator(pipeline), threshold=threshold, response_method=method, pos_label=positive
    ).fit(*table)
    labels, radii = predict_with_radii(estimator, X)
    np.testing.assert_array_equal(labels, estimator.predict(X))
    logits, gradient = exact_logits(pipeline, X)
    boundary = threshold
    if method == "predict_proba":
        boundary = (math.log(threshold) - math.log1p(-threshold)) / pipeline[-1].tau_
    boundary = -boundary if positive is False else boundary
    length = np.linalg.norm(gradient)
    distances = np.abs(logits - boundary) / length
    assert (radii <= distances * (1 + 1e-9)).all()
    # One unit of a probability is up to 50 of its logit; logits are up to 10.
    allowed = 1e4 * np.finfo(dtype).eps / length
    assert (radii >= distances * (1 - 1e-6) - allowed).all()
    toward = -np.sign(logits - boundary)[:, None] * gradient / length
    inside = X + toward * radii[:, None] * (1 - 1e-9)
    assert (estimator.predict(inside) == labels).all()
    beyond = X + toward * (radii * (1 + 1e-5) + 2 * allowed)[:, None]
    assert (estimator.predict(beyond) != labels).all()
    assert (radii > 0).mean() > 0.95
    rivals = nearest_rival(estimator, X)
    np.testing.assert_array_equal(rivals, ~labels)


@pytest.mark.parametrize("method", ["decision_function", "predict_proba"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_as_close_to_a_threshold_as_rounding_do_not_flip(method, dtype):
    """Of rows some errors of the network's precision from the threshold, some are certified."""
    rng = np.random.default_rng(0)
    X = 1e4 * rng.normal(size=(300, 4))
    model = quick(hidden_layer_sizes=(), dtype=dtype, max_epochs=20).fit(X, X[:, 0] > 0)
    gradient = model.to_torch()[-1].weight.double().numpy()
    # A logit so small that x is evaluated in float64, and so large that scores at x' are in float32.
    threshold = 1.0 if method == "decision_function" else 0.9
    estimator = FixedThresholdClassifier(
        FrozenEstimator(model), threshold=threshold, response_method=method
    ).fit(X, X[:, 0] > 0)
    one, other = 1e4 * rng.normal(size=(2, 3000, 4))
    labels = estimator.predict(one)
    apart = estimator.predict(other) != labels
    one, other, labels = one[apart], other[apart], labels[apart]
    # From far below the errors of logits to far above.
    closest = 1e5 * np.finfo(dtype).eps * 10 ** rng.uniform(0, 4, size=(len(one), 1))
    for _ in range(60):
        middle = (one + other) / 2
        same = (estimator.predict(middle) == labels)[:, None]
        further = np.linalg.norm(one - other, axis=1, keepdims=True) > closest
        one, other = np.where(same & further, middle, one), np.where(~same & further, middle, other)
    radii = certificates(estimator, one)
    certain = radii > 0
    assert 0.02 < certain.mean() < 0.98
    # The shortest way, of which rounding is all that is left; and others.
    toward = np.where(labels, -1, 1)[:, None] * gradient
    for direction in (toward, -toward, other - one, *rng.normal(size=(5, *one.shape))):
        step = direction * ((1 - 1e-6) * radii / np.linalg.norm(direction, axis=1))[:, None]
        assert (estimator.predict(one + step) == labels)[certain].all()


@pytest.mark.parametrize("method", ["decision_function", "predict_proba"])
@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("inside", [False, True], ids=["around the pipeline", "in the pipeline"])
def test_random_steps_within_the_radius_of_a_tuned_threshold_never_flip(table, words, inside, method):
    X, y = table
    y = np.where(y, "a", "b") if words else y.astype(int)
    scoring = make_scorer(f1_score, pos_label="a" if words else 1)
    settings = {"cv": 2, "scoring": scoring, "response_method": method}
    if inside:
        estimator = make_pipeline(StandardScaler(), TunedThresholdClassifierCV(quick(), **settings))
    else:
        estimator = TunedThresholdClassifierCV(make_pipeline(StandardScaler(), quick()), **settings)
    estimator.fit(X, y)
    labels, radii = predict_with_radii(estimator, X)
    np.testing.assert_array_equal(labels, estimator.predict(X))
    assert labels.dtype == y.dtype
    assert (radii > 0).mean() > 0.95
    rng = np.random.default_rng(0)
    scores = getattr(estimator, method)(X)
    # Steps along differences of rows: toward the other side, if there is one.
    for _ in range(30):
        steps = X[rng.permutation(len(X))] - X + 1e-3 * rng.normal(size=X.shape)
        steps *= (1 - 1e-9) * (radii / np.linalg.norm(steps, axis=1))[:, None]
        assert (estimator.predict(X + steps) == labels).all()
    assert len(scores) == len(X)
    inner = estimator[-1].estimator_ if inside else estimator.estimator_
    plain = make_pipeline(estimator[0], inner) if inside else inner
    assert (certificates(plain, X) != radii).any()


def test_fixed_columns_reach_through_a_threshold(linear, table):
    pipeline, fixed = linear["float64"], range(20)
    estimator = FixedThresholdClassifier(
        FrozenEstimator(pipeline), threshold=0.1, response_method="decision_function"
    ).fit(*table)
    radii = certificates(estimator, table[0], fixed_columns=fixed)
    logits, gradient = exact_logits(pipeline, table[0])
    distances = np.abs(logits - 0.1) / np.linalg.norm(gradient[20:])
    np.testing.assert_allclose(radii, distances, rtol=1e-6, atol=1e-9)


def thresholded(model, **parameters):
    X = np.zeros((2, 2))
    return FixedThresholdClassifier(FrozenEstimator(model), **parameters).fit(X, [0, 1])


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    return quick(hidden_layer_sizes=()).fit(X, (X[:, 0] > 0).astype(int)), X


@pytest.mark.parametrize(
    ("method", "threshold", "label"),
    [
        ("decision_function", math.inf, 0),
        ("decision_function", -math.inf, 1),
        ("predict_proba", 0.0, 1),
        ("predict_proba", -3, 1),
        ("predict_proba", 1.01, 0),
    ],
)
def test_where_one_label_is_given_to_all_only_overflow_limits_the_radius(
    small, method, threshold, label
):
    model, X = small
    estimator = thresholded(model, threshold=threshold, response_method=method)
    labels, radii = predict_with_radii(estimator, X)
    assert (labels == label).all()
    assert (radii > 1e10).all()
    np.testing.assert_array_equal(nearest_rival(estimator, X), labels)
    far = X + 0.7 * np.minimum(radii, 1e300)[:, None] * [[1, -1]]
    assert (estimator.predict(far) == label).all()


def test_a_probability_of_1_certifies_nobody_to_have_reached_it(small):
    model, X = small
    labels, radii = predict_with_radii(thresholded(model, threshold=1.0), X)
    assert (radii[labels == 1] == 0).all()
    assert (radii[labels == 0] > 0).any()


def test_rows_on_the_threshold_itself_have_radius_0(small):
    model, X = small
    for value in model.decision_function(X)[:5]:
        estimator = thresholded(model, threshold=value, response_method="decision_function")
        assert certificates(estimator, X)[model.decision_function(X) == value].tolist() == [0.0]


def test_automatic_thresholds_are_those_of_the_classifier(small):
    model, X = small
    for method in ("auto", "predict_proba", "decision_function"):
        radii = certificates(thresholded(model, response_method=method), X)
        np.testing.assert_allclose(radii, model.certificates_(X), rtol=1e-6, atol=1e-12)
        assert (radii <= model.certificates_(X)).all()


def test_a_threshold_around_a_search_or_inside_one(table):
    search = GridSearchCV(make_pipeline(StandardScaler(), quick()), {}, cv=2).fit(*table)
    around = FixedThresholdClassifier(FrozenEstimator(search), threshold=0.2).fit(*table)
    inner = FixedThresholdClassifier(FrozenEstimator(search.best_estimator_), threshold=0.2)
    expected = certificates(inner.fit(*table), table[0])
    assert expected.max() > 0
    np.testing.assert_array_equal(certificates(around, table[0]), expected)
    within = GridSearchCV(FixedThresholdClassifier(quick()), {"threshold": [0.1, 0.4]}, cv=2)
    within.fit(*table)
    np.testing.assert_array_equal(
        certificates(within, table[0]), certificates(within.best_estimator_, table[0])
    )


def test_scores_of_a_threshold_are_handed_on(small):
    """A threshold within a threshold: the outer one alone decides."""
    model, X = small
    inner = thresholded(model, threshold=0.9)
    outer = FixedThresholdClassifier(FrozenEstimator(inner), threshold=0.3).fit(X[:2], [0, 1])
    expected = thresholded(model, threshold=0.3)
    np.testing.assert_array_equal(certificates(outer, X), certificates(expected, X))


# -- what is refused -----------------------------------------------------------------------------


def test_a_threshold_on_calibrated_probabilities_is_refused(table):
    calibrated = CalibratedClassifierCV(quick(), method="temperature", ensemble=False, cv=2)
    estimator = FixedThresholdClassifier(calibrated, threshold=0.3).fit(*table)
    with pytest.raises(TypeError, match="CalibratedClassifierCV gives no certificates"):
        certificates(estimator, table[0])


class OtherProbabilities(LipschitzClassifier):
    def predict_proba(self, X):
        return super().predict_proba(X)[:, ::-1]


def test_other_probabilities_give_no_certificates_where_they_decide(small):
    _, X = small
    y = (X[:, 0] > 0).astype(int)
    model = OtherProbabilities(hidden_layer_sizes=(), max_epochs=2, random_state=0).fit(X, y)
    assert certificates(thresholded(model, response_method="decision_function"), X).max() > 0
    with pytest.raises(TypeError, match="has another predict_proba"):
        certificates(thresholded(model), X)
    replaced = quick(max_epochs=1).fit(X, y)
    replaced.predict_proba = lambda X: X
    with pytest.raises(TypeError, match="has another predict_proba"):
        certificates(thresholded(replaced), X)


class OtherSearch(GridSearchCV):
    def predict_proba(self, X):
        return super().predict_proba(X)[:, ::-1]


def test_a_search_with_other_probabilities_gives_none_where_they_decide(small):
    _, X = small
    search = OtherSearch(quick(max_epochs=1), {}, cv=2).fit(X, (X[:, 0] > 0).astype(int))
    assert certificates(search, X).max() > 0
    with pytest.raises(TypeError, match="OtherSearch gives no certificates"):
        certificates(thresholded(search), X)


def test_thresholds_that_are_no_numbers_are_refused(small):
    model, X = small
    estimator = thresholded(model)
    for threshold in (math.nan, None, "half"):
        estimator.threshold = threshold
        with pytest.raises(TypeError, match=r"^FixedThresholdClassifier needs a threshold"):
            certificates(estimator, X)


def test_a_label_that_is_none_is_refused(small):
    model, X = small
    with pytest.raises(ValueError, match="needs a pos_label"):
        certificates(thresholded(model, pos_label=7), X)


def test_replaced_methods_of_a_threshold_are_refused(small):
    model, X = small
    estimator = thresholded(model)
    estimator.predict = lambda X: X
    with pytest.raises(TypeError, match="has a replaced predict"):
        certificates(estimator, X)


def test_thresholds_that_are_not_fitted_are_refused_as_such(table):
    for estimator in (FixedThresholdClassifier(quick()), TunedThresholdClassifierCV(quick())):
        with pytest.raises(NotFittedError):
            certificates(estimator, table[0])
