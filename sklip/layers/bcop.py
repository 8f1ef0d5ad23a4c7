r"""Kernels of orthogonal convolutions, composed of two-tap filters.

Composed by autograd's own operations, a filter records some twenty small ones, which cost more than
their arithmetic: a tenth of a training step. Here it takes one product forward and two backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["composed"]


class _Composition(torch.autograd.Function):
    """Filter with [P, I - P] along one axis after the other, for P = R^T R of each basis R."""

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, bases: Tensor, axes: Sequence[int]) -> Tensor:
        projectors = bases.mT @ bases
        stages = []
        for axis, projector in zip(axes, projectors, strict=True):
            stages.append(kernel)
            kept, taps = kernel @ projector, kernel.shape[axis]
            shape = list(kernel.shape)
            shape[axis] += 1
            longer = kernel.new_zeros(shape)
            torch.sub(kernel, kept, out=longer.narrow(axis, 1, taps))
            longer.narrow(axis, 0, taps).add_(kept)
            kernel = longer
        ctx.axes = axes
        ctx.save_for_backward(bases, projectors, *stages)
        return kernel

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        bases, projectors, *stages = ctx.saved_tensors
        (grad,) = grad_outputs
        grads = torch.empty_like(projectors)
        for i in reversed(range(len(stages))):
            axis, kernel = ctx.axes[i], stages[i]
            taps = kernel.shape[axis]
            dropped = grad.narrow(axis, 1, taps)
            kept = grad.narrow(axis, 0, taps) - dropped
            torch.mm(kernel.flatten(0, 2).mT, kept.flatten(0, 2), out=grads[i])
            grad = (kept @ projectors[i]).add_(dropped)
        return grad, bases @ (grads + grads.mT), None


def composed(kernel: Tensor, bases: Tensor, axes: Sequence[int]) -> Tensor:
    r"""Return the kernel after a two-tap filter :math:`[R^T R, I - R^T R]` for each basis R.

    Parameters
    ----------
    kernel : Tensor of shape (height, width, out_channels, inner_channels)
    bases : Tensor of shape (n, rank, inner_channels)
    axes : sequence of n ints
        Axis that each filter makes longer by one tap: 0 or 1.

    Returns
    -------
    kernel : Tensor
        Of the same shape, but for the taps that were added.
    """
    if not axes:
        return kernel
    # Under autocast a kernel would be less orthogonal, for no gain in time.
    device = kernel.device.type
    in_full: AbstractContextManager[Any] = nullcontext()
    if torch.amp.is_autocast_available(device):
        in_full = torch.autocast(device, enabled=False)
    with in_full:
        return _Composition.apply(kernel, bases, axes)  # type: ignore[no-any-return, no-untyped-call]
