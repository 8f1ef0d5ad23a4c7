r"""From a fitted estimator to how it decides: what stands around a classifier is taken off or refused.

Each type of wrapper is known exactly, as the rules of layers and transformers are: a subclass may
predict otherwise, and is refused.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, TypeVar

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklip.certification.chains import Chain
from sklip.certification.deciders import ByNetwork, ByTemperature, ByThreshold, Decider
from sklip.certification.voting import ByMean, ByVotes
from sklip.certified.integrity import refuse_altered
from sklip.estimators import LipschitzClassifier
from sklip.estimators.base import as_fitted
from sklip.preprocessing.steps import flat_steps

__all__ = ["decider_of", "register_wrapper"]

# (wrapper, name of the method that is asked) -> how it decides.
Kind = Callable[[Any, str], Decider]
Inner = TypeVar("Inner", bound=Callable[[Any], Any])

_KINDS: dict[type, Kind] = {}


def register_wrapper(*wrapper_types: type) -> Callable[[Inner], Inner]:
    """Decorator: the function returns the one fitted estimator that predicts for a fitted wrapper.

    It promises for wrappers of exactly these types that their ``predict`` hands X, unchanged, to that
    of the inner estimator, and returns what comes back; and so ``predict_proba`` and
    ``decision_function`` where the wrapper has them. The inner estimator may be whatever
    :func:`sklip.certificates` takes. Wrappers with replaced methods are refused, and so are subclasses.

    Parameters
    ----------
    *wrapper_types : type
        Classes of meta-estimators: searches of other libraries, say.

    Raises
    ------
    ValueError
        For a type that sklip reads itself.

    Examples
    --------
    >>> from sklearn.base import BaseEstimator, ClassifierMixin, clone
    >>> from sklearn.utils.validation import check_is_fitted
    >>> from sklip import register_wrapper
    >>> class BestOf(ClassifierMixin, BaseEstimator):
    ...     def __init__(self, estimators):
    ...         self.estimators = estimators
    ...     def fit(self, X, y):
    ...         fitted = [clone(each).fit(X, y) for each in self.estimators]
    ...         self.best_ = max(fitted, key=lambda each: each.score(X, y))
    ...         return self
    ...     def predict(self, X):
    ...         return self.best_.predict(X)
    >>> @register_wrapper(BestOf)
    ... def _(wrapper):
    ...     check_is_fitted(wrapper)
    ...     return wrapper.best_
    """

    def registered(inner: Inner) -> Inner:
        for each in wrapper_types:
            if issubclass(each, LipschitzClassifier) or each in _READ_HERE or _is_found(each):
                raise ValueError(
                    f"wrapper_types must be classes that sklip does not read itself, got {each}; leave "
                    "it out."
                )
            _KINDS[each] = lambda wrapper, method: decider_of(inner(wrapper), method)
        return inner

    return registered


def decider_of(estimator: Any, method: str = "predict") -> Decider:
    """Return how a fitted estimator decides.

    Parameters
    ----------
    estimator : fitted estimator
    method : {"predict", "predict_proba", "decision_function"}, default="predict"
        What is asked of it.

    Raises
    ------
    TypeError
        For an estimator of another kind, and for replaced methods.
    NotFittedError
        If it is not fitted.
    """
    if isinstance(estimator, LipschitzClassifier):
        fitted = as_fitted(estimator)
        return ByNetwork(Chain((), fitted, method), fitted.classes_)
    refuse_altered(estimator)
    name = type(estimator).__name__
    if type(estimator) in _KINDS:
        return _KINDS[type(estimator)](estimator, method)
    if _is_resampling(type(estimator)):
        # Its samplers act in fit only: by this attribute it passes them over.
        return _in_pipeline(
            estimator, method, lambda step: () if hasattr(step, "fit_resample") else flat_steps(step)
        )
    if _is_search(estimator, method):
        check_is_fitted(estimator)
        if not hasattr(estimator, "best_estimator_"):
            raise TypeError(f"{name} needs refit=True to give certificates.")
        return decider_of(estimator.best_estimator_, method)
    raise TypeError(
        f"{name} gives no certificates; pass a LipschitzClassifier, a Pipeline that ends in one, a "
        "fitted search over either, or a CalibratedClassifierCV of either with method='temperature'; "
        "of a wrapper that hands X unchanged to an inner estimator, sklip.register_wrapper says so."
    )


def _is_search(estimator: Any, method: str) -> bool:
    """Whether it has what scikit-learn's searches share: methods that hand X to the best estimator."""
    shared = inspect.getattr_static(GridSearchCV, method)
    return inspect.getattr_static(estimator, method, None) is shared


