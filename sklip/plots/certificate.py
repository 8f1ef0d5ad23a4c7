r"""Single rows with what is proven of them, beside the nearest row with another label."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklip.certification import certified_ranges, predict_with_radii
from sklip.certification.chains import start_of
from sklip.certification.wrappers import decider_of
from sklip.explanation import counterfactual
from sklip.inputs import as_rows
from sklip.plots.axes import axes_for, refuse_regressor
from sklip.plots.certificate_images import draw_images
from sklip.plots.certificate_rows import draw_ranges
from sklip.plots.words import unit_words
from sklip.preprocessing.changes import Changes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CertificateDisplay"]

# Images side by side; more would be too small to see.
_MOST_IMAGES = 12


class CertificateDisplay:
    """Rows with label and certified radius, beside the nearest rows found that have another label.

    Images stand above their counterexamples. Of a row of a table it is drawn how far each column may
    move alone, by certified ranges, and where the counterexample lies.

    Parameters
    ----------
    rows : ndarray of shape (n_samples, n_values)
        Flat images, channels first; or one row of a table, the columns that may change.
    others : ndarray of shape (n_samples, n_values)
        The nearest rows found with another label.
    labels, other_labels : ndarray of shape (n_samples,)
        What is predicted for both.
    radii, distances : ndarray of shape (n_samples,)
        Certified radius, and distance of the row found; infinite where none was.
    unit : str, default="units of X"
        What these are measured in.
    image_shape : tuple of int, default=None
        Height and width, or channels, height and width. None: a row of a table.
    ranges : ndarray of shape (n_values,), default=None
        Of a table: how far each column may move alone, in its own unit.
    scale : ndarray of shape (n_values,), default=None
        Of a table: the unit of each column, 1 if None.
    column_names : list of str, default=None
        Of a table: what the columns are called.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklip import CertificateDisplay, LipschitzClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = LipschitzClassifier(max_epochs=10, random_state=0).fit(X / 16, y)
    >>> display = CertificateDisplay.from_estimator(clf, X[:4] / 16, image_shape=(8, 8))
    >>> bool((display.radii <= display.distances).all())
    True
    """

    def __init__(
        self,
        *,
        rows: NDArray[np.float64],
        others: NDArray[np.float64],
        labels: NDArray[Any],
        other_labels: NDArray[Any],
        radii: NDArray[np.float64],
        distances: NDArray[np.float64],
        unit: str = "units of X",
        image_shape: Sequence[int] | None = None,
        ranges: NDArray[np.float64] | None = None,
        scale: NDArray[np.float64] | None = None,
        column_names: Sequence[str] | None = None,
    ) -> None:
        self.rows = rows
        self.others = others
        self.labels = labels
        self.other_labels = other_labels
        self.radii = radii
        self.distances = distances
        self.unit = unit
        self.image_shape = image_shape
        self.ranges = ranges
        self.scale = scale
        self.column_names = column_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        *,
        image_shape: Sequence[int] | None = None,
        fixed_columns: Iterable[str | int] = (),
        scale: Any = None,
        ax: Axes | None = None,
        **plot_kwargs: Any,
    ) -> Self:
        """Draw some images, or one row of a table.

        Parameters
        ----------
        estimator : fitted estimator
            Anything that :func:`sklip.certificates` takes.
        X : array-like
            Up to 12 images, or one row of a table.
        image_shape : tuple of int, default=None
            For flat rows that are images: height and width, or channels (1 or 3), height and width.
            Arrays of images need none, nor classifiers with an `input_shape`.
        fixed_columns, scale
            What may change, and in which units: as for :func:`sklip.certificates`. ``scale="std"``
            makes the ranges of columns in units of their own comparable.
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None.
        **plot_kwargs : dict
            Passed to matplotlib's ``imshow`` (images) or ``barh`` (tables).

        Returns
        -------
        display : CertificateDisplay

        Raises
        ------
        ValueError
            For a regressor, too many rows, and an `image_shape` of other sizes.
        """
        refuse_regressor(estimator)
        fixed = tuple(fixed_columns) if not isinstance(fixed_columns, str | bytes) else fixed_columns
        changes = {"fixed_columns": fixed, "scale": scale}
        labels, radii = predict_with_radii(estimator, X, **changes)
        shape = _image_shape(estimator, X, image_shape)
        most = 1 if shape is None else _MOST_IMAGES
        if len(labels) > most:
            what = "one row of a table, X[:1] say" if shape is None else f"at most {most} images"
            raise ValueError(
                f"X must hold {what}, got {len(labels)} rows."
                + (" Pass image_shape if they are images." if shape is None else "")
            )
        found = counterfactual(estimator, X, **changes)
        common: dict[str, Any] = {
            "labels": labels,
            "other_labels": found.labels,
            "radii": radii,
            "distances": found.distances,
            "unit": unit_words(scale),
        }
        if shape is not None:
            display = cls(
                rows=_flat(X, shape), others=_flat(found.X, shape), image_shape=shape, **common
            )
            return display.plot(ax=ax, **plot_kwargs)
        if len(common["labels"]) == 0 or np.ndim(X) != 2:
            raise ValueError(f"X must be one row of a table, got shape {np.shape(X)}.")
        columns = _columns(estimator, X, fixed, scale)
        ranges = np.asarray(certified_ranges(estimator, X, fixed_columns=fixed), dtype=np.float64)[0]
        places = [place for place, _ in columns.values()]
        display = cls(
            rows=_numbers(X, places),
            others=_numbers(found.X, places),
            ranges=ranges[places],
            scale=np.array([unit for _, unit in columns.values()]),
            column_names=list(columns),
            **common,
        )
        return display.plot(ax=ax, **plot_kwargs)

    def plot(self, ax: Axes | None = None, **plot_kwargs: Any) -> Self:
        """Draw the rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None.
        **plot_kwargs : dict
            Passed to matplotlib's ``imshow`` (images) or ``barh`` (tables).

        Returns
        -------
        display : CertificateDisplay
        """
        self.ax_ = axes_for(ax)
        self.figure_ = self.ax_.figure
        draw = draw_ranges if self.image_shape is None else draw_images
        draw(self, self.ax_, own_figure=ax is None, **plot_kwargs)
        return self


def _image_shape(estimator: Any, X: Any, image_shape: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return in which shape rows are images, channels first; None if they are not."""
    n_values = math.prod(np.shape(X)[1:])
    if image_shape is None:
        read = tuple(decider_of(estimator).chains[0].classifier.input_shape_)
        if len(read) != 3 or math.prod(read) != n_values:
            return None
        shape: tuple[int, ...] = read
    else:
        shape = tuple(int(side) for side in image_shape)
        if len(shape) not in (2, 3) or math.prod(shape) != n_values:
            raise ValueError(
                f"image_shape must be (height, width) or (channels, height, width) of {n_values}, "
                f"got {image_shape!r}."
            )
    if len(shape) == 3 and shape[0] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels to be drawn, got {shape[0]}.")
    return shape


