"""One seed, one model: whatever watches, whoever fits beside, and however the rows lie in memory."""

import numpy as np
import pandas as pd
import pytest
from skorch.callbacks import Callback

from sklip import LipschitzClassifier

KINDS = {
    "table": {"dtype": "float64", "batch_size": 64},
    "table in float32": {"dtype": "float32"},
    "images": {"input_shape": (1, 8, 8), "conv_channels": (4,), "batch_size": 64},
}


def quick(**parameters):
    return LipschitzClassifier(
        **{"hidden_layer_sizes": (16,), "max_epochs": 2, "random_state": 0, **parameters}
    )


def weights(clf):
    return np.concatenate([value.numpy().ravel() for value in clf.to_torch().state_dict().values()])


class Watching(Callback):
    def on_batch_end(self, net, **_):
        self.last = net.history[-1]


LAYOUTS = {
    "columns first": np.asfortranarray,
    "strided": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "backwards": lambda X: X[::-1].copy()[::-1],
    "float32": lambda X: X.astype(np.float32),
    "bytes": lambda X: X.astype(np.uint8),
    "frame": pd.DataFrame,
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_watches_and_how_rows_lie_changes_no_bit(kind, few_digits, capsys):
    X, y = few_digits
    clf = quick(**kind).fit(X, y)
    expected, radii = weights(clf), clf.certificates_(X)
    for watching in ({"verbose": 1}, {"callbacks": [("watching", Watching())]}):
        np.testing.assert_array_equal(weights(quick(**kind, **watching).fit(X, y)), expected)
    for name, layout in LAYOUTS.items():
        other = quick(**kind).fit(layout(X), y)
        np.testing.assert_array_equal(weights(other), expected, err_msg=name)
        np.testing.assert_array_equal(other.certificates_(layout(X)), radii, err_msg=name)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_labels_are_the_same_in_any_company_and_radii_up_to_rounding(kind, few_digits):
    X, y = few_digits
    clf = quick(**kind).fit(X, y)
    labels, radii = clf.predict_with_radii(X)
    order = np.random.default_rng(0).permutation(len(X))
    # Sums of a few dozen terms in another order; logits are of the size of a row.
    tolerance = 1e-12 if clf.dtype_ == "float64" else 1e-6 * np.linalg.norm(X, axis=1).max()
    for n_rows in (1, 2, 7):
        pieces = [clf.predict_with_radii(X[rows]) for rows in np.array_split(order, len(X) // n_rows)]
        found, at = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        np.testing.assert_array_equal(found, labels[order])
        np.testing.assert_allclose(at, radii[order], rtol=0, atol=tolerance)
