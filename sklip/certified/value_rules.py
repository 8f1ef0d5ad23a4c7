r"""Rules of layers that act value by value, sort, or pick: no sums but those of pools."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from sklip import layers
from sklip.certified.arithmetic import Affine, Arithmetic
from sklip.certified.maps import MapBound, exact
from sklip.certified.rules import Shape, at_zeros, flushed, length_upper, register_layer

__all__ = ["both_axes", "cast_loss", "refuse_overlap"]


@register_layer(nn.Identity)
def _identity(module: nn.Identity, shape: Shape) -> MapBound:
    return MapBound(1.0, exact, factors=1.0, linear=True)


@register_layer(nn.Flatten)
def _flatten(module: nn.Flatten, shape: Shape) -> MapBound:
    if module.start_dim != 1:
        raise TypeError(f"Flatten must keep the samples apart, got start_dim={module.start_dim}.")
    return MapBound(1.0, exact, factors=1.0, linear=True)


@register_layer(nn.ReLU, layers.FullSort, layers.GroupSort, layers.GroupSort2)
def _copied(module: nn.Module, shape: Shape) -> MapBound:
    return MapBound(1.0, exact)


@register_layer(nn.Dropout, nn.Dropout2d)
def _dropout(module: nn.Dropout, shape: Shape) -> MapBound:
    if module.training:
        raise TypeError(
            f"{type(module).__name__} in training mode is random and has no bound; call module.eval()."
        )
    return MapBound(1.0, exact)


@register_layer(layers.Center)
def _center(module: layers.Center, shape: Shape) -> MapBound:
    if module.center.ndim != 1:
        raise TypeError(
            f"Center has no bound unless it subtracts one row, got a center of shape "
            f"{tuple(module.center.shape)}."
        )

    def rounding(arithmetic: Arithmetic) -> Affine:
        # On a map, one difference for each row of it.
        center = length_upper(module.center) * math.sqrt(math.prod((shape or ())[:-1]))
        return Affine(arithmetic.unit * center + flushed(arithmetic, shape or ()), arithmetic.unit)

    return MapBound(1.0, rounding, factors=1.0, linear=True)


def cast_loss(module: nn.Module, factor: float, arithmetic: Arithmetic) -> float:
    """What a factor may lose, beyond one rounding, when it is brought to the network's precision."""
    if not abs(factor) <= arithmetic.largest:
        raise ValueError(f"{type(module).__name__} has a factor that overflows, {factor}; lower it.")
    return arithmetic.smallest if abs(factor) < arithmetic.smallest else 0.0


@register_layer(layers.Scale)
def _scale(module: layers.Scale, shape: Shape) -> MapBound:
    return _multiplied(module, abs(module.k), float(module.k), shape)


@register_layer(nn.LeakyReLU)
def _leaky_relu(module: nn.LeakyReLU, shape: Shape) -> MapBound:
    slope = float(module.negative_slope)
    return _multiplied(module, max(abs(slope), 1.0), slope, shape)


def _multiplied(module: nn.Module, constant: float, factor: float, shape: Shape) -> MapBound:
    def rounding(arithmetic: Arithmetic) -> Affine:
        # The factor itself is rounded to the network's precision, then multiplied: two roundings.
        slope = arithmetic.gamma(2) * abs(factor) + cast_loss(module, factor, arithmetic)
        return Affine(flushed(arithmetic, shape or ()), slope)

    return MapBound(constant, rounding)


# torch documents no bound on the errors of its elementary functions; its vector library promises one
# unit in the last place. Eight are taken here, twice as many unit roundoffs.
_ELEMENTARY = 16


@register_layer(nn.Tanh)
def _tanh(module: nn.Tanh, shape: Shape) -> MapBound:
    def rounding(arithmetic: Arithmetic) -> Affine:
        return Affine(flushed(arithmetic, shape or ()), arithmetic.gamma(_ELEMENTARY))

    return MapBound(1.0, rounding)


@register_layer(nn.Sigmoid)
def _sigmoid(module: nn.Sigmoid, shape: Shape) -> MapBound:
    def rounding(arithmetic: Arithmetic) -> Affine:
        # The error is relative to values of at most 1/2 + |x| / 4.
        gamma = arithmetic.gamma(_ELEMENTARY)
        at_zero = math.sqrt(math.prod(shape or ())) / 2
        return Affine(gamma * at_zero * (1 + 2.0**-40) + flushed(arithmetic, shape or ()), gamma / 4)

    return MapBound(0.25, rounding)


