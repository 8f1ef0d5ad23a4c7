"""LipschitzClassifierCV: what it scores, what it chooses, and how it stands in for its winner."""

import copy
import itertools
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    parametrize_with_checks,
)
from skorch.callbacks import Callback

from sklip import (
    LipschitzClassifier,
    LipschitzClassifierCV,
    TradeoffDisplay,
    average_certified_radius_scorer,
    certificates,
    certified_accuracy_scorer,
    certified_ranges,
    most_robust,
    predict_with_radii,
)
from sklip.estimators import side_by_side
from sklip.path.finals import settle
from sklip.path.walk import WarmStarts
from sklip.training.net import LipschitzNet

TAUS, EPSS = [1.0, 5.0, 25.0], [0.0, 0.5]
# For the rows of wine: images, of several batches.
IN_BATCHES = {"batch_size": 64, "input_shape": (1, 1, 13), "architecture": "mlp"}


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


@pytest.fixture(scope="module")
def walked(wine):
    """Of two batches in a fold, and not of networks that train side by side."""
    return LipschitzClassifierCV(quick(**IN_BATCHES), taus=TAUS, epss=EPSS, cv=2).fit(*wine)


def noisy(n_rows=120):
    """Of twelve columns two matter."""
    X = np.random.default_rng(0).normal(size=(n_rows, 12))
    return X, (X[:, 0] + X[:, 1] > 0).astype(int)


def fit_by_hand(tau, eps, X, y):
    return quick(tau=tau, eps=eps).fit(X, y)


def walk_by_hand(tau, eps, X, y):
    """The path to a candidate: the first in 20 epochs, each other in 3 from its weights."""
    way = [(TAUS[0], each) for each in reversed(EPSS) if each > eps]
    way += [(each, eps) for each in TAUS if each <= tau]
    clf = quick(warm_start=True, **IN_BATCHES)
    for each in way:
        clf.set_params(tau=each[0], eps=each[1]).fit(X, y)
        clf.set_params(max_epochs=3, learning_rate=0.015)
    return clf


# Each candidate from random weights, or along a path.
WAYS = pytest.mark.parametrize(
    ("found", "given"), [("fitted", {}), ("walked", IN_BATCHES)], ids=["anew", "walked"]
)


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


def right_and_certified(clf, X, y):
    labels, radii = clf.predict_with_radii(X)
    right = labels == y
    return right.mean(), (right & (radii > 0.5)).mean()


def winner_of(scores, accuracy_loss=0.02):
    """The most robust of the accurate, by scores of folds."""
    accuracy, certified = scores.mean(0).T
    enough = [i for i in range(6) if accuracy[i] >= max(accuracy) - accuracy_loss - 1e-12]
    return max(enough, key=lambda i: (certified[i], accuracy[i], -i))


@WAYS
def test_each_score_is_that_of_a_network_trained_without_the_rows_it_is_scored_on(
    wine, found, given, request
):
    X, y = wine
    clf = request.getfixturevalue(found)
    results, folds = clf.scores_, list(StratifiedKFold(2).split(X, y))
    assert results["params"] == [{"tau": tau, "eps": eps} for eps in EPSS for tau in TAUS]

    def scores_of(fit):
        grid = [(tau, eps) for eps in EPSS for tau in TAUS]
        trials = [[fit(*each, X[train], y[train]) for each in grid] for train, _ in folds]
        return np.array(
            [
                [right_and_certified(each, X[test], y[test]) for each in row]
                for row, (_, test) in zip(trials, folds, strict=True)
            ]
        )

    expected = in_full = scores_of(lambda tau, eps, *fold: quick(tau=tau, eps=eps, **given).fit(*fold))
    full = set(range(6))
    if found == "walked":
        expected = scores_of(walk_by_hand)
        best = winner_of(expected)
        assert best % 3 > 0  # so that it has a neighbour
        full = {best - 1, best}
        expected[:, [best - 1, best]] = in_full[:, [best - 1, best]]
        for _ in range(6):
            best = winner_of(expected)
            full.add(best)
            expected[:, best] = in_full[:, best]
    assert set(np.flatnonzero(results["trained_in_full"])) == full
    assert clf.best_index_ == winner_of(expected)
    for place, name in enumerate(("accuracy", "certified")):
        of_folds = expected[..., place]
        for fold, values in enumerate(of_folds):
            np.testing.assert_array_equal(results[f"split{fold}_test_{name}"], values)
        np.testing.assert_allclose(results[f"mean_test_{name}"], of_folds.mean(0))
        np.testing.assert_allclose(results[f"std_test_{name}"], of_folds.std(0))


