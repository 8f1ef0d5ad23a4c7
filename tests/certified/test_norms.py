"""Proven norms against exact rational arithmetic, dense matrices and fine frequency grids."""

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sklip.certified.norms import (
    _largest_eigenvalue_upper,
    _smallest_eigenvalue_lower,
    column_lengths_upper,
    convolution_norm_upper,
    matrix_norm_upper,
    row_distances_upper,
)

EPS = float(np.finfo(np.float64).eps)
# What a proof may add for whatever has been lost to underflow, far above the smallest float.
UNDERFLOW = 1e-289


def tight(n):
    """What a proven bound on a matrix of side n may exceed the norm by, as a factor."""
    # The charges are products of 4 n eps with a trace or a squared Frobenius norm: n |W|^2 at most.
    return 1 + 16 * n * n * EPS


def fractions(array):
    return [Fraction(float(value)) for value in np.ravel(array)]


def squared_norm(values):
    return sum(value * value for value in fractions(values))


def squared_matrix_norm_lower(w):
    """Exact Rayleigh quotient of NumPy's singular vector: never above the exact norm's square."""
    v = fractions(np.linalg.svd(w)[2][0])
    image = [sum(a * b for a, b in zip(fractions(row), v, strict=True)) for row in w]
    return sum(value * value for value in image) / sum(value * value for value in v)


def finite_matrices(limit):
    shapes = st.tuples(st.integers(1, 6), st.integers(1, 6))
    return hnp.arrays(np.float64, shapes, elements=st.floats(-limit, limit))


# -- eigenvalues -------------------------------------------------------------------------------


def rayleigh_quotient(gram, vector):
    """Exact quotient of a symmetric matrix: between its smallest and its largest eigenvalue."""
    v = fractions(vector)
    image = [sum(a * b for a, b in zip(fractions(row), v, strict=True)) for row in gram]
    return sum(a * b for a, b in zip(v, image, strict=True)) / sum(value * value for value in v)


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_proven_eigenvalues_enclose_exact_rayleigh_quotients(rank):
    # Of NumPy's eigenvectors, which are exact to second order: LAPACK's own values fail this test.
    for seed in range(30):
        factor = np.random.default_rng(seed).normal(size=(8, rank))
        gram = factor @ factor.T
        gram = (gram + gram.T) / 2
        vectors = np.linalg.eigh(gram)[1]
        upper = _largest_eigenvalue_upper(torch.from_numpy(gram)[None])
        lower = _smallest_eigenvalue_lower(torch.from_numpy(gram)[None])
        largest = rayleigh_quotient(gram, vectors[:, -1])
        assert largest <= Fraction(upper) <= largest * Fraction(tight(8))
        if rank == 8:
            assert 0 <= Fraction(lower) <= rayleigh_quotient(gram, vectors[:, 0])
            assert lower >= np.linalg.eigvalsh(gram)[0] - (tight(8) - 1) * upper
        else:
            assert lower <= 16 * EPS * upper  # the exact one is 0 up to the rounding of the matrix


# -- matrices ----------------------------------------------------------------------------------


@given(finite_matrices(1e3))
@settings(deadline=None, max_examples=150)
def test_bound_dominates_the_exact_norm_and_is_tight(w):
    upper = matrix_norm_upper(torch.from_numpy(w))
    assert Fraction(upper) ** 2 >= squared_matrix_norm_lower(w)
    assert upper <= np.linalg.norm(w, 2) * tight(6) + UNDERFLOW


@given(hnp.arrays(np.float64, (4, 5), elements=st.floats(-1, 1)), st.data())
@settings(deadline=None, max_examples=100)
def test_bound_dominates_the_exact_norm_of_badly_scaled_matrices(w, data):
    rows = data.draw(hnp.arrays(np.float64, 4, elements=st.floats(-120, 120)))
    w = 10.0 ** rows[:, None] * w
    upper = matrix_norm_upper(torch.from_numpy(w))
    assert Fraction(upper) ** 2 >= squared_matrix_norm_lower(w)
    assert upper <= np.linalg.norm(w, 2) * tight(6) + UNDERFLOW


