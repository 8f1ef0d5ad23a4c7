"""The end of a file's graph: from logits and lengths to a label, probabilities and a radius."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sklip.export.charges import Charges
from sklip.export.graph import Graph

__all__ = ["Answers"]

# Beyond, something may have overflown; below, a radius of 0 is as good.
_LARGEST, _SMALLEST = 1e300, 1e-290


class Answers:
    """What follows from logits.

    Parameters
    ----------
    graph : Graph
        Of float64.
    logits : str
        Shape (n, n_outputs).
    n_outputs : int
    """

    def __init__(self, graph: Graph, logits: str, n_outputs: int) -> None:
        self._graph, self._logits = graph, logits
        self._n_classes = max(2, n_outputs)
        if n_outputs == 1:
            # Two classes with the margin of the one over the other.
            positive = graph.node("Greater", logits, graph.numbers(0.0))
            codes = graph.node("Cast", positive, to=7)  # int64
            self._codes = graph.node("Reshape", codes, graph.integers([-1]))
            margins = graph.node("Abs", logits)
            self._margins = graph.node("Concat", margins, margins, axis=1)
            self._scores = graph.node("Concat", graph.node("Neg", logits), logits, axis=1)
        else:
            self._codes = graph.node("ArgMax", logits, axis=1, keepdims=0)
            largest = graph.node("ReduceMax", logits, axes=[1], keepdims=1)
            self._margins = graph.node("Sub", largest, logits)
            # Less the largest before tau is multiplied in, which may overflow.
            self._scores = graph.node("Neg", self._margins)

    def labels(self, classes: NDArray[np.generic]) -> str:
        """Return the labels, shape (n,)."""
        return self._graph.node("Gather", self._graph.constant(classes), self._codes)

    def probabilities(self, tau: float) -> str:
        """Return the softmax of tau times the logits, of one its sigmoid: shape (n, n_classes)."""
        # The sigmoid of z is the softmax of -z / 2 and z / 2.
        factor = tau / 2 if self._n_classes == 2 else tau
        scores = self._graph.combined("Mul", self._scores, [factor] * self._n_classes)
        return self._graph.node("Softmax", scores, axis=1)

    def radii(self, charges: Charges, lengths: str, missing: str | None) -> str:
        """Return the certified radii, shape (n,).

        Parameters
        ----------
        charges : Charges
        lengths : str
            Shape (n, n_lengths).
        missing : str or None
            Which rows lack a value, shape (n, 1).
        """
        graph = self._graph
        alone, *coefficients = charges.forms
        n_forms = len(alone)
        forms = graph.node("Gemm", lengths, graph.numbers(coefficients), graph.numbers(alone))
        per_length = graph.node("Mul", self._of_class(charges.per_length), graph.picked(forms, [0]))
        per_drift = graph.node("Mul", self._of_class(charges.per_drift), graph.picked(forms, [1]))
        spent = graph.node(
            "Add", graph.node("Add", per_length, per_drift), self._of_class(charges.spent)
        )
        shares = graph.combined("Mul", self._margins, [charges.share] * self._n_classes)
        left = graph.node("Sub", shares, spent)
        ratios = graph.node("Div", left, self._of_class(charges.constants))
        # Where nothing is lost per distance, a positive remainder lasts for ever, as far as limits go.
        itself = self._of_class(np.eye(self._n_classes) > 0)
        ratios = graph.node("Where", itself, graph.numbers(_LARGEST), ratios)
        room = graph.picked(graph.node("Sub", graph.numbers(charges.limits), forms), range(2, n_forms))
        every = graph.node("Concat", ratios, room, axis=1)
        # What is no number is not above 0 either; the least of several might be one of the others.
        positive = graph.node("Greater", every, graph.numbers(0.0))
        every = graph.node("Where", positive, every, graph.numbers(0.0))
        radii = graph.node("ReduceMin", every, axes=[1], keepdims=1)
        sums = graph.node("Add", graph.sums(graph.node("Abs", self._logits)), graph.sums(lengths))
        few = graph.node("Less", sums, graph.numbers(_LARGEST))
        sure = graph.node("And", few, graph.node("Greater", radii, graph.numbers(_SMALLEST)))
        if missing is not None:
            sure = graph.node("And", sure, graph.node("Not", missing))
        radii = graph.node("Where", sure, radii, graph.numbers(0.0))
        return graph.node("Reshape", radii, graph.integers([-1]))

    def _of_class(self, matrix: NDArray[np.generic]) -> str:
        """Return each row's line of a matrix over pairs of classes."""
        every = np.broadcast_to(matrix, (self._n_classes, self._n_classes))
        return self._graph.node("Gather", self._graph.constant(every), self._codes, axis=0)
