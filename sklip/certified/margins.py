r"""Constants and rounding of the differences of two logits, which are what a prediction hangs on."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sklip.certified.arithmetic import Affine, Arithmetic, floored_product
from sklip.certified.gains import Gains
from sklip.certified.integrity import digest_of_array
from sklip.certified.maps import Course, MapBound, longest_input, product_upper
from sklip.certified.norms import column_lengths_upper, row_distances_upper
from sklip.certified.radii import Budget
from sklip.certified.rules import length_upper

__all__ = ["MarginErrors", "MarginGains", "margin_bounds"]


def margin_bounds(
    chain: Sequence[nn.Module], constants: Sequence[float], n_outputs: int
) -> NDArray[np.float64]:
    r"""Proven Lipschitz constants of all differences :math:`f_i - f_j` of logits.

    If the chain ends in a linear layer with rows :math:`w_i`, the constant is
    :math:`\|w_i - w_j\|_2 L` with L the bound of everything before; that is never larger than
    :math:`\sqrt2 \|W\|_2 L`. For any other end it is :math:`\sqrt2` times the network's bound.
    """
    if type(chain[-1]) is not nn.Linear:
        return _of_pairs(product_upper(constants), n_outputs)
    distances = _head_distances(chain[-1].weight, n_outputs)
    return _times(distances, product_upper(constants[:-1]))


def _head_distances(rows: Tensor, n_outputs: int) -> NDArray[np.float64]:
    """Distances of the rows of all pairs of logits; from zero if there is one."""
    if n_outputs == 1:
        return row_distances_upper(nn.functional.pad(rows, (0, 0, 0, 1))).numpy()[:1, 1:]
    return np.asarray(row_distances_upper(rows).numpy())


def _times(distances: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    return np.asarray(floored_product(distances, bound * (1 + 2.0**-51)))


def _of_pairs(bound: float, n_outputs: int) -> NDArray[np.float64]:
    """Two entries of a change differ by at most the root of 2 times its length."""
    if n_outputs == 1:
        return np.array([[bound]])
    return np.asarray(math.sqrt(2) * (1 + 2.0**-51) * bound * (1 - np.eye(n_outputs)))


class MarginGains:
    r"""How fast differences of logits move with the columns in front of a network.

    Linear layers that come first, or behind translations, are multiplied into what is known of the
    columns: :math:`\|W M\|_2` is never more and can be far less than :math:`\|W\|_2 \|M\|_2`. If the
    network has no other layers, what counts is the distance of two rows of W M.

    Parameters
    ----------
    chain : sequence of torch.nn.Module
        The layers in order.
    maps : sequence of MapBound
        What is proven of each.
    n_outputs : int
    gains : Gains
        How far a change of the columns comes in front of the first layer.
    """

    def __init__(
        self, chain: Sequence[nn.Module], maps: Sequence[MapBound], n_outputs: int, gains: Gains
    ) -> None:
        self._n_outputs, self._errors = n_outputs, gains.errors
        self._distances: NDArray[np.float64] | None = None
        self._rows: NDArray[np.float64] | None = None
        head = chain[-1] if type(chain[-1]) is nn.Linear else None
        n_body = len(chain) if head is None else len(chain) - 1
        self._gains = _through(chain[:n_body], maps[:n_body], gains)
        if head is not None:
            self._distances = _head_distances(head.weight, n_outputs)
            behind = _through([head], maps[n_body:], self._gains)
            if behind.moves is not None and np.isfinite(behind.of_columns).all():
                self._rows, self._errors = behind.matrix, behind.errors

    @functools.cached_property
    def bounds(self) -> NDArray[np.float64]:
        """Bounds for changes of all columns together."""
        if self._rows is None:
            return self._behind(self._gains.bound)
        error = float(column_lengths_upper(self._errors[:, None])[0])
        return self._between(_head_distances(torch.from_numpy(self._rows), self._n_outputs), error)

    def of_column(self, column: int) -> NDArray[np.float64]:
        """Return the bounds where one column changes alone.

        Parameters
        ----------
        column : int

        Returns
        -------
        bounds : ndarray of shape (n_outputs, n_outputs)
        """
        if self._rows is None:
            return self._behind(float(self._gains.of_columns[column]))
        entries = self._rows[:, column, None]
        others = np.zeros((1, 1)) if self._n_outputs == 1 else entries.T
        distances = np.abs(entries - others) * (1 + 2.0**-52)
        return self._between(distances, float(self._errors[column]))

    def _behind(self, bound: float) -> NDArray[np.float64]:
        """Bounds behind a body of which the change of its output is bounded."""
        if self._distances is None:
            return _of_pairs(bound, self._n_outputs)
        return _times(self._distances, bound)

    def _between(self, distances: NDArray[np.float64], error: float) -> NDArray[np.float64]:
        """Distances of rows that are known but for an error: two of its rows differ by a root of 2."""
        assert self._distances is not None
        # Equal rows of the head stay equal.
        return np.where(self._distances > 0, distances * (1 + 2.0**-50) + 1.5 * error, 0.0)


def _through(chain: Sequence[nn.Module], maps: Sequence[MapBound], gains: Gains) -> Gains:
    """Return how far a change comes behind some layers."""
    for position, (layer, known) in enumerate(zip(chain, maps, strict=True)):
        if gains.moves is None:
            return gains.times(product_upper(each.constant for each in maps[position:]))
        # On a map of several rows, a layer is no matrix of all values.
        if type(layer) is nn.Linear and layer.weight.shape[1] == len(gains.moves):
            known = replace(known, matrix=layer.weight)
        gains = gains.through(known)
    return gains


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
        values = [digest_of_array(np.asarray(matrix)) for matrix in matrices]
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
