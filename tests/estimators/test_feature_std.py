"""Standard deviations of the columns that a classifier was trained on."""

import copy
import pickle

import numpy as np
import pytest

from sklip import LipschitzClassifier


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (4,), "max_epochs": 1, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 4)) * [1e-6, 1.0, 1e3, 0.0] + [1e3, 0.0, -1e6, 0.1]
    return X, np.arange(90) % 3


def test_they_are_those_of_the_rows_and_0_for_a_constant_column(table):
    X, y = table
    clf = quick().fit(X, y)
    # Rows of 1000 in steps of 1e-6 keep 7 digits of a difference.
    np.testing.assert_allclose(clf.feature_std_[:3], X[:, :3].std(axis=0), rtol=1e-7)
    assert clf.feature_std_[3] == 0


def test_weights_count_as_repetitions_and_rows_of_weight_0_not_at_all(table):
    X, y = table
    weight = np.random.default_rng(1).integers(0, 4, 90)
    X = np.where(weight[:, None] == 0, 1e9, X)
    found = quick().fit(X, y, sample_weight=weight).feature_std_
    repeated = np.repeat(X, weight, axis=0)
    np.testing.assert_allclose(found[:3], repeated[:, :3].std(axis=0), rtol=1e-6)
    assert found[3] == 0


def test_partial_fits_add_their_rows_and_a_fit_forgets(table):
    X, y = table
    clf = quick()
    for part in np.array_split(np.random.default_rng(0).permutation(90), 4):
        clf.partial_fit(X[part], y[part], classes=np.arange(3))
    np.testing.assert_allclose(clf.feature_std_[:3], X[:, :3].std(axis=0), rtol=1e-6)
    assert clf.feature_std_[3] == 0
    clf.fit(2 * X, y)
    np.testing.assert_allclose(clf.feature_std_[:3], 2 * X[:, :3].std(axis=0), rtol=1e-6)


def test_a_warm_start_adds_its_rows(table):
    X, y = table
    clf = quick(warm_start=True).fit(X[:45], y[:45]).fit(X[45:], y[45:])
    np.testing.assert_allclose(clf.feature_std_[:3], X[:, :3].std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("store", [copy.deepcopy, lambda clf: pickle.loads(pickle.dumps(clf))])
def test_they_are_stored_with_the_model_and_go_on_from_there(table, store):
    X, y = table
    stored = store(quick().partial_fit(X[:45], y[:45], classes=np.arange(3)))
    stored.partial_fit(X[45:], y[45:])
    np.testing.assert_allclose(stored.feature_std_[:3], X[:, :3].std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32])
def test_rows_of_any_type_are_read_in_float64(dtype):
    X = np.random.default_rng(0).integers(0, 200, (60, 3)).astype(dtype)
    clf = quick().fit(X, np.arange(60) % 2)
    np.testing.assert_allclose(clf.feature_std_, X.astype(np.float64).std(axis=0), rtol=1e-12)


def test_images_have_none(few_digits):
    X, y = few_digits
    for rows, parameters in ((X.reshape(-1, 8, 8), {}), (X, {"input_shape": (1, 8, 8)})):
        assert not hasattr(quick(architecture="mlp", **parameters).fit(rows, y), "feature_std_")


def test_rows_too_long_to_square_leave_no_warning():
    X = np.random.default_rng(0).normal(size=(40, 2)) * [1e200, 1.0]
    clf = quick(dtype="float64", learning_rate=1e-3)
    try:
        clf.fit(X, np.arange(40) % 2)
    except ValueError:
        return  # training may turn non-finite
    assert clf.feature_std_[0] > 1e150