@pytest.mark.parametrize("shape", [(7, 11), (60, 40), (200, 300)])
@pytest.mark.parametrize("scale", [1.0, 1e-100, 1e100])
def test_bound_is_tight_for_orthogonal_matrices(shape, scale):
    # No gap between singular values: the worst case for an eigenvalue solver's order of them.
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(max(shape), min(shape))))[0]
    upper = matrix_norm_upper(torch.from_numpy(scale * q)) / scale
    # QR is orthogonal up to n eps only.
    assert 1 - max(shape) * EPS <= upper <= tight(max(shape))


@pytest.mark.parametrize(
    ("matrix", "squared"),
    [
        (np.diag([3.0, -4.0, 1.0]), 16),
        (np.diag([0.1, 0.1, 0.1]), Fraction(0.1) ** 2),
        (scipy.linalg.hadamard(16).astype(float), 16),
        (np.outer([1.0, 2.0, 2.0], [4.0, 0.0, 3.0]), 9 * 25),
        (np.ones((7, 5)), 35),
        (np.array([[1.0, 1.0], [0.0, 0.0]]), 2),
        (np.array([[0.1, 0.2, 0.3]]), squared_norm([0.1, 0.2, 0.3])),
        (np.array([[0.1], [0.7]]), squared_norm([0.1, 0.7])),
        (np.array([[-2.5]]), Fraction(25, 4)),
        (np.array([[0.0, 1.0], [1.0, 0.0]]), 1),
    ],
)
def test_bound_dominates_norms_that_are_known_exactly(matrix, squared):
    upper = Fraction(matrix_norm_upper(torch.from_numpy(matrix)))
    assert squared <= upper**2 <= squared * Fraction(tight(16)) ** 2


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-200, 1e-146, 1e-100, 1e100, 1e150, 1e200, 1e307])
@pytest.mark.parametrize(
    ("matrix", "squared"),
    [
        (np.eye(3), 1),
        (np.ones((2, 5)), 10),
        (np.ones((1, 3)), 3),
        (np.eye(1), 1),
        (np.array([[-1.0, 0.0]]), 1),
    ],
)
def test_bound_survives_huge_and_tiny_scales(matrix, squared, scale):
    upper = matrix_norm_upper(torch.from_numpy(matrix * scale))
    assert Fraction(upper) ** 2 >= squared * Fraction(scale) ** 2
    assert upper <= math.sqrt(squared) * scale * tight(5) + UNDERFLOW


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 5), (0, 3), (3, 0)])
def test_zero_matrix_has_norm_zero(shape):
    assert matrix_norm_upper(torch.zeros(shape)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_of_any_floating_dtype_are_taken_as_exact(dtype, seeded_torch):
    w = torch.randn(4, 6).to(dtype)
    exact = w.double().numpy()
    assert Fraction(matrix_norm_upper(w)) ** 2 >= squared_matrix_norm_lower(exact)
    assert matrix_norm_upper(w) == matrix_norm_upper(w.double())


def test_a_parameter_and_a_transposed_view_are_accepted():
    weight = torch.nn.Parameter(torch.diag(torch.tensor([1.0, 2.0, 3.0]))[:, 1:])
    for view in (weight, weight.T):
        assert 3 <= matrix_norm_upper(view) <= 3 * tight(3)


@pytest.mark.parametrize("bound", [matrix_norm_upper, row_distances_upper])
def test_complex_matrices_are_refused(bound):
    with pytest.raises(TypeError, match=r"must be real .*complex64"):
        bound(torch.full((1, 1), 5j))


@pytest.mark.parametrize("shape", [(1, 2**14), (2**14, 1)])
def test_the_bound_covers_squares_that_are_lost_in_the_sum(shape):
    # The square of each small number is half a unit of the large one's.
    row = torch.full((2**14,), 2.0**-27, dtype=torch.float64)
    row[0] = 1
    squared = 1 + (2**14 - 1) * Fraction(2) ** -54
    assert squared <= Fraction(matrix_norm_upper(row.view(shape))) ** 2
    assert squared <= Fraction(float(row_distances_upper(torch.stack([row, 0 * row]))[0, 1])) ** 2
    # NumPy adds rows one by one where there are several columns.
    for length in column_lengths_upper(np.column_stack([row, row])).tolist():
        assert squared <= Fraction(length) ** 2


NOT_FINITE = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])


