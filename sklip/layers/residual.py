r"""Layers with a way around them."""

from __future__ import annotations

import math

from torch import Tensor, nn

from sklip.layers.checks import layer_constant

__all__ = ["Residual"]


class Residual(nn.Sequential):
    r"""The map :math:`x \mapsto x + f(x)`, with Lipschitz constant 1 + L for a chain f of constant L.

    The shape of f(x) must be that of x. Inside :class:`Sequential`, whose factor brings the product of
    all constants to k, two 1-Lipschitz ways become the mean :math:`\tfrac12 (x + f(x))`.

    Parameters
    ----------
    *layers : torch.nn.Module
        The chain f.

    Raises
    ------
    ValueError
        In the forward pass, if the shapes of f(x) and x differ.

    References
    ----------
    He et al. (2016), Deep residual learning for image recognition, arXiv 1512.03385.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import GroupSort2, Residual
    >>> Residual(GroupSort2())(torch.tensor([[3.0, 1.0]]))
    tensor([[4., 4.]])
    """

    @property
    def k(self) -> float:
        """The constant 1 + L, from the constants that the layers of f are made for."""
        return 1 + math.prod(layer_constant(layer) for layer in self)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + f(x)."""
        # On a copy: a layer of f that works in place must not reach x.
        return self.join(x, super().forward(x.clone()))  # type: ignore[no-untyped-call]

    @staticmethod
    def join(x: Tensor, branch: Tensor) -> Tensor:
        """Return the sum of x and f(x), which must not be broadcast."""
        if branch.shape != x.shape:
            raise ValueError(
                "Residual needs layers that keep the shape of their input, got an output of shape "
                f"{tuple(branch.shape)} for an input of shape {tuple(x.shape)}."
            )
        return x + branch
