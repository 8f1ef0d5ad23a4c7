"""The layers against dense matrices, NumPy re-computations and numerical gradients."""

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sklip.layers import (
    Center,
    ColumnWeightedLinear,
    FullSort,
    GroupSort,
    GroupSort2,
    OrthogonalConv2d,
    OrthogonalLayer,
    Residual,
    Scale,
    ScaledAvgPool2d,
    ScaledL2NormPool2d,
    Sequential,
    SpectralConv2d,
    SpectralLinear,
    keep_orthogonal,
    polish_,
    project_gradients_,
    retract_,
    to_torch,
)

EPS = float(np.finfo(np.float64).eps)


pytestmark = pytest.mark.usefixtures("seeded_torch")


def dense_matrix(layer, shape):
    """Matrix of an affine map in float64, from its values at zero and at the unit vectors."""
    size = math.prod(shape)
    with torch.no_grad():
        offset = layer(torch.zeros(1, *shape, dtype=torch.float64))
        columns = layer(torch.eye(size, dtype=torch.float64).view(size, *shape)) - offset
    return columns.flatten(1).T.numpy()


def singular_values(layer, shape):
    return np.linalg.svd(dense_matrix(layer, shape), compute_uv=False)


def precise(layer):
    """The layer in float64, its matrices orthogonal up to the rounding of float64."""
    return polish_(layer.double())


def rounding(matrix_or_size, eps=EPS):
    """Relative tolerance for the singular values of products of orthogonal matrices.

    Each entry is a sum of at most n products, so a product of two matrices of norm 1 is off by
    n eps; a layer here takes fewer than 16 of them, the SVD included, and the factors are
    orthogonal up to n eps themselves.
    """
    n = matrix_or_size if isinstance(matrix_or_size, int) else max(matrix_or_size.shape)
    return 16 * n * eps


# -- linear maps and convolutions --------------------------------------------------------------

CONSTANTS = [1.0, 0.25, 3.0]
LINEAR_SHAPES = [(6, 6), (3, 8), (8, 3), (1, 5), (5, 1), (1, 1)]


@pytest.mark.parametrize("k", CONSTANTS)
@pytest.mark.parametrize("shape", LINEAR_SHAPES)
def test_all_singular_values_of_spectral_linear_are_k(shape, k):
    values = singular_values(precise(SpectralLinear(*shape, k=k)), shape[:1])
    np.testing.assert_allclose(values, k, rtol=rounding(max(shape)))


# in, out, kernel, stride. The stride divides the side of the map, 6. Either out <= in * stride^2, so
# that the patch matrix is a co-isometry as it stands, or out is a multiple of stride^2 and circular
# padding gives 6 / stride outputs an axis, so that it is a square matrix on more channels.
CONVOLUTIONS = [
    (1, 8, 3, 1),
    (3, 4, 3, 1),
    (4, 3, (3, 5), 1),
    (4, 4, 2, 1),
    (3, 2, (4, 2), 1),
    (1, 1, 5, 1),
    (5, 7, 1, 1),
    (2, 3, (1, 5), 1),
    (4, 16, 3, 2),
    (1, 12, 4, 2),
    (3, 5, 4, 2),
    (2, 8, 2, 2),
    (2, 6, (2, 5), (2, 1)),
    (6, 2, (4, 3), (1, 3)),
    (1, 9, 3, 3),
]
MAP = (6, 6)
BOTH = [SpectralConv2d, OrthogonalConv2d]


@pytest.mark.parametrize("k", CONSTANTS)
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("arguments", CONVOLUTIONS)
@pytest.mark.parametrize("conv", BOTH)
def test_norm_of_convolution_is_at_most_k(conv, arguments, padding_mode, k):
    layer = precise(conv(*arguments, padding_mode=padding_mode, k=k))
    matrix = dense_matrix(layer, (arguments[0], *MAP))
    assert np.linalg.norm(matrix, 2) <= k * (1 + rounding(matrix))


@pytest.mark.parametrize("padding", [0, 1, (2, 0), 4])
@pytest.mark.parametrize(
    ("conv", "arguments"),
    [
        *((conv, arguments) for conv in BOTH for arguments in CONVOLUTIONS),
        *((OrthogonalConv2d, arguments) for arguments in [(1, 5, 2, 2), (1, 4, (2, 1), 1)]),
        *((SpectralConv2d, arguments) for arguments in [(2, 6, 1, 2), (1, 4, (2, 1), (3, 1))]),
    ],
)
def test_zero_padding_of_any_width_keeps_the_norm_at_most_k(conv, arguments, padding):
    layer = precise(conv(*arguments, padding=padding))
    matrix = dense_matrix(layer, (arguments[0], 5, 7))
    assert np.linalg.norm(matrix, 2) <= 1 + rounding(matrix)


@pytest.mark.parametrize("height", [3, 4, 5, 7])
@pytest.mark.parametrize("kernel_size", [(3, 1), (2, 1), (3, 3)])
@pytest.mark.parametrize("conv", BOTH)
def test_circular_padding_at_stride_one_keeps_the_norm_on_maps_of_any_size(conv, kernel_size, height):
    matrix = dense_matrix(precise(conv(2, 6, kernel_size, padding_mode="circular")), (2, height, 3))
    assert np.linalg.norm(matrix, 2) <= 1 + rounding(matrix)


