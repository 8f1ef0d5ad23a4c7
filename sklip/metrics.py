r"""Metrics of certified robustness: arrays in, one float out."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.multiclass import unique_labels
from sklearn.utils.validation import check_array, check_consistent_length, column_or_1d

from sklip.inputs import check_sample_weight
from sklip.losses import reductions as losses
from sklip.rows import as_numpy, joined, row_slices

__all__ = [
    "average_certified_radius_score",
    "average_normalized_margin_score",
    "certified_accuracy_score",
    "normalized_margins",
]

# What is made of a score at the same time: its own and its class's mask among them.
_NUMBERS_A_SCORE = 8


def check_eps(eps: float) -> float:
    """Return `eps` as a float if it is a perturbation budget: finite and at least 0."""
    budget = as_float(eps)
    if not 0 <= budget < math.inf:
        raise ValueError(f"eps must be a finite number of at least 0, got {eps!r}.")
    return budget


def as_float(value: Any) -> float:
    """Return a number as a float, infinite if it is too large for one; NaN for what is no number."""
    try:
        return float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return math.inf


def _check_radii(radii: ArrayLike) -> NDArray[np.float64]:
    values: NDArray[np.float64] = column_or_1d(radii, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("radii must hold at least one sample, got an empty array.")
    if np.isnan(values).any() or (values < 0).any():
        raise ValueError("radii must be at least 0 and not NaN.")
    return values


def certified_accuracy_score(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    radii: ArrayLike,
    *,
    eps: float,
    sample_weight: ArrayLike | None = None,
) -> float:
    r"""Share of samples predicted right with a certified radius above `eps`.

    No perturbation of L2 length `eps` or less can bring the accuracy on these samples below it.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_pred : array-like of shape (n_samples,)
        Predicted labels.
    radii : array-like of shape (n_samples,)
        Certified radii of the predictions; L2, in the units of X.
    eps : float
        Perturbation budget, at least 0.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights.

    Returns
    -------
    score : float
        Between 0 and 1.

    Examples
    --------
    >>> from sklip.metrics import certified_accuracy_score
    >>> certified_accuracy_score([0, 1, 1], [0, 1, 0], [0.7, 0.3, 0.9], eps=0.5)
    0.3333333333333333
    """
    eps = check_eps(eps)
    certified = _check_radii(radii) > eps
    right = _right(y_true, y_pred, certified)
    return float(np.average(right & certified, weights=check_sample_weight(sample_weight, len(right))))


def average_certified_radius_score(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    radii: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    r"""Mean certified radius, a wrong prediction counting 0.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.
    y_pred : array-like of shape (n_samples,)
        Predicted labels.
    radii : array-like of shape (n_samples,)
        Certified radii of the predictions; L2, in the units of X.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights.

    Returns
    -------
    score : float
        L2, in the units of X.

    Examples
    --------
    >>> from sklip.metrics import average_certified_radius_score
    >>> round(average_certified_radius_score([0, 1, 1], [0, 1, 0], [0.7, 0.2, 0.9]), 4)
    0.3
    """
    values = _check_radii(radii)
    right = _right(y_true, y_pred, values)
    weight = check_sample_weight(sample_weight, len(right))
    if weight is not None:
        right &= weight > 0  # a row of weight zero is no row, even if its radius is infinite
    return float(np.average(np.where(right, values, 0.0), weights=weight))


def normalized_margins(
    scores: ArrayLike, *, lipschitz_bound: float = 1.0, disjoint_neurons: bool = False
) -> NDArray[np.float64]:
    r"""The tutorial's certificate: margin of the predicted class over :math:`\sqrt2 L`, or over 2L.

    For comparisons with deel-lip. :meth:`sklip.LipschitzClassifier.certificates_` proves its
    constants instead and is never looser where L is proven.

    Parameters
    ----------
    scores : array-like of shape (n_samples,) or (n_samples, n_classes)
        Logits.
    lipschitz_bound : float, default=1.0
        L: the constant of the whole output vector or, for disjoint neurons, of each logit.
    disjoint_neurons : bool, default=False
        Whether each logit is L-Lipschitz on its own, which divides by 2L.

    Returns
    -------
    margins : ndarray of shape (n_samples,)
        L2, in the units of the network's input.

    Examples
    --------
    >>> from sklip.metrics import normalized_margins
    >>> normalized_margins([[3.0, 1.0, 0.0]], disjoint_neurons=True).round(4)
    array([1.])
    """
    logits = check_array(scores, ensure_2d=False)
    if logits.ndim == 2 and logits.shape[1] < 2:
        raise ValueError(
            f"scores of a single logit must have shape (n_samples,), got shape {logits.shape}."
        )

    def predicted(place: slice) -> NDArray[Any]:
        part = logits[place]
        return np.asarray(part > 0 if part.ndim == 1 else part.argmax(axis=1))

    return _normalized_margins(logits, predicted, lipschitz_bound, disjoint_neurons)


def average_normalized_margin_score(
    y_true: ArrayLike,
    scores: ArrayLike,
    *,
    classes: ArrayLike,
    lipschitz_bound: float = 1.0,
    disjoint_neurons: bool = False,
    sample_weight: ArrayLike | None = None,
) -> float:
    r"""Mean margin of the true class over :math:`\sqrt2 L` (or 2L), negative where it is wrong.

    The tutorial's mean certificate with negative robustness: unlike the average certified radius, it
    says how wrong a wrong prediction is.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels, each one of `classes`.
    scores : array-like of shape (n_samples,) or (n_samples, n_classes)
        Logits: one column a class, or, for two classes, one logit that is positive for the second.
    classes : array-like of shape (n_classes,)
        Labels in the order of the columns, as in ``clf.classes_``.
    lipschitz_bound : float, default=1.0
        L: the constant of the whole output vector or, for disjoint neurons, of each logit.
    disjoint_neurons : bool, default=False
        Whether each logit is L-Lipschitz on its own, which divides by 2L instead of :math:`\sqrt2 L`.
    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights.

    Returns
    -------
    score : float
        L2, in the units of the network's input.

    Examples
    --------
    >>> from sklip.metrics import average_normalized_margin_score
    >>> average_normalized_margin_score([1, 0], [0.5, 0.25], classes=[0, 1])
    0.125
    """
    logits = check_array(scores, ensure_2d=False)
    labels = np.asarray(classes)
    targets = column_or_1d(y_true)
    check_consistent_length(targets, logits)
    n_columns = 1 if logits.ndim == 1 else logits.shape[1]
    if n_columns != (len(labels) if logits.ndim == 2 else len(labels) - 1):
        raise ValueError(
            f"scores must have one column a class, got shape {logits.shape} for {len(labels)} classes."
        )

    def true(place: slice) -> NDArray[Any]:
        matches = targets[place, None] == labels[None, :]
        if not matches.any(axis=1).all():
            raise ValueError(f"y_true must contain only labels of classes, got classes={classes!r}.")
        return np.asarray(matches.argmax(axis=1))

    margins = _normalized_margins(logits, true, lipschitz_bound, disjoint_neurons)
    return float(np.average(margins, weights=check_sample_weight(sample_weight, len(margins))))


def _normalized_margins(
    logits: NDArray[Any],
    codes_of: Callable[[slice], NDArray[Any]],
    lipschitz_bound: float,
    disjoint_neurons: bool,
) -> NDArray[np.float64]:
    """Return the margins of the classes that `codes_of` gives for the rows in a place."""
    if not 0 < lipschitz_bound < math.inf:
        raise ValueError(f"lipschitz_bound must be positive and finite, got {lipschitz_bound!r}.")
    # The constant of a difference of logits is sqrt 2 times that of all, or twice that of each.
    share = math.sqrt(0.5) if disjoint_neurons and logits.ndim == 2 else 1.0

    def of_piece(place: slice) -> tuple[NDArray[np.float64]]:
        scores = torch.from_numpy(logits[place].astype(np.float64))
        targets = torch.from_numpy(codes_of(place).astype(np.int64))
        return (losses.normalized_margins(scores, targets).numpy() * (share / lipschitz_bound),)

    places = row_slices(len(logits), _NUMBERS_A_SCORE * math.prod(logits.shape[1:]))
    (margins,) = joined(len(logits), map(of_piece, places))
    return margins


def _right(y_true: ArrayLike, y_pred: ArrayLike, radii: NDArray[Any]) -> NDArray[np.bool_]:
    check_consistent_length(y_true, y_pred, radii)
    true, predicted = column_or_1d(as_numpy(y_true)), column_or_1d(as_numpy(y_pred))
    if true.dtype.kind != predicted.dtype.kind:
        unique_labels(true, predicted)  # an error for words beside numbers, of which none are equal
    right: NDArray[np.bool_] = true == predicted
    return right
