"""Each bad input is an error that names the argument, the rule and the value."""

import re

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from sklip import LipschitzClassifier, certificates, predict_with_radii

RNG = np.random.default_rng(0)
X = RNG.random((30, 16))
Y = np.arange(30) % 3


def quick(**parameters):
    return LipschitzClassifier(**{"max_epochs": 2, "random_state": 0, **parameters})


def with_value(value):
    bad = X.copy()
    bad[3, 2] = value
    return bad


@pytest.mark.parametrize(
    ("data", "target", "message"),
    [
        (with_value(np.nan), Y, "Input X contains NaN"),
        (with_value(np.inf), Y, "Input X contains infinity"),
        (np.empty((0, 16)), np.empty(0), "Found array with 0 sample"),
        (np.empty((30, 0)), Y, "Found array with 0 feature"),
        (X, np.zeros(30), "needs samples of at least 2 classes.*only one class"),
        (X, Y[:-1], "inconsistent numbers of samples"),
        (X, Y + 0.5, "Unknown label type"),
        (X, None, "requires y to be passed, but the target y is None"),
        (np.full((30, 2), "a", dtype=object), Y, "could not convert string to float"),
        (X[:, 0], Y, "Expected 2D array, got 1D array"),
        (X.reshape(30, 2, 2, 2, 2), Y, "dim 5"),
        (RNG.random((30, 16, 16, 3)), Y, r"channels last; pass\s+input_shape=\(3, 16, 16\)"),
    ],
)
def test_bad_data(data, target, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(data, target)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (-np.ones(30), "Negative values in data passed to `sample_weight`"),
        (np.zeros(30), "sample_weight must contain at least one non-zero value"),
        (np.ones(29), r"sample_weight.shape == \(29,\), expected \(30,\)"),
        (np.ones((30, 2)), "sample_weight must be 1D"),
        (np.full(30, np.nan), "Input sample_weight contains NaN"),
        ((Y == 1).astype(float), "only one class"),
    ],
)
def test_bad_weights(weight, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(X, Y, sample_weight=weight)


@pytest.mark.parametrize(
    ("class_weight", "sample_weight", "message"),
    [
        ({0: -1.0}, None, "Negative values in data passed to `class_weight`"),
        ({0: np.nan}, None, "class_weight must have a sum that is finite .* got nan"),
        ({0: np.inf}, None, "class_weight must have a sum that is finite .* got inf"),
        ({0: 1e300}, np.full(30, 1e300), "class_weight must have a sum that is finite .* got inf"),
        ({0: 1e308, 1: 1e308}, None, "class_weight must have a sum that is finite"),
        (dict.fromkeys(range(3), 1e-300), np.full(30, 1e-300), "at least one non-zero value"),
        (dict.fromkeys(range(3), 0.0), None, "at least one non-zero value"),
    ],
)
def test_bad_weights_of_classes(class_weight, sample_weight, message):
    with pytest.raises(ValueError, match=message):
        quick(class_weight=class_weight).fit(X, Y, sample_weight=sample_weight)


def test_a_class_without_weight_is_balanced_to_none():
    weight = (Y != 1).astype(float)
    balanced = quick(class_weight="balanced").fit(X, Y, sample_weight=weight)
    plain = quick().fit(X, Y, sample_weight=weight)
    np.testing.assert_allclose(balanced.decision_function(X), plain.decision_function(X), atol=1e-9)


@pytest.mark.parametrize("classes", [[0, 1, 2, None], [0.0, 1.0, 2.0, np.nan], [0, 1, "1"]])
def test_classes_of_partial_fit_that_are_no_labels(classes):
    with pytest.raises(ValueError, match=r"classes (contains NaN|must have labels of one kind)"):
        quick().partial_fit(X, Y, classes=classes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", "cross_entropy"),
        ("tau", 0.0),
        ("tau", -1.0),
        ("tau", np.nan),
        ("eps", -0.1),
        ("eps", np.nan),
        ("loss", torch.nn.CrossEntropyLoss),
        ("alpha", -1.0),
        ("min_margin", 0.0),
        ("architecture", "resnet"),
        ("max_epochs", 0),
        ("batch_size", 0),
        ("learning_rate", -1e-3),
        ("learning_rate_schedule", "cosine"),
        ("validation_fraction", 1.0),
        ("n_iter_no_change", 0),
        ("dtype", "float16"),
        ("random_state", "zero"),
    ],
)
def test_parameters_out_of_range(name, value):
    message = rf"The '{name}' parameter of LipschitzClassifier must be .* Got .* instead"
    with pytest.raises(ValueError, match=message):
        quick(**{name: value}).fit(X, Y)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"device": "abacus"}, ValueError, "device must name a device of this machine.*'abacus'"),
        ({"hidden_layer_sizes": (5,)}, ValueError, r"hidden_layer_sizes must be positive even.*\(5,\)"),
        ({"architecture": "cnn"}, ValueError, "architecture='cnn' needs images"),
        (
            {"input_shape": (1, 4, 4), "conv_channels": (3,)},
            ValueError,
            r"conv_channels must be positive even.*\(3,\)",
        ),
        (
            {"input_shape": (1, 5, 4)},
            ValueError,
            r"X has 16 features, but input_shape=\(1, 5, 4\) needs 20",
        ),
        ({"input_shape": (16,)}, ValueError, "input_shape must be three positive integers"),
        ({"callbacks": ["print"]}, TypeError, "callbacks must be skorch callbacks.*got str"),
        ({"tau": np.inf}, ValueError, "tau"),
        ({"eps": np.inf}, ValueError, "eps"),
        *(({name: 10**400}, ValueError, f"The '{name}' parameter") for name in ("tau", "eps", "alpha")),
        ({"learning_rate": 10**400}, ValueError, "The 'learning_rate' parameter"),
        (
            {"architecture": lambda input_shape, n_outputs: torch.nn.Linear(99, n_outputs)},
            ValueError,
            r"architecture must return a network for rows of shape \(16,\), got one that fails on them",
        ),
        ({"class_weight": {0: -1.0}}, ValueError, "Negative values in data passed to `class_weight`"),
        *(
            ({"class_weight": {0: weight}}, ValueError, "class_weight must have a sum that is finite")
            for weight in (np.nan, np.inf, 1e308, None)
        ),
        (
            {"class_weight": dict.fromkeys(range(3), 0.0)},
            ValueError,
            "class_weight must contain at least one non-zero value",
        ),
    ],
)
def test_parameters_that_do_not_fit_the_data(parameters, error, message):
    with pytest.raises(error, match=message):
        quick(**parameters).fit(X, Y)


