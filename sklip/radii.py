r"""From logits and bounds to certified radii."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_array

from sklip.inputs import row_pieces

__all__ = ["Approach", "certified_radii", "margin_radii", "row_lengths_upper", "softmax_charge"]


def certified_radii(
    logits: NDArray[np.floating[Any]],
    bounds: NDArray[np.float64],
    charges: Iterable[tuple[NDArray[np.float64], NDArray[np.float64] | float]] = (),
) -> NDArray[np.float64]:
    r"""Radius around each row inside which the predicted class can't change.

    With y the predicted class, :math:`m_j` the margin over class j and :math:`c_j` the sum of what is
    charged to it, the radius is :math:`\min_j (m_j - c_j) / K_{yj}`, and 0 if that is negative. Ties
    and rows with a logit that is not finite get 0. The arithmetic rounds towards 0.

    Parameters
    ----------
    logits : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        One logit (its sign decides) or one a class (the largest decides).
    bounds : ndarray of shape (n_outputs, n_outputs)
        K: how fast each difference of two logits can move, from :func:`sklip.proofs.margin_bounds`.
    charges : iterable of (matrix, factors), default=()
        What rounding may have added to the margin of class i over class j: the sum of
        ``matrix[i, j] * factors``, with matrices of shape (n_outputs, n_outputs) and factors of at
        least 0, one for all rows or one for each.

    Returns
    -------
    radii : ndarray of shape (n_samples,)
        L2, in the units of `bounds`. Infinite where no other class can be reached.

    Examples
    --------
    >>> import numpy as np
    >>> from sklip.radii import certified_radii
    >>> bounds = np.sqrt(2) * (1 - np.eye(3))
    >>> certified_radii(np.array([[3.0, 1.0, 0.0]]), bounds).round(4)
    array([1.4142])
    """
    scores = np.asarray(logits, dtype=np.float64)
    scores = scores[:, None] if scores.ndim == 1 else scores
    if bounds.shape != (scores.shape[1], scores.shape[1]):
        raise ValueError(
            f"bounds must have shape {(scores.shape[1], scores.shape[1])} for logits of shape "
            f"{np.shape(logits)}, got {bounds.shape}."
        )
    finite = np.asarray(np.isfinite(scores).all(axis=1))
    scores = np.where(finite[:, None], scores, 0.0)
    largest = np.finfo(np.float64).max
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if scores.shape[1] == 1:
            predicted, margins = np.zeros(len(scores), dtype=np.intp), np.abs(scores)
            others = np.ones(scores.shape, dtype=bool)
        else:
            predicted = scores.argmax(axis=1)
            margins = scores.max(axis=1, keepdims=True) - scores
            others = np.arange(scores.shape[1]) != predicted[:, None]
        charged = np.zeros_like(margins)
        for matrix, factors in charges:
            charged += matrix[predicted] * np.broadcast_to(factors, len(scores))[:, None]
        # An overflow to infinity is replaced by a smaller number, which is safe. The difference of two
        # large numbers is rounded in its last place, hence the factor on what is taken away.
        left = np.minimum(margins, largest) * (1 - 2.0**-51) - charged * (1 + 2.0**-49)
        ratios = left / bounds[predicted]
    # Where K is 0 and nothing is charged, the difference never moves: a positive margin is for ever.
    ratios = np.where((left > 0) & others, ratios, np.where(others, 0.0, np.inf)).min(axis=1)
    # The quotient's rounding, that of the difference when it is small against its terms, and those of
    # the sums that made K.
    radii: NDArray[np.float64] = np.nextafter(ratios * (1 - 2.0**-50), 0.0)
    return np.where(finite, np.maximum(np.where(np.isinf(ratios), np.inf, radii), 0.0), 0.0)


def margin_radii(
    scores: ArrayLike, *, lipschitz_bound: float = 1.0, disjoint_neurons: bool = False
) -> NDArray[np.float64]:
    r"""The tutorial's certificate: margin over :math:`\sqrt2 L`, or over 2L.

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
    radii : ndarray of shape (n_samples,)
        L2, in the units of the network's input.

    Examples
    --------
    >>> from sklip.radii import margin_radii
    >>> margin_radii([[3.0, 1.0, 0.0]], disjoint_neurons=True)
    array([1.])
    """
    logits = check_array(scores, dtype=np.float64, ensure_2d=False)
    if not 0 < lipschitz_bound < math.inf:
        raise ValueError(f"lipschitz_bound must be positive and finite, got {lipschitz_bound!r}.")
    if logits.ndim == 1:
        return np.asarray(np.abs(logits) / lipschitz_bound)
    top = np.partition(logits, -2, axis=1)[:, -2:]
    radii: NDArray[np.float64] = (top[:, 1] - top[:, 0]) / (
        (2.0 if disjoint_neurons else math.sqrt(2)) * lipschitz_bound
    )
    return radii


def row_lengths_upper(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return upper bounds on the L2 lengths of flat rows, whatever their precision loses."""
    lengths = np.concatenate(
        [np.linalg.norm(piece.astype(np.float64, copy=False), axis=1) for piece in row_pieces(rows)]
    )
    # Rounding to float32 moves a length by less than this factor, summation by far less.
    return np.asarray(lengths * (1 + 2.0**-20) + 1e-30)


def softmax_charge(
    logits: NDArray[np.floating[Any]], inverse_temperature: float
) -> tuple[NDArray[np.float64], float]:
    r"""Margin below which the largest computed softmax of scaled logits might tie.

    Products by the inverse temperature :math:`\beta`, differences from the largest, exponentials and
    their quotients each lose a few units: :math:`e^{-\delta}` with :math:`\delta > 32 u` still lies
    below 1 after them, and the products have errors of :math:`2 u \beta \max_i |f_i|`. Scores that look
    like probabilities are replaced by their logarithms on the way (scikit-learn's
    CalibratedClassifierCV does so), which spreads them and is at most 28.

    Parameters
    ----------
    logits : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        In the precision in which the softmax is computed.
    inverse_temperature : float
        :math:`\beta > 0`.

    Returns
    -------
    charges : ndarray of shape (n_samples,)
        For each row.
    slope : float
        How fast they grow with the largest logit.
    """
    unit = float(np.finfo(logits.dtype).eps) / 2
    sizes = np.abs(logits.astype(np.float64)).reshape(len(logits), -1).max(axis=1)
    return unit * (16 * np.maximum(sizes, 28.0) + 64 / inverse_temperature), 16 * unit


@dataclass(frozen=True)
class Approach:
    """What lies between the caller's rows and the network: see :func:`sklip.certificates`.

    The defaults are those of a network that sees the caller's rows and whose scores decide.

    Parameters
    ----------
    bound : float, default=1.0
        A change of the caller's rows arrives at the network at most so many times as long.
    factors : ndarray of shape (n_features,), default=None
        If each value that the network sees comes from a column of its own: how much of that column's
        change arrives.
    moved : ndarray of shape (n_samples,), default=0.0
        How far rounding may have moved what the network sees, at x and at a neighbour x' together.
    growth : float, default=0.0
        By how much `moved` grows with the distance of x'.
    room : ndarray of shape (n_samples,), default=inf
        Distance of x' up to which no step can overflow.
    inverse_temperature : float, default=None
        Of a softmax that decides in place of the scores.
    """

    bound: float = 1.0
    factors: NDArray[np.float64] | None = None
    moved: NDArray[np.float64] | float = 0.0
    growth: float = 0.0
    room: NDArray[np.float64] | float = math.inf
    inverse_temperature: float | None = None
