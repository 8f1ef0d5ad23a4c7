r"""Products of matrices by the faster of the kernels that torch has.

Behind ``@`` and ``functional.linear`` in float32 on the CPU stands a BLAS library, which uses the
widest vector instructions on its maker's processors only. oneDNN, behind ``functional.conv2d``, uses
them on all, and a convolution with a kernel of one pixel is a product of matrices: large products took
0.6 times as long that way (AMD EPYC, two threads, torch 2.13).
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["linear", "plus_product", "times", "times_transposed"]

# Multiplications from which the detour pays.
_LARGE = 2**24
# With fewer values than this, or on one thread, torch would not send the convolution to oneDNN.
_FEWEST_VALUES = 20_481
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.mT + bias``, as ``functional.linear`` does, also of a batch of matrices.

    Parameters
    ----------
    x : Tensor of shape (..., in_features)
    weight : Tensor of shape (out_features, in_features) or (batch, out_features, in_features)
    bias : Tensor of shape (out_features,) or (batch, out_features), or None

    Returns
    -------
    y : Tensor of shape (..., out_features)
    """
    if weight.ndim == 3:
        x = x.expand(len(weight), *x.shape[-2:])
        return x @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)
    if not _pays(x, weight, weight.shape[0]):
        return functional.linear(x, weight, bias)
    # Rows are pixels, and their values channels, in the order of memory that is called channels_last.
    pixels = x.view(1, 1, *x.shape).permute(0, 3, 1, 2)
    out = functional.conv2d(pixels, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(len(x), len(weight))


def times_transposed(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right.mT``, for matrices or batches of them."""
    if left.ndim == right.ndim == 3 and len(left) == 1:
        return linear(left[0], right[0])[None]
    return linear(left, right) if right.ndim == 2 else left @ right.mT


def times(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right``, for matrices or batches of them."""
    if left.ndim == right.ndim == 3 and len(left) == 1:
        return times(left[0], right[0])[None]
    if not _pays(right, left, left.shape[0]):
        return left @ right
    # Columns are pixels, and rows channels.
    out = functional.conv2d(right[None, :, None, :], left[:, :, None, None])
    return out.view(len(left), right.shape[1])


def plus_product(
    base: Tensor, left: Tensor, right: Tensor, *, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """Return ``beta * base + alpha * left @ right``, for matrices or batches of them."""
    add = torch.addmm if left.ndim == 2 else torch.baddbmm
    return add(base, left, right, beta=beta, alpha=alpha)


def _pays(pixels: Tensor, kernel: Tensor, n_outputs: int) -> bool:
    """Whether the convolution is the faster way for these matrices."""
    return (
        pixels.dtype == kernel.dtype == torch.float32
        and _HAS_ONEDNN
        # A trace is to hold for any number of rows.
        and not torch.compiler.is_compiling()
        and pixels.ndim == kernel.ndim == 2
        and pixels.device.type == "cpu"
        and pixels.numel() >= _FEWEST_VALUES
        and pixels.numel() * n_outputs >= _LARGE
        and torch.get_num_threads() > 1
        and pixels.is_contiguous()
        and kernel.is_contiguous()
    )
