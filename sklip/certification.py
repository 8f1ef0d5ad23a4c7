r"""Certificates of whole estimators, in the units of their own input."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklip.certified import Affine, CertifiedNetwork
from sklip.certified.arithmetic import floored_product
from sklip.certified.integrity import refuse_altered
from sklip.certified.radii import softmax_budget
from sklip.estimators import LipschitzClassifier
from sklip.estimators.base import proven_network
from sklip.preprocessing.edits import radii_under_edits
from sklip.preprocessing.gains import Gains
from sklip.preprocessing.steps import flat_steps
from sklip.preprocessing.walk import Distances, fixed_mask, walk
from sklip.rows import as_numpy

__all__ = ["certificates", "predict_with_radii"]

# What scikit-learn's searches share: it hands X to the best estimator and does nothing else.
_SEARCH_PREDICT = inspect.getattr_static(GridSearchCV, "predict")


def certificates(
    estimator: Any,
    X: ArrayLike,
    *,
    fixed_columns: Iterable[str | int] = (),
    categorical_edits: int | None = None,
    categorical_columns: Iterable[str | int] | None = None,
) -> NDArray[np.float64]:
    r"""Radius around each row of X inside which ``estimator.predict`` can't change.

    In the units of the estimator's own input: how far a change of the raw columns carries through the
    steps of a Pipeline is bounded by proven constants, and the rounding of each step is charged. Steps
    compute in the precision of what they are given: behind steps, the radius speaks of rows whose
    columns have the types of those of X.

    Parameters
    ----------
    estimator : fitted estimator
        A LipschitzClassifier; a Pipeline that ends in one; a fitted search (GridSearchCV and the like)
        over either; a CalibratedClassifierCV of either with ``method="temperature"`` and
        ``ensemble=False``. Pipeline steps: scalers, PCA, TruncatedSVD, SimpleImputer, feature
        selectors, "passthrough", Pipelines, ColumnTransformers and FeatureUnions of these, and what
        :func:`sklip.preprocessing.register_transformer` adds.
    X : array-like, sparse matrix or DataFrame
        What `estimator` takes.
    fixed_columns : iterable of str or int, default=()
        Columns that can't change, by name or by position at ``fit``: the radius speaks of x' that agree
        with x there. Parts of a ColumnTransformer that read fixed columns only may be anything
        (OneHotEncoder, say); what they compute is taken as given.
    categorical_edits : int, default=None
        How many columns of categories may take any other of their known values at the same time: the
        radius, of the columns of numbers, holds whichever they are. Every alternative is evaluated; of
        the radii the least is given, and 0 if any has another label. 0: categories stay as they are.
        None: encoders are refused unless their columns are in `fixed_columns`.
    categorical_columns : iterable of str or int, default=None
        Which columns may be edited, by name or by position at ``fit``; those of other encoders stay as
        they are. If None, all that encoders of a ColumnTransformer read (OneHotEncoder, OrdinalEncoder,
        TargetEncoder), without those in `fixed_columns`. Known are the values in ``categories_``, and
        missing ones that a SimpleImputer before the encoder replaces by one of these.

    Returns
    -------
    radii : ndarray of shape (n_samples,)
        L2, in the units of X; 0 where nothing can be said, as for rows with missing values.

    Raises
    ------
    TypeError
        For an estimator without certificates, or a step without a proven bound.
    ValueError
        For columns that are none or can't be edited, values in them that are not known, and edits that
        would take more than 10 ** 8 evaluations.
    NotFittedError
        If the estimator is not fitted.

    See Also
    --------
    predict_with_radii : The labels as well, for the same time.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklip import LipschitzClassifier, certificates
    >>> X, y = load_iris(return_X_y=True)
    >>> pipeline = make_pipeline(StandardScaler(), LipschitzClassifier(max_epochs=5, random_state=0))
    >>> certificates(pipeline.fit(X, y), X).shape
    (150,)
    """
    return _under_edits(estimator, X, fixed_columns, categorical_edits, categorical_columns)[1]


def predict_with_radii(
    estimator: Any,
    X: ArrayLike,
    *,
    fixed_columns: Iterable[str | int] = (),
    categorical_edits: int | None = None,
    categorical_columns: Iterable[str | int] | None = None,
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    r"""Labels as from ``estimator.predict``, and a radius inside which each can't change.

    In one pass; only a CalibratedClassifierCV is asked for its labels apart.

    Parameters
    ----------
    estimator : fitted estimator
        As for :func:`certificates`.
    X : array-like, sparse matrix or DataFrame
        What `estimator` takes.
    fixed_columns : iterable of str or int, default=()
        As for :func:`certificates`.
    categorical_edits : int, default=None
        As for :func:`certificates`.
    categorical_columns : iterable of str or int, default=None
        As for :func:`certificates`.

    Returns
    -------
    labels : ndarray of shape (n_samples,)
    radii : ndarray of shape (n_samples,)
        L2, in the units of X; 0 where nothing can be said.

    Raises
    ------
    TypeError
        As :func:`certificates`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklip import LipschitzClassifier, predict_with_radii
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LipschitzClassifier(max_epochs=5, random_state=0).fit(X, y)
    >>> labels, radii = predict_with_radii(clf, X)
    >>> bool((labels == clf.predict(X)).all())
    True
    """
    labels, radii, tempered = _under_edits(
        estimator, X, fixed_columns, categorical_edits, categorical_columns
    )
    # Where a softmax decides, rows of radius 0 may be ties that it breaks in another way.
    return estimator.predict(X) if tempered else labels, radii


def _under_edits(
    estimator: Any,
    X: Any,
    fixed_columns: Iterable[str | int],
    categorical_edits: int | None,
    categorical_columns: Iterable[str | int] | None,
) -> tuple[NDArray[Any], NDArray[np.float64], bool]:
    """As :func:`_labels_and_radii`, for x' in which categories may differ as well."""
    if categorical_edits is None:
        if categorical_columns is not None:
            raise ValueError(
                "categorical_columns needs categorical_edits, how many may change at once."
            )
        return _labels_and_radii(estimator, X, fixed_columns)
    steps, classifier, inverse_temperature = _unwrapped(estimator)
    check_is_fitted(steps[0] if steps else classifier)
    labels, radii = radii_under_edits(
        lambda rows, fixed: _labels_and_radii(estimator, rows, fixed)[:2],
        steps,
        as_numpy(X),
        fixed_columns=fixed_columns,
        categorical_edits=categorical_edits,
        categorical_columns=categorical_columns,
        n_values=classifier.n_features_in_,
    )
    return labels, radii, inverse_temperature is not None