def test_a_device_that_is_not_there():
    n_cuda = torch.cuda.device_count()
    missing = f"cuda:{n_cuda}" if n_cuda else "cuda"
    available = ["cpu", *(f"cuda:{i}" for i in range(n_cuda))]
    message = re.escape(f"got '{missing}'; available are {available}")
    with pytest.raises(ValueError, match=f"device must name.*{message}"):
        quick(device=missing).fit(X, Y)


def test_balanced_classes_without_any_weight_do_not_count():
    weight = (Y > 0).astype(float)
    balanced = quick(class_weight="balanced").fit(X, Y, sample_weight=weight)
    by_hand = quick(class_weight={0: 0, 1: 1, 2: 1}).fit(X, Y)
    np.testing.assert_allclose(balanced.decision_function(X), by_hand.decision_function(X), rtol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        *(
            "predict",
            "predict_proba",
            "predict_log_proba",
            "decision_function",
            "network_rows",
            "to_torch",
        ),
        *("certificates_", "predict_with_radii", "rounding_loss"),
    ],
)
def test_an_unfitted_model_says_so(method):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(quick(), method)(*([] if method == "to_torch" else [X]))
    for function in (certificates, predict_with_radii):
        with pytest.raises(NotFittedError):
            function(quick(), X)


def test_wrong_shapes_at_predict():
    table = quick().fit(X, Y)
    with pytest.raises(ValueError, match="X has 15 features, but LipschitzClassifier is expecting 16"):
        table.predict(X[:, :15])
    with pytest.raises(ValueError, match=r"images of shape \(1, 4, 4\).*is expecting flat rows"):
        table.predict(X.reshape(30, 4, 4))
    images = quick(conv_channels=(4,), hidden_layer_sizes=(4,)).fit(X.reshape(30, 1, 4, 4), Y)
    for wrong in ((30, 2, 8), (30, 1, 2, 8), (15, 2, 4, 4)):
        with pytest.raises(ValueError, match=r"is expecting images of shape \(1, 4, 4\)"):
            images.predict(X.reshape(wrong))
    with pytest.raises(ValueError, match="contains NaN"):
        table.predict(with_value(np.nan))


def test_values_that_the_precision_cannot_hold():
    with pytest.raises(ValueError, match=r"too large for dtype\('float32'\)"):
        quick(dtype="float32").fit(with_value(1e39), Y)


