r"""How far single columns may move alone before the predicted class can change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklip.certification.chains import (
    Chain,
    View,
    common_columns,
    n_rows_of,
    pieces_of,
    refuse_images,
    refuse_other_labels,
    start_of,
    view_of,
)
from sklip.certification.deciders import See
from sklip.certification.wrappers import decider_of
from sklip.certified import Gains
from sklip.certified.arithmetic import FLOOR
from sklip.preprocessing.changes import Changes
from sklip.preprocessing.steps import described_steps
from sklip.rows import as_numpy, joined

__all__ = ["certified_ranges"]


def certified_ranges(estimator: Any, X: ArrayLike, *, fixed_columns: Iterable[str | int] = ()) -> Any:
    r"""How far each column of a row may move alone without a change of class.

    For every x' that differs from the row x in column c only, with :math:`|x'_c - x_c|` below the
    range, ``estimator.predict`` gives the class that it gives for x. Ranges are in the columns' own
    units, and at least the joint radius of :func:`certificates`, which is as small as the column that
    counts most needs it. Nothing is claimed of two columns that move together.

    Parameters
    ----------
    estimator : fitted estimator
        As for :func:`certificates`.
    X : array-like, sparse matrix or DataFrame of shape (n_samples, n_columns)
        What `estimator` takes; flat rows.
    fixed_columns : iterable of str or int, default=()
        Columns that can't change, as for :func:`certificates`. Steps that read no others may be
        anything.

    Returns
    -------
    ranges : ndarray of shape (n_samples, n_columns), or DataFrame with the index and columns of X
        A DataFrame where X is one. 0 where nothing can be said; infinite for columns that don't reach
        the network; NaN for fixed columns.

    Raises
    ------
    TypeError
        For an estimator without certificates, a step without a proven bound, and members of a vote
        that were fitted on other columns.
    ValueError
        For fixed columns that there are none of, and for images.

    See Also
    --------
    certificates : A radius for all columns together.

    Notes
    -----
    Each difference of logits moves by at most :math:`K_{yj,c}` for each unit of column c, from the
    column c of all linear maps up to the first layer that is not linear, multiplied in one matrix, and
    the constants behind. For a linear classifier behind linear steps the ranges are the exact
    distances.

    An orthogonal first layer that is as wide as its input or wider weighs all columns alike: behind a
    StandardScaler, their ranges are then the same number of standard deviations. A narrower one, and a
    projection, or weights of columns (`column_weights_`), tells columns apart.

    Of a vote and behind a threshold, ranges are found as radii are, from these constants of each
    network.

    The column that limits the joint radius of a row in units of `scale` most is the one of the smallest
    range in these units: ``(ranges / scale).idxmin(axis=1)`` for DataFrames.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklip import LipschitzClassifier, certificates, certified_ranges
    >>> X, y = load_iris(return_X_y=True)
    >>> pipeline = make_pipeline(StandardScaler(), LipschitzClassifier(max_epochs=5, random_state=0))
    >>> ranges = certified_ranges(pipeline.fit(X, y), X)
    >>> ranges.shape
    (150, 4)
    >>> bool((ranges.min(axis=1) >= certificates(pipeline, X)).all())
    True
    """
    decider, X = decider_of(estimator), as_numpy(X)
    refuse_images(X, "certified_ranges")
    chains = decider.chains
    names, _ = common_columns(chains, X, told_apart=True)
    changes = Changes(fixed_columns)
    refuse_other_labels(X, names, changes)
    start = start_of(chains, X, changes)
    gains = np.max([described_steps(chain.steps, start)[1].of_columns for chain in chains], axis=0)
    reaches = gains > 0
    # In units in which all columns count alike, what rounding costs is of the same size for each.
    units = np.where(reaches, np.maximum(1.0 / np.where(reaches, gains, 1.0), FLOOR), 1.0)
    fixed = start.matrix == 0
    alike = Gains.at_start(len(fixed), fixed, units)

    def ranges_of(rows: Any) -> NDArray[np.float64]:
        # A column alone may go as far as all of them together, measured as they are.
        joint = decider.claims(lambda chain: view_of(chain, rows, start)).radii
        views = {id(chain): view_of(chain, rows, alike) for chain in chains}
        margins = {key: view.network.margins_behind(view.gains) for key, view in views.items()}

        def seen_if_alone(column: int) -> See:
            def see(chain: Chain) -> View:
                return replace(views[id(chain)], bounds=margins[id(chain)].of_column(column))

            return see

        ranges = np.full((len(joint), len(units)), np.inf)
        for column in np.flatnonzero(reaches).tolist():
            claims = decider.claims(seen_if_alone(column))
            ranges[:, column] = np.maximum(_in_units(claims.radii, units[column]), joint)
        ranges[:, fixed] = np.nan
        return ranges

    pieces = ((ranges_of(rows),) for rows in pieces_of(chains, X))
    (ranges,) = joined(n_rows_of(X), pieces)
    return _like(X, ranges, names)


def _in_units(radii: NDArray[np.float64], unit: float) -> NDArray[np.float64]:
    """Radii times a unit, rounded down."""
    with np.errstate(over="ignore"):
        products = np.nextafter(np.minimum(radii * unit, np.finfo(np.float64).max), 0.0)
    return np.where(np.isinf(radii), np.inf, products)


def _like(X: Any, ranges: NDArray[np.float64], names: NDArray[Any] | None) -> Any:
    """Return the ranges in the columns of X, of which some may be none that were seen at fit."""
    if not (hasattr(X, "columns") and hasattr(X, "index")):
        return ranges
    import pandas as pd

    if names is None:
        return pd.DataFrame(ranges, index=X.index, columns=X.columns)
    known = {name: position for position, name in enumerate(names)}
    unread = np.full(len(ranges), np.inf)
    columns = [ranges[:, known[name]] if name in known else unread for name in X.columns]
    return pd.DataFrame(np.column_stack(columns), index=X.index, columns=X.columns)
