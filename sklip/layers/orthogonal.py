r"""How a free matrix becomes, and stays, a semi-orthogonal one.

Note [Retraction]
-----------------
A constrained layer keeps its raw matrices :math:`W` (m rows, n columns, m <= n; the
transpose otherwise) on the set :math:`W W^T = I`. An optimiser step leaves that set by a
little and :func:`retract_` brings the matrix back with Newton-Schulz iterations

.. math:: W \leftarrow \tfrac32 W - \tfrac12 W W^T W ,

which act on each singular value alone, s -> 1.5 s - 0.5 s^3: values in (0, sqrt 3) go to 1
quadratically and a value in [0, 2] is at most 1 afterwards. Beyond sqrt 5 they diverge, so a
matrix that an over-long step has carried away is divided first by an upper bound on its norm,
:math:`\|W\|^2 \le 1 + \|W W^T - I\|_F`. Only products of the m x m Gram matrix are iterated;
the long matrix is read once and written once, whatever the number of iterations.

This costs less than the same iterations inside the autograd graph, which must be computed
again in every forward pass and differentiated in every backward pass.

Note [Tangent gradients]
------------------------
Most of the raw gradient G usually points off the constraint set: a loss with margins always wants
longer weights. Adam would scale its steps by that part, which the retraction then takes away, and
progress along the set would be slow. So the gradient is projected on the tangent space first,

.. math:: G \leftarrow G - \tfrac12 (G W^T + W G^T) W .

Gradients that have passed through an orthogonalisation in the graph come out like that by
themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sklip.layers.matmul import plus_product, times, times_transposed

__all__ = [
    "OrthogonalLayer",
    "keep_orthogonal",
    "orthogonal_init_",
    "polish_",
    "project_gradients_",
    "retract_",
]

# Above this squared norm a Newton-Schulz step may flip signs: sqrt 3 is the edge.
_SAFE_SQUARED_NORM = 2.9
# Least ratio of the eigenvalues of a Gram matrix of which ten digits are right.
_WELL_CONDITIONED = 1e-6


class OrthogonalLayer(nn.Module):
    """Base of the layers whose raw matrices are kept semi-orthogonal.

    A subclass says by :meth:`orthogonal_parameters` which of its parameters are concerned. They
    are orthogonal from the start and remain so as long as :func:`retract_` follows each optimiser
    step, or the optimiser is :class:`sklip.training.StiefelMuon`.
    """

    def orthogonal_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters, of shape (rows, columns) or (batch, rows, columns)."""
        raise NotImplementedError

    def interval_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that are kept between 0 and 1."""
        yield from ()


def orthogonal_init_(matrix: Tensor) -> Tensor:
    """Fill `matrix`, shape (..., rows, columns), in place with random semi-orthogonal matrices.

    The distribution is the uniform (Haar) one; the numbers come from torch's default generator.
    """
    with torch.no_grad():
        rows, columns = matrix.shape[-2:]
        wide = rows <= columns
        shape = (*matrix.shape[:-2], max(rows, columns), min(rows, columns))
        gaussian = torch.randn(shape, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        # Without the signs of R's diagonal, QR's Q is not uniformly distributed.
        q = q * torch.diagonal(r, dim1=-2, dim2=-1).sign().unsqueeze(-2)
        return matrix.copy_(q.transpose(-2, -1) if wide else q)


def _retracted(matrices: Tensor) -> Tensor:
    """Newton-Schulz iterations on a batch of matrices with rows <= columns."""
    return times(retraction_factor(times_transposed(matrices, matrices)), matrices)


def retraction_factor(gram: Tensor) -> Tensor:
    """Return the matrix that brings W back to orthogonality from the left, given W W^T."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    # Three upper bounds on ||G|| = ||W||^2: by distance from I, Frobenius, Gershgorin's row sums.
    squared_norm_upper = torch.minimum(
        1 + torch.linalg.matrix_norm(gram - eye, keepdim=True),
        torch.minimum(
            torch.linalg.matrix_norm(gram, keepdim=True),
            gram.abs().sum(-1, keepdim=True).amax(-2, keepdim=True),
        ),
    )
    # No branch on the value: that would stall a GPU.
    scale = torch.where(squared_norm_upper <= _SAFE_SQUARED_NORM, 1.0, squared_norm_upper.rsqrt())
    return two_newton_schulz_steps(gram * scale.square()) * scale


def two_newton_schulz_steps(gram: Tensor) -> Tensor:
    r"""Return what :func:`retraction_factor` does where all singular values of W are below sqrt 3.

    With :math:`E = I - W W^T`, two iterations multiply W by
    :math:`I + \tfrac12 E + \tfrac38 E^2 + \tfrac5{16} E^3 + \tfrac1{16} E^4`.
    """
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    error = eye - gram
    square = error @ error
    quadratic = torch.add(eye, error, alpha=1 / 2).add_(square, alpha=3 / 8)
    return plus_product(quadratic, square, (5 / 16 * error).add_(square, alpha=1 / 16))


def _orthogonal_layers(module: nn.Module) -> Iterator[OrthogonalLayer]:
    for child in module.modules():
        if isinstance(child, OrthogonalLayer):
            yield child


