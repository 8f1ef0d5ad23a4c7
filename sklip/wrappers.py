r"""From a fitted estimator to how it decides: what stands around a classifier is taken off or refused.

Each type of wrapper is known exactly, as the rules of layers and transformers are: a subclass may
predict otherwise, and is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklip.certified.integrity import refuse_altered
from sklip.deciders import ByNetwork, ByTemperature, Chain, Decider
from sklip.estimators import LipschitzClassifier
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
    :func:`sklip.certificates` takes. A wrapper with a replaced method is refused, and so are subclasses.

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
            if issubclass(each, LipschitzClassifier) or each in _READ_HERE:
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
        check_is_fitted(estimator)
        return ByNetwork(Chain((), estimator, method), estimator.classes_)
    refuse_altered(estimator)
    name = type(estimator).__name__
    if type(estimator) in _KINDS:
        return _KINDS[type(estimator)](estimator, method)
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
    check_is_fitted(pipeline)
    before = [step for _, part in pipeline.steps[:-1] for step in flat_steps(part)]
    return decider_of(pipeline.steps[-1][1], method).behind(before)


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
    # fit finds values between exp(-10) and exp(10); far beyond, products overflow.
    if type(inner) is not ByNetwork or not 0 < inverse_temperature <= 1e12:
        raise TypeError(
            "CalibratedClassifierCV gives no certificates unless its one inverse temperature lies "
            f"between 0 and 1e12 and scales logits, got {inverse_temperature} and a classifier that "
            f"decides {type(inner).__name__}."
        )
    # Words are replaced by their positions before the classifier is fitted.
    positions = np.arange(len(estimator.classes_))
    if not any(np.array_equal(known, inner.classes) for known in (estimator.classes_, positions)):
        raise TypeError(
            "CalibratedClassifierCV gives no certificates if its classes are not those of its "
            f"classifier, got {estimator.classes_} and {inner.classes}."
        )
    return ByTemperature(inner.chain, estimator.classes_, inverse_temperature)


_READ_HERE = frozenset(_KINDS)
