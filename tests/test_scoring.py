"""Scorers on estimators, pipelines and searches; the refit rule on tables made by hand."""

import math
import pickle
import warnings

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import SequentialFeatureSelector
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    StratifiedKFold,
    ValidationCurveDisplay,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklip import LipschitzClassifier
from sklip.certified.direct_sums import direct_forward
from sklip.scoring import average_certified_radius_scorer, certified_accuracy_scorer, most_robust

# Behind a StandardScaler, a pixel that is rarely used limits the radii of digits.
pytestmark = pytest.mark.filterwarnings("ignore:The steps enlarge a change of column")


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (16,), "max_epochs": 5, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


def square(**parameters):
    """A first layer that is orthogonal and square: folding the scaler into it gains nothing.

    Several batches, for which columns have no weights.
    """
    return quick(hidden_layer_sizes=(64,), batch_size=100, **parameters)


KINDS = {
    "estimator": lambda: quick(),
    "pipeline": lambda: make_pipeline(StandardScaler(), square(max_epochs=20)),
    "search": lambda: GridSearchCV(quick(), {"tau": [1.0, 10.0]}, cv=2),
    "search_of_pipeline": lambda: GridSearchCV(
        make_pipeline(StandardScaler(), square()), {"lipschitzclassifier__tau": [1.0, 10.0]}, cv=2
    ),
}


@pytest.fixture(scope="module")
def fitted(few_digits):
    return {kind: make().fit(*few_digits) for kind, make in KINDS.items()}


def radii_by_hand(estimator, X):
    """Radii from the parts: search, scaler, classifier."""
    estimator = getattr(estimator, "best_estimator_", estimator)
    if isinstance(estimator, LipschitzClassifier):
        return estimator.certificates_(X)
    scaler, classifier = estimator[0], estimator[1]
    return classifier.certificates_(scaler.transform(X)) * min(scaler.scale_)


def expected_scores(estimator, X, y, eps, weights):
    weights = [1.0] * len(X) if weights is None else weights.tolist()
    certified = radius = 0.0
    for label, predicted, r, w in zip(
        y, estimator.predict(X), radii_by_hand(estimator, X), weights, strict=True
    ):
        if label == predicted:
            certified += w * (r > eps)
            radius += w * float(r)
    return certified / sum(weights), radius / sum(weights)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("eps", [0, 0.05, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_predictions_and_certificates(fitted, few_digits, kind, eps, weighted):
    X, y = few_digits
    weights = np.random.default_rng(0).uniform(0, 2, len(X)) if weighted else None
    certified, radius = expected_scores(fitted[kind], X, y, eps, weights)
    got = certified_accuracy_scorer(eps=eps)(fitted[kind], X, y, sample_weight=weights)
    # Sums over 200 rows of values below 10.
    rounding = 4 * 200 * 10 * np.finfo(float).eps
    assert type(got) is float
    assert got == pytest.approx(certified, rel=0, abs=rounding)
    got = average_certified_radius_scorer()(fitted[kind], X, y, sample_weight=weights)
    assert type(got) is float
    # 1e-9 is what the bounds of a pipeline's steps may exceed the exact constants by.
    assert got == pytest.approx(radius, rel=1e-9, abs=rounding)
    assert radius > 0


@pytest.mark.parametrize("kind", KINDS)
def test_certified_accuracy_lies_below_accuracy_and_falls_with_eps(fitted, few_digits, kind):
    scores = [certified_accuracy_scorer(eps)(fitted[kind], *few_digits) for eps in (0, 0.02, 0.1, 1e9)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] <= fitted[kind].score(*few_digits)
    assert scores[0] > 0
    assert scores[-1] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "scorer", [certified_accuracy_scorer(), average_certified_radius_scorer([0])], ids=repr
)
def test_scorers_evaluate_the_network_once(fitted, few_digits, kind, scorer, monkeypatch):
    calls = []

    def counted(network, X, *context):
        calls.append(len(X))
        return direct_forward(network, X, *context)

    monkeypatch.setattr("sklip.certified.decisions.direct_forward", counted)
    scorer(fitted[kind], *few_digits)
    assert calls == [len(few_digits[0])]


# -- the scorers as objects ----------------------------------------------------------------------

SCORERS = {
    "certified_accuracy_scorer(eps=0.3)": certified_accuracy_scorer(eps=0.3),
    "average_certified_radius_scorer()": average_certified_radius_scorer(),
    "most_robust(accuracy_loss=0.1)": most_robust(accuracy_loss=0.1),
}


@pytest.mark.parametrize(("text", "scorer"), SCORERS.items())
def test_scorers_print_their_constructor(text, scorer):
    assert repr(scorer) == text


@pytest.mark.parametrize("copy", [clone, lambda scorer: pickle.loads(pickle.dumps(scorer))])
@pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)
def test_scorers_survive_clone_and_pickle(scorer, copy):
    copied = copy(scorer)
    assert copied is not scorer
    assert repr(copied) == repr(scorer)
    assert copied.get_params() == scorer.get_params()


