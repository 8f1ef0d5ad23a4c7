r"""Ways of deciding on a class from what certified networks compute, each with what it certifies.

A decider stands for a whole fitted estimator: it knows through which steps rows reach which network
(:class:`Chain`), and how labels come of the logits. What a network sees of the rows (:class:`View`) is
found by a function that is passed in, so that deciders know of no table and no step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from sklip.certified import Affine, CertifiedNetwork
from sklip.certified.decisions import Decisions
from sklip.certified.radii import Budget, softmax_budget

__all__ = ["ByNetwork", "ByTemperature", "Chain", "Claims", "Decider", "See", "View"]


@dataclass(frozen=True)
class Chain:
    """Steps, none of them a Pipeline, and the LipschitzClassifier behind them.

    Parameters
    ----------
    steps : tuple of fitted transformers
    classifier : LipschitzClassifier
    method : str
        The method of the classifier that decides.
    """

    steps: tuple[Any, ...]
    classifier: Any
    method: str


@dataclass(frozen=True)
class View:
    """What the network at the end of a chain sees of some rows x, and of their neighbours.

    Parameters
    ----------
    network : CertifiedNetwork
    decided : Decisions
        What it computes for the rows.
    reach, bounds, drift
        As for :meth:`sklip.CertifiedNetwork.budget`.
    longest : ndarray of shape (n_samples,), or float
        Distance up to which no step before the network can overflow.
    """

    network: CertifiedNetwork
    decided: Decisions
    reach: float
    bounds: NDArray[np.float64] | None
    drift: Affine
    longest: NDArray[np.float64] | float

    def budget(self) -> Budget:
        """Return what is set aside where the exact function, or float64, decides at neighbours."""
        budget = self.network.budget(
            self.decided, reach=self.reach, bounds=self.bounds, drift=self.drift
        )
        return replace(budget, longest=np.minimum(budget.longest, self.longest))

    def budget_of_logits(self) -> Budget:
        """Return what is set aside where logits in the network's own precision decide."""
        decided = self.decided
        own = self.network.precisions[0].budget(decided.pairs, decided.lengths, self.reach, self.drift)
        return self.budget() + own

    @property
    def largest_change(self) -> float:
        """How fast a logit can move with the distance of x'."""
        return self.network.lipschitz_bound * (self.reach + float(self.drift.slope))


See = Callable[[Chain], View]


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


class Decider(Protocol):
    """How an estimator decides."""

    @property
    def classes(self) -> NDArray[Any]:
        """Labels that codes stand for."""

    @property
    def chains(self) -> Sequence[Chain]:
        """All ways to a network; the first takes the names of columns."""

    def behind(self, steps: Sequence[Any]) -> Self:
        """Return the same way of deciding on rows that some steps are given first."""

    def claims(self, see: See) -> Claims:
        """Return what is certified."""


@dataclass(frozen=True)
class ByNetwork:
    """The largest of a network's logits decides, or the sign of its only one: see `Decisions`."""

    chain: Chain
    classes: NDArray[Any]

    @property
    def chains(self) -> Sequence[Chain]:
        """The only one."""
        return (self.chain,)

    def behind(self, steps: Sequence[Any]) -> Self:
        """Put steps before those of the chain."""
        return replace(self, chain=replace(self.chain, steps=(*steps, *self.chain.steps)))

    def claims(self, see: See) -> Claims:
        """Set aside what float64 may lose."""
        view = see(self.chain)
        return Claims.from_budget(view.budget(), view.decided.logits, view.decided.codes)


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
