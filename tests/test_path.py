"""LipschitzClassifierCV: what it scores, what it chooses, and how it stands in for its winner."""

import copy
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.metrics import accuracy_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    parametrize_with_checks,
)

from sklip import (
    LipschitzClassifier,
    LipschitzClassifierCV,
    TradeoffDisplay,
    average_certified_radius_scorer,
    certificates,
    certified_ranges,
    predict_with_radii,
)

TAUS, EPSS = [1.0, 5.0, 25.0], [0.0, 0.5]


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 20, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


@pytest.fixture(scope="module")
def wine():
    X, y = load_wine(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="module")
def fitted(wine):
    return LipschitzClassifierCV(quick(), taus=TAUS, epss=EPSS, cv=2).fit(*wine)


def walk_by_hand(candidates, X, y, sample_weight=None):
    """The candidates of a path in turn: the first in 20 epochs, each other in 5 from its weights."""
    clf = quick(warm_start=True)
    for tau, eps in candidates:
        clf.set_params(tau=tau, eps=eps).fit(X, y, sample_weight)
        clf.set_params(max_epochs=5, learning_rate=0.03)
    return clf


# scikit-learn 1.7 hands pytest a generator, which pytest 9.1 warns of.
CHECKS = parametrize_with_checks([LipschitzClassifierCV(quick(), taus=[3.0], cv=2)]).mark


@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), **CHECKS.kwargs)
@pytest.mark.filterwarnings("ignore")  # the checks make data that scikit-learn itself warns of
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_a_check_that_the_generator_leaves_out():
    check_dataframe_column_names_consistency(
        "LipschitzClassifierCV", LipschitzClassifierCV(quick(max_epochs=2), taus=[3.0], cv=2)
    )


def test_each_score_is_that_of_a_network_trained_without_the_rows_it_is_scored_on(wine, fitted):
    X, y = wine
    results = fitted.scores_
    assert results["params"] == [{"tau": tau, "eps": eps} for eps in EPSS for tau in TAUS]
    for fold, (train, test) in enumerate(StratifiedKFold(2).split(X, y)):
        for index, (tau, eps) in enumerate(
            zip(results["param_tau"], results["param_eps"], strict=True)
        ):
            way = [(1.0, each) for each in (0.5, 0.0) if each > eps]
            way += [(each, eps) for each in TAUS if each <= tau]
            clf = walk_by_hand(way, X[train], y[train])
            labels, radii = clf.predict_with_radii(X[test])
            right = labels == y[test]
            assert results[f"split{fold}_test_accuracy"][index] == right.mean()
            assert results[f"split{fold}_test_certified"][index] == (right & (radii > 0.5)).mean()
    for name in ("accuracy", "certified"):
        folds = np.array([results[f"split{fold}_test_{name}"] for fold in range(2)])
        np.testing.assert_allclose(results[f"mean_test_{name}"], folds.mean(0))
        np.testing.assert_allclose(results[f"std_test_{name}"], folds.std(0))


@pytest.mark.parametrize("accuracy_loss", [0.0, 0.9])
def test_the_winner_is_the_most_robust_of_the_accurate_trained_on_all_rows(wine, fitted, accuracy_loss):
    X, y = wine
    clf = clone(fitted).set_params(accuracy_loss=accuracy_loss).fit(X, y)
    accuracy, certified = (clf.scores_[f"mean_test_{name}"] for name in ("accuracy", "certified"))
    enough = [i for i in range(6) if accuracy[i] >= max(accuracy) - accuracy_loss - 1e-12]
    best = max(enough, key=lambda i: (certified[i], accuracy[i], -i))
    assert clf.best_index_ == best
    assert (clf.tau_, clf.eps_) == (clf.scores_["param_tau"][best], clf.scores_["param_eps"][best])
    way = [(1.0, each) for each in (0.5, 0.0) if each > clf.eps_]
    way += [(each, clf.eps_) for each in TAUS if each <= clf.tau_]
    by_hand = walk_by_hand(way, X, y)
    np.testing.assert_array_equal(clf.decision_function(X), by_hand.decision_function(X))
    assert clf.best_estimator_.get_params() == quick(tau=clf.tau_, eps=clf.eps_).get_params()


