r"""Classes by vote of several classifiers, and what is certified of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklip.certification.chains import Chain, View
from sklip.certification.deciders import ByNetwork, Claims, Decider, LogitsOf, See
from sklip.certified.probabilities import LogitDifferences, check_tau, means, radii_of_means

__all__ = ["ByMean", "ByVotes"]

Member = TypeVar("Member", bound=Decider)

# Numbers in a piece of rows: each has a matrix for each member.
_VALUES_AT_ONCE = 2**21


@dataclass(frozen=True)
class _Vote(Generic[Member]):
    """What votes share.

    Parameters
    ----------
    members : tuple of Decider
        Their classes in the order of `classes`.
    weights : tuple of float
        At least 0.
    classes : ndarray
    """

    members: tuple[Member, ...]
    weights: tuple[float, ...]
    classes: NDArray[Any]

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The chains of all members."""
        return tuple(chain for member in self.members for chain in member.chains)

    def behind(self, steps: Sequence[Any]) -> Self:
        """Put steps before those of each member."""
        return replace(self, members=tuple(member.behind(steps) for member in self.members))

    def scores(self, logits_of: LogitsOf) -> Tensor:
        """Return the weighted sum of the members' scores."""
        of_members = [self._scaled(member, logits_of) for member in self.members]
        weighted = [weight * each for weight, each in zip(self.weights, of_members, strict=True)]
        return torch.stack(weighted).sum(dim=0)

    def _scaled(self, member: Member, logits_of: LogitsOf) -> Tensor:
        return member.scores(logits_of)


class ByMean(_Vote[ByNetwork]):
    """The largest weighted mean of the members' computed probabilities decides."""

    def _scaled(self, member: ByNetwork, logits_of: LogitsOf) -> Tensor:
        return float(member.chain.classifier.tau_) * member.scores(logits_of)

    def claims(self, see: See) -> Claims:
        """Find the distance at which the bound on some other class's mean catches up."""
        views = [see(member.chain) for member in self.members]
        taus = [check_tau(member.chain.classifier.tau_) for member in self.members]
        n_samples, n_classes = len(views[0].decided.logits), len(self.classes)
        step = max(1, _VALUES_AT_ONCE // (len(views) * n_classes**2))
        places = [slice(start, start + step) for start in range(0, n_samples, step)]
        return Claims.joined(
            n_samples,
            (self._claims([view.rows(place) for view in views], taus) for place in places),
        )

    def _claims(self, views: Sequence[View], taus: Sequence[float]) -> Claims:
        members, longest = [], np.full(len(views[0].decided.logits), np.inf)
        for view, tau, weight in zip(views, taus, self.weights, strict=True):
            member, reached = _differences(view, tau, weight)
            longest = np.minimum(longest, reached)
            if weight > 0:
                members.append(member)
        codes = means(members).argmax(axis=1)
        return Claims(codes, *radii_of_means(members, codes, longest))


def _differences(view: View, tau: float, weight: float) -> tuple[LogitDifferences, NDArray[np.float64]]:
    """Return bounds on all differences of a network's logits, and how far they hold."""
    logits, dtype = view.decided.logits, np.finfo(view.network.arithmetic.dtype)
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    scores = np.where(finite[:, None], logits, 0.0)
    if scores.shape[1] == 1:
        scores = np.hstack([np.zeros_like(scores), scores])
    n_samples, n_classes = scores.shape
    with np.errstate(over="ignore"):
        values = scores[:, :, None] - scores[:, None, :]
    budgets = [view.budget_of_logits(code) for code in range(logits.shape[1])]
    shape = (n_samples, n_classes, n_classes)
    spent = np.broadcast_to(np.stack([budget.spent for budget in budgets], axis=1), shape)
    per_distance = np.stack([budget.per_distance for budget in budgets], axis=1)
    # Two logits at x', rounded to the network's precision, of which one may be moved above the other.
    unit = float(dtype.eps) / 2
    sizes = np.abs(scores).max(axis=1) + view.network.lipschitz_bound * view.drift.offset
    rounded = 16 * unit * sizes + 8 * float(dtype.tiny)
    differences = LogitDifferences(
        values,
        spent + rounded[:, None, None],
        np.broadcast_to(per_distance, shape) + 16 * unit * view.largest_change,
        tau,
        weight,
        unit,
    )
    longest = np.minimum.reduce([np.broadcast_to(budget.longest, n_samples) for budget in budgets])
    return differences, np.where(finite, longest, 0.0)


class ByVotes(_Vote[Decider]):
    """The class with most votes, each of a weight, decides.

    Inside the radius of a member its vote stays what it is. Votes that don't may go to whichever class:
    as long as the predicted class has more than any other with all of these, it stays.
    """

    def claims(self, see: See) -> Claims:
        """Find the largest radius of a member at which enough votes are certain."""
        of_members = [member.claims(see) for member in self.members]
        votes, radii, turned = (
            np.stack([getattr(claims, name) for claims in of_members], axis=1)
            for name in ("codes", "radii", "rivals")
        )
        weights = np.asarray(self.weights)
        every = np.arange(len(self.classes))

        def counted(codes: NDArray[np.intp], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
            return np.stack([np.where(kept, codes == code, 0) @ weights for code in every], axis=1)

        codes = counted(votes, np.ones(votes.shape, dtype=bool)).argmax(axis=1)
        mine = np.asarray(every == codes[:, None])
        longest = np.zeros(len(codes))
        for reached in radii.T:
            kept = radii >= reached[:, None]
            others = np.where(mine, -np.inf, counted(votes, kept)).max(axis=1) + ~kept @ weights
            # More than the rounding of sums of weights.
            ahead = np.where(mine, counted(votes, kept), 0.0).sum(axis=1) - others
            holds = ahead > 1e-9 * weights.sum()
            longest = np.where(holds, np.maximum(longest, reached), longest)
        kept = radii > longest[:, None]
        lost = counted(votes, kept) + counted(turned, ~kept)
        rivals = np.where(mine, -np.inf, lost).argmax(axis=1)
        return Claims(codes, longest, np.where(np.isinf(longest), codes, rivals))
