r"""Sorting activations: 1-Lipschitz, and gradient-norm preserving where they are smooth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sklip.layers.checks import check_positive_int

__all__ = ["FullSort", "GroupSort", "GroupSort2", "sorted_pairs"]


def sorted_pairs(x: Tensor) -> Tensor:
    """Sort each pair of channels, without a temporary; neither autograd nor transforms follow it.

    Parameters
    ----------
    x : Tensor of shape (n, channels, ...)

    Returns
    -------
    y : Tensor
        Of the same shape.
    """
    pairs = x.unflatten(1, (-1, 2))
    first, second = pairs.unbind(2)
    out = torch.empty_like(pairs)
    torch.minimum(first, second, out=out.select(2, 0))
    torch.maximum(first, second, out=out.select(2, 1))
    return out.flatten(1, 2)


class _SortPairs(torch.autograd.Function):
    """Sort neighbouring channels, and their gradients in the same way.

    The mask of swapped pairs is kept in floating point: interpolation with a weight of 0 or 1 is exact,
    and several times faster than ``torch.where``, which has no vector code on the CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        first, second = x.unflatten(1, (-1, 2)).unbind(2)
        difference = first - second
        ctx.save_for_backward(torch.gt(difference, 0, out=difference))
        return sorted_pairs(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (swapped,) = ctx.saved_tensors
        grads = grad_outputs[0].unflatten(1, (-1, 2))
        low, high = grads.unbind(2)
        result = torch.empty_like(grads)
        torch.lerp(low, high, swapped, out=result.select(2, 0))
        torch.lerp(high, low, swapped, out=result.select(2, 1))
        return result.flatten(1, 2)


def _check_channels(x: Tensor, group_size: int) -> None:
    if x.ndim < 2 or x.shape[1] % group_size:
        raise ValueError(
            f"the number of channels must be a multiple of group_size={group_size}, got an input "
            f"of shape {tuple(x.shape)}; choose layer widths that group_size divides."
        )


class GroupSort2(nn.Module):
    r"""Sort each pair of channels, :math:`(a, b) \mapsto (\min(a, b), \max(a, b))`: 1-Lipschitz.

    Channels 2i and 2i + 1 (axis 1) form a pair. The map permutes its input, so it is 1-Lipschitz
    and preserves the norm of values and of gradients. Also known as MaxMin.

    References
    ----------
    Anil, Lucas, Grosse (2019), Sorting out Lipschitz function approximation, arXiv 1811.05381.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import GroupSort2
    >>> GroupSort2()(torch.tensor([[3.0, 1.0, 0.0, 2.0]]))
    tensor([[1., 3., 0., 2.]])
    """

    k = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Sort along axis 1 of an input of shape (n, channels, ...)."""
        _check_channels(x, 2)
        if x.requires_grad and torch.is_grad_enabled():
            return _SortPairs.apply(x)  # type: ignore[no-any-return, no-untyped-call]
        first, second = x.unflatten(1, (-1, 2)).unbind(2)
        return torch.stack((torch.minimum(first, second), torch.maximum(first, second)), 2).flatten(
            1, 2
        )


class GroupSort(nn.Module):
    r"""Sort the channels in groups of `group_size`: 1-Lipschitz.

    Parameters
    ----------
    group_size : int
        Channels in a group; it must divide the number of channels.

    References
    ----------
    Anil, Lucas, Grosse (2019), Sorting out Lipschitz function approximation, arXiv 1811.05381.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import GroupSort
    >>> GroupSort(4)(torch.tensor([[3.0, 1.0, 0.0, 2.0]]))
    tensor([[0., 1., 2., 3.]])
    """

    k = 1.0

    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.group_size = check_positive_int("group_size", group_size)

    def forward(self, x: Tensor) -> Tensor:
        """Sort along axis 1 of an input of shape (n, channels, ...)."""
        _check_channels(x, self.group_size)
        groups: Tensor = x.unflatten(1, (-1, self.group_size))
        return groups.sort(dim=2).values.flatten(1, 2)

    def extra_repr(self) -> str:
        """Show the constructor's arguments."""
        return f"group_size={self.group_size}"


class FullSort(nn.Module):
    r"""Sort all channels: 1-Lipschitz.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import FullSort
    >>> FullSort()(torch.tensor([[3.0, 1.0, 0.0]]))
    tensor([[0., 1., 3.]])
    """

    k = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Sort along axis 1 of an input of shape (n, channels, ...)."""
        _check_channels(x, 1)
        return x.sort(dim=1).values
