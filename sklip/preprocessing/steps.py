"""What is proven of the steps of a Pipeline: nested, side by side, weighted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted

from sklip.certified.arithmetic import FLOOR, Affine, Arithmetic
from sklip.certified.gains import Gains
from sklip.certified.integrity import refuse_altered
from sklip.certified.maps import MapBound, composed, exact, lipschitz_constant
from sklip.preprocessing.rules import TRANSFORMERS, described_transformer

__all__ = [
    "branches",
    "check_width",
    "described_step",
    "described_steps",
    "flat_steps",
    "may_narrow",
    "nested_steps",
    "transformer_bound",
    "weighted_reads",
    "weighting",
]


def transformer_bound(transformer: Any) -> float:
    r"""Proven L2 Lipschitz constant of a fitted scikit-learn transformer.

    Parameters
    ----------
    transformer : fitted transformer, "passthrough" or None
        StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler, QuantileTransformer (of dense rows),
        PCA, TruncatedSVD, SimpleImputer, a feature selector, a type with a registered rule; a Pipeline,
        ColumnTransformer or FeatureUnion of such.

    Returns
    -------
    bound : float

    Raises
    ------
    TypeError
        For a transformer without a rule, which
        :func:`sklip.preprocessing.register_transformer` adds.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.preprocessing import MinMaxScaler
    >>> from sklip.preprocessing import transformer_bound
    >>> round(transformer_bound(MinMaxScaler().fit(np.array([[0.0], [4.0]]))), 9)
    0.25
    """
    steps = list(flat_steps(transformer))
    if not steps:
        return 1.0
    for step in steps:
        check_is_fitted(step)
    gains = Gains.at_start(getattr(steps[0], "n_features_in_", 1))
    if not hasattr(steps[0], "n_features_in_"):
        # Of unknown columns, the length of a change.
        gains = gains.times(1.0)
    _, gains = described_steps(steps, gains)
    return lipschitz_constant(gains.bound, transformer)


def flat_steps(transformer: Any) -> Iterator[Any]:
    """Yield the steps of nested Pipelines in order, without those that pass their input on.

    Parameters
    ----------
    transformer : transformer, "passthrough" or None

    Yields
    ------
    step : transformer that is no Pipeline
    """
    if type(transformer) is FrozenEstimator:
        refuse_altered(transformer)
        yield from flat_steps(transformer.estimator)
    elif type(transformer) is Pipeline:
        refuse_altered(transformer)
        for _, step in transformer.steps:
            yield from flat_steps(step)
    elif transformer is not None and not _is_named(transformer, "passthrough"):
        yield transformer


def nested_steps(transformer: Any) -> Iterator[Any]:
    """Yield the steps of nested Pipelines, and those of the fitted collections among them.

    Parameters
    ----------
    transformer : transformer, "passthrough" or None

    Yields
    ------
    step : transformer that is no Pipeline
    """
    for step in flat_steps(transformer):
        yield step
        if type(step) in (ColumnTransformer, FeatureUnion):
            for _, part in _kept_parts(step):
                yield from nested_steps(part)


def may_narrow(transformer: Any) -> bool:
    """Whether steps inside of a step may compute in a lower precision than it is given and gives.

    sklip's own rules are of transformers that keep that of floating-point numbers.
    """
    if type(transformer) not in (ColumnTransformer, FeatureUnion):
        return False
    for _, part in _kept_parts(transformer):
        chain = list(flat_steps(part))
        before = [inner for step in chain[:-1] for inner in nested_steps(step)]
        if any(map(TRANSFORMERS.is_foreign, before)) or any(map(may_narrow, chain)):
            return True
    return False


def _is_named(transformer: Any, word: str) -> bool:
    """Whether one of scikit-learn's words stands in the place of a transformer."""
    return isinstance(transformer, str) and transformer == word


def described_steps(steps: Sequence[Any], gains: Gains) -> tuple[list[tuple[MapBound, Gains]], Gains]:
    """Say what is proven of steps one after the other.

    Parameters
    ----------
    steps : sequence of fitted transformers
        None of them a Pipeline.
    gains : Gains
        How far a change has come before the first.

    Returns
    -------
    known : list of (MapBound, Gains)
        Of each step, as from :func:`described_step`, and how far a change has come before it.
    gains : Gains
        How far it has come behind the last.
    """
    known = []
    for transformer in steps:
        bound, after = described_step(transformer, gains)
        known.append((bound, gains))
        gains = after
    return known, gains


