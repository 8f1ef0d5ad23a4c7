"""Networks that other libraries trained: certified as they are, and attacked; or refused by name."""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sklip import CertifiedNetwork, lipschitz_estimate
from sklip.certified import rules

EXAMPLE = Path(__file__).parents[2] / "examples" / "other_networks.py"
# Of the peers' own code and of what they import.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def example():
    specification = importlib.util.spec_from_file_location("other_networks", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["deel.torchlip", "orthogonium"])
def trained(request, example):
    pytest.importorskip(request.param)
    make = example.torchlip_network if "deel" in request.param else example.orthogonium_network
    X, X_test, y, y_test = example.digits()
    known = dict(rules.LAYERS._rules)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make(X, y)
    yield network, X_test, y_test
    rules.LAYERS._rules.clear()
    rules.LAYERS._rules.update(known)


@pytest.mark.slow
def test_a_network_of_a_peer_is_certified_as_it_is(trained, example):
    network, X, y = trained
    certified = CertifiedNetwork.prove(network, example.SHAPE)
    codes, radii = certified.predict_with_radii(X)
    with torch.no_grad():
        own = network(X)
    np.testing.assert_allclose(certified.logits(X), own.numpy(), atol=1e-5)
    assert np.mean(codes == y.numpy()) > 0.7
    assert 0.5 < certified.lipschitz_bound < 1.001
    assert np.median(radii) > 0.05
    # By automatic differentiation, which knows nothing of rules: never above the proven bound.
    estimate = lipschitz_estimate(copy.deepcopy(network).double(), X[:50].double())
    assert 0.1 < estimate <= certified.lipschitz_bound


@pytest.mark.slow
def test_no_attack_finds_another_class_within_the_radius(trained, example):
    pytest.importorskip("foolbox")
    network, X, _ = trained
    certified = CertifiedNetwork.prove(network, example.SHAPE)
    distances, radii = example.attacked(certified, X[:150])
    assert len(distances) > 150
    assert (distances >= radii).all()


def test_a_layer_of_a_peer_without_a_rule_is_refused_by_its_name():
    torchlip = pytest.importorskip("deel.torchlip")
    network = nn.Sequential(nn.Linear(4, 4), torchlip.FullSort(), nn.Linear(4, 2))
    with pytest.raises(TypeError, match=r"FullSort has no Lipschitz bound.*register_layer"):
        CertifiedNetwork.prove(network, (4,))


def test_a_parametrized_layer_of_a_peer_is_refused_by_its_name():
    torchlip = pytest.importorskip("deel.torchlip")
    with pytest.raises(TypeError, match="ParametrizedSpectralLinear has no Lipschitz bound"):
        CertifiedNetwork.prove(nn.Sequential(torchlip.SpectralLinear(4, 2)), (4,))