@pytest.mark.parametrize(
    ("conv", "kernel", "stride", "height"),
    [
        (SpectralConv2d, 3, 3, 4),
        (SpectralConv2d, 4, 4, 6),
        (SpectralConv2d, 5, 3, 7),
        (OrthogonalConv2d, 3, 2, 5),
        (OrthogonalConv2d, 4, 3, 8),
        (OrthogonalConv2d, 5, 4, 5),
    ],
)
def test_circular_padding_with_a_stride_keeps_the_norm_or_is_refused(conv, kernel, stride, height):
    layer = precise(conv(2, 8, (kernel, 1), (stride, 1), padding_mode="circular"))
    with pytest.raises(ValueError, match=rf"multiples of stride=\({stride}, 1\) .* {height}, 1\)"):
        layer(torch.zeros(1, 2, height, 1, dtype=torch.float64))
    # The sizes that are taken: one step, which the kernel may exceed, two and three.
    for steps in (1, 2, 3):
        matrix = dense_matrix(layer, (2, steps * stride, 1))
        assert np.linalg.norm(matrix, 2) <= 1 + rounding(matrix)


@pytest.mark.parametrize("k", CONSTANTS)
@pytest.mark.parametrize("arguments", CONVOLUTIONS)
def test_all_singular_values_of_a_circular_orthogonal_convolution_are_k(arguments, k):
    layer = precise(OrthogonalConv2d(*arguments, padding_mode="circular", k=k))
    matrix = dense_matrix(layer, (arguments[0], *MAP))
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(values, k, rtol=rounding(matrix))


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), ((2, 4), (2, 1)), (1, 1)], ids=str)
def test_gradients_of_the_composed_kernel_are_finite_differences(kernel_size, stride):
    layer = OrthogonalConv2d(3, 6, kernel_size, stride, bias=False).double()
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(1, 3, 5, 6, dtype=torch.float64)

    def outputs(*parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, values)


def test_a_convolution_trains_under_autocast():
    layer = OrthogonalConv2d(4, 8, 3)
    kernel = layer.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Composed of orthogonal matrices, it would be less orthogonal in fewer digits.
        assert torch.equal(layer.weight, kernel)
        loss = layer(torch.randn(2, 4, 5, 5)).float().square().mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.orthogonal_parameters())


@pytest.mark.parametrize("arguments", CONVOLUTIONS)
def test_largest_singular_value_of_a_zero_padded_orthogonal_convolution_is_k(arguments):
    # The patch around the middle of the map touches no border: it is passed on isometrically.
    layer = precise(OrthogonalConv2d(*arguments, k=2.0))
    matrix = dense_matrix(layer, (arguments[0], *MAP))
    np.testing.assert_allclose(np.linalg.norm(matrix, 2), 2.0, rtol=rounding(matrix))


@pytest.mark.parametrize("k", CONSTANTS)
@pytest.mark.parametrize(
    ("arguments", "padding_mode"),
    [
        ((1, 9, 3), "circular"),
        ((1, 16, 3), "circular"),
        ((2, 10, (1, 5)), "circular"),
        ((3, 4, 1), "zeros"),
        ((2, 8, 2, 2, 0), "zeros"),
        ((1, 20, 3, 3, 0), "zeros"),
        ((3, 4, (2, 3), (2, 3), 0), "zeros"),
    ],
)
def test_spectral_convolution_is_orthogonal_where_its_docstring_says_so(arguments, padding_mode, k):
    layer = precise(SpectralConv2d(*arguments, padding_mode=padding_mode, k=k))
    matrix = dense_matrix(layer, (arguments[0], *MAP))
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(values, k, rtol=rounding(matrix))


@pytest.mark.parametrize(
    "layer",
    [SpectralLinear(9, 4), SpectralLinear(4, 9), SpectralConv2d(2, 6, 3), OrthogonalConv2d(2, 8, 4, 2)],
    ids=repr,
)
def test_a_new_layer_is_orthogonal_up_to_float32(layer):
    for parameter in layer.orthogonal_parameters():
        values = torch.linalg.svdvals(parameter.detach()).numpy()
        n = max(parameter.shape)
        np.testing.assert_allclose(values, 1, rtol=rounding(n, float(np.finfo(np.float32).eps)))


def test_default_padding_keeps_the_size_for_odd_kernels():
    for conv in BOTH:
        assert conv(1, 2, (3, 5))(torch.zeros(1, 1, 6, 7)).shape == (1, 2, 6, 7)


def test_bias_is_added_and_starts_at_zero():
    for layer, shape in [(SpectralLinear(3, 2), (3,)), (OrthogonalConv2d(1, 2, 3), (1, 4, 4))]:
        zeros = torch.zeros(1, *shape)
        assert not layer(zeros).any()
        with torch.no_grad():
            layer.bias.copy_(torch.tensor([1.0, -2.0]))
        by_channel = layer(zeros).transpose(0, 1).flatten(1)
        assert torch.equal(by_channel, layer.bias.unsqueeze(1).expand_as(by_channel))


