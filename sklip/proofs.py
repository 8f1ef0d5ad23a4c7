r"""What is proven of a finished network: constants of its logit differences, charges for rounding."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sklip import layers
from sklip.bounds import chain_bounds, refuse_altered, rounded_up_product
from sklip.inference import flat_chain
from sklip.norms import matrix_norm_upper, row_distances_upper
from sklip.rounding import Precision, layer_steps, length_upper, longest_input, propagate

__all__ = [
    "Proof",
    "RoundingCharges",
    "margin_bounds",
    "prove",
    "rounding_charges",
    "scaled_margin_bounds",
]


# Layers that move no value against another: what stands before them is scaled alike behind them.
_TRANSLATIONS = (layers.Center, layers.Flatten, nn.Flatten, nn.Identity)


def margin_bounds(
    network: nn.Module, n_outputs: int, input_shape: tuple[int, ...] | None = None
) -> NDArray[np.float64]:
    r"""Proven Lipschitz constants of all logit differences :math:`f_i - f_j` of a plain network.

    If the network ends in a linear layer with rows :math:`w_i`, the constant is
    :math:`\|w_i - w_j\|_2 L` with L the bound of everything before; that is never larger than
    :math:`\sqrt2 \|W\|_2 L`. For any other end it is :math:`\sqrt2` times the network's bound.

    Parameters
    ----------
    network : torch.nn.Module
        The finished network, in plain layers (see :func:`sklip.layers.to_torch`).
    n_outputs : int
        Number of logits.
    input_shape : tuple of int, default=None
        As for :func:`sklip.lipschitz_bound`.

    Returns
    -------
    bounds : ndarray of shape (n_outputs, n_outputs)
        Symmetric with a zero diagonal. For a single logit, the 1 x 1 matrix of its own constant.

    References
    ----------
    Singla, Singla, Feizi (2022), Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100,
    arXiv 2108.04062.
    """
    chain = _checked_chain(network)
    return _margin_bounds(chain, chain_bounds(chain, input_shape), n_outputs)


def scaled_margin_bounds(
    network: nn.Module,
    n_outputs: int,
    factors: NDArray[np.float64],
    input_shape: tuple[int, ...] | None = None,
) -> NDArray[np.float64] | None:
    r"""Proven constants of all logit differences behind a scaling of the network's input.

    The scaling is folded into the first layer, :math:`\|W D\|_2`, which is never more and can be far
    less than :math:`\|W\|_2 \|D\|_2`.

    Parameters
    ----------
    network : torch.nn.Module
        The finished network, in plain layers.
    n_outputs : int
        Number of logits.
    factors : ndarray of shape (n_features,)
        Diagonal of D, or upper bounds on its absolute values.
    input_shape : tuple of int, default=None
        As for :func:`sklip.lipschitz_bound`.

    Returns
    -------
    bounds : ndarray of shape (n_outputs, n_outputs), or None
        As from :func:`margin_bounds`; None if the network doesn't start with a linear layer.
    """
    chain = _checked_chain(network)
    start = 0
    while start < len(chain) - 1 and type(chain[start]) in _TRANSLATIONS:
        start += 1
    first = chain[start]
    if type(first) is not nn.Linear or first.weight.shape[1] != len(factors):
        return None
    constants = chain_bounds(chain, input_shape)
    diagonal = torch.from_numpy(np.asarray(factors, dtype=np.float64))
    constants[start] = matrix_norm_upper(first.weight, diagonal)
    return _margin_bounds(chain[start:], constants[start:], n_outputs, diagonal)


def _margin_bounds(
    chain: list[nn.Module],
    constants: list[float],
    n_outputs: int,
    factors: Tensor | None = None,
) -> NDArray[np.float64]:
    """With `factors`, the constants are those of a chain whose first layer has them folded in."""
    if type(chain[-1]) is nn.Linear:
        if chain[-1].out_features != n_outputs:
            raise ValueError(
                f"n_outputs must be that of the network, {chain[-1].out_features}, got {n_outputs}."
            )
        body = rounded_up_product(constants[:-1])
        weight = chain[-1].weight
        if n_outputs == 1:
            weight = nn.functional.pad(weight, (0, 0, 0, 1))  # the distance from zero
        distances = row_distances_upper(weight, factors if len(chain) == 1 else None).numpy()
        # A product that underflows must not read as a constant of 0.
        positive = (distances > 0) & (body > 0)
        distances = np.maximum(distances * (body * (1 + 2.0**-51)), np.where(positive, 5e-324, 0.0))
        return distances[:1, 1:] if n_outputs == 1 else distances
    bound = rounded_up_product(constants)
    if n_outputs == 1:
        return np.array([[bound]])
    pairs: NDArray[np.float64] = math.sqrt(2) * (1 + 2.0**-51) * bound * (1 - np.eye(n_outputs))
    return pairs


def _checked_chain(network: nn.Module) -> list[nn.Module]:
    """Return the layers in order; containers and layers must be what their class says."""
    for module in network.modules():
        refuse_altered(module)
    return flat_chain(network) or [nn.Identity()]


class RoundingCharges(NamedTuple):
    """What :func:`rounding_charges` found."""

    offsets: NDArray[np.float64]
    slopes: NDArray[np.float64]
    longest: float


def rounding_charges(
    network: nn.Module, n_outputs: int, dtype: str, input_shape: tuple[int, ...]
) -> RoundingCharges:
    r"""Bound the rounding error of all computed logit differences of a plain network.

    Parameters
    ----------
    network : torch.nn.Module
        The finished network, in plain layers.
    n_outputs : int
        Number of logits.
    dtype : str
        Precision in which :func:`sklip.inference.direct_forward` evaluates it.
    input_shape : tuple of int
        Shape of one sample.

    Returns
    -------
    charges : RoundingCharges
        ``offsets`` and ``slopes``, of shape (n_outputs, n_outputs): for an input of length t, the
        computed difference of logits i and j lies within ``offsets[i, j] + slopes[i, j] * t`` of the
        exact one; for a single logit, of the logit. It holds for t up to ``longest``, beyond which
        something might overflow.
    """
    chain = _checked_chain(network)
    constants = chain_bounds(chain, input_shape)
    return _rounding_charges(chain, constants, n_outputs, dtype, input_shape)


def _rounding_charges(
    chain: list[nn.Module],
    constants: list[float],
    n_outputs: int,
    dtype: str,
    input_shape: tuple[int, ...],
) -> RoundingCharges:
    head = chain[-1] if type(chain[-1]) is nn.Linear else None
    body = chain if head is None else chain[:-1]
    precision = Precision.of(dtype)
    steps = layer_steps(chain, constants, dtype, input_shape)
    # Every value is rounded to the network's precision before the first layer.
    lost = precision.smallest * math.sqrt(math.prod(input_shape))
    longest = longest_input(steps, precision.unit, lost, precision)
    value, error = propagate(steps[: len(body)], precision.unit, lost)
    if head is None:
        both = np.ones((1, 1)) if n_outputs == 1 else 1.5 * (1 - np.eye(n_outputs))
        return RoundingCharges(both * error.offset, both * error.slope, longest)
    weight = head.weight.detach().cpu().double()
    columns = weight.shape[1]
    # Two roundings more than the sum: where it is done in float64, the result is cast.
    gamma = precision.gamma_of_sum(columns) + 2 * precision.unit
    rows = np.array([length_upper(row) for row in weight])
    bias = np.zeros(n_outputs)
    if head.bias is not None:
        bias = np.abs(head.bias.detach().cpu().double().numpy())
    flushed = 4 * precision.smallest * (columns + 1)
    # Weights that are flushed to zero before they are multiplied: in two rows.
    lost_weights = 2 * precision.smallest * math.sqrt(columns)
    if n_outputs == 1:
        distances, rows, bias = rows[:, None], rows[:, None], bias[:, None]
    else:
        distances = row_distances_upper(weight).numpy()
        rows, bias = rows[:, None] + rows, bias[:, None] + bias
    share = gamma * rows + lost_weights
    offsets = distances * error.offset + share * (value.offset + error.offset) + gamma * bias
    slopes = distances * error.slope + share * (value.slope + error.slope)
    up = 1 + 2.0**-40
    return RoundingCharges((offsets + flushed) * up, slopes * up, longest)


class Proof(NamedTuple):
    """All that is proven of a network: see the functions of the same names."""

    lipschitz_bound: float
    margin_bounds: NDArray[np.float64]
    rounding_charges: RoundingCharges


def prove(network: nn.Module, n_outputs: int, dtype: str, input_shape: tuple[int, ...]) -> Proof:
    """Prove everything that a certificate rests on, each layer's constant once.

    Parameters
    ----------
    network : torch.nn.Module
        The finished network, in plain layers.
    n_outputs : int
        Number of logits.
    dtype : str
        Precision in which it is evaluated.
    input_shape : tuple of int
        Shape of one sample.

    Returns
    -------
    proof : Proof
    """
    chain = _checked_chain(network)
    constants = chain_bounds(chain, input_shape)
    return Proof(
        rounded_up_product(constants),
        _margin_bounds(chain, constants, n_outputs),
        _rounding_charges(chain, constants, n_outputs, dtype, input_shape),
    )
