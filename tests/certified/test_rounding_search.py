"""Random search among neighbouring floats at the certified boundary, as in arXiv 2205.10159.

Rows of length 4e4 whose margins are a few rounding errors of float64: there, radii without the charge
for rounding are wrong, and the search finds it; with the charge it must find nothing. Rows in float32
are not as close to each other as these radii; their margins are a few errors of float32, which decides
nothing there.
"""

from fractions import Fraction

import numpy as np
import pytest
import torch

from sklip import LipschitzClassifier
from sklip.certified import certified_radii

N_FEATURES = 16
N_ROWS = 40
# Per row, architecture, precision and kind of radius; about half of them lie inside.
N_TRIES = 5000


def fit(dtype, hidden_layer_sizes):
    rng = np.random.default_rng(0)
    X = 1e4 * rng.normal(size=(300, N_FEATURES))
    y = X[:, :3].argmax(axis=1)
    # As wide as the rows are long, orthogonal layers keep gradients as long as allowed; in several
    # batches columns have no weights, which would shorten them.
    return LipschitzClassifier(
        hidden_layer_sizes=hidden_layer_sizes,
        dtype=dtype,
        max_epochs=20,
        batch_size=256,
        random_state=0,
    ).fit(X, y)


def limiting_pair(clf, X):
    """Predicted class, and the class that limits the radius."""
    logits = clf.decision_function(X).astype(np.float64)
    codes = logits.argmax(axis=1)
    margins = logits.max(axis=1, keepdims=True) - logits
    bounds = np.where(np.eye(logits.shape[1]), 1.0, clf.certified_network_.margin_bounds)[codes]
    margins[np.arange(len(X)), codes] = np.inf
    return codes, (margins / bounds).argmin(axis=1)


def worst_directions(clf, X):
    """Unit vectors down the gradient of the margin that limits each radius."""
    codes, rivals = (torch.from_numpy(c)[:, None] for c in limiting_pair(clf, X))
    points = torch.from_numpy(X.astype(np.float64)).requires_grad_()
    logits = clf.to_torch().double()(points)
    (logits.gather(1, rivals) - logits.gather(1, codes)).sum().backward()
    return (points.grad / points.grad.norm(dim=1, keepdim=True)).numpy()


def rows_near_the_boundary(clf, dtype, rng):
    """Rows whose margins are between a twentieth and ten times what `dtype` may lose of them."""
    rows = 1e4 * rng.normal(size=(20 * N_ROWS, N_FEATURES))
    one, other = rows[::2], rows[1::2]
    differ = clf.predict(one) != clf.predict(other)
    one, other = one[differ][:N_ROWS], other[differ][:N_ROWS]
    labels = clf.predict(one)
    for _ in range(80):
        middle = (one + other) / 2
        same = (clf.predict(middle) == labels)[:, None]
        one, other = np.where(same, middle, one), np.where(same, other, middle)
    precisions = {p.arithmetic.dtype: p for p in clf.certified_network_.precisions}
    charge = 2 * precisions[dtype].from_length.slope.max() * np.linalg.norm(one, axis=1)
    margins = charge * np.geomspace(0.05, 10, len(one))
    return (one - worst_directions(clf, one) * (margins / 2**0.5)[:, None]).astype(dtype)


def neighbours(points, directions, rng):
    """The nearest floats, in random coordinates."""
    outward = np.where(rng.random((len(points), 1)) < 0.5, directions, rng.normal(size=points.shape))
    moved = np.nextafter(points, np.copysign(np.inf, outward).astype(points.dtype))
    chosen = rng.random(points.shape) < rng.random((len(points), 1))
    return np.where(chosen, moved, points)


def surely_inside(X, moved, radii):
    """Whether the exact distance is below the radius: False where rounding leaves a doubt."""
    squared = ((moved.astype(np.float64) - X.astype(np.float64)) ** 2).sum(axis=1)
    # Differences, squares, the sum and the radius' square: fewer roundings than this many.
    return squared * (1 + (N_FEATURES + 8) * 2.0**-53) < radii**2


def exactly_inside(x, moved, radius):
    pairs = zip(x.tolist(), moved.tolist(), strict=True)
    return sum((Fraction(a) - Fraction(b)) ** 2 for a, b in pairs) < Fraction(float(radius)) ** 2


def search(clf, X, radii, rng):
    """Tries inside the radii, and which rows and points changed the class."""
    X, labels, radii, directions = (
        np.repeat(values[radii > 0], N_TRIES, axis=0)
        for values in (X, clf.predict(X), radii, worst_directions(clf, X))
    )
    shares = 1 - 10 ** rng.uniform(-9, -0.5, size=len(X))
    points = X + (directions * (shares * radii)[:, None])
    moved = neighbours(points.astype(X.dtype), directions, rng)
    inside = surely_inside(X, moved, radii)
    X, labels, moved, radii = (values[inside] for values in (X, labels, moved, radii))
    found = clf.predict(moved) != labels
    return len(X), X[found], moved[found], radii[found]


@pytest.mark.slow
@pytest.mark.parametrize("hidden_layer_sizes", [(), (N_FEATURES, N_FEATURES)], ids=["linear", "dense"])
@pytest.mark.parametrize(
    ("dtype", "row_dtype"), [("float32", "float32"), ("float32", "float64"), ("float64", "float64")]
)
def test_only_radii_without_the_charge_are_broken(dtype, row_dtype, hidden_layer_sizes):
    rng = np.random.default_rng(0)
    clf = fit(dtype, hidden_layer_sizes)
    X = rows_near_the_boundary(clf, row_dtype, rng)
    if row_dtype == "float64":
        network = clf.certified_network_
        uncharged = certified_radii(network.decisions(X).logits, network.margin_bounds)
        n_inside, rows, moved, radii = search(clf, X, uncharged, rng)
        confirmed = [exactly_inside(*example) for example in zip(rows[:20], moved, radii, strict=False)]
        assert all(confirmed)
        assert len(rows) > 0.01 * n_inside

    charged = clf.certificates_(X)
    n_inside, rows, *_ = search(clf, X, charged, rng)
    assert len(rows) == 0
    # Six such tests make more than two hundred thousand tries.
    assert n_inside > 200_000 / 6