# -- chains ------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", CONSTANTS)
def test_a_chain_has_norm_k_whatever_the_constants_of_its_layers(k):
    inner = Sequential(SpectralLinear(6, 5, k=0.3), SpectralLinear(5, 8), k=4.0)
    network = Sequential(SpectralLinear(6, 6, k=7.0), Center(6), Scale(0.5), inner, k=k)
    matrix = dense_matrix(precise(network), (6,))
    # The 6 x 5 layer loses one direction, all others are stretched by k.
    expected = [k, k, k, k, k, 0]
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(values, expected, rtol=0, atol=k * rounding(matrix))


def test_a_chain_of_isometries_stretches_every_direction_by_k():
    network = Sequential(
        OrthogonalConv2d(1, 4, 2, 2, padding_mode="circular", k=2.0),
        OrthogonalConv2d(4, 8, 3, padding_mode="circular", k=0.1),
        nn.Flatten(),
        SpectralLinear(32, 32),
        k=5.0,
    )
    matrix = dense_matrix(precise(network), (1, 4, 4))
    np.testing.assert_allclose(np.linalg.svd(matrix, compute_uv=False), 5.0, rtol=rounding(matrix))


def test_a_chain_that_loses_norm_stays_below_k():
    network = Sequential(
        SpectralConv2d(1, 4, 3, k=9.0),
        ScaledAvgPool2d(2, k=0.2),
        OrthogonalConv2d(4, 4, 3),
        nn.Flatten(),
        SpectralLinear(36, 4),
        k=2.0,
    )
    matrix = dense_matrix(precise(network), (1, 6, 6))
    assert np.linalg.norm(matrix, 2) <= 2.0 * (1 + rounding(matrix))


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(2, 2), nn.ReLU(), nn.Conv2d(1, 1, 3), nn.BatchNorm1d(2), nn.Sequential()],
    ids=repr,
)
def test_sequential_refuses_layers_of_unknown_constant(layer):
    name = type(layer).__name__
    with pytest.raises(TypeError, match=name):
        Sequential(layer)
    late = Sequential(SpectralLinear(2, 2))
    late.append(layer)
    with pytest.raises(TypeError, match=name):
        late(torch.zeros(1, 2))


class Claims(nn.Module):
    k = 1.0

    def forward(self, x):
        return 10 * x


class Louder(Scale):
    def forward(self, x):
        return 10 * super().forward(x)


@pytest.mark.parametrize("layer", [nn.LocalResponseNorm(2, k=0.01), Claims(), Louder(1.0)], ids=repr)
def test_sequential_refuses_foreign_layers_with_an_attribute_named_k(layer):
    with pytest.raises(TypeError, match=type(layer).__name__):
        Sequential(layer)


def test_a_chain_keeps_its_constant_when_the_k_of_a_convolution_changes():
    network = precise(Sequential(SpectralConv2d(1, 9, 3, padding_mode="circular")))
    network[0].k = 0.1
    matrix = dense_matrix(network, (1, 6, 6))
    assert np.linalg.norm(matrix, 2) <= 1 + rounding(matrix)


# -- residuals ---------------------------------------------------------------------------------


def with_matrix(matrix):
    """A SpectralLinear in float64 with this orthogonal matrix."""
    return layer_with(np.asarray(matrix, dtype=np.float64))


def test_a_residual_adds_its_branch_to_its_input():
    rng = np.random.default_rng(12)
    matrix, x = np.linalg.qr(rng.normal(size=(4, 4)))[0], rng.normal(size=(5, 4))
    residual = Residual(with_matrix(matrix), Scale(3.0))
    expected = x + 3 * x @ matrix.T
    # Sums of 5 terms below 3 * 4 in size.
    np.testing.assert_allclose(residual(torch.tensor(x)).detach(), expected, rtol=0, atol=64 * EPS)


def test_a_residual_without_layers_doubles():
    x = torch.randn(3, 4)
    assert torch.equal(Residual()(x), 2 * x)


