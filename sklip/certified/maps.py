r"""What is proven of one map, and how it adds up along a chain of maps.

Note [Rounding along a chain]
-----------------------------
Write f_i for the exact maps and F_i for what is computed in their place. A rule bounds the error of
one map, :math:`\|F_i(z) - f_i(z)\|_2 \le c_i \|z\|_2 + d_i`. With L_i its Lipschitz constant, s
bounding the length of the exact values and e the error so far,

.. math::
    s_i = L_i s_{i-1} + \|f_i(0)\|, \qquad
    e_i = L_i e_{i-1} + c_i (s_{i-1} + e_{i-1}) + d_i .

Both are affine: in the length of the input for a network, which is walked once when it is proven; in
the distance of x' from x for the steps of a pipeline, whose values at x are at hand.

References
----------
Higham (2002), Accuracy and stability of numerical algorithms, 2nd edition, chapters 2 and 3. Jin et al.
(2022), Getting a-round guarantees, arXiv 2205.10159.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklip.certified.arithmetic import FLOOR, Affine, Arithmetic, above_floor, floored_product
from sklip.certified.integrity import refuse_altered

__all__ = [
    "Course",
    "MapBound",
    "Registry",
    "composed",
    "exact",
    "lipschitz_constant",
    "longest_input",
    "product_upper",
]

Rule = TypeVar("Rule", bound=Callable[..., "MapBound"])


def exact(arithmetic: Arithmetic) -> Affine:
    """No rounding at all: of maps that copy and compare."""
    return Affine()


@dataclass(frozen=True)
class MapBound:
    r"""What is proven of one map f, and of F, which is computed in its place.

    :math:`\|f(x) - f(x')\|_2 \le L \|x - x'\|_2` and :math:`\|F(x) - f(x)\|_2 \le c \|x\|_2 + d` for
    all x and x', each a sample flattened to a vector.

    Parameters
    ----------
    constant : float
        L, of the exact map.
    rounding : callable, default=None
        Function of an :class:`~sklip.certified.Arithmetic` (of float64 as well for a network in
        float32) that returns the :class:`~sklip.certified.Affine` bound d + c t on the error; c t + d
        over the unit roundoff has to bound every partial sum, so that overflow can be excluded. `exact`
        for maps that only copy and compare; None where nothing is known, and no certificate can be
        given: asking for it is then a TypeError that names the map.
    at_zero : float, default=0.0
        Bound on the length of f(0). Of layers it is found by evaluation, and need not be given.
    factors : ndarray or float, default=None
        If output j depends, also as computed, on one input alone: a change of that by d moves the
        output by at most ``factors[j]`` times d, and by nothing if the factor is 0.
    sources : ndarray of shape (n_outputs,), default=None
        Which input that is; None where output j comes from input j.
    matrix : Tensor of shape (n_outputs, n_inputs), default=None
        If f(x) - f(x') is a matrix times x - x': that matrix, with entries that may be off by 2 ** -50
        of themselves.
    reads : ndarray of int, default=None
        Inputs that f depends on; None: all.
    linear : bool, default=False
        Whether output j is moved by exactly ``factors[j]`` times d; factors then have signs, and may be
        off by 2 ** -50 of themselves unless they are 0 or 1. Such a map is folded into matrices on
        either side of it.

    Examples
    --------
    >>> from sklip.certified import Affine, MapBound
    >>> MapBound(0.5, rounding=lambda arithmetic: Affine(arithmetic.smallest, arithmetic.unit)).constant
    0.5
    """

    constant: float
    rounding: Callable[[Arithmetic], Affine] | None = None
    at_zero: float = 0.0
    factors: NDArray[np.float64] | float | None = None
    sources: NDArray[np.intp] | None = None
    matrix: Tensor | None = None
    reads: NDArray[np.intp] | None = None
    linear: bool = False

    def error_in(self, arithmetic: Arithmetic) -> Affine:
        """Return the bound d + c t on the error of one evaluation, for an input of length t."""
        assert self.rounding is not None, "a registry puts a refusal in the place of None"
        error = self.rounding(arithmetic)
        if not (error.offset >= 0 and error.slope >= 0):
            raise ValueError(f"a rounding bound must be at least 0, got {error}.")
        return error

    def carry(self, error: Affine, reached: Affine, own: Affine) -> Affine:
        """Return the error behind the map.

        Parameters
        ----------
        error : Affine
            The error of its input.
        reached : Affine
            The length of its input as computed.
        own : Affine
            The error of its own evaluation, from :meth:`error_in`.

        Returns
        -------
        error : Affine
        """
        return Affine(
            floored_product(self.constant, error.offset)
            + floored_product(own.slope, reached.offset)
            + own.offset,
            floored_product(self.constant, error.slope) + floored_product(own.slope, reached.slope),
        )

    def grow(self, value: Affine) -> Affine:
        """Return the bound on the length of exact values behind the map, from that before it."""
        return Affine(
            floored_product(self.constant, value.offset) + self.at_zero,
            floored_product(self.constant, value.slope),
        )


class Registry:
    """Rules by exact type: what has none is refused, for a certificate that rests on a guess is worse.

    Parameters
    ----------
    unknown : str
        Message for a type without a rule; ``{name}`` stands for it.
    """

    def __init__(self, unknown: str) -> None:
        self._unknown = unknown
        self._rules: dict[type, Callable[..., MapBound]] = {}

    def register(self, *types: type) -> Callable[[Rule], Rule]:
        """Decorator: the function describes objects of exactly these types."""

        def registered(rule: Rule) -> Rule:
            for each in types:
                self._rules[each] = rule
            return rule

        return registered

    def types(self) -> dict[str, type]:
        """Return the known types by their full names."""
        return {f"{known.__module__}.{known.__qualname__}": known for known in self._rules}

    def is_foreign(self, item: Any) -> bool:
        """Whether the rule of an object is none of sklip's own."""
        rule = self._rules.get(type(item))
        return rule is not None and not str(getattr(rule, "__module__", "")).startswith("sklip.")

    def refuse_unknown(self, item: Any) -> None:
        """Raise a TypeError unless there is a rule and the object is what its class says."""
        if type(item) not in self._rules:
            raise TypeError(self._unknown.format(name=type(item).__name__))
        refuse_altered(item)

    def bound(self, item: Any, *context: Any) -> MapBound:
        """Return what is proven of an object.

        Raises
        ------
        TypeError
            For a type without a rule, hooks or replaced methods.
        ValueError
            For constants that are not finite.
        """
        self.refuse_unknown(item)
        bound, name = self._rules[type(item)](item, *context), type(item).__name__
        if not isinstance(bound, MapBound):
            raise TypeError(f"the rule of {name} must return a MapBound, got {bound!r}.")
        factors = None if bound.factors is None else np.asarray(bound.factors, dtype=np.float64)
        if factors is not None and not (np.isfinite(factors) & (bound.linear | (factors >= 0))).all():
            raise ValueError(
                f"the factors of {name} must be finite and at least 0, got {bound.factors}; give their "
                "absolute values, or say linear=True."
            )
        if bound.matrix is not None and not torch.isfinite(bound.matrix).all():
            raise ValueError(f"the matrix of {name} must be finite.")
        return replace(
            bound,
            constant=lipschitz_constant(bound.constant, item),
            at_zero=lipschitz_constant(bound.at_zero, item),
            rounding=_refusing(name) if bound.rounding is None else bound.rounding,
            factors=factors if factors is None or factors.ndim else float(factors),
        )


def _refusing(name: str) -> Callable[[Arithmetic], Affine]:
    def rounding(arithmetic: Arithmetic) -> Affine:
        raise TypeError(
            f"{name} has no bound on its rounding error; give its rule one, or use what has one: plain "
            "layers, as from sklip.layers.to_torch, in the place of constrained ones."
        )

    return rounding


def lipschitz_constant(value: float, described: Any) -> float:
    """Return a value, of at least FLOOR or 0, if it can be a Lipschitz constant."""
    if not 0 <= value < math.inf:
        raise ValueError(
            f"the Lipschitz bound of {type(described).__name__} must be finite and at least 0, got "
            f"{value!r}."
        )
    number = float(value)
    # By its bits: as a number, a subnormal one is 0 where the processor is set to flush it.
    return max(number, FLOOR) if np.float64(number).view(np.int64) else 0.0


def product_upper(constants: Iterable[float]) -> float:
    """Return a product rounded up; above zero if no factor is zero."""
    product = 1.0
    for constant in constants:
        product = above_floor(product * constant * (1 + 2.0**-51), product, constant)
    return product


class Course:
    """Bounds on values and errors before each map of a chain and behind the last.

    Parameters
    ----------
    chain : sequence of MapBound
        The maps in order.
    arithmetic : Arithmetic
    start : Affine, default=Affine()
        Error of the input itself.

    Attributes
    ----------
    values, errors : list of Affine, one more than maps
        For an input of length t, the exact values are at most ``values[i]`` at t long, and the computed
        ones within ``errors[i]`` of them.
    own_errors : list of Affine
        Error of each map alone.
    """

    def __init__(
        self, chain: Sequence[MapBound], arithmetic: Arithmetic, start: Affine | None = None
    ) -> None:
        value, error = Affine(0.0, 1.0), Affine() if start is None else start
        values, errors = [value], [error]
        self.own_errors = [bound.error_in(arithmetic) for bound in chain]
        for bound, own in zip(chain, self.own_errors, strict=True):
            error = bound.carry(error, value + error, own)
            value = bound.grow(value)
            values.append(value)
            errors.append(error)
        self.values = [value.rounded_up() for value in values]
        self.errors = [error.rounded_up() for error in errors]

    @property
    def lengths(self) -> list[Affine]:
        """Bounds on the lengths of the computed values."""
        return [value + error for value, error in zip(self.values, self.errors, strict=True)]


def composed(chain: Sequence[MapBound]) -> MapBound:
    """Return what is proven of several maps, one after the other."""
    value = Affine(0.0, 1.0)
    for bound in chain:
        value = bound.grow(value)
    value = value.rounded_up()

    def rounding(arithmetic: Arithmetic) -> Affine:
        return Course(chain, arithmetic).errors[-1]

    return MapBound(float(value.slope), rounding, float(value.offset))


def longest_input(course: Course, arithmetic: Arithmetic) -> float:
    r"""Return a length up to which no input can overflow in a chain.

    The bounds on errors hold as long as nothing overflows. A rule's c t + d over the unit roundoff
    bounds every partial sum of a map; values themselves are kept below the root of the largest number,
    since pools square them.

    Parameters
    ----------
    course : Course
    arithmetic : Arithmetic

    Returns
    -------
    length : float
        At least 0.
    """
    room = math.sqrt(arithmetic.largest) / 4
    longest = room / 2
    lengths, unit = course.lengths, arithmetic.unit
    peaks = list(lengths)
    for length, own in zip(lengths, course.own_errors, strict=False):
        peaks.append(
            Affine((own.slope * length.offset + own.offset) / unit, own.slope * length.slope / unit)
        )
    for peak in peaks:
        if peak.slope > 0:
            longest = min(longest, float((room - peak.offset) / peak.slope))
    return max(0.0, longest)