def _is_found(kind: type) -> bool:
    """Whether a type is known without an entry."""
    return _is_resampling(kind) or _is_search(kind, "predict")


def _kind(*types: type) -> Callable[[Kind], Kind]:
    def registered(kind: Kind) -> Kind:
        _KINDS.update(dict.fromkeys(types, kind))
        return kind

    return registered


@_kind(FrozenEstimator)
def _frozen(frozen: FrozenEstimator, method: str) -> Decider:
    return decider_of(frozen.estimator, method)


@_kind(Pipeline)
def _pipeline(pipeline: Pipeline, method: str) -> Decider:
    return _in_pipeline(pipeline, method, flat_steps)


def _in_pipeline(pipeline: Pipeline, method: str, acting: Callable[[Any], Iterable[Any]]) -> Decider:
    check_is_fitted(pipeline)
    before = [step for _, part in pipeline.steps[:-1] for step in acting(part)]
    return decider_of(pipeline.steps[-1][1], method).behind(before)


def _is_resampling(kind: type) -> bool:
    """Whether it is imbalanced-learn's Pipeline, of which there is none where that is not imported."""
    module = sys.modules.get("imblearn.pipeline")
    return module is not None and kind is module.Pipeline


@_kind(CalibratedClassifierCV)
def _calibrated(estimator: CalibratedClassifierCV, method: str) -> Decider:
    check_is_fitted(estimator)
    calibrated = estimator.calibrated_classifiers_
    if method != "predict" or len(calibrated) != 1 or calibrated[0].method != "temperature":
        raise TypeError(
            "CalibratedClassifierCV gives no certificates unless one temperature keeps the order of "
            f"the scores and its own predict decides, got method={calibrated[0].method!r}, "
            f"{len(calibrated)} calibrated classifiers, asked for {method}; use method='temperature' "
            "and ensemble=False."
        )
    inner = decider_of(calibrated[0].estimator, "decision_function")
    inverse_temperature = float(calibrated[0].calibrators[0].beta_)
    # Without logits it takes probabilities. fit finds temperatures between exp(-10) and exp(10); far
    # beyond, products overflow.
    has_logits = hasattr(calibrated[0].estimator, "decision_function")
    in_range = 0 < inverse_temperature <= 1e12
    if type(inner) is not ByNetwork or not has_logits or not in_range:
        raise TypeError(
            "CalibratedClassifierCV gives no certificates unless its one inverse temperature lies "
            f"between 0 and 1e12 and scales logits, got {inverse_temperature} over "
            f"{type(calibrated[0].estimator).__name__}."
        )
    # Words are replaced by their positions before the classifier is fitted.
    positions = np.arange(len(estimator.classes_))
    if not any(np.array_equal(known, inner.classes) for known in (estimator.classes_, positions)):
        raise TypeError(
            "CalibratedClassifierCV gives no certificates if its classes are not those of its "
            f"classifier, got {estimator.classes_} and {inner.classes}."
        )
    return ByTemperature(inner.chain, estimator.classes_, inverse_temperature)


