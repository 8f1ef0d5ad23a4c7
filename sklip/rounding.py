r"""How far the computed logits may lie from the exact ones.

Note [Charge for rounding]
--------------------------
Write f_i for the exact layers of the stored weights and F_i for what :mod:`sklip.inference` computes. A
rule bounds the error of one layer, :math:`\|F_i(z) - f_i(z)\|_2 \le c_i \|z\|_2 + d_i`, from standard
analysis: a dot product of n terms in blocks of B, whose sums are added in pairs, has an error of at
most :math:`\gamma_{B + \log_2(n/B)} |w| |z|` whatever the order in a block, and each result may lose a
subnormal number. Through the chain, with L_i the layer's Lipschitz constant, s bounding the exact
values and e the error,

.. math::
    s_i = L_i s_{i-1} + \|f_i(0)\|, \qquad
    e_i = L_i e_{i-1} + c_i (s_{i-1} + e_{i-1}) + d_i .

All is affine in the length of the input, so offset and slope are found once and for all; a certificate
then costs the length of its row. The input itself may have been rounded to the network's precision,
which is the e that the chain starts with.

The rules assume IEEE arithmetic with round to nearest; flushing of subnormals is covered.

References
----------
Higham (2002), Accuracy and stability of numerical algorithms, 2nd edition, chapters 2 and 3. Jin et al.
(2022), Getting a-round guarantees, arXiv 2205.10159.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from sklip import layers
from sklip.bounds import both_axes, chain_bounds, lipschitz_bound, plain_groups
from sklip.inference import BLOCK, CONVOLUTION_BLOCK, flat_chain
from sklip.norms import absolute_convolution_norm_upper, matrix_norm_upper

__all__ = [
    "Affine",
    "Precision",
    "Step",
    "layer_steps",
    "length_upper",
    "longest_input",
    "longest_step_input",
    "propagate",
    "register_rounding_bound",
]

Rule = TypeVar("Rule", bound=Callable[[Any, "Precision", torch.Size], tuple[float, float]])

_RULES: dict[type, Callable[[Any, Precision, torch.Size], tuple[float, float]]] = {}


@dataclass(frozen=True)
class Precision:
    """A floating-point format: unit roundoff, smallest normal and largest number."""

    unit: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, dtype: Any) -> Precision:
        """Return the format of a NumPy floating dtype or its name."""
        info = np.finfo(dtype)
        return cls(float(info.eps) / 2, float(info.tiny), float(info.max))

    def gamma(self, n_operations: int) -> float:
        r"""Return :math:`\gamma_n = n u / (1 - n u)`; infinite where nothing can be said."""
        nu = n_operations * self.unit * (1 + 2.0**-50)
        return nu / (1 - nu) if nu < 0.5 else math.inf

    def gamma_of_sum(self, n_terms: int) -> float:
        """Return the constant of a dot product of `n_terms` in blocks, and a bias."""
        return self._gamma_of_blocks(min(n_terms, BLOCK), -(-n_terms // BLOCK))

    def gamma_of_convolution(self, channels: int, taps: int) -> float:
        """Return that of a convolution's sums, by either way to compute them."""
        at_once = min(channels, max(1, CONVOLUTION_BLOCK // taps))
        direct = self._gamma_of_blocks(at_once * taps, -(-channels // at_once))
        return max(direct, self.gamma_of_sum(channels * taps))

    def _gamma_of_blocks(self, terms: int, blocks: int) -> float:
        # Additions in pairs, that of a bias, and one in hand.
        return self.gamma(terms + math.ceil(math.log2(blocks)) + 2)


def register_rounding_bound(*module_types: type[nn.Module]) -> Callable[[Rule], Rule]:
    r"""Decorator: the function bounds the rounding error of modules of exactly these types.

    The function takes ``(module, precision, input_shape)`` and returns (c, d) such that the computed
    output lies within :math:`c \|z\|_2 + d` of the exact output, for one sample z of that shape.

    Parameters
    ----------
    *module_types : type
        Classes of modules. Subclasses are not covered.
    """

    def register(rule: Rule) -> Rule:
        for module_type in module_types:
            _RULES[module_type] = rule
        return rule

    return register


@dataclass(frozen=True)
class Affine:
    """The function offset + slope * t of the length t of an input."""

    offset: float
    slope: float


@dataclass(frozen=True)
class Step:
    """What is known of one map: constant, length of its value at 0, and error c * length + d."""

    constant: float
    at_zero: float
    error_slope: float
    error_offset: float


def propagate(steps: Iterable[Step], cast_unit: float, cast_offset: float) -> tuple[Affine, Affine]:
    r"""Bound values and errors at the end of a chain, as functions of the length of its input.

    Parameters
    ----------
    steps : iterable of Step
        The maps in order.
    cast_unit, cast_offset : float
        The input itself is taken with an error of at most cast_unit * length + cast_offset.

    Returns
    -------
    value, error : Affine
        The exact output for an input of length t is at most value(t) long; the computed one lies within
        error(t) of it.
    """
    value, error = Affine(0.0, 1.0), Affine(cast_offset, cast_unit)
    for step in steps:
        grown = Affine(value.offset + error.offset, value.slope + error.slope)
        error = Affine(
            step.constant * error.offset + step.error_slope * grown.offset + step.error_offset,
            step.constant * error.slope + step.error_slope * grown.slope,
        )
        value = Affine(step.constant * value.offset + step.at_zero, step.constant * value.slope)
    # Sums and products of positive numbers: rounded up by more than they can have lost.
    up = 1 + 2.0**-40
    return (
        Affine(value.offset * up, value.slope * up),
        Affine(error.offset * up, error.slope * up),
    )


def longest_input(
    steps: Iterable[Step], cast_unit: float, cast_offset: float, precision: Precision
) -> float:
    r"""Return a length up to which no input can overflow in a chain of `steps`.

    The charges hold as long as nothing overflows. A rule's c is at least a unit roundoff times the
    norm by which the layer's sums of absolute values grow, so c t + d over the unit bounds every
    partial sum; values themselves are kept below the root of the largest number, since pools square
    them.

    Parameters
    ----------
    steps : iterable of Step
        The maps in order.
    cast_unit, cast_offset : float
        As for :func:`propagate`.
    precision : Precision

    Returns
    -------
    length : float
        At least 0.
    """
    chain = list(steps)
    room = math.sqrt(precision.largest) / 4
    longest = room / 2
    for end in range(len(chain) + 1):
        value, error = propagate(chain[:end], cast_unit, cast_offset)
        grown = Affine(value.offset + error.offset, value.slope + error.slope)
        peaks = [grown]
        if end < len(chain):
            step = chain[end]
            peaks.append(
                Affine(
                    (step.error_slope * grown.offset + step.error_offset) / precision.unit,
                    step.error_slope * grown.slope / precision.unit,
                )
            )
        for peak in peaks:
            if peak.slope > 0:
                longest = min(longest, (room - peak.offset) / peak.slope)
    return max(0.0, longest)


def longest_step_input(step: Step, precision: Precision) -> float:
    """Return a length up to which no input of one step can overflow; see :func:`longest_input`.

    Parameters
    ----------
    step : Step
    precision : Precision

    Returns
    -------
    length : float
        Negative where nothing can be said.
    """
    room = math.sqrt(precision.largest) / 8
    if step.error_slope == 0:
        return room
    return min(room, (precision.unit * room - step.error_offset) / step.error_slope)


def layer_steps(
    chain: list[nn.Module], constants: list[float], dtype: str, input_shape: tuple[int, ...]
) -> list[Step]:
    """Describe plain layers, evaluated in `dtype`, for :func:`propagate`.

    Parameters
    ----------
    chain : list of torch.nn.Module
        Plain layers.
    constants : list of float
        Their proven Lipschitz constants.
    dtype : str
        Precision in which they are evaluated.
    input_shape : tuple of int
        Shape of one sample.

    Returns
    -------
    steps : list of Step

    Raises
    ------
    TypeError
        For a layer without a rule; :func:`register_rounding_bound` adds one.
    """
    return _layer_steps(chain, constants, Precision.of(dtype), input_shape)


def _layer_steps(
    chain: list[nn.Module],
    constants: list[float],
    precision: Precision,
    input_shape: tuple[int, ...],
) -> list[Step]:
    zeros = torch.zeros(1, *input_shape, dtype=torch.float64)
    steps = []
    for layer, constant in zip(chain, constants, strict=True):
        rule = _RULES.get(type(layer))
        if rule is None:
            raise TypeError(
                f"{type(layer).__name__} has no bound on its rounding error; use a layer that has one, "
                "or add a proven rule with sklip.rounding.register_rounding_bound."
            )
        slope, offset = rule(layer, precision, zeros.shape[1:])
        with torch.no_grad():
            image = _in_float64(layer)(zeros)
        # The value at zero: a bias, spread over the map.
        steps.append(Step(constant, length_upper(image), slope, offset))
        zeros = torch.zeros_like(image)
    return steps


def _in_float64(layer: nn.Module) -> nn.Module:
    return copy.deepcopy(layer).cpu().double()


def length_upper(values: torch.Tensor) -> float:
    """Upper bound on the length of all values; its own rounding is far below the factor."""
    exact = values.detach().double()
    largest = float(exact.abs().max())
    if not 0 < largest < math.inf:
        return largest
    # Divided, so that no square vanishes or overflows.
    return largest * float((exact / largest).norm()) * (1 + 2.0**-30)


def _flushed(precision: Precision, shape: Iterable[int]) -> float:
    """Length of what is lost if all values of a sample of this shape are flushed to zero."""
    return precision.smallest * math.sqrt(math.prod(shape))


@register_rounding_bound(nn.Linear)
def _linear(module: nn.Linear, precision: Precision, shape: torch.Size) -> tuple[float, float]:
    # Sizes are those of the weight: attributes may have been set since.
    rows, columns = module.weight.shape
    gamma = precision.gamma_of_sum(columns)
    bias = 0.0 if module.bias is None else length_upper(module.bias)
    # Results and terms may be flushed to zero, and so may the weights before they are multiplied.
    flushed = precision.smallest * 2 * (columns + 1) * math.sqrt(rows)
    lost_weights = precision.smallest * math.sqrt(rows * columns)
    slope = gamma * matrix_norm_upper(module.weight.abs()) + lost_weights
    # On a map, one product for each row of it.
    return slope, (gamma * bias + flushed) * math.sqrt(math.prod(shape[:-1]))


@register_rounding_bound(nn.Conv2d)
def _conv2d(module: nn.Conv2d, precision: Precision, shape: torch.Size) -> tuple[float, float]:
    n_terms = module.weight[0].numel()
    gamma = precision.gamma_of_convolution(module.weight.shape[1], math.prod(module.weight.shape[2:]))
    # A convolution by |K| bounds the sums of absolute values; its own norm is bounded as any.
    norm = max(absolute_convolution_norm_upper(*group) for group in plain_groups(module))
    with torch.no_grad():
        pixels = _in_float64(module)(torch.zeros(1, *shape, dtype=torch.float64))[0, 0].numel()
    bias = 0.0 if module.bias is None else length_upper(module.bias)
    flushed = precision.smallest * 2 * (n_terms + 1) * math.sqrt(len(module.weight) * pixels)
    # A convolution by weights that are flushed to zero: its norm is at most the sum over taps.
    lost_weights = precision.smallest * module.weight.numel()
    return gamma * norm + lost_weights, gamma * bias * math.sqrt(pixels) + flushed


@register_rounding_bound(
    nn.Identity,
    nn.Flatten,
    nn.ReLU,
    nn.Dropout,
    nn.Dropout2d,
    layers.Flatten,
    layers.FullSort,
    layers.GroupSort,
    layers.GroupSort2,
)
def _exact(module: nn.Module, precision: Precision, shape: torch.Size) -> tuple[float, float]:
    """Copies and comparisons round nothing."""
    return 0.0, 0.0


@register_rounding_bound(nn.MaxPool2d)
def _max_pool(module: nn.MaxPool2d, precision: Precision, shape: torch.Size) -> tuple[float, float]:
    with torch.no_grad():
        image = _in_float64(module)(torch.zeros(1, *shape, dtype=torch.float64))
    if not torch.isfinite(image).all():
        raise ValueError(
            f"MaxPool2d has windows of nothing but padding for samples of shape {tuple(shape)}, and "
            "gives -inf there; lower padding or dilation."
        )
    return 0.0, 0.0


@register_rounding_bound(layers.Center)
def _center(module: layers.Center, precision: Precision, shape: torch.Size) -> tuple[float, float]:
    center = length_upper(module.center)
    return precision.unit, precision.unit * center + _flushed(precision, shape)


def _cast_loss(module: nn.Module, factor: float, precision: Precision) -> float:
    """What a factor may lose, beyond one rounding, when it is brought to the network's precision."""
    if not abs(factor) <= precision.largest:
        raise ValueError(f"{type(module).__name__} has a factor that overflows, {factor}; lower it.")
    return precision.smallest if abs(factor) < precision.smallest else 0.0


@register_rounding_bound(nn.LeakyReLU, layers.Scale)
def _product(module: nn.Module, precision: Precision, shape: torch.Size) -> tuple[float, float]:
    # The constant itself is rounded to the network's precision, then multiplied: two roundings.
    value: Any = module.k if isinstance(module, layers.Scale) else module.negative_slope
    factor = float(value)
    slope = precision.gamma(2) * abs(factor) + _cast_loss(module, factor, precision)
    return slope, _flushed(precision, shape)


# torch documents no bound on the errors of its elementary functions; its vector library promises one
# unit in the last place. Eight are taken here, twice as many unit roundoffs.
_ELEMENTARY = 16


@register_rounding_bound(nn.Tanh)
def _tanh(module: nn.Tanh, precision: Precision, shape: torch.Size) -> tuple[float, float]:
    return precision.gamma(_ELEMENTARY), _flushed(precision, shape)


@register_rounding_bound(nn.Sigmoid)
def _sigmoid(module: nn.Sigmoid, precision: Precision, shape: torch.Size) -> tuple[float, float]:
    # The error is relative to values of at most 1/2 + |x| / 4.
    gamma = precision.gamma(_ELEMENTARY)
    at_zero = math.sqrt(math.prod(shape)) / 2
    return gamma / 4, gamma * at_zero * (1 + 2.0**-40) + _flushed(precision, shape)


@register_rounding_bound(nn.Softplus)
def _softplus(module: nn.Softplus, precision: Precision, shape: torch.Size) -> tuple[float, float]:
    beta, threshold = abs(float(module.beta)), float(module.threshold)
    if not precision.smallest <= beta <= precision.largest:
        raise ValueError(f"Softplus needs a beta of normal size for its precision, got {module.beta}.")
    # Below the threshold the exponential is taken, which must not overflow.
    limit = math.floor(math.log(precision.largest)) - 1
    if not -limit <= threshold <= limit:
        raise ValueError(
            f"Softplus needs a threshold from -{limit} to {limit} in its precision, as exp overflows "
            f"beyond, got {threshold}."
        )
    # Where beta x > threshold torch returns x, for the real log(1 + exp(beta x)) / beta: that is off by
    # log(1 + exp(-beta x)) / |beta|, most at the threshold, which beta x may miss by its rounding.
    lowest = threshold - 8 * (precision.unit * abs(threshold) + precision.smallest)
    jump = (max(-lowest, 0.0) + math.log1p(math.exp(-abs(lowest)))) / beta
    # Elsewhere, relative to values of at most |x| + log(2) / |beta|: two functions, the second of which
    # passes on the relative error of the first; beta, the product by it and the quotient. Flushed
    # subnormals are divided by beta.
    gamma = precision.gamma(2 * _ELEMENTARY + 8)
    each = jump + gamma * math.log(2) / beta + 4 * precision.smallest * (1 / beta + 1)
    return gamma, each * math.sqrt(math.prod(shape)) * (1 + 2.0**-40)


@register_rounding_bound(layers.ScaledL2NormPool2d)
def _l2_norm_pool(
    module: layers.ScaledL2NormPool2d, precision: Precision, shape: torch.Size
) -> tuple[float, float]:
    # Squares, their sum, the root, the factor k: relative errors all.
    window = math.prod(module.kernel_size)
    # Squares below the smallest number vanish: a window may lose the root of as many.
    flushed = math.sqrt(precision.smallest * 4 * window) * math.sqrt(math.prod(shape))
    slope = precision.gamma(window + 6) * abs(module.k) + _cast_loss(module, module.k, precision)
    return slope, abs(module.k) * flushed + _flushed(precision, shape)


@register_rounding_bound(layers.ScaledAvgPool2d)
def _scaled_avg_pool(
    module: layers.ScaledAvgPool2d, precision: Precision, shape: torch.Size
) -> tuple[float, float]:
    window = math.prod(module.kernel_size)
    factor = abs(module.k) * math.sqrt(window)
    flushed = (factor * 4 * window + 1) * _flushed(precision, shape)
    slope = precision.gamma(window + 4) * abs(module.k) + _cast_loss(module, factor, precision)
    return slope, flushed


@register_rounding_bound(nn.AvgPool2d)
def _avg_pool(module: nn.AvgPool2d, precision: Precision, shape: torch.Size) -> tuple[float, float]:
    # Without overlap the means of absolute values have the norm of the means.
    window = math.prod(both_axes(module.kernel_size))
    return precision.gamma(window + 2) * lipschitz_bound(module), 4 * _flushed(precision, shape)


@register_rounding_bound(layers.Residual)
def _residual(module: layers.Residual, precision: Precision, shape: torch.Size) -> tuple[float, float]:
    chain = [layer for child in module for layer in flat_chain(child)]
    steps = _layer_steps(chain, chain_bounds(chain, shape), precision, shape)
    # The branch starts with the computed values, of which it may flush some to zero.
    lost = _flushed(precision, shape)
    ends = [propagate(steps[:end], 0.0, lost) for end in range(len(steps) + 1)]
    lengths = [Affine(v.offset + e.offset, v.slope + e.slope) for v, e in ends]
    # The sum rounds; where it is done in float64, the result is cast.
    error, twice = ends[-1][1], 2 * precision.unit
    slopes = [error.slope + twice * (1 + lengths[-1].slope)]
    offsets = [error.offset + twice * lengths[-1].offset + 4 * lost]
    # longest_input takes c t + d over the unit for a bound on all that grows inside: here, the values
    # between the layers of the branch, and what their own rules speak for.
    slopes += [precision.unit * length.slope for length in lengths]
    offsets += [precision.unit * length.offset for length in lengths]
    for length, step in zip(lengths, steps, strict=False):
        slopes.append(step.error_slope * length.slope)
        offsets.append(step.error_slope * length.offset + step.error_offset)
    return max(slopes) * (1 + 2.0**-40), max(offsets) * (1 + 2.0**-40)
