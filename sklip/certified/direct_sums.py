r"""The forward pass that predicts and that certificates speak of: direct sums, in a fixed precision.

Note [Direct sums]
------------------
A bound on rounding errors, gamma_n |W| |x| for a dot product of length n, holds for products that
are summed directly, in whatever order. It does not hold for Winograd or FFT convolutions, TF32 or
bfloat16 products, and torch may choose any of these behind nn.Conv2d and nn.Linear, depending on the
machine, the batch size and global switches. So the network is evaluated here by matrix products, and
by oneDNN's direct convolutions, which torch offers by name on the CPU in float32, where they serve for
large products as well (with a kernel of one pixel); elsewhere a convolution gathers its patches
(unfold) and is a product. Long sums are cut into blocks whose sums are added in pairs, which brings the
error of n terms in blocks of B from about n units down to B + log2(n / B).

No global switch is touched. Where one allows products of lower precision, float32 networks are
evaluated in float64 and the result is rounded.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sklip.certified.arithmetic import Arithmetic
from sklip.layers import GroupSort2, Residual
from sklip.layers.activation import sorted_pairs

__all__ = ["direct_forward", "flat_chain", "gathered"]

# Rows evaluated at once: bounds memory whatever the number of rows. Of maps only few fit the cache; a
# dense layer reads its weights once for all of them.
_ROWS = 128
_DENSE_ROWS = 1024
# Multiplications of a block from which oneDNN is faster than a product by BLAS.
_LARGE = 2**23
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch, "mkldnn_convolution")


def flat_chain(network: nn.Module) -> list[nn.Module]:
    """Return the layers of nested plain Sequentials, in order."""
    if type(network) is not nn.Sequential:
        return [network]
    return [layer for child in network for layer in flat_chain(child)]


@torch.no_grad()
def direct_forward(network: nn.Module, X: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Return ``network(X)``, computed by direct sums in batches of bounded size.

    Parameters
    ----------
    network : torch.nn.Module
        A plain network (see :func:`sklip.layers.to_torch`), in evaluation mode.
    X : Tensor of shape (n_samples, ...)
        In the network's precision.
    arithmetic : Arithmetic
        That precision, and the blocks of its sums.

    Returns
    -------
    outputs : Tensor of shape (n_samples, n_outputs)

    Examples
    --------
    >>> import torch
    >>> from sklip.certified.arithmetic import Arithmetic
    >>> from sklip.certified.direct_sums import direct_forward
    >>> direct_forward(torch.nn.Flatten(), torch.ones(2, 1, 2), Arithmetic()).shape
    torch.Size([2, 2])
    """
    if X.dtype == torch.float32 and not _float32_products_are_float32():
        # Sums in float64 lose less than those in float32, however they are cut.
        return direct_forward(copy.deepcopy(network).double(), X.double(), arithmetic).to(X.dtype)
    layers = flat_chain(network)
    first = next((i for i, layer in enumerate(layers) if type(layer) is nn.Linear), len(layers))

    def outputs(rows: Tensor) -> Tensor:
        # Copies: a first layer that works in place must not reach the caller's X.
        features = (_through(layers[:first], part.clone(), arithmetic) for part in rows.split(_ROWS))
        gathered_features = gathered(len(rows), features)
        # Maps, on which a dense layer may work as well, would take too much memory.
        parts = gathered_features.split(_DENSE_ROWS if gathered_features.ndim == 2 else _ROWS)
        return gathered(len(rows), (_through(layers[first:], part, arithmetic) for part in parts))

    with torch.autocast(X.device.type, enabled=False):
        return gathered(len(X), (outputs(rows) for rows in X.split(_DENSE_ROWS)))


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


def _through(layers: Iterable[nn.Module], x: Tensor, arithmetic: Arithmetic) -> Tensor:
    for layer in layers:
        evaluate = _EVALUATIONS.get(type(layer))
        x = layer(x) if evaluate is None else evaluate(layer, x, arithmetic)
    return x


def _residual(layer: Residual, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    return layer.join(x, _through(layer, x.clone(), arithmetic))


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
    # Grouped ones go the general way: their blocks would differ from group to group.
    by_onednn = layer.groups == 1 and _by_onednn(x)
    if by_onednn and layer.padding_mode == "zeros" and (left, top) == (right, bottom):
        return _direct_convolution(layer, x, (top, left), arithmetic)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = functional.pad(x, (left, right, top, bottom), mode=mode)
    if by_onednn:
        return _direct_convolution(layer, x, (0, 0), arithmetic)
    # The weight's own size: the attribute may have been set since.
    kernel_size, dilation, stride = layer.weight.shape[2:], layer.dilation, layer.stride
    sides = zip(x.shape[2:], kernel_size, dilation, stride, strict=True)
    height, width = ((side - d * (k - 1) - 1) // s + 1 for side, k, d, s in sides)
    outputs, block = [], arithmetic.block
    for group, weight in zip(x.chunk(layer.groups, 1), layer.weight.chunk(layer.groups), strict=True):
        columns = functional.unfold(group, kernel_size, dilation, 0, stride)
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


def _sequential(layer: nn.Sequential, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    return _through(layer, x, arithmetic)


# Layers whose own forward pass is not, or not fast, what the rules speak of; all others are called.
_EVALUATIONS: dict[type, Callable[[Any, Tensor, Arithmetic], Tensor]] = {
    GroupSort2: _group_sort2,
    Residual: _residual,
    nn.Conv2d: _conv2d,
    nn.Linear: _linear,
    nn.Sequential: _sequential,
}
