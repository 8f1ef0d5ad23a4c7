r"""The forward pass that predicts and that certificates speak of: direct sums, in a fixed precision.

Note [Direct sums]
------------------
A bound on rounding errors, gamma_n |W| |x| for a dot product of length n, holds for products that
are summed directly, in whatever order. It does not hold for Winograd or FFT convolutions, TF32 or
bfloat16 products, and torch may choose any of these behind nn.Conv2d and nn.Linear in float32,
depending on the machine, the batch size and global switches. So the network is evaluated here by
matrix products, and by oneDNN's direct convolutions, which torch offers by name on the CPU in float32,
where they serve for large products as well (with a kernel of one pixel); elsewhere a convolution
gathers its patches (unfold) and is a product. Long sums are cut into blocks whose sums are added in
pairs, which brings the error of n terms in blocks of B from about n units down to B + log2(n / B).

In float64 none of this is needed: sums stay whole, and on the CPU torch's own convolution, which has no
other algorithm than patches and a product there, takes less than half the time.

No global switch is touched. Where one allows products of lower precision, float32 networks are
evaluated in float64 and the result is rounded.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sklip.certified.arithmetic import Arithmetic
from sklip.layers import GroupSort2, Residual
from sklip.layers.activation import sorted_pairs

__all__ = ["direct_forward", "flat_chain", "forward_one_by_one", "gathered"]

# Rows evaluated at once: bounds memory whatever the number of rows. Of maps only few fit a processor's
# cache, in float64 fewer; a dense layer reads its weights once for all of them, and so does a GPU.
_ROWS = 128
_WIDE_ROWS = 32
_DENSE_ROWS = 1024
# Values of gathered patches at once.
_PATCHES = 2**22
# Multiplications of a block from which oneDNN is faster than a product by BLAS.
_LARGE = 2**23
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch, "mkldnn_convolution")


def flat_chain(network: nn.Module) -> list[nn.Module]:
    """Return the layers of nested plain Sequentials, in order: at least one."""
    if type(network) is not nn.Sequential:
        return [network]
    return [layer for child in network for layer in flat_chain(child)] or [nn.Identity()]


@torch.no_grad()
def direct_forward(
    network: nn.Module, X: Tensor, arithmetic: Arithmetic, measured: Collection[int] = ()
) -> tuple[Tensor, Tensor]:
    """Return ``network(X)`` and lengths on the way, by direct sums in batches of bounded size.

    Parameters
    ----------
    network : torch.nn.Module
        A plain network (see :func:`sklip.layers.to_torch`), in evaluation mode.
    X : Tensor of shape (n_samples, ...)
        In the network's precision.
    arithmetic : Arithmetic
        That precision, and the blocks of its sums.
    measured : collection of int, default=()
        Positions in :func:`flat_chain` of the layers whose inputs are measured.

    Returns
    -------
    outputs : Tensor of shape (n_samples, n_outputs)
    lengths : Tensor of shape (n_samples, n_layers), float64
        Upper bounds on the L2 lengths of the inputs; 0 where nothing was measured.

    Examples
    --------
    >>> import torch
    >>> from sklip.certified.arithmetic import Arithmetic
    >>> from sklip.certified.direct_sums import direct_forward
    >>> outputs, lengths = direct_forward(
    ...     torch.nn.Flatten(), torch.ones(2, 1, 4), Arithmetic("float32"), measured={0}
    ... )
    >>> outputs.shape, lengths.shape
    (torch.Size([2, 4]), torch.Size([2, 1]))
    """
    if X.dtype == torch.float32 and not _float32_products_are_float32():
        # Sums in float64 lose less than those in float32, however they are cut.
        wide = copy.deepcopy(network).double()
        outputs, lengths = direct_forward(wide, X.double(), Arithmetic("float64"), measured)
        return outputs.to(X.dtype), lengths
    at_once = _DENSE_ROWS
    while True:
        try:
            results = _in_batches(network, X, arithmetic, measured, at_once)
            break
        except torch.cuda.OutOfMemoryError:
            if at_once == 1:
                raise
            at_once //= 2
    if at_once < _DENSE_ROWS:
        warnings.warn(
            f"The device's memory holds {at_once} rows at once where {_DENSE_ROWS} would be evaluated.",
            stacklevel=2,
        )
    return results


def _in_batches(
    network: nn.Module, X: Tensor, arithmetic: Arithmetic, measured: Collection[int], most: int
) -> tuple[Tensor, Tensor]:
    """Do so with at most so many rows at once."""
    layers = flat_chain(network)
    dense = next((i for i, layer in enumerate(layers) if type(layer) is nn.Linear), len(layers))
    maps = most
    if X.device.type == "cpu":
        maps = min(most, _ROWS if X.dtype == torch.float32 else _WIDE_ROWS)
    lengths, sizes = X.new_zeros(len(X), len(layers)), dict[int, int]()

    def through(x: Tensor, lengths: Tensor, span: range) -> Tensor:
        if span.start == 0:
            x = x.clone()  # a layer that works in place must not reach the caller's X
        for i in span:
            if i in measured:
                flat = x.flatten(1)
                lengths[:, i], sizes[i] = torch.linalg.vector_norm(flat, dim=1), flat.shape[1]
            x = _evaluated(layers[i], x, arithmetic)
        return x

    def logits(rows: Tensor, lengths: Tensor) -> Tensor:
        for span in filter(len, (range(dense), range(dense, len(layers)))):
            # Maps, on which a dense layer may work as well, would take too much memory.
            at_once = most if rows.ndim == 2 else maps
            parts = zip(rows.split(at_once), lengths.split(at_once), strict=True)
            rows = gathered(len(rows), (through(*part, span) for part in parts))
        return rows

    with torch.autocast(X.device.type, enabled=False):
        parts = zip(X.split(most), lengths.split(most), strict=True)
        outputs = gathered(len(X), (logits(*part) for part in parts))
    return outputs, _lengths_upper(lengths, sizes)


@torch.no_grad()
def forward_one_by_one(network: nn.Module, X: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Return what :func:`direct_forward` does for each row alone: no row changes another's rounding.

    Parameters
    ----------
    network, X, arithmetic
        As for :func:`direct_forward`.

    Returns
    -------
    outputs : Tensor of shape (n_samples, n_outputs)
    """
    with torch.autocast(X.device.type, enabled=False):
        return torch.cat([_evaluated(network, row.clone(), arithmetic) for row in X.split(1)])


