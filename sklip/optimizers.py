r"""The optimiser of the constrained matrices: momentum, orthogonalised.

Note [Orthogonalised steps]
---------------------------
A constrained matrix W has all singular values 1, and an Adam step moves its directions by very
different amounts: those along which gradients are small hardly turn at all, yet a certificate needs
every one of them. So the momentum is replaced by the orthogonal matrix next to it, as Muon does, and
each step turns all directions by nearly the same small angle: the learning rate, whatever the
matrix's size.

The orthogonal matrix next to M is :math:`(M M^T)^{-1/2} M`. Its first factor comes from a few
iterations of a polynomial on the Gram matrix, whose first coefficient lifts small singular
values fast and which leaves them between 0.7 and 1.2: enough for a direction.

Note [Five products]
--------------------
For a wide layer only the products with as many terms as W has columns cost anything. Let V be the
momentum, looked ahead, :math:`A = V W^T`, S its symmetric part and :math:`K = W W^T`, which is I up to
rounding. With the tangent part of V, :math:`U = V - S W`,

.. math:: U U^T = V V^T - A S - S A^T + S K S, \qquad W U^T = A^T - K S .

So the orthogonalising factor T, the matrix :math:`W' W'^T` after the step :math:`W' = W - \eta T U`,
and from it the factor C that brings W' back to the constraint, all come from matrices as small as W
has rows. The result :math:`C W' = (C + \eta C T S) W - \eta C T V` takes two more products: five, where
projecting, orthogonalising and retracting one after another would take six. To save another one and
take K for I is unstable: where V is mostly normal, S W then takes away another normal part than V has,
and the error grows from step to step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sklip.layers import OrthogonalLayer
from sklip.layers.orthogonal import retraction_factor

__all__ = ["OrthogonalMomentum"]

# Quintic of Jordan et al. (2024): made for a steep start, it lifts small singular values fast.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 4
# Share of the rate in Adam's part: biases are in the units of X, constrained matrices move by angles.
_FREE_RATE = 0.1


class OrthogonalMomentum(torch.optim.Optimizer):
    r"""Momentum with orthogonalised steps for constrained matrices, Adam for all other parameters.

    Each step turns every direction of a constrained matrix by an angle of about `lr`, so one rate suits
    all widths. A constrained matrix has to be orthogonal at the start and is so after every step.

    Parameters
    ----------
    module : torch.nn.Module
        Module whose parameters to train; those of :class:`sklip.layers.OrthogonalLayer` are the
        constrained ones.
    lr : float, default=0.03
        Length of a step of a constrained matrix in the spectral norm; a tenth of it is Adam's rate.
    momentum : float, default=0.9
        Nesterov momentum of the constrained matrices.
    betas : (float, float), default=(0.9, 0.99)
        Adam's decay rates.

    References
    ----------
    Jordan et al. (2024), Muon: an optimizer for hidden layers in neural networks. Bernstein (2025),
    Modular manifolds.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import SpectralLinear
    >>> from sklip.optimizers import OrthogonalMomentum
    >>> layer = SpectralLinear(4, 2)
    >>> before = layer.weight.detach().clone()
    >>> optimizer = OrthogonalMomentum(layer, lr=0.1)
    >>> layer(torch.eye(4)).square().sum(0)[0].backward()
    >>> optimizer.step()
    >>> bool(torch.linalg.matrix_norm(layer.weight - before, ord=2) < 0.13)
    True
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float = 0.03,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        constrained = [
            parameter
            for layer in module.modules()
            if isinstance(layer, OrthogonalLayer)
            for parameter in layer.orthogonal_parameters()
        ]
        known = {id(parameter) for parameter in constrained}
        free = [parameter for parameter in module.parameters() if id(parameter) not in known]
        groups: list[dict[str, Any]] = [
            {"params": constrained, "constrained": True, "share": 1.0, "lr": lr},
            {"params": free, "constrained": False, "share": _FREE_RATE, "lr": _FREE_RATE * lr},
        ]
        defaults = {"lr": lr, "momentum": momentum, "betas": betas}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient.

        Parameters
        ----------
        closure : callable, default=None
            Function that computes the gradients anew and returns the loss.

        Returns
        -------
        loss : object
            What `closure` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = _turn_ if group["constrained"] else _adam_
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, self.state[parameter], group)
        return loss


def _turn_(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Turn a matrix, or a batch of them, by the orthogonalised momentum. See Note [Five products]."""
    if not state:
        state["momentum"] = torch.zeros_like(parameter)
    momentum = state["momentum"].mul_(group["momentum"]).add_(gradient)
    ahead = torch.add(gradient, momentum, alpha=group["momentum"])
    # Only its direction counts, and its square must not overflow.
    size = ahead.abs().amax((-2, -1), keepdim=True)
    ahead /= size.clamp(min=torch.finfo(size.dtype).tiny)
    wide = parameter.shape[-2] <= parameter.shape[-1]
    W, V = (parameter, ahead) if wide else (parameter.mT, ahead.mT)
    rate = group["lr"]

    inner, product, gram = V @ W.mT, W @ W.mT, V @ V.mT
    normal = (inner + inner.mT) / 2
    mixed = inner @ normal
    # Rounding could leave negative eigenvalues where the normal part is most of V.
    tangent = _lifted(gram - mixed - mixed.mT + normal @ product @ normal, gram)
    root = _inverse_root(tangent)
    turned = root @ (inner - normal @ product)
    # Not the square of the rate, which may overflow as a number of Python.
    moved = product - rate * (turned + turned.mT - rate * (root @ tangent @ root))
    factor = retraction_factor(moved)
    step = rate * (factor @ root)
    result = (factor + step @ normal) @ W - step @ V
    parameter.copy_(result if wide else result.mT)


def _lifted(matrix: Tensor, scale: Tensor) -> Tensor:
    """Add to the diagonal of a symmetric matrix what rounding at the size of `scale` may have taken."""
    lift = 8 * torch.finfo(matrix.dtype).eps * torch.linalg.matrix_norm(scale, keepdim=True)
    # The matrix of a gradient of zero must stay invertible, and its norm above zero.
    lift = lift.clamp(min=torch.finfo(matrix.dtype).eps ** 2)
    matrix.diagonal(dim1=-2, dim2=-1).add_(lift.squeeze(-1))
    return matrix


def _inverse_root(gram: Tensor) -> Tensor:
    """Factor F for which F M has singular values near 1, from M M^T."""
    # The Frobenius norm bounds the largest eigenvalue, so the iteration starts within [0, 1].
    size = torch.linalg.matrix_norm(gram, keepdim=True)
    gram = gram / size
    total: Tensor | None = None
    for remaining in reversed(range(_ITERATIONS)):
        factor = _B * gram + _C * (gram @ gram)
        factor.diagonal(dim1=-2, dim2=-1).add_(_A)
        total = factor if total is None else factor @ total
        if remaining:
            gram = factor @ gram @ factor
    assert total is not None
    root: Tensor = total * size.rsqrt()
    return root


def _adam_(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Take a step of Adam."""
    if not state:
        state["step"] = 0
        state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    state["step"] += 1
    beta1, beta2 = group["betas"]
    mean = state["mean"].lerp_(gradient, 1 - beta1) / (1 - beta1 ** state["step"])
    square = state["square"].lerp_(gradient.square(), 1 - beta2) / (1 - beta2 ** state["step"])
    parameter.sub_(group["lr"] * mean / (square.sqrt() + 1e-8))
