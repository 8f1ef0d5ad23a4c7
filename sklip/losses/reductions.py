r"""What the losses share: checks of arguments, weighted means, class masks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "binary_scores",
    "check_non_negative",
    "check_positive",
    "normalized_margins",
    "one_hot_mask",
    "true_margins",
    "weighted_mean",
]


def check_positive(name: str, value: float) -> float:
    """Return the value, or raise unless it is positive and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}.")
    return float(value)


def check_non_negative(name: str, value: float) -> float:
    """Return the value, or raise if it is negative; infinity is allowed."""
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0 (infinity is allowed), got {value!r}.")
    return float(value)


def weighted_mean(values: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Mean over samples; weights act as repetitions."""
    if sample_weight is None:
        return values.mean()
    return (values * sample_weight).sum() / sample_weight.sum()


def one_hot_mask(logits: Tensor, target: Tensor) -> Tensor:
    """True at each row's own class."""
    return functional.one_hot(target, logits.shape[1]).bool()


def binary_scores(logits: Tensor) -> Tensor:
    """Return the logits of a binary problem with shape (n,)."""
    if logits.ndim == 2 and logits.shape[1] == 1:
        logits = logits.squeeze(1)
    if logits.ndim != 1:
        raise ValueError(f"logits must have shape (n,) or (n, 1), got {tuple(logits.shape)}.")
    return logits


def true_margins(logits: Tensor, target: Tensor) -> Tensor:
    """True logit minus the largest other one, of each row."""
    rival = logits.masked_fill(one_hot_mask(logits, target), -math.inf).amax(1)
    return logits.gather(1, target.unsqueeze(1)).squeeze(1) - rival


def normalized_margins(logits: Tensor, target: Tensor) -> Tensor:
    r"""Margin of each row over :math:`\sqrt 2` (of one logit: itself), negative where it is wrong.

    It is the distance in which the class can't change if the network has constant 1, of which nothing
    is proven here.
    """
    if logits.ndim == 1 or logits.shape[1] == 1:
        scores = binary_scores(logits)
        return torch.where(target > 0, scores, -scores)
    return true_margins(logits, target) / math.sqrt(2)
