"""Orthogonalised momentum against dense algebra in float64: SVD, projections, QR-free retractions."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from sklip.layers import GroupSort2, OrthogonalConv2d, SpectralConv2d, SpectralLinear
from sklip.training import StiefelMuon

pytestmark = pytest.mark.usefixtures("seeded_torch")

SHAPES = [(8, 40), (40, 8), (12, 12), (1, 9), (9, 1)]


def tangent(W, V):
    """Projection on the tangent space, for wide W."""
    inner = V @ W.T
    return V - (inner + inner.T) / 2 @ W


def orthogonal_defect(matrix):
    return np.abs(np.linalg.svd(matrix, compute_uv=False) - 1).max()


def one_step(shape, gradient, lr=0.05, dtype=torch.float64):
    torch.manual_seed(0)
    layer = SpectralLinear(shape[1], shape[0], bias=False).to(dtype)
    before = layer.raw.detach().clone()
    optimizer = StiefelMuon(layer, lr=lr, every=1)
    layer.raw.grad = gradient.to(dtype)
    optimizer.step()
    return before.double().numpy(), layer.raw.detach().double().numpy()


def wide(matrix):
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normal", [0.0, 3.0, 30.0])
def test_a_step_is_the_retracted_orthogonalised_tangent(shape, normal):
    # Whatever the part of the gradient that points off the constraint.
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    start = SpectralLinear(shape[1], shape[0], bias=False).double().raw.detach()
    gradient = torch.randn(shape, generator=generator, dtype=torch.float64) + normal * start
    lr = 0.05
    before, after = (wide(matrix) for matrix in one_step(shape, gradient, lr))
    U, sizes, Vt = np.linalg.svd(tangent(before, wide(gradient.numpy())), full_matrices=False)
    # Singular values in the polynomial's flat part; below it they are not yet lifted.
    assert orthogonal_defect(after) < 1e-6
    moved = U.T @ (before - after) @ Vt.T
    lifted = sizes > 0.02 * np.linalg.norm(sizes**2) ** 0.5
    angles = np.diag(moved)[lifted] / lr
    assert (angles > 0.6).all()
    assert (angles < 1.3).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_depends_on_the_direction_of_the_gradient_alone(shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = [one_step(shape, size * gradient)[1] for size in (1.0, 1e-30, 1e30)]
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(results[2], results[0], rtol=0, atol=1e-10)


# A hundred steps of 0.05 that were not brought back would leave the constraint by more than a tenth.
@pytest.mark.parametrize(
    ("dtype", "defect"), [(torch.float32, 3e-3), (torch.float64, 1e-6)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normal", [0.0, -30.0, 30.0])
def test_matrices_stay_orthogonal_over_many_steps(shape, normal, dtype, defect):
    layer = SpectralLinear(shape[1], shape[0], bias=False).to(dtype)
    optimizer = StiefelMuon(layer, lr=0.05, every=1)
    for _ in range(100):
        layer.raw.grad = torch.randn_like(layer.raw) + normal * layer.raw.detach()
        optimizer.step()
        assert orthogonal_defect(layer.raw.detach().double().numpy()) < defect


def test_a_batch_of_matrices_moves_as_each_of_them_alone():
    convolution = OrthogonalConv2d(8, 8, 5)  # four filters, one parameter
    gradient = torch.randn_like(convolution.projectors)
    singles = []
    for matrix in convolution.projectors.detach():
        layer = SpectralLinear(matrix.shape[1], matrix.shape[0], bias=False)
        layer.raw.data.copy_(matrix)
        singles.append(layer)
    convolution.projectors.grad = gradient
    StiefelMuon(convolution, every=1).step()
    for layer, part, moved in zip(singles, gradient, convolution.projectors, strict=True):
        layer.raw.grad = part.clone()
        StiefelMuon(layer, every=1).step()
        torch.testing.assert_close(layer.raw.detach(), moved.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("lr", [0.05, 5.0])
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e18])
def test_no_gradient_and_no_rate_makes_weights_non_finite(size, lr):
    layer = SpectralLinear(20, 6)
    optimizer = StiefelMuon(layer, lr=lr, every=1)
    for _ in range(50):
        layer.raw.grad = size * torch.randn_like(layer.raw)
        layer.bias.grad = size * torch.randn_like(layer.bias)
        optimizer.step()
    assert np.linalg.norm(layer.raw.detach().numpy(), 2) < 1.01


def test_every_parameter_of_a_network_moves_and_free_ones_move_as_with_adam():
    network = nn.Sequential(
        SpectralConv2d(1, 4, 3), GroupSort2(), OrthogonalConv2d(4, 8, 3, 2), nn.Flatten()
    )
    twin = [nn.Parameter(network[i].bias.detach().clone()) for i in (0, 2)]
    optimizer = StiefelMuon(network, lr=0.05, every=5)
    adam = torch.optim.Adam(twin, lr=0.005, betas=(0.9, 0.99))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for _ in range(5):
        optimizer.zero_grad()
        network(torch.randn(3, 1, 6, 6)).pow(3).mean().backward()
        for parameter, index in zip(twin, (0, 2), strict=True):
            parameter.grad = network[index].bias.grad.clone()
        optimizer.step()
        adam.step()
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert not torch.equal(parameter, old)
    for parameter, index in zip(twin, (0, 2), strict=True):
        torch.testing.assert_close(network[index].bias, parameter, rtol=1e-5, atol=1e-7)


def turned_by(gradients, **parameters):
    """Weight after a step with each gradient, and a turn by what is left."""
    torch.manual_seed(0)
    layer = SpectralLinear(20, 6, bias=False).double()
    optimizer = StiefelMuon(layer, large=0, **parameters)
    for gradient in gradients:
        layer.raw.grad = gradient.clone()
        optimizer.step()
    optimizer.finish()
    return layer.raw.detach()


@pytest.mark.parametrize("last", [1, 3, 4])
def test_a_turn_goes_by_the_sum_of_the_gradients_and_as_far_as_their_steps(last):
    torch.manual_seed(1)
    gradients = torch.randn(4 + last, 6, 20, dtype=torch.float64)
    moved = turned_by(gradients, lr=0.02, momentum=0.9, every=4)
    if last == 4:
        sums = torch.stack((gradients[:4].sum(0), gradients[4:].sum(0)))
        expected = turned_by(sums, lr=0.08, momentum=0.9**4, every=1)
    else:  # a shorter turn at the end: the rate and the momentum change between the two
        torch.manual_seed(0)
        layer = SpectralLinear(20, 6, bias=False).double()
        optimizer = StiefelMuon(layer, lr=0.08, momentum=0.9**4, every=1, large=0)
        layer.raw.grad = gradients[:4].sum(0)
        optimizer.step()
        optimizer.param_groups[0].update(lr=0.02 * last, momentum=0.9**last)
        layer.raw.grad = gradients[4:].sum(0)
        optimizer.step()
        expected = layer.raw.detach()
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


def test_constrained_matrices_rest_between_turns_and_a_turn_by_nothing_is_none():
    layer = SpectralLinear(20, 6)
    optimizer = StiefelMuon(layer, every=3, large=119)
    optimizer.finish()
    seen = [layer.raw.detach().clone()]
    for _ in range(6):
        layer.raw.grad = torch.randn(6, 20)
        optimizer.step()
        seen.append(layer.raw.detach().clone())
    optimizer.finish()
    seen.append(layer.raw.detach().clone())
    moved = [not torch.equal(before, after) for before, after in itertools.pairwise(seen)]
    assert moved == [False, False, True, False, False, True, False]


def test_large_matrices_wait_and_small_ones_turn_at_each_step():
    network = nn.Sequential(SpectralLinear(20, 8), GroupSort2(), SpectralLinear(8, 6))
    optimizer = StiefelMuon(network, lr=0.02, every=3, large=159)  # 160 entries, and 48
    alone = copy.deepcopy(network[2])
    each_step = StiefelMuon(alone, lr=0.02, every=1, large=0)
    rests = []
    for _ in range(6):
        before = network[0].raw.detach().clone()
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        for parameter, own in zip(network[2].parameters(), alone.parameters(), strict=True):
            own.grad = parameter.grad.clone()
        optimizer.step()
        each_step.step()
        rests.append(torch.equal(network[0].raw, before))
        torch.testing.assert_close(network[2].raw, alone.raw, rtol=0, atol=0)
    assert rests == [True, True, False, True, True, False]


def test_a_frozen_matrix_stays_and_a_period_of_no_steps_is_refused():
    layer = SpectralLinear(20, 6)
    optimizer = StiefelMuon(layer, every=1)
    layer.raw.grad = torch.randn(6, 20)
    optimizer.step()
    layer.raw.requires_grad_(False).grad = None
    frozen = layer.raw.detach().clone()
    optimizer.step()
    assert torch.equal(layer.raw, frozen)
    with pytest.raises(ValueError, match="every must be"):
        StiefelMuon(layer, every=0)
    with pytest.raises(ValueError, match="large must be"):
        StiefelMuon(layer, large=-1)


def test_state_can_be_stored_and_taken_up():
    layers, optimizers = [], []
    for _ in range(2):
        torch.manual_seed(0)
        layers.append(SpectralLinear(20, 6))
        optimizers.append(StiefelMuon(layers[-1]))
    gradients = [torch.randn(6, 20) for _ in range(6)]
    for optimizer, layer in zip(optimizers, layers, strict=True):
        for gradient in gradients[:3]:
            layer.raw.grad = gradient
            optimizer.step()
    fresh = StiefelMuon(layers[1])
    fresh.load_state_dict(optimizers[1].state_dict())
    for optimizer, layer in zip((optimizers[0], fresh), layers, strict=True):
        for gradient in gradients[3:]:
            layer.raw.grad = gradient
            optimizer.step()
    torch.testing.assert_close(layers[0].raw, layers[1].raw, rtol=0, atol=0)


def test_a_closure_is_called_with_gradients_and_its_loss_returned():
    layer = SpectralLinear(20, 6)
    before = layer.raw.detach().clone()
    optimizer = StiefelMuon(layer, every=1)

    def closure():
        optimizer.zero_grad()
        loss = layer(torch.ones(2, 20)).pow(3).mean()
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad
    assert not torch.equal(layer.raw, before)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_free_parameters_move_as_by_adamw(weight_decay):
    torch.manual_seed(0)
    ours = nn.Sequential(SpectralLinear(4, 2), nn.Linear(2, 3)).double()
    theirs = copy.deepcopy(ours)
    mine = StiefelMuon(ours, lr=0.1, betas=(0.9, 0.99), weight_decay=weight_decay)
    free = [ours[0].bias, *ours[1].parameters()]
    other = [theirs[0].bias, *theirs[1].parameters()]
    adamw = torch.optim.AdamW(other, lr=0.01, betas=(0.9, 0.99), weight_decay=weight_decay)
    constrained = ours[0].weight.detach().clone()
    for _ in range(3):  # before the first turn
        for parameter, like in zip(free, other, strict=True):
            parameter.grad = torch.randn_like(parameter)
            like.grad = parameter.grad.clone()
        mine.step()
        adamw.step()
    for parameter, like in zip(free, other, strict=True):
        torch.testing.assert_close(parameter, like, rtol=1e-6, atol=1e-9)
    # What is constrained has no length to lose.
    torch.testing.assert_close(ours[0].weight, constrained, rtol=0, atol=0)


def test_a_negative_decay_and_a_share_of_nothing_are_refused():
    with pytest.raises(ValueError, match="weight_decay must be at least 0"):
        StiefelMuon(nn.Linear(2, 2), weight_decay=-1.0)
    with pytest.raises(ValueError, match="free_share must be positive and finite, got 0"):
        StiefelMuon(nn.Linear(2, 2), free_share=0)


def test_free_parameters_move_at_their_share_of_the_rate():
    layer = SpectralLinear(3, 2)
    optimizer = StiefelMuon(layer, lr=0.2, free_share=0.25)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    # Adam's first step is the rate, against the sign of the gradient.
    torch.testing.assert_close(layer.bias.detach(), torch.full((2,), -0.05), rtol=1e-5, atol=0)
