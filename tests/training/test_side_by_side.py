"""Networks side by side are trained as each of them alone."""

import copy

import numpy as np
import pytest
import torch

from sklip.layers import SpectralLinear
from sklip.layers.matmul import linear
from sklip.losses import BinaryTauCrossEntropyLoss, TauCrossEntropyLoss
from sklip.networks import lipschitz_mlp
from sklip.training.data import Samples
from sklip.training.net import LipschitzNet
from sklip.training.side_by_side import SideBySide, SumOfLosses

N_ROWS, N_COLUMNS = 60, 6


def networks(n_outputs=3, column_weights=False, n=4):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = [lipschitz_mlp((N_COLUMNS,), n_outputs, (8, 10), column_weights) for _ in range(n)]
    return [network.double() for network in made]


@pytest.fixture
def rows():
    return torch.from_numpy(np.random.default_rng(0).normal(size=(N_ROWS, N_COLUMNS)))


@pytest.mark.parametrize("bias", [True, False])
def test_a_batch_of_matrices_maps_by_each_of_them(rows, bias):
    weights = torch.randn(3, 5, N_COLUMNS, dtype=torch.float64)
    biases = torch.randn(3, 5, dtype=torch.float64) if bias else None
    found = linear(rows, weights, biases)
    assert found.shape == (3, N_ROWS, 5)
    for place, each in enumerate(found):
        expected = rows.numpy() @ weights[place].numpy().T + (biases[place].numpy() if bias else 0)
        np.testing.assert_allclose(each.numpy(), expected, rtol=1e-12, atol=1e-12)
    # And each by its own rows.
    torch.testing.assert_close(
        linear(found, weights.mT),
        torch.stack([linear(own, weight.mT) for own, weight in zip(found, weights, strict=True)]),
    )


@pytest.mark.parametrize("column_weights", [False, True])
def test_they_compute_what_each_computes_and_come_apart_again(rows, column_weights):
    given = networks(column_weights=column_weights)
    if column_weights:
        for place, network in enumerate(given):
            network[1].column_weights.data.fill_(1 / (1 + place))
    together = SideBySide(given)
    logits = together(rows)
    for network, apart, own in zip(given, together.apart(), logits, strict=True):
        torch.testing.assert_close(own, network(rows), rtol=1e-12, atol=1e-12)
        assert [type(layer) for layer in apart] == [type(layer) for layer in network]
        assert apart.state_dict().keys() == network.state_dict().keys()
        for name, value in apart.state_dict().items():
            assert torch.equal(value, network.state_dict()[name])
    # Copies: what happens to one of them reaches nobody else.
    apart = together.apart()
    with torch.no_grad():
        apart[0][1].raw.zero_()
    assert torch.equal(together(rows), logits)


def trained(module, criterion, samples, scales, solver, epochs=40):
    net = LipschitzNet(
        module,
        criterion,
        solver=solver,
        lr=0.06 if solver == "muon" else 0.01,
        batch_size=N_ROWS,
        column_scales=scales,
        train_split=None,
    )
    net.initialize()
    return net.train(samples, None, epochs).module_


@pytest.mark.parametrize("solver", ["muon", "adam"])
@pytest.mark.parametrize("column_weights", [False, True])
@pytest.mark.parametrize(("weighted", "binary"), [(False, False), (True, True)])
def test_each_is_trained_as_it_would_be_alone(rows, solver, column_weights, weighted, binary):
    rng = np.random.default_rng(1)
    y = torch.from_numpy(
        (rows[:, 0] > 0).numpy().astype(np.int64) + (0 if binary else rng.integers(0, 2, N_ROWS))
    )
    weight = torch.from_numpy(rng.uniform(0.1, 1, N_ROWS)) if weighted else None
    samples = Samples(rows, y, weight, torch.float64)
    scales = rows.std(0, correction=0) / N_ROWS**0.5
    loss = BinaryTauCrossEntropyLoss if binary else TauCrossEntropyLoss
    criteria = [loss(1.0), loss(5.0), loss(5.0, 0.3), loss(20.0, 0.1, 2.0)]
    given = networks(1 if binary else 3, column_weights)
    alone = [
        trained(copy.deepcopy(network), criterion, samples, scales, solver)
        for network, criterion in zip(given, criteria, strict=True)
    ]
    together = trained(SideBySide(given), SumOfLosses(criteria), samples, scales, solver).apart()
    moved = 0.0
    for network, single, before in zip(together, alone, given, strict=True):
        for name, value in single.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=1e-7)
        if column_weights:
            moved = max(moved, float((1 - single[1].column_weights.detach()).max()))
        assert not torch.allclose(single[1].raw, before[1].raw, atol=0.1)
    assert moved > 0.1 or not column_weights
    assert not any(torch.allclose(alone[0](rows), each(rows), atol=0.01) for each in alone[1:])


@pytest.mark.parametrize("solver", ["muon", "adam"])
def test_one_whose_columns_have_no_scale_is_trained_as_one_without_weights(rows, solver):
    samples = Samples(rows, (rows[:, 0] > 0).long(), None, torch.float64)
    scales = torch.stack([torch.zeros(N_COLUMNS), torch.ones(N_COLUMNS) / N_ROWS**0.5]).double()
    plain, weighted = networks(n=1)[0], networks(column_weights=True, n=1)[0]
    assert torch.equal(plain[1].raw, weighted[1].raw)
    criteria = [TauCrossEntropyLoss(5.0), TauCrossEntropyLoss(5.0)]
    module = SideBySide([weighted, weighted])
    unweighted, other = trained(module, SumOfLosses(criteria), samples, scales, solver).apart()
    alone = trained(plain, criteria[0], samples, scales[1], solver)
    assert torch.equal(unweighted[1].column_weights, torch.ones(N_COLUMNS, dtype=torch.float64))
    assert other[1].column_weights.min() < 0.9
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(unweighted.state_dict()[name], value, rtol=0, atol=1e-7)


def test_the_optimiser_keeps_each_of_them_orthogonal(rows):
    samples = Samples(rows, (rows[:, 0] > 0).long(), None, torch.float64)
    criteria = [TauCrossEntropyLoss(tau) for tau in (1.0, 5.0, 20.0, 100.0)]
    together = trained(SideBySide(networks()), SumOfLosses(criteria), samples, None, "muon")
    for network in together.apart():
        for layer in network:
            if isinstance(layer, SpectralLinear):
                values = np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)
                np.testing.assert_allclose(values, 1, atol=1e-4)