@register_layer(nn.Softplus)
def _softplus(module: nn.Softplus, shape: Shape) -> MapBound:
    # The constant is that of the real function: its slope is a sigmoid, whatever the sign of beta.
    # Where torch switches to the identity it jumps; that is an error of the computation, and charged.
    if not 0 < abs(module.beta) < math.inf:
        raise TypeError(f"Softplus has no Lipschitz bound for beta={module.beta}; use another beta.")

    def rounding(arithmetic: Arithmetic) -> Affine:
        beta, threshold = abs(float(module.beta)), float(module.threshold)
        if not arithmetic.smallest <= beta <= arithmetic.largest:
            raise ValueError(
                f"Softplus needs a beta of normal size for its precision, got {module.beta}."
            )
        # Below the threshold the exponential is taken, which must not overflow.
        limit = math.floor(math.log(arithmetic.largest)) - 1
        if not -limit <= threshold <= limit:
            raise ValueError(
                f"Softplus needs a threshold from -{limit} to {limit} in its precision, as exp "
                f"overflows beyond, got {threshold}."
            )
        # Where beta x > threshold torch returns x, for the real log(1 + exp(beta x)) / beta: that is
        # off by log(1 + exp(-beta x)) / |beta|, most at the threshold, which beta x may miss by its
        # rounding.
        lowest = threshold - 8 * (arithmetic.unit * abs(threshold) + arithmetic.smallest)
        jump = (max(-lowest, 0.0) + math.log1p(math.exp(-abs(lowest)))) / beta
        # Elsewhere, relative to values of at most |x| + log(2) / |beta|: two functions, the second of
        # which passes on the relative error of the first; beta, the product by it and the quotient.
        # Flushed subnormals are divided by beta.
        gamma = arithmetic.gamma(2 * _ELEMENTARY + 8)
        each = jump + gamma * math.log(2) / beta + 4 * arithmetic.smallest * (1 / beta + 1)
        return Affine(each * math.sqrt(math.prod(shape or ())) * (1 + 2.0**-40), gamma)

    return MapBound(1.0, rounding)


def both_axes(setting: Any) -> tuple[int, int]:
    """Return what torch's pools read for height and width: one number stands for both."""
    numbers = tuple(setting) if isinstance(setting, tuple | list) else (setting,)
    height, width = numbers if len(numbers) == 2 else numbers * 2
    return int(height), int(width)


def refuse_overlap(module: Any, dilation: tuple[int, int]) -> None:
    """Refuse a pool's windows that share pixels, which count twice."""
    kernel_size = both_axes(module.kernel_size)
    # Read as the forward pass does: without a stride, it is the size of the window.
    given: Any = module.stride
    stride = kernel_size if given in (None, (), []) else both_axes(given)
    spans = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True))
    if stride[0] < spans[0] or stride[1] < spans[1]:
        raise TypeError(
            f"{type(module).__name__} has no Lipschitz bound where windows overlap; use a stride of at "
            f"least dilation * (kernel_size - 1) + 1 = {spans}, got {stride}."
        )


@register_layer(nn.MaxPool2d)
def _max_pool2d(module: nn.MaxPool2d, shape: Shape) -> MapBound:
    if module.return_indices:
        raise TypeError("MaxPool2d with return_indices=True has no Lipschitz bound; set it to False.")
    # The largest of a window moves by at most the largest change in it. Padding never is the largest,
    # and ceil_mode adds windows of what is left over: no pixel lies in two windows.
    refuse_overlap(module, both_axes(module.dilation))
    if shape is not None and not torch.isfinite(at_zeros(module, shape)).all():
        raise ValueError(
            f"MaxPool2d has windows of nothing but padding for samples of shape {shape}, and gives "
            "-inf there; lower padding or dilation."
        )
    return MapBound(1.0, exact)


@register_layer(layers.ScaledL2NormPool2d)
def _scaled_l2_norm_pool(module: layers.ScaledL2NormPool2d, shape: Shape) -> MapBound:
    return _l2_norms(module, module.kernel_size, module.k, 0, shape)


@register_layer(nn.LPPool2d)
def _l2_norm_pool(module: nn.LPPool2d, shape: Shape) -> MapBound:
    if module.norm_type != 2 or module.ceil_mode:
        raise TypeError(
            "LPPool2d has no Lipschitz bound unless norm_type=2 and ceil_mode=False, got "
            f"norm_type={module.norm_type} and ceil_mode={module.ceil_mode}."
        )
    refuse_overlap(module, (1, 1))
    return _l2_norms(module, both_axes(module.kernel_size), 1.0, _ELEMENTARY, shape)


def _l2_norms(
    module: nn.Module, window: tuple[int, int], k: float, root: int, shape: Shape
) -> MapBound:
    """L2 norms of windows, times k; `root` is what a power of 1/2 may lose, in unit roundoffs."""

    def rounding(arithmetic: Arithmetic) -> Affine:
        # Squares, their sum or mean, the root, the factor k: relative errors all.
        size = math.prod(window)
        # Squares below the smallest number vanish: a window may lose the root of as many.
        lost = math.sqrt(arithmetic.smallest * 4 * size) * math.sqrt(math.prod(shape or ()))
        slope = arithmetic.gamma(size + 6 + root) * abs(k)
        return Affine(
            abs(k) * lost + flushed(arithmetic, shape or ()), slope + cast_loss(module, k, arithmetic)
        )

    return MapBound(abs(k), rounding)
