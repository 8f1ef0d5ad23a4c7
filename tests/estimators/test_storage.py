"""Stored models: the same model, from plain arrays, on whatever device there is."""

import copy
import io
import pickle
import pickletools

import joblib
import numpy as np
import pytest
import skops.io as skops
import torch
from sklearn.base import clone

import sklip
from sklip import LipschitzClassifier, lipschitz_bound
from sklip.certified.seals import FORMAT, opened, sealed

TRUSTED = ["sklip.estimators.classifier.LipschitzClassifier"]


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


def through_skops(clf, tmp_path):
    skops.dump(clf, tmp_path / "clf.skops")
    return skops.load(tmp_path / "clf.skops", trusted=TRUSTED)


def with_values(state, **values):
    """The state as it would have been stored with other values."""
    return sealed({**opened(state, "state"), **values})


@pytest.mark.parametrize(
    "store",
    [
        lambda clf, _: pickle.loads(pickle.dumps(clf)),
        lambda clf, _: copy.deepcopy(clf),
        through_joblib,
        through_skops,
    ],
    ids=["pickle", "deepcopy", "joblib", "skops"],
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
    assert plain({name: state[name] for name in state if name not in fitted.get_params()})


def test_skops_has_to_trust_one_type_only(fitted):
    assert skops.get_untrusted_types(data=skops.dumps(fitted)) == TRUSTED
    assert skops.get_untrusted_types(data=skops.dumps(quick())) == TRUSTED


def test_a_pickle_names_the_class_and_numpy_only(fitted):
    named = [
        (last, argument) for last, argument in _strings_before_globals(pickle.dumps(fitted, protocol=4))
    ]
    assert {module.split(".")[0] for module, _ in named} <= {"copyreg", "numpy", "sklip"}
    assert {name for module, name in named if module.startswith("sklip")} == {"LipschitzClassifier"}


def _strings_before_globals(data):
    """Module and name of whatever a pickle looks up."""
    words, memo = [], []
    for code, argument, _ in pickletools.genops(data):
        if code.name == "MEMOIZE":
            memo.append(words[-1] if words else None)
        elif code.name in ("BINGET", "LONG_BINGET"):
            words.append(memo[argument])
        elif code.name == "STACK_GLOBAL":
            yield words[-2], words[-1]
        else:
            words.append(argument)


# -- files that are not what was stored --------------------------------------------------------


def dumped_by_joblib(clf):
    file = io.BytesIO()
    joblib.dump(clf, file)
    return file.getvalue()


FILES = {
    "pickle": (pickle.dumps, pickle.loads),
    "joblib": (dumped_by_joblib, lambda data: joblib.load(io.BytesIO(data))),
    "skops": (skops.dumps, lambda data: skops.loads(data, trusted=TRUSTED)),
}
every_file = pytest.mark.parametrize(("dump", "load"), FILES.values(), ids=FILES.keys())


@pytest.fixture(scope="module")
def small(digits):
    X, y = digits
    return quick(hidden_layer_sizes=(4,), max_epochs=2).fit(X[:60, :12], y[:60])


@every_file
def test_a_flipped_bit_is_an_error_or_of_no_effect(small, digits, dump, load):
    """There are bits without a meaning: how many a number has, or when something was stored."""
    data, errors = dump(small), 0
    X = digits[0][:60, :12]
    for place in np.random.default_rng(0).integers(8 * len(data), size=150).tolist():
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        try:
            loaded = load(bytes(damaged))
        except Exception:
            errors += 1
            continue
        assert loaded.get_params() == small.get_params()
        for values, stored in zip(
            loaded.predict_with_radii(X), small.predict_with_radii(X), strict=True
        ):
            np.testing.assert_array_equal(values, stored)
    assert errors > 75


@every_file
def test_a_flipped_bit_of_a_weight_is_found(small, dump, load):
    data = dump(small)
    weight = small.__getstate__()["certified_network_"]["network"]["children"][1][1]["arrays"]["weight"]
    place = data.find(np.ascontiguousarray(weight).tobytes()[:64])
    if place < 0:  # compressed, or written in the order of columns
        place = data.find(np.asfortranarray(weight).tobytes("F")[:64])
    assert place > 0
    damaged = bytearray(data)
    damaged[place] ^= 1  # the last bit of a number
    with pytest.raises(Exception, match=r"damaged|CRC"):
        load(bytes(damaged))


@every_file
def test_labels_of_another_order_of_bytes_are_no_damage(digits, dump, load):
    """NumPy 2.4's pickles give them back in the machine's own."""
    X, y = digits[0][:60, :12], digits[1][:60].astype(">i8")
    clf = quick(hidden_layer_sizes=(4,), max_epochs=1).fit(X, y)
    np.testing.assert_array_equal(load(dump(clf)).predict(X), clf.predict(X))


@every_file
def test_a_model_that_was_loaded_without_gradients_can_be_trained(small, digits, dump, load):
    with torch.inference_mode():
        loaded = load(dump(small))
    assert loaded.partial_fit(digits[0][:60, :12], digits[1][:60]).n_iter_ == small.n_iter_ + 1


@every_file
def test_a_truncated_file_is_an_error(small, dump, load):
    data = dump(small)
    for share in np.linspace(0, 1, 20, endpoint=False):
        with pytest.raises(Exception):  # noqa: B017, PT011
            load(data[: int(share * len(data))])


def test_a_model_of_another_format_says_which_version_loads_it(small):
    state = small.__getstate__()
    state["_stored_"] = {**state["_stored_"], "format": FORMAT + 1, "version": "9.8"}
    with pytest.raises(ValueError, match=r"has format 2 of sklip 9\.8.* reads format 1; load it"):
        LipschitzClassifier().__setstate__(state)
    del state["_stored_"]
    with pytest.raises(ValueError, match=r"says no format: .* fit anew"):
        LipschitzClassifier().__setstate__(state)


def test_a_model_of_another_version_of_the_same_format_loads(small, monkeypatch):
    data = pickle.dumps(small)
    monkeypatch.setattr(sklip, "__version__", "9.8")
    assert pickle.loads(data).tau_ == small.tau_


@pytest.mark.parametrize("name", ["classes_", "tau_", "tau", "feature_std_", "history_", "_plan_"])
def test_whatever_was_fitted_or_set_is_under_the_seal(small, name):
    state = small.__getstate__()
    value = state[name]
    if isinstance(value, np.ndarray):
        state[name] = value + 1
    elif isinstance(value, float):
        state[name] = np.nextafter(value, 9).item()
    elif isinstance(value, list):
        state[name] = value[1:]
    else:
        state[name] = {**value, "n_outputs": 3}
    with pytest.raises(ValueError, match="LipschitzClassifier is damaged"):
        LipschitzClassifier().__setstate__(state)


def test_a_stored_model_loads_where_its_device_is_missing(fitted, digits):
    other = LipschitzClassifier()
    other.__setstate__(with_values(fitted.__getstate__(), device_="cuda:7"))
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
    loaded.__setstate__(with_values(clf.__getstate__(), device_="cuda:99"))
    np.testing.assert_allclose(loaded.decision_function(X), clf.decision_function(X), atol=1e-9)
