r"""What a file sets aside of margins: as for certificates, for sums in any order, and fixed in advance.

Note [Charges of a file]
------------------------
The bounds on rounding that certificates rest on hold for sums in any order, fused or not, in blocks
or not: each term of a sum of n goes through at most n roundings. What onnxruntime computes in float64
on the CPU is of that kind. Its optimiser may move factors and translations through products, a few
roundings more each time; so every bound here is that of an arithmetic of :math:`4 u`, which has room
for four times as many. Of most radii that is less than 1e-8. (What it does to constants of one
element is another matter: see Note [Constants of one element] in :mod:`sklip.export.graph`.)

In a pipeline, errors depend on the lengths of the values in front of each step. These are measured in
the graph; what is made of them is linear, with coefficients >= 0 that are known in advance. Such a
form is an array: its first entry stands alone, each other one is the coefficient of a length.

Networks of float32 get their radii here by float64. That of ``certificates`` pays for float32 at x, at
most 1 % of every margin (:mod:`sklip.certified.decisions`), and the margin that it starts from may be
as much less than the exact one. So that the file never promises more, it leaves :math:`0.02 / 0.99`
of the margins out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklip.certified import Affine, Arithmetic, CertifiedNetwork, Gains
from sklip.certified.arithmetic import FLOOR, floored_product
from sklip.certified.direct_sums import flat_chain
from sklip.certified.maps import MapBound
from sklip.certified.margins import MarginErrors
from sklip.certified.rules import described_chain
from sklip.preprocessing.walk import longest_row

__all__ = ["Charges"]

# Above the rounding of the sums and products that make numbers here, and of those in the graph.
_SLACK = 1 + 2.0**-40


class _AnyOrder(Arithmetic):
    """Four times the unit roundoff of float64: see Note [Charges of a file]."""

    @property
    def unit(self) -> float:
        return 4 * super().unit


@dataclass(frozen=True)
class Charges:
    r"""What is set aside of the margins of class y over j.

    With m a margin and F the values of the forms, the radius is the least of
    :math:`(s m - c_{yj}) / K_{yj}`, where :math:`c = a + b F_0 + d F_1`, and of
    :math:`l_i - F_i` for all :math:`i \ge 2`.

    Parameters
    ----------
    share : float
        s.
    constants : ndarray of shape (n_outputs, n_outputs)
        K, for distances in the caller's units.
    spent, per_length, per_drift : ndarray of shape (n_outputs, n_outputs)
        a, b, d.
    forms : ndarray of shape (n_lengths + 1, 2 + n_limits)
        One form a column: twice the length of what the network is given, and the drift of that; the
        drift; then one for each limit.
    limits : ndarray of shape (2 + n_limits,)
        l, the first two 0.
    """

    share: float
    constants: NDArray[np.float64]
    spent: NDArray[np.float64]
    per_length: NDArray[np.float64]
    per_drift: NDArray[np.float64]
    forms: NDArray[np.float64]
    limits: NDArray[np.float64]

    @classmethod
    def of(
        cls, network: CertifiedNetwork, known: list[tuple[MapBound, Gains]], gains: Gains, plain: bool
    ) -> Charges:
        """Return the charges of a network behind steps.

        Parameters
        ----------
        network : CertifiedNetwork
        known : list of (MapBound, Gains)
            What is proven of each step, and how far a change has come before it. The lengths are those
            of the values in front of each, then that of what the network is given.
        gains : Gains
            How far it comes to the network.
        plain : bool
            Whether changes are those of what the network is given, as they are.
        """
        arithmetic = _AnyOrder("float64")
        chain = flat_chain(network.network)
        bounds, _ = described_chain(chain, network.input_shape)
        errors = MarginErrors(chain, bounds, network.n_outputs, arithmetic, network.input_shape)
        drift, limits = _drift(known, arithmetic)
        moves = network.margin_bounds if plain else network.margins_behind(gains).bounds
        reach = gains.bound + float(drift.slope)
        offset, slope = np.asarray(errors.from_length.offset), np.asarray(errors.from_length.slope)
        constants = moves + network.margin_bounds * drift.slope + slope * reach
        own = _alone(len(known) + 2, len(known) + 1)
        limits.append((errors.longest, own + drift.offset, reach))
        # At x, and at x', which lies as far from 0 as x and the drift say.
        forms = [2 * own + drift.offset, np.asarray(drift.offset)]
        forms += [form / max(per_distance, FLOOR) for _, form, per_distance in limits]
        most = [longest / max(per_distance, FLOOR) for longest, _, per_distance in limits]
        return cls(
            # The margin itself is a rounded difference, and is multiplied.
            (1 - 2.0**-48) * (1.0 if network.arithmetic.dtype == "float64" else 1 - 0.0203),
            floored_product(constants, _SLACK),
            (2 * offset + FLOOR) * _SLACK,
            slope * _SLACK,
            network.margin_bounds * _SLACK,
            _of_computed_lengths(np.array(forms).T),
            np.array([0.0, 0.0, *most]) * (1 - 2.0**-40),
        )


def _of_computed_lengths(forms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return forms of lengths as computed in their place: sums of squares, which may be flushed."""
    grown = forms * (1 + 2.0**-20)
    grown[0] += 1e-30 * grown[1:].sum(axis=0)
    return np.asarray(grown)


def _alone(size: int, position: int) -> NDArray[np.float64]:
    return np.asarray(np.eye(size)[position])


def _drift(
    known: list[tuple[MapBound, Gains]], arithmetic: Arithmetic
) -> tuple[Affine, list[tuple[float, Any, float]]]:
    """Bound how far rounding in the steps moves their values, as sklip.preprocessing.walk does."""
    size, limits = len(known) + 2, []
    at_x = at_neighbour = Affine(np.zeros(size), 0.0)
    for position, (bound, before) in enumerate(known):
        own = bound.error_in(arithmetic)
        longest = longest_row(own, arithmetic)
        own = Affine(own.offset * _alone(size, 0), own.slope)
        length = Affine(_alone(size, position + 1), 0.0)
        reached = length + at_x + at_neighbour + Affine(0.0, before.bound)
        limits.append((longest, reached.offset, float(reached.slope)))
        at_neighbour = bound.carry(at_neighbour, reached, own)
        at_x = bound.carry(at_x, length, own)
    drift = at_x + at_neighbour
    if not (np.isfinite(drift.offset).all() and math.isfinite(float(drift.slope))):
        raise TypeError(
            "the rounding of the steps has no bound in float64; leave out steps that enlarge values "
            "by more than 1e100."
        )
    return drift.rounded_up(), limits
