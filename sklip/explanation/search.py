r"""Where a row of another class may lie nearest: along the networks' gradients, through the steps.

Note [Nearest boundary]
-----------------------
u is the change of the columns in the units in which distance is measured. Let m(u) be by how much the
best other score leads over that of a class to be reached, and g its gradient. Where m is linear, the
nearest u at which the class is reached is

.. math:: u^* = \frac{g \cdot u - m(u)}{\|g\|^2} \, g .

Starting from u = 0 this is repeated, each time halfway between u* and the nearest such point from u
itself, :math:`u - m g / \|g\|^2`, since a piecewise linear m lets u* alone jump to and fro between two
pieces. For a 1-Lipschitz network :math:`\|g\|` is close to 1 in the units of the network, along the
whole segment to the boundary (Serrurier et al. 2023), so that a few steps do. What is found proves
nothing: the caller asks ``predict``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklip.certification.chains import Chain
from sklip.certification.deciders import Decider
from sklip.certified import Gains
from sklip.estimators.base import proven_network
from sklip.explanation.neighbours import Neighbours
from sklip.rows import as_tensor

__all__ = ["Landscape", "Way", "nearest_changes"]

# Classes that are tried for each row, nearest by the first gradient first, and steps towards each.
_TRIED = 2
_STEPS = 8
# How far beyond the boundary is aimed, by the margin at x: rounding and curvature must not decide.
_BEYOND = 0.01
# Numbers in a piece of rows.
_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True)
class Way:
    """From changes of the columns to the network at the end of a chain, and back with its gradients.

    Parameters
    ----------
    chain : Chain
    neighbours : Neighbours
    units : ndarray of shape (n_columns,)
        What a change of 1 is in each column; 0 for those held fixed.
    gains : Gains
        How far a change of the columns comes before the network.
    order : ndarray of shape (n_columns,), or None
        Column that each value of the network is, where that reads images in another order.
    """

    chain: Chain
    neighbours: Neighbours
    units: NDArray[np.float64]
    gains: Gains
    order: NDArray[np.intp] | None

    def inputs(self, rows: NDArray[np.intp], changes: NDArray[np.float64]) -> NDArray[Any]:
        """Return what the network sees of rows that are changed."""
        values = self.neighbours.at(rows, changes * self.units)
        for step in self.chain.steps:
            values = step.transform(values)
        found: NDArray[Any] = self.chain.classifier.network_rows(values)
        return found.reshape(len(found), -1)

    def back(
        self, slopes: NDArray[np.float64], rows: NDArray[np.intp], changes: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return gradients with respect to changes, of gradients with respect to inputs."""
        gains = self.gains
        known = gains.linear and gains.moves is not None
        if known and gains.sources is None:
            return slopes @ gains.matrix
        if known:
            return self._of_sources(slopes * gains.matrix)
        # Steps that aren't linear have other slopes at each row: the columns are moved a little, by
        # which the input of the network moves by 1e-3 at most.
        base, reach = self.inputs(rows, changes).astype(np.float64), gains.of_columns
        little = np.divide(1e-3, reach, out=np.zeros_like(reach), where=reach > 0)
        if gains.moves is not None and gains.sources is not None:
            # Each value comes from one column, so that all can be moved at once.
            moved = self.inputs(rows, changes + little) - base
            found = self._of_sources(slopes * moved)
        else:
            found = np.zeros_like(changes)
            for column in np.flatnonzero(little).tolist():
                moved = self.inputs(rows, changes + little * (np.arange(len(little)) == column)) - base
                found[:, column] = (moved * slopes).sum(axis=1)
        return np.divide(found, little, out=np.zeros_like(found), where=little > 0)

    def _of_sources(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add what belongs to the same column."""
        sources = self.gains.sources if self.order is None else self.order
        assert sources is not None, "of values that come from one column each"
        found = np.zeros((len(self.units), len(values)))
        np.add.at(found, sources, values.T)
        return found.T


class Landscape:
    """Scores of all classes over changes of the columns, and their gradients.

    Parameters
    ----------
    decider : Decider
    ways : sequence of Way
        One for each of its chains.
    """

    def __init__(self, decider: Decider, ways: Sequence[Way]) -> None:
        self._decider, self._ways = decider, ways
        self._neighbours = ways[0].neighbours

    @torch.inference_mode(False)
    def margins(
        self, rows: NDArray[np.intp], changes: NDArray[np.float64], goals: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return by how much goals are behind, and the gradients of that.

        Parameters
        ----------
        rows : ndarray of shape (n_moved,)
        changes : ndarray of shape (n_moved, n_columns)
        goals : ndarray of shape (n_moved, n_goals)
            Positions of classes.

        Returns
        -------
        margins : ndarray of shape (n_moved, n_goals)
            Best other score less that of the goal.
        slopes : ndarray of shape (n_moved, n_goals, n_columns)
            0 in what can't be moved.
        """
        leaves = []

        def logits_of(chain: Chain) -> Tensor:
            way = next(way for way in self._ways if way.chain is chain)
            network = proven_network(chain.classifier, chain.method)
            inputs = as_tensor(way.inputs(rows, changes)).to(
                chain.classifier.device_, getattr(torch, network.arithmetic.dtype), copy=True
            )
            leaves.append((way, inputs.requires_grad_()))
            logits: Tensor = network.network(inputs.view(-1, *network.input_shape))
            return logits.double().cpu()

        scores = self._decider.scores(logits_of)
        margins = np.empty(goals.shape)
        slopes = np.zeros((*goals.shape, changes.shape[1]))
        for place, goal in enumerate(torch.from_numpy(goals.T)):
            reached = scores.gather(1, goal[:, None])
            behind = scores.scatter(1, goal[:, None], -torch.inf).max(dim=1).values - reached[:, 0]
            margins[:, place] = behind.detach().numpy()
            of_inputs = torch.autograd.grad(
                behind.sum(), [leaf for _, leaf in leaves], retain_graph=True
            )
            for (way, _), gradient in zip(leaves, of_inputs, strict=True):
                slopes[:, place] += way.back(gradient.double().cpu().numpy(), rows, changes)
        return margins, slopes * self._neighbours.movable[rows][:, None]


# Where numbers are too large, no way is found. Gradients may be switched off around.
@torch.inference_mode(False)
@torch.enable_grad()
@np.errstate(divide="ignore", invalid="ignore", over="ignore")
def nearest_changes(
    landscape: Landscape, rows: NDArray[np.intp], n_columns: int, goals: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return changes that lead just beyond a boundary, as far as scores can tell.

    Parameters
    ----------
    landscape : Landscape
    rows : ndarray of shape (n_moved,)
        Positions of rows.
    n_columns : int
    goals : ndarray of shape (n_moved, n_goals)
        Positions of classes to be reached, of which any will do.

    Returns
    -------
    changes : ndarray of shape (n_moved, n_columns)
        NaN where no class was reached.
    """
    step = max(1, _VALUES_AT_ONCE // (n_columns * goals.shape[1]))
    pieces = range(0, len(rows), step)
    found = [
        _nearest(landscape, rows[start : start + step], n_columns, goals[start : start + step])
        for start in pieces
    ]
    return np.concatenate(found)


def _nearest(
    landscape: Landscape, rows: NDArray[np.intp], n_columns: int, goals: NDArray[np.intp]
) -> NDArray[np.float64]:
    start = np.zeros((len(rows), n_columns))
    margins, slopes = landscape.margins(rows, start, goals)
    squares = (slopes**2).sum(axis=2)
    estimates = np.where(squares > 0, margins / np.sqrt(squares), np.inf)
    best, shortest = np.full(start.shape, np.nan), np.full(len(rows), np.inf)
    every = np.arange(len(rows))
    for place in np.argsort(estimates, axis=1).T[:_TRIED]:
        goal, ahead = goals[every, place], margins[every, place]
        changes, margin, slope = start, ahead, slopes[every, place]
        for _ in range(_STEPS):
            changes = _closer(changes, margin + _BEYOND * ahead, slope)
            of_goal = landscape.margins(rows, changes, goal[:, None])
            margin, slope = of_goal[0][:, 0], of_goal[1][:, 0]
            ends = _crossing(changes, margin, slope)
            lengths = np.linalg.norm(ends, axis=1)
            better = lengths < shortest
            best[better], shortest[better] = ends[better], lengths[better]
    return best


def _crossing(
    changes: NDArray[np.float64], margin: NDArray[np.float64], slope: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return where the ray from x crosses the boundary, as far as the slope tells; else NaN."""
    falls = -np.einsum("ij,ij->i", slope, changes)
    multiples = 1 + margin / falls
    multiples = np.where((falls > 0) & (multiples > 0), multiples, np.nan)
    return changes * multiples[:, None]


def _closer(
    changes: NDArray[np.float64], margin: NDArray[np.float64], slope: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the next point: see Note [Nearest boundary]. Where there is no slope, the same."""
    square = (slope**2).sum(axis=1)
    from_here = changes - (margin / square)[:, None] * slope
    along = (np.einsum("ij,ij->i", slope, changes) - margin) / square
    found = (from_here + along[:, None] * slope) / 2
    return np.where(np.isfinite(found).all(axis=1, keepdims=True), found, changes)