@pytest.mark.parametrize("outputs", [1, 3, 5])
def test_a_residual_refuses_a_branch_of_another_shape(outputs):
    # An output of width 1 would be broadcast silently.
    with pytest.raises(ValueError, match=rf"keep the shape .* \(2, {outputs}\) for .* \(2, 4\)"):
        Residual(SpectralLinear(4, outputs))(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"\(2, 1, 3, 3\) for an input of shape \(2, 1, 4, 4\)"):
        Residual(SpectralConv2d(1, 1, 2))(torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize("first", [nn.Identity(), nn.Flatten()], ids=repr)
def test_layers_that_work_in_place_leave_the_way_around_them_alone(first):
    x = torch.tensor([[-1.0, 2.0]])
    before = x.clone()
    residual = Residual(first, nn.LeakyReLU(-3.0, inplace=True))
    assert torch.equal(residual(x), torch.tensor([[2.0, 4.0]]))
    assert torch.equal(x, before)


def test_gradient_of_a_residual():
    residual = Residual(GroupSort2(), SpectralLinear(4, 4), nn.ReLU(inplace=True)).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(residual, x)


@pytest.mark.parametrize("k", CONSTANTS)
def test_a_chain_divides_by_one_plus_the_constant_of_a_residuals_branch(k):
    inner = Residual(with_matrix(np.eye(3)), Scale(0.5))
    network = Sequential(Residual(with_matrix(np.eye(3)), inner, Scale(4.0)), k=k)
    # All branches point the same way: 1 + 1 * (1 + 0.5) * 4 = 7 is attained.
    assert (inner.k, network[0].k) == (1.5, 7)
    assert network.factor == k / 7
    matrix = dense_matrix(network, (3,))
    np.testing.assert_allclose(np.linalg.norm(matrix, 2), k, rtol=rounding(matrix))


def test_a_chain_of_residuals_stays_below_k():
    network = Sequential(
        OrthogonalConv2d(1, 4, 3),
        Residual(OrthogonalConv2d(4, 4, 3), OrthogonalConv2d(4, 4, 3, k=2.0)),
        nn.Flatten(),
        Residual(Sequential(SpectralLinear(36, 36), k=0.3), Residual(SpectralLinear(36, 36))),
        k=2.0,
    )
    matrix = dense_matrix(precise(network), (1, 3, 3))
    assert network.factor == 2 / (3 * 1.6)
    assert np.linalg.norm(matrix, 2) <= 2 * (1 + rounding(matrix))


def test_a_chain_refuses_layers_of_unknown_constant_inside_a_residual():
    with pytest.raises(TypeError, match="ReLU"):
        Sequential(Residual(SpectralLinear(2, 2), Residual(nn.ReLU())))


def test_matrices_inside_a_residual_are_kept_orthogonal():
    residual = Residual(GroupSort2(), Residual(SpectralLinear(4, 4))).double()
    with torch.no_grad():
        residual[1][0].raw.mul_(1.1)
    polish_(residual)
    values = np.linalg.svd(raw(residual[1][0]), compute_uv=False)
    np.testing.assert_allclose(values, 1, rtol=rounding(4))


# -- sorting -----------------------------------------------------------------------------------

TABLES_AND_IMAGES = [(5, 12), (2, 12, 3), (2, 12, 3, 4)]


def sorted_in_groups(x, group_size):
    groups = x.reshape(len(x), -1, group_size, *x.shape[2:])
    return np.sort(groups, axis=2).reshape(x.shape)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("shape", TABLES_AND_IMAGES)
@pytest.mark.parametrize(
    ("layer", "group_size"),
    [(GroupSort2(), 2), (GroupSort(2), 2), (GroupSort(3), 3), (GroupSort(12), 12), (FullSort(), 12)],
    ids=repr,
)
def test_sorting_agrees_with_numpy(layer, group_size, shape, requires_grad):
    # Few values, so that there are ties.
    x = np.random.default_rng(0).integers(-3, 4, shape).astype(np.float64)
    out = layer(torch.tensor(x, requires_grad=requires_grad))
    np.testing.assert_array_equal(out.detach().numpy(), sorted_in_groups(x, group_size))


@pytest.mark.parametrize("shape", TABLES_AND_IMAGES)
def test_gradient_of_group_sort_2(shape):
    # Distinct values further apart than gradcheck's step: no kink is crossed.
    x = torch.randperm(math.prod(shape)).double().view(shape).requires_grad_()
    assert torch.autograd.gradcheck(GroupSort2(), x)


@pytest.mark.parametrize("layer", [GroupSort2(), GroupSort(3), FullSort()], ids=repr)
def test_sorting_only_permutes_the_gradient(layer):
    x = torch.randint(-2, 3, (4, 12, 2)).double().requires_grad_()
    upstream = torch.randn(4, 12, 2, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(layer(x), x, upstream)
    assert torch.equal(gradient.sort(1).values, upstream.sort(1).values)


@pytest.mark.parametrize(("layer", "group_size"), [(GroupSort2(), 2), (GroupSort(4), 4)], ids=repr)
@pytest.mark.parametrize("shape", [(1, 3), (1, 5, 2, 2), (4,)])
def test_sorting_refuses_channels_that_the_groups_do_not_divide(layer, group_size, shape):
    with pytest.raises(
        ValueError, match=rf"group_size={group_size}, got an input of shape \({shape[0]}"
    ):
        layer(torch.zeros(shape))


# -- pooling -----------------------------------------------------------------------------------

WINDOWS = [(2, 2), (2, 3), (1, 2), (3, 1)]
POOLS = [
    (ScaledL2NormPool2d, lambda window: np.sqrt((window**2).sum())),
    (ScaledAvgPool2d, lambda window: window.sum() / np.sqrt(window.size)),
]


def pooled(x, window, reduce):
    height, width = window
    out = np.empty((*x.shape[:2], x.shape[2] // height, x.shape[3] // width))
    for *image, row, column in np.ndindex(out.shape):
        rows = slice(row * height, (row + 1) * height)
        columns = slice(column * width, (column + 1) * width)
        out[*image, row, column] = reduce(x[*image, rows, columns])
    return out


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("k", CONSTANTS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("pool", "reduce"), POOLS)
def test_pooling_agrees_with_numpy_loops(pool, reduce, window, k, requires_grad):
    x = np.random.default_rng(1).normal(size=(2, 3, 5, 7))
    out = pool(window, k=k)(torch.tensor(x, requires_grad=requires_grad)).detach().numpy()
    # Sums of at most 6 terms, in which a mean may cancel: an error of a few eps of the largest term.
    np.testing.assert_allclose(out, k * pooled(x, window, reduce), rtol=0, atol=64 * EPS * k)


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 2, 5, 7)])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("pool", [ScaledL2NormPool2d, ScaledAvgPool2d])
def test_gradient_of_pooling(pool, window, shape):
    x = torch.rand(shape, dtype=torch.float64).add(0.5).requires_grad_()
    assert torch.autograd.gradcheck(pool(window, k=3.0), x)


def test_gradient_of_the_norm_pool_is_zero_on_a_zero_window_and_outside_all_windows():
    x = torch.ones(1, 1, 5, 5)
    x[..., :2, :2] = 0
    x.requires_grad_()
    ScaledL2NormPool2d(2)(x).sum().backward()
    expected = torch.full((5, 5), 0.5)  # x / |x| on a window of four ones
    expected[:2, :2] = expected[4] = expected[:, 4] = 0
    assert torch.equal(x.grad[0, 0], expected)


@pytest.mark.parametrize("k", CONSTANTS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("pool", [ScaledL2NormPool2d, ScaledAvgPool2d])
def test_norm_of_the_jacobian_of_pooling_is_k(pool, window, k):
    x = torch.randn(1, 2, 5, 7, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(pool(window, k=k), x)
    matrix = jacobian.reshape(-1, x.numel()).numpy()
    np.testing.assert_allclose(np.linalg.norm(matrix, 2), k, rtol=rounding(matrix))


def test_norm_pool_keeps_the_norm():
    x = torch.randn(3, 2, 4, 6, dtype=torch.float64)
    np.testing.assert_allclose(ScaledL2NormPool2d((2, 3))(x).norm(), x.norm(), rtol=rounding(x.numel()))


# -- small maps --------------------------------------------------------------------------------


def test_flatten_center_and_scale_agree_with_numpy():
    x = np.random.default_rng(2).normal(size=(2, 3, 4))
    assert np.array_equal(nn.Flatten()(torch.tensor(x)), x.reshape(2, -1))
    assert np.array_equal(Scale(2.5)(torch.tensor(x)), 2.5 * x)
    center = Center(4)
    assert not center.center.any()
    center.center.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert np.array_equal(center(torch.tensor(x)), x - [1.0, 2.0, 3.0, 4.0])


def test_center_refuses_rows_of_another_length():
    with pytest.raises(ValueError, match="4"):
        Center(4)(torch.zeros(2, 1))


# -- keeping matrices orthogonal ---------------------------------------------------------------


def layer_with(matrix, dtype=torch.float64):
    """A SpectralLinear whose raw matrix is `matrix`."""
    rows, columns = matrix.shape
    layer = SpectralLinear(columns, rows, bias=False).to(dtype)
    with torch.no_grad():
        layer.raw.copy_(torch.as_tensor(matrix))
    return layer


def raw(layer):
    return layer.raw.detach().double().numpy()


def with_singular_values(rng, shape, values):
    left = np.linalg.qr(rng.normal(size=(shape[0], shape[0])))[0]
    right = np.linalg.qr(rng.normal(size=(shape[1], shape[1])))[0]
    return (left[:, : len(values)] * values) @ right[:, : len(values)].T


def newton_schulz_rounding(shape, dtype=torch.float64):
    # fl(A B) is off by n eps |A|_F |B|_F <= n^2 eps |A| |B|. Two iterations are six such products,
    # of matrices of norm at most 1.5 once scaled.
    n = max(shape)
    return 6 * 1.5**2 * n * n * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_retraction_never_leaves_a_norm_above_one(dtype, data):
    rows, columns = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    rank = data.draw(st.integers(0, min(rows, columns)))
    scale = 10.0 ** data.draw(st.floats(-30, 14))
    # Columns of different sizes, too. Up to 1e18, whose squares float32 still holds.
    spread = 10.0 ** data.draw(st.floats(0, 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    matrix = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    layer = layer_with(scale * matrix * spread ** rng.uniform(size=columns), dtype)
    norm = np.linalg.norm(raw(retract_(layer)), 2)
    assert norm <= 1 + newton_schulz_rounding((rows, columns), dtype)


@pytest.mark.parametrize("scale", [1.0, 1.3, 1.7, math.sqrt(3), 2.0, math.sqrt(5), 2.5, 10.0])
def test_retraction_never_leaves_a_norm_above_one_near_its_own_thresholds(scale):
    rng = np.random.default_rng(3)
    for values in ([1.0], [1.0, 1.0, 1.0], [1.0, 0.5, 0.0]):
        matrix = scale * with_singular_values(rng, (3, 5), np.array(values))
        assert np.linalg.norm(raw(retract_(layer_with(matrix))), 2) <= 1 + newton_schulz_rounding(
            (3, 5)
        )


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (1, 6), (6, 1)])
def test_retraction_maps_each_singular_value_by_two_newton_schulz_steps(shape):
    rng = np.random.default_rng(4)
    for _ in range(5):
        # |W W^T - I|_F stays below 1.9, so nothing is rescaled.
        matrix = with_singular_values(rng, shape, rng.uniform(0.7, 1.3, min(shape)))
        u, values, vt = np.linalg.svd(matrix, full_matrices=False)
        for _ in range(2):
            values = 1.5 * values - 0.5 * values**3
        result = raw(retract_(layer_with(matrix)))
        np.testing.assert_allclose(
            result, (u * values) @ vt, rtol=0, atol=newton_schulz_rounding(shape)
        )


def test_retraction_brings_perturbed_matrices_back():
    rng = np.random.default_rng(5)
    for shape in LINEAR_SHAPES:
        layer = layer_with(with_singular_values(rng, shape, rng.uniform(0.9, 1.1, min(shape))))
        values = np.linalg.svd(raw(retract_(layer)), compute_uv=False)
        # 1 - e -> 1 - 1.5 e^2 + ..., twice: 0.1 -> 0.0155 (with the cubic term) -> 3.6e-4.
        assert np.all(np.abs(values - 1) <= 3.7e-4)


@pytest.mark.parametrize("shape", LINEAR_SHAPES)
def test_orthogonal_matrices_are_fixed_points_of_retraction(shape):
    layer = precise(SpectralLinear(*shape))
    before = raw(layer)
    np.testing.assert_allclose(
        raw(retract_(layer)), before, rtol=0, atol=2 * newton_schulz_rounding(shape)
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3)])
def test_repeated_retraction_ends_at_the_polar_factor(shape, scale):
    rng = np.random.default_rng(6)
    matrix = scale * with_singular_values(rng, shape, rng.uniform(0.5, 2.0, min(shape)))
    layer = layer_with(matrix)
    # A step multiplies small values by 1.5: 1e-3 needs log(1000) / log(1.5) = 17 steps, two a call.
    for _ in range(14):
        retract_(layer)
    polar, _ = scipy.linalg.polar(matrix)
    # 28 steps' rounding at most; off the polar factor it is not corrected but adds up.
    np.testing.assert_allclose(raw(layer), polar, rtol=0, atol=14 * newton_schulz_rounding(shape))


def test_matrices_of_one_shape_are_retracted_each_for_itself():
    rng = np.random.default_rng(7)
    matrices = [rng.normal(size=shape) for shape in [(3, 5), (5, 3), (3, 5)]]
    together = [layer_with(matrix) for matrix in matrices]
    retract_(nn.Sequential(*together))
    for layer, matrix in zip(together, matrices, strict=True):
        np.testing.assert_allclose(
            raw(layer), raw(retract_(layer_with(matrix))), rtol=0, atol=newton_schulz_rounding((3, 5))
        )


@pytest.mark.parametrize("shape", LINEAR_SHAPES)
def test_projected_gradient_is_tangent(shape):
    layer = precise(SpectralLinear(*shape))
    gradient = np.random.default_rng(8).normal(size=layer.raw.shape)
    layer.raw.grad = torch.tensor(gradient)
    project_gradients_(layer)
    w, g = raw(layer), layer.raw.grad.numpy()
    if w.shape[0] > w.shape[1]:
        w, g, gradient = w.T, g.T, gradient.T
    tolerance = rounding(max(shape)) * np.linalg.norm(gradient)
    # Tangent: d(W W^T) = 0 along it. And what was taken away is normal: S W with S symmetric.
    np.testing.assert_allclose(g @ w.T + w @ g.T, 0, atol=tolerance)
    removed = gradient - g
    np.testing.assert_allclose(removed @ w.T @ w, removed, atol=tolerance)
    np.testing.assert_allclose(removed @ w.T, (removed @ w.T).T, atol=tolerance)


def test_projecting_skips_matrices_without_a_gradient():
    network = nn.Sequential(SpectralLinear(3, 3), SpectralLinear(3, 3))
    network[1].raw.grad = torch.eye(3)
    project_gradients_(network)
    assert network[0].raw.grad is None
    assert not torch.equal(network[1].raw.grad, torch.eye(3))


@pytest.mark.parametrize("learning_rate", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_every_optimiser_step_ends_with_norms_at_most_one(optimizer, learning_rate):
    network = nn.Sequential(
        OrthogonalConv2d(1, 4, 3, 2), GroupSort2(), nn.Flatten(), SpectralLinear(36, 3)
    )
    network.double()
    steps = optimizer(network.parameters(), lr=learning_rate)
    keep_orthogonal(steps, network)
    for _ in range(3):
        before = network[3].raw.detach().clone()
        steps.zero_grad()
        network(torch.randn(5, 1, 6, 6, dtype=torch.float64)).square().sum().backward()
        steps.step()
        assert not torch.equal(network[3].raw, before)
        for layer in (network[0], network[3]):
            for parameter in layer.orthogonal_parameters():
                norms = torch.linalg.matrix_norm(parameter.detach(), ord=2)
                assert torch.all(norms <= 1 + newton_schulz_rounding(parameter.shape[-2:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (5, 20), (20, 5), (40, 40)])
def test_polishing_makes_any_matrix_orthogonal(shape, dtype):
    layer = polish_(layer_with(np.random.default_rng(9).normal(size=shape), dtype))
    values = np.linalg.svd(raw(layer), compute_uv=False)
    # Stored in `dtype`: entries off by eps, hence the matrix by sqrt(n) eps; 16 n eps is above.
    np.testing.assert_allclose(values, 1, rtol=0, atol=rounding(max(shape), torch.finfo(dtype).eps))


@pytest.mark.parametrize("shape", [(8, 8), (5, 20), (20, 5)])
def test_polishing_gives_the_polar_factor(shape):
    rng = np.random.default_rng(10)
    matrix = with_singular_values(rng, shape, rng.uniform(0.5, 2.0, min(shape)))
    polar, _ = scipy.linalg.polar(matrix)
    # The Gram matrix squares the condition number, at most 4 here.
    atol = 4**2 * rounding(max(shape))
    np.testing.assert_allclose(raw(polish_(layer_with(matrix))), polar, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "values", [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1e3, 1e-3, 1e-9], [1.0, 1e-7, 1e-8]]
)
@pytest.mark.parametrize("shape", [(3, 3), (3, 6), (6, 3)])
def test_polishing_completes_a_deficient_matrix(shape, values):
    matrix = with_singular_values(np.random.default_rng(11), shape, np.array(values))
    result = np.linalg.svd(raw(polish_(layer_with(matrix))), compute_uv=False)
    np.testing.assert_allclose(result, 1, rtol=0, atol=newton_schulz_rounding(shape))


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e200, 1.7e308])
def test_polishing_does_not_depend_on_the_size_of_the_entries(size):
    matrix = np.random.default_rng(12).uniform(-1, 1, (3, 5))
    np.testing.assert_allclose(
        raw(polish_(layer_with(matrix * size))), raw(polish_(layer_with(matrix))), rtol=0, atol=1e-3
    )


