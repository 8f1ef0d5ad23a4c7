r"""Which class each row gets: that of an evaluation in float64, in float32 where that proves the same.

Note [Floating-point filter]
----------------------------
Let f be the exact function of the stored weights, E32(x) and E64(x) bounds on the errors of computed
differences of its logits. A row is evaluated in float32. If every margin of the predicted class
exceeds E32(x) + E64(x), the exact margins exceed E64(x), so that float64 would predict the same;
otherwise float64 is asked. Where a margin there is at most 2 E64(x), even the order of its sums may
decide: such a row is evaluated alone, so that it gets the same class in any company. Hence

* the class is that of f wherever the margins of f exceed E64, in whichever precision it was found;
* with m_j a lower bound on the exact margin over class j at x, every x' with
  K_j |x' - x| + E64(x') < m_j gets the class of x. That bound is the computed margin less the error of
  the precision that it comes from, E32(x) or E64(x); at x' nothing of E32 is left.

For a class `share` is 1. For a radius it is the part of the margin that E32(x) may take before float64
is asked; the class is the same for any share, since all of them end at that of float64.

References
----------
Shewchuk (1997), Adaptive precision floating-point arithmetic and fast robust geometric predicates.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sklip.certified.direct_sums import direct_forward, forward_one_by_one
from sklip.certified.margins import MarginErrors
from sklip.certified.radii import pair_rows, predicted_codes, predicted_margins
from sklip.rows import as_tensor, joined

__all__ = ["Decisions", "decide", "with_winners"]


@dataclass(frozen=True)
class Decisions:
    """Logits that decide, and how far their differences may be from the exact ones.

    Parameters
    ----------
    logits : ndarray of shape (n_samples, n_outputs), float64
    errors : ndarray of shape (n_samples, n_outputs)
        Bounds on the errors of the predicted class's margins over each class.
    lengths : ndarray of shape (n_samples,)
        Upper bounds on the L2 lengths of the rows.
    """

    logits: NDArray[np.float64]
    errors: NDArray[np.float64]
    lengths: NDArray[np.float64]

    @classmethod
    def joined(cls, n_rows: int, parts: Iterable[Decisions]) -> Decisions:
        """Return the decisions on several pieces of X as one."""
        return cls(*joined(n_rows, ((part.logits, part.errors, part.lengths) for part in parts)))

    @classmethod
    def empty(cls, n_samples: int, n_outputs: int) -> Decisions:
        """Return room for decisions."""
        shape = (n_samples, n_outputs)
        return cls(np.empty(shape), np.empty(shape), np.empty(n_samples))

    def take(self, rows: NDArray[np.intp], others: Decisions) -> None:
        """Write others in the place of some rows."""
        self.logits[rows], self.errors[rows] = others.logits, others.errors
        self.lengths[rows] = others.lengths

    @property
    def codes(self) -> NDArray[np.intp]:
        """Predicted classes."""
        return predicted_codes(self.logits)

    @property
    def pairs(self) -> NDArray[np.intp]:
        """Places of the predicted classes in matrices of bounds on pairs."""
        return pair_rows(self.logits)

    def pairs_of(self, code: int | None) -> NDArray[np.intp]:
        """Return the places of a class in matrices of bounds on pairs: of the predicted one if None."""
        if code is None:
            return self.pairs
        return np.full(len(self.logits), 0 if self.logits.shape[1] == 1 else code)

    def errors_of(self, code: int | None) -> NDArray[np.float64]:
        """Return bounds on the errors of a class's margins over each: of the predicted one if None."""
        if code is None or self.logits.shape[1] == 1:
            return self.errors
        # By way of the predicted class.
        return self.errors[:, [code]] + self.errors

    def rows(self, rows: slice) -> Decisions:
        """Return the decisions on some of the rows."""
        return Decisions(self.logits[rows], self.errors[rows], self.lengths[rows])

    def logits_in(self, dtype: str) -> NDArray[np.floating[Any]]:
        """Return the logits, rounded to another precision, in which they predict the same classes."""
        largest = np.finfo(dtype).max
        # Below the largest number, so that the winner can be moved above all others.
        limit = np.nextafter(largest, 0, dtype=dtype)
        finite = np.isfinite(self.logits).all(axis=1, keepdims=True)
        rounded = np.where(finite, np.clip(self.logits, -limit, limit), self.logits).astype(dtype)
        return with_winners(rounded, self.codes)


