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
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["OrthogonalLayer", "orthogonal_init_", "polish_", "retract_", "retract_after_step"]

# Two iterations bring singular values within 0.1 of one to 1 - 3e-4 at worst.
_STEPS_PER_UPDATE = 2
# Above this squared norm a Newton-Schulz step may flip signs: sqrt 3 is the edge.
_SAFE_SQUARED_NORM = 2.9


class OrthogonalLayer(nn.Module):
    """Base of the layers whose raw matrices are kept semi-orthogonal.

    A subclass says by :meth:`raw_matrices` which of its parameters are concerned. They are
    orthogonal from the start and remain so as long as :func:`retract_` follows each optimiser
    step.
    """

    def raw_matrices(self) -> Iterator[Tensor]:
        """Yield views, of shape (batch, rows, columns), of the matrices kept orthogonal."""
        raise NotImplementedError


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


def _retracted(matrices: Tensor, steps: int) -> Tensor:
    """Newton-Schulz iterations on a batch of matrices with rows <= columns."""
    gram = matrices @ matrices.mT
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
    gram = gram * scale.square()
    total = factor = 1.5 * eye - 0.5 * gram
    for _ in range(steps - 1):
        gram = factor @ gram @ factor
        factor = 1.5 * eye - 0.5 * gram
        total = factor @ total
    return (total * scale) @ matrices


def _orthogonal_layers(module: nn.Module) -> Iterator[OrthogonalLayer]:
    for child in module.modules():
        if isinstance(child, OrthogonalLayer):
            yield child


@torch.no_grad()
def retract_(module: nn.Module) -> nn.Module:
    r"""Bring every constrained matrix in `module` back to :math:`W W^T = I`, in place.

    Call it after each optimiser step (or let :func:`retract_after_step` do so). Matrices of one
    shape are treated in one batch. See Note [Retraction].

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
    groups: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for layer in _orthogonal_layers(module):
        for matrices in layer.raw_matrices():
            wide = _wide(matrices)
            groups[(*wide.shape[-2:], wide.dtype, wide.device)].append(wide)
    for members in groups.values():
        stacked = members[0] if len(members) == 1 else torch.cat(members)
        result = _retracted(stacked, _STEPS_PER_UPDATE)
        for member, part in zip(
            members, result.split([len(member) for member in members]), strict=True
        ):
            member.copy_(part)
    return module


def retract_after_step(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Have `optimizer` call ``retract_(module)`` at the end of each of its steps.

    Examples
    --------
    >>> import torch
    >>> from sklip.layers import SpectralLinear, retract_after_step
    >>> layer = SpectralLinear(4, 2)
    >>> optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    >>> retract_after_step(optimizer, layer)
    >>> layer(torch.ones(1, 4)).sum().backward()
    >>> _ = optimizer.step()
    >>> bool(torch.linalg.matrix_norm(layer.weight, ord=2) <= 1.01)
    True
    """

    def after_step(*_: Any) -> None:
        retract_(module)

    optimizer.register_step_post_hook(after_step)


@torch.no_grad()
def polish_(module: nn.Module) -> nn.Module:
    """Bring every constrained matrix to orthogonality up to the rounding of its dtype, in place.

    Meant for the end of training: each matrix is replaced by its polar factor, computed in float64
    from the eigenvectors of its Gram matrix. A singular value of zero stays zero, which is within
    the constraint.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    module : torch.nn.Module
        The same object.
    """
    for layer in _orthogonal_layers(module):
        for matrices in layer.raw_matrices():
            wide = _wide(matrices)
            precise = wide.double()
            eigenvalues, vectors = torch.linalg.eigh(precise @ precise.mT)
            negligible = eigenvalues <= 1e-14 * eigenvalues[..., -1:]
            inverse_roots = torch.where(negligible, 0.0, eigenvalues.rsqrt())
            polar = (vectors * inverse_roots.unsqueeze(-2)) @ vectors.mT @ precise
            # The small eigenvalues of a Gram matrix are inexact; one iteration mends that.
            wide.copy_(_retracted(polar, 2))
    return module


def _wide(matrices: Tensor) -> Tensor:
    """The same matrices as a view with rows <= columns."""
    return matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