@NOT_FINITE
@pytest.mark.parametrize(
    "bound",
    [
        matrix_norm_upper,
        row_distances_upper,
        lambda w: convolution_norm_upper(w.view(1, 1, 2, 2), (1, 1)),
    ],
)
def test_values_that_are_not_finite_are_refused(bound, bad):
    with pytest.raises(ValueError, match="must be finite"):
        bound(torch.tensor([[1.0, 2.0], [bad, 0.0]]))


# -- distances between rows --------------------------------------------------------------------


@given(finite_matrices(1e3).map(lambda w: np.where(np.abs(w) < 1e-100, 0.0, w)))
@settings(deadline=None, max_examples=150)
def test_row_distances_dominate_the_exact_ones_and_are_tight(w):
    upper = row_distances_upper(torch.from_numpy(w))
    assert upper.shape == (len(w), len(w))
    rows = [fractions(row) for row in w]
    for i, first in enumerate(rows):
        for j, second in enumerate(rows):
            squared = sum((a - b) ** 2 for a, b in zip(first, second, strict=True))
            bound = Fraction(float(upper[i, j]))
            # n + 8 roundings, charged twice. Equal rows keep the distance 0.
            assert squared <= bound**2 <= squared * Fraction(1 + 4 * (6 + 8) * EPS) ** 2


@pytest.mark.parametrize("difference", [1e-158, 1e-161, 1e-162, 1e-200, 5e-324])
@pytest.mark.parametrize("largest", [0.0, 1.0, 1e300])
def test_row_distances_dominate_tiny_differences(difference, largest):
    # Squares of such differences underflow.
    w = torch.tensor([[difference, largest], [0.0, largest]], dtype=torch.float64)
    assert row_distances_upper(w)[0, 1] >= difference
    assert row_distances_upper(w)[0, 0] == 0


def test_row_distances_of_float32_rows_are_those_of_the_stored_values():
    w = torch.tensor([[0.1, 0.2], [0.3, -0.4]], dtype=torch.float32)
    squared = squared_norm(w.double().numpy()[0] - w.double().numpy()[1])
    assert squared <= Fraction(float(row_distances_upper(w)[0, 1])) ** 2


# -- convolutions ------------------------------------------------------------------------------


def convolution_matrix(kernel, shape, stride, padding=None):
    """Dense matrix, entry by entry, with zero padding; or wrapped around, if padding is None."""
    taps = kernel.shape[2:]
    if padding is None:
        sizes, padding, extended = [n // s for n, s in zip(shape, stride, strict=True)], (0, 0), shape
    else:
        sizes = [
            (n + 2 * p - t) // s + 1 for n, p, t, s in zip(shape, padding, taps, stride, strict=True)
        ]
        extended = [n + 2 * p for n, p in zip(shape, padding, strict=True)]
    matrix = np.zeros((kernel.shape[0], *sizes, kernel.shape[1], *extended))
    for row, column, a, b in np.ndindex(*sizes, *taps):
        y, x = (row * stride[0] + a) % extended[0], (column * stride[1] + b) % extended[1]
        matrix[:, row, column, :, y, x] += kernel[:, :, a, b]
    inside = [slice(p, p + n) for p, n in zip(padding, shape, strict=True)]
    return matrix[..., *inside].reshape(kernel.shape[0] * math.prod(sizes), -1)


def dense_norm(*arguments):
    """Norm by NumPy's SVD, lowered by its backward error, a small multiple of n eps."""
    matrix = convolution_matrix(*arguments)
    return np.linalg.norm(matrix, 2) * (1 - 2 * max(matrix.shape) * EPS)


def random_kernel(*shape):
    return np.random.default_rng(shape).normal(size=shape)


KERNELS = [
    (1, 1, 3, 3),
    (2, 3, 3, 3),
    (5, 2, 2, 4),
    (3, 3, 1, 3),
    (2, 2, 5, 1),
    (1, 4, 1, 1),
    (4, 1, 4, 4),
]


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2), (3, 3), (5, 1)])
@pytest.mark.parametrize("kernel_shape", KERNELS)
def test_bound_dominates_zero_padded_convolutions_of_any_size(kernel_shape, stride):
    kernel = random_kernel(*kernel_shape)
    upper = convolution_norm_upper(torch.from_numpy(kernel), stride)
    for shape in [(5, 5), (7, 6)]:
        for padding in [(0, 0), (2, 4)]:
            assert upper >= dense_norm(kernel, shape, stride, padding)