@WAYS
@pytest.mark.parametrize("accuracy_loss", [0.0, 0.9])
def test_the_winner_is_the_most_robust_of_the_accurate_trained_on_all_rows(
    wine, found, given, accuracy_loss, request
):
    X, y = wine
    clf = clone(request.getfixturevalue(found)).set_params(accuracy_loss=accuracy_loss).fit(X, y)
    names = ("accuracy", "certified")
    scores = [[clf.scores_[f"split{fold}_test_{name}"] for name in names] for fold in range(2)]
    best = winner_of(np.swapaxes(scores, 1, 2), accuracy_loss)
    assert clf.best_index_ == best
    assert (clf.tau_, clf.eps_) == (clf.scores_["param_tau"][best], clf.scores_["param_eps"][best])
    alone = quick(tau=clf.tau_, eps=clf.eps_, **given)
    assert clf.best_estimator_.get_params() == alone.get_params()
    assert_same_network(clf.best_estimator_, alone.fit(X, y))


# Places in a grid of two eps by three taus, as they win in turn.
@pytest.mark.parametrize(
    ("winners", "in_full"),
    [
        ([1, 1], [[0, 1]]),
        ([2, 1], [[1, 2]]),
        ([3, 3], [[3]]),  # the smallest tau of the second eps
        ([0, 0], [[0]]),
        ([2, 0, 0], [[1, 2], [0]]),
        ([5, 1, 3, 5], [[4, 5], [1], [3]]),
    ],
)
def test_finals_go_on_until_what_wins_was_trained_in_full(wine, winners, in_full):
    X, y = wine
    candidates = WarmStarts(quick(max_epochs=1), np.array(TAUS), np.array(EPSS))
    places = {each: place for place, each in enumerate(itertools.product(EPSS, TAUS))}
    left = list(winners)

    def score(clf, *_):
        return float(places[clf.eps, clf.tau])

    def choose(scores):
        known = set().union(*in_full[: len(winners) - len(left)])
        for place in range(6):
            assert (scores[:, place, 1] == (place if place in known else -1)).all()
        return left.pop(0)

    folds = list(StratifiedKFold(2).split(X, y))
    before = np.full((2, 6, 2), -1.0)
    after, full = settle(candidates, score, (X, y, None), folds, before, choose, None)
    assert not left
    assert (before == -1).all()
    for place in range(6):
        known = any(place in each for each in in_full)
        assert (after[:, place, 1] == (place if known else -1)).all()
        assert ((after[:, place, 0] >= 0) == known).all()
        assert full[place] == known


@pytest.mark.parametrize("given", [{}, {"batch_size": 32}], ids=["one batch", "several batches"])
def test_on_tables_scores_and_winner_are_those_of_a_search_with_separate_fits(wine, given):
    taus = [0.3, 1.0, 3.0, 10.0]
    clf = LipschitzClassifierCV(quick(**given), taus=taus, epss=EPSS, cv=3).fit(*wine)
    search = GridSearchCV(
        quick(**given),
        {"eps": EPSS, "tau": taus},
        scoring={"accuracy": "accuracy", "certified": certified_accuracy_scorer()},
        refit=most_robust(),
        cv=3,
    ).fit(*wine)
    assert clf.best_index_ == search.best_index_
    assert list(clf.scores_["params"]) == list(search.cv_results_["params"])
    assert clf.scores_["trained_in_full"].all()
    for name in ("mean_test_accuracy", "mean_test_certified"):
        np.testing.assert_array_equal(clf.scores_[name], search.cv_results_[name])
    assert_same_network(clf.best_estimator_, search.best_estimator_)


def assert_same_network(one, other):
    one, other = one.net_.module_.state_dict(), other.net_.module_.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


class Recorded:
    """A scorer that keeps each candidate's weights of columns."""

    def __init__(self):
        self.weights = {}

    def __call__(self, clf, X, y):
        self.weights[clf.tau, clf.eps] = clf.column_weights_
        return -clf.tau


