"""What stands around a classifier and hands X on: registered wrappers, pipelines that resample."""

import sys
import warnings

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    RandomizedSearchCV,
    cross_val_score,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, MinMaxScaler, StandardScaler
from sklearn.utils.validation import check_is_fitted

from sklip import LipschitzClassifier, certificates, predict_with_radii, register_wrapper
from sklip.certification.wrappers import _KINDS

# Tables have columns that count far more than others.
pytestmark = pytest.mark.filterwarnings("ignore:The steps enlarge a change of column")


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 5, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


class LineSearch(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Tries values of tau, one after the other, until the accuracy falls."""

    def __init__(self, estimator, taus=(1.0, 10.0)):
        self.estimator = estimator
        self.taus = taus

    def fit(self, X, y):
        scores = []
        for tau in self.taus:
            candidate = clone(self.estimator).set_params(tau=tau)
            scores.append(cross_val_score(candidate, X, y, cv=2).mean())
        self.best_ = clone(self.estimator).set_params(tau=self.taus[int(np.argmax(scores))])
        self.best_.fit(X, y)
        self.classes_ = self.best_.classes_
        return self

    def predict(self, X):
        return self.best_.predict(X)

    def predict_proba(self, X):
        return self.best_.predict_proba(X)


class OtherLineSearch(LineSearch):
    def predict(self, X):
        return super().predict(-np.asarray(X))


@pytest.fixture
def registered():
    """LineSearch is known for the time of a test."""

    @register_wrapper(LineSearch)
    def inner(search):
        check_is_fitted(search)
        return search.best_

    yield inner
    del _KINDS[LineSearch]


def test_an_unknown_wrapper_is_refused_and_told_of_the_registry(few_digits):
    search = LineSearch(quick()).fit(*few_digits)
    with pytest.raises(TypeError, match=r"^LineSearch gives no certificates.*register_wrapper"):
        certificates(search, few_digits[0])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_registered_wrapper_gives_what_its_inner_estimator_gives(few_digits, registered, frozen):
    X, y = few_digits
    search = LineSearch(quick()).fit(X, y)
    estimator = FrozenEstimator(search) if frozen else search
    labels, radii = predict_with_radii(estimator, X)
    np.testing.assert_array_equal(labels, search.predict(X))
    expected = certificates(search.best_, X)
    assert expected.max() > 0
    np.testing.assert_array_equal(radii, expected)
    around = make_pipeline(StandardScaler(), LineSearch(quick())).fit(X, y)
    plain = make_pipeline(around[0], around[1].best_)
    np.testing.assert_array_equal(certificates(around, X), certificates(plain, X))


def test_a_threshold_around_a_registered_wrapper(few_digits, registered):
    X, y = few_digits
    estimator = FixedThresholdClassifier(LineSearch(quick()), threshold=0.3).fit(X, y > 4)
    plain = FixedThresholdClassifier(FrozenEstimator(estimator.estimator_.best_), threshold=0.3)
    np.testing.assert_array_equal(certificates(estimator, X), certificates(plain.fit(X, y > 4), X))


def test_a_temperature_over_a_wrapper_without_logits_is_refused(few_digits, registered):
    """It would scale what it makes of probabilities."""
    X, y = few_digits
    search = FrozenEstimator(LineSearch(quick()).fit(X, y))
    estimator = CalibratedClassifierCV(search, method="temperature").fit(X, y)
    with pytest.raises(TypeError, match=r"^CalibratedClassifierCV .* scales logits, got"):
        certificates(estimator, X)


def test_the_decorator_returns_the_function(registered):
    assert registered.__name__ == "inner"


def test_subclasses_and_altered_instances_of_a_registered_wrapper_are_refused(few_digits, registered):
    other = OtherLineSearch(quick()).fit(*few_digits)
    with pytest.raises(TypeError, match=r"^OtherLineSearch gives no certificates"):
        certificates(other, few_digits[0])
    replaced = LineSearch(quick()).fit(*few_digits)
    replaced.predict = lambda X: X
    with pytest.raises(TypeError, match=r"^LineSearch has a replaced predict"):
        certificates(replaced, few_digits[0])


def test_a_registered_wrapper_that_is_not_fitted_is_refused_as_such(few_digits, registered):
    with pytest.raises(NotFittedError):
        certificates(LineSearch(quick()), few_digits[0])


@pytest.mark.parametrize(
    "kind", [LipschitzClassifier, Pipeline, FrozenEstimator, GridSearchCV, RandomizedSearchCV]
)
def test_types_that_are_known_can_not_be_replaced(kind):
    before = dict(_KINDS)
    with pytest.raises(ValueError, match="does not read itself"):
        register_wrapper(kind)(lambda wrapper: wrapper)
    assert before == _KINDS


def test_a_search_of_another_library(few_digits):
    """optuna's, whose methods ask its best_estimator_."""
    integration = pytest.importorskip("optuna_integration")
    distributions = pytest.importorskip("optuna").distributions
    X, y = few_digits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself experimental
        search = integration.OptunaSearchCV(
            quick(), {"tau": distributions.FloatDistribution(1.0, 10.0)}, n_trials=2, cv=2
        ).fit(X, y)
    with pytest.raises(TypeError, match="register_wrapper"):
        certificates(search, X)
    register_wrapper(type(search))(lambda wrapper: wrapper.best_estimator_)
    try:
        expected = certificates(search.best_estimator_, X)
        np.testing.assert_array_equal(certificates(search, X), expected)
    finally:
        del _KINDS[type(search)]


# -- imbalanced-learn ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imblearn():
    pytest.importorskip("imblearn.pipeline")
    pytest.importorskip("imblearn.over_sampling")
    return sys.modules["imblearn"]


@pytest.mark.parametrize("n_samplers", [0, 1, 2])
def test_samplers_act_in_fit_only(imblearn, few_digits, n_samplers):
    X, y = few_digits[0], few_digits[1] > 7
    samplers = [imblearn.over_sampling.RandomOverSampler(random_state=0)] * n_samplers
    steps = [StandardScaler(), *samplers, "passthrough", MinMaxScaler(), quick()]
    estimator = imblearn.pipeline.make_pipeline(*map(_cloned, steps)).fit(X, y)
    labels, radii = predict_with_radii(estimator, X)
    np.testing.assert_array_equal(labels, estimator.predict(X))
    kept = [step for _, step in estimator.steps if not hasattr(step, "fit_resample")]
    assert len(kept) == 4
    expected = certificates(make_pipeline(*kept), X)
    assert expected.max() > 0
    np.testing.assert_array_equal(radii, expected)
    rng = np.random.default_rng(0)
    for _ in range(5):
        step = rng.normal(size=X.shape)
        step *= ((1 - 1e-9) * radii / np.linalg.norm(step, axis=1))[:, None]
        assert (estimator.predict(X + step) == labels).all()


def _cloned(step):
    return step if isinstance(step, str) else clone(step)


def test_subclasses_of_its_pipeline_and_unfitted_ones_are_refused(imblearn, few_digits):
    class Other(imblearn.pipeline.Pipeline):
        pass

    other = Other([("model", quick())]).fit(*few_digits)
    with pytest.raises(TypeError, match=r"^Other gives no certificates"):
        certificates(other, few_digits[0])
    with pytest.raises(NotFittedError):
        certificates(imblearn.pipeline.Pipeline([("model", quick())]), few_digits[0])


def test_other_steps_of_its_pipeline_are_refused_as_everywhere(imblearn, few_digits):
    X, y = few_digits[0][:, 2:4], few_digits[1]
    binned = KBinsDiscretizer(3, encode="ordinal", strategy="uniform", subsample=None)
    estimator = imblearn.pipeline.make_pipeline(binned, quick()).fit(X, y)
    with pytest.raises(TypeError, match=r"^KBinsDiscretizer has no Lipschitz bound"):
        certificates(estimator, X)


def test_its_pipeline_can_not_be_replaced(imblearn):
    with pytest.raises(ValueError, match="does not read itself"):
        register_wrapper(imblearn.pipeline.Pipeline)(lambda pipeline: pipeline.steps[-1][1])