def _labels_and_radii(
    estimator: Any, X: Any, fixed_columns: Iterable[str | int]
) -> tuple[NDArray[Any], NDArray[np.float64], bool]:
    """Return labels of the network's logits, radii, and whether a softmax of them decides instead."""
    steps, classifier, inverse_temperature = _unwrapped(estimator)
    X = as_numpy(X)
    first = steps[0] if steps else classifier
    check_is_fitted(first)
    names = getattr(first, "feature_names_in_", None)
    n_columns = getattr(first, "n_features_in_", None) or math.prod(np.shape(X)[1:])
    fixed = fixed_mask(fixed_columns, names, n_columns)
    if fixed.any() and np.ndim(X) > 2:
        raise ValueError(
            f"fixed_columns needs X of flat rows, got shape {np.shape(X)}; flatten the images, "
            "channels first."
        )
    network = proven_network(classifier)
    longest: Distances = math.inf
    reach, bounds, drift = 1.0, None, Affine()
    if steps or fixed.any():
        X, gains, drift, longest = walk(steps, X, names, fixed)
        reach, bounds = gains.bound, _margin_bounds_behind(network, gains)
    decided = network.decisions(classifier.network_rows(X))
    budget = network.budget(decided, reach=reach, bounds=bounds, drift=drift)
    budget = replace(budget, longest=np.minimum(budget.longest, longest))
    if inverse_temperature is not None:
        change = network.lipschitz_bound * (reach + float(drift.slope))
        logits = decided.logits_in(network.arithmetic.dtype)
        budget += softmax_budget(logits, inverse_temperature, change)
        # What decides is made of logits in the network's precision, at x' as well.
        budget += network.precisions[0].budget(decided.pairs, decided.lengths, reach, drift)
    labels = classifier.classes_[decided.codes]
    return labels, budget.radii(decided.logits), inverse_temperature is not None


