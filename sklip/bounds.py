r"""Proven Lipschitz constants of torch modules.

A rule is looked up by exact type. What has no rule is refused: a certificate that rests on a guess
is worse than none. Nothing here samples or estimates.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from sklip import layers
from sklip.norms import convolution_norm_upper, matrix_norm_upper

__all__ = [
    "both_axes",
    "chain_bounds",
    "checked_bound",
    "lipschitz_bound",
    "plain_groups",
    "refuse_altered",
    "register_lipschitz_bound",
    "rounded_up_product",
]

Rule = TypeVar("Rule", bound=Callable[[Any], float])
ShapedRule = TypeVar("ShapedRule", bound=Callable[[Any, "Shape"], float])

# A rule takes the module and the shape of one sample, which is None where nobody asked for it.
Shape = tuple[int, ...] | None
_MODULE_RULES: dict[type, Callable[[Any, Shape], float]] = {}


def register_lipschitz_bound(*module_types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Decorator: the function bounds the Lipschitz constant of modules of exactly these types.

    Parameters
    ----------
    *module_types : type
        Classes of modules. Subclasses are not covered.

    Examples
    --------
    >>> import torch
    >>> from sklip.bounds import lipschitz_bound, register_lipschitz_bound
    >>> class Negate(torch.nn.Module):
    ...     def forward(self, x):
    ...         return -x
    >>> @register_lipschitz_bound(Negate)
    ... def _(module):
    ...     return 1.0
    >>> lipschitz_bound(Negate())
    1.0
    """

    def register(rule: Rule) -> Rule:
        _register_with_shape(*module_types)(lambda module, shape: rule(module))
        return rule

    return register


def _register_with_shape(*module_types: type[nn.Module]) -> Callable[[ShapedRule], ShapedRule]:
    def register(rule: ShapedRule) -> ShapedRule:
        for module_type in module_types:
            _MODULE_RULES[module_type] = rule
        return rule

    return register


def lipschitz_bound(module: nn.Module, input_shape: Sequence[int] | None = None) -> float:
    r"""Proven L with :math:`\|f(x) - f(x')\|_2 \le L \|x - x'\|_2` for the exact function of `module`.

    The bound comes from the weights alone, in float64, with its own rounding charged: matrices by
    their largest singular value, convolutions by the supremum of their symbol, a chain by the
    product, a residual by 1 plus the bound of its branch. It speaks of each sample of a batch,
    flattened to a vector, and of exact arithmetic: the rounding of the forward pass itself is not part
    of it.

    Parameters
    ----------
    module : torch.nn.Module
        A module all of whose parts have a rule, in the state in which it will be used.
    input_shape : sequence of int, default=None
        Shape of one sample, without the batch. Only convolutions with circular padding and a stride
        need it: their bound holds where the stride divides the size of the map.

    Returns
    -------
    bound : float

    Raises
    ------
    TypeError
        For a part without a rule (subclasses of known layers included), with hooks, or with a
        replaced ``forward``; :func:`register_lipschitz_bound` adds a rule.
    ValueError
        For weights that are not finite.

    Examples
    --------
    >>> import torch
    >>> from sklip import lipschitz_bound
    >>> linear = torch.nn.Linear(2, 2)
    >>> with torch.no_grad():
    ...     _ = linear.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    >>> round(lipschitz_bound(torch.nn.Sequential(linear, torch.nn.ReLU())), 9)
    2.0
    """
    (bound,) = chain_bounds([module], input_shape)
    return bound


def chain_bounds(chain: Sequence[nn.Module], input_shape: Sequence[int] | None) -> list[float]:
    """Return the bound of each of several modules, of which each takes what the one before gives.

    Parameters
    ----------
    chain : sequence of torch.nn.Module
    input_shape : sequence of int, or None
        As for :func:`lipschitz_bound`.

    Returns
    -------
    bounds : list of float
    """
    known = [module for module in chain if isinstance(module, nn.Module)]
    asks = any(_asks_for_size(part) for module in known for part in module.modules())
    return _chain_bounds(chain, None if input_shape is None or not asks else tuple(input_shape))


