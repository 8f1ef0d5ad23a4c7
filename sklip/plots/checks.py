"""What a caller gives, checked."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["checked_distances", "checked_eps"]

# What an attack's distance may lie below a radius by rounding of whoever computed it.
_ROUNDING = 1e-6


def checked_eps(eps: ArrayLike) -> NDArray[np.float64]:
    """Return budgets, finite, at least 0 and ascending."""
    budgets = np.asarray(eps, dtype=np.float64)
    if budgets.ndim != 1 or len(budgets) == 0:
        raise ValueError(f"eps must be a sequence of budgets, got shape {budgets.shape}.")
    if not (np.isfinite(budgets).all() and (budgets >= 0).all()):
        raise ValueError(f"eps must be finite and at least 0, got {budgets.tolist()}.")
    if not (np.diff(budgets) > 0).all():
        raise ValueError(f"eps must be ascending, got {budgets.tolist()}; pass np.unique(eps).")
    return budgets


def checked_distances(distances: ArrayLike, radii: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return distances, none of them below a radius."""
    broken = np.asarray(distances, dtype=np.float64)
    if broken.shape != radii.shape:
        raise ValueError(
            f"distances must hold one number for each radius, got shape {broken.shape} for "
            f"{radii.shape}."
        )
    if np.isnan(broken).any():
        raise ValueError("distances must not be NaN; where an attack found nothing, pass np.inf.")
    inside = np.flatnonzero(broken < radii * (1 - _ROUNDING))
    if len(inside):
        row = int(inside[0])
        raise ValueError(
            "distances must be at least the radii, inside which no other label can be found, got "
            f"{broken[row]:g} for the radius {radii[row]:g} of sample {row}; measure both in the same "
            "units, and from the label that was predicted."
        )
    return broken
