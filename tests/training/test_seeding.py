"""Draws inside `seeded` follow from its seed alone, and touch no other generator."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional

from sklip import layers
from sklip.training.seeding import seeded

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


def state(device):
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if device == "cuda" else states


def assert_same(before, after):
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_seeded_draws_the_same_numbers_again_and_others_for_another_seed(device):
    draws = []
    for seed in (3, 3, 4):
        torch.rand(7)  # the state outside has no influence
        with seeded(seed):
            draws.append(torch.randn(5, device=device))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("device", DEVICES)
def test_seeded_never_moves_the_global_generators(device):
    before = state(device)
    with seeded(0):
        torch.rand(100, device=device)
        torch.rand(100)
        assert_same(before, state(device))
        with seeded(1):
            torch.rand(1, device=device)
        assert_same(before, state(device))
    assert_same(before, state(device))


@pytest.mark.parametrize("device", DEVICES)
def test_seeded_leaves_the_global_generators_alone_after_an_error(device):
    before = state(device)

    def fail():
        with seeded(0):
            torch.rand(100, device=device)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert_same(before, state(device))
    # And draws come from them again.
    torch.rand(100, device=device)
    assert not torch.equal(before[-1], state(device)[-1])


def test_an_inner_context_does_not_move_the_outer_one():
    with seeded(3):
        plain = [torch.rand(4), torch.rand(4)]
    with seeded(3):
        first = torch.rand(4)
        with seeded(3):
            again = torch.rand(4)
        second = torch.rand(4)
    assert torch.equal(again, plain[0])
    assert_same(plain, [first, second])


# -- whatever draws ----------------------------------------------------------------------------


def filled(method, *arguments):
    return lambda: getattr(torch.full((40,), 0.3), method)(*arguments)


def made(make, *arguments):
    return lambda: nn.utils.parameters_to_vector(make(*arguments).parameters())


def initialised(init, *arguments):
    return lambda: init(torch.empty(6, 7), *arguments)


def dropped(drop, *shape):
    return lambda: drop(torch.ones(shape), 0.4, True)


DRAWS = {
    "rand": lambda: torch.rand(40),
    "randn": lambda: torch.randn(5, 8),
    "randint": lambda: torch.randint(100, (40,)),
    "randperm": lambda: torch.randperm(40),
    "normal": lambda: torch.normal(torch.zeros(40), 2.0),
    "bernoulli": lambda: torch.bernoulli(torch.full((40,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(40), 30),
    "poisson": lambda: torch.poisson(torch.full((40,), 5.0)),
    "rand_like": lambda: torch.rand_like(torch.zeros(40)),
    "randn_like": lambda: torch.randn_like(torch.zeros(5, 8), dtype=torch.float64),
    "randint_like": lambda: torch.randint_like(torch.zeros(40), 100),
    "rand_like by keyword": lambda: torch.rand_like(input=torch.zeros(40)),
    "binomial": lambda: torch.binomial(torch.full((40,), 10.0), torch.full((40,), 0.5)),
    "Tensor.bernoulli": filled("bernoulli"),
    "Tensor.bernoulli_": filled("bernoulli_", 0.5),
    "Tensor.cauchy_": filled("cauchy_"),
    "Tensor.exponential_": filled("exponential_"),
    "Tensor.geometric_": filled("geometric_", 0.5),
    "Tensor.log_normal_": filled("log_normal_"),
    "Tensor.multinomial": filled("multinomial", 30),
    "Tensor.normal_": filled("normal_", 1.0, 2.0),
    "Tensor.random_": filled("random_", 100),
    "Tensor.uniform_": filled("uniform_", -1, 1),
    "init.kaiming_normal_": initialised(nn.init.kaiming_normal_),
    "init.kaiming_uniform_": initialised(nn.init.kaiming_uniform_),
    "init.normal_": initialised(nn.init.normal_),
    "init.orthogonal_": initialised(nn.init.orthogonal_),
    "init.trunc_normal_": initialised(nn.init.trunc_normal_),
    "init.uniform_": initialised(nn.init.uniform_),
    "init.xavier_normal_": initialised(nn.init.xavier_normal_),
    "init.xavier_uniform_": initialised(nn.init.xavier_uniform_),
    "Linear": made(nn.Linear, 7, 6),
    "Conv2d": made(nn.Conv2d, 2, 3, 3),
    "SpectralLinear": made(layers.SpectralLinear, 7, 6),
    "SpectralConv2d": made(layers.SpectralConv2d, 2, 3, 3),
    "OrthogonalConv2d": made(layers.OrthogonalConv2d, 2, 4, 3),
    "dropout": dropped(functional.dropout, 5, 8),
    "dropout1d": dropped(functional.dropout1d, 3, 10, 2),
    "dropout2d": dropped(functional.dropout2d, 3, 10, 2, 2),
    "dropout3d": dropped(functional.dropout3d, 3, 10, 2, 2, 1),
    "Dropout": lambda: nn.Dropout(0.4)(torch.ones(5, 8)),
    "Dropout2d": lambda: nn.Dropout2d(0.4)(torch.ones(3, 10, 2, 2)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_draws_are_those_of_torch_from_the_same_seed(draw):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = [draw(), draw()]
        torch.manual_seed(6)
        before = torch.get_rng_state()
        with seeded(5):
            got = [draw(), draw()]
        assert torch.equal(torch.get_rng_state(), before)
    assert_same(expected, got)
    assert [value.dtype for value in got] == [value.dtype for value in expected]
    assert not torch.equal(got[0], got[1])


def test_a_generator_that_is_named_is_the_one_that_is_used():
    expected = torch.rand(5, generator=torch.Generator().manual_seed(1))
    with seeded(5):
        got = torch.rand(5, generator=torch.Generator().manual_seed(1))
        untouched = torch.rand(5)
    assert torch.equal(got, expected)
    with seeded(5):
        assert torch.equal(torch.rand(5), untouched)


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_has_one_generator_by_whatever_name_it_is_called(device):
    with seeded(5):
        by_name = torch.rand(8, device=device)
        by_index = torch.empty(8, device=by_name.device).uniform_()
    assert not torch.equal(by_name, by_index)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_dropout_keeps_its_share_and_passes_gradients_on(p, training):
    x = torch.ones(200, 50, requires_grad=True)
    with seeded(5):
        out = functional.dropout(x, p, training)
    out.sum().backward()
    # The output is x times a constant.
    assert torch.equal(x.grad, out.detach())
    values = set(out.detach().unique().tolist())
    if training:
        # Ten standard deviations of the mean of 10,000 draws.
        assert abs(float((out == 0).float().mean()) - p) <= 0.05
        assert values == {0.0: {1.0}, 0.25: {0.0, float(torch.tensor(1 / 0.75))}, 1.0: {0.0}}[p]
    else:
        assert values == {1.0}


def test_a_function_without_draws_computes_what_it_did():
    x = torch.linspace(-1, 1, 12).view(3, 4)
    network = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    expected = network(x)
    with seeded(5):
        assert torch.equal(network(x), expected)


def test_each_thread_draws_from_its_own_generators():
    n_threads, n_draws = 4, 50
    turns, drawn = threading.Barrier(n_threads + 1), [[] for _ in range(n_threads)]

    def fit(index):
        with seeded(index % 2):
            for _ in range(n_draws):
                turns.wait(timeout=60)
                drawn[index].append(torch.rand(3))

    before = torch.get_rng_state()
    threads = [threading.Thread(target=fit, args=(index,)) for index in range(n_threads)]
    for thread in threads:
        thread.start()
    with torch.random.fork_rng():
        for _ in range(n_draws):
            turns.wait(timeout=60)
            torch.rand(1)  # a thread without a seed draws from the global generator
    for thread in threads:
        thread.join()
    assert torch.equal(torch.get_rng_state(), before)
    for seed in (0, 1):
        with seeded(seed):
            expected = [torch.rand(3) for _ in range(n_draws)]
        assert_same(expected, drawn[seed])
        assert_same(expected, drawn[seed + 2])