def test_weights_of_columns_that_pay_for_large_tau_only_are_those_of_separate_fits(wine):
    X, y = wine
    scorer, taus, all_rows = Recorded(), [0.3, 1.0, 10.0, 100.0], np.arange(len(y))
    LipschitzClassifierCV(quick(), taus=taus, cv=[(all_rows, all_rows)], scoring=scorer).fit(X, y)
    for tau in taus:
        alone = quick(tau=tau).fit(X, y)
        np.testing.assert_allclose(scorer.weights[tau, 0.0], alone.column_weights_, atol=1e-9)
    assert [bool(scorer.weights[tau, 0.0].min() < 1) for tau in taus] == [False, False, True, True]


class CountsFits(Callback):
    """Counts the trainings that it is told of, in all copies."""

    n_fits = 0

    def on_train_begin(self, net, **_):
        CountsFits.n_fits += 1


class OneMore(LipschitzClassifier):
    """Has a fit of its own."""

    n_fits = 0

    def fit(self, X, y, sample_weight=None):
        OneMore.n_fits += 1
        return super().fit(X, y, sample_weight)


@pytest.fixture
def trainings(monkeypatch):
    """How many networks were trained at once, in each training."""
    train, sizes = LipschitzNet.train, []

    def noted(net, *args, **kwargs):
        sizes.append(len(getattr(net.criterion_, "criteria", [None])))
        return train(net, *args, **kwargs)

    monkeypatch.setattr(LipschitzNet, "train", noted)
    return sizes


def test_candidates_of_one_batch_are_trained_side_by_side(trainings):
    X, y = noisy()
    X = X[:, :4]  # so few columns have no weights
    LipschitzClassifierCV(quick(max_epochs=2), taus=5, epss=EPSS, cv=2).fit(X, y)
    assert trainings == [8, 2] * 2 + [1]


def test_where_columns_may_have_weights_they_are_chosen_and_trained_side_by_side(wine, trainings):
    X, y = wine
    scorer, taus, all_rows = Recorded(), [0.3, 1.0, 10.0, 100.0, 300.0], np.arange(len(y))
    LipschitzClassifierCV(quick(), taus=taus, cv=[(all_rows, all_rows)], scoring=scorer).fit(X, y)
    weighted = [bool(scorer.weights[tau, 0.0].min() < 1) for tau in taus]
    assert weighted == [False, False, True, True, True]
    # Of each candidate one network with weights and one without, and so for the winner.
    assert trainings == [10, 2, 3, 2, 1]