def with_winners(
    scores: NDArray[np.floating[Any]], codes: NDArray[np.intp]
) -> NDArray[np.floating[Any]]:
    """Return scores in which rounding made ties, with the right one of each row above the others.

    Parameters
    ----------
    scores : ndarray of shape (n_samples, n_outputs)
        Changed in place, by one unit where the prediction would be another.
    codes : ndarray of shape (n_samples,)
        Predicted classes.

    Returns
    -------
    scores : ndarray of shape (n_samples, n_outputs)
    """
    wrong = np.flatnonzero((predicted_codes(scores) != codes) & np.isfinite(scores).all(axis=1))
    tiny = np.finfo(scores.dtype).tiny
    if scores.shape[1] == 1:
        scores[wrong, 0] = tiny
    else:
        top = scores[wrong].max(axis=1)
        # No subnormal number, which may be flushed to zero.
        above = np.nextafter(top, np.inf, dtype=scores.dtype)
        scores[wrong, codes[wrong]] = np.where(np.abs(top) < tiny, 2 * tiny, above)
    return scores


def decide(
    network: nn.Module,
    input_shape: tuple[int, ...],
    precisions: Sequence[MarginErrors],
    pieces: Iterable[NDArray[Any]],
    share: float,
) -> Iterator[Decisions]:
    """Evaluate pieces of flat rows, in the first precision that is exact enough for each row.

    Parameters
    ----------
    network : torch.nn.Module
        A plain network.
    input_shape : tuple of int
    precisions : sequence of MarginErrors
        That of the network, and float64, which may be the same.
    pieces : iterable of ndarray of shape (n_rows, n_values)
        The caller's own values, of any type.
    share : float
        Part of every margin that errors may take, at most 1, before float64 is asked.

    Yields
    ------
    decisions : Decisions
    """
    evaluate = _Evaluation(network, precisions[0].arithmetic.dtype, input_shape)
    *_, finest = precisions
    for piece in pieces:
        pending = np.arange(len(piece))
        decided = Decisions.empty(len(piece), finest.n_outputs)
        for precision in precisions:
            if len(pending) == 0:
                break
            found = evaluate.together(
                piece if len(pending) == len(piece) else piece[pending], precision
            )
            decided.take(pending, found)
            needed = found.errors + finest.for_length(found.pairs, found.lengths)
            if precision is not finest:
                needed = np.maximum(needed, found.errors / share)
            margins, others = predicted_margins(found.logits)
            # The factor covers the rounding of these comparisons themselves.
            settled = ((margins > needed * (1 + 2.0**-40)) | ~others).all(axis=1)
            pending = pending[~settled]
        if len(pending):
            decided.take(pending, evaluate.one_by_one(piece[pending], decided.lengths[pending], finest))
        yield decided


class _Evaluation:
    """A network, and once it is needed, its copy in another precision."""

    def __init__(self, network: nn.Module, dtype: str, input_shape: tuple[int, ...]) -> None:
        first = next(network.parameters(), None)
        self._device = "cpu" if first is None else first.device
        self._network, self._networks = network, {dtype: network}
        self._input_shape = input_shape

    def _prepared(self, rows: NDArray[Any], dtype_name: str) -> tuple[nn.Module, Tensor]:
        dtype = getattr(torch, dtype_name)
        if dtype_name not in self._networks:
            self._networks[dtype_name] = copy.deepcopy(self._network).to(dtype)
        x = as_tensor(rows).view(-1, *self._input_shape).to(self._device, dtype)
        return self._networks[dtype_name], x

    def together(self, rows: NDArray[Any], precision: MarginErrors) -> Decisions:
        """Evaluate rows in batches."""
        network, x = self._prepared(rows, precision.arithmetic.dtype)
        outputs, inside = direct_forward(network, x, precision.arithmetic, precision.measured)
        logits, lengths = outputs.double().cpu().numpy(), inside.cpu().numpy()
        # Lengths of the caller's rows, from those of rows cast to the network's precision.
        lengths[:, 0] = lengths[:, 0] * (1 + 2.0**-20) + 1e-30
        return Decisions(logits, precision.at(pair_rows(logits), lengths), lengths[:, 0])

    def one_by_one(
        self, rows: NDArray[Any], lengths: NDArray[np.float64], precision: MarginErrors
    ) -> Decisions:
        """Evaluate each row alone; their lengths are known."""
        network, x = self._prepared(rows, precision.arithmetic.dtype)
        outputs = forward_one_by_one(network, x, precision.arithmetic)
        logits = outputs.double().cpu().numpy()
        return Decisions(logits, precision.for_length(pair_rows(logits), lengths), lengths)
