r"""The arithmetic that a proof holds for, and the floor under its constants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["FLOOR", "Affine", "Arithmetic", "above_floor", "floored_product", "subnormal"]

# Constants that are not zero are raised to this: far above the subnormal numbers, which products round
# down to zero and processors may flush, and far below whatever matters.
FLOOR = 1e-290
# Covers the rounding of any sum of products of positive numbers that is formed in float64 here.
_SLACK = 1 + 2.0**-40


def above_floor(product: Any, *terms: Any) -> Any:
    """Return a product of numbers >= 0, raised to FLOOR unless one of its terms is zero.

    Parameters
    ----------
    product : float or ndarray
        The product of `terms`, rounded up as far as normal numbers go.
    *terms : float or ndarray

    Returns
    -------
    product : float or ndarray
        A float for floats.
    """
    vanishes: Any = False
    for term in terms:
        vanishes = vanishes | (np.asarray(term) == 0)
    # What is not a number stays so, and certifies nothing.
    raised = np.where(vanishes, 0.0, np.maximum(product, FLOOR))
    return raised if raised.ndim else float(raised)


def floored_product(left: Any, right: Any) -> Any:
    """Return left * right for numbers >= 0, raised to FLOOR unless one of them is zero."""
    return above_floor(left * right, left, right)


# Integers as wide as floating-point numbers of so many bytes.
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def subnormal(values: Tensor) -> Tensor:
    """Return where values are subnormal, also where the processor takes such numbers for 0."""
    bits = values.contiguous().view(_INTEGERS[values.element_size()])
    return (values.abs() < torch.finfo(values.dtype).tiny) & (bits << 1 != 0)


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point format of a computation, and the blocks in which it cuts its sums.

    Rounding bounds assume IEEE arithmetic with round to nearest; flushing of subnormal numbers is
    covered.

    Parameters
    ----------
    dtype : str
        Name of a NumPy floating type.
    block : int, default=None
        Terms of a dot product that are summed at once: smaller blocks lose less to rounding and take
        longer. None: all of them, in whatever order.
    convolution_block : int, default=None
        The same for a convolution, in whole channels: at least one.
    """

    dtype: str
    block: int | None = None
    convolution_block: int | None = None

    def __post_init__(self) -> None:
        if np.dtype(self.dtype).kind != "f":
            raise ValueError(f"dtype must name a floating type, got {self.dtype!r}.")
        for name in ("block", "convolution_block"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be an integer of at least 1 or None, got {value!r}.")

    @classmethod
    def of_networks(cls, dtype: str) -> Self:
        """Return the arithmetic in which networks of a precision are evaluated.

        In float32 long sums are cut into blocks; in float64 they lose next to nothing either way.

        Parameters
        ----------
        dtype : {"float32", "float64"}

        Returns
        -------
        arithmetic : Arithmetic
        """
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
        return cls(dtype, 64, 288) if dtype == "float32" else cls(dtype)

    @property
    def unit(self) -> float:
        """Unit roundoff."""
        return float(np.finfo(self.dtype).eps) / 2

    @property
    def smallest(self) -> float:
        """Smallest normal number: the most that a flushed value loses."""
        return float(np.finfo(self.dtype).tiny)

    @property
    def largest(self) -> float:
        """Largest number."""
        return float(np.finfo(self.dtype).max)

    def gamma(self, n_operations: int) -> float:
        r"""Return :math:`\gamma_n = n u / (1 - n u)`; infinite where nothing can be said."""
        nu = n_operations * self.unit * (1 + 2.0**-50)
        return nu / (1 - nu) if nu < 0.5 else math.inf

    def gamma_of_sum(self, n_terms: int) -> float:
        """Return the constant of a dot product of `n_terms` in blocks, and a bias."""
        block = self.block or max(1, n_terms)
        return self._gamma_of_blocks(min(n_terms, block), -(-n_terms // block))

    def channels_at_once(self, channels: int, taps: int) -> int:
        """Return how many channels of a convolution are summed in one block."""
        return min(channels, max(1, (self.convolution_block or channels * taps) // taps))

    def gamma_of_convolution(self, channels: int, taps: int) -> float:
        """Return the constant of a convolution's sums, by either way to compute them."""
        at_once = self.channels_at_once(channels, taps)
        direct = self._gamma_of_blocks(at_once * taps, -(-channels // at_once))
        return max(direct, self.gamma_of_sum(channels * taps))

    def _gamma_of_blocks(self, terms: int, blocks: int) -> float:
        # Additions in pairs, that of a bias, and one more to be safe.
        return self.gamma(terms + math.ceil(math.log2(blocks)) + 2)


@dataclass(frozen=True)
class Affine:
    r"""The bound :math:`o + s\,t` for t >= 0, a length or a distance.

    Parameters
    ----------
    offset, slope : float, or ndarray of one value a row
        o and s, at least 0.
    """

    offset: float | NDArray[np.float64] = 0.0
    slope: float | NDArray[np.float64] = 0.0

    def __add__(self, other: Affine) -> Affine:
        return Affine(self.offset + other.offset, self.slope + other.slope)

    def rounded_up(self) -> Affine:
        """Return a bound above what the floating-point arithmetic that made this one may have lost."""
        return Affine(self.offset * _SLACK, self.slope * _SLACK)