@pytest.mark.parametrize(
    "given",
    [
        {"callbacks": [CountsFits()]},
        {"early_stopping": True},
        {"verbose": 1},
        {"checkpoint_dir": "fits"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_candidates_that_are_followed_are_fitted_one_after_another(
    trainings, given, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    CountsFits.n_fits = 0
    X, y = noisy()
    LipschitzClassifierCV(quick(max_epochs=2, **given), taus=[1.0, 5.0], cv=2).fit(X[:, :4], y)
    assert set(trainings) == {1}
    assert CountsFits.n_fits == (5 if "callbacks" in given else 0)


def test_large_networks_are_trained_in_smaller_groups(trainings, monkeypatch):
    X, y = noisy()
    # Of 4 x 8 and 8 x 1 values each.
    monkeypatch.setattr(side_by_side, "_MOST_VALUES", 3 * 40)
    LipschitzClassifierCV(quick(max_epochs=2), taus=5, cv=2).fit(X[:, :4], y)
    assert trainings == [3, 2] * 2 + [1]
    trainings.clear()
    monkeypatch.setattr(side_by_side, "_MOST_VALUES", 39)
    LipschitzClassifierCV(quick(max_epochs=2), taus=2, cv=2).fit(X[:, :4], y)
    assert trainings == [1] * 5


def test_a_subclass_fits_each_of_its_candidates_itself(trainings):
    X, y = noisy()
    OneMore.n_fits = 0
    estimator = OneMore(hidden_layer_sizes=(8,), max_epochs=2, random_state=0)
    LipschitzClassifierCV(estimator, taus=[1.0, 5.0], cv=2).fit(X[:, :4], y)
    assert OneMore.n_fits == 5
    assert set(trainings) == {1}


@pytest.fixture
def walks(monkeypatch):
    """An entry for each fold whose candidates are walked through."""
    walk, folds = WarmStarts.fitted, []

    def noted(candidates, rows):
        folds.append(len(rows[1]))
        return walk(candidates, rows)

    monkeypatch.setattr(WarmStarts, "fitted", noted)
    return folds


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_rows_without_weight_make_no_further_batch(wine, weight, walks):
    X, y = wine
    weights = np.where(np.arange(len(y)) % 2, 1.0, weight)
    estimator = quick(**{**IN_BATCHES, "batch_size": 50}, max_epochs=2)
    LipschitzClassifierCV(estimator, taus=2, cv=2).fit(X, y, weights)
    assert walks == ([89, 89] if weight else [])  # of 44 or 89 rows with weight


@pytest.mark.parametrize(("batch_size", "is_one"), [(88, False), (89, True), (177, True)])
def test_without_side_by_side_it_counts_whether_a_fold_is_one_batch(wine, walks, batch_size, is_one):
    X, y = wine
    estimator = quick(**{**IN_BATCHES, "batch_size": batch_size}, max_epochs=2)
    clf = LipschitzClassifierCV(estimator, taus=2, cv=2).fit(X, y)
    assert walks == ([] if is_one else [89, 89])
    assert_same_network(clf.best_estimator_, clone(estimator).set_params(tau=clf.tau_).fit(X, y))


@pytest.mark.parametrize(("most_values", "walked"), [(8 * 40, []), (8 * 40 - 1, [60, 60])])
def test_tables_of_several_batches_are_walked_where_side_by_side_gains_little(
    walks, monkeypatch, most_values, walked
):
    X, y = noisy()
    # Of 4 x 8 and 8 x 1 values each.
    monkeypatch.setattr(side_by_side, "_MOST_VALUES", most_values)
    LipschitzClassifierCV(quick(max_epochs=2, batch_size=32), taus=2, cv=2).fit(X[:, :4], y)
    assert walks == walked


def test_many_rows_in_a_batch_are_not_trained_side_by_side(trainings):
    X, y = noisy(2050)
    estimator = quick(batch_size=1025, max_epochs=1)
    LipschitzClassifierCV(estimator, taus=2, cv=2).fit(X[:, :4], y)
    assert set(trainings) == {1}
    trainings.clear()
    LipschitzClassifierCV(estimator.set_params(batch_size=1024), taus=2, cv=2).fit(X[:, :4], y)
    assert trainings == [2, 2, 1]


@pytest.mark.parametrize("given", [{}, IN_BATCHES], ids=["anew", "walked"])
def test_one_that_was_stopped_goes_on_from_its_checkpoints(wine, tmp_path, monkeypatch, given):
    X, y = wine
    folds = [(np.arange(len(y)), np.arange(len(y)))]  # a candidate may be taken for the winner
    steps = []

    def fitted(**parameters):
        steps.append(0)
        estimator = quick(**given, **parameters)
        return LipschitzClassifierCV(estimator, taus=TAUS, cv=folds).fit(X, y)

    take_step = LipschitzNet.train_step

    def counted(net, *args, **kwargs):
        steps[-1] += 1
        if len(steps) == 2 and steps[-1] == 35:
            raise RuntimeError("stopped")
        return take_step(net, *args, **kwargs)

    monkeypatch.setattr(LipschitzNet, "train_step", counted)
    alone = fitted()
    with pytest.raises(RuntimeError, match="stopped"):
        fitted(checkpoint_dir=tmp_path)
    again = fitted(checkpoint_dir=tmp_path)
    for name in ("mean_test_accuracy", "mean_test_certified"):
        np.testing.assert_array_equal(again.scores_[name], alone.scores_[name])
    assert_same_network(again.best_estimator_, alone.best_estimator_)
    assert steps[2] < steps[0]


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
    by_hand = fit_by_hand(0.1, 0.0, X[train], y[train])
    expected = radius(by_hand, X[test], y[test])
    assert clf.scores_["split0_test_certified"][0] == pytest.approx(expected, rel=1e-9)


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
        ({"cv": [([0, 1], [2, 10**6])]}, ValueError, r"cv must give rows of X, .* got row 1000000"),
        ({"cv": [([0, -(10**6)], [2])]}, ValueError, r"cv must give rows of X, .* got row -1000000"),
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