def _margin_bounds_behind(network: CertifiedNetwork, gains: Gains) -> NDArray[np.float64]:
    """Return how fast each difference of logits moves with the columns that `gains` starts from."""
    bounds: NDArray[np.float64] = floored_product(network.margin_bounds, gains.bound)
    factors = gains.separate_factors
    folded = None if factors is None else network.margin_bounds_behind(factors)
    return bounds if folded is None else np.minimum(bounds, folded)


def _unwrapped(estimator: Any) -> tuple[list[Any], Any, float | None]:
    """Return the steps before the classifier, the classifier, and the inverse temperature."""
    name = type(estimator).__name__
    if isinstance(estimator, LipschitzClassifier):
        return [], estimator, None
    refuse_altered(estimator)
    if type(estimator) is FrozenEstimator:
        return _unwrapped(estimator.estimator)
    if type(estimator) is Pipeline:
        check_is_fitted(estimator)
        steps, classifier, inverse_temperature = _unwrapped(estimator.steps[-1][1])
        before = [step for _, part in estimator.steps[:-1] for step in flat_steps(part)]
        return before + steps, classifier, inverse_temperature
    if inspect.getattr_static(estimator, "predict", None) is _SEARCH_PREDICT:
        check_is_fitted(estimator)
        if not hasattr(estimator, "best_estimator_"):
            raise TypeError(f"{name} needs refit=True to give certificates.")
        return _unwrapped(estimator.best_estimator_)
    if type(estimator) is CalibratedClassifierCV:
        check_is_fitted(estimator)
        return _uncalibrated(estimator)
    raise TypeError(
        f"{name} gives no certificates; pass a LipschitzClassifier, a Pipeline that ends in one, a "
        "fitted search over either, or a CalibratedClassifierCV of either with method='temperature'."
    )


def _uncalibrated(estimator: CalibratedClassifierCV) -> tuple[list[Any], Any, float]:
    calibrated = estimator.calibrated_classifiers_
    if len(calibrated) != 1 or calibrated[0].method != "temperature":
        raise TypeError(
            "CalibratedClassifierCV gives no certificates unless one temperature keeps the order of "
            f"the scores, got method={calibrated[0].method!r} and {len(calibrated)} calibrated "
            "classifiers; use method='temperature' and ensemble=False."
        )
    steps, classifier, inner = _unwrapped(calibrated[0].estimator)
    inverse_temperature = float(calibrated[0].calibrators[0].beta_)
    # fit finds values between exp(-10) and exp(10); far beyond, products overflow.
    if inner is not None or not 0 < inverse_temperature <= 1e12:
        raise TypeError(
            "CalibratedClassifierCV gives no certificates unless its one inverse temperature lies "
            f"between 0 and 1e12, got {inverse_temperature} over a classifier with {inner}."
        )
    # Words are replaced by their positions before the classifier is fitted.
    positions = np.arange(len(estimator.classes_))
    known = (estimator.classes_, positions)
    if not any(np.array_equal(classes, classifier.classes_) for classes in known):
        raise TypeError(
            "CalibratedClassifierCV gives no certificates if its classes are not those of its "
            f"classifier, got {estimator.classes_} and {classifier.classes_}."
        )
    return steps, classifier, inverse_temperature