def test_partial_fit_needs_the_classes_first_and_knows_no_others():
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        quick().partial_fit(X, Y)
    clf = quick().partial_fit(X, Y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match=r"labels that are not in classes=\[0, 1, 2\]: \[7\]"):
        clf.partial_fit(X, np.where(Y == 2, 7, Y))
    with pytest.raises(ValueError, match="class_weight 'balanced' is not supported for partial_fit"):
        quick(class_weight="balanced").partial_fit(X, Y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="early_stopping=True is not supported for partial_fit"):
        quick(early_stopping=True).partial_fit(X, Y, classes=[0, 1, 2])


def diverging():
    return quick(learning_rate=1e300, learning_rate_schedule="constant", max_epochs=5)


def test_training_that_turns_non_finite_leaves_no_model():
    clf = diverging()
    with pytest.raises(ValueError, match=r"non-finite.*Lower learning_rate, or scale X"):
        clf.fit(X, Y)
    with pytest.raises(NotFittedError):
        clf.predict(X)


def test_a_cold_fit_that_fails_does_not_keep_the_old_model():
    clf = quick().fit(X, Y)
    with pytest.raises(ValueError, match="non-finite"):
        clf.set_params(**diverging().get_params()).fit(X, Y)
    with pytest.raises(NotFittedError):
        clf.predict(X)


def test_a_warm_fit_that_fails_leaves_the_model_as_it_was():
    clf = quick(warm_start=True).fit(X, Y)
    before = clf.decision_function(X)
    with pytest.raises(ValueError, match="non-finite"):
        clf.set_params(learning_rate=1e300, learning_rate_schedule="constant", max_epochs=5).fit(X, Y)
    np.testing.assert_array_equal(clf.decision_function(X), before)
    clf.set_params(learning_rate=1e-3).partial_fit(X, Y)
    assert np.isfinite(clf.decision_function(X)).all()


# -- numbers that go bad -------------------------------------------------------------------------

SIGNS = np.where(RNG.normal(size=(40, 4)) > 0, 0.0, -0.0)
NORMAL = RNG.normal(size=(40, 4))
TABLES = {
    "constant": np.full((40, 4), 2.5),
    "zeros of both signs": SIGNS,
    "one column four times": np.repeat(NORMAL[:, :1], 4, axis=1),
    "equal rows, other labels": np.repeat(NORMAL[:10], 4, axis=0),
    "huge": NORMAL * 1e30,
    "tiny": NORMAL * 1e-30,
    "subnormal": NORMAL * 1e-310,
    "huge and tiny": NORMAL * [1e30, 1e-30, 1.0, 1.0],
    "beyond squares": NORMAL * 1e200,
    "noise on a huge number": NORMAL + 1e15,
    "one column": NORMAL[:, :1],
    "many equal rows": np.ones((80, 10)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["tau_cross_entropy", "hkr"])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_any_table_gets_an_honest_model_or_is_refused(table, n_classes, loss, dtype):
    y = np.arange(len(table)) % n_classes
    clf = quick(loss=loss, dtype=dtype, hidden_layer_sizes=(8,))
    if np.abs(table).max() > np.finfo(dtype).max:
        with pytest.raises(ValueError, match="too large for dtype"):
            clf.fit(table, y)
    else:
        assert_honest(clf.fit(table, y), table)


@pytest.mark.parametrize("solver", ["muon", "adam"])
@pytest.mark.parametrize("learning_rate", [1e3, 1e12, 1e30])
def test_a_large_learning_rate_gives_an_honest_model(learning_rate, solver):
    clf = quick(solver=solver, learning_rate=learning_rate, batch_size=8, hidden_layer_sizes=(8,))
    assert_honest(clf.fit(X, Y), X)


@pytest.mark.parametrize("batch_size", [1, 29])
@pytest.mark.parametrize("weight", [1e-300, 1e300, np.geomspace(1e-300, 1e300, 30)], ids=str)
def test_batches_of_one_and_weights_of_any_size(batch_size, weight):
    clf = quick(batch_size=batch_size, hidden_layer_sizes=(8,))
    assert_honest(clf.fit(X, Y, sample_weight=np.broadcast_to(weight, 30)), X)


def assert_honest(clf, rows):
    labels, radii = clf.predict_with_radii(rows)
    assert clf.lipschitz_bound_ <= 1 + 1e-6
    assert np.isfinite(radii).all()
    assert (radii >= 0).all()
    np.testing.assert_array_equal(labels, clf.predict(rows))
    probabilities = clf.predict_proba(rows)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(clf.classes_[probabilities.argmax(axis=1)], labels)
    steps = np.random.default_rng(1).normal(size=rows.shape)
    steps *= (radii / np.linalg.norm(steps, axis=1) * (1 - 1e-9))[:, None]
    near = rows + steps
    inside = np.linalg.norm(near - rows, axis=1) < radii
    np.testing.assert_array_equal(clf.predict(near)[inside], labels[inside])
