"""The digest of a network sees all that decides what it computes."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sklip import layers
from sklip.certified.integrity import digest
from sklip.certified.state import network_from_state, network_state


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
    twins.append(network_from_state(network_state(network)))
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