def test_polishing_brings_weights_of_columns_back_between_0_and_1():
    layer = ColumnWeightedLinear(3, 2)
    (weights,) = layer.interval_parameters()
    with torch.no_grad():
        weights.copy_(torch.tensor([-2.0, 0.5, 3.4e38]))
    polish_(layer)
    assert weights.tolist() == [0.0, 0.5, 1.0]


# -- export and copies -------------------------------------------------------------------------


def deep_network():
    return Sequential(
        Sequential(SpectralConv2d(2, 4, 3, k=2.0), GroupSort2(), ScaledL2NormPool2d(2), k=3.0),
        OrthogonalConv2d(4, 8, 2, padding_mode="circular"),
        nn.Flatten(),
        SpectralLinear(8, 3),
        k=0.5,
    )


def deep_residual():
    return Residual(
        Sequential(SpectralConv2d(2, 4, 3, k=2.0), GroupSort2(), k=3.0),
        nn.Sequential(OrthogonalConv2d(4, 4, 3), Residual(OrthogonalConv2d(4, 4, 3)), nn.ReLU()),
        OrthogonalConv2d(4, 2, 3),
    )


LAYERS = {
    "linear": (lambda: SpectralLinear(4, 3, k=2.0), (4,)),
    "linear without bias": (lambda: SpectralLinear(4, 3, bias=False), (4,)),
    "spectral": (lambda: SpectralConv2d(2, 4, (3, 2), k=0.5), (2, 4, 4)),
    "spectral circular": (lambda: SpectralConv2d(2, 4, 3, 2, padding_mode="circular"), (2, 4, 4)),
    "orthogonal": (lambda: OrthogonalConv2d(2, 4, 3, 2, bias=False, k=3.0), (2, 4, 4)),
    "orthogonal circular": (lambda: OrthogonalConv2d(2, 4, 3, padding_mode="circular"), (2, 4, 4)),
    "one channel": (lambda: OrthogonalConv2d(1, 1, 3), (1, 4, 4)),
    "pairs": (GroupSort2, (4,)),
    "groups": (lambda: GroupSort(3), (6, 2, 2)),
    "full": (FullSort, (5,)),
    "norm pool": (lambda: ScaledL2NormPool2d(2, k=2.0), (2, 4, 4)),
    "mean pool": (lambda: ScaledAvgPool2d((2, 1)), (2, 4, 4)),
    "flatten": (nn.Flatten, (2, 3)),
    "center": (lambda: Center(4), (4,)),
    "scale": (lambda: Scale(3.0), (4,)),
    "chain": (deep_network, (2, 4, 4)),
    "torch chain": (lambda: nn.Sequential(SpectralLinear(4, 2), nn.ReLU()), (4,)),
    "residual": (deep_residual, (2, 4, 4)),
    "residual in a chain": (lambda: Sequential(Residual(SpectralLinear(4, 4)), k=2.0), (4,)),
}
every_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())


