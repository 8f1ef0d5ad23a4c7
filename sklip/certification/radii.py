r"""Certificates of whole estimators, in the units of their own input."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklip.certification.chains import (
    common_columns,
    n_rows_of,
    pieces_of,
    refuse_other_labels,
    start_of,
    view_of,
    warn_of_a_throttle,
)
from sklip.certification.deciders import ByNetwork, Claims, Decider
from sklip.certification.wrappers import decider_of
from sklip.preprocessing.changes import Changes
from sklip.preprocessing.edits import CategoricalEdits, Found
from sklip.preprocessing.steps import described_steps
from sklip.rows import as_numpy, joined

__all__ = ["certificates", "nearest_rival", "predict_with_radii"]


def certificates(
    estimator: Any,
    X: ArrayLike,
    *,
    fixed_columns: Iterable[str | int] = (),
    scale: Any = None,
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
        over either; what wraps either of these: a CalibratedClassifierCV with ``method="temperature"``
        and ``ensemble=False``, a FixedThresholdClassifier or TunedThresholdClassifierCV, a
        VotingClassifier of several, imbalanced-learn's Pipeline, and what
        :func:`sklip.register_wrapper` adds. Pipeline steps: scalers, PCA, TruncatedSVD, SimpleImputer,
        QuantileTransformer, feature selectors, "passthrough", Pipelines, ColumnTransformers and
        FeatureUnions of these, and what :func:`sklip.preprocessing.register_transformer` adds.
    X : array-like, sparse matrix or DataFrame
        What `estimator` takes. Above a few million values it is transformed a part at a time, so steps
        must act row by row, as scikit-learn's own do.
    fixed_columns : iterable of str or int, default=()
        Columns that can't change, by name or by position at ``fit``: the radius speaks of x' that agree
        with x there. Parts of a ColumnTransformer that read fixed columns only may be anything
        (OneHotEncoder, say); what they compute is taken as given.
    scale : array-like of shape (n_columns,), Series, dict or "std", default=None
        Unit of each column, a positive number: the radius speaks of x' with
        :math:`\sum_c ((x'_c - x_c) / s_c)^2 < r^2`. A Series or dict goes by names or by positions at
        ``fit`` and may leave out fixed columns. "std" takes the standard deviations of the training
        data, where a StandardScaler or the classifier (`feature_std_`) saw them before any step
        mixed columns; of several members of a vote, the first that knows. They are those of the values
        that it saw: filled in by a SimpleImputer, resampled or weighted. None: 1 for all, a radius in
        the units of X itself.
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
        L2, in the units of X, or of `scale`; 0 where nothing can be said, as for rows with missing
        values.

    Raises
    ------
    TypeError
        For an estimator without certificates, a step without a proven bound, and members of a vote
        that were fitted on other columns, where columns are told apart.
    ValueError
        For columns that there are none of or that can't be edited, values in them that are not known,
        edits that would take more than 10 ** 8 evaluations, and scales that are missing, not positive
        or not known.
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
    nearest_rival : The class that limits each radius.
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
    changes = Changes(fixed_columns, scale, categorical_edits, categorical_columns)
    (radii,) = _answered(estimator, X, changes, lambda decider, rows, claims: (claims.radii,))
    return radii


def predict_with_radii(
    estimator: Any,
    X: ArrayLike,
    *,
    fixed_columns: Iterable[str | int] = (),
    scale: Any = None,
    categorical_edits: int | None = None,
    categorical_columns: Iterable[str | int] | None = None,
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
    fixed_columns, scale, categorical_edits, categorical_columns
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
    changes = Changes(fixed_columns, scale, categorical_edits, categorical_columns)

    def answer(decider: Decider, rows: Any, claims: Claims) -> tuple[NDArray[Any], ...]:
        return _labels(estimator, decider, rows, claims), claims.radii

    labels, radii = _answered(estimator, X, changes, answer)
    return labels, radii


def nearest_rival(
    estimator: Any,
    X: ArrayLike,
    *,
    fixed_columns: Iterable[str | int] = (),
    scale: Any = None,
    categorical_edits: int | None = None,
    categorical_columns: Iterable[str | int] | None = None,
) -> NDArray[Any]:
    r"""Class of each row that limits its radius: that which the certificate would lose to first.

    It is the class whose margin over it, less what is set aside, is the first to be used up as the
    distance grows. Of a vote it is the class that leads as soon as the bound no longer holds. Under
    `categorical_edits` it is that of the edited row with the least radius, or its class where that is
    another.

    Parameters
    ----------
    estimator : fitted estimator
        As for :func:`certificates`.
    X : array-like, sparse matrix or DataFrame
        What `estimator` takes.
    fixed_columns, scale, categorical_edits, categorical_columns
        As for :func:`certificates`.

    Returns
    -------
    rivals : ndarray of shape (n_samples,)
        Labels. Where the radius is 0, the class next to the predicted one by what was computed, of a
        filled row where values are missing; where no other class can be reached at any distance, as
        that of a constant network, the predicted class itself.

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
    >>> from sklip import LipschitzClassifier, nearest_rival
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LipschitzClassifier(max_epochs=50, random_state=0).fit(X, y)
    >>> nearest_rival(clf, X[:3])
    array([1, 1, 1])
    """
    changes = Changes(fixed_columns, scale, categorical_edits, categorical_columns)

    def answer(decider: Decider, rows: Any, claims: Claims) -> tuple[NDArray[Any], ...]:
        labels, codes = _labels(estimator, decider, rows, claims), decider.classes[claims.codes]
        # Where a tie is broken in another way, the first of it is the rival.
        return (np.where(labels == codes, decider.classes[claims.rivals], codes),)

    (rivals,) = _answered(estimator, X, changes, answer)
    return rivals


def _labels(estimator: Any, decider: Decider, X: Any, claims: Claims) -> NDArray[Any]:
    """Return the labels of predict, which it is asked for only where they are not certain."""
    if type(decider) is ByNetwork or (claims.radii > 0).all():
        return np.asarray(decider.classes[claims.codes])
    # Rows of radius 0 may be ties that a softmax, say, breaks in a way of its own.
    return np.asarray(estimator.predict(X))


def _answered(
    estimator: Any,
    X: Any,
    changes: Changes,
    answer: Callable[[Decider, Any, Claims], tuple[NDArray[Any], ...]],
) -> tuple[NDArray[Any], ...]:
    """Return what is answered, piece by piece, about rows and what is certified of them."""
    decider, X = decider_of(estimator), as_numpy(X)
    chains, edits = decider.chains, None
    refuse_other_labels(X, chains[0].names, changes)
    if changes.categorical_edits is not None:
        names, n_columns = common_columns(chains, X, told_apart=True)
        edits = CategoricalEdits(changes, [chain.steps for chain in chains], X, names, n_columns)
        changes = Changes(edits.held, changes.scale)
    start = start_of(chains, X, changes)

    def claims_on(rows: Any) -> Claims:
        return decider.claims(lambda chain: view_of(chain, rows, start))

    def found(rows: Any) -> Found:
        claims = claims_on(rows)
        return claims.codes, claims.radii, claims.rivals

    n_rows, pieces = n_rows_of(X), pieces_of(chains, X)
    if edits is None:
        answers = joined(n_rows, (answer(decider, rows, claims_on(rows)) for rows in pieces))
    else:
        n_values = max(chain.classifier.n_features_in_ for chain in chains)
        codes, radii, rivals = joined(n_rows, map(found, pieces))
        least = edits.least(found, (codes, radii, rivals), n_values)
        answers = answer(decider, X, Claims(*least))
    if changes.scale is None:
        for chain in chains:
            warn_of_a_throttle(described_steps(chain.steps, start)[1], chain.names)
    return answers