def described_step(transformer: Any, gains: Gains) -> tuple[MapBound, Gains]:
    """Say what is proven of one step, and how far a change has come after it.

    Parameters
    ----------
    transformer : fitted transformer that is no Pipeline
    gains : Gains
        How far a change has come before it.

    Returns
    -------
    bound : MapBound
        For errors, which may be of any value: nothing is held fixed in it.
    gains : Gains

    Raises
    ------
    TypeError
        For a transformer without a rule.
    """
    if type(transformer) not in (ColumnTransformer, FeatureUnion):
        bound = described_transformer(transformer)
        return bound, gains.through(bound)
    check_is_fitted(transformer)
    refuse_altered(transformer)
    # Of values that are not known, the parts see columns of their own again.
    start = Gains.at_start(_n_inputs(transformer)) if gains.moves is None else gains
    assert start.moves is not None
    n_values, n_columns = len(start.moves), len(start.errors)
    weights = transformer.transformer_weights or {}
    parts = [
        _part(branch, reads, weights.get(name), n_outputs, start)
        for name, branch, reads, n_outputs in branches(transformer, n_values)
    ]
    after = Gains.side_by_side([part_gains for _, part_gains in parts], n_columns)
    if gains.moves is None:
        after = gains.times(after.bound)
    return _side_by_side([bound for bound, _ in parts], n_values), after


def branches(
    transformer: Any, n_values: int
) -> Iterator[tuple[str, Any, NDArray[np.intp], int | None]]:
    """Yield name, transformer, indices of what it reads, and the number of its outputs if known.

    Parameters
    ----------
    transformer : fitted ColumnTransformer or FeatureUnion
    n_values : int
        Number of its inputs.

    Yields
    ------
    name, branch, reads, n_outputs
    """
    for name, branch in _kept_parts(transformer):
        if type(transformer) is FeatureUnion:
            yield name, _identity_or(branch), np.arange(n_values), None
            continue
        # The one private name: which columns fit resolved names, slices, masks and callables to.
        reads = np.asarray(transformer._transformer_to_input_indices[name], dtype=np.intp)
        if len(reads) > 0:
            outputs = transformer.output_indices_[name]
            yield name, _identity_or(branch), reads, outputs.stop - outputs.start


def _kept_parts(transformer: Any) -> list[tuple[str, Any]]:
    """Names and parts of a fitted ColumnTransformer or FeatureUnion, without those that are dropped."""
    of_columns = type(transformer) is ColumnTransformer
    entries = transformer.transformers_ if of_columns else transformer.transformer_list
    return [(name, part) for name, part, *_ in entries if not _is_named(part, "drop")]


def _identity_or(branch: Any) -> Any:
    """Undo what fit makes of "passthrough"."""
    if type(branch) is not FunctionTransformer or branch.func is not None:
        return branch
    refuse_altered(branch)
    return "passthrough"


def _n_inputs(transformer: Any) -> int:
    """Number of inputs; a FeatureUnion knows it from its parts, of which some may be dropped."""
    if type(transformer) is ColumnTransformer:
        return int(transformer.n_features_in_)
    parts = [part for _, part in _kept_parts(transformer)]
    return next(int(part.n_features_in_) for part in parts if hasattr(part, "n_features_in_"))


def _is_weighted(transformer: Any) -> bool:
    """Whether any part of a step is multiplied by an entry of transformer_weights."""
    if type(transformer) not in (ColumnTransformer, FeatureUnion):
        return False
    steps = (step for _, part in _kept_parts(transformer) for step in flat_steps(part))
    return bool(transformer.transformer_weights) or any(map(_is_weighted, steps))