WRONG = [
    ({"eps": -0.1}, r"^eps must be a finite number of at least 0"),
    ({"eps": math.nan}, r"^eps must be a finite number of at least 0"),
    ({"eps": math.inf}, r"^eps must be a finite number of at least 0"),
    ({"scale": "deviation"}, r"^scale must be 'std', a positive number for each column"),
    ({"scale": 2.0}, r"^scale must be 'std', a positive number for each column"),
    ({"scale": [1.0, 0.0]}, r"^scale must hold positive and finite numbers, got 0.0"),
    ({"scale": [1.0, 10**400]}, r"^scale must hold positive and finite numbers, got 10{400}"),
    ({"scale": {"age": math.nan}}, r"^scale must hold positive and finite numbers, got nan"),
    ({"fixed_columns": "age"}, r"^fixed_columns must be an iterable of columns, got 'age'"),
    ({"fixed_columns": None}, r"^fixed_columns must be an iterable of columns, got None"),
    ({"fixed_columns": iter([0])}, r"^fixed_columns must be a list or tuple of columns, got <list"),
    ({"categorical_edits": -1}, r"^categorical_edits must be None or an integer of at least 0"),
    ({"categorical_edits": True}, r"^categorical_edits must be None or an integer of at least 0"),
    ({"categorical_edits": 1.0}, r"^categorical_edits must be None or an integer of at least 0"),
    ({"categorical_columns": [0]}, r"^categorical_columns needs categorical_edits"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_what_no_data_can_be_scored_with_is_refused_before_a_search_begins(wrong, message):
    with pytest.raises(ValueError, match=message):
        certified_accuracy_scorer(**wrong)
    with pytest.raises(ValueError, match=message):
        certified_accuracy_scorer().set_params(**wrong)
    if "eps" not in wrong:
        with pytest.raises(ValueError, match=message):
            average_certified_radius_scorer(**wrong)


def test_scales_of_all_kinds_are_taken_and_those_of_fixed_columns_not_read():
    for scale in ("std", [1, 2.0], np.ones(3, dtype=np.float32), {"age": 2}):
        assert certified_accuracy_scorer(scale=scale).scale is scale
        assert certified_accuracy_scorer().set_params(scale=scale).scale is scale
    certified_accuracy_scorer(scale=[1.0, 0.0], fixed_columns=[1])


@pytest.mark.parametrize(
    "scorer", [certified_accuracy_scorer(), average_certified_radius_scorer()], ids=repr
)
def test_estimators_without_certificates_get_no_score(few_digits, scorer):
    with pytest.raises(TypeError, match=r"^LogisticRegression gives no certificates"):
        scorer(LogisticRegression(max_iter=1000).fit(*few_digits), *few_digits)


# -- in scikit-learn's tools ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["estimator", "pipeline"])
def test_cross_validation_takes_the_scorers(few_digits, kind):
    X, y = few_digits
    scoring = {
        "accuracy": "accuracy",
        "certified": certified_accuracy_scorer(eps=0.05),
        "radius": average_certified_radius_scorer(),
    }
    results = cross_validate(
        KINDS[kind](), X, y, cv=2, scoring=scoring, return_estimator=True, return_indices=True
    )
    for fold, estimator in enumerate(results["estimator"]):
        rows = results["indices"]["test"][fold]
        certified, radius = expected_scores(estimator, X[rows], y[rows], 0.05, None)
        assert results["test_certified"][fold] == pytest.approx(certified)
        assert results["test_radius"][fold] == pytest.approx(radius)
        assert results["test_accuracy"][fold] >= results["test_certified"][fold]
    alone = cross_val_score(KINDS[kind](), X, y, cv=2, scoring=scoring["radius"])
    assert alone.tolist() == results["test_radius"].tolist()


def searches():
    grid, scoring = {"tau": [1.0, 10.0]}, certified_accuracy_scorer(eps=0.3)
    yield GridSearchCV(quick(), grid, cv=2, scoring=scoring)
    yield RandomizedSearchCV(quick(), grid, n_iter=2, cv=2, random_state=0, scoring=scoring)
    yield HalvingGridSearchCV(quick(), grid, cv=2, min_resources=150, factor=2, scoring=scoring)


def weighted_score(clf, X, y, eps, weights):
    right = (clf.predict(X) == y) & (clf.certificates_(X) > eps)
    return sum(w for w, r in zip(weights, right, strict=True) if r) / sum(weights)


@pytest.mark.parametrize("position", range(3))
def test_routed_weights_reach_fits_and_scores_of_every_search(few_digits, position):
    X, y = few_digits
    weights = np.random.default_rng(0).uniform(0, 2, len(X))
    with sklearn.config_context(enable_metadata_routing=True):
        search = list(searches())[position]
        with pytest.raises(UnsetMetadataPassedError, match="set_score_request"):
            clone(search).set_params(estimator=quick().set_fit_request(sample_weight=True)).fit(
                X, y, sample_weight=weights
            )
        search.estimator.set_fit_request(sample_weight=True)
        assert search.scoring.set_score_request(sample_weight=True) is search.scoring
        search = clone(search).fit(X, y, sample_weight=weights)
        score = search.score(X, y, sample_weight=weights)
    best = search.best_estimator_
    assert score == pytest.approx(weighted_score(best, X, y, 0.3, weights), rel=1e-12)
    train, test = next(iter(StratifiedKFold(2).split(X, y)))
    if position < 2:  # of a halving search, subsets
        fitted = quick(tau=1.0).fit(X[train], y[train], sample_weight=weights[train])
        assert search.cv_results_["split0_test_score"][0] == pytest.approx(
            weighted_score(fitted, X[test], y[test], 0.3, weights[test]), rel=1e-12
        )


def test_a_scorer_tells_what_it_asks_for_and_takes_that_along():
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = average_certified_radius_scorer().set_score_request(sample_weight="w")
        for each in (scorer, clone(scorer), pickle.loads(pickle.dumps(scorer))):
            assert each.get_metadata_routing().score.requests == {"sample_weight": "w"}
        with pytest.raises(TypeError, match="foo"):
            scorer.set_score_request(foo=True)


def test_cross_validation_routes_weights(few_digits):
    X, y = few_digits
    weights = np.random.default_rng(0).uniform(0, 2, len(X))
    with sklearn.config_context(enable_metadata_routing=True):
        results = cross_validate(
            quick().set_fit_request(sample_weight=False),
            X,
            y,
            cv=2,
            scoring={
                "weighted": certified_accuracy_scorer(0.3).set_score_request(sample_weight=True),
                "plain": certified_accuracy_scorer(0.3).set_score_request(sample_weight=False),
            },
            params={"sample_weight": weights},
            return_estimator=True,
            return_indices=True,
        )
    for fold, clf in enumerate(results["estimator"]):
        rows = results["indices"]["test"][fold]
        for name, given in (("weighted", weights[rows]), ("plain", np.ones(len(rows)))):
            expected = weighted_score(clf, X[rows], y[rows], 0.3, given)
            assert results[f"test_{name}"][fold] == pytest.approx(expected, rel=1e-12)


def test_weights_of_samples_reach_scores_without_routing(few_digits):
    X, y = few_digits
    weights = np.random.default_rng(0).uniform(0, 2, len(X))
    scoring = {"accuracy": "accuracy", "certified": certified_accuracy_scorer(eps=0.3)}
    search = GridSearchCV(quick(), {"tau": [1.0]}, cv=2, scoring=scoring, refit="certified")
    search.fit(X, y, sample_weight=weights)
    train, test = next(iter(StratifiedKFold(2).split(X, y)))
    fitted = quick(tau=1.0).fit(X[train], y[train], sample_weight=weights[train])
    for name, eps in (("accuracy", -1.0), ("certified", 0.3)):
        expected = weighted_score(fitted, X[test], y[test], eps, weights[test])
        assert search.cv_results_[f"split0_test_{name}"][0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("scorer", "title"),
    [
        (certified_accuracy_scorer(eps=0.5), "Certified accuracy at 0.5"),
        (certified_accuracy_scorer(eps=8 / 255), "Certified accuracy at 0.0313725"),
        (average_certified_radius_scorer(), "Average certified radius"),
    ],
)
def test_curve_displays_name_the_score(few_digits, scorer, title):
    pytest.importorskip("matplotlib")
    display = ValidationCurveDisplay.from_estimator(
        quick(), *few_digits, param_name="tau", param_range=[1.0, 10.0], cv=2, scoring=scorer
    )
    assert display.ax_.get_ylabel() == title


@pytest.mark.parametrize("tool", [permutation_importance, SequentialFeatureSelector])
def test_inspection_and_selection_take_the_scorers(tool):
    X, y = load_iris(return_X_y=True)
    scorer = certified_accuracy_scorer(eps=0.2)
    if tool is permutation_importance:
        found = permutation_importance(
            quick().fit(X, y), X, y, scoring=scorer, n_repeats=2, random_state=0
        )
        assert found.importances_mean.argmax() in (2, 3)  # of the petals
    else:
        chosen = SequentialFeatureSelector(
            quick(max_epochs=20), n_features_to_select=1, scoring=scorer, cv=2
        ).fit(X, y)
        assert chosen.get_support(indices=True)[0] in (2, 3)


def test_a_scale_that_does_not_fit_the_data_ends_the_choice_with_a_remedy(few_digits):
    scoring = {"accuracy": "accuracy", "certified": certified_accuracy_scorer(scale=[1.0, 2.0])}
    search = GridSearchCV(
        quick(max_epochs=2), {"tau": [1.0, 3.0]}, cv=2, scoring=scoring, refit=most_robust()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # scikit-learn tells of each failure
        with pytest.raises(ValueError, match=r"NaN score for 'certified'.*error_score='raise'"):
            search.fit(*few_digits)
    with pytest.raises(ValueError, match=r"^scale must hold one positive number for each of 64"):
        search.set_params(error_score="raise").fit(*few_digits)


@pytest.mark.parametrize("routing", [False, True])
def test_a_search_with_a_rule_has_the_score_that_the_rule_names(few_digits, routing):
    X, y = few_digits
    certified = certified_accuracy_scorer(eps=0.3)
    with sklearn.config_context(enable_metadata_routing=routing):
        search = GridSearchCV(
            quick(),
            {"tau": [1.0, 10.0]},
            cv=2,
            scoring={"accuracy": "accuracy", "certified": certified},
            refit=most_robust(accuracy_loss=0.5),
        )
        stored = pickle.loads(pickle.dumps(clone(search).fit(X, y)))
        assert stored.score(X, y) == certified(stored.best_estimator_, X, y)
        # A callable that returns a dict, too.
        search.set_params(scoring=both_scores, refit__robustness="robust")
        assert search.fit(X, y).score(X, y) == certified(search.best_estimator_, X, y)
        assert np.mean(cross_val_score(search, X, y, cv=2)) > 0


def both_scores(estimator, X, y):
    return {
        "accuracy": estimator.score(X, y),
        "robust": certified_accuracy_scorer(eps=0.3)(estimator, X, y),
    }


def test_rules_are_equal_to_their_like_and_found_by_the_name_of_their_score():
    rule = most_robust("radius", accuracy_loss=0.1)
    assert {"radius": 1, "accuracy": 2}[rule] == 1
    assert rule == clone(rule)
    assert rule != most_robust("radius", accuracy_loss=0.2)
    assert rule != most_robust("certified", accuracy_loss=0.1)
    assert rule not in ({"accuracy": 1}, 1, None)
    assert (rule == 1) is False
    assert {"certified": 1}[rule.set_params(robustness="certified")] == 1


def test_a_grid_search_refits_the_candidate_that_the_rule_names(few_digits):
    X, y = few_digits
    search = GridSearchCV(
        quick(),
        {"tau": [0.1, 1.0, 10.0, 100.0]},
        cv=2,
        scoring={
            "accuracy": "accuracy",
            "certified": certified_accuracy_scorer(eps=0.3),
            "radius": average_certified_radius_scorer(),
        },
        refit=most_robust("radius", accuracy_loss=0.05),
    )
    search = clone(search).fit(X, y)
    accuracy, radius = (
        search.cv_results_[f"mean_test_{name}"].tolist() for name in ("accuracy", "radius")
    )
    enough = [i for i in range(4) if accuracy[i] >= max(accuracy) - 0.05]
    assert search.best_index_ == max(enough, key=lambda i: radius[i])
    assert search.best_estimator_.tau == search.cv_results_["param_tau"][search.best_index_]
    restored = pickle.loads(pickle.dumps(search))
    scorer = certified_accuracy_scorer(eps=0.3)
    assert scorer(restored, X, y) == scorer(search, X, y)


# -- most_robust on tables made by hand ------------------------------------------------------------


def table(accuracy, certified):
    return {"mean_test_accuracy": np.array(accuracy), "mean_test_certified": np.array(certified)}


@pytest.mark.parametrize(
    ("accuracy", "certified", "loss", "chosen"),
    [
        ([0.90, 0.89, 0.80], [0.1, 0.2, 0.9], 0.02, 1),
        ([0.90, 0.89, 0.80], [0.1, 0.2, 0.9], 0.5, 2),
        ([0.90, 0.89, 0.80], [0.1, 0.2, 0.9], 0.0, 0),
        # Exactly at the edge counts, though 0.80 - 0.10 > 0.70 in floating point.
        ([0.80, 0.70], [0.1, 0.2], 0.10, 1),
        # Of equally robust candidates the more accurate one, wherever it stands.
        ([0.90, 0.89, 0.88], [0.2, 0.2, 0.2], 0.02, 0),
        ([0.88, 0.89, 0.90], [0.2, 0.2, 0.2], 0.02, 2),
        ([0.88, 0.90, 0.89], [0.2, 0.2, 0.1], 0.02, 1),
        # A loss of nothing: the most robust of the most accurate.
        ([0.90, 0.90, 0.89], [0.1, 0.3, 0.9], 0.0, 1),
        ([0.90], [0.0], 0.02, 0),
        # Robustness may be negative, or infinite.
        ([0.90, 0.90, 0.5], [-3.0, -2.0, 5.0], 0.02, 1),
        ([0.90, 0.90], [1.0, math.inf], 0.02, 1),
        # Failed candidates are never chosen.
        ([math.nan, 0.80, 0.79], [0.9, 0.1, 0.2], 0.02, 2),
        ([0.90, 0.90], [0.5, math.nan], 0.02, 0),
        ([0.90, 0.90], [math.nan, 0.5], 0.02, 1),
        ([math.nan, 0.80], [math.nan, 0.1], 0.02, 1),
    ],
)
def test_most_robust_of_those_accurate_enough_is_chosen(accuracy, certified, loss, chosen):
    index = most_robust(accuracy_loss=loss)(table(accuracy, certified))
    assert type(index) is int
    assert index == chosen


def test_the_names_of_the_scores_can_be_given():
    results = {"mean_test_top": [0.9, 0.9], "mean_test_radius": [0.1, 0.2], "other": None}
    assert most_robust("radius", "top")(results) == 1


@pytest.mark.parametrize("missing", ["accuracy", "certified"])
def test_a_score_that_is_not_there_is_named_with_those_that_are(missing):
    results = table([0.9], [0.1])
    del results[f"mean_test_{missing}"]
    (left,) = (name.removeprefix("mean_test_") for name in results)
    with pytest.raises(ValueError, match=rf"score named '{missing}', got \['{left}'\]"):
        most_robust()(results)


@pytest.mark.parametrize("loss", [-0.01, 1.0, math.nan, math.inf])
def test_accuracy_loss_must_be_a_share(loss):
    with pytest.raises(ValueError, match=r"^accuracy_loss must be in \[0, 1\)"):
        most_robust(accuracy_loss=loss)(table([0.9], [0.1]))


def test_a_search_all_of_whose_candidates_failed_is_an_error():
    with pytest.raises(ValueError, match="All candidates have a NaN score for 'accuracy'"):
        most_robust()(table([math.nan, math.nan], [0.1, 0.2]))


def test_a_search_without_a_single_robustness_score_is_an_error():
    with pytest.raises(ValueError, match="NaN"):
        most_robust()(table([0.9, 0.8], [math.nan, math.nan]))
