r"""Certificates of whole estimators, in the units of their own input."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from sklip.certified import Affine, CertifiedNetwork
from sklip.certified.arithmetic import floored_product
from sklip.deciders import ByNetwork, Chain, Claims, Decider, View
from sklip.estimators.base import proven_network
from sklip.preprocessing.gains import Gains
from sklip.preprocessing.monotone_rules import refuse_sparse_quantiles
from sklip.preprocessing.walk import Distances, fixed_mask, walk
from sklip.rows import as_numpy
from sklip.wrappers import decider_of

__all__ = ["certificates", "nearest_rival", "predict_with_radii"]


def certificates(
    estimator: Any, X: ArrayLike, *, fixed_columns: Iterable[str | int] = ()
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
        over either; what wraps either of these: a CalibratedClassifierCV with ``method="temperature"``
        and ``ensemble=False``, a FixedThresholdClassifier or TunedThresholdClassifierCV, a
        VotingClassifier of several, imbalanced-learn's Pipeline, and what
        :func:`sklip.register_wrapper` adds. Pipeline steps: scalers, PCA, TruncatedSVD, SimpleImputer,
        QuantileTransformer, feature selectors, "passthrough", Pipelines, ColumnTransformers and
        FeatureUnions of these, and what :func:`sklip.preprocessing.register_transformer` adds.
    X : array-like, sparse matrix or DataFrame
        What `estimator` takes.
    fixed_columns : iterable of str or int, default=()
        Columns that can't change, by name or by position at ``fit``: the radius speaks of x' that agree
        with x there. Parts of a ColumnTransformer that read fixed columns only may be anything
        (OneHotEncoder, say); what they compute is taken as given.

    Returns
    -------
    radii : ndarray of shape (n_samples,)
        L2, in the units of X; 0 where nothing can be said, as for rows with missing values.

    Raises
    ------
    TypeError
        For an estimator without certificates, or a step without a proven bound.
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
    return _claimed(estimator, X, fixed_columns)[2].radii


def predict_with_radii(
    estimator: Any, X: ArrayLike, *, fixed_columns: Iterable[str | int] = ()
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    r"""Labels as from ``estimator.predict``, and a radius inside which each can't change.

    In one pass; only where something behind the network decides, as in a CalibratedClassifierCV, and a
    row has radius 0 is ``predict`` asked as well.

    Parameters
    ----------
    estimator : fitted estimator
        As for :func:`certificates`.
    X : array-like, sparse matrix or DataFrame
        What `estimator` takes.
    fixed_columns : iterable of str or int, default=()
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
    decider, X, claims = _claimed(estimator, X, fixed_columns)
    return _labels(estimator, decider, X, claims), claims.radii


def nearest_rival(
    estimator: Any, X: ArrayLike, *, fixed_columns: Iterable[str | int] = ()
) -> NDArray[Any]:
    r"""Class of each row that limits its radius: that which the certificate would lose to first.

    It is the class whose margin over it, less what is set aside, is the first to be used up as the
    distance grows. Of a vote it is the class that leads as soon as the bound no longer holds.

    Parameters
    ----------
    estimator : fitted estimator
        As for :func:`certificates`.
    X : array-like, sparse matrix or DataFrame
        What `estimator` takes.
    fixed_columns : iterable of str or int, default=()
        As for :func:`certificates`.

    Returns
    -------
    rivals : ndarray of shape (n_samples,)
        Labels. Where the radius is 0, the class next to the predicted one by what was computed, of a
        filled row where values are missing; where no other class can be reached at any distance, as
        that of a constant network, the predicted class itself.

    Raises
    ------
    TypeError
        As :func:`certificates`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklip import LipschitzClassifier, nearest_rival
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LipschitzClassifier(max_epochs=50, random_state=0).fit(X, y)
    >>> nearest_rival(clf, X[:3])
    array([1, 1, 1])
    """
    decider, X, claims = _claimed(estimator, X, fixed_columns)
    labels, codes = _labels(estimator, decider, X, claims), decider.classes[claims.codes]
    # Where a tie is broken in another way, the first of it is the rival.
    return np.asarray(np.where(labels == codes, decider.classes[claims.rivals], codes))


def _labels(estimator: Any, decider: Decider, X: Any, claims: Claims) -> NDArray[Any]:
    """Return the labels of predict, which it is asked for only where they are not certain."""
    if type(decider) is ByNetwork or (claims.radii > 0).all():
        return np.asarray(decider.classes[claims.codes])
    # Rows of radius 0 may be ties that a softmax, say, breaks in a way of its own.
    return np.asarray(estimator.predict(X))


def _claimed(
    estimator: Any, X: Any, fixed_columns: Iterable[str | int]
) -> tuple[Decider, NDArray[Any], Claims]:
    """Return how an estimator decides, X, and what is certified of its rows."""
    decider, X = decider_of(estimator), as_numpy(X)
    if isinstance(fixed_columns, Iterable) and not isinstance(fixed_columns, str | bytes):
        fixed_columns = tuple(fixed_columns)  # read once for each chain
    return decider, X, decider.claims(lambda chain: _view(chain, X, fixed_columns))


def _view(chain: Chain, X: Any, fixed_columns: Iterable[str | int]) -> View:
    """Take rows through a chain."""
    steps, classifier = chain.steps, chain.classifier
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
    network = proven_network(classifier, chain.method)
    longest: Distances = math.inf
    reach, bounds, drift = 1.0, None, Affine()
    if steps or fixed.any():
        given = X
        X, gains, drift, longest = walk(steps, X, names, fixed)
        refuse_sparse_quantiles(steps, given)
        reach, bounds = gains.bound, _margin_bounds_behind(network, gains)
    decided = network.decisions(classifier.network_rows(X))
    return View(network, decided, reach, bounds, drift, longest)


def _margin_bounds_behind(network: CertifiedNetwork, gains: Gains) -> NDArray[np.float64]:
    """Return how fast each difference of logits moves with the columns that `gains` starts from."""
    bounds: NDArray[np.float64] = floored_product(network.margin_bounds, gains.bound)
    factors = gains.separate_factors
    folded = None if factors is None else network.margin_bounds_behind(factors)
    return bounds if folded is None else np.minimum(bounds, folded)
