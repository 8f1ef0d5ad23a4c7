r"""ONNX graphs, written node by node.

Note [Constants of one element]
-------------------------------
Before it runs a graph, onnxruntime's optimiser takes out additions of 0 and products by 1. It does so
where the constant has one element that is 0 or 1 *after a cast to float32* (NoopElimination): a factor
of 1 + 2 ** -30 is gone, in graphs of float64 as well. Constant factors of one element may also be moved
into a product of matrices as an attribute, which is a float32 (MatMulScaleFusion). No bound on rounding
would cover either. Constants of two elements or more are left alone; so no sum, product or quotient
here has a constant of one element (:meth:`Graph.combined`). Comparisons may.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklip.files import write_whole

__all__ = ["Graph"]

# Old enough for every onnxruntime since 1.14, in which all kernels that are used have float64.
_OPSET, _IR_VERSION = 17, 8
# What protobuf, and so a file without others beside it, holds.
_LARGEST_FILE = 2**31 - 1


class Graph:
    """A graph of one input and several outputs, in one floating-point type.

    Parameters
    ----------
    dtype : {"float32", "float64"}
        Of all numbers in it.
    """

    def __init__(self, dtype: str) -> None:
        self._onnx = _onnx()
        self.dtype = np.dtype(dtype)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._n_names = 0

    # -- what is computed --------------------------------------------------------------------

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output, and return the name of that."""
        name = self._new_name(operator)
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [name], **attributes))
        return name

    def nodes(self, operator: str, n_outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node of several outputs, and return their names."""
        names = [self._new_name(operator) for _ in range(n_outputs)]
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, names, **attributes))
        return names

    def numbers(self, values: ArrayLike) -> str:
        """Return the name of constant numbers of the graph's type."""
        return self.constant(np.asarray(values, dtype=self.dtype))

    def integers(self, values: ArrayLike) -> str:
        """Return the name of constant integers: shapes, axes, indices."""
        return self.constant(np.asarray(values, dtype=np.int64))

    def constant(self, values: NDArray[Any]) -> str:
        """Return the name of a constant; words are stored as such."""
        name = self._new_name("constant")
        ordered = np.array(values, order="C")
        self._constants.append(self._onnx.numpy_helper.from_array(ordered, name))
        return name

    def reshaped(self, x: str, shape: Sequence[int]) -> str:
        """Return rows in another shape; 0 stands for a side that stays."""
        return self.node("Reshape", x, self.integers([0, *shape]))

    def picked(self, x: str, positions: ArrayLike, axis: int = 1) -> str:
        """Return some of the values of each row."""
        return self.node("Gather", x, self.integers(positions), axis=axis)

    def combined(self, operator: str, x: str, values: ArrayLike) -> str:
        """Combine the last axis of x with one constant for each place along it.

        Never with a constant of one element: see Note [Constants of one element].

        Parameters
        ----------
        operator : {"Add", "Sub", "Mul", "Div"}
        x : str
        values : array-like of shape (n_values,)

        Returns
        -------
        combined : str
        """
        constants = np.asarray(values, dtype=self.dtype)
        if len(constants) > 1:
            return self.node(operator, x, self.numbers(constants))
        twice = self.node("Concat", x, x, axis=-1)
        twice = self.node(operator, twice, self.numbers(np.repeat(constants, 2)))
        return self.picked(twice, [0], axis=-1)

    def cast(self, x: str) -> str:
        """Return truth values as numbers."""
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(self.dtype)
        return self.node("Cast", x, to=kind)

    def sums(self, x: str) -> str:
        """Return the sum of each row, shape (n, 1)."""
        return self.node("ReduceSum", x, self.integers([1]), keepdims=1)

    # -- what comes in and goes out ----------------------------------------------------------

    def input(self, name: str, shape: Sequence[Any]) -> str:
        """Declare the input: numbers of the graph's type."""
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(self.dtype)
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, value: str, dtype: Any, shape: Sequence[Any]) -> None:
        """Declare an output."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name]))
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._outputs.append(self._onnx.helper.make_tensor_value_info(name, kind, shape))

    def write(self, path: str | os.PathLike[str], about: Mapping[str, str]) -> None:
        """Check the graph and write it: as a whole, or not at all.

        Parameters
        ----------
        path : str or path-like
        about : dict of str
            What the file says of itself.

        Raises
        ------
        ValueError
            For a graph that is larger than a file may be.
        OSError
            If the file can't be written.
        """
        onnx = self._onnx
        size = sum(each.ByteSize() for each in self._constants)
        if size > _LARGEST_FILE - 2**24:
            raise ValueError(
                f"an ONNX file holds less than 2 GB, but the network needs {size} bytes in "
                f"{self.dtype}; use a smaller network."
            )
        graph = onnx.helper.make_graph(
            self._nodes, "sklip", self._inputs, self._outputs, self._constants
        )
        opsets = [onnx.helper.make_opsetid("", _OPSET)]
        model = onnx.helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="sklip"
        )
        onnx.helper.set_model_props(model, dict(about))
        onnx.checker.check_model(model, full_check=True)
        write_whole(path, model.SerializeToString())

    def _new_name(self, kind: str) -> str:
        self._n_names += 1
        return f"{kind}_{self._n_names}"


def _onnx() -> Any:
    try:
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise ImportError(
            "ONNX files need onnx; install it with the extra: scikit-lipschitz[onnx]."
        ) from error
    return onnx
