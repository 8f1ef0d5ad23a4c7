r"""Chains of layers, and the small maps that stand between them."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from sklip.layers.checks import check_positive, layer_constant

__all__ = ["Center", "Scale", "Sequential", "to_torch"]


class Center(nn.Module):
    r"""Translation :math:`x \mapsto x - c` by a fixed c: an isometry.

    A sorting network whose inputs lie far from zero starts as a linear map, because no pair ever
    changes its order. Subtracting the mean of the training data cures that at no cost in
    robustness: distances do not change.

    Parameters
    ----------
    n_features : int
        Length of c, which is zero until ``center`` is filled.
    """

    k = 1.0
    center: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(n_features))

    def forward(self, x: Tensor) -> Tensor:
        """Subtract c from each row."""
        if x.shape[-1] != len(self.center):
            raise ValueError(
                f"rows must have {len(self.center)} values, got an input of shape {tuple(x.shape)}."
            )
        return x - self.center


class Scale(nn.Module):
    r"""Multiplication by a positive constant k: a map of Lipschitz constant k."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = check_positive("k", k)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by k."""
        return self.k * x

    def extra_repr(self) -> str:
        """Show the constructor's arguments."""
        return f"k={self.k}"


class Sequential(nn.Sequential):
    r"""Layers one after another, with Lipschitz constant k for the whole chain.

    .. math:: f = \frac{k}{\prod_i k_i} \; f_n \circ \dots \circ f_1 ,

    where :math:`k_i` is the constant of layer i (of a :class:`Residual`: 1 plus the product of those in
    its branch). The factor is worked out from the layers as they are at the call, so it can't be out of
    step with them.

    Parameters
    ----------
    *layers : torch.nn.Module
        Layers of :mod:`sklip.layers`.
    k : float, default=1.0
        Lipschitz constant in L2 of the whole chain.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import Sequential, SpectralLinear
    >>> net = Sequential(SpectralLinear(3, 3, bias=False, k=7.0), k=5.0)
    >>> round(float(net(torch.tensor([[1.0, 0.0, 0.0]])).norm().detach()), 4)
    5.0
    """

    def __init__(self, *layers: nn.Module, k: float = 1.0) -> None:
        for layer in layers:
            layer_constant(layer)
        super().__init__(*layers)
        self.k = check_positive("k", k)

    @property
    def factor(self) -> float:
        """The factor that brings the product of the layers' constants to k."""
        return self.k / math.prod(layer_constant(layer) for layer in self)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers, then the factor that makes the constant k."""
        factor = self.factor
        x = super().forward(x)  # type: ignore[no-untyped-call]
        return x if factor == 1.0 else factor * x

    def to_torch(self) -> nn.Sequential:
        """Return the plain ``nn.Sequential`` that computes the same function."""
        factor = self.factor
        layers = [to_torch(layer) for layer in self]
        return nn.Sequential(*layers, *([] if factor == 1.0 else [Scale(factor)]))


def to_torch(module: nn.Module) -> nn.Module:
    """Return an independent copy of `module` in which sklip's constrained layers are plain ones.

    A layer with a method ``to_torch`` is replaced by what that returns; any other module is copied
    and its children are treated in the same way.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    plain : torch.nn.Module
        The same function, built from ``nn.Linear``, ``nn.Conv2d`` and parameter-free layers.
    """
    export = getattr(module, "to_torch", None)
    if export is not None:
        return export()  # type: ignore[no-any-return]
    plain = copy.deepcopy(module)
    # _modules, since named_children leaves out the second place of a layer that is used twice.
    for name, child in module._modules.items():
        if child is not None:
            setattr(plain, name, to_torch(child))
    return plain
