r"""Certificates of whole estimators, in the units of their own input."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklip.certified import Affine, Budget, CertifiedNetwork
from sklip.certified.decisions import Decisions
from sklip.certified.gains import Gains
from sklip.certified.integrity import refuse_altered
from sklip.certified.radii import softmax_budget
from sklip.estimators import LipschitzClassifier
from sklip.estimators.base import proven_network
from sklip.preprocessing.scales import column_names, given_scale, standard_deviations
from sklip.preprocessing.steps import flat_steps
from sklip.preprocessing.walk import Distances, fixed_mask, walk
from sklip.rows import as_numpy

__all__ = ["certificates", "predict_with_radii"]

# What scikit-learn's searches share: it hands X to the best estimator and does nothing else.
_SEARCH_PREDICT = inspect.getattr_static(GridSearchCV, "predict")

# A column whose gain is so many times the median limits the radius alone.
_THROTTLED = 30
# Warnings that were given: Python forgets which it has shown whenever filters change, as they do in
# each of scikit-learn's checks.
_WARNED: set[str] = set()


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


@dataclass(frozen=True)
class CertifiedRows:
    """What an estimator predicts for some rows, and what is proven of the way there.

    Distances are measured in the units of the columns that `gains` starts from.

    Parameters
    ----------
    network : CertifiedNetwork
    decided : Decisions
        What it made of the rows.
    labels : ndarray of shape (n_samples,)
        The class of each row's largest logit.
    gains : Gains
        How far a change of the columns comes where it gets to the network.
    drift : Affine
        How far rounding in the steps moves it.
    longest : ndarray of shape (n_samples,), or float
        Distance up to which no step can overflow.
    inverse_temperature : float, or None
        Of a softmax that decides instead.
    """

    network: CertifiedNetwork
    decided: Decisions
    labels: NDArray[Any]
    gains: Gains
    drift: Affine
    longest: Distances
    inverse_temperature: float | None

    def budget(self, bounds: NDArray[np.float64] | None) -> Budget:
        """Return what claims about neighbours set aside of the margins.

        Parameters
        ----------
        bounds : ndarray of shape (n_outputs, n_outputs), or None
            How fast each difference of logits moves with the change that a claim is about; None: that
            of what the network sees.

        Returns
        -------
        budget : Budget
        """
        network, decided, reach, drift = self.network, self.decided, self.gains.bound, self.drift
        budget = network.budget(decided, reach=reach, bounds=bounds, drift=drift)
        budget = replace(budget, longest=np.minimum(budget.longest, self.longest))
        if self.inverse_temperature is not None:
            change = network.lipschitz_bound * (reach + float(drift.slope))
            logits = decided.logits_in(network.arithmetic.dtype)
            budget += softmax_budget(logits, self.inverse_temperature, change)
            # What decides is made of logits in the network's precision, at x' as well.
            budget += network.precisions[0].budget(decided.pairs, decided.lengths, reach, drift)
        return budget


@dataclass(frozen=True)
class Opened:
    """An estimator taken apart, and the columns of the rows that it is given.

    Parameters
    ----------
    steps : list of fitted transformers
        What comes before the classifier.
    classifier : LipschitzClassifier
    inverse_temperature : float, or None
        Of a calibration around it.
    names : ndarray of shape (n_columns,), or None
        Names of the columns, where they have any.
    fixed : ndarray of shape (n_columns,)
        Which columns can't change.
    """

    steps: list[Any]
    classifier: LipschitzClassifier
    inverse_temperature: float | None
    names: NDArray[Any] | None
    fixed: NDArray[np.bool_]

    @classmethod
    def of(cls, estimator: Any, X: Any, fixed_columns: Iterable[str | int]) -> Opened:
        """Take an estimator apart.

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
        return cls(steps, classifier, inverse_temperature, names, fixed)

    def start(self, scale: NDArray[np.float64] | float = 1.0) -> Gains:
        """Return the columns as they are, in units of `scale`."""
        return Gains.at_start(len(self.fixed), self.fixed, scale)

    def is_network_alone(self, start: Gains) -> bool:
        """Whether columns get to the network as they are."""
        return not self.steps and bool((start.matrix == 1).all())

    def rows(self, X: Any, start: Gains) -> CertifiedRows:
        """Evaluate rows, a change of which is measured in the units of `start`."""
        network = proven_network(self.classifier)
        gains, drift = start, Affine()
        longest: Distances = math.inf
        if not self.is_network_alone(start):
            X, gains, drift, longest = walk(self.steps, X, self.names, start)
        decided = network.decisions(self.classifier.network_rows(X))
        labels = self.classifier.classes_[decided.codes]
        return CertifiedRows(network, decided, labels, gains, drift, longest, self.inverse_temperature)

    def chosen_scale(self, X: Any, scale: Any) -> NDArray[np.float64] | float:
        """Return the units that a caller chose, as numbers."""
        if scale is None:
            return 1.0
        refuse_images(X, "scale")
        if not (isinstance(scale, str) and scale == "std"):
            return given_scale(scale, self.names, self.fixed)
        of_network = getattr(self.classifier, "feature_std_", None)
        return standard_deviations(self.steps, of_network, self.names, self.fixed)

    def warn_of_a_throttle(self, gains: Gains) -> None:
        """Warn, once for each, of a column that makes all radii small since it counts far more."""
        moving = gains.of_columns[gains.of_columns > 0]
        if len(moving) and moving.max() > _THROTTLED * np.median(moving):
            column = column_names(np.array([gains.of_columns.argmax()]), self.names)[0]
            message = (
                f"The steps enlarge a change of column {column!r} far more than one of most other "
                "columns, so that it limits all radii in the units of X; pass scale='std', or a scale "
                "of your own, to measure each column in a unit that suits it."
            )
            if message not in _WARNED:
                _WARNED.add(message)
                warnings.warn(message, UserWarning, stacklevel=4)


def refuse_images(X: Any, argument: str) -> None:
    """Refuse arrays of images where columns are spoken of."""
    if np.ndim(X) > 2:
        raise ValueError(
            f"{argument} needs X of flat rows, got shape {np.shape(X)}; flatten the images, "
            "channels first."
        )


def _labels_and_radii(
    estimator: Any, X: Any, fixed_columns: Iterable[str | int], scale: Any
) -> tuple[NDArray[Any], NDArray[np.float64], bool]:
    """Return labels of the network's logits, radii, and whether a softmax of them decides instead."""
    X = as_numpy(X)
    opened = Opened.of(estimator, X, fixed_columns)
    start = opened.start(opened.chosen_scale(X, scale))
    rows, bounds = opened.rows(X, start), None
    if scale is None:
        opened.warn_of_a_throttle(rows.gains)
    if not opened.is_network_alone(start):
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