def test_it_predicts_and_certifies_as_its_winner(wine, fitted):
    X, y = wine
    best = fitted.best_estimator_
    methods = ("predict", "predict_proba", "predict_log_proba", "decision_function", "certificates_")
    for method in methods:
        np.testing.assert_array_equal(getattr(fitted, method)(X), getattr(best, method)(X))
    assert fitted.score(X, y) == accuracy_score(y, best.predict(X))
    radii = fitted.certificates_(X)
    labels, _ = fitted.predict_with_radii(X)
    np.testing.assert_array_equal(labels, best.predict(X))
    np.testing.assert_array_equal(fitted.predict_with_radii(X)[1], best.certificates_(X))
    assert fitted.certified_score(X, y, eps=0.3) == ((best.predict(X) == y) & (radii > 0.3)).mean()
    np.testing.assert_array_equal(certificates(fitted, X), radii)
    np.testing.assert_array_equal(predict_with_radii(fitted, X)[0], best.predict(X))
    np.testing.assert_array_equal(
        certificates(fitted, X, scale="std"), certificates(best, X, scale="std")
    )
    np.testing.assert_array_equal(certified_ranges(fitted, X[:5]), certified_ranges(best, X[:5]))


def test_certificates_behind_a_pipeline_are_those_of_its_winner_there():
    frame, y = load_wine(return_X_y=True, as_frame=True)
    cv = LipschitzClassifierCV(quick(), taus=TAUS, cv=2)
    pipeline = make_pipeline(StandardScaler(), cv).fit(frame, y)
    other = make_pipeline(pipeline[0], pipeline[-1].best_estimator_)
    asked = {"scale": "std", "fixed_columns": ["alcohol"]}
    np.testing.assert_array_equal(
        certificates(pipeline, frame, **asked), certificates(other, frame, **asked)
    )
    assert certificates(pipeline, frame, **asked).mean() > 0.1


def test_names_of_columns_reach_the_scorer(wine):
    X, y = wine
    frame = pd.DataFrame(X, columns=[f"c{i}" for i in range(13)])
    fixed = average_certified_radius_scorer(fixed_columns=["c0", "c6"])
    clf = LipschitzClassifierCV(quick(), taus=[3.0], cv=2, scoring=fixed).fit(frame, y)
    assert list(clf.feature_names_in_) == list(frame.columns)
    train, test = next(StratifiedKFold(2).split(X, y))
    one = quick(tau=3.0).fit(frame.iloc[train], y[train])
    assert clf.scores_["split0_test_certified"][0] == fixed(one, frame.iloc[test], y[test])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda clf: pickle.loads(pickle.dumps(clf))])
def test_copies_predict_the_same(wine, fitted, copied):
    X, _ = wine
    other = copied(fitted)
    np.testing.assert_array_equal(certificates(other, X), certificates(fitted, X))
    assert (other.tau_, other.eps_) == (fitted.tau_, fitted.eps_)


def test_folds_at_once_give_the_same(wine, fitted):
    with joblib.parallel_config(backend="threading"):
        other = clone(fitted).set_params(n_jobs=2).fit(*wine)
    for name in ("mean_test_accuracy", "mean_test_certified"):
        np.testing.assert_array_equal(other.scores_[name], fitted.scores_[name])


def test_a_given_scoring_is_what_the_winner_has_most_of(wine):
    X, y = wine
    radius = average_certified_radius_scorer()
    clf = LipschitzClassifierCV(quick(), taus=[0.1, 100.0], cv=2, scoring=radius, accuracy_loss=0.9)
    clf.fit(X, y)
    assert clf.best_index_ == clf.scores_["mean_test_certified"].argmax()
    train, test = next(StratifiedKFold(2).split(X, y))
    by_hand = walk_by_hand([(0.1, 0.0)], X[train], y[train])
    assert clf.scores_["split0_test_certified"][0] == radius(by_hand, X[test], y[test])


