"""The constructor's constraints, and what "auto" stands for."""

from __future__ import annotations

import copy
import math
import os
import sys
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch

# scikit-learn has no public way to state constraints, and its own checks (check_param_validation)
# read the attribute that these classes fill. This is the only place that imports them.
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from sklip import losses

__all__ = [
    "CONSTRAINTS",
    "make_loss",
    "resolve_augmentation",
    "resolve_dtype",
]

_AT_LEAST_ONE = Interval(Integral, 1, None, closed="left")


class _FloatInterval(Interval):  # type: ignore[misc]
    """Interval of numbers that a float can hold: an integer may be too large for one."""

    def is_satisfied_by(self, val: Any) -> bool:
        too_large = isinstance(val, Integral) and int(val) > sys.float_info.max
        return super().is_satisfied_by(val) and not too_large


_POSITIVE = _FloatInterval(Real, 0, None, closed="neither")

CONSTRAINTS: dict[str, list[Any]] = {
    "loss": [StrOptions({"tau_cross_entropy", "logit_annealing", "hkr", "lse_hkr"}), nn.Module],
    "tau": [_POSITIVE],
    "eps": [_FloatInterval(Real, 0, None, closed="left")],
    "min_margin": [_POSITIVE],
    "alpha": [_FloatInterval(Real, 0, None, closed="both")],  # infinity: the hinge alone
    "architecture": [StrOptions({"auto", "mlp", "cnn"}), callable],
    "input_shape": ["array-like", None],
    "conv_channels": ["array-like", StrOptions({"auto"})],
    "hidden_layer_sizes": ["array-like", StrOptions({"auto"})],
    "max_epochs": [_AT_LEAST_ONE, StrOptions({"auto"})],
    "batch_size": [_AT_LEAST_ONE, StrOptions({"auto"})],
    "solver": [StrOptions({"muon", "adam"})],
    "learning_rate": [_POSITIVE, StrOptions({"auto"})],
    "learning_rate_schedule": [StrOptions({"one_cycle", "constant"})],
    "augmentation": [callable, list, tuple, None],
    "early_stopping": ["boolean"],
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "n_iter_no_change": [_AT_LEAST_ONE],
    "class_weight": [StrOptions({"balanced"}), dict, None],
    "warm_start": ["boolean"],
    "checkpoint_dir": [str, os.PathLike, None],
    "device": [str, torch.device],
    "dtype": [StrOptions({"auto", "float32", "float64"})],
    "callbacks": [list, tuple, None],
    "verbose": ["verbose"],
    "random_state": ["random_state"],
}

# Up to this many values, float64 costs little and gives up less of a radius to rounding.
_SMALL_TABLE = 2**20

# Exponent of the authors of the loss (Lai et al. 2025).
_ANNEALING = 5.0


def make_loss(
    loss: str | nn.Module, *, binary: bool, tau: float, eps: float, min_margin: float, alpha: float
) -> nn.Module:
    """Return the criterion of a name, or a copy of the one that was given."""
    if isinstance(loss, nn.Module):
        return copy.deepcopy(loss)
    if loss in ("hkr", "lse_hkr"):
        if eps > 0:
            raise ValueError(
                f"eps={eps!r} is for the cross-entropies; set it to 0 with loss={loss!r}, where "
                "min_margin asks for a radius."
            )
        if binary:  # the soft maximum over one class is that class
            return losses.BinaryHKRLoss(min_margin, alpha)
        hkr = losses.MulticlassLogSumExpHKRLoss if loss == "lse_hkr" else losses.MulticlassHKRLoss
        return hkr(min_margin, alpha)
    annealing = _ANNEALING if loss == "logit_annealing" else 0.0
    if binary:
        return losses.BinaryTauCrossEntropyLoss(tau, eps, annealing)
    # Two logits of a 1-Lipschitz network approach each other by at most sqrt 2 times the distance.
    return losses.TauCrossEntropyLoss(tau, math.sqrt(2) * eps, annealing)


def resolve_augmentation(augmentation: Any, is_image: bool) -> list[Callable[..., Any]]:
    """Return the changes of the training images as a list of callables."""
    if augmentation is None:
        return []
    changes = [augmentation] if callable(augmentation) else list(augmentation)
    for change in changes:
        if not callable(change):
            raise TypeError(
                "augmentation must be a callable (images, generator) -> images or a list of them, "
                f"got {type(change).__name__}."
            )
    if changes and not is_image:
        raise ValueError(
            "augmentation is for images; pass X of shape (n_samples, channels, height, width), or "
            "flat rows with input_shape=(channels, height, width)."
        )
    return changes


def resolve_dtype(dtype: str, is_image: bool, n_values: int) -> str:
    """float64 for small tables, float32 for images and everything large."""
    if dtype != "auto":
        return dtype
    return "float32" if is_image or n_values > _SMALL_TABLE else "float64"
