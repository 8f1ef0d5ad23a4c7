"""Images above their counterexamples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sklip.plots.words import rounded_down, rounded_up

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_images"]

# In widths of an image: between images, and between the two rows.
_GAP = 0.2


def draw_images(display: Any, ax: Axes, own_figure: bool, **imshow_kwargs: Any) -> None:
    """Draw pairs of images, side by side on one axes.

    Parameters
    ----------
    display : CertificateDisplay
        With an `image_shape`.
    ax : matplotlib Axes
    own_figure : bool
        Whether its figure may be resized.
    **imshow_kwargs : dict
        Passed to ``imshow``.
    """
    assert display.image_shape is not None
    *_, height, width = display.image_shape
    tall, number = height / width, len(display.labels)
    style = {"cmap": "gray_r", "interpolation": "nearest", **imshow_kwargs}
    # Both in the same shades: a counterexample may leave the range of the images.
    darkest, lightest = float(display.rows.max()), float(display.rows.min())
    style = {"vmin": lightest, "vmax": darkest if darkest > lightest else lightest + 1, **style}
    for place in range(number):
        left = place * (1 + _GAP)
        for row, bottom in ((display.rows[place], tall + 2.2 * _GAP), (display.others[place], 0.0)):
            shown = _as_image(row, display.image_shape, style["vmin"], style["vmax"])
            ax.imshow(shown, extent=(left, left + 1, bottom, bottom + tall), **style)
        said: dict[str, Any] = {"ha": "center", "size": "medium"}
        above = f"{display.labels[place]}\nproven: {rounded_down(display.radii[place])}"
        ax.text(left + 0.5, 2 * tall + 2.3 * _GAP, above, va="bottom", **said)
        below = f"{display.other_labels[place]}\nat {rounded_up(display.distances[place])}"
        if np.isinf(display.distances[place]):
            below = "none found"
        ax.text(left + 0.5, -0.1 * _GAP, below, va="top", **said)
    if own_figure:
        figure: Any = ax.figure
        figure.set_size_inches(1.2 + 1.25 * number, 1.9 + 2.3 * tall)
    ax.set(xlim=(-0.1, number * (1 + _GAP) - _GAP + 0.1), ylim=(-0.55, 2 * tall + 2 * _GAP + 0.65))
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([tall / 2, 1.5 * tall + 2.2 * _GAP], ["nearest\nother\nanswer\nfound", "image"])
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"L2 lengths, in {display.unit}")
    ax.spines[:].set_visible(False)


def _as_image(
    row: NDArray[np.float64], shape: Any, lightest: float, darkest: float
) -> NDArray[np.float64]:
    image = row.reshape(tuple(shape))
    if image.ndim == 2 or image.shape[0] == 1:
        return image.reshape(image.shape[-2:])
    # imshow takes colours from 0 to 1.
    scaled = (image - lightest) / (darkest - lightest)
    return np.clip(scaled, 0, 1).transpose(1, 2, 0)
