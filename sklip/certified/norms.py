r"""Proven upper bounds on the spectral norm of matrices and convolutions, in float64.

Note [Proven eigenvalues]
-------------------------
LAPACK's largest eigenvalue is close to the true one, but nothing says on which side. It serves as
a guess only: if the Cholesky factorisation of :math:`A = s I - G` runs to its end in floating
point, then :math:`A + \Delta A = R^T R` is positive semidefinite for some
:math:`\|\Delta A\|_2 \le \frac{\gamma}{1 - \gamma} \mathrm{tr}(A)`, so
:math:`\lambda_{\max}(G) \le s + \|\Delta A\|_2` (Higham 2002, Theorem 10.3; Rump 2006). The rounding
that made G, and that of the subtraction, is added. Constants are those of complex arithmetic,
which is the worse case.

References
----------
Higham (2002), Accuracy and stability of numerical algorithms, 2nd edition. Rump (2006), Verification
of positive definiteness, BIT 46. Ehlich and Zeller (1964), Schwankung von Polynomen zwischen
Gitterpunkten, Math. Zeitschrift 86.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklip.certified.arithmetic import FLOOR, subnormal

__all__ = [
    "absolute_convolution_norm_upper",
    "column_lengths_upper",
    "convolution_norm_upper",
    "matrix_norm_upper",
    "row_distances_upper",
]

_UNIT = 2.0**-53
# More than a processor that flushes subnormal numbers takes from a number, or from a difference.
_FLUSHED = 2.0**-1020
# Complex numbers of a frequency grid held at once.
_GRID_VALUES = 2**22


def _gamma(n: float) -> float:
    """Bound on the relative rounding error of n operations; complex ones count four times."""
    nu = 4 * n * _UNIT
    return nu / (1 - nu)


def _rounded_up(value: float, operations: int = 4) -> float:
    """A float above the exact value of a short computation that rounded to `value`.

    FLOOR covers what underflow may have taken: far more than sums of subnormal numbers reach.
    """
    return value * (1 + 2 * operations * _UNIT) + FLOOR


def _shifted(gram: Tensor, shift: float, sign: float) -> Tensor:
    """Sign * (gram - shift I)."""
    shifted = sign * gram
    shifted.diagonal(dim1=-2, dim2=-1).sub_(sign * shift)
    return shifted


def _cholesky_charge(gram: Tensor, shift: float) -> float:
    """How far a matrix gram - shift I that passed the Cholesky test may be from semidefinite."""
    size = gram.shape[-1]
    largest = float(gram.diagonal(dim1=-2, dim2=-1).real.abs().max())
    gamma = _gamma(size + 2)
    trace = size * (largest + abs(shift))
    return _rounded_up(gamma / (1 - gamma) * trace + 2 * _UNIT * (largest + abs(shift)), 16)


def _largest_eigenvalue_upper(gram: Tensor) -> float:
    """Upper bound on every eigenvalue of a batch (..., m, m) of Hermitian matrices."""
    if gram.shape[-1] == 1:
        return float(gram.real.max())
    guess = float(torch.linalg.eigvalsh(gram).max())
    charge = _cholesky_charge(gram, guess)
    step = charge
    while True:
        shift = guess + step
        if not torch.linalg.cholesky_ex(_shifted(gram, shift, -1.0)).info.any():
            return _rounded_up(shift + _cholesky_charge(gram, shift))
        step *= 2


def _smallest_eigenvalue_lower(gram: Tensor) -> float:
    """Lower bound, at least 0, on the eigenvalues of a batch of semidefinite matrices."""
    if gram.shape[-1] == 1:
        return max(0.0, float(gram.real.min()))
    guess = float(torch.linalg.eigvalsh(gram).min())
    charge = _cholesky_charge(gram, guess)
    shift = guess - charge
    # A handful of tries: failing to prove a good lower bound costs tightness, never soundness.
    for _ in range(8):
        if shift <= 0:
            break
        if not torch.linalg.cholesky_ex(_shifted(gram, shift, 1.0)).info.any():
            return max(0.0, (shift - _cholesky_charge(gram, shift)) * (1 - 8 * _UNIT))
        shift -= charge
        charge *= 2
    return 0.0


def _finite(values: Tensor) -> Tensor:
    if values.is_complex():
        raise TypeError(f"weights must be real to be certified, got {values.dtype}.")
    stored = values.detach().cpu()
    exact = stored.double()
    if stored.dtype == torch.float32:
        # Subnormal numbers by their bits: a processor that flushes them converts them to 0.
        tiny = subnormal(stored)
        bits = stored.contiguous().view(torch.int32)[tiny]
        sizes = (bits & 0x7FFFFF).double() * 2.0**-149
        exact[tiny] = torch.where(bits < 0, -sizes, sizes)
    if not torch.isfinite(exact).all():
        raise ValueError("weights must be finite to be certified, got NaN or infinite values.")
    return exact


def _bits(values: Tensor) -> Tensor:
    """Integers that differ where the values do, and are 0 where they are 0.

    Compared as numbers, subnormal values are 0 where the processor is set to flush them.
    """
    bits = _finite(values).contiguous().view(torch.int64)
    return torch.where(bits << 1 == 0, 0, bits)


def _scaled(values: Tensor) -> tuple[Tensor, int]:
    """The values divided by a power of two that brings the largest to [0.5, 1), and its exponent.

    Squares then neither overflow nor vanish. What becomes subnormal changes a norm by far less than
    FLOOR.
    """
    exact = _finite(values)
    exponent = math.frexp(float(exact.abs().max()))[1]
    # NumPy's ldexp, since torch's multiplies by 2 ** exponent, which may overflow.
    return torch.from_numpy(np.ldexp(exact.numpy(), -exponent)), exponent


def _unscaled(norm: float, exponent: int) -> float:
    try:
        return _rounded_up(math.ldexp(_rounded_up(norm), exponent))
    except OverflowError:
        return math.inf


def matrix_norm_upper(matrix: Tensor) -> float:
    r"""Upper bound on :math:`\|W\|_2`, the largest singular value, that rounding can't break.

    Parameters
    ----------
    matrix : Tensor of shape (rows, columns)
        W. Any floating dtype up to float64; its values are taken as exact.

    Returns
    -------
    norm : float
        At least the norm; relative excess about 1e-10 for orthogonal matrices of a few hundred rows.

    Examples
    --------
    >>> import torch
    >>> from sklip.certified.norms import matrix_norm_upper
    >>> round(matrix_norm_upper(torch.tensor([[3.0, 0.0], [0.0, 4.0]])), 9)
    4.0
    """
    if not _bits(matrix).any():
        return 0.0
    w, exponent = _scaled(matrix)
    w = w if w.shape[0] <= w.shape[1] else w.mT
    gram = w @ w.mT
    # |fl(W W^T) - W W^T| <= gamma_n |W| |W|^T, whose norm is at most gamma_n ||W||_F^2.
    frobenius = _rounded_up(float(gram.diagonal().sum()), w.numel())
    gram_error = _gamma(w.shape[1] + 1) * frobenius * (1 + _gamma(w.numel()))
    return _unscaled(math.sqrt(_rounded_up(_largest_eigenvalue_upper(gram) + gram_error)), exponent)


def row_distances_upper(matrix: Tensor) -> Tensor:
    r"""Upper bounds on :math:`\|w_i - w_j\|_2` for all pairs of rows, rounding included.

    Parameters
    ----------
    matrix : Tensor of shape (rows, columns)

    Returns
    -------
    distances : Tensor of shape (rows, rows), float64
    """
    exact, bits = _finite(matrix), _bits(matrix)
    # n + 2 roundings under the root, one in each difference, one in the root.
    slack = 1 + 2 * (exact.shape[1] + 8) * _UNIT
    distances = exact.new_empty(len(exact), len(exact))
    for row, row_bits, out in zip(exact, bits, distances, strict=True):
        differences = (exact - row).numpy()
        # Divided by a power of two, so that squares neither overflow nor vanish; below 1e-308, entries
        # up to 1e-154 of the largest, they do vanish.
        exponent = math.frexp(float(np.abs(differences).max()))[1]
        scaled = torch.from_numpy(np.ldexp(differences, -exponent))
        lengths = scaled.square().sum(1).sqrt() * slack
        differ = torch.ones_like(lengths)
        vanished = torch.nonzero(lengths == 0)[:, 0]
        differ[vanished] = (bits[vanished] != row_bits).any(1).double()
        lengths += differ * (1e-150 * exact.shape[1])
        unscaled = torch.from_numpy(np.ldexp(lengths.numpy(), exponent))
        out.copy_(unscaled * (1 + 2 * _UNIT) + differ * (FLOOR + _FLUSHED * exact.shape[1]))
    return distances


def column_lengths_upper(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper bounds on the L2 lengths of the columns of a matrix, rounding included.

    Parameters
    ----------
    matrix : ndarray of shape (rows, columns)

    Returns
    -------
    lengths : ndarray of shape (columns,)
        Infinite where a column is not finite; subnormal numbers may count as 0.
    """
    largest = np.abs(matrix).max(axis=0, initial=0.0)
    finite = np.isfinite(largest)
    # Divided, so that no square overflows or vanishes, but for entries below 1e-154 of the largest.
    divisor = np.where((largest > 0) & finite, largest, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = largest * np.sqrt(np.square(matrix / divisor).sum(axis=0))
        lengths = lengths * (1 + 2 * (len(matrix) + 8) * _UNIT)
    return np.where(finite, lengths, np.inf)


def convolution_norm_upper(kernel: Tensor, stride: tuple[int, int]) -> float:
    r"""Upper bound on the norm of a convolution on maps of any size, rounding included.

    The norm is at most the supremum over frequencies of :math:`\|\hat K(\theta)\|_2`, with
    zero padding always and with circular padding where nothing is wrapped twice. A stride is removed
    first: the kernel's taps are sorted by phase into s times s as many input channels. The
    supremum is bounded from an N x N grid of frequencies: with M and m the extreme eigenvalues of
    the Gram matrices on the grid and :math:`c = \prod_i \cos(\pi (k_i - 1) / N_i)`,

    .. math:: \sup \|\hat K\|^2 \le M + \tfrac{M - m}{2} (1 / c - 1) ,

    which is Ehlich and Zeller's inequality, axis by axis, for the trigonometric polynomials
    :math:`v^* \hat K \hat K^* v - (M + m) / 2` of degree k - 1.

    Parameters
    ----------
    kernel : Tensor of shape (out_channels, in_channels, height, width)
        One group, with dilation written out as zeros.
    stride : (int, int)

    Returns
    -------
    norm : float

    Examples
    --------
    >>> import torch
    >>> from sklip.certified.norms import convolution_norm_upper
    >>> round(convolution_norm_upper(torch.ones(1, 1, 3, 3), (1, 1)), 2)
    9.03
    """
    if not _bits(kernel).any():
        return 0.0
    k, exponent = _scaled(_without_stride(kernel.detach(), stride))
    out_channels, in_channels, height, width = k.shape
    if height == width == 1:
        return _unscaled(matrix_norm_upper(k[:, :, 0, 0]), exponent)
    k = k if out_channels <= in_channels else k.transpose(0, 1)
    sides = [_grid_side(height), _grid_side(width)]
    phases = [_phases(size, side) for size, side in zip((height, width), sides, strict=True)]
    # A real kernel: opposite frequencies have conjugate symbols, half of one axis is enough.
    phases[1] = phases[1][: sides[1] // 2 + 1]
    # |K^ - fl(K^)| <= delta |K|_1 entrywise: sums over taps, and phases exact to a few units.
    delta = _gamma(height * width + 8 * (height + width) + 32)
    size = float(k.abs().sum((2, 3)).square().sum())  # bounds ||K^||_F^2 at every frequency
    gram_error = _rounded_up(
        (2 * delta + delta**2 + _gamma(k.shape[1] + 2) * (1 + delta) ** 2) * size, 64
    )
    largest, smallest = 0.0, math.inf
    rows = max(1, _GRID_VALUES // (len(phases[1]) * k[:, :, 0, 0].numel()))
    for some_phases in phases[0].split(rows):
        symbols = torch.einsum("oihw,ah,bw->aboi", k.to(torch.complex128), some_phases, phases[1])
        grams = symbols.flatten(0, 1) @ symbols.flatten(0, 1).mH
        largest = max(largest, _rounded_up(_largest_eigenvalue_upper(grams) + gram_error))
        smallest = min(smallest, _smallest_eigenvalue_lower(grams) - gram_error)
    smallest = max(0.0, smallest)
    c = math.prod(
        math.cos(math.pi * (taps - 1) / side) for taps, side in zip((height, width), sides, strict=True)
    )
    c *= 1 - 16 * _UNIT
    squared = _rounded_up(largest + (largest - smallest) / 2 * (1 / c - 1), 16)
    return _unscaled(math.sqrt(squared), exponent)


def absolute_convolution_norm_upper(kernel: Tensor, stride: tuple[int, int]) -> float:
    r"""Upper bound on the norm of the convolution by the absolute values of `kernel`.

    With entries of one sign the symbol is largest at frequency 0, where it is the sum over the taps:
    :math:`|\hat K(\theta)| \le \hat K(0)` entry by entry. No grid is needed.

    Parameters
    ----------
    kernel : Tensor of shape (out_channels, in_channels, height, width)
        One group, with dilation written out as zeros.
    stride : (int, int)

    Returns
    -------
    norm : float
    """
    taps = _without_stride(_finite(kernel).abs(), stride)
    return matrix_norm_upper(taps.sum((2, 3))) * (1 + 2 * taps[0, 0].numel() * _UNIT)


def _without_stride(kernel: Tensor, stride: tuple[int, int]) -> Tensor:
    """Kernel of stride 1 on the pixel-unshuffled input with the same norm."""
    out_channels, in_channels, height, width = kernel.shape
    down, right = stride
    rows, columns = -(-height // down), -(-width // right)
    padded = torch.nn.functional.pad(kernel, (0, columns * right - width, 0, rows * down - height))
    split = padded.view(out_channels, in_channels, rows, down, columns, right)
    return split.permute(0, 1, 3, 5, 2, 4).reshape(out_channels, -1, rows, columns)


def _grid_side(taps: int) -> int:
    """Grid points along an axis: c >= 0.985, so the norm is overestimated by 0.4 % at most."""
    return 1 if taps == 1 else 26 * (taps - 1)


def _phases(taps: int, side: int) -> Tensor:
    """exp(-2 pi i a h / side) for a = 0 .. side - 1, h = 0 .. taps - 1."""
    # The product is reduced in integers, so that the angle is exact to one rounding.
    turns = torch.outer(torch.arange(side), torch.arange(taps)) % side
    angles = -2 * math.pi * turns.to(torch.float64) / side
    return torch.polar(torch.ones_like(angles), angles)
