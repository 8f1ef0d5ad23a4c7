r"""Empirical lower bounds, to see how tight a proven upper bound is. No certificate rests on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["lipschitz_estimate"]


def lipschitz_estimate(module: nn.Module, X: Tensor) -> float:
    r"""Return the largest :math:`\|J(x)\|_2` over the rows of X: a lower bound on the constant.

    J is the Jacobian of `module`, computed row by row of the output by automatic differentiation.
    Beside :func:`sklip.lipschitz_bound`, which is never smaller, it shows how tight that bound is.

    Parameters
    ----------
    module : torch.nn.Module
        A network that treats the samples of a batch apart.
    X : Tensor of shape (n_samples, ...)
        Where to look: some rows of the data.

    Returns
    -------
    estimate : float

    Examples
    --------
    >>> import torch
    >>> from sklip.certified import lipschitz_estimate
    >>> linear = torch.nn.Linear(2, 2)
    >>> with torch.no_grad():
    ...     _ = linear.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    >>> lipschitz_estimate(linear, torch.zeros(1, 2))
    2.0
    """
    inputs = X.detach().clone().requires_grad_()
    with torch.enable_grad():
        outputs = module(inputs).flatten(1)
        gradients = [
            torch.autograd.grad(column.sum(), inputs, retain_graph=True)[0].flatten(1)
            for column in outputs.unbind(1)
        ]
    jacobians = torch.stack(gradients, 1)
    return float(torch.linalg.matrix_norm(jacobians, ord=2).max())