@_kind(FixedThresholdClassifier)
def _fixed_threshold(estimator: FixedThresholdClassifier, method: str) -> Decider:
    inner = getattr(estimator, "estimator_", estimator.estimator)
    return _threshold(estimator, inner, estimator.threshold, estimator.pos_label, method)


@_kind(TunedThresholdClassifierCV)
def _tuned_threshold(estimator: TunedThresholdClassifierCV, method: str) -> Decider:
    check_is_fitted(estimator, "estimator_")
    # The one private name: scikit-learn finds the positive label by way of the scorer alone.
    positive = estimator._curve_scorer._get_pos_label()
    return _threshold(estimator, estimator.estimator_, estimator.best_threshold_, positive, method)


def _threshold(estimator: Any, inner: Any, threshold: Any, positive: Any, method: str) -> Decider:
    if method != "predict":
        return decider_of(inner, method)  # scores are handed on as they are
    name, score = type(estimator).__name__, estimator.response_method
    if score == "auto":
        score = "predict_proba" if hasattr(inner, "predict_proba") else "decision_function"
    decider = decider_of(inner, score)
    if type(decider) is not ByNetwork or len(decider.classes) != 2:
        raise TypeError(
            f"{name} gives no certificates unless its scores are those of a LipschitzClassifier of two "
            f"classes, got {type(inner).__name__}."
        )
    if isinstance(threshold, str) and threshold == "auto":
        threshold = 0.5 if score == "predict_proba" else 0.0
    if not isinstance(threshold, Real) or np.isnan(float(threshold)):
        raise TypeError(f"{name} needs a threshold that is a number, got {threshold!r}.")
    known = decider.classes.tolist()
    if positive is not None and positive not in known:
        raise ValueError(f"{name} needs a pos_label that is one of {known}, got {positive!r}.")
    code = 1 if positive is None else known.index(positive)
    return ByThreshold(decider.chain, decider.classes, threshold, code)


@_kind(VotingClassifier)
def _voting(estimator: VotingClassifier, method: str) -> Decider:
    check_is_fitted(estimator)
    soft = estimator.voting == "soft"
    if method != "predict":
        raise TypeError(f"VotingClassifier gives no certificates of its {method}, only of predict.")
    asked = "predict_proba" if soft else "predict"
    members = [decider_of(each, asked) for each in estimator.estimators_]
    # Members are fitted to positions of labels.
    positions = np.arange(len(estimator.classes_))
    if not all(np.array_equal(member.classes, positions) for member in members):
        raise TypeError(
            "VotingClassifier gives no certificates unless each member knows all classes, got members "
            f"of {[len(member.classes) for member in members]} classes for {len(positions)}."
        )
    weights = [1.0] * len(members)
    if estimator.weights is not None:
        entries = zip(estimator.estimators, estimator.weights, strict=True)
        weights = [float(weight) for (_, each), weight in entries if not _is_dropped(each)]
    if len(weights) != len(members) or not any(weights) or not all(map(_in_range, weights)):
        raise TypeError(
            "VotingClassifier gives no certificates unless its weights are 0 or between 1e-9 and 1e9, "
            f"one a member and not all of them 0, got {weights} for {len(members)} members."
        )
    if not soft:
        return ByVotes(tuple(members), tuple(weights), estimator.classes_)
    plain = tuple(member for member in members if type(member) is ByNetwork)
    if len(plain) < len(members):
        raise TypeError(
            "VotingClassifier gives no certificates unless the probabilities of all members are those "
            f"of a LipschitzClassifier, got {[type(each).__name__ for each in estimator.estimators_]}."
        )
    return ByMean(plain, tuple(weights), estimator.classes_)


def _is_dropped(member: Any) -> bool:
    return isinstance(member, str) and member == "drop"


def _in_range(weight: float) -> bool:
    """Whether no product by it is flushed or overflows."""
    return weight == 0 or 1e-9 <= weight <= 1e9


_READ_HERE = frozenset(_KINDS)