def filled(make):
    """A layer with no parameter at its neutral start."""
    layer = make()
    with torch.no_grad():
        for name, values in [*layer.named_parameters(), *layer.named_buffers()]:
            if name.endswith(("bias", "center")):
                values.normal_()
    return layer


@every_layer
def test_export_computes_the_same_function_with_plain_layers(make, shape):
    layer = filled(make)
    x = torch.randn(3, *shape)
    plain = to_torch(layer)
    assert torch.equal(plain(x), layer(x))
    for part in plain.modules():
        assert not isinstance(part, OrthogonalLayer | Sequential)
        own = [*part.parameters(recurse=False)]
        assert not own or type(part) in (nn.Linear, nn.Conv2d)


@every_layer
def test_export_is_an_independent_copy(make, shape):
    layer = filled(make)
    x = torch.randn(3, *shape)
    plain = to_torch(layer)
    for changed, other in [(plain, layer), (layer, plain)]:
        before = other(x)
        with torch.no_grad():
            for values in [*changed.parameters(), *changed.buffers()]:
                values.fill_(7.0)
        assert torch.equal(other(x), before)


@every_layer
def test_export_leaves_the_random_generator_alone(make, shape):
    layer = make()
    before = torch.get_rng_state()
    to_torch(layer)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_export_keeps_the_dtype(dtype):
    for layer in (SpectralLinear(3, 2, k=2.0), OrthogonalConv2d(1, 4, 2)):
        assert {p.dtype for p in to_torch(layer.to(dtype)).parameters()} == {dtype}


