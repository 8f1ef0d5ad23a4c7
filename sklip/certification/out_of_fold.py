r"""Labels and radii of rows by models that did not see them in training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import is_classifier
from sklearn.model_selection import check_cv, cross_validate

# scikit-learn documents it under this name.
from sklearn.utils import _safe_indexing, indexable
from sklearn.utils.parallel import Parallel, delayed

from sklip.certification.radii import predict_with_radii
from sklip.preprocessing.changes import Changes
from sklip.rows import as_numpy

__all__ = ["cross_val_certificates"]


def cross_val_certificates(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    cv: Any = None,
    n_jobs: int | None = None,
    verbose: int = 0,
    params: Mapping[str, Any] | None = None,
    pre_dispatch: int | str = "2*n_jobs",
    fixed_columns: Iterable[str | int] = (),
    scale: Any = None,
    categorical_edits: int | None = None,
    categorical_columns: Iterable[str | int] | None = None,
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    r"""Label and certified radius of each row, from a model that was fitted without it.

    Each radius is a promise about the model of its fold, as :func:`sklip.certificates` gives it in the
    units of the caller's own columns. What ``cross_val_predict`` is to predictions: for pictures and
    for certified accuracies of all rows; not for the score of a model, since each fold has its own.

    Parameters
    ----------
    estimator : estimator
        What :func:`sklip.certificates` takes, unfitted; a search is nested in the folds.
    X : array-like, sparse matrix or DataFrame
        What `estimator` takes.
    y : array-like of shape (n_samples,)
        Labels.
    groups : array-like of shape (n_samples,), default=None
        For the splits of `cv`.
    cv, n_jobs, verbose, params, pre_dispatch
        As for :func:`sklearn.model_selection.cross_validate`: `params` are those of ``fit``, such as
        ``{"sample_weight": weights}``, of which each fold gets its part. `cv` has to hold out each
        row once, and to train without it.
    fixed_columns, scale, categorical_edits, categorical_columns
        What may change, and in which units: as for :func:`sklip.certificates`. "std" stands for the
        standard deviations of each fold's own training rows.

    Returns
    -------
    labels : ndarray of shape (n_samples,)
    radii : ndarray of shape (n_samples,)
        L2, in the units of X, or of `scale`; 0 where nothing can be said.

    Raises
    ------
    ValueError
        If `cv` does not hold out each row exactly once, or trains on what it holds out, and as
        :func:`sklip.certificates`. The first fit that fails ends it.
    TypeError
        As :func:`sklip.certificates`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklip import LipschitzClassifier, certified_accuracy_score, cross_val_certificates
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LipschitzClassifier(max_epochs=20, random_state=0)
    >>> labels, radii = cross_val_certificates(clf, X, y, cv=3)
    >>> certified_accuracy_score(y, labels, radii, eps=0.1) > 0.8
    True
    """
    changes = Changes(fixed_columns, scale, categorical_edits, categorical_columns)
    X, y = indexable(as_numpy(X), as_numpy(y))
    splits = list(check_cv(cv, y, classifier=is_classifier(estimator)).split(X, y, groups))
    held_out = [test for _, test in splits]
    rows, n_samples = np.concatenate(held_out), np.shape(y)[0]
    if not np.array_equal(np.sort(rows), np.arange(n_samples)):
        raise ValueError(
            f"cv must hold out each row exactly once, as KFold does, got {len(rows)} held-out rows of "
            f"{n_samples}."
        )
    every = np.arange(n_samples)
    seen = sum(len(np.intersect1d(every[train], every[test])) for train, test in splits)
    if seen:
        raise ValueError(
            f"cv must hold out rows from training, got splits in which {seen} rows are in both parts; "
            "leave what is tested out of what is trained on."
        )
    folds = cross_validate(
        estimator,
        X,
        y,
        scoring=_no_score,
        cv=splits,
        n_jobs=n_jobs,
        verbose=verbose,
        params=params,
        pre_dispatch=pre_dispatch,
        return_estimator=True,
        error_score="raise",
    )
    found = Parallel(n_jobs=n_jobs, pre_dispatch=pre_dispatch)(
        delayed(predict_with_radii)(fitted, _safe_indexing(X, indices), **vars(changes))
        for fitted, indices in zip(folds["estimator"], held_out, strict=True)
    )
    labels, radii = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(rows)
    return labels[order], radii[order]


def _no_score(estimator: Any, X: Any, y: Any) -> float:
    """The score of nothing: predictions are made once, with their radii."""
    return 0.0
