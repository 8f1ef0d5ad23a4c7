r"""What computed probabilities certify: a threshold on one of them, and a mean of several networks'.

Note [Computed probabilities]
-----------------------------
Let L be logits in a network's precision, with unit roundoff u, and P the sigmoid or softmax of
:math:`\tau L` as computed in it. Products and differences move the exponents by at most
:math:`4 u |z|`, and :math:`|z| e^{-|z|} \le 1 / e`; exponential functions and sigmoids are assumed
right to 8 units, and are followed by a sum of as many terms as classes and a quotient. A probability
that rounding brought below another's is put one unit above it. What is flushed is below the smallest
normal number. So for C classes

.. math:: |P - p(\tau L)| \le (64 + 4 C)\, u\, p + 8 u + 8\, \mathrm{tiny} .
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LogitDifferences",
    "check_tau",
    "compared",
    "leads",
    "lost_of_means",
    "means",
    "radii_of_means",
    "undecided_logits",
    "undecided_outputs",
]

# Of 62 bits: what is left is below 2 ** -30 of a radius.
_HALVINGS = 44


def check_tau(tau: float) -> float:
    """Return the factor of logits in a softmax if nothing is flushed or overflows because of it."""
    if not 1e-12 <= tau <= 1e12:
        raise TypeError(
            f"tau_ must lie between 1e-12 and 1e12 for certificates of probabilities, got {tau!r}."
        )
    return float(tau)


# -- a threshold ----------------------------------------------------------------------------------


def compared(threshold: Any, dtype: str) -> tuple[float, float]:
    """Return the least and the largest number that a threshold may be where scores meet it.

    NumPy rounds a Python float to the type of the scores, and widens the scores for one of its own.
    """
    number = float(threshold)
    with np.errstate(over="ignore", under="ignore"):
        numbers = [number, float(np.dtype(dtype).type(number))]
    if number != threshold:
        numbers += [math.nextafter(number, -math.inf), math.nextafter(number, math.inf)]
    return min(numbers), max(numbers)


def undecided_logits(low: float, high: float, tau: float, dtype: str) -> tuple[float, float]:
    r"""Return logits outside of which it is certain on which side of a threshold the sigmoid lies.

    Parameters
    ----------
    low, high : float
        The threshold lies between them.
    tau : float
        The sigmoid is that of tau times the logit, computed in `dtype`: see Note [Computed
        probabilities].
    dtype : str

    Returns
    -------
    low, high : float
        For logits of at most `low` it is computed below the threshold, for logits of at least `high`
        not below. Infinite where one side is never certain, or always.
    """
    unit, tiny = float(np.finfo(dtype).eps) / 2, float(np.finfo(dtype).tiny)
    # The errors of the exponent are charged to the logit, below; the other factors are for what is
    # lost here, in float64.
    relative, absolute = 72 * unit, 8 * tiny
    least = (low - absolute) / (1 + relative) * (1 - 2.0**-50)
    largest = (high + absolute) / (1 - relative) * (1 + 2.0**-50)

    def logit(probability: float, side: float) -> float:
        scaled = math.log(probability) - math.log1p(-probability)
        scaled += side * 2.0**-45 * max(1.0, abs(scaled))
        return (scaled + side * (16 * unit * abs(scaled) + 4 * tiny)) / tau

    below, above = math.inf, math.inf
    if least < 1:
        below = logit(least, -1.0) if least > 0 else -math.inf
    if high <= 0:
        above = -math.inf  # no computed sigmoid is negative
    elif largest < 1 - 2.0**-50:
        above = logit(largest, 1.0)
    return below, above


def undecided_outputs(low: float, high: float, dtype: str) -> tuple[float, float]:
    r"""Widen an interval so that it holds for a single logit before it is rounded to `dtype`.

    Rounding keeps the order: what lies beyond a representable number still does, unless it is flushed
    or, being positive, raised to the smallest normal number
    (:meth:`sklip.certified.decisions.Decisions.logits_in`), or cut at the largest.

    Parameters
    ----------
    low, high : float
        The rounded logit decides outside of them.
    dtype : str

    Returns
    -------
    low, high : float
        Where the logit itself, in float64, is certain to.
    """
    kind, tiny, limit = (
        np.dtype(dtype).type,
        float(np.finfo(dtype).tiny),
        float(np.finfo(dtype).max) / 2,
    )
    below, above = low - 2 * tiny, high + 2 * tiny
    with np.errstate(over="ignore"):
        if math.isfinite(below):
            below = float(np.nextafter(kind(below), kind(-np.inf))) if below > -limit else -math.inf
        if math.isfinite(above):
            above = float(np.nextafter(kind(above), kind(np.inf))) if above < limit else math.inf
    return below, above


# -- a mean of probabilities ----------------------------------------------------------------------


@dataclass(frozen=True)
class LogitDifferences:
    r"""Bounds on the differences of one network's logits, in a mean of probabilities.

    At a distance of at most r the difference of logits a and b is at least
    ``values[:, a, b] - spent[:, a, b] - r * per_distance[:, a, b]``.

    Parameters
    ----------
    values, spent, per_distance : ndarray of shape (n_samples, n_classes, n_classes)
    tau : float
        Factor of the logits in the softmax.
    weight : float
        Of the network in the mean, at least 0.
    unit : float
        Unit roundoff of the probabilities.
    """

    values: NDArray[np.float64]
    spent: NDArray[np.float64]
    per_distance: NDArray[np.float64]
    tau: float
    weight: float
    unit: float

    def ratios(self, radii: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return lower bounds on the quotients of exact probabilities at some distance."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            lost = self.spent + self.per_distance * radii[:, None, None]
            # What float64 loses here of products and sums, and of the product by tau.
            lost += 2.0**-48 * (np.abs(self.values) + lost)
            least = self.values - lost
            same = np.eye(least.shape[1], dtype=bool)
            return np.asarray(np.exp(self.tau * np.where(same, 0.0, least)))


def means(members: Sequence[LogitDifferences]) -> NDArray[np.float64]:
    """Return the weighted sums of the probabilities at x, shape (n_samples, n_classes)."""
    with np.errstate(over="ignore", under="ignore"):
        weighted = [each.weight / np.exp(-each.tau * each.values).sum(axis=2) for each in members]
    return np.asarray(np.sum(weighted, axis=0))


def leads(
    members: Sequence[LogitDifferences], codes: NDArray[np.intp], radii: NDArray[np.float64]
) -> NDArray[np.float64]:
    r"""Return by how much a class leads each other one, at least, in the weighted sum of probabilities.

    With :math:`q_{ab}` a lower bound on :math:`p_a / p_b` for one network,
    :math:`p_a \ge 1 / \sum_b 1 / q_{ab}` and :math:`p_b \le 1 / \sum_a q_{ab}`. So
    :math:`p_y - p_j` is at least the difference of such bounds; and since it is
    :math:`p_y (1 - p_j / p_y)`, or :math:`p_j (p_y / p_j - 1)`, also
    :math:`p_y (1 - 1 / q_{yj})` with the bound on :math:`p_y` if :math:`q_{yj} \ge 1`, and
    :math:`p_j (q_{yj} - 1)` with that on :math:`p_j` if not. All of these fall with the distance.

    Parameters
    ----------
    members : sequence of LogitDifferences
    codes : ndarray of shape (n_samples,)
        The class y of each row.
    radii : ndarray of shape (n_samples,)
        Distance of x' from x.

    Returns
    -------
    leads : ndarray of shape (n_samples, n_classes)
        Of exact probabilities, weighted and not divided by the sum of the weights; infinite over the
        class itself.
    """
    rows = np.arange(len(codes))
    total = np.zeros((len(codes), members[0].values.shape[1]))
    for member in members:
        quotients = member.ratios(radii)
        over = quotients[rows, codes]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            own = 1 / (1 / over).sum(axis=1, keepdims=True)
            others = 1 / quotients.sum(axis=1)
            factored = np.where(over >= 1, own * (1 - 1 / np.maximum(over, 1.0)), others * (over - 1))
        total += member.weight * np.maximum(own - others, factored)
    total[rows, codes] = np.inf
    return total


def lost_of_means(members: Sequence[LogitDifferences]) -> float:
    """Return how far rounding may move a weighted sum of probabilities against another one."""
    n_classes = members[0].values.shape[1]
    weights = math.fsum(member.weight for member in members)
    unit = max(member.unit for member in members)
    # See Note [Computed probabilities]; then a product, a sum over networks and a quotient. The last
    # term is for float64, in which leads are computed.
    own = 2 * (64 + 4 * n_classes + 16) * unit
    return float(weights * (own + 2 * (len(members) + 4) * unit + 2.0**-40))


def radii_of_means(
    members: Sequence[LogitDifferences],
    codes: NDArray[np.intp],
    longest: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return radii inside which a class leads in the computed mean, and the class that limits each.

    Parameters
    ----------
    members : sequence of LogitDifferences
    codes : ndarray of shape (n_samples,)
        Class of the largest mean.
    longest : ndarray of shape (n_samples,)
        Nothing is claimed beyond.

    Returns
    -------
    radii : ndarray of shape (n_samples,)
    rivals : ndarray of shape (n_samples,)
        `codes` where no other class can be reached.
    """
    lost = lost_of_means(members)

    def failing(radii: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(~(leads(members, codes, radii) > lost).all(axis=1))

    longest = np.where(longest > 0, np.minimum(longest, np.finfo(np.float64).max), 0.0)
    # Numbers above 0 have the order of their bits: halves of these find a radius of any size.
    sure, unsure = np.zeros(len(codes), dtype=np.int64), longest.view(np.int64).copy()
    never, at_once = ~failing(longest), failing(np.zeros(len(codes)))
    for _ in range(_HALVINGS):
        middle = sure + (unsure - sure) // 2
        fails = failing(middle.view(np.float64))
        sure, unsure = np.where(fails, sure, middle), np.where(fails, middle, unsure)
    radii = np.where(never, longest, np.where(at_once, 0.0, sure.view(np.float64)))
    rivals = leads(members, codes, np.where(at_once, 0.0, unsure.view(np.float64))).argmin(axis=1)
    return radii, np.where(never & (longest > 0), codes, rivals)
