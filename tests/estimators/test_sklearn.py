"""LipschitzClassifier as scikit-learn's own tools see it."""

import os

# scikit-learn skips its array API checks unless this is set before SciPy is imported.
os.environ["SCIPY_ARRAY_API"] = "1"

import pickle
import warnings

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_validate
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_param_validation,
    estimator_checks_generator,
    parametrize_with_checks,
)

from sklip import (
    LipschitzClassifier,
    average_certified_radius_scorer,
    certificates,
    certified_accuracy_scorer,
    most_robust,
)

SCORING = {"accuracy": "accuracy", "certified": certified_accuracy_scorer(eps=0.3)}


@pytest.fixture(scope="module")
def digits(digits):
    X, y = digits
    return X[:500], y[:500]


def quick(**parameters):
    return LipschitzClassifier(**{"max_epochs": 8, "random_state": 0, **parameters})


# scikit-learn 1.7 hands pytest a generator, which pytest 9.1 warns of.
CHECKS = parametrize_with_checks([LipschitzClassifier()]).mark


@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), **CHECKS.kwargs)
def test_scikit_learn_checks(estimator, check):
    with warnings.catch_warnings():
        # The checks make data that scikit-learn itself warns of.
        warnings.simplefilter("ignore")
        check(estimator)


def test_no_check_is_skipped_or_expected_to_fail():
    checks = list(estimator_checks_generator(LipschitzClassifier(), mark=None))
    assert len(checks) >= 62  # of scikit-learn 1.7; later versions have more
    tags = LipschitzClassifier().__sklearn_tags__()
    assert not tags.non_deterministic
    assert not tags.classifier_tags.poor_score
    assert not tags.no_validation
    assert not tags._skip_test


@pytest.mark.parametrize("check", [check_dataframe_column_names_consistency, check_param_validation])
def test_checks_that_the_generator_leaves_out(check):
    check("LipschitzClassifier", quick(max_epochs=2))


@pytest.mark.filterwarnings("ignore:The steps enlarge a change of column")  # a pixel rarely used
@pytest.mark.parametrize("scaler", [StandardScaler(), MinMaxScaler(), "passthrough"])
def test_a_pipeline_predicts_and_certifies(digits, scaler):
    X, y = digits
    pipeline = Pipeline([("scale", scaler), ("clf", quick())]).fit(X, y)
    assert pipeline.score(X, y) > 0.8
    radii = certificates(pipeline, X)
    assert radii.shape == (len(X),)
    assert (radii > 0).mean() > 0.99
    stored = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(certificates(stored, X), radii)


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_grid_search_over_tau_refits_the_most_robust_of_the_accurate(digits, n_jobs):
    X, y = digits
    search = GridSearchCV(
        make_pipeline(StandardScaler(with_std=False), quick(max_epochs=60)),
        {"lipschitzclassifier__tau": [1.0, 10.0, 100.0]},
        scoring=SCORING,
        refit=most_robust(accuracy_loss=0.2),
        cv=2,
        n_jobs=n_jobs,
    ).fit(X, y)
    results = search.cv_results_
    enough = results["mean_test_accuracy"] >= results["mean_test_accuracy"].max() - 0.2
    certified = np.where(enough, results["mean_test_certified"], -1)
    assert search.best_index_ == certified.argmax()
    assert certified.argmax() != results["mean_test_accuracy"].argmax()
    assert certificates(search, X).shape == (len(X),)
    assert SCORING["certified"](search, X, y) > 0


@pytest.mark.slow
def test_jobs_in_other_processes_give_the_same_scores_and_weights(digits):
    X, y = digits
    one, two = (
        cross_validate(quick(), X, y, cv=2, scoring=SCORING, n_jobs=n_jobs, return_estimator=True)
        for n_jobs in (1, 2)
    )
    for name in ("test_accuracy", "test_certified"):
        np.testing.assert_array_equal(one[name], two[name])
    for here, there in zip(one["estimator"], two["estimator"], strict=True):
        values = there.to_torch().state_dict()
        for name, value in here.to_torch().state_dict().items():
            np.testing.assert_array_equal(value, values[name])


@pytest.mark.slow
def test_halving_search_takes_a_certified_scorer(digits):
    X, y = digits
    search = HalvingGridSearchCV(
        quick(max_epochs=60),
        {"tau": [1.0, 10.0, 100.0]},
        scoring=average_certified_radius_scorer(),
        random_state=0,
        cv=2,
        min_resources=100,
    ).fit(X, y)
    assert search.best_params_ == {"tau": 1.0}
    assert certificates(search, X).mean() > 0


def test_metadata_routing_brings_weights_to_fit(digits):
    X, y = digits
    weight = np.random.default_rng(0).random(len(y))
    with config_context(enable_metadata_routing=True):
        clf = quick().set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        routed = make_pipeline(scaler, clf).fit(X, y, sample_weight=weight)
    scaled = StandardScaler().fit_transform(X)
    direct = clone(clf).fit(scaled, y, sample_weight=weight)
    np.testing.assert_array_equal(routed.decision_function(X), direct.decision_function(scaled))


LINEAR = LogisticRegression(max_iter=500)


@pytest.mark.parametrize(
    ("ensemble", "refused"),
    [
        (CalibratedClassifierCV(quick(), method="sigmoid", cv=2), "CalibratedClassifierCV"),
        (VotingClassifier([("a", quick()), ("b", LINEAR)], voting="soft"), "LogisticRegression"),
        (OneVsRestClassifier(quick()), "OneVsRestClassifier"),
    ],
    ids=["CalibratedClassifierCV", "VotingClassifier", "OneVsRestClassifier"],
)
def test_ensembles_take_it_as_a_part_and_get_no_certificate(digits, ensemble, refused):
    X, y = digits
    assert clone(ensemble).fit(X, y).score(X, y) > 0.7
    with pytest.raises(TypeError, match=f"{refused} gives no certificates"):
        certificates(clone(ensemble).fit(X, y), X)