@pytest.mark.parametrize("kernel_shape", KERNELS)
def test_bound_dominates_circular_convolutions_of_any_size(kernel_shape):
    kernel = random_kernel(*kernel_shape)
    upper = convolution_norm_upper(torch.from_numpy(kernel), (1, 1))
    for shape in [(2, 3), (4, 7), (8, 8)]:
        assert upper >= dense_norm(kernel, shape, (1, 1))


@pytest.mark.parametrize("kernel_shape", KERNELS)
def test_bound_is_within_its_promise_of_the_supremum_of_the_symbol(kernel_shape):
    kernel = random_kernel(*kernel_shape)
    n = 128
    symbol = np.fft.fft2(kernel, (n, n)).transpose(2, 3, 0, 1)
    on_grid = np.linalg.norm(symbol, 2, axis=(-2, -1)).max()
    # What a fine grid may miss, by the inequality of Ehlich and Zeller.
    missed = math.prod(math.cos(math.pi * (taps - 1) / n) for taps in kernel_shape[2:])
    upper = convolution_norm_upper(torch.from_numpy(kernel), (1, 1))
    # The source promises an overestimate of 0.4 %.
    assert on_grid * (1 - 64 * EPS) <= upper <= 1.004 * on_grid / math.sqrt(missed)


@pytest.mark.parametrize("stride", [(2, 2), (2, 1), (3, 2)])
@pytest.mark.parametrize("kernel_shape", [(2, 3, 3, 3), (3, 1, 4, 2)])
def test_strided_bound_is_tight_on_large_circular_maps(kernel_shape, stride):
    kernel = random_kernel(*kernel_shape)
    n = 12
    norm = dense_norm(kernel, (n, n), stride)
    degrees = [math.ceil(taps / s) - 1 for taps, s in zip(kernel_shape[2:], stride, strict=True)]
    missed = math.prod(math.cos(math.pi * d * s / n) for d, s in zip(degrees, stride, strict=True))
    upper = convolution_norm_upper(torch.from_numpy(kernel), stride)
    assert norm <= upper <= 1.004 * norm / math.sqrt(missed)


def two_ended(taps, angle):
    """[I, 0, ..., 0, R(angle)]: its squared singular values are 2 + 2 cos((taps - 1) theta - angle)."""
    kernel = np.zeros((2, 2, taps))
    kernel[:, :, 0] = np.eye(2)
    cos, sin = math.cos(angle), math.sin(angle)
    kernel[:, :, -1] += [[cos, -sin], [sin, cos]]
    return kernel


@pytest.mark.parametrize("taps", [(2, 1), (3, 3), (1, 5), (4, 2)])
def test_bound_dominates_symbols_that_peak_between_grid_points(taps):
    # These polynomials rise and fall as fast as their degree allows: equality in Ehlich and Zeller's
    # inequality, for some of the angles on any grid.
    for angle in np.linspace(0, 2 * math.pi, 41):
        ends = [two_ended(size, angle) if size > 1 else np.ones((1, 1, 1)) for size in taps]
        kernel = np.einsum("iah,jbw->ijabhw", *ends)
        kernel = kernel.reshape(math.prod(kernel.shape[:2]), -1, *taps)
        norm = math.prod(2 for size in taps if size > 1)
        upper = convolution_norm_upper(torch.from_numpy(kernel), (1, 1))
        # The rotation is orthogonal up to two roundings.
        assert norm * (1 - 4 * EPS) <= upper <= 1.004 * norm


