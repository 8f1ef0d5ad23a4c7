r"""Rules of linear layers: dense layers, convolutions, averages."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn

from sklip import layers
from sklip.certified.arithmetic import Affine, Arithmetic
from sklip.certified.maps import MapBound
from sklip.certified.norms import (
    absolute_convolution_norm_upper,
    convolution_norm_upper,
    matrix_norm_upper,
)
from sklip.certified.rules import Shape, at_zeros, flushed, length_upper, register_layer
from sklip.certified.value_rules import both_axes, cast_loss, refuse_overlap

__all__: list[str] = []


def _check_bias(module: nn.Linear | nn.Conv2d) -> None:
    """Refuse a bias that torch would spread over several outputs."""
    if module.bias is not None and module.bias.shape != module.weight.shape[:1]:
        raise TypeError(
            f"{type(module).__name__} needs a bias of shape {tuple(module.weight.shape[:1])} to be "
            f"certified, got {tuple(module.bias.shape)}."
        )


@register_layer(nn.Linear)
def _linear(module: nn.Linear, shape: Shape) -> MapBound:
    _check_bias(module)
    # Sizes are those of the weight: attributes may have been set since.
    rows, columns = module.weight.shape

    def rounding(arithmetic: Arithmetic) -> Affine:
        gamma = arithmetic.gamma_of_sum(columns)
        bias = 0.0 if module.bias is None else length_upper(module.bias)
        # Results and terms may be flushed to zero; no weight is subnormal.
        lost = arithmetic.smallest * 2 * (columns + 1) * math.sqrt(rows)
        slope = gamma * matrix_norm_upper(module.weight.abs())
        # On a map, one product for each row of it.
        return Affine((gamma * bias + lost) * math.sqrt(math.prod((shape or ())[:-1])), slope)

    return MapBound(matrix_norm_upper(module.weight), rounding)


@register_layer(nn.Conv2d)
def _conv2d(module: nn.Conv2d, shape: Shape) -> MapBound:
    _check_bias(module)
    if [*module._reversed_padding_repeated_twice] != _padding_of(module):
        raise TypeError(
            "Conv2d whose padding was set after it was made has no Lipschitz bound, as its parts "
            f"disagree, got padding={module.padding}; make the layer anew."
        )
    if module.padding_mode == "circular":
        _check_circular(module, shape)
    elif module.padding_mode != "zeros":
        raise TypeError(
            f"Conv2d with padding_mode={module.padding_mode!r} has no Lipschitz bound; use 'zeros' "
            "or 'circular'."
        )

    def rounding(arithmetic: Arithmetic) -> Affine:
        assert shape is not None, "rounding is asked for only where the shape is known"
        n_terms, taps = module.weight[0].numel(), math.prod(module.weight.shape[2:])
        gamma = arithmetic.gamma_of_convolution(module.weight.shape[1], taps)
        # A convolution by |K| bounds the sums of absolute values; its own norm is bounded as any.
        norm = max(absolute_convolution_norm_upper(*group) for group in _plain_groups(module))
        pixels = at_zeros(module, shape)[0, 0].numel()
        bias = 0.0 if module.bias is None else length_upper(module.bias)
        lost = arithmetic.smallest * 2 * (n_terms + 1) * math.sqrt(len(module.weight) * pixels)
        return Affine(gamma * bias * math.sqrt(pixels) + lost, gamma * norm)

    # Groups act on channels of their own: the largest norm counts.
    norm = max(convolution_norm_upper(part, stride) for part, stride in _plain_groups(module))
    return MapBound(norm, rounding)


def _padding_of(module: nn.Conv2d) -> list[int]:
    """Return the pixels added left, right, on top and at the bottom, as the settings say."""
    if module.padding == "same":
        spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [side for span in reversed(spans) for side in (span // 2, span - span // 2)]
    height, width = (0, 0) if isinstance(module.padding, str) else module.padding
    return [width, width, height, height]


def _plain_groups(module: nn.Conv2d) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Yield kernel and stride of each group, with the dilation written out where it matters."""
    kernel, stride = module.weight.detach(), (module.stride[0], module.stride[1])
    if stride != (1, 1):  # at stride 1 a dilation only stretches the frequencies
        down, right = module.dilation
        height, width = kernel.shape[2:]
        dilated = kernel.new_zeros(*kernel.shape[:2], down * (height - 1) + 1, right * (width - 1) + 1)
        dilated[:, :, ::down, ::right] = kernel
        kernel = dilated
    for part in kernel.chunk(module.groups):
        yield part, stride


def _check_circular(module: nn.Conv2d, shape: Shape) -> None:
    """Where circular padding wraps a pixel twice, the supremum of the symbol is no bound."""
    # Read from what the forward pass uses: attributes may have been set since.
    if tuple(module.stride) != (1, 1):
        if shape is None:
            raise TypeError(
                "Conv2d with circular padding and a stride has no Lipschitz bound for maps of any "
                "size; pass input_shape, or use padding_mode='zeros'."
            )
        if any(side % step for side, step in zip(shape[1:], module.stride, strict=True)):
            # Then the last patches lie in another phase than the first.
            raise TypeError(
                "Conv2d with circular padding has no Lipschitz bound unless its stride divides the "
                f"size of the map, got stride={tuple(module.stride)} for {tuple(shape[1:])}; use "
                "padding_mode='zeros'."
            )
    spans = [d * (k - 1) for d, k in zip(module.dilation, module.weight.shape[2:], strict=True)]
    left, right, top, bottom = module._reversed_padding_repeated_twice
    if min(left, right, top, bottom) < 0 or top + bottom > spans[0] or left + right > spans[1]:
        raise TypeError(
            "Conv2d with circular padding has no Lipschitz bound if a side is padded by less than 0, "
            "or both by more than dilation * (kernel_size - 1), got "
            f"padding={module.padding}; lower padding."
        )


@register_layer(nn.AvgPool2d)
def _avg_pool2d(module: nn.AvgPool2d, shape: Shape) -> MapBound:
    divided_by_other_numbers = {
        "ceil_mode=True": module.ceil_mode,
        "divisor_override": module.divisor_override is not None,
        "count_include_pad=False": not module.count_include_pad and any(both_axes(module.padding)),
    }
    for setting, used in divided_by_other_numbers.items():
        if used:
            raise TypeError(
                f"AvgPool2d with {setting} has no Lipschitz bound, as it does not always divide by "
                "the size of a window; use the default."
            )
    refuse_overlap(module, (1, 1))
    window = math.prod(both_axes(module.kernel_size))
    constant = (1 + 2.0**-51) / math.sqrt(window)

    def rounding(arithmetic: Arithmetic) -> Affine:
        # Without overlap the means of absolute values have the norm of the means.
        slope = arithmetic.gamma(window + 2) * constant
        return Affine(4 * flushed(arithmetic, shape or ()), slope)

    return MapBound(constant, rounding)


@register_layer(layers.ScaledAvgPool2d)
def _scaled_avg_pool(module: layers.ScaledAvgPool2d, shape: Shape) -> MapBound:
    def rounding(arithmetic: Arithmetic) -> Affine:
        window = math.prod(module.kernel_size)
        factor = abs(module.k) * math.sqrt(window)
        lost = (factor * 4 * window + 1) * flushed(arithmetic, shape or ())
        slope = arithmetic.gamma(window + 4) * abs(module.k)
        return Affine(lost, slope + cast_loss(module, factor, arithmetic))

    return MapBound(abs(module.k), rounding)
