r"""Certificates of whole estimators, in the units of their own input."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklip.certified.integrity import refuse_altered
from sklip.estimators import LipschitzClassifier
from sklip.opened import OpenedEstimator, refuse_images
from sklip.preprocessing.steps import flat_steps
from sklip.preprocessing.walk import fixed_mask
from sklip.rows import as_numpy

__all__ = ["certificates", "predict_with_radii"]

# What scikit-learn's searches share: it hands X to the best estimator and does nothing else.
_SEARCH_PREDICT = inspect.getattr_static(GridSearchCV, "predict")


def certificates(
    estimator: Any, X: ArrayLike, *, fixed_columns: Iterable[str | int] = (), scale: Any = None
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
    scale : array-like of shape (n_columns,), Series, dict or "std", default=None
        Unit of each column, a positive number: the radius speaks of x' with
        :math:`\sum_c ((x'_c - x_c) / s_c)^2 < r^2`. A Series or dict goes by names or by positions at
        ``fit`` and may leave out fixed columns. "std" takes the standard deviations of the training
        data, where a StandardScaler or the classifier (`feature_std_`) saw them before any step
        mixed columns. None: 1 for all, a radius in the units of X itself.

    Returns
    -------
    radii : ndarray of shape (n_samples,)
        L2, in the units of X, or of `scale`; 0 where nothing can be said, as for rows with missing
        values.

    Raises
    ------
    TypeError
        For an estimator without certificates, or a step without a proven bound.
    ValueError
        For columns that there are none of, and scales that are missing, not positive or not known.
    NotFittedError
        If the estimator is not fitted.

    Warns
    -----
    UserWarning
        Once for a column: if no `scale` is given, and the steps enlarge a change of it more than 30
        times as much as one of the median column. The radius is then as small as this column needs it:
        of two columns in the same table, 0.01 may be the whole range of one, and nothing to the other.

    See Also
    --------
    predict_with_radii : The labels as well, for the same time.
    certified_ranges : How far each column may move alone.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklip import LipschitzClassifier, certificates
    >>> X, y = load_iris(return_X_y=True)
    >>> pipeline = make_pipeline(StandardScaler(), LipschitzClassifier(max_epochs=5, random_state=0))
    >>> certificates(pipeline.fit(X, y), X).shape
    (150,)

    In standard deviations of each column:

    >>> in_deviations = certificates(pipeline, X, scale="std")
    >>> bool(np.allclose(in_deviations, certificates(pipeline, X, scale=X.std(axis=0))))
    True
    """
    return _labels_and_radii(estimator, X, fixed_columns, scale)[1]


def predict_with_radii(
    estimator: Any, X: ArrayLike, *, fixed_columns: Iterable[str | int] = (), scale: Any = None
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
    scale : array-like of shape (n_columns,), Series, dict or "std", default=None
        As for :func:`certificates`.

    Returns
    -------
    labels : ndarray of shape (n_samples,)
    radii : ndarray of shape (n_samples,)
        L2, in the units of X, or of `scale`; 0 where nothing can be said.

    Raises
    ------
    TypeError, ValueError
        As :func:`certificates`.

    Warns
    -----
    UserWarning
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
    labels, radii, tempered = _labels_and_radii(estimator, X, fixed_columns, scale)
    # Where a softmax decides, rows of radius 0 may be ties that it breaks in another way.
    return estimator.predict(X) if tempered else labels, radii


def opened(estimator: Any, X: Any, fixed_columns: Iterable[str | int]) -> OpenedEstimator:
    """Take a fitted estimator apart.

    Parameters
    ----------
    estimator, X, fixed_columns
        As for :func:`certificates`.

    Returns
    -------
    parts : OpenedEstimator

    Raises
    ------
    TypeError
        For an estimator without certificates.
    ValueError
        For fixed columns that there are none of.
    """
    steps, classifier, inverse_temperature = _unwrapped(estimator)
    first = steps[0] if steps else classifier
    check_is_fitted(first)
    names = getattr(first, "feature_names_in_", None)
    n_columns = getattr(first, "n_features_in_", None) or math.prod(np.shape(X)[1:])
    fixed = fixed_mask(fixed_columns, names, n_columns)
    if fixed.any():
        refuse_images(X, "fixed_columns")
    return OpenedEstimator(steps, classifier, inverse_temperature, names, fixed)


def _labels_and_radii(
    estimator: Any, X: Any, fixed_columns: Iterable[str | int], scale: Any
) -> tuple[NDArray[Any], NDArray[np.float64], bool]:
    """Return labels of the network's logits, radii, and whether a softmax of them decides instead."""
    X = as_numpy(X)
    parts = opened(estimator, X, fixed_columns)
    start = parts.start(parts.chosen_scale(X, scale))
    rows, bounds = parts.rows(X, start), None
    if scale is None:
        parts.warn_of_a_throttle(rows.gains)
    if not parts.is_network_alone(start):
        bounds = rows.network.margins_behind(rows.gains).bounds
    budget = rows.budget(bounds)
    return rows.labels, budget.radii(rows.decided.logits), rows.inverse_temperature is not None


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