def weighted_reads(transformer: Any, gains: Gains) -> NDArray[np.intp]:
    """Return which values that may move are read by parts with an entry of transformer_weights."""
    found = [np.arange(0)]
    if _is_weighted(transformer):
        weights = transformer.transformer_weights or {}
        n_values = _n_inputs(transformer) if gains.moves is None else len(gains.moves)
        for name, branch, reads, _ in branches(transformer, n_values):
            if weights.get(name) is not None or any(map(_is_weighted, flat_steps(branch))):
                found.append(reads)
    every = np.unique(np.concatenate(found))
    return every if gains.moves is None else every[gains.moves[every]]


def _part(
    branch: Any, reads: NDArray[np.intp], weight: float | None, n_outputs: int | None, start: Gains
) -> tuple[MapBound, Gains]:
    """Say what is proven of one of several maps side by side, which reads some of the values."""
    gains = start.of_values(reads)
    for transformer in flat_steps(branch):
        if not getattr(transformer, "copy", True):
            raise TypeError(
                f"{type(transformer).__name__} with copy=False overwrites what the parts beside it "
                "read; set copy=True."
            )
    if n_outputs is not None and gains.bound == 0:
        # Computed from fixed columns alone: whatever comes out is the same for every x'.
        held = Gains.held(len(start.errors), n_outputs)
        return MapBound(0.0, exact, at_zero=np.inf, reads=reads[:0]), held
    chain = []
    for transformer in flat_steps(branch):
        bound, gains = described_step(transformer, gains)
        chain.append(bound)
    if weight is not None:
        chain.append(weighting(float(weight)))
        gains = gains.through(chain[-1])
    if n_outputs is not None:
        check_width(branch, gains, n_outputs)
    if not all(np.isfinite(bound.at_zero) for bound in chain[:-1]):
        raise TypeError(
            f"{type(branch).__name__} works on what other steps made of fixed columns, so its rounding "
            "has no bound; move the steps on fixed columns to the outermost ColumnTransformer."
        )
    return replace(composed(chain), reads=reads), gains


def check_width(transformer: Any, gains: Gains, n_outputs: int) -> None:
    """Refuse what is known of another number of values than there are behind a step.

    Raises
    ------
    ValueError
        Where a registered rule says of its factors, sources or matrix what is not so.
    """
    if gains.moves is not None and len(gains.moves) != n_outputs:
        raise ValueError(
            f"the rule of {type(transformer).__name__} is about {len(gains.moves)} outputs, but there "
            f"are {n_outputs}; give factors, sources or a matrix of each, or the constant alone."
        )


def weighting(weight: float) -> MapBound:
    """Multiplication by an entry of transformer_weights."""
    size = lipschitz_constant(abs(weight), weight)

    def rounding(arithmetic: Arithmetic) -> Affine:
        # Each value may lose a subnormal number; there are no 2 ** 40 values in a row.
        return Affine(arithmetic.smallest * 2.0**20, arithmetic.gamma(2) * size)

    # A weight of 0 leaves the sign: its values are not fixed.
    if size <= FLOOR:
        return MapBound(FLOOR, rounding, factors=FLOOR)
    return MapBound(size, rounding, factors=weight, linear=True)


def _side_by_side(parts: Sequence[MapBound], n_values: int) -> MapBound:
    """Constants and errors of each input's parts add up like gains; offsets as lengths do."""

    def joined(of_parts: Sequence[float]) -> float:
        sums = np.zeros(n_values)
        for part, value in zip(parts, of_parts, strict=True):
            if part.reads is not None and len(part.reads):
                # A part may read a column several times.
                repeats = np.sqrt(np.bincount(part.reads).max())
                reads = np.unique(part.reads)
                sums[reads] = np.hypot(sums[reads], value * repeats)
        return float(sums.max(initial=0.0))

    def rounding(arithmetic: Arithmetic) -> Affine:
        errors = [part.error_in(arithmetic) for part in parts]
        offset = float(np.linalg.norm([float(error.offset) for error in errors]))
        return Affine(offset, joined([float(error.slope) for error in errors])).rounded_up()

    lengths = Affine(
        float(np.linalg.norm([part.at_zero for part in parts])),
        joined([part.constant for part in parts]),
    ).rounded_up()
    reads = [part.reads for part in parts if part.reads is not None]
    return MapBound(
        float(lengths.slope),
        rounding,
        float(lengths.offset),
        reads=np.unique(np.concatenate([np.arange(0), *reads])),
    )
