"""Linear classifiers in exact arithmetic: inside the radius no class changes, just beyond it does."""

from fractions import Fraction

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sklip import LipschitzClassifier

N_POINTS = 1000


def dyadic(values):
    """Integers n and a shift s such that the floats are exactly n / 2**s."""
    ratios = [float(value).as_integer_ratio() for value in np.ravel(values)]
    shift = max(denominator.bit_length() for _, denominator in ratios) - 1
    numbers = [n << (shift + 1 - denominator.bit_length()) for n, denominator in ratios]
    return np.array(numbers, dtype=object).reshape(np.shape(values)), shift


def exact_scores(network, X):
    """Logits of the stored weights, times a common power of 2: two of them for a binary problem."""
    center, linear = network
    rows, row_shift = dyadic(np.vstack([X, center.center.double().numpy()]))
    weight, weight_shift = dyadic(linear.weight.double().numpy())
    bias, bias_shift = dyadic(linear.bias.double().numpy())
    scores = (rows[:-1] - rows[-1]) @ weight.T
    scores = scores * 2**bias_shift + bias * 2 ** (row_shift + weight_shift)
    return np.hstack([-scores, scores]) if scores.shape[1] == 1 else scores


def exactly_keeps(network, X, codes):
    """Whether the exact logit of the given class is above all others."""
    scores = exact_scores(network, X)
    own = np.take_along_axis(scores, codes[:, None], axis=1)
    return ((own > scores) | (np.arange(scores.shape[1]) == codes[:, None])).all(axis=1)


def strictly_inside(X, moved, radii):
    """Whether the exact distance is below the radius."""
    both, shift = dyadic(np.stack([X, moved]))
    squared = ((both[1] - both[0]) ** 2).sum(axis=1)
    return np.array(
        [Fraction(n, 4**shift) < Fraction(r) ** 2 for n, r in zip(squared, radii.tolist(), strict=True)]
    )


def nearest_class_directions(clf, X, codes):
    """Unit vectors from each row towards the class that limits its radius."""
    weight = clf.to_torch()[-1].weight.double().numpy()
    if len(weight) == 1:
        directions = np.where(codes[:, None] == 1, -weight, weight)
    else:
        logits = clf.decision_function(X).astype(np.float64)
        margins = logits.max(axis=1, keepdims=True) - logits
        bounds = np.where(np.eye(len(weight)), np.inf, clf.certified_network_.margin_bounds)[codes]
        nearest = np.where(np.isinf(bounds), np.inf, margins / bounds).argmin(axis=1)
        directions = weight[nearest] - weight[codes]
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


# In float32 the charge for rounding takes 0.1 % of the median radius and 1.2 % of one in twenty.
@pytest.mark.parametrize(
    ("dtype", "factor"), [("float64", 1.001), ("float32", 1.02)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("binary", [False, True], ids=["ten classes", "two classes"])
def test_a_linear_classifier(binary, dtype, factor):
    X, y = load_digits(return_X_y=True)
    y = y > 4 if binary else y
    clf = LipschitzClassifier(hidden_layer_sizes=(), dtype=dtype, max_epochs=20, random_state=0)
    clf.fit(X, y)
    X = X[clf.certificates_(X) > 0][:N_POINTS]
    assert len(X) == N_POINTS
    radii, labels, network = clf.certificates_(X), clf.predict(X), clf.to_torch()
    codes = np.searchsorted(clf.classes_, labels)
    assert exactly_keeps(network, X, codes).all()
    directions = nearest_class_directions(clf, X, codes)

    steps = (1 - 1e-12) * radii
    moved = X + steps[:, None] * directions
    # The sum is rounded: a step may come out longer than it was meant.
    while not (inside := strictly_inside(X, moved, radii)).all():
        steps[~inside] *= 1 - 1e-12
        moved = X + steps[:, None] * directions
    assert (steps > (1 - 1e-9) * radii).all()
    assert exactly_keeps(network, moved, codes).all()
    assert (clf.predict(moved) == labels).all()

    beyond = X + factor * radii[:, None] * directions
    flips = ~exactly_keeps(network, beyond, codes)
    assert flips.mean() >= 0.95
    assert (clf.predict(beyond) != labels).mean() >= 0.95
