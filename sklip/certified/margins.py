r"""Constants and rounding of the differences of two logits, which are what a prediction hangs on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sklip.certified.arithmetic import Affine, Arithmetic, floored_product
from sklip.certified.maps import Course, MapBound, longest_input, product_upper
from sklip.certified.norms import row_distances_upper
from sklip.certified.rules import length_upper

__all__ = ["leading_translations", "margin_bounds", "margin_rounding"]


def leading_translations(bounds: Sequence[MapBound]) -> int:
    """Count the first layers that move no value against another, but for the last layer of all."""
    start = 0
    while start < len(bounds) - 1 and isinstance(bounds[start].factors, float):
        if bounds[start].factors != 1.0:
            break
        start += 1
    return start


def margin_bounds(
    chain: Sequence[nn.Module],
    constants: Sequence[float],
    n_outputs: int,
    diagonal: Tensor | None = None,
) -> NDArray[np.float64]:
    r"""Proven Lipschitz constants of all differences :math:`f_i - f_j` of logits.

    If the chain ends in a linear layer with rows :math:`w_i`, the constant is
    :math:`\|w_i - w_j\|_2 L` with L the bound of everything before; that is never larger than
    :math:`\sqrt2 \|W\|_2 L`. For any other end it is :math:`\sqrt2` times the network's bound. With
    `diagonal`, `constants` are those of a chain whose first layer has it folded in.
    """
    head = chain[-1]
    if type(head) is nn.Linear:
        body, weight = product_upper(constants[:-1]), head.weight
        if n_outputs == 1:
            weight = nn.functional.pad(weight, (0, 0, 0, 1))  # the distance from zero
        distances = row_distances_upper(weight, diagonal if len(chain) == 1 else None).numpy()
        distances = floored_product(distances, body * (1 + 2.0**-51))
        return np.asarray(distances[:1, 1:] if n_outputs == 1 else distances)
    bound = product_upper(constants)
    if n_outputs == 1:
        return np.array([[bound]])
    return np.asarray(math.sqrt(2) * (1 + 2.0**-51) * bound * (1 - np.eye(n_outputs)))


def margin_rounding(
    chain: Sequence[nn.Module],
    bounds: Sequence[MapBound],
    n_outputs: int,
    arithmetic: Arithmetic,
    input_shape: tuple[int, ...],
) -> tuple[Affine, float]:
    """Bound the rounding error of all computed logit differences, and the length it holds up to."""
    # Every value is rounded to the network's precision before the first layer.
    lost = arithmetic.smallest * math.sqrt(math.prod(input_shape))
    course = Course(bounds, arithmetic, Affine(lost, arithmetic.unit))
    longest, head = longest_input(course, arithmetic), chain[-1]
    if type(head) is not nn.Linear:
        error = course.errors[-1]
        both = np.ones((1, 1)) if n_outputs == 1 else 1.5 * (1 - np.eye(n_outputs))
        return Affine(both * error.offset, both * error.slope), longest
    error, length = course.errors[-2], course.lengths[-2]
    weight = head.weight.detach().cpu().double()
    columns = weight.shape[1]
    # Two roundings more than the sum: where it is done in float64, the result is cast.
    gamma = arithmetic.gamma_of_sum(columns) + 2 * arithmetic.unit
    rows = np.array([length_upper(row) for row in weight])
    bias = np.zeros(n_outputs)
    if head.bias is not None:
        bias = np.abs(head.bias.detach().cpu().double().numpy())
    flushed = 4 * arithmetic.smallest * (columns + 1)
    # Weights that are flushed to zero before they are multiplied: in two rows.
    lost_weights = 2 * arithmetic.smallest * math.sqrt(columns)
    if n_outputs == 1:
        distances, rows, bias = rows[:, None], rows[:, None], bias[:, None]
    else:
        distances = row_distances_upper(weight).numpy()
        rows, bias = rows[:, None] + rows, bias[:, None] + bias
    share = gamma * rows + lost_weights
    offsets = distances * error.offset + share * length.offset + gamma * bias
    slopes = distances * error.slope + share * length.slope
    return Affine(offsets + flushed, slopes).rounded_up(), longest