def test_class_weights_count_once(wine):
    X, y = wine
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y))
    balanced = quick(class_weight={0: 5.0, 1: 1.0, 2: 1.0})
    clf = LipschitzClassifierCV(balanced, taus=[3.0], cv=2).fit(X, y, weight)
    one = clone(balanced).set_params(tau=3.0).fit(X, y, weight)
    np.testing.assert_array_equal(clf.decision_function(X), one.decision_function(X))
    train, test = next(StratifiedKFold(2).split(X, y))
    labels = clone(one).fit(X[train], y[train], weight[train]).predict(X[test])
    expected = accuracy_score(y[test], labels, sample_weight=weight[test])
    assert clf.scores_["split0_test_accuracy"][0] == pytest.approx(expected, rel=1e-12)


def test_a_number_of_taus_suits_any_units(wine):
    X, y = wine
    small, large = (
        LipschitzClassifierCV(quick(), taus=4, cv=2).fit(factor * X, y) for factor in (1.0, 1000.0)
    )
    np.testing.assert_allclose(large.taus_ * 1000, small.taus_)
    np.testing.assert_allclose(small.taus_, np.geomspace(1, 300, 4) / np.sqrt(13))


def test_images(digits):
    X, y = digits
    images = X[:200].reshape(-1, 8, 8)
    estimator = quick(conv_channels=(4,), max_epochs=4)
    clf = LipschitzClassifierCV(estimator, taus=[1.0, 10.0], cv=2).fit(images, y[:200])
    assert certificates(clf, images).shape == (200,)


def test_a_display_reads_the_scores(wine):
    clf = LipschitzClassifierCV(quick(), taus=TAUS, cv=2).fit(*wine)
    display = TradeoffDisplay.from_cv_results(clf.scores_, "tau")
    np.testing.assert_array_equal(display.accuracy, clf.scores_["mean_test_accuracy"])


def test_without_a_seed_fits_differ_and_no_parameter_is_touched(wine):
    estimator = quick(random_state=np.random.RandomState(0))
    clf = LipschitzClassifierCV(estimator, taus=[3.0], cv=2).fit(*wine)
    assert clf.estimator is estimator
    assert not hasattr(estimator, "certified_network_")
    assert isinstance(clf.best_estimator_.random_state, np.random.RandomState)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"taus": []}, ValueError, "taus must be a list of finite numbers above 0"),
        ({"taus": [0.0, 1.0]}, ValueError, "taus must be a list of finite numbers above 0"),
        ({"taus": [np.nan]}, ValueError, "taus must be a list of finite numbers above 0"),
        ({"taus": 0}, ValueError, "taus must be at least 1"),
        ({"taus": 2.5}, ValueError, "taus must be a list"),
        ({"epss": [-0.1]}, ValueError, "epss must be a list of finite numbers of at least 0"),
        ({"epss": [np.inf]}, ValueError, "epss must be a list of finite numbers of at least 0"),
        ({"accuracy_loss": 1.0}, ValueError, r"accuracy_loss must be in \[0, 1\), got 1.0"),
        ({"accuracy_loss": "a"}, ValueError, r"accuracy_loss must be in \[0, 1\), got 'a'"),
        ({"cv": []}, ValueError, r"cv must give at least one fold, got none from \[\]"),
        ({"estimator": StandardScaler()}, TypeError, "must be a LipschitzClassifier, got StandardS"),
        ({"estimator": quick(loss="hkr")}, ValueError, "got loss='hkr'"),
        ({"estimator": quick(solver="sgd")}, ValueError, "The 'solver' parameter"),
    ],
)
def test_what_is_out_of_range_is_refused_before_training(wine, parameters, error, message, monkeypatch):
    monkeypatch.setattr(LipschitzClassifier, "fit", lambda *_: pytest.fail("trained"))
    with pytest.raises(error, match=message):
        LipschitzClassifierCV(**{"estimator": quick(), **parameters}).fit(*wine)


def test_an_unfitted_one_is_refused(wine):
    with pytest.raises(ValueError, match="not fitted yet"):
        certificates(LipschitzClassifierCV(), wine[0])
