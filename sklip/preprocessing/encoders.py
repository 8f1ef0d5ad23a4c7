r"""Which raw columns encoders of categories read, and the values that they know of each.

Note [Known values]
-------------------
A value of a column is known if an encoder that reads it has it among its ``categories_``, or if a
SimpleImputer before the encoder replaces it by one of those. Several encoders may read a column: what
one of them knows is known, unless another refuses it (``handle_unknown="error"``), since ``predict``
takes no such row. Values that no encoder tells apart, as the infrequent ones of a OneHotEncoder, need
one evaluation for all: whatever comes after sees the same.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, TargetEncoder

from sklip.certified.gains import Gains
from sklip.certified.integrity import refuse_altered
from sklip.preprocessing.steps import branches, described_step, flat_steps, weighting

__all__ = ["Reading", "as_key", "category_readings", "is_nan", "known_values", "same_value"]

_ENCODERS = (OneHotEncoder, OrdinalEncoder, TargetEncoder)
# Stands for NaN, which does not equal itself.
_NAN_KEY: Hashable = object()


def as_key(value: Any) -> Hashable:
    """Return what tells a value from others: itself, but every NaN is the same."""
    key: Hashable = _NAN_KEY if is_nan(value) else value
    return key


def is_nan(value: Any) -> bool:
    """Whether a value is NaN, of whatever precision."""
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def same_value(one: Any, other: Any) -> bool:
    """Whether two values have the same key."""
    # pandas' NA has a hash, but no truth of its being equal.
    return as_key(one) in {as_key(other)}


@dataclass(frozen=True)
class _Source:
    """What a value is made of: a raw column, in which imputers replaced missing values one by one.

    If `tells`, the value is only whether the last of them found one missing.
    """

    column: int
    fills: tuple[tuple[Any, Any], ...] = ()
    tells: bool = False

    def seen(self, value: Any) -> Any:
        """Return what comes of a raw value."""
        found = False
        for missing, fill in self.fills:
            found = same_value(value, missing)
            value = fill if found else value
        return found if self.tells else value


@dataclass(frozen=True)
class Reading:
    """That an encoder, or something else, reads a raw column.

    Parameters
    ----------
    source : _Source
        The raw column.
    reader : fitted transformer, or None
        The first that does more than copy and fill in; None where there is none.
    position : int
        Of the column among those that `reader` sees.
    finish : callable
        From how far a change of the encoder's outputs comes in them to how far it comes in the end.
    """

    source: _Source
    reader: Any
    position: int
    finish: Callable[[Gains], Gains]

    @property
    def column(self) -> int:
        """Position of the raw column."""
        return self.source.column

    @property
    def by_encoder(self) -> bool:
        """Whether the column is read as a category."""
        return type(self.reader) in _ENCODERS

    @property
    def refuses_unknown(self) -> bool:
        """Whether the encoder takes no rows with other values."""
        return getattr(self.reader, "handle_unknown", None) == "error"

    def known(self) -> dict[Hashable, Any]:
        """Return the raw values that the encoder knows, by their keys."""
        categories = self.reader.categories_[self.position].tolist()
        keys = set(map(as_key, categories))
        raw = [*categories, *(missing for missing, _ in self.source.fills)]
        return {as_key(value): value for value in raw if as_key(self.source.seen(value)) in keys}

    def told_apart(self, values: Sequence[Any]) -> list[Hashable]:
        """Return keys of known values, equal only where all of the encoder's outputs are."""
        categories = set(map(as_key, self.reader.categories_[self.position].tolist()))
        infrequent = getattr(self.reader, "infrequent_categories_", None)
        rare = None if infrequent is None else infrequent[self.position]
        merged = set() if rare is None else set(map(as_key, rare.tolist()))

        def told(value: Any) -> Hashable:
            seen = as_key(self.source.seen(value))
            if seen not in categories:
                return ("unknown",)
            return ("infrequent",) if seen in merged else ("category", seen)

        return [told(value) for value in values]

    def encoded(self, values: Sequence[Any]) -> NDArray[np.float64]:
        """Return what the encoder makes of raw values, its other columns being the same."""
        others = [categories[0] for categories in self.reader.categories_]
        rows = np.empty((len(values), len(others)), dtype=object)
        rows[:] = others
        rows[:, self.position] = [self.source.seen(value) for value in values]
        # A copy that was fitted without names takes rows without names.
        nameless = copy.deepcopy(self.reader).set_output(transform="default")
        vars(nameless).pop("feature_names_in_", None)
        outputs = nameless.transform(rows)
        return np.asarray(outputs.toarray() if hasattr(outputs, "toarray") else outputs, np.float64)