def test_export_replaces_a_layer_that_is_used_twice():
    shared = SpectralLinear(3, 3)
    plain = to_torch(nn.Sequential(shared, GroupSort(3), shared))
    assert [type(layer) for layer in plain] == [nn.Linear, GroupSort, nn.Linear]


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("used", [False, True], ids=["new", "after a backward pass"])
@every_layer
def test_layers_can_be_copied(make, shape, used, copied):
    layer = filled(make)
    x = torch.randn(3, *shape)
    if used:
        layer(x.requires_grad_()).sum().backward()
    twin = copied(layer)
    assert torch.equal(twin(x), layer(x))
    assert repr(twin) == repr(layer)
    with torch.no_grad():
        for values in twin.parameters():
            values.zero_()
    assert all(values.any() for values in layer.parameters() if values.numel())


# -- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpectralLinear(0, 2), "in_features must be an integer of at least 1, got 0"),
        (lambda: SpectralLinear(2, 2.5), r"out_features must .* got 2\.5"),
        (lambda: SpectralLinear(True, 2), "in_features must .* got True"),
        (lambda: SpectralLinear(2, 2, k=0), "k must be a positive finite number, got 0"),
        (lambda: SpectralLinear(2, 2, k=math.inf), "k must .* got inf"),
        (lambda: SpectralLinear(2, 2, k="1"), "k must .* got '1'"),
        (lambda: SpectralConv2d(0, 2, 3), "in_channels must .* got 0"),
        (lambda: SpectralConv2d(1, -2, 3), "out_channels must .* got -2"),
        (lambda: SpectralConv2d(1, 2, 0), "kernel_size must .* got 0"),
        (lambda: OrthogonalConv2d(1, 2, (3, 3, 3)), r"kernel_size must .* got \(3, 3, 3\)"),
        (lambda: OrthogonalConv2d(1, 2, 3, 0), "stride must .* got 0"),
        (lambda: OrthogonalConv2d(1, 2, 3, padding=-1), "padding must .* at least 0 .* got -1"),
        (lambda: SpectralConv2d(1, 2, 3, padding="same"), "padding must .* got 'same'"),
        (lambda: SpectralConv2d(1, 2, 3, padding_mode="reflect"), "padding_mode must .* got 'reflect'"),
        (
            lambda: SpectralConv2d(1, 2, (3, 2), padding=1, padding_mode="circular"),
            r"padding must .* got \(1, 1\) for kernel_size \(3, 2\)",
        ),
        (lambda: OrthogonalConv2d(1, 2, 3, (2, 4)), r"kernel_size must be at least stride=\(2, 4\)"),
        (lambda: OrthogonalConv2d(1, 2, 3, k=math.nan), "k must .* got nan"),
        (lambda: GroupSort(0), "group_size must .* got 0"),
        (lambda: ScaledL2NormPool2d((2, 0)), r"kernel_size must .* got \(2, 0\)"),
        (lambda: ScaledAvgPool2d(2, k=-1.0), r"k must .* got -1\.0"),
        (lambda: Scale(0.0), r"k must .* got 0\.0"),
        (lambda: Sequential(k=-2.0), r"k must .* got -2\.0"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()
