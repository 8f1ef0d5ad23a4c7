"""Where to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn.base import is_regressor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["axes_for", "refuse_regressor"]


def axes_for(ax: Axes | None) -> Axes:
    """Return `ax`, or the axes of a new figure.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Displays need matplotlib; install it with the extra: scikit-lipschitz[plot]."
        ) from error
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def refuse_regressor(estimator: Any) -> None:
    """Say in scikit-learn's words that a regressor has no certificates of classes."""
    if is_regressor(estimator):
        raise ValueError(
            f"Expected 'estimator' to be a classifier. Got {type(estimator).__name__} instead."
        )