def category_readings(ways: Iterable[Sequence[Any]], n_columns: int) -> dict[int, list[Reading]]:
    """Return who reads each raw column, by position.

    Categories are found where the first step is an encoder, a ColumnTransformer or a FeatureUnion.

    Parameters
    ----------
    ways : iterable of sequences of fitted transformers
        Ways from the columns to networks; none of the steps a Pipeline.
    n_columns : int
        Number of columns that all of them start from.
    """
    found: dict[int, list[Reading]] = {}
    sources = [_Source(column) for column in range(n_columns)]
    for steps in ways:
        first = steps[0] if steps else None
        apart = type(first) in (ColumnTransformer, FeatureUnion, *_ENCODERS)
        for reading in _readings(list(steps) if apart else [first], sources):
            found.setdefault(reading.column, []).append(reading)
    return found


def known_values(readings: Sequence[Reading]) -> list[Any]:
    """Return the known values of a column that encoders read: see Note [Known values]."""
    known: dict[Hashable, Any] = {}
    of_values = [reading for reading in readings if not reading.source.tells]
    for reading in of_values:
        known = {**reading.known(), **known}
    for reading in of_values:
        if reading.refuses_unknown:
            takes = reading.known()
            known = {key: value for key, value in known.items() if key in takes}
    return list(known.values())


def _readings(
    steps: list[Any],
    sources: Sequence[_Source],
    finish: Callable[[Gains], Gains] = lambda gains: gains,
) -> Iterator[Reading]:
    """Yield who reads what."""
    while steps and type(steps[0]) is SimpleImputer:
        sources, steps = _imputed(steps[0], sources), steps[1:]
    step = steps[0] if steps else None

    def after(gains: Gains) -> Gains:
        for later in steps[1:]:
            _, gains = described_step(later, gains)
        return finish(gains)

    if type(step) in (ColumnTransformer, FeatureUnion):
        for name, branch, reads, n_outputs in branches(step, len(sources)):
            placed = _placed(step, name, n_outputs)
            yield from _readings(
                list(flat_steps(branch)),
                [sources[position] for position in reads],
                functools.partial(_one_after_the_other, placed, after),
            )
        return
    if type(step) in _ENCODERS:
        refuse_altered(step)  # its categories have to say what it does
    for position, source in enumerate(sources):
        yield Reading(source, step, position, after)


def _one_after_the_other(
    first: Callable[[Gains], Gains], second: Callable[[Gains], Gains], gains: Gains
) -> Gains:
    return second(first(gains))


def _imputed(imputer: SimpleImputer, sources: Sequence[_Source]) -> list[_Source]:
    """Return what the values are after an imputer, as in the rule of SimpleImputer."""
    fills = [(imputer.missing_values, fill) for fill in imputer.statistics_]
    after = [
        # Whether something was missing is never missing itself.
        source if source.tells else replace(source, fills=(*source.fills, fill))
        for source, fill in zip(sources, fills, strict=True)
    ]
    told = imputer.indicator_.features_ if imputer.add_indicator else []
    kept = imputer.keep_empty_features
    return [
        *(source for source, (_, fill) in zip(after, fills, strict=True) if kept or not is_nan(fill)),
        *(replace(after[position], tells=True) for position in told),
    ]


def _placed(collection: Any, name: str, n_outputs: int | None) -> Callable[[Gains], Gains]:
    """Return what puts changes of a part's outputs in their place among those of all parts."""

    def placed(gains: Gains) -> Gains:
        weight = (collection.transformer_weights or {}).get(name)
        if weight is not None:
            gains = gains.through(weighting(float(weight)))
        if n_outputs is None:
            # Of a FeatureUnion: where a part's outputs lie is not known.
            return gains.times(1.0)
        n_columns, outputs = len(gains.errors), collection.output_indices_[name]
        width = max(place.stop for place in collection.output_indices_.values())
        before, after = (
            Gains.held(n_columns, count) for count in (outputs.start, width - outputs.stop)
        )
        return Gains.side_by_side([before, gains, after], n_columns)

    return placed
