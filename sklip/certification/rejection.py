r"""Predictions that abstain where nothing is certified far enough."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklip.certification.radii import predict_with_radii
from sklip.certification.wrappers import decider_of
from sklip.metrics import check_eps

__all__ = ["predict_or_reject"]


def predict_or_reject(
    estimator: Any,
    X: ArrayLike,
    eps: float,
    *,
    reject_label: Any,
    fixed_columns: Iterable[str | int] = (),
    scale: Any = None,
    categorical_edits: int | None = None,
    categorical_columns: Iterable[str | int] | None = None,
) -> NDArray[Any]:
    r"""Labels that no change of X by `eps` or less can alter; `reject_label` where that is not proven.

    Every row with a label of `estimator` has a certified radius above `eps`: whatever
    :math:`\|x' - x\|_2 \le` `eps` does, ``estimator.predict`` gives that label. x' may still be
    rejected, or x be a changed row itself; but if x was obtained from some row by such a change, and is
    not rejected, ``estimator.predict`` gives both the same label.

    Parameters
    ----------
    estimator : fitted estimator
        As for :func:`sklip.certificates`.
    X : array-like, sparse matrix or DataFrame
        What `estimator` takes.
    eps : float
        L2, in the units of X, or of `scale`; at least 0.
    reject_label : int, float, str or object
        Stands for "can't say": no class, and of the kind of the classes, so that it can stand beside
        them in one array: a str beside str, an int beside integers, a number beside floating-point
        numbers; whatever beside Python objects.
    fixed_columns, scale, categorical_edits, categorical_columns
        As for :func:`sklip.certificates`.

    Returns
    -------
    labels : ndarray of shape (n_samples,)
        Of the type of the classes, made wide enough for `reject_label`.

    Raises
    ------
    TypeError
        For a `reject_label` of another kind, and as :func:`sklip.certificates`.
    ValueError
        For a `reject_label` that is a class, and an `eps` out of range.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklip import LipschitzClassifier, predict_or_reject
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LipschitzClassifier(max_epochs=50, random_state=0).fit(X, y)
    >>> predict_or_reject(clf, X[[0, 1, 70]], eps=0.2, reject_label=-1)
    array([ 0,  0, -1])
    """
    eps = check_eps(eps)
    classes = decider_of(estimator).classes
    dtype = _common_dtype(classes.dtype, reject_label)
    if any(reject_label == known for known in classes.tolist()):
        raise ValueError(
            f"reject_label must not be one of the classes, got {reject_label!r} among "
            f"{classes.tolist()}; choose another."
        )
    labels, radii = predict_with_radii(
        estimator,
        X,
        fixed_columns=fixed_columns,
        scale=scale,
        categorical_edits=categorical_edits,
        categorical_columns=categorical_columns,
    )
    answers = labels.astype(dtype)
    answers[radii <= eps] = reject_label
    return answers


def _common_dtype(dtype: np.dtype[Any], reject_label: Any) -> np.dtype[Any]:
    """Return the type that holds labels and `reject_label` as they are."""
    if dtype.kind == "O":
        return dtype
    kinds = {"U": str, "i": int | np.integer, "u": int | np.integer, "f": int | float | np.number}
    allowed = kinds.get(dtype.kind)
    if allowed is None or not isinstance(reject_label, allowed) or isinstance(reject_label, bool):
        raise TypeError(
            f"reject_label must be of the kind of the classes, which are of type {dtype}, got "
            f"{reject_label!r}; choose one of their kind, or fit on labels of type object."
        )
    common = np.promote_types(dtype, np.min_scalar_type(reject_label))
    if common.kind != dtype.kind and common.kind not in "iu":
        raise TypeError(
            f"reject_label must fit into an array beside classes of type {dtype}, got "
            f"{reject_label!r}; choose a smaller one."
        )
    return common