def _lengths_upper(computed: Tensor, sizes: dict[int, int]) -> Tensor:
    """Bound lengths that were computed of rows of some numbers of values: one column for each."""
    unit, smallest = torch.finfo(computed.dtype).eps / 2, torch.finfo(computed.dtype).tiny
    lengths = computed.double()
    for i, n_values in sizes.items():
        # Squares in a sum of any order, and the root; squares may be flushed to zero.
        lost = (n_values + 4) * unit
        factor = 1 / (1 - lost) if lost < 0.5 else math.inf
        lengths[:, i] = lengths[:, i] * factor + 2 * math.sqrt(n_values * smallest)
    return lengths


def gathered(n_rows: int, parts: Iterable[Tensor]) -> Tensor:
    """Return the parts one below the other.

    Each is copied to its place at once: small results kept among large intermediate ones that come and
    go would break up the free memory.

    Parameters
    ----------
    n_rows : int
        Number of rows of all parts, at least 1.
    parts : iterable of Tensor

    Returns
    -------
    rows : Tensor of shape (n_rows, ...)
    """
    rows, start = None, 0
    for part in parts:
        if rows is None:
            rows = part.new_empty(n_rows, *part.shape[1:])
        rows[start : start + len(part)] = part
        start += len(part)
    assert rows is not None, "there is at least one part"
    return rows


def _float32_products_are_float32() -> bool:
    """Whether no global switch lets products of float32 matrices lose bits."""
    backends = torch.backends
    mkldnn = getattr(backends, "mkldnn", None)
    switches = (
        backends,
        backends.cuda.matmul,
        mkldnn,
        getattr(mkldnn, "matmul", None),
        getattr(mkldnn, "conv", None),
    )
    # oneDNN reads these, which can make it compute with fewer bits on some machines.
    modes = [os.environ.get(f"{name}_DEFAULT_FPMATH_MODE", "") for name in ("ONEDNN", "DNNL")]
    if any(getattr(switch, "fp32_precision", "ieee") not in ("none", "ieee") for switch in switches):
        return False
    if any(mode.upper() not in ("", "STRICT") for mode in modes):
        return False
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # torch can't say where the newer switches were used as well
        return False


