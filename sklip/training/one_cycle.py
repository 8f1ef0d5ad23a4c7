r"""The course of the learning rate: up, and down to nearly nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["OneCycle"]

_RISE = 0.3
_START, _END = 1 / 25, 1 / 25e4
_LARGEST_BETA, _SMALLEST_BETA = 0.95, 0.85


class OneCycle:
    r"""Sets an optimiser's rates for each of `n_steps` steps: half a cosine up, half a cosine down.

    With the values of torch's OneCycleLR, in a tenth of its time, which counts where a step takes a
    millisecond. Adam's first beta goes the other way.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Its rates may be numbers, or tensors that are filled.
    peaks : sequence of float
        Largest rate of each group of parameters.
    n_steps : int
        At least 2. Further steps leave the rates as they are.

    References
    ----------
    Smith, Topin (2019), Super-convergence, arXiv 1708.07120.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, peaks: Sequence[float], n_steps: int) -> None:
        self._optimizer, self._peaks, self._n_steps = optimizer, peaks, n_steps
        self.go_to(0)

    def __call__(self) -> None:
        """Set the rates of the next step."""
        self.go_to(self._taken + 1)

    def go_to(self, n_taken: int) -> None:
        """Set the rates of the step that comes after so many."""
        self._taken = n_taken
        if self._taken < self._n_steps:
            self._set()

    def _set(self) -> None:
        last, turning = self._n_steps - 1, _RISE * self._n_steps - 1
        if self._taken <= turning:
            height, floor = _half_cosine(self._taken / turning), _START
        else:
            height, floor = 1 - _half_cosine((self._taken - turning) / (last - turning)), _END
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            rate = peak * (floor + (1 - floor) * height)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
            if isinstance(self._optimizer, torch.optim.Adam):
                beta = _LARGEST_BETA - (_LARGEST_BETA - _SMALLEST_BETA) * height
                group["betas"] = (beta, *group["betas"][1:])


def _half_cosine(share: float) -> float:
    """From 0 to 1."""
    return (1 - math.cos(math.pi * share)) / 2
