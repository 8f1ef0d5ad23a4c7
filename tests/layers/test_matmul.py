"""Products by either kernel against NumPy in float64, and their gradients."""

import numpy as np
import pytest
import torch

from sklip.layers import SpectralLinear, matmul
from sklip.layers.matmul import linear, times, times_transposed

# The first two are large enough for oneDNN, the others are not.
SHAPES = [(256, 3136, 64), (300, 700, 130), (64, 64, 64), (1, 5, 3)]
EPS = np.finfo(np.float32).eps


@pytest.fixture(autouse=True, params=[1, 2])
def threads(request):
    """oneDNN pays on several only."""
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def drawn(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def assert_product(result, left, right):
    """Within the rounding of direct sums, entry by entry."""
    left, right = left.double().numpy(), right.double().numpy()
    allowed = left.shape[1] * EPS * (np.abs(left) @ np.abs(right))
    assert (np.abs(result.double().numpy() - left @ right) <= allowed).all()
    assert result.is_contiguous()


@pytest.mark.parametrize(("rows", "terms", "columns"), SHAPES)
def test_products_are_products(rows, terms, columns):
    left, right = drawn((rows, terms), (terms, columns))
    assert_product(times(left, right), left, right)
    assert_product(times_transposed(left, right.T.contiguous()), left, right)
    assert_product(times(left[None], right[None])[0], left, right)
    assert_product(times_transposed(left[None], right.T[None])[0], left, right)


def test_matrices_in_any_order_of_memory_and_batches_give_the_same_products():
    left, right = drawn((700, 300), (130, 700))
    assert_product(times(left.T, right.T), left.T, right.T)
    assert_product(times_transposed(left.T, right), left.T, right.T)
    batch, other = drawn((3, 200, 700), (3, 700, 200))
    for index in range(3):
        assert_product(times(batch, other)[index], batch[index], other[index])
        assert_product(times_transposed(batch, other.mT)[index], batch[index], other[index])


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("rows", "terms", "columns"), SHAPES)
def test_gradients_are_those_of_the_linear_layer_in_float64(rows, terms, columns, with_bias):
    x, weight, bias, grad = drawn((rows, terms), (columns, terms), (columns,), (rows, columns))
    inputs = [tensor.requires_grad_() for tensor in (x, weight, *([bias] if with_bias else []))]
    linear(*inputs).backward(grad)
    precise = [tensor.detach().double().requires_grad_() for tensor in inputs]
    torch.nn.functional.linear(*precise).backward(grad.double())
    for tensor, exact in zip(inputs, precise, strict=True):
        scale = exact.grad.abs().max()
        torch.testing.assert_close(tensor.grad.double() / scale, exact.grad / scale, rtol=0, atol=1e-5)


def test_other_precisions_and_shapes_go_the_ordinary_way():
    x, weight = drawn((2, 300, 700), (130, 700))
    torch.testing.assert_close(linear(x, weight), x @ weight.T)
    assert linear(x.double(), weight.double()).dtype == torch.float64
    assert linear(x[:0, 0], weight).shape == (0, 130)


@pytest.mark.parametrize("has_onednn", [True, False])
def test_large_products_go_by_onednn(has_onednn, threads, monkeypatch):
    monkeypatch.setattr(matmul, "_HAS_ONEDNN", has_onednn)
    calls = []
    convolution = torch.nn.functional.conv2d
    monkeypatch.setattr(
        matmul.functional, "conv2d", lambda *args: calls.append(1) or convolution(*args)
    )
    pays = has_onednn and threads > 1
    for (rows, terms, columns), large in zip(SHAPES, (2, 2, 0, 0), strict=True):
        left, right = drawn((rows, terms), (terms, columns))
        calls.clear()
        times(left, right)
        linear(left, right.T.contiguous())
        assert len(calls) == (large if pays else 0)


def test_an_exported_layer_takes_any_number_of_rows():
    layer = SpectralLinear(784, 256).requires_grad_(False)
    (many,) = drawn((256, 784))
    rows = torch.export.Dim("rows")
    exported = torch.export.export(layer, (many,), dynamic_shapes=({0: rows},)).module()
    for x in (many, many[:7]):
        torch.testing.assert_close(exported(x), layer(x))
