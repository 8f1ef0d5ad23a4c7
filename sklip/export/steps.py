"""Fitted scikit-learn transformers as ONNX operators: those whose rounding their rules bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_selection import SelectorMixin
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from sklip.export.graph import Graph
from sklip.preprocessing.rules import described_transformer
from sklip.preprocessing.steps import branches, flat_steps

__all__ = ["Rows", "add_step"]


class Rows(NamedTuple):
    """Name of an array of shape (n, n_values)."""

    name: str
    n_values: int


Writer = Callable[[Graph, Any, Rows], Rows]
_WRITERS: dict[type, Writer] = {}


def add_step(graph: Graph, transformer: Any, rows: Rows) -> Rows:
    """Add a fitted transformer that has a rule and is no Pipeline.

    Parameters
    ----------
    graph : Graph
    transformer : fitted transformer
    rows : Rows
        Its input.

    Returns
    -------
    rows : Rows
        Its output.

    Raises
    ------
    TypeError
        For a transformer that is not known here.
    """
    if type(transformer) in (ColumnTransformer, FeatureUnion):
        return _side_by_side(graph, transformer, rows)
    writer = _WRITERS.get(type(transformer))
    if writer is None and isinstance(transformer, SelectorMixin):
        # All that have a rule: each copies the columns that it supports.
        described_transformer(transformer)
        return _picked(graph, rows, transformer.get_support(indices=True))
    if writer is None:
        known = ", ".join(sorted(each.__name__ for each in _WRITERS))
        raise TypeError(
            f"{type(transformer).__name__} has no form in ONNX here; leave the step out of the "
            f"pipeline and transform X before it is given to the file, or use {known}, feature "
            "selectors, and Pipelines, ColumnTransformers and FeatureUnions of these."
        )
    return writer(graph, transformer, rows)


def _side_by_side(graph: Graph, transformer: Any, rows: Rows) -> Rows:
    weights, parts = transformer.transformer_weights or {}, []
    for name, branch, reads, _ in branches(transformer, rows.n_values):
        part = _picked(graph, rows, reads)
        for step in flat_steps(branch):
            part = add_step(graph, step, part)
        if weights.get(name) is not None:
            part = _by(graph, "Mul", part, [float(weights[name])] * part.n_values)
        parts.append(part)
    names = [part.name for part in parts]
    return Rows(graph.node("Concat", *names, axis=1), sum(part.n_values for part in parts))


def _picked(graph: Graph, rows: Rows, positions: NDArray[np.intp]) -> Rows:
    return Rows(graph.picked(rows.name, positions), len(positions))


def _writes(*types: type) -> Callable[[Writer], Writer]:
    def registered(writer: Writer) -> Writer:
        _WRITERS.update(dict.fromkeys(types, writer))
        return writer

    return registered


def _float64(values: Any) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


# What transform does depends on the parameters as they are now, as in the rules.


@_writes(StandardScaler)
def _standard_scaler(graph: Graph, scaler: StandardScaler, rows: Rows) -> Rows:
    moved = _by(graph, "Sub", rows, scaler.mean_ if scaler.with_mean else None)
    return _by(graph, "Div", moved, scaler.scale_ if scaler.with_std else None)


@_writes(RobustScaler)
def _robust_scaler(graph: Graph, scaler: RobustScaler, rows: Rows) -> Rows:
    moved = _by(graph, "Sub", rows, scaler.center_ if scaler.with_centering else None)
    return _by(graph, "Div", moved, scaler.scale_ if scaler.with_scaling else None)


@_writes(MaxAbsScaler)
def _max_abs_scaler(graph: Graph, scaler: MaxAbsScaler, rows: Rows) -> Rows:
    scaled = _by(graph, "Div", rows, scaler.scale_)
    return _clipped(graph, scaled, (-1.0, 1.0)) if getattr(scaler, "clip", False) else scaled


@_writes(MinMaxScaler)
def _min_max_scaler(graph: Graph, scaler: MinMaxScaler, rows: Rows) -> Rows:
    moved = _by(graph, "Add", _by(graph, "Mul", rows, scaler.scale_), scaler.min_)
    return _clipped(graph, moved, scaler.feature_range) if scaler.clip else moved


def _by(graph: Graph, operator: str, rows: Rows, numbers: Any) -> Rows:
    """Add an operation with one number a column, if there are any."""
    if numbers is None:
        return rows
    return rows._replace(name=graph.combined(operator, rows.name, numbers))


def _clipped(graph: Graph, rows: Rows, ends: tuple[float, float]) -> Rows:
    above = graph.node("Max", rows.name, graph.numbers(ends[0]))
    return rows._replace(name=graph.node("Min", above, graph.numbers(ends[1])))


@_writes(PCA)
def _pca(graph: Graph, pca: PCA, rows: Rows) -> Rows:
    return _projected(graph, pca, _by(graph, "Sub", rows, pca.mean_))


@_writes(TruncatedSVD)
def _projected(graph: Graph, projection: Any, rows: Rows) -> Rows:
    matrix = described_transformer(projection).matrix
    assert matrix is not None
    return Rows(graph.node("MatMul", rows.name, graph.numbers(matrix.numpy().T)), len(matrix))


@_writes(SimpleImputer)
def _simple_imputer(graph: Graph, imputer: SimpleImputer, rows: Rows) -> Rows:
    sources = described_transformer(imputer).sources
    assert sources is not None
    missing = graph.node("IsNaN", rows.name)
    filled = graph.node("Where", missing, graph.numbers(_float64(imputer.statistics_)), rows.name)
    n_told = len(imputer.indicator_.features_) if imputer.add_indicator else 0
    kept = graph.picked(filled, sources[: len(sources) - n_told])
    if n_told == 0:
        return Rows(kept, len(sources))
    told = graph.picked(graph.cast(missing), sources[len(sources) - n_told :])
    return Rows(graph.node("Concat", kept, told, axis=1), len(sources))
