"""Checks of the layers' arguments: errors that name the argument, the rule and the value."""

from __future__ import annotations

import math
from numbers import Integral, Real

__all__ = ["check_positive", "check_positive_int", "pair"]


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
