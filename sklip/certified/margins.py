r"""Constants and rounding of the differences of two logits, which are what a prediction hangs on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sklip.certified.arithmetic import Affine, Arithmetic, floored_product
from sklip.certified.maps import Course, MapBound, longest_input, product_upper
from sklip.certified.norms import row_distances_upper
from sklip.certified.radii import Budget
from sklip.certified.rules import length_upper

__all__ = ["MarginErrors", "leading_translations", "margin_bounds"]


def leading_translations(bounds: Sequence[MapBound]) -> int:
    """Count the first layers that move no value against another, but for the last layer of all."""
    start = 0
    while start < len(bounds) - 1 and isinstance(bounds[start].factors, float):
        if bounds[start].factors != 1.0:
            break
        start += 1
    return start


def margin_bounds(
    chain: Sequence[nn.Module],
    constants: Sequence[float],
    n_outputs: int,
    diagonal: Tensor | None = None,
) -> NDArray[np.float64]:
    r"""Proven Lipschitz constants of all differences :math:`f_i - f_j` of logits.

    If the chain ends in a linear layer with rows :math:`w_i`, the constant is
    :math:`\|w_i - w_j\|_2 L` with L the bound of everything before; that is never larger than
    :math:`\sqrt2 \|W\|_2 L`. For any other end it is :math:`\sqrt2` times the network's bound. With
    `diagonal`, `constants` are those of a chain whose first layer has it folded in.
    """
    head = chain[-1]
    if type(head) is nn.Linear:
        body, weight = product_upper(constants[:-1]), head.weight
        if n_outputs == 1:
            weight = nn.functional.pad(weight, (0, 0, 0, 1))  # the distance from zero
        distances = row_distances_upper(weight, diagonal if len(chain) == 1 else None).numpy()
        distances = floored_product(distances, body * (1 + 2.0**-51))
        return np.asarray(distances[:1, 1:] if n_outputs == 1 else distances)
    bound = product_upper(constants)
    if n_outputs == 1:
        return np.array([[bound]])
    return np.asarray(math.sqrt(2) * (1 + 2.0**-51) * bound * (1 - np.eye(n_outputs)))


class MarginErrors:
    r"""Bounds on the rounding errors of computed differences of logits, in one arithmetic.

    Before any row is seen, from the length of an input alone (`from_length`, `longest`); in float32
    tighter for a row of which the lengths of all values on the way are at hand (:meth:`at`).

    Parameters
    ----------
    chain : sequence of torch.nn.Module
        The layers in order.
    bounds : sequence of MapBound
        What is proven of each.
    n_outputs : int
    arithmetic : Arithmetic
    input_shape : tuple of int

    Attributes
    ----------
    arithmetic : Arithmetic
    from_length : Affine
        Of matrices of shape (n_outputs, n_outputs): for an input of length t, the computed difference
        of logits i and j is at most ``offset[i, j] + slope[i, j] * t`` off.
    longest : float
        Length of an input up to which nothing can overflow, and these bounds hold.
    measured : frozenset of int
        Layers whose inputs are to be measured: the first, and in float32 those that round.
    """

    def __init__(
        self,
        chain: Sequence[nn.Module],
        bounds: Sequence[MapBound],
        n_outputs: int,
        arithmetic: Arithmetic,
        input_shape: tuple[int, ...],
    ) -> None:
        self.arithmetic, self.n_outputs = arithmetic, n_outputs
        # Every value is rounded to the network's precision before the first layer; one of float32 may
        # be flushed on the way to float64.
        smallest = max(arithmetic.smallest, float(np.finfo(np.float32).tiny))
        lost = smallest * math.sqrt(math.prod(input_shape))
        self._cast = Affine(lost, arithmetic.unit)
        course = Course(bounds, arithmetic, self._cast)
        self.longest = longest_input(course, arithmetic)
        head = chain[-1] if type(chain[-1]) is nn.Linear else None
        n_body = len(bounds) if head is None else len(bounds) - 1
        self._body = list(zip(bounds[:n_body], course.own_errors[:n_body], strict=True))
        rounding = [i for i, own in enumerate(course.own_errors) if own.slope > 0]
        # In float64 the length of the input bounds the errors well enough.
        self.measured = frozenset([0, *rounding] if arithmetic.dtype == "float32" else [0])
        if head is None:
            # More than the root of 2: two entries of an error differ by at most that times its length.
            both = np.ones((1, 1)) if n_outputs == 1 else 1.5 * (1 - np.eye(n_outputs))
            self._distances, self._own = both, Affine(0.0 * both, 0.0 * both)
        else:
            self._distances, self._own = _head_errors(head, n_outputs, arithmetic)
        error, length = course.errors[n_body], course.lengths[n_body]
        self.from_length = Affine(
            self._distances * error.offset + self._own.slope * length.offset + self._own.offset,
            self._distances * error.slope + self._own.slope * length.slope,
        ).rounded_up()

    def at(self, pairs: NDArray[np.intp], lengths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bound the errors for some rows.

        Parameters
        ----------
        pairs : ndarray of shape (n_samples,)
            From :func:`sklip.certified.radii.pair_rows`.
        lengths : ndarray of shape (n_samples, n_layers)
            Upper bounds on the lengths of what each layer was given; read for those in `measured`.

        Returns
        -------
        errors : ndarray of shape (n_samples, n_outputs)
            Infinite where something might have overflown.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            errors = (
                self.for_length(pairs, lengths[:, 0])
                if self.measured == {0}
                else self._for_lengths(pairs, lengths)
            )
        known = (lengths[:, 0] <= self.longest) & np.isfinite(errors).all(axis=1)
        return np.where(known[:, None], errors, np.inf)

    def _for_lengths(
        self, pairs: NDArray[np.intp], lengths: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        error = Affine(self._cast.offset + self._cast.slope * lengths[:, 0])
        for (bound, own), length in zip(self._body, lengths.T, strict=False):
            error = bound.carry(error, Affine(length), own)
        errors: NDArray[np.float64] = (
            self._distances[pairs] * np.asarray(error.offset)[:, None]
            + np.asarray(self._own.slope)[pairs] * lengths[:, -1:]
            + np.asarray(self._own.offset)[pairs]
        ) * (1 + 2.0**-40)
        return errors

    def for_length(self, pairs: NDArray[np.intp], lengths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bound the errors for rows of which no more than the length is known.

        Parameters
        ----------
        pairs, lengths : ndarray of shape (n_samples,)

        Returns
        -------
        errors : ndarray of shape (n_samples, n_outputs)
        """
        offset, slope = np.asarray(self.from_length.offset), np.asarray(self.from_length.slope)
        errors: NDArray[np.float64] = offset[pairs] + slope[pairs] * lengths[:, None]
        return errors

    def budget(
        self, pairs: NDArray[np.intp], lengths: NDArray[np.float64], reach: float, drift: Affine
    ) -> Budget:
        """Return what the errors for neighbours x' of some rows x take of the margins.

        Parameters
        ----------
        pairs, lengths : ndarray of shape (n_samples,)
            Of the rows x.
        reach, drift
            As for :meth:`sklip.CertifiedNetwork.budget`.

        Returns
        -------
        budget : Budget
        """
        spread, lengths = reach + drift.slope, lengths + drift.offset
        slopes = np.asarray(self.from_length.slope)[pairs]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # Longer rows might overflow inside the network.
            longest = (self.longest - lengths) / spread
            return Budget(self.for_length(pairs, lengths), slopes * spread, longest)

    def numbers(self) -> list[Any]:
        """Return all that the bounds are made of, as values that can be compared, for a fingerprint."""
        body = [(bound.constant, own) for bound, own in self._body]
        matrices = (
            self._distances,
            *(self._own.offset, self._own.slope),
            *(self.from_length.offset, self.from_length.slope),
        )
        values = [np.asarray(matrix).tobytes() for matrix in matrices]
        return [self.arithmetic, self.longest, self.measured, self._cast, body, values]


def _head_errors(
    head: nn.Linear, n_outputs: int, arithmetic: Arithmetic
) -> tuple[NDArray[np.float64], Affine]:
    """Return how far differences of logits move with their input, and the errors of their own."""
    weight = head.weight.detach().cpu().double()
    columns = weight.shape[1]
    # Two roundings more than the sum: `direct_forward` may have to sum in float64, and cast.
    gamma = arithmetic.gamma_of_sum(columns) + 2 * arithmetic.unit
    rows = np.array([length_upper(row) for row in weight])
    bias = np.zeros(n_outputs)
    if head.bias is not None:
        bias = np.abs(head.bias.detach().cpu().double().numpy())
    flushed = 4 * arithmetic.smallest * (columns + 1)
    if n_outputs == 1:
        distances, rows, bias = rows[:, None], rows[:, None], bias[:, None]
    else:
        distances = row_distances_upper(weight).numpy()
        rows, bias = rows[:, None] + rows, bias[:, None] + bias
    return distances, Affine(gamma * bias + flushed, gamma * rows)
