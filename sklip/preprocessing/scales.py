r"""Units in which a change of the raw columns is measured: numbers, or those of the training data.

Note [Standard deviations]
--------------------------
No fitted estimator keeps its training data, but some keep standard deviations of their input: a
StandardScaler, and the classifier. As long as a value is a raw column times a known factor f, the
column's standard deviation is that of the value over |f|, unless what is held fixed, and varied in
training, has been mixed in. The first along the way is taken. Where a SimpleImputer comes before it,
the standard deviation is that of the filled column, which is smaller.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion
from sklearn.preprocessing import StandardScaler

from sklip.certified.gains import Gains
from sklip.preprocessing.steps import branches, described_step, flat_steps

__all__ = ["column_names", "given_scale", "standard_deviations"]

_TINY = float(np.finfo(np.float64).tiny)

_Known = tuple[Gains, NDArray[np.float64], NDArray[np.bool_]]


def column_names(
    columns: NDArray[np.bool_] | NDArray[np.intp], names: NDArray[Any] | None
) -> list[Any]:
    """Return what a user calls some columns: their names, or positions where they have none."""
    positions = np.flatnonzero(columns) if columns.dtype == bool else columns
    return positions.tolist() if names is None else list(names[positions])


def given_scale(
    scale: Any, names: NDArray[Any] | None, fixed: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return one number for each column.

    Parameters
    ----------
    scale : array-like of shape (n_columns,), Series, or dict
        A Series or dict goes by names of columns seen at ``fit``, or by positions.
    names : ndarray of shape (n_columns,), or None
        Names of the columns, where they have any.
    fixed : ndarray of shape (n_columns,)
        Which columns can't change: theirs are not read, and a dict may leave them out.

    Returns
    -------
    scale : ndarray of shape (n_columns,)
        Positive; 1 for fixed columns.

    Raises
    ------
    ValueError
        For a number that is not positive and finite, columns that are missing or unknown.
    """
    n_columns = len(fixed)
    if isinstance(scale, str | bytes):
        raise ValueError(f"scale must be 'std' or a positive number for each column, got {scale!r}.")
    if isinstance(scale, Mapping) or hasattr(scale, "items"):
        numbers = _by_name(scale, names, fixed)
    else:
        numbers = list(scale) if np.ndim(scale) == 1 else []
        if len(numbers) != n_columns:
            raise ValueError(
                f"scale must hold one positive number for each of {n_columns} columns, got shape "
                f"{np.shape(scale)}; pass an array of that length, or a dict by name."
            )
    checked = np.ones(n_columns)
    for position in np.flatnonzero(~fixed):
        try:
            checked[position] = number = float(numbers[position])
        except (TypeError, ValueError, OverflowError):
            number = np.nan
        if not _TINY <= number < np.inf:
            name = column_names(np.array([position]), names)[0]
            raise ValueError(
                f"scale must be positive and finite, got {numbers[position]!r} for column {name!r}; "
                "pass another number, or name the column in fixed_columns if it can't change."
            )
    return checked


def _by_name(scale: Any, names: NDArray[Any] | None, fixed: NDArray[np.bool_]) -> list[Any]:
    known = {} if names is None else {name: position for position, name in enumerate(names)}
    numbers: list[Any] = [None] * len(fixed)
    for column, number in scale.items():
        position = known.get(column) if isinstance(column, str) else column
        if isinstance(position, bool) or not isinstance(position, int | np.integer):
            position = -1
        if not 0 <= position < len(fixed):
            allowed = f"positions below {len(fixed)}" + (
                f", or names of {list(known)}" if known else ""
            )
            raise ValueError(f"scale must be for columns seen at fit, {allowed}, got {column!r}.")
        if numbers[position] is not None:
            raise ValueError(f"scale must be given once for each column, got {column!r} twice.")
        numbers[position] = number
    missing = np.array([number is None for number in numbers]) & ~fixed
    if missing.any():
        raise ValueError(
            "scale must be given for every column that can change, but lacks "
            f"{column_names(missing, names)}; add them, or name them in fixed_columns."
        )
    return numbers


