"""What scores and units are called in pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sklip.scoring import average_certified_radius_scorer, certified_accuracy_scorer

__all__ = [
    "inner_ends",
    "rounded_down",
    "rounded_up",
    "score_words",
    "told_apart",
    "unit_words",
    "value_words",
]


def unit_words(scale: Any) -> str:
    """Return the unit that distances are in."""
    if scale is None:
        return "units of X"
    if isinstance(scale, str):
        return "standard deviations"
    return "units of scale"


def score_words(name: str, scoring: Mapping[str, Any] | None) -> str:
    """Return what a score is called, with its eps where a scorer tells it.

    Parameters
    ----------
    name : str
        Its name in `scoring`.
    scoring : dict of str to scorer, or None
    """
    scorer = (scoring or {}).get(name)
    if isinstance(scorer, certified_accuracy_scorer):
        return f"certified accuracy at eps = {scorer.eps:g} ({unit_words(scorer.scale)})"
    if isinstance(scorer, average_certified_radius_scorer):
        return f"mean certified radius ({unit_words(scorer.scale)})"
    return name.replace("_", " ")


def rounded_down(radius: float) -> str:
    """Return a radius with two digits after the point, or more where it is small, rounded down."""
    return _rounded(radius, math.floor)


def rounded_up(distance: float) -> str:
    """Return a distance with as many digits as :func:`rounded_down`, rounded up."""
    return _rounded(distance, math.ceil)


def told_apart(values: Sequence[float]) -> list[str]:
    """Return numbers with as few digits as tell them apart, three at least."""
    for digits in range(3, 7):
        # By way of a number, as 1000 is better than 1e+03.
        words = [f"{float(f'{value:.{digits}g}'):g}" for value in values]
        if len(set(words)) == len(set(values)):
            break
    return words


def value_words(values: Sequence[Any]) -> list[str]:
    """Return what values of a parameter are called, numbers with as few digits as tell them apart."""
    words = [str(value) for value in values]
    numbers = [i for i, value in enumerate(values) if _is_number(value)]
    for i, word in zip(numbers, told_apart([values[i] for i in numbers]), strict=True):
        words[i] = word
    return words


def inner_ends(value: float, reach: float) -> tuple[str, str]:
    """Return the ends of the range around a value, with four digits, rounded to lie inside."""
    return _four_digits(value - reach, math.ceil), _four_digits(value + reach, math.floor)


def _four_digits(value: float, whole: Callable[[float], int]) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    return f"{whole(value / unit) * unit:.4g}"


def _rounded(length: float, whole: Callable[[float], int]) -> str:
    if not 0 < length < math.inf:
        return f"{length:g}"
    digits = max(2, 1 - math.floor(math.log10(length)))
    return f"{whole(length * 10**digits) / 10**digits:.{digits}f}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
