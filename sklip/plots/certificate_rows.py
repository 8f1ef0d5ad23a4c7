"""One row of a table: how far each column may move alone, and where another answer was found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sklip.plots.words import inner_ends, rounded_down, rounded_up

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_ranges"]

# Columns that are drawn: those that may move least, in their units.
_MOST_COLUMNS = 15
# Share of the picture that a bar must have on each side for words at its ends.
_ROOM = 0.3


def draw_ranges(display: Any, ax: Axes, own_figure: bool, **barh_kwargs: Any) -> None:
    """Draw a bar for each column, and marks at the row found.

    Parameters
    ----------
    display : CertificateDisplay
        With `ranges`.
    ax : matplotlib Axes
    own_figure : bool
        Whether its figure may be resized.
    **barh_kwargs : dict
        Passed to ``barh``.
    """
    assert display.ranges is not None
    ranges, row, other = display.ranges, display.rows[0], display.others[0]
    scale = np.ones(len(ranges)) if display.scale is None else display.scale
    names = display.column_names or [str(place) for place in range(len(ranges))]
    reach = ranges / scale
    shown = np.sort(np.argsort(reach, kind="stable")[:_MOST_COLUMNS])
    finite = reach[shown][np.isfinite(reach[shown])]
    # Columns that don't count may go anywhere: beyond the picture.
    moves = ((other - row) / scale)[shown]
    edge = 1.25 * max(finite.max(initial=0.0), np.abs(moves).max(initial=0.0)) or 1.0
    style: dict[str, Any] = {"height": 0.45, "color": "tab:green", "alpha": 0.45, **barh_kwargs}
    places = np.arange(len(shown))[::-1]
    widths = np.minimum(reach[shown], 2 * edge)
    proven = ax.barh(places, 2 * widths, left=-widths, **style)
    (at,) = ax.plot(np.zeros(len(shown)), places, "o", color="black", zorder=3)
    marks: list[Any] = [at, proven]
    words = ["this row", "same answer, proven, if this column moves alone"]
    if np.isfinite(display.distances[0]):
        (found,) = ax.plot(moves, places, "x", color="tab:red", zorder=3)
        marks.append(found)
        words.append(f"nearest row found with another answer, {display.other_labels[0]!s}")
    for place, column, width in zip(places, shown, widths, strict=True):
        value, alone = row[column], ranges[column]
        ends = inner_ends(value, alone) if width < edge else ("-inf", "inf")
        label: dict[str, Any] = {"ha": "center", "va": "bottom", "size": "small"}
        if width < _ROOM * edge:
            ax.text(0, place + 0.24, f"{value:.4g} ({ends[0]} to {ends[1]})", **label)
            continue
        ax.text(0, place + 0.24, f"{value:.4g}", **label)
        for end, side in zip(ends, (-1, 1), strict=True):
            ax.text(side * min(width, edge), place + 0.24, end, color="0.3", **label)
    ax.set_yticks(places, [names[column] for column in shown])
    ax.set(
        xlim=(-1.1 * edge, 1.1 * edge),
        ylim=(-0.6, len(shown) - 0.2),
        xlabel=f"change from this row, in {display.unit}",
    )
    some = "" if len(shown) == len(ranges) else f" ({len(shown)} of {len(ranges)} columns)"
    within = f"{rounded_down(display.radii[0])} {display.unit}"
    beyond = (
        f",\nanother answer found at {rounded_up(display.distances[0])}"
        if np.isfinite(display.distances[0])
        else ""
    )
    ax.set_title(
        f"answer {display.labels[0]!s}: proven within {within}{some}{beyond}",
        size="medium",
    )
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    if own_figure:
        figure: Any = ax.figure
        figure.set_size_inches(8, 2.2 + 0.5 * len(shown))
        figure.legend(marks, words, loc="outside lower center", frameon=False)
    else:
        # Below the words of the axis, whatever the number of bars.
        below = (0.45, -1.1 / len(shown))
        ax.legend(marks, words, loc="upper center", bbox_to_anchor=below, frameon=False)