def _batched_by_shape(
    module: nn.Module,
) -> Iterator[tuple[list[Tensor], list[Tensor | None]]]:
    """Yield matrices of one shape with their gradients, as views with rows <= columns."""
    groups: dict[tuple[Any, ...], tuple[list[Tensor], list[Tensor | None]]] = {}
    for layer in _orthogonal_layers(module):
        for parameter in layer.orthogonal_parameters():
            matrices = _wide(parameter.detach())
            key = (*matrices.shape[-2:], matrices.dtype, matrices.device)
            members, gradients = groups.setdefault(key, ([], []))
            members.append(matrices)
            gradients.append(None if parameter.grad is None else _wide(parameter.grad))
    yield from groups.values()


def _stack(members: list[Tensor]) -> Tensor:
    return members[0] if len(members) == 1 else torch.cat(members)


def _unstack(batch: Tensor, members: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(members, batch.split([len(member) for member in members]), strict=True)


@torch.no_grad()
def retract_(module: nn.Module) -> nn.Module:
    r"""Bring every constrained matrix in `module` back to :math:`W W^T = I`, in place.

    And what has to lie between 0 and 1 back to there. Call it after each optimiser step, or let
    :func:`keep_orthogonal` do so. Matrices of one shape are treated in one batch. See Note
    [Retraction].

    Parameters
    ----------
    module : torch.nn.Module
        Any module; its sub-modules that are :class:`OrthogonalLayer` are brought back.

    Returns
    -------
    module : torch.nn.Module
        The same object.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import SpectralLinear, retract_
    >>> layer = SpectralLinear(4, 2)
    >>> with torch.no_grad():
    ...     _ = layer.weight.mul_(1.1)
    >>> bool(torch.linalg.matrix_norm(retract_(layer).weight, ord=2) <= 1.0001)
    True
    """
    for members, _ in _batched_by_shape(module):
        for member, part in _unstack(_retracted(_stack(members)), members):
            member.copy_(part)
    for layer in _orthogonal_layers(module):
        for parameter in layer.interval_parameters():
            parameter.clamp_(0.0, 1.0)
    return module


@torch.no_grad()
def project_gradients_(module: nn.Module) -> nn.Module:
    r"""Project the gradients of the constrained matrices on the tangent space, in place.

    Call it between the backward pass and the optimiser step, or let :func:`keep_orthogonal` do so.
    See Note [Tangent gradients].

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    module : torch.nn.Module
        The same object.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import SpectralLinear, project_gradients_
    >>> layer = SpectralLinear(4, 2)
    >>> (layer.weight**2).sum().backward()  # constant on the constraint: nothing to gain
    >>> bool(project_gradients_(layer).weight.grad.abs().max() < 1e-5)
    True
    """
    for members, gradients in _batched_by_shape(module):
        pairs = [(m, g) for m, g in zip(members, gradients, strict=True) if g is not None]
        if not pairs:
            continue
        kept = [gradient for _, gradient in pairs]
        matrices, gradient = _stack([matrix for matrix, _ in pairs]), _stack(kept)
        inner = times_transposed(gradient, matrices)
        tangent = gradient - times((inner + inner.mT) / 2, matrices)
        for member, part in _unstack(tangent, kept):
            member.copy_(part)
    return module


def keep_orthogonal(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Have each step of `optimizer` project the gradients first and retract the weights after.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Optimiser of the parameters of `module`.
    module : torch.nn.Module

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import SpectralLinear, keep_orthogonal
    >>> layer = SpectralLinear(4, 2)
    >>> optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    >>> keep_orthogonal(optimizer, layer)
    >>> layer(torch.ones(1, 4)).sum().backward()
    >>> _ = optimizer.step()
    >>> bool(torch.linalg.matrix_norm(layer.weight, ord=2) <= 1.01)
    True
    """

    def before_step(*_: Any) -> None:
        project_gradients_(module)

    def after_step(*_: Any) -> None:
        retract_(module)

    optimizer.register_step_pre_hook(before_step)
    optimizer.register_step_post_hook(after_step)


@torch.no_grad()
def polish_(module: nn.Module) -> nn.Module:
    """Bring every constrained matrix to orthogonality up to the rounding of its dtype, in place.

    Meant for the end of training: each matrix is replaced by a polar factor, computed in float64. One
    of lower rank is completed. What has to lie between 0 and 1 is brought there.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    module : torch.nn.Module
        The same object.
    """
    for layer in _orthogonal_layers(module):
        for parameter in layer.orthogonal_parameters():
            wide = _wide(parameter)
            # A factor from small eigenvalues is inexact; one iteration mends that.
            wide.copy_(_retracted(_polar_factor(wide.double())))
        for parameter in layer.interval_parameters():
            parameter.clamp_(0.0, 1.0)
    return module


def _polar_factor(matrices: Tensor) -> Tensor:
    """Return semi-orthogonal matrices next to those of a batch in float64, with rows <= columns."""
    largest = matrices.abs().amax((-2, -1), keepdim=True)
    # Multiples have the same factor, and products of these neither overflow nor vanish.
    matrices = matrices / torch.where(largest > 0, largest, 1.0)
    eigenvalues, vectors = torch.linalg.eigh(matrices @ matrices.mT)
    if (eigenvalues[..., 0] > _WELL_CONDITIONED * eigenvalues[..., -1]).all():
        left, right = (vectors * eigenvalues.rsqrt().unsqueeze(-2)) @ vectors.mT, matrices
    else:
        # Of small singular values a Gram matrix holds nothing but rounding.
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    return times(left, right)


def _wide(matrices: Tensor) -> Tensor:
    """The same matrices as a batch, a view with rows <= columns."""
    matrices = matrices if matrices.ndim == 3 else matrices.unsqueeze(0)
    return matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
