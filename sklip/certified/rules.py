r"""Rules of layers: what is proven of each exact type, and of chains of them.

One rule gives the constant and the rounding of a type. What has no rule is refused. Nothing here
samples or estimates.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sklip import layers
from sklip.certified.arithmetic import Affine, Arithmetic
from sklip.certified.direct_sums import flat_chain
from sklip.certified.maps import Course, MapBound, Registry, composed, product_upper

__all__ = [
    "LAYERS",
    "Shape",
    "at_zeros",
    "described_chain",
    "flushed",
    "in_float64",
    "length_upper",
    "lipschitz_bound",
    "register_layer",
]

# Of one sample; None where nobody said it.
Shape = tuple[int, ...] | None

LAYERS = Registry(
    "{name} has no Lipschitz bound; use a layer that has one, or add a proven rule with "
    "sklip.certified.register_layer."
)


def register_layer(*module_types: type[nn.Module]) -> Callable[..., Any]:
    """Decorator: the function says what is proven of modules of exactly these types.

    The function takes ``(module, shape)`` and returns a :class:`~sklip.certified.MapBound`. `shape` is
    that of one sample, or None where :func:`sklip.lipschitz_bound` was not told; the bound on rounding
    is asked for only where it is known. It is asked for float64 also where a network is in float32, and
    the module is then evaluated in both: it has to compute in the precision of its input.

    Parameters
    ----------
    *module_types : type
        Classes of modules. Subclasses are not covered.

    Examples
    --------
    >>> import torch
    >>> from sklip.certified import MapBound, exact, lipschitz_bound, register_layer
    >>> class Negate(torch.nn.Module):
    ...     def forward(self, x):
    ...         return -x
    >>> @register_layer(Negate)
    ... def _(module, shape):
    ...     return MapBound(1.0, rounding=exact)  # a change of sign rounds nothing
    >>> lipschitz_bound(Negate())
    1.0
    """
    return LAYERS.register(*module_types)


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
        replaced ``forward``; :func:`sklip.certified.register_layer` adds a rule.
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
    return LAYERS.bound(module, None if input_shape is None else tuple(input_shape)).constant


def described_chain(chain: Iterable[nn.Module], shape: Shape) -> tuple[list[MapBound], Shape]:
    """Say what is proven of several modules, of which each takes what the one before gives.

    Parameters
    ----------
    chain : iterable of torch.nn.Module
    shape : tuple of int, or None
        Shape of one sample, at the input.

    Returns
    -------
    bounds : list of MapBound
        With their values at 0, if the shape is known.
    shape : tuple of int, or None
        Shape at the output.
    """
    bounds = []
    for module in chain:
        bound = LAYERS.bound(module, shape)
        if shape is not None:
            # The value at zero: a bias, spread over the map.
            image = at_zeros(module, shape)
            if len(image) != 1:
                raise TypeError(
                    f"{type(module).__name__} must treat samples apart, but makes {len(image)} of one."
                )
            if not torch.isfinite(image).all():
                raise ValueError(
                    f"{type(module).__name__} must give finite values for a sample of zeros, as its "
                    "weights must be finite to be certified."
                )
            bound, shape = replace(bound, at_zero=length_upper(image)), tuple(image.shape[1:])
        bounds.append(bound)
    return bounds, shape


@torch.no_grad()
def at_zeros(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Return the value, in float64, for one sample of zeros."""
    try:
        image: Tensor = in_float64(module)(torch.zeros(1, *shape, dtype=torch.float64, device="cpu"))
    except RuntimeError as error:
        raise ValueError(
            f"{type(module).__name__} can't take samples of shape {shape}: {error}."
        ) from error
    return image


def in_float64(module: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in float64."""
    return copy.deepcopy(module).cpu().double()


def length_upper(values: Tensor) -> float:
    """Upper bound on the length of all values; its own rounding is far below the factor."""
    exact_values = values.detach().double()
    largest = float(exact_values.abs().max())
    if not 0 < largest < math.inf:
        return largest
    # Divided, so that no square vanishes or overflows.
    return largest * float((exact_values / largest).norm()) * (1 + 2.0**-30)


def flushed(arithmetic: Arithmetic, shape: Iterable[int]) -> float:
    """Length of what is lost if all values of a sample of this shape are flushed to zero."""
    return arithmetic.smallest * math.sqrt(math.prod(shape))


@register_layer(nn.Sequential)
def _sequential(module: nn.Sequential, shape: Shape) -> MapBound:
    bounds, _ = described_chain(module, shape)
    return replace(composed(bounds), constant=product_upper(bound.constant for bound in bounds))


@register_layer(layers.SpectralLinear, layers.SpectralConv2d, layers.OrthogonalConv2d)
def _constrained(module: nn.Module, shape: Shape) -> MapBound:
    # In training its kernels are computed anew in each pass, of which no rounding is known.
    return replace(LAYERS.bound(layers.to_torch(module), shape), rounding=None)


@register_layer(layers.Sequential)
def _constrained_sequential(module: layers.Sequential, shape: Shape) -> MapBound:
    # Child by child: an export of the whole would drop hooks and replaced methods unseen.
    factor = abs(module.factor) * (1 + 2.0**-51)
    bounds, _ = described_chain(module, shape)
    return MapBound(product_upper([factor, *(bound.constant for bound in bounds)]))


@register_layer(layers.Residual)
def _residual(module: layers.Residual, shape: Shape) -> MapBound:
    branch, _ = described_chain((layer for child in module for layer in flat_chain(child)), shape)

    def rounding(arithmetic: Arithmetic) -> Affine:
        # The branch starts with the computed values, of which it may flush some to zero.
        lost = flushed(arithmetic, shape or ())
        course = Course(branch, arithmetic, Affine(lost, 0.0))
        lengths, error, unit = course.lengths, course.errors[-1], arithmetic.unit
        # The sum rounds; where it is done in float64, the result is cast.
        slopes = [error.slope + 2 * unit * (1 + lengths[-1].slope)]
        offsets = [error.offset + 2 * unit * lengths[-1].offset + 4 * lost]
        # A rounding bound over the unit has to bound all that grows inside: here, the values between
        # the layers of the branch, and what their own rules speak for.
        slopes += [unit * length.slope for length in lengths]
        offsets += [unit * length.offset for length in lengths]
        for length, own in zip(lengths, course.own_errors, strict=False):
            slopes.append(own.slope * length.slope)
            offsets.append(own.slope * length.offset + own.offset)
        return Affine(max(offsets), max(slopes)).rounded_up()

    constant = math.nextafter(1 + product_upper(bound.constant for bound in branch), math.inf)
    return MapBound(constant, rounding)