def _chain_bounds(chain: Iterable[nn.Module], shape: Shape) -> list[float]:
    bounds = []
    for module in chain:
        bounds.append(_bound(module, shape))
        shape = _output_shape(module, shape)
    return bounds


def _output_shape(module: nn.Module, shape: Shape) -> Shape:
    if shape is None:
        return None
    probe = copy.deepcopy(module).to("meta", torch.float32)
    with torch.no_grad():
        return tuple(probe(torch.empty(1, *shape, device="meta")).shape[1:])


def _asks_for_size(module: nn.Module) -> bool:
    convolutions = (nn.Conv2d, layers.SpectralConv2d, layers.OrthogonalConv2d)
    if not isinstance(module, convolutions) or module.padding_mode != "circular":
        return False
    return tuple(module.stride) != (1, 1)


def _bound(module: nn.Module, shape: Shape) -> float:
    rule = _MODULE_RULES.get(type(module))
    if rule is None:
        raise TypeError(
            f"{type(module).__name__} has no Lipschitz bound; use a layer that has one, or add a "
            "proven rule with sklip.bounds.register_lipschitz_bound."
        )
    refuse_altered(module)
    return checked_bound(rule(module, shape), module)


def rounded_up_product(factors: Iterable[float]) -> float:
    """Product rounded up; above zero if no factor is zero."""
    bound = 1.0
    for factor in factors:
        if factor == 0:
            return 0.0
        bound = max(bound * factor * (1 + 2.0**-51), 5e-324)
    return bound


def checked_bound(bound: float, described: Any) -> float:
    """Return what a rule gave, if it can be a Lipschitz constant."""
    if not 0 <= bound < math.inf:
        raise ValueError(
            f"the Lipschitz bound of {type(described).__name__} must be finite and at least 0, got "
            f"{bound!r}."
        )
    return float(bound)


def refuse_altered(module: nn.Module) -> None:
    """Refuse a module that computes something else than its class says."""
    name = type(module).__name__
    # Of every kind: on outputs, on gradients, on what is stored and loaded.
    hooks = [value for key, value in vars(module).items() if key.endswith("_hooks")]
    hooks += [
        torch_module._global_forward_hooks,
        torch_module._global_forward_pre_hooks,
        torch_module._global_backward_hooks,
        torch_module._global_backward_pre_hooks,
    ]
    if any(hooks):
        raise TypeError(f"{name} has hooks, which may change what it computes; remove them.")
    replaced = [
        key for key, value in vars(module).items() if callable(value) and hasattr(type(module), key)
    ]
    if replaced:
        raise TypeError(f"{name} has a replaced {replaced[0]} method; restore the one of its class.")


@register_lipschitz_bound(nn.Linear)
def _linear(module: nn.Linear) -> float:
    return matrix_norm_upper(module.weight)


@_register_with_shape(nn.Conv2d)
def _conv2d(module: nn.Conv2d, shape: Shape) -> float:
    if not isinstance(module.padding, str):
        height, width = module.padding
        if [*module._reversed_padding_repeated_twice] != [width, width, height, height]:
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
    # Groups act on channels of their own: the largest norm counts.
    return max(convolution_norm_upper(part, stride) for part, stride in plain_groups(module))


def plain_groups(module: nn.Conv2d) -> Iterator[tuple[Tensor, tuple[int, int]]]:
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
    if _asks_for_size(module):
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
    if top + bottom > spans[0] or left + right > spans[1]:
        raise TypeError(
            "Conv2d with circular padding has no Lipschitz bound if the padding of both sides exceeds "
            f"dilation * (kernel_size - 1), got padding={module.padding}; lower padding."
        )


