r"""Ways of deciding on a class from what certified networks compute, each with what it certifies.

A decider stands for a whole fitted estimator: it knows through which chains of steps rows reach which
network, and how labels come of the logits. What a network sees of the rows is found by a function that
is passed in, so that deciders know of no table and no unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklip.certification.chains import Chain, View
from sklip.certified.probabilities import (
    check_tau,
    compared,
    undecided_logits,
    undecided_outputs,
)
from sklip.certified.radii import Budget, softmax_budget
from sklip.estimators.base import proven_network
from sklip.rows import joined

__all__ = ["ByNetwork", "ByTemperature", "ByThreshold", "Claims", "Decider", "LogitsOf", "See"]


See = Callable[[Chain], View]
# Logits of the network at the end of a chain, (n_samples, n_outputs), to be differentiated.
LogitsOf = Callable[[Chain], Tensor]


@dataclass(frozen=True)
class Claims:
    """What is certified of some rows.

    Parameters
    ----------
    codes : ndarray of shape (n_samples,)
        Positions of the predicted classes; certain where the radius is positive.
    radii : ndarray of shape (n_samples,)
        L2; 0 where nothing can be said.
    rivals : ndarray of shape (n_samples,)
        Positions of the classes that limit the radii; `codes` where none can be reached.
    """

    codes: NDArray[np.intp]
    radii: NDArray[np.float64]
    rivals: NDArray[np.intp]

    @classmethod
    def from_budget(cls, budget: Budget, logits: NDArray[np.float64], codes: NDArray[np.intp]) -> Self:
        """Return the claims of margins that outlast a budget."""
        return cls(codes, budget.radii(logits), budget.rivals(logits, codes))

    @classmethod
    def joined(cls, n_rows: int, pieces: Iterable[Claims]) -> Self:
        """Return the claims of several pieces of X as one."""
        return cls(*joined(n_rows, ((piece.codes, piece.radii, piece.rivals) for piece in pieces)))


class Decider(Protocol):
    """How an estimator decides."""

    @property
    def classes(self) -> NDArray[Any]:
        """Labels that codes stand for."""

    @property
    def chains(self) -> tuple[Chain, ...]:
        """All chains through which rows reach networks."""

    def behind(self, steps: Sequence[Any]) -> Self:
        """Return the same way of deciding on rows that some steps are given first."""

    def claims(self, see: See) -> Claims:
        """Return what is certified."""

    def scores(self, logits_of: LogitsOf) -> Tensor:
        """Return differentiable scores, (n_samples, n_classes): the largest is that of the decision.

        But for ties and rounding, and of a vote by majority roughly. They show where to look for a row
        of another class; nothing is proven by them.
        """


@dataclass(frozen=True)
class ByNetwork:
    """The largest of a network's logits decides, or the sign of its only one: see `Decisions`."""

    chain: Chain
    classes: NDArray[Any]

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The one chain."""
        return (self.chain,)

    def behind(self, steps: Sequence[Any]) -> Self:
        """Put steps before those of the chain."""
        return replace(self, chain=replace(self.chain, steps=(*steps, *self.chain.steps)))

    def claims(self, see: See) -> Claims:
        """Set aside what float64 may lose."""
        view = see(self.chain)
        return Claims.from_budget(view.budget(), view.decided.logits, view.decided.codes)

    def scores(self, logits_of: LogitsOf) -> Tensor:
        """Return the logits; of two classes, half of the only one and its opposite."""
        logits = logits_of(self.chain)
        return logits if logits.shape[1] > 1 else torch.cat((-logits, logits), dim=1) / 2


@dataclass(frozen=True)
class ByTemperature(ByNetwork):
    """The largest of a computed softmax of scaled logits decides.

    Parameters
    ----------
    chain : Chain
    classes : ndarray
    inverse_temperature : float
    """

    inverse_temperature: float

    def claims(self, see: See) -> Claims:
        """Set aside what the softmax and logits in the network's precision may lose, at x' as well."""
        view = see(self.chain)
        logits = view.decided.logits_in(view.network.arithmetic.dtype)
        budget = view.budget_of_logits()
        budget += softmax_budget(logits, self.inverse_temperature, view.largest_change)
        return Claims.from_budget(budget, view.decided.logits, view.decided.codes)


@dataclass(frozen=True)
class ByThreshold(ByNetwork):
    r"""Whether a score of two classes reaches a threshold decides.

    The score is the only logit f in the network's own precision, its opposite, or the computed sigmoid
    of :math:`\pm\tau f`. Outside of an interval of logits it is certain on which side the score lies.

    Parameters
    ----------
    chain : Chain
        Its method gives the score.
    classes : ndarray of shape (2,)
    threshold : real number
    positive : {0, 1}
        Position of the class whose score it is.
    """

    threshold: Any
    positive: int

    def undecided(self, dtype: str) -> tuple[float, float]:
        """Return the interval of logits: below the first class is certain, above the second."""
        low, high = compared(self.threshold, dtype)
        if self.chain.method == "predict_proba":
            low, high = undecided_logits(low, high, check_tau(self.chain.classifier.tau_), dtype)
        if self.positive == 0:
            low, high = -high, -low
        return undecided_outputs(low, high, dtype)

    def claims(self, see: See) -> Claims:
        """Set aside what logits in the network's precision may lose, at x' as well."""
        view = see(self.chain)
        low, high = self.undecided(view.network.arithmetic.dtype)
        logits, largest = view.decided.logits, np.finfo(np.float64).max
        with np.errstate(over="ignore", invalid="ignore"):
            beyond = np.where(logits > high, logits - high, np.minimum(logits - low, 0.0))
            # Endless where one class is given to all: the arithmetic's range is the limit then.
            left = np.where(np.isfinite(logits), np.clip(beyond, -largest, largest), logits)
        codes = (left[:, 0] > 0).astype(np.intp)
        claims = Claims.from_budget(view.budget_of_logits(), left, codes)
        return replace(claims, rivals=np.where(np.abs(left[:, 0]) == largest, codes, claims.rivals))

    def scores(self, logits_of: LogitsOf) -> Tensor:
        """Return half of what the logit is above the threshold, and its opposite."""
        low, high = self.undecided(proven_network(self.chain.classifier).arithmetic.dtype)
        above = logits_of(self.chain) - (low + high) / 2
        return torch.cat((-above, above), dim=1) / 2
