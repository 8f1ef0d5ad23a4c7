"""Checks of the layers' arguments: errors that name the argument, the rule and the value."""

from __future__ import annotations

import math
from numbers import Integral, Real

from torch import nn

__all__ = ["check_positive", "check_positive_int", "layer_constant", "pair"]


def check_positive(name: str, value: float) -> float:
    """Return `value` as a float if it is a positive finite number."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {value!r}.")
    return float(value)


def check_positive_int(name: str, value: int) -> int:
    """Return `value` as an int if it is a whole number of at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
    return int(value)


def pair(name: str, value: int | tuple[int, int], *, minimum: int = 1) -> tuple[int, int]:
    """Return `value` as (height, width); one integer stands for both."""
    both = value if isinstance(value, tuple) else (value, value)
    if len(both) != 2 or not all(
        isinstance(v, Integral) and not isinstance(v, bool) and v >= minimum for v in both
    ):
        raise ValueError(
            f"{name} must be an integer of at least {minimum} or a pair of them, got {value!r}."
        )
    return int(both[0]), int(both[1])


def layer_constant(layer: nn.Module) -> float:
    """Return the constant that a layer is made for: its attribute k."""
    if type(layer) in (nn.Identity, nn.Flatten):
        return 1.0
    # Only of the package's own types: a subclass may compute anything, and other modules use k for
    # other things.
    if type(layer).__module__.startswith("sklip.layers.") and hasattr(layer, "k"):
        return float(layer.k)  # type: ignore[arg-type]
    raise TypeError(
        f"Sequential needs layers of a known Lipschitz constant, got {type(layer).__name__}; use "
        "the layers of sklip.layers, or torch.nn.Sequential and certify with lipschitz_bound."
    )
