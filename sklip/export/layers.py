r"""Layers of plain networks as ONNX operators, in sums whose order no bound on rounding depends on.

Maps are held as (n, pixels, channels): a convolution gathers its patches, each a row of memory, and is
a product of matrices, which onnxruntime sums directly in float64 (it has no convolution of float64, and
in float32 it may choose among several algorithms).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sklip import layers
from sklip.certified.direct_sums import flat_chain
from sklip.certified.rules import at_zeros
from sklip.certified.value_rules import both_axes
from sklip.export.graph import Graph

__all__ = ["Values", "add_layer", "add_network"]


@dataclass(frozen=True)
class Values:
    """What stands between two layers.

    Parameters
    ----------
    name : str
        Of shape (n, values), or (n, height * width, channels) for maps.
    shape : tuple of int
        Of one sample as torch has it: (values,) or (channels, height, width).
    """

    name: str
    shape: tuple[int, ...]


# (graph, layer, values) -> name of what comes out.
Writer = Callable[[Graph, Any, Values], str]
_WRITERS: dict[type[nn.Module], Writer] = {}


def add_network(graph: Graph, network: nn.Module, rows: str, input_shape: tuple[int, ...]) -> str:
    """Add a plain network that has been proven.

    Parameters
    ----------
    graph : Graph
    network : torch.nn.Module
    rows : str
        Name of flat rows, channels first, shape (n, n_values).
    input_shape : tuple of int
        Shape of one sample.

    Returns
    -------
    logits : str
        Name of the logits, shape (n, n_outputs).

    Raises
    ------
    TypeError
        For a layer that is not known here.
    """
    if len(input_shape) not in (1, 3):
        raise TypeError(
            f"ONNX files are of networks on rows or on maps (channels, height, width), got input_shape="
            f"{input_shape}; add torch.nn.Flatten or torch.nn.Unflatten before training."
        )
    values = Values(rows, input_shape)
    if len(input_shape) == 3:
        channels, height, width = input_shape
        name = graph.reshaped(rows, [channels, height * width])
        values = Values(graph.node("Transpose", name, perm=[0, 2, 1]), input_shape)
    for layer in flat_chain(network):
        values = add_layer(graph, layer, values)
    return values.name


def add_layer(graph: Graph, layer: nn.Module, values: Values) -> Values:
    """Add one layer.

    Raises
    ------
    TypeError
        For a layer that is not known here.
    """
    writer, name = _WRITERS.get(type(layer)), type(layer).__name__
    if writer is None:
        known = ", ".join(sorted(each.__name__ for each in _WRITERS))
        raise TypeError(
            f"{name} has no form in ONNX whose rounding is known; train with other layers: {known}."
        )
    shape = tuple(at_zeros(layer, values.shape).shape[1:])
    if len(shape) not in (1, 3):
        raise TypeError(
            f"{name} makes values of shape {shape}, but must make rows or maps; flatten maps."
        )
    return Values(writer(graph, layer, values), shape)


def _writes(*types: type[nn.Module]) -> Callable[[Writer], Writer]:
    def registered(writer: Writer) -> Writer:
        _WRITERS.update(dict.fromkeys(types, writer))
        return writer

    return registered


def _numbers(tensor: Tensor) -> NDArray[np.float64]:
    """Return weights in float64, which has them all."""
    numbers: NDArray[np.float64] = tensor.detach().cpu().double().numpy()
    return numbers


def _refuse_maps(layer: nn.Module, values: Values) -> None:
    if len(values.shape) != 1:
        raise TypeError(
            f"{type(layer).__name__} works along the width of maps of shape {values.shape}, which ONNX "
            "files don't; put a torch.nn.Flatten before it."
        )


# -- value by value, and picking ----------------------------------------------------------------


@_writes(nn.Identity, nn.Dropout, nn.Dropout2d)
def _identity(graph: Graph, layer: nn.Module, values: Values) -> str:
    return values.name


@_writes(nn.Flatten)
def _flatten(graph: Graph, layer: nn.Flatten, values: Values) -> str:
    if len(values.shape) == 1:
        return values.name
    channels, height, width = values.shape
    if layer.end_dim not in (-1, 3):
        raise TypeError(f"Flatten must flatten whole maps, got end_dim={layer.end_dim}; leave it out.")
    first = graph.node("Transpose", values.name, perm=[0, 2, 1])
    return graph.reshaped(first, [channels * height * width])


@_writes(nn.ReLU)
def _relu(graph: Graph, layer: nn.ReLU, values: Values) -> str:
    return graph.node("Relu", values.name)


@_writes(nn.LeakyReLU)
def _leaky_relu(graph: Graph, layer: nn.LeakyReLU, values: Values) -> str:
    negative = graph.node("Less", values.name, graph.numbers(0.0))
    scaled = _times(graph, values.name, layer.negative_slope, values)
    return graph.node("Where", negative, scaled, values.name)


@_writes(layers.Center)
def _center(graph: Graph, layer: layers.Center, values: Values) -> str:
    _refuse_maps(layer, values)
    return graph.combined("Sub", values.name, _numbers(layer.center))


@_writes(layers.Scale)
def _scale(graph: Graph, layer: layers.Scale, values: Values) -> str:
    return _times(graph, values.name, layer.k, values)


def _times(graph: Graph, name: str, factor: float, values: Values) -> str:
    """Multiply by one factor; channels, or single values, stand last."""
    return graph.combined("Mul", name, [factor] * values.shape[0])


@_writes(layers.GroupSort2, layers.GroupSort, layers.FullSort)
def _sort(graph: Graph, layer: nn.Module, values: Values) -> str:
    """Channels stand last, in maps as well."""
    channels, is_map = values.shape[0], len(values.shape) == 3
    size = {layers.GroupSort2: 2, layers.FullSort: channels}.get(type(layer))
    size = layer.group_size if isinstance(layer, layers.GroupSort) else size
    assert size is not None
    sides, axis = ([0], 3) if is_map else ([], 2)
    groups = graph.reshaped(values.name, [*sides, channels // size, size])
    if size == 2:
        ends = [graph.node(f"Reduce{end}", groups, axes=[axis], keepdims=1) for end in ("Min", "Max")]
        ordered = graph.node("Concat", *ends, axis=axis)
    else:
        arguments = {"axis": axis, "largest": 0, "sorted": 1}
        ordered, _ = graph.nodes("TopK", 2, groups, graph.integers([size]), **arguments)
    return graph.reshaped(ordered, [*sides, channels])


# -- sums ---------------------------------------------------------------------------------------


@_writes(nn.Linear)
def _linear(graph: Graph, layer: nn.Linear, values: Values) -> str:
    _refuse_maps(layer, values)
    terms = [] if layer.bias is None else [graph.numbers(_numbers(layer.bias))]
    return graph.node("Gemm", values.name, graph.numbers(_numbers(layer.weight)), *terms, transB=1)


@_writes(nn.Conv2d)
def _convolution(graph: Graph, layer: nn.Conv2d, values: Values) -> str:
    left, _, top, _ = layer._reversed_padding_repeated_twice
    kernel_size = tuple(layer.weight.shape[2:])
    patches = _windows(
        graph, layer, values, kernel_size, both_axes(layer.stride), (top, left),
        both_axes(layer.dilation), wraps=layer.padding_mode == "circular",
    )  # fmt: skip
    weight = _numbers(layer.weight)
    out_channels, in_group, height, width = weight.shape
    # Groups are a product with zeros between them, which add nothing.
    spread = np.zeros((out_channels, values.shape[0], height, width))
    for group, rows in enumerate(np.split(np.arange(out_channels), layer.groups)):
        spread[rows, group * in_group : (group + 1) * in_group] = weight[rows]
    matrix = spread.transpose(2, 3, 1, 0).reshape(-1, out_channels)
    flat = graph.reshaped(patches, [0, len(matrix)])
    product = graph.node("MatMul", flat, graph.numbers(matrix))
    if layer.bias is None:
        return product
    return graph.combined("Add", product, _numbers(layer.bias))


@_writes(layers.Residual)
def _residual(graph: Graph, layer: layers.Residual, values: Values) -> str:
    branch = values
    for child in layer:
        for part in flat_chain(child):
            branch = add_layer(graph, part, branch)
    return graph.node("Add", values.name, branch.name)


# -- windows ------------------------------------------------------------------------------------


@_writes(nn.MaxPool2d)
def _max_pool(graph: Graph, layer: nn.MaxPool2d, values: Values) -> str:
    windows = _windows(
        graph, layer, values, both_axes(layer.kernel_size), _stride(layer),
        both_axes(layer.padding), both_axes(layer.dilation), outside=-np.inf,
    )  # fmt: skip
    return graph.node("ReduceMax", windows, axes=[2], keepdims=0)


@_writes(nn.AvgPool2d)
def _average_pool(graph: Graph, layer: nn.AvgPool2d, values: Values) -> str:
    kernel_size = both_axes(layer.kernel_size)
    windows = _windows(graph, layer, values, kernel_size, _stride(layer), both_axes(layer.padding))
    return _averages(graph, windows, kernel_size, values)


@_writes(layers.ScaledAvgPool2d)
def _scaled_average_pool(graph: Graph, layer: layers.ScaledAvgPool2d, values: Values) -> str:
    windows = _windows(graph, layer, values, layer.kernel_size, layer.kernel_size)
    scale = layer.k * float(np.sqrt(np.prod(layer.kernel_size)))
    return _times(graph, _averages(graph, windows, layer.kernel_size, values), scale, values)


@_writes(layers.ScaledL2NormPool2d)
def _scaled_l2_norm_pool(graph: Graph, layer: layers.ScaledL2NormPool2d, values: Values) -> str:
    windows = _windows(graph, layer, values, layer.kernel_size, layer.kernel_size)
    squares = graph.node("ReduceSumSquare", windows, axes=[2], keepdims=0)
    return _times(graph, graph.node("Sqrt", squares), layer.k, values)


def _averages(graph: Graph, windows: str, kernel_size: tuple[int, int], values: Values) -> str:
    sums = graph.node("ReduceSum", windows, graph.integers([2]), keepdims=0)
    return graph.combined("Div", sums, [float(np.prod(kernel_size))] * values.shape[0])


def _stride(layer: Any) -> tuple[int, int]:
    """Return a pool's stride, read as the forward pass does."""
    return both_axes(layer.kernel_size if layer.stride in (None, (), []) else layer.stride)


def _windows(
    graph: Graph,
    layer: nn.Module,
    values: Values,
    kernel_size: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    *,
    outside: float = 0.0,
    wraps: bool = False,
) -> str:
    """Gather the windows of a map: shape (n, windows, places, channels).

    Whatever the padding at the end, windows reach as far as the number of outputs says.
    """
    outputs = at_zeros(layer, values.shape).shape[2:]
    sides = values.shape[1:]
    rows, columns = (
        np.arange(outputs[axis])[:, None] * stride[axis]
        + np.arange(kernel_size[axis]) * dilation[axis]
        - padding[axis]
        for axis in (0, 1)
    )
    if wraps:
        rows, columns = rows % sides[0], columns % sides[1]
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    both = (rows >= 0) & (rows < sides[0]) & (columns >= 0) & (columns < sides[1])
    # What lies outside is one more pixel, behind the others.
    places = np.where(both, rows * sides[1] + columns, sides[0] * sides[1])
    name = values.name
    if not both.all():
        one_more = graph.integers([0, 0, 0, 0, 1, 0])
        name = graph.node("Pad", name, one_more, graph.numbers(outside))
    return graph.picked(name, places.reshape(math.prod(outputs), -1))
