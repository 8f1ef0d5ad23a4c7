r"""Pooling layers of a fixed Lipschitz constant."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sklip.layers.checks import check_positive, pair

__all__ = ["ScaledAvgPool2d", "ScaledL2NormPool2d"]


class _L2NormPool(torch.autograd.Function):
    """L2 norm of each window. The gradient at a window of zeros is taken as zero.

    Pixels at one place of all windows are a strided view. A pass over each is faster than torch's own
    pooling and than spreading the norms over the map.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
        norm = _window_norms(x, kernel_size)
        ctx.save_for_backward(x, norm)
        ctx.kernel_size = kernel_size
        return norm

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        x, norm = ctx.saved_tensors
        # Where the norm is zero, so are the pixels: what they are multiplied by must be finite.
        scale = grad_outputs[0] / norm.clamp_min(1e-20)
        # Rows and columns that fill no window have no influence.
        grad = torch.zeros_like(x)
        pixels = zip(_places(x, ctx.kernel_size), _places(grad, ctx.kernel_size), strict=True)
        for pixel, pixel_grad in pixels:
            torch.mul(pixel, scale, out=pixel_grad)
        return grad, None


def _places(x: Tensor, kernel_size: tuple[int, int]) -> list[Tensor]:
    """Views of the first, second, ... pixel of all windows."""
    height, width = kernel_size
    rows, columns = x.shape[-2] // height, x.shape[-1] // width
    full = x[..., : rows * height, : columns * width]
    return [full[..., i::height, j::width] for i in range(height) for j in range(width)]


def _window_norms(x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    height, width = kernel_size
    rows, columns = x.shape[-2] // height, x.shape[-1] // width
    # Rows before columns: they lie whole in memory, and leave fewer values for the strided pass.
    first, *others = (x[..., i : rows * height : height, : columns * width] for i in range(height))
    squares = first.square()
    for row in others:
        squares.addcmul_(row, row)
    return functools.reduce(torch.add, (squares[..., j::width] for j in range(width))).sqrt_()


class _Pool(nn.Module):
    """What the two pools share: windows that do not overlap, a constant k."""

    def __init__(self, kernel_size: int | tuple[int, int] = 2, *, k: float = 1.0) -> None:
        super().__init__()
        self.kernel_size = pair("kernel_size", kernel_size)
        self.k = check_positive("k", k)

    def extra_repr(self) -> str:
        """Show the constructor's arguments."""
        return f"kernel_size={self.kernel_size}, k={self.k}"


class ScaledL2NormPool2d(_Pool):
    r"""L2 norm of each window, times k: k-Lipschitz, and it keeps the norm up to k.

    Windows do not overlap; rows and columns left over at the end are dropped.

    Parameters
    ----------
    kernel_size : int or (int, int), default=2
    k : float, default=1.0
        Lipschitz constant in L2.

    References
    ----------
    Boureau, Ponce, LeCun (2010), A theoretical analysis of feature pooling in visual recognition.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import ScaledL2NormPool2d
    >>> ScaledL2NormPool2d(2)(torch.full((1, 1, 2, 2), 3.0))
    tensor([[[[6.]]]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, H, W) to (n, channels, H // kh, W // kw)."""
        if x.requires_grad and torch.is_grad_enabled():
            norm: Tensor = _L2NormPool.apply(x, self.kernel_size)  # type: ignore[no-untyped-call]
        else:
            norm = _window_norms(x, self.kernel_size)
        return norm if self.k == 1.0 else self.k * norm


class ScaledAvgPool2d(_Pool):
    r"""Mean of each window, times :math:`k \sqrt{k_h k_w}`: a linear map of norm k.

    Windows do not overlap; rows and columns left over at the end are dropped.

    Parameters
    ----------
    kernel_size : int or (int, int), default=2
    k : float, default=1.0
        Lipschitz constant in L2.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import ScaledAvgPool2d
    >>> ScaledAvgPool2d(2)(torch.full((1, 1, 2, 2), 3.0))
    tensor([[[[6.]]]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, H, W) to (n, channels, H // kh, W // kw)."""
        scale = self.k * math.sqrt(math.prod(self.kernel_size))
        return functional.avg_pool2d(x, self.kernel_size) * scale
