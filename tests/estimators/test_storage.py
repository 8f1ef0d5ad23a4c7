"""Stored models: the same model, from plain arrays, on whatever device there is."""

import copy
import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone

from sklip import LipschitzClassifier, lipschitz_bound


def quick(**parameters):
    return LipschitzClassifier(**{"max_epochs": 8, "random_state": 0, **parameters})


@pytest.fixture(scope="module")
def digits(digits):
    X, y = digits
    return X[:600], y[:600]


@pytest.fixture(scope="module")
def fitted(digits):
    return quick(max_epochs=30).fit(*digits)


def through_joblib(clf, tmp_path):
    joblib.dump(clf, tmp_path / "clf.joblib")
    return joblib.load(tmp_path / "clf.joblib")


@pytest.mark.parametrize(
    "store",
    [
        lambda clf, _: pickle.loads(pickle.dumps(clf)),
        lambda clf, _: copy.deepcopy(clf),
        through_joblib,
    ],
    ids=["pickle", "deepcopy", "joblib"],
)
def test_a_stored_model_is_the_same_model(digits, fitted, store, tmp_path):
    X, y = digits
    assert store(quick(), tmp_path).get_params() == quick().get_params()
    loaded = store(fitted, tmp_path)
    for method in ("predict", "decision_function", "predict_proba", "certificates_"):
        np.testing.assert_array_equal(getattr(loaded, method)(X), getattr(fitted, method)(X))
    assert loaded.history_ == fitted.history_
    assert lipschitz_bound(loaded.to_torch()) == fitted.lipschitz_bound_
    loaded.partial_fit(X, y)
    assert loaded.n_iter_ == fitted.n_iter_ + 1


def test_a_stored_state_holds_arrays_only(fitted):
    def plain(value):
        if isinstance(value, dict):
            return all(map(plain, value.values()))
        if type(value) in (list, tuple):
            return all(map(plain, value))
        return value is None or type(value) in (np.ndarray, bool, int, float, str)

    state = fitted.__getstate__()
    assert all(type(value) is np.ndarray for value in state["net_"].values())
    assert plain(state["certified_network_"])


def test_a_stored_model_loads_where_its_device_is_missing(fitted, digits):
    state = fitted.__getstate__()
    state["device_"] = "cuda:7"
    other = LipschitzClassifier()
    other.__setstate__(state)
    np.testing.assert_array_equal(other.predict(digits[0]), fitted.predict(digits[0]))


def test_parameters_changed_after_fit_do_not_touch_the_stored_network(digits, fitted):
    changed = copy.deepcopy(fitted).set_params(hidden_layer_sizes=(4,), architecture="cnn")
    loaded = pickle.loads(pickle.dumps(changed))
    np.testing.assert_array_equal(loaded.predict(digits[0]), fitted.predict(digits[0]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_trained_on_the_gpu_moves_to_the_cpu(digits):
    X, y = digits
    clf = quick(device="cuda").fit(X, y)
    assert clf.device_ == "cuda"
    loaded = clone(clf).set_params(device="cpu")
    loaded.__setstate__({**clf.__getstate__(), "device_": "cuda:99"})
    np.testing.assert_allclose(loaded.decision_function(X), clf.decision_function(X), atol=1e-9)
