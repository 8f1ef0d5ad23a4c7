"""Devices by name, generators left alone, networks as arrays and digests."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from sklip import layers
from sklip.devices import (
    available_device,
    digest,
    draw_seed,
    from_arrays,
    resolve_device,
    seeded,
    to_arrays,
)

HAS_CUDA = torch.cuda.is_available()
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")],
    ),
]

# -- names of devices --------------------------------------------------------------------------


def test_auto_is_the_first_cuda_device_or_the_cpu():
    assert resolve_device("auto") == ("cuda" if HAS_CUDA else "cpu")


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_of_this_machine_keeps_its_name(device):
    assert resolve_device(device) == device
    assert resolve_device(torch.device(device)) == device
    assert available_device(device) == device


@pytest.mark.skipif(HAS_CUDA, reason="this machine has a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_cuda_without_cuda_is_refused(device):
    with pytest.raises(ValueError, match=rf"^device must name a device.*'{device}'.*\['cpu'\]"):
        resolve_device(device)


@pytest.mark.parametrize("device", ["cuda:99", "tpu9", "", "cpu:cpu"])
def test_devices_that_are_not_there_are_refused_by_name(device):
    with pytest.raises(
        ValueError, match=rf"^device must name a device of this machine, got '{device}'"
    ):
        resolve_device(device)
    assert available_device(device) == "cpu"


# -- generators --------------------------------------------------------------------------------


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
        with seeded(seed, device):
            draws.append(torch.randn(5, device=device))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("device", DEVICES)
def test_seeded_leaves_the_global_generators_as_they_were(device):
    before = state(device)
    with seeded(0, device):
        torch.rand(100, device=device)
        torch.rand(100)
        inside = state(device)
        with seeded(1, device):
            torch.rand(1, device=device)
        assert_same(inside, state(device))
    assert_same(before, state(device))


@pytest.mark.parametrize("device", DEVICES)
def test_seeded_restores_the_generators_after_an_error(device):
    before = state(device)

    def fail():
        with seeded(0, device):
            torch.rand(100, device=device)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert_same(before, state(device))


def test_seed_follows_the_random_state():
    assert draw_seed(5) == draw_seed(5)
    assert draw_seed(5) != draw_seed(6)
    generator = np.random.RandomState(5)
    first, second = draw_seed(generator), draw_seed(generator)
    assert first == draw_seed(5)
    assert first != second
    assert type(first) is int


# -- networks as arrays ------------------------------------------------------------------------

AWKWARD = [0.0, -0.0, 5e-324, 1e-310, -1.5, 1 / 3, np.finfo(np.float32).max, np.inf, -np.inf, np.nan]


class Everything(nn.Module):
    """Parameters and buffers of every kind that a network may have."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 2, dtype=dtype), nn.BatchNorm1d(2, dtype=dtype))
        self.awkward = nn.Parameter(torch.tensor(AWKWARD, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(2, 2, dtype=dtype), requires_grad=False)
        self.empty = nn.Parameter(torch.zeros(0, 3, dtype=dtype))
        self.transposed = nn.Parameter(torch.arange(6.0, dtype=dtype).reshape(2, 3).mT)
        self.register_buffer("scalar", torch.tensor(0.1, dtype=dtype))
        self.register_buffer("whole", torch.arange(4))
        self.register_buffer("flags", torch.tensor([True, False]))


def bits(module):
    return {
        name: (value.dtype, tuple(value.shape), value.detach().cpu().contiguous().numpy().tobytes())
        for name, value in module.state_dict().items()
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_arrays_hold_every_bit_of_a_network(dtype, device):
    module = Everything(dtype).to(device)
    arrays = to_arrays(module)
    assert set(arrays) == set(module.state_dict())
    assert all(type(array) is np.ndarray for array in arrays.values())
    restored = from_arrays(Everything(dtype), arrays)
    assert bits(restored) == bits(module)


def test_a_network_takes_the_precision_of_the_arrays():
    module = Everything(torch.float64)
    restored = from_arrays(Everything(torch.float32), to_arrays(module))
    assert bits(restored) == bits(module)


def test_arrays_and_networks_share_no_memory():
    module = Everything()
    arrays = to_arrays(module)
    original, stored = bits(module), {name: array.tobytes() for name, array in arrays.items()}
    with torch.no_grad():
        for value in module.state_dict().values():
            value.zero_()
    assert {name: array.tobytes() for name, array in arrays.items()} == stored
    restored = from_arrays(Everything(), arrays)
    for array in arrays.values():
        array[...] = 1
    assert bits(restored) == original


def test_restored_parameters_train_if_they_did_before():
    module = Everything()
    restored = from_arrays(Everything(), to_arrays(module))
    for name, parameter in module.named_parameters():
        twin = restored.get_parameter(name)
        assert isinstance(twin, nn.Parameter)
        assert twin.requires_grad == parameter.requires_grad
    assert from_arrays(restored, to_arrays(module)) is restored


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_arrays_of_another_network_are_refused(change):
    arrays = to_arrays(nn.Linear(3, 2))
    if change == "missing":
        del arrays["bias"]
    elif change == "unexpected":
        arrays["extra"] = np.zeros(1)
    else:
        arrays["weight"] = np.zeros((2, 4), dtype=np.float32)
    with pytest.raises(RuntimeError, match=r"Missing key|Unexpected key|size mismatch"):
        from_arrays(nn.Linear(3, 2), arrays)


# -- digests -----------------------------------------------------------------------------------


def pooled():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.MaxPool2d(2),
        layers.Residual(nn.AvgPool2d(1), layers.GroupSort(2), nn.Softplus()),
        nn.LeakyReLU(0.1),
    )


def test_the_digest_is_that_of_any_equal_network():
    network = pooled()
    twins = [pooled(), copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
    twins.append(from_arrays(pooled().double(), to_arrays(network)))
    assert {digest(twin) for twin in twins} == {digest(network)}


def doubled(part):
    part.weight.data.mul_(2)


CHANGES = {
    "weight": (0, doubled),
    "precision": (0, nn.Module.double),
    "mode": (3, nn.Module.eval),
    "stride": (0, {"stride": (2, 2)}),
    "size of a kernel": (0, {"kernel_size": (1, 9)}),
    "padding that circles": (0, {"_reversed_padding_repeated_twice": [1, 1, 1, 1]}),
    "indices": (1, {"return_indices": True}),
    "slope": (3, {"negative_slope": 0.1 + 1e-16}),
    "divisor": ((2, 0), {"divisor_override": 7}),
    "ceil_mode": ((2, 0), {"ceil_mode": True}),
    "count_include_pad": ((2, 0), {"count_include_pad": False}),
    "size of a group": ((2, 1), {"group_size": 1}),
    "beta": ((2, 2), {"beta": -1.0}),
    "threshold": ((2, 2), {"threshold": 1}),
}


@pytest.mark.parametrize(("place", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_the_digest_sees_every_change(place, change):
    network = pooled()
    before = digest(network)
    part = network
    for index in place if isinstance(place, tuple) else (place,):
        part = part[index]
    if callable(change):
        change(part)
    else:
        for name, value in change.items():
            assert hasattr(part, name)
            setattr(part, name, value)
    assert digest(network) != before


def test_the_digest_sees_the_order_and_the_kinds_of_layers():
    networks = [
        nn.Sequential(nn.ReLU(), nn.Tanh()),
        nn.Sequential(nn.Tanh(), nn.ReLU()),
        nn.Sequential(nn.Sequential(nn.ReLU()), nn.Tanh()),
        nn.Sequential(layers.Residual(nn.ReLU()), nn.Tanh()),
    ]
    assert len({digest(network) for network in networks}) == len(networks)