def _flat(X: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return images as flat rows, channels first."""
    rows = as_rows(X, shape if len(shape) == 3 else (1, *shape), CertificateDisplay.__name__)
    return np.asarray(rows, dtype=np.float64)


def _columns(
    estimator: Any, X: Any, fixed: Iterable[str | int], scale: Any
) -> dict[str, tuple[int, float]]:
    """Return the columns that may change: where they are in X, and their units."""
    chains = decider_of(estimator).chains
    units = start_of(chains, X, Changes(fixed, scale)).matrix
    at_fit = chains[0].names
    given = list(X.columns) if hasattr(X, "columns") else list(range(len(units)))
    names = given if at_fit is None else list(at_fit)
    # An array has the columns in the order of fit; a DataFrame goes by names.
    by_name = {name: place for place, name in enumerate(given)} if hasattr(X, "columns") else {}
    return {
        str(name): (by_name.get(name, position), unit)
        for position, (name, unit) in enumerate(zip(names, units.tolist(), strict=True))
        if unit > 0
    }


def _numbers(X: Any, places: Sequence[int]) -> NDArray[np.float64]:
    """Return some columns of one row."""
    row = (
        X.iloc[0, list(places)] if hasattr(X, "iloc") else np.asarray(X, dtype=object)[0, list(places)]
    )
    return np.asarray(row, dtype=np.float64)[None]
