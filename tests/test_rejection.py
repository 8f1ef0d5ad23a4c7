"""Predictions that abstain, and the classes that limit radii."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklip import (
    LipschitzClassifier,
    certificates,
    nearest_rival,
    predict_or_reject,
    predict_with_radii,
)

# Tables have columns that count far more than others.
pytestmark = pytest.mark.filterwarnings("ignore:The steps enlarge a change of column")


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 5, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


@pytest.fixture(scope="module")
def fitted(few_digits):
    return make_pipeline(StandardScaler(), quick()).fit(*few_digits)


def test_rows_with_a_radius_of_at_most_eps_are_rejected_and_no_other(fitted, few_digits):
    X = few_digits[0]
    labels, radii = predict_with_radii(fitted, X)
    for eps in (0.0, float(np.median(radii)), float(radii.max())):
        answers = predict_or_reject(fitted, X, eps, reject_label=-1)
        np.testing.assert_array_equal(answers, np.where(radii > eps, labels, -1))
    assert (answers == -1).all()
    assert answers.dtype == labels.dtype


def test_fixed_columns_are_passed_on(fitted, few_digits):
    X, fixed = few_digits[0], range(40)
    radii = certificates(fitted, X, fixed_columns=fixed)
    eps = float(np.median(radii))
    answers = predict_or_reject(fitted, X, eps, reject_label=-1, fixed_columns=fixed)
    np.testing.assert_array_equal(answers == -1, radii <= eps)


@pytest.mark.parametrize(
    ("classes", "reject_label", "dtype"),
    [
        (np.array([0, 1]), -1, np.int64),
        (np.array([0, 1]), np.int64(-1), np.int64),
        (np.array([0, 1], dtype=np.uint8), -1, np.int16),
        (np.array([0, 1], dtype=np.uint8), np.int64(-1), np.int16),
        (np.array([0, 1], dtype=np.uint8), 255, np.uint8),
        (np.array([0, 1], dtype=np.int8), 1000, np.int32),
        (np.array([0.0, 1.0]), -1, np.float64),
        (np.array([0.0, 1.0]), math.nan, np.float64),
        (np.array([0.0, 1.0]), np.int64(-1), np.float64),
        (np.array([0.0, 1.0]), np.float32(0.5), np.float64),
        (np.array(["no", "yes"]), "can't say", np.dtype("<U9")),
        (np.array(["no", "certainly"]), "?", np.dtype("<U9")),
        (np.array(["no", "yes"], dtype=object), None, object),
        (np.array(["no", "yes"], dtype=object), -1, object),
    ],
)
def test_the_type_of_the_classes_is_kept_or_made_wider(few_digits, classes, reject_label, dtype):
    X, y = few_digits[0], classes[few_digits[1] % 2]
    clf = quick(max_epochs=2).fit(X, y)
    labels, radii = predict_with_radii(clf, X)
    eps = float(np.median(radii))
    answers = predict_or_reject(clf, X, eps, reject_label=reject_label)
    assert answers.dtype == dtype
    assert answers[radii > eps].tolist() == labels[radii > eps].tolist()
    rejected = answers[radii <= eps].tolist()
    assert all(
        each == reject_label or (each != each and reject_label != reject_label) for each in rejected
    )


@pytest.mark.parametrize(
    ("classes", "reject_label"),
    [
        (np.array([0, 1]), "reject"),
        (np.array([0, 1]), None),
        (np.array([0, 1]), 0.5),
        (np.array([0, 1]), math.nan),
        (np.array([0, 1]), 10**30),
        (np.array([0.0, 1.0]), 1j),
        (np.array(["no", "yes"]), -1),
        (np.array(["no", "yes"]), None),
        (np.array([False, True]), -1),
        (np.array([2, 3]), False),
        (np.array([0, 1]), torch.zeros(9)),
        (np.array([0, 1]), np.zeros(9)),
    ],
)
def test_a_label_of_another_kind_is_refused(few_digits, classes, reject_label):
    X, y = few_digits[0], classes[few_digits[1] % 2]
    clf = quick(max_epochs=1).fit(X, y)
    with pytest.raises(TypeError, match="reject_label must"):
        predict_or_reject(clf, X, 0.1, reject_label=reject_label)


def test_a_label_that_is_a_class_is_refused(fitted, few_digits):
    with pytest.raises(ValueError, match="must not be one of the classes"):
        predict_or_reject(fitted, few_digits[0], 0.1, reject_label=3)


@pytest.mark.parametrize("eps", [-0.1, math.nan])
def test_a_distance_out_of_range_is_refused(fitted, few_digits, eps):
    with pytest.raises(ValueError, match="eps"):
        predict_or_reject(fitted, few_digits[0], eps, reject_label=-1)


def test_an_estimator_without_certificates_is_refused(few_digits):
    model = LogisticRegression(max_iter=5000).fit(few_digits[0] / 16, few_digits[1])
    with pytest.raises(TypeError, match="gives no certificates"):
        predict_or_reject(model, few_digits[0], 0.1, reject_label=-1)


# -- rivals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [False, True])
def test_the_rival_has_the_smallest_quotient_of_margin_and_bound(few_digits, words):
    X, y = few_digits
    y = np.array([f"digit {label}" for label in y]) if words else y
    clf = quick(hidden_layer_sizes=()).fit(X, y)
    rivals, radii, labels = nearest_rival(clf, X), clf.certificates_(X), clf.predict(X)
    logits, bounds = clf.decision_function(X), clf.certified_network_.margin_bounds
    top = logits.argmax(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotients = (logits[np.arange(len(X)), top][:, None] - logits) / bounds[top]
    quotients[np.arange(len(X)), top] = np.inf
    np.testing.assert_array_equal(rivals, clf.classes_[quotients.argmin(axis=1)])
    assert rivals.dtype == clf.classes_.dtype
    assert (rivals != labels).all()
    # A linear classifier: a step just beyond the radius, toward that class, arrives there.
    weight = clf.to_torch()[-1].weight.detach().double().numpy()
    codes = np.searchsorted(clf.classes_, rivals)
    toward = weight[codes] - weight[top]
    toward *= (radii * 1.0001 / np.linalg.norm(toward, axis=1))[:, None]
    np.testing.assert_array_equal(clf.predict(X + toward), rivals)


def test_of_two_classes_the_rival_is_the_other(few_digits):
    X, y = few_digits
    clf = quick().fit(X, np.where(y > 4, "high", "low"))
    labels = clf.predict(X)
    assert ((nearest_rival(clf, X) == "high") == (labels == "low")).all()


def constant(input_shape, n_outputs):
    """A network that ignores its input."""
    layer = nn.Linear(*input_shape, n_outputs)
    nn.init.zeros_(layer.weight)
    return nn.Sequential(layer)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_where_no_class_can_be_reached_the_rival_is_the_label_itself(n_classes):
    X = np.random.default_rng(0).normal(size=(60, 4))
    clf = quick(architecture=constant, loss=Still(), max_epochs=1)
    clf.fit(X, np.arange(60) % n_classes)
    labels, radii = predict_with_radii(clf, X)
    assert (radii > 1e10).all()
    np.testing.assert_array_equal(nearest_rival(clf, X), labels)


class Still(nn.Module):
    """A loss without a gradient."""

    def forward(self, outputs, targets, sample_weight=None):
        return 0.0 * outputs.sum()


def without_bias(input_shape, n_outputs):
    return nn.Sequential(nn.Linear(*input_shape, n_outputs, bias=False))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_where_the_radius_is_0_the_rival_is_another_class(n_classes):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 2))
    clf = quick(architecture=without_bias).fit(X, np.arange(90) % n_classes)
    labels, radii = predict_with_radii(clf, np.zeros((3, 2)))
    assert not radii.any()  # all logits are 0
    assert (nearest_rival(clf, np.zeros((3, 2))) != labels).all()
