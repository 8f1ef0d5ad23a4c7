r"""Fitted estimators as ONNX files that answer with a label, probabilities and a certified radius."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.impute import SimpleImputer

import sklip
from sklip.certification.chains import Chain, start_of, warn_of_a_throttle
from sklip.certification.deciders import ByNetwork
from sklip.certification.wrappers import decider_of
from sklip.certified.gains import Gains
from sklip.certified.maps import MapBound
from sklip.estimators.base import proven_network
from sklip.export.answers import Answers
from sklip.export.charges import Charges
from sklip.export.graph import Graph
from sklip.export.layers import add_network
from sklip.export.steps import Rows, add_step
from sklip.preprocessing.changes import Changes
from sklip.preprocessing.steps import described_steps, nested_steps

__all__ = ["chain_of", "to_onnx"]

_PROMISE = (
    "For a row x with radius r, every x' of float64 with sum_c ((x'_c - x_c) / scale_c)^2 < r^2, equal "
    "to x where scale_c is null, gets the same label: from this file, as onnxruntime's "
    "CPUExecutionProvider computes it, and from the exact function of its numbers."
)


def to_onnx(
    estimator: Any,
    path: str | os.PathLike[str],
    *,
    fixed_columns: Iterable[str | int] = (),
    scale: Any = None,
) -> None:
    r"""Write a fitted estimator to an ONNX file that answers with label, probabilities and radius.

    For a row x with radius r, every x' of float64 with :math:`\|x' - x\|_2 < r` gets the same label:
    from the file, as onnxruntime computes it, whatever the batch and the order of its sums, and from
    the exact function of the stored weights and steps. Rounding is charged as for certificates, for
    sums in any order, and with room for what onnxruntime's optimiser moves about. The radius is never
    larger than that of :func:`sklip.certificates` for the same row of float64; of networks in float32
    it is about 2 % smaller, so that this can be promised.

    The file's input is ``X``, float64 of shape (n, n_columns): the columns of `estimator` in the order
    of ``fit``, in their own units; of images, the rows flattened with the channels first. Its outputs
    are ``label`` (n,), ``probabilities`` (n, n_classes) and ``radius`` (n,); its metadata say what is
    promised. It computes in float64, with standard operators only. The promise is for onnxruntime's
    CPUExecutionProvider: others may multiply matrices in fewer bits. A file can raise no errors: a row
    with a missing value gets radius 0, and if no SimpleImputer fills it in, a label without meaning. A
    convolution takes as much memory as all its patches: give the file some hundred images at a time.

    Needs the extra scikit-lipschitz[onnx].

    Parameters
    ----------
    estimator : fitted estimator
        A LipschitzClassifier, a Pipeline that ends in one, or a fitted search over either. Steps:
        StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler, PCA, TruncatedSVD, SimpleImputer,
        feature selectors, "passthrough"; Pipelines, ColumnTransformers and FeatureUnions of these.
    path : str or path-like
        An existing file is replaced once the new one is complete.
    fixed_columns : iterable of str or int, default=()
        Columns that can't change, as for :func:`sklip.certificates`.
    scale : array-like of shape (n_columns,), Series, dict or "std", default=None
        Unit of each column, as for :func:`sklip.certificates`: the file's radii are in these units, its
        input is not.

    Raises
    ------
    TypeError
        For an estimator in which something else than the network's logits decides, for a step or a
        layer without a proven rule, or without operators whose rounding is known.
    ValueError
        For columns that there are none of, for scales that are missing, not positive or not known, and
        for a network of more than 2 GB.
    NotFittedError
        If the estimator is not fitted.
    OSError
        If the file can't be written; what stood there before still does.
    ImportError
        Without the package onnx.

    Warns
    -----
    UserWarning
        As :func:`sklip.certificates`, of a column that limits all radii.

    See Also
    --------
    to_verifier_onnx : The logits alone, for other verifiers.

    References
    ----------
    Higham (2002), Accuracy and stability of numerical algorithms, 2nd edition, section 3.1 (sums in any
    order).

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np, onnxruntime
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklip import LipschitzClassifier, certificates, to_onnx
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LipschitzClassifier(max_epochs=5, random_state=0)
    >>> pipeline = make_pipeline(StandardScaler(), clf).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "iris.onnx")
    ...     to_onnx(pipeline, path)
    ...     session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    >>> label, probabilities, radius = session.run(None, {"X": X})
    >>> bool((label == pipeline.predict(X)).all()), bool((radius <= certificates(pipeline, X)).all())
    (True, True)
    """
    chain, classes = chain_of(estimator)
    network = proven_network(chain.classifier, chain.method)
    start = start_of([chain], np.empty((1, 0)), Changes(fixed_columns, scale))
    known, gains = described_steps(chain.steps, start)
    if scale is None:
        _warn(gains, chain)
    plain = not chain.steps and bool((start.matrix == 1).all())
    charges = Charges.of(network, known, gains, plain)
    n_columns = len(start.errors)
    graph = Graph("float64")
    rows = Rows(graph.input("X", ["n", n_columns]), n_columns)
    rows, lengths, missing = _through(graph, chain.steps, known, rows)
    logits = add_network(graph, network.network, rows.name, network.input_shape)
    answers = Answers(graph, logits, network.n_outputs)
    labels = _storable(classes)
    graph.output("label", answers.labels(labels), labels.dtype, ["n"])
    probabilities = answers.probabilities(chain.classifier.tau_)
    graph.output("probabilities", probabilities, np.float64, ["n", len(classes)])
    graph.output("radius", answers.radii(charges, lengths, missing), np.float64, ["n"])
    names = list(range(n_columns)) if chain.names is None else list(chain.names)
    about = {
        "sklip": sklip.__version__,
        "promise": _PROMISE,
        "scale": json.dumps([float(unit) or None for unit in start.matrix]),
        "columns": json.dumps(names),
        "classes": json.dumps(labels.tolist()),
    }
    graph.write(path, about)


def chain_of(estimator: Any) -> tuple[Chain, NDArray[Any]]:
    """Return the steps and the classifier of an estimator in which logits decide, and its labels.

    Raises
    ------
    TypeError
        If something else decides.
    NotFittedError
        If it is not fitted.
    """
    decider = decider_of(estimator)
    if type(decider) is not ByNetwork:
        raise TypeError(
            f"{type(estimator).__name__} decides by more than the logits of one network, which ONNX "
            "files don't; write the LipschitzClassifier in it, or a Pipeline that ends in one."
        )
    return decider.chain, decider.classes


def _warn(gains: Gains, chain: Chain) -> None:
    # A frame in the place of that of sklip.certificates: the warning names the caller's line.
    warn_of_a_throttle(gains, chain.names)


def _through(
    graph: Graph, steps: Sequence[Any], known: list[tuple[MapBound, Gains]], rows: Rows
) -> tuple[Rows, str, str | None]:
    """Add the steps. Returns also the lengths before each and behind the last, and what is missing."""
    imputes = any(type(inner) is SimpleImputer for step in steps for inner in nested_steps(step))
    lengths, missing = [], None
    for position, (step, (bound, before)) in enumerate(zip(steps, known, strict=True)):
        reads = np.arange(rows.n_values) if bound.reads is None else bound.reads
        read = graph.picked(rows.name, reads)
        if imputes:
            empty = graph.node("IsNaN", read)
            read = graph.node("Where", empty, graph.numbers(0.0), read)
            moves = before.moves
            if position == 0 and moves is not None and moves[reads].any():
                moving = graph.picked(graph.cast(empty), np.flatnonzero(moves[reads]))
                missing = graph.node("Greater", graph.sums(moving), graph.numbers(0.0))
        lengths.append(_length(graph, read))
        rows = add_step(graph, step, rows)
    lengths.append(_length(graph, rows.name))
    return rows, graph.node("Concat", *lengths, axis=1), missing


def _length(graph: Graph, rows: str) -> str:
    """Add the L2 length of each row, shape (n, 1), as computed."""
    return graph.node("Sqrt", graph.node("ReduceSumSquare", rows, axes=[1], keepdims=1))


def _storable(classes: NDArray[Any]) -> NDArray[Any]:
    """Return labels in a type that ONNX has: truth values, integers, numbers or words."""
    values = classes.tolist()
    if all(isinstance(value, str) for value in values):
        return np.array(values, dtype=object)
    if all(isinstance(value, bool) for value in values):
        return np.array(values, dtype=np.bool_)
    if all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in values):
        return np.array(values, dtype=np.int64)
    if all(isinstance(value, float) for value in values):
        return np.array(values, dtype=np.float64)
    raise TypeError(
        "labels must be words, integers of 64 bits, numbers or truth values to be in a file, got "
        f"{values}."
    )