def two_tap(rng, channels, axis):
    """[P, I - P] for a random projector P: an orthogonal convolution (Li et al. 2019)."""
    basis = np.linalg.qr(rng.normal(size=(channels, channels // 2)))[0]
    p = basis @ basis.T
    return np.expand_dims(np.stack([p, np.eye(channels) - p], axis=2), 5 - axis)


def composed(first, second):
    """Kernel of one convolution after another: full 2-d convolution of matrices."""
    height, width = (a + b - 1 for a, b in zip(first.shape[2:], second.shape[2:], strict=True))
    kernel = np.zeros((second.shape[0], first.shape[1], height, width))
    for a, b in np.ndindex(*first.shape[2:]):
        for c, d in np.ndindex(*second.shape[2:]):
            kernel[:, :, a + c, b + d] += second[:, :, c, d] @ first[:, :, a, b]
    return kernel


@pytest.mark.parametrize("axes", [(2,), (3,), (2, 3), (2, 3, 2, 3), (2, 2, 2)])
@pytest.mark.parametrize("channels", [2, 5, 8])
def test_bound_is_tight_for_orthogonal_kernels(channels, axes):
    rng = np.random.default_rng(channels)
    kernel = np.linalg.qr(rng.normal(size=(channels, channels)))[0][:, :, None, None]
    for axis in axes:
        kernel = composed(kernel, two_tap(rng, channels, axis))
    upper = convolution_norm_upper(torch.from_numpy(kernel), (1, 1))
    # Factors are orthogonal up to n eps each. The charges: the rounding of the symbols, 4 eps an
    # operation, times (sum |K|)^2 <= taps |K|_F^2 = taps * channels; and that of the eigenvalues.
    taps = math.prod(kernel.shape[2:])
    charge = 8 * (9 * taps + 40) * taps * channels * EPS + 16 * channels**2 * EPS
    assert 1 - 2 * len(axes) * channels * EPS <= upper <= 1 + charge


def test_bound_is_tight_for_a_patch_matrix_with_stride():
    q = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    for kernel in (q.reshape(12, 3, 2, 2), q[:5].reshape(5, 3, 2, 2)):
        upper = convolution_norm_upper(torch.from_numpy(kernel), (2, 2))
        assert 1 - 12 * EPS <= upper <= tight(12)


@pytest.mark.parametrize("kernel_shape", [(1, 1, 3, 3), (1, 2, 2, 3), (2, 1, 3, 1)])
def test_bound_dominates_the_exact_norm_of_constant_kernels(kernel_shape):
    # The symbol of ones is largest at frequency 0, where it is the number of taps.
    upper = Fraction(convolution_norm_upper(torch.ones(kernel_shape), (1, 1)))
    squared = math.prod(kernel_shape[:2]) * math.prod(kernel_shape[2:]) ** 2
    assert squared <= upper**2 <= squared * Fraction(1.004) ** 2


@pytest.mark.parametrize("scale", [5e-324, 1e-200, 1e-146, 1e-100, 1e100, 1e150, 1e200, 1e306])
def test_convolution_bound_survives_huge_and_tiny_scales(scale):
    upper = convolution_norm_upper(torch.full((2, 2, 3, 3), scale, dtype=torch.float64), (1, 1))
    assert 18 * Fraction(scale) <= Fraction(upper)
    assert upper <= 18 * scale * 1.004 + UNDERFLOW


def test_a_kernel_of_one_tap_has_the_norm_of_its_matrix():
    w = torch.from_numpy(random_kernel(4, 6))
    for stride in [(1, 1), (2, 3)]:
        upper = convolution_norm_upper(w[:, :, None, None], stride)
        assert np.linalg.norm(w.numpy(), 2) * (1 - 6 * EPS) <= upper <= matrix_norm_upper(w) * tight(6)
