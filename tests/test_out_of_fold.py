"""Labels and radii of rows that a model did not see, fold by fold by hand."""

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, RepeatedKFold, ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklip import LipschitzClassifier, certificates, cross_val_certificates


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return X, np.array(["setosa", "vers", "virginica"])[y]


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 5, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


def pipeline():
    return make_pipeline(StandardScaler(), quick())


def by_hand(estimator, X, y, splits, weights=None, **changes):
    labels, radii = np.empty(len(y), dtype=y.dtype), np.full(len(y), np.nan)
    for train, test in splits:
        given = {} if weights is None else {"sample_weight": weights[train]}
        fitted = clone(estimator).fit(X[train], y[train], **given)
        labels[test], radii[test] = fitted.predict(X[test]), certificates(fitted, X[test], **changes)
    return labels, radii


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize(
    "changes", [{}, {"scale": "std"}, {"fixed_columns": [0], "scale": [1, 2, 3, 4]}]
)
def test_each_row_is_certified_by_the_model_of_its_fold_in_raw_units(iris, changes, n_jobs):
    X, y = iris
    folds = KFold(3, shuffle=True, random_state=1)
    with parallel_threads():
        labels, radii = cross_val_certificates(pipeline(), X, y, cv=folds, n_jobs=n_jobs, **changes)
    expected = by_hand(pipeline(), X, y, folds.split(X, y), **changes)
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_array_equal(radii, expected[1])
    assert (radii > 0).mean() > 0.5
    assert len(np.unique(radii[labels == "setosa"])) > 10


def parallel_threads():
    """Processes would import everything anew."""
    import joblib

    return joblib.parallel_config("threading")


def test_weights_groups_and_the_default_splits(iris):
    X, y = iris
    weights = np.random.default_rng(0).uniform(0.1, 2, len(X))
    groups = np.arange(150) % 5
    for routing in (False, True):
        with sklearn.config_context(enable_metadata_routing=routing):
            estimator = quick().set_fit_request(sample_weight=True) if routing else quick()
            labels, radii = cross_val_certificates(
                estimator, X, y, cv=GroupKFold(5), groups=groups, params={"sample_weight": weights}
            )
        splits = GroupKFold(5).split(X, y, groups)
        expected = by_hand(quick(), X, y, splits, weights)
        np.testing.assert_array_equal(labels, expected[0])
        np.testing.assert_array_equal(radii, expected[1])
    again = cross_val_certificates(quick(max_epochs=2), X, y)
    expected = by_hand(
        quick(max_epochs=2), X, y, sklearn.model_selection.StratifiedKFold(5).split(X, y)
    )
    np.testing.assert_array_equal(again[1], expected[1])


def test_frames_tensors_and_nested_searches(iris):
    pandas = pytest.importorskip("pandas")
    X, y = iris
    expected = cross_val_certificates(pipeline(), X, y, cv=2, fixed_columns=[3])
    frame = pandas.DataFrame(X, columns=list("abcd"), index=np.arange(1000, 1150))
    got = cross_val_certificates(pipeline(), frame, pandas.Series(y), cv=2, fixed_columns=["d"])
    # Sums over a frame's columns are in another order.
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-9)
    got = cross_val_certificates(pipeline(), torch.tensor(X), y, cv=2, fixed_columns=iter([3]))
    np.testing.assert_array_equal(got[1], expected[1])
    search = GridSearchCV(quick(max_epochs=2), {"tau": [1.0, 3.0]}, cv=2)
    assert (cross_val_certificates(search, X, y, cv=2)[1] > 0).any()


@pytest.mark.parametrize("cv", [RepeatedKFold(n_splits=2, n_repeats=2), ShuffleSplit(n_splits=2)])
def test_splits_that_do_not_hold_out_each_row_once_are_refused_before_a_fit(iris, cv, monkeypatch):
    monkeypatch.setattr(LipschitzClassifier, "fit", None)
    with pytest.raises(ValueError, match="cv must hold out each row exactly once"):
        cross_val_certificates(quick(), *iris, cv=cv)


def test_splits_that_train_on_what_they_hold_out_are_refused_before_a_fit(iris, monkeypatch):
    monkeypatch.setattr(LipschitzClassifier, "fit", None)
    every = np.arange(150)
    apart = [(np.flatnonzero(every % 3 != k), np.flatnonzero(every % 3 == k)) for k in range(3)]
    # Row 149, named from the end, is the third split's.
    for leaky in (every, np.append(apart[2][0], -1), every >= 0):
        with pytest.raises(ValueError, match="cv must hold out rows from training"):
            cross_val_certificates(quick(), *iris, cv=[*apart[:2], (leaky, apart[2][1])])


def test_nothing_is_printed_unless_asked_for(iris, capfd):
    cross_val_certificates(quick(max_epochs=1), *iris, cv=2)
    assert capfd.readouterr() == ("", "")
    cross_val_certificates(quick(max_epochs=1), *iris, cv=2, verbose=3)
    assert capfd.readouterr() != ("", "")


def test_an_error_ends_it(iris):
    with pytest.raises(ValueError, match="tau"):
        cross_val_certificates(quick(tau=-1.0), *iris, cv=2)
    with pytest.raises(ValueError, match="scale must hold one positive number for each of 4 columns"):
        cross_val_certificates(quick(), *iris, cv=2, scale=[1.0])
