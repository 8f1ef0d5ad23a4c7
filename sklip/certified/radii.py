r"""From margins, and what has to be set aside of them, to certified radii."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklip.certified.arithmetic import FLOOR
from sklip.rows import joined, row_pieces

__all__ = [
    "Budget",
    "certified_radii",
    "pair_rows",
    "predicted_codes",
    "predicted_margins",
    "row_lengths_upper",
    "softmax_budget",
]


@dataclass(frozen=True)
class Budget:
    r"""What a claim about all x' at a distance of at most r from x sets aside of each margin.

    The margin of the predicted class over class j, at x and as computed, may lose ``spent[:, j]``
    whatever x' is, and ``per_distance[:, j]`` for each unit of r; nothing is claimed beyond
    ``longest``. Budgets of different causes add up.

    Parameters
    ----------
    spent : ndarray of shape (n_samples, n_outputs)
    per_distance : ndarray of shape (n_samples, n_outputs)
    longest : ndarray of shape (n_samples,), or float
        NaN or negative where nothing can be claimed at all.
    """

    spent: NDArray[np.float64]
    per_distance: NDArray[np.float64]
    longest: NDArray[np.float64] | float = math.inf

    def __add__(self, other: Budget) -> Budget:
        return Budget(
            self.spent + other.spent,
            self.per_distance + other.per_distance,
            np.minimum(self.longest, other.longest),
        )

    def radii(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        r"""Return for each row the largest r for which every margin outlasts what is set aside.

        With y the predicted class, :math:`m_j` its margin over class j, :math:`c_j` what is spent and
        :math:`K_j` what is lost per distance: :math:`\min_j (m_j - c_j) / K_j`, no more than `longest`,
        and 0 if that is negative. Ties and rows with a logit that is not finite get 0. The arithmetic
        rounds towards 0.

        Parameters
        ----------
        logits : ndarray of shape (n_samples, n_outputs)
            One logit (its sign decides) or one a class (the largest decides).

        Returns
        -------
        radii : ndarray of shape (n_samples,)
            Infinite where no other class can be reached.
        """
        finite = np.asarray(np.isfinite(logits).all(axis=1))
        # Where nothing is lost per distance, a positive remainder lasts for ever.
        ratios = self._ratios(logits).min(axis=1)
        # The quotient's rounding, that of the difference when it is small against its terms, and those
        # of the sums that made K.
        radii = np.nextafter(ratios * (1 - 2.0**-50), 0.0)
        radii = np.where(finite, np.where(np.isinf(ratios), np.inf, radii), 0.0)
        radii = np.minimum(radii, self.longest)
        # What can't be compared has overflown, and certifies nothing.
        return np.where(radii > 0, radii, 0.0)

    def rivals(self, logits: NDArray[np.floating[Any]], codes: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return for each row the class whose margin is the first to be used up.

        Parameters
        ----------
        logits : ndarray of shape (n_samples, n_outputs)
            As for :meth:`radii`.
        codes : ndarray of shape (n_samples,)
            Predicted classes.

        Returns
        -------
        rivals : ndarray of shape (n_samples,)
            Where the radius is 0, the class of the smallest margin; `codes` where no class can be
            reached.
        """
        ratios = self._ratios(logits)
        if logits.shape[1] == 1:
            return np.where(np.isinf(ratios[:, 0]), codes, 1 - codes)
        nearest = ratios.argmin(axis=1)
        margins, others = predicted_margins(logits)
        closest = np.where(others, margins, np.inf).argmin(axis=1)
        smallest = ratios.min(axis=1)
        return np.where(np.isinf(smallest), codes, np.where(smallest > 0, nearest, closest))

    def _ratios(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Distance at which each margin is used up, 0 if at once; infinite for the class itself."""
        margins, others = predicted_margins(logits)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            # An overflow to infinity is replaced by a smaller number, which is safe. The difference of
            # two large numbers is rounded in its last place, hence the factor on what is taken away;
            # FLOOR covers what underflow took of it.
            margins = np.minimum(margins, np.finfo(np.float64).max) * (1 - 2.0**-51)
            left = margins - self.spent * (1 + 2.0**-49) - FLOOR
            ratios = left / self.per_distance
        # Infinite where nothing is lost per distance, not where the quotient is too large a number.
        largest = np.where(self.per_distance > 0, np.finfo(np.float64).max, np.inf)
        ratios = np.minimum(ratios, largest)
        return np.where((left > 0) & others, ratios, np.where(others, 0.0, np.inf))


def certified_radii(
    logits: NDArray[np.floating[Any]], bounds: NDArray[np.float64]
) -> NDArray[np.float64]:
    r"""Radius around each row inside which the class of the largest exact logit can't change.

    With y the predicted class and :math:`m_j` the margin over class j: :math:`\min_j m_j / K_{yj}`.
    Rounding errors of the logits are not charged; :class:`sklip.CertifiedNetwork` does so.

    Parameters
    ----------
    logits : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        One logit (its sign decides) or one a class (the largest decides).
    bounds : ndarray of shape (n_outputs, n_outputs)
        K: how fast each difference of two logits can move, as in
        :attr:`sklip.CertifiedNetwork.margin_bounds`.

    Returns
    -------
    radii : ndarray of shape (n_samples,)
        L2, in the units of `bounds`. Infinite where no other class can be reached.

    Examples
    --------
    >>> import numpy as np
    >>> from sklip.certified import certified_radii
    >>> bounds = np.sqrt(2) * (1 - np.eye(3))
    >>> certified_radii(np.array([[3.0, 1.0, 0.0]]), bounds).round(4)
    array([1.4142])
    """
    scores = np.asarray(logits)
    scores = scores[:, None] if scores.ndim == 1 else scores
    if bounds.shape != (scores.shape[1], scores.shape[1]):
        raise ValueError(
            f"bounds must have shape {(scores.shape[1], scores.shape[1])} for logits of shape "
            f"{np.shape(logits)}, got {bounds.shape}."
        )
    rows = bounds[pair_rows(scores)]
    return Budget(np.zeros_like(rows), rows).radii(scores)


def predicted_codes(logits: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """Return the predicted class of each row: of the largest logit, or whether the one is positive.

    Parameters
    ----------
    logits : ndarray of shape (n_samples, n_outputs)

    Returns
    -------
    codes : ndarray of shape (n_samples,)
    """
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).astype(np.intp)
    return np.asarray(logits.argmax(axis=1))


def predicted_margins(
    logits: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return margins of the predicted class, and where they are over another class.

    Parameters
    ----------
    logits : ndarray of shape (n_samples, n_outputs)

    Returns
    -------
    margins : ndarray of shape (n_samples, n_outputs)
        0 in rows with a logit that is not finite.
    others : ndarray of shape (n_samples, n_outputs)
        False for the predicted class itself.
    """
    scores = np.asarray(logits, dtype=np.float64)
    finite = np.asarray(np.isfinite(scores).all(axis=1))
    scores = np.where(finite[:, None], scores, 0.0)
    if scores.shape[1] == 1:
        return np.abs(scores), np.ones(scores.shape, dtype=bool)
    with np.errstate(over="ignore"):
        margins = scores.max(axis=1, keepdims=True) - scores
    others = np.arange(scores.shape[1]) != scores.argmax(axis=1)[:, None]
    return margins, np.asarray(others)


def pair_rows(logits: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """Return each row's place in matrices of bounds on pairs: those of a single logit are 1 x 1."""
    if logits.shape[1] == 1:
        return np.zeros(len(logits), dtype=np.intp)
    finite = np.isfinite(logits).all(axis=1)
    return np.asarray(np.where(finite[:, None], logits, 0).argmax(axis=1))


def row_lengths_upper(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return upper bounds on the L2 lengths of flat rows, whatever their precision loses."""
    pieces = (piece.astype(np.float64, copy=False) for piece in row_pieces(rows))
    with np.errstate(over="ignore"):
        (lengths,) = joined(len(rows), ((np.linalg.norm(piece, axis=1),) for piece in pieces))
    # Rounding to float32 moves a length by less than this factor, summation by far less.
    return np.asarray(lengths * (1 + 2.0**-20) + 1e-30)


def softmax_budget(
    logits: NDArray[np.floating[Any]], inverse_temperature: float, largest_change: float
) -> Budget:
    r"""Return what is set aside where a computed softmax of scaled logits decides.

    Products by the inverse temperature :math:`\beta`, differences from the largest, exponentials and
    their quotients each lose a few units: :math:`e^{-\delta}` with :math:`\delta > 32 u` still lies
    below 1 after them, and the products have errors of :math:`2 u \beta \max_i |f_i|`. Scores that look
    like probabilities are replaced by their logarithms on the way (scikit-learn's
    CalibratedClassifierCV does so), which spreads them and is at most 28. The logits themselves may be
    those of float64, rounded, and one moved by a unit.

    Parameters
    ----------
    logits : ndarray of shape (n_samples, n_outputs)
        In the precision in which the softmax is computed.
    inverse_temperature : float
        :math:`\beta > 0`.
    largest_change : float
        How fast a logit can move with the distance of x'.

    Returns
    -------
    budget : Budget
    """
    unit = float(np.finfo(logits.dtype).eps) / 2
    sizes = np.abs(logits.astype(np.float64)).max(axis=1)
    spent = unit * (24 * np.maximum(sizes, 28.0) + 64 / inverse_temperature)
    everywhere = np.ones(logits.shape)
    return Budget(spent[:, None] * everywhere, 24 * unit * largest_change * everywhere)