@register_lipschitz_bound(
    nn.Identity,
    nn.ReLU,
    nn.Tanh,
    layers.Center,
    layers.Flatten,
    layers.FullSort,
    layers.GroupSort,
    layers.GroupSort2,
)
def _one(module: nn.Module) -> float:
    return 1.0


@register_lipschitz_bound(nn.Flatten)
def _flatten(module: nn.Flatten) -> float:
    if module.start_dim != 1:
        raise TypeError(f"Flatten must keep the samples apart, got start_dim={module.start_dim}.")
    return 1.0


@register_lipschitz_bound(nn.LeakyReLU)
def _leaky_relu(module: nn.LeakyReLU) -> float:
    return max(abs(float(module.negative_slope)), 1.0)


@register_lipschitz_bound(nn.Sigmoid)
def _sigmoid(module: nn.Sigmoid) -> float:
    return 0.25


@register_lipschitz_bound(nn.Softplus)
def _softplus(module: nn.Softplus) -> float:
    # Of the real function: its slope is a sigmoid, whatever the sign of beta. Where torch switches to
    # the identity it jumps; that is an error of the computation, and charged by its rounding rule.
    if not 0 < abs(module.beta) < math.inf:
        raise TypeError(f"Softplus has no Lipschitz bound for beta={module.beta}; use another beta.")
    return 1.0


@register_lipschitz_bound(nn.MaxPool2d)
def _max_pool2d(module: nn.MaxPool2d) -> float:
    if module.return_indices:
        raise TypeError("MaxPool2d with return_indices=True has no Lipschitz bound; set it to False.")
    # The largest of a window moves by at most the largest change in it. Padding never is the largest,
    # and ceil_mode adds windows of what is left over: no pixel lies in two windows.
    _refuse_overlap(module, both_axes(module.dilation))
    return 1.0


@register_lipschitz_bound(nn.AvgPool2d)
def _avg_pool2d(module: nn.AvgPool2d) -> float:
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
    _refuse_overlap(module, (1, 1))
    return (1 + 2.0**-51) / math.sqrt(math.prod(both_axes(module.kernel_size)))


def both_axes(setting: Any) -> tuple[int, int]:
    """Return what torch's pools read for height and width: one number stands for both."""
    numbers = tuple(setting) if isinstance(setting, tuple | list) else (setting,)
    height, width = numbers if len(numbers) == 2 else numbers * 2
    return int(height), int(width)


def _refuse_overlap(module: nn.MaxPool2d | nn.AvgPool2d, dilation: tuple[int, int]) -> None:
    """Refuse windows that share pixels, which count twice."""
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


@register_lipschitz_bound(nn.Dropout, nn.Dropout2d)
def _dropout(module: nn.Dropout) -> float:
    if module.training:
        raise TypeError(
            f"{type(module).__name__} in training mode is random and has no bound; call module.eval()."
        )
    return 1.0


@register_lipschitz_bound(layers.Scale, layers.ScaledL2NormPool2d, layers.ScaledAvgPool2d)
def _scaled(module: layers.Scale) -> float:
    return abs(module.k)


@_register_with_shape(nn.Sequential)
def _sequential(module: nn.Sequential, shape: Shape) -> float:
    return rounded_up_product(_chain_bounds(module, shape))


@_register_with_shape(
    layers.SpectralLinear,
    layers.SpectralConv2d,
    layers.OrthogonalConv2d,
)
def _constrained(module: nn.Module, shape: Shape) -> float:
    return _bound(layers.to_torch(module), shape)


@_register_with_shape(layers.Sequential)
def _constrained_sequential(module: layers.Sequential, shape: Shape) -> float:
    # Child by child: an export of the whole would drop hooks and replaced methods unseen.
    factor = abs(module.factor) * (1 + 2.0**-51)
    return rounded_up_product([factor, *_chain_bounds(module, shape)])


@_register_with_shape(layers.Residual)
def _residual(module: layers.Residual, shape: Shape) -> float:
    branch = rounded_up_product(_chain_bounds(module, shape))
    return math.nextafter(1 + branch, math.inf)
