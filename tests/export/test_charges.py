"""The radius of a file against exact arithmetic, and where rounding decides."""

from fractions import Fraction

import numpy as np
import pytest
from sklearn.datasets import load_iris, load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from sklip import LipschitzClassifier, layers, to_onnx

X, y = load_iris(return_X_y=True)


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8, 4), "max_epochs": 20, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


def fractions(array):
    return np.vectorize(Fraction, otypes=[object])(np.asarray(array, dtype=np.float64))


def exact_logits(clf, rows):
    values = fractions(rows)
    for layer in clf.to_torch():
        if isinstance(layer, layers.Center):
            values = values - fractions(layer.center)
        elif isinstance(layer, layers.GroupSort2):
            values = np.sort(values.reshape(len(values), -1, 2), axis=2).reshape(len(values), -1)
        else:
            values = values @ fractions(layer.weight).T + fractions(layer.bias)
    return values


@pytest.mark.parametrize("optimised", [True, False])
def test_the_radius_is_below_the_exact_margin_over_the_constant(optimised, tmp_path, run):
    pipeline = make_pipeline(StandardScaler(), quick()).fit(X, y)
    to_onnx(pipeline, tmp_path / "iris.onnx", scale=np.full(4, 0.5))
    rows, (scaler, clf) = X[::10], pipeline
    found = run(tmp_path / "iris.onnx", rows, optimised=optimised)
    scaled = (fractions(rows) - fractions(scaler.mean_)) / fractions(scaler.scale_)
    logits = exact_logits(clf, scaled)
    assert (found["label"] == logits.argmax(axis=1)).all()
    # Two scalings and the first layer are one matrix; then a norm, then distances of rows.
    first, second, head = (layer.weight.numpy() for layer in list(clf.to_torch())[1::2])
    body = np.linalg.norm(first * 0.5 / scaler.scale_, ord=2) * np.linalg.norm(second, ord=2)
    for row, label, radius in zip(logits, found["label"], found["radius"], strict=True):
        others = [j for j in range(3) if j != label]
        limits = [
            float(row[label] - row[j]) / (body * np.linalg.norm(head[label] - head[j])) for j in others
        ]
        assert radius < min(limits) * (1 + 1e-13)
        assert radius > min(limits) * (1 - 1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("steps", "offset"),
    [((), 0.0), ((StandardScaler(),), 0.0), ((MinMaxScaler(),), 1e6)],
    ids=["network", "StandardScaler", "far from zero"],
)
def test_no_radius_reaches_the_other_side_however_near_that_is(steps, offset, dtype, tmp_path, opened):
    """Halving the way between rows of two labels, down to numbers that are neighbours."""
    rows, labels = load_wine(return_X_y=True)
    rows = rows + offset
    estimator = make_pipeline(*steps, quick(dtype=dtype)).fit(rows, labels)
    to_onnx(estimator, tmp_path / "wine.onnx", scale=np.ones(13))
    answers = opened(tmp_path / "wine.onnx")
    first = np.array(
        [rows[labels == i][j] for i, j in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]]
    )
    last = first[[2, 4, 4, 5, 0, 1]]
    found = answers(np.concatenate([first, last]))["label"]
    start, differ = found[:6], found[:6] != found[6:]
    first, last, start = first[differ], last[differ], start[differ]
    assert len(start) >= 3
    for _ in range(70):
        found = answers(np.concatenate([first, last]))
        apart = np.linalg.norm(first - last, axis=1)
        assert (found["radius"] <= np.tile(apart, 2)).all()
        middle = first + (last - first) / 2
        same = answers(middle)["label"] == start
        first, last = np.where(same[:, None], middle, first), np.where(same[:, None], last, middle)
    assert (apart < 1e-8).all()
    assert (found["radius"] == 0).all()