def standard_deviations(
    ways: Sequence[tuple[Sequence[Any], NDArray[np.float64] | None]],
    names: NDArray[Any] | None,
    fixed: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return the standard deviation of each column in training: see Note [Standard deviations].

    Parameters
    ----------
    ways : sequence of (steps, of_network)
        Ways from the columns to networks: fitted transformers, none of them a Pipeline, and the
        standard deviations of what they made of the columns in training, or None. The first way on
        which those of a column are known gives them.
    names : ndarray of shape (n_columns,), or None
        Names of the columns, where they have any.
    fixed : ndarray of shape (n_columns,)
        Which columns can't change: their standard deviations are not needed.

    Returns
    -------
    deviations : ndarray of shape (n_columns,)
        1 for fixed columns.

    Raises
    ------
    ValueError
        For columns of which nothing is known, and those that are constant in training.
    """
    start = Gains.at_start(len(fixed), fixed)
    deviations = np.full(len(fixed), np.nan)
    apart = np.zeros(len(fixed), dtype=bool)
    known = itertools.chain.from_iterable(_known_values(*way, start, apart) for way in ways)
    for gains, values, mixed in known:
        for position, column, factor in _copies(gains):
            if np.isnan(deviations[column]) and not mixed[column]:
                deviations[column] = values[position] / abs(factor)
    deviations[fixed] = 1.0
    remedy = "pass numbers, such as scale=X_train.std(), or name them in fixed_columns"
    unknown = ~np.isfinite(deviations)
    if unknown.any():
        raise ValueError(
            "scale='std' needs columns that reach the network, or a StandardScaler, before any step "
            f"mixes or clips them, which is not so for {column_names(unknown, names)}; {remedy}."
        )
    constant = deviations < _TINY
    if constant.any():
        raise ValueError(
            "scale='std' needs columns that vary in training, but constant there were "
            f"{column_names(constant, names)}; {remedy}."
        )
    return deviations


def _copies(gains: Gains) -> Iterator[tuple[int, int, float]]:
    """Yield position, column and factor of values that are a column times a factor."""
    if gains.moves is None or not gains.linear:
        return
    matrix, sources, positions = gains.matrix, gains.sources, np.flatnonzero(gains.moves)
    if sources is None:
        positions = np.flatnonzero(np.count_nonzero(matrix, axis=1) == 1)
        sources = (matrix != 0).argmax(axis=1)
        matrix = matrix[np.arange(len(matrix)), sources]
    for position in positions.tolist():
        yield position, int(sources[position]), float(matrix[position])


def _known_values(
    steps: Sequence[Any],
    of_network: NDArray[np.float64] | None,
    gains: Gains,
    mixed: NDArray[np.bool_],
) -> Iterator[_Known]:
    """Yield values whose standard deviations are known, by how they come from the columns.

    With them, which columns have been mixed with values that are held: a row of the matrix says nothing
    of these, which had a spread in training.
    """
    for step in steps:
        yield from _at_scalers(step, gains, mixed)
        mixed = mixed | _mixed_with_held(step, gains)
        _, gains = described_step(step, gains)
    if of_network is not None:
        yield gains, of_network, mixed


def _mixed_with_held(step: Any, gains: Gains) -> NDArray[np.bool_]:
    """Return which columns a step mixes with values that are held."""
    mixed = np.zeros(len(gains.errors), dtype=bool)
    if gains.moves is None or gains.moves.all():
        return mixed
    if type(step) not in (ColumnTransformer, FeatureUnion):
        bound, _ = described_step(step, gains)
        return mixed if bound.matrix is None else np.asarray(gains.of_columns > 0)
    for _, branch, reads, _ in branches(step, len(gains.moves)):
        inside = gains.of_values(reads)
        for inner in flat_steps(branch) if inside.bound > 0 else ():
            mixed |= _mixed_with_held(inner, inside)
            _, inside = described_step(inner, inside)
    return mixed


def _at_scalers(step: Any, gains: Gains, mixed: NDArray[np.bool_]) -> Iterator[_Known]:
    """Yield the inputs of StandardScalers, also inside of other steps."""
    if type(step) is StandardScaler and step.scale_ is not None:
        roots = np.sqrt(step.var_)
        # What is constant up to rounding has a scale of 1.
        yield gains, np.where(step.scale_ == roots, roots, 0.0), mixed
    if type(step) not in (ColumnTransformer, FeatureUnion) or gains.moves is None:
        return
    for _, branch, reads, _ in branches(step, len(gains.moves)):
        inside = gains.of_values(reads)
        if inside.bound > 0:
            yield from _known_values(list(flat_steps(branch)), None, inside, mixed)