def _evaluated(layer: nn.Module, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    evaluate = _EVALUATIONS.get(type(layer))
    return layer(x) if evaluate is None else evaluate(layer, x, arithmetic)


def _sequential(layer: nn.Sequential, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    for child in layer:
        x = _evaluated(child, x, arithmetic)
    return x


def _residual(layer: Residual, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    return layer.join(x, _sequential(layer, x.clone(), arithmetic))


def _group_sort2(layer: GroupSort2, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    return sorted_pairs(x)


def _added_in_pairs(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of n parts, which are overwritten; each goes through at most log2(n) additions."""
    # Sums of 2^k parts, the larger first, as the digits of a binary counter.
    sums: list[tuple[int, Tensor]] = []
    for part in parts:
        count = 1
        while sums and sums[-1][0] == count:
            part = sums.pop()[1].add_(part)
            count *= 2
        sums.append((count, part))
    total = sums.pop()[1]
    while sums:
        total = sums.pop()[1].add_(total)
    return total


def _linear(layer: nn.Linear, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    if arithmetic.block is None:
        return functional.linear(x, layer.weight, layer.bias)
    block = arithmetic.block
    large = x.ndim == 2 and len(x) * block * layer.out_features >= _LARGE
    product = _pixel_product if large and _by_onednn(x) else functional.linear
    blocks = zip(x.split(block, -1), layer.weight.split(block, 1), strict=True)
    total = _added_in_pairs(product(part, weight) for part, weight in blocks)
    return total if layer.bias is None else total.add_(layer.bias)


def _pixel_product(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.mT`` as a convolution with a kernel of one pixel, the rows being the pixels."""
    # The order of memory called channels_last.
    pixels, kernel = rows[None, None].permute(0, 3, 1, 2), weight[:, :, None, None]
    out = torch.mkldnn_convolution(pixels, kernel, None, (0, 0), (1, 1), (1, 1), 1)
    return out.permute(0, 2, 3, 1).reshape(len(rows), len(weight))


def _by_onednn(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and _HAS_ONEDNN


def _conv2d(layer: nn.Conv2d, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    # The same padding as Conv2d's own forward pass; "same" may need one more pixel at the end.
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    padding = (top, left)
    if layer.padding_mode != "zeros" or (left, top) != (right, bottom):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x, padding = functional.pad(x, (left, right, top, bottom), mode=mode), (0, 0)
    if arithmetic.convolution_block is None and x.device.type == "cpu" and x.dtype == torch.float64:
        return _whole_convolution(layer, x, padding)
    # Convolutions in groups go the general way: blocks of channels would cross the groups' borders.
    if layer.groups == 1 and _by_onednn(x):
        return _direct_convolution(layer, x, padding, arithmetic)
    return _product_of_patches(layer, x, padding, arithmetic)


def _whole_convolution(layer: nn.Conv2d, x: Tensor, padding: tuple[int, int]) -> Tensor:
    """By torch's own operator, which on the CPU in float64 is a product with gathered patches."""
    settings = (layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)
    # The patches take many times the room of a sample.
    at_once = max(1, _PATCHES // (layer.weight[0].numel() * x[0, 0].numel()))
    if len(x) <= at_once:
        return functional.conv2d(x, *settings)
    return gathered(len(x), (functional.conv2d(part, *settings) for part in x.split(at_once)))


def _product_of_patches(
    layer: nn.Conv2d, x: Tensor, padding: tuple[int, int], arithmetic: Arithmetic
) -> Tensor:
    # The weight's own size: the attribute may have been set since.
    kernel_size, dilation, stride = layer.weight.shape[2:], layer.dilation, layer.stride
    sides = zip(x.shape[2:], kernel_size, dilation, stride, padding, strict=True)
    height, width = ((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, d, s, p in sides)
    outputs, block = [], arithmetic.block or layer.weight[0].numel()
    for group, weight in zip(x.chunk(layer.groups, 1), layer.weight.chunk(layer.groups), strict=True):
        columns = functional.unfold(group, kernel_size, dilation, padding, stride)
        blocks = zip(columns.split(block, 1), weight.flatten(1).split(block, 1), strict=True)
        outputs.append(_added_in_pairs(matrix @ part for part, matrix in blocks))
    result = torch.cat(outputs, 1) if layer.groups > 1 else outputs[0]
    if layer.bias is not None:
        result += layer.bias[:, None]
    return result.view(*result.shape[:2], height, width)


def _direct_convolution(
    layer: nn.Conv2d, x: Tensor, padding: tuple[int, int], arithmetic: Arithmetic
) -> Tensor:
    """By the operator that is oneDNN's direct algorithm whatever the batch and the switches are."""
    channels = arithmetic.channels_at_once(layer.weight.shape[1], layer.weight[0, 0].numel())
    blocks = zip(x.split(channels, 1), layer.weight.split(channels, 1), strict=True)

    def convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        return torch.mkldnn_convolution(x, weight, bias, padding, layer.stride, layer.dilation, 1)

    biases = itertools.chain((layer.bias,), itertools.repeat(None))
    return _added_in_pairs(
        convolved(part, weight, bias) for (part, weight), bias in zip(blocks, biases, strict=False)
    )


# Layers whose own forward pass is not, or not fast, what the rules speak of; all others are called.
_EVALUATIONS: dict[type, Callable[[Any, Tensor, Arithmetic], Tensor]] = {
    GroupSort2: _group_sort2,
    Residual: _residual,
    nn.Conv2d: _conv2d,
    nn.Linear: _linear,
    nn.Sequential: _sequential,
}
