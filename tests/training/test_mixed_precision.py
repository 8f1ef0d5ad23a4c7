"""Products in bfloat16: where they are used, and that only gradients feel them."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from sklip import LipschitzClassifier
from sklip.layers import FullSort, OrthogonalConv2d, SpectralLinear
from sklip.networks import lipschitz_cnn, lipschitz_mlp, tutorial_cnn
from sklip.training import mixed_precision
from sklip.training.mixed_precision import mixed_precision_pays

SIZES = {"input_shape": (1, 8, 8), "conv_channels": (8, 8), "hidden_layer_sizes": (16,)}
FIT = {**SIZES, "max_epochs": 3, "random_state": 0, "device": "cpu"}


@pytest.fixture
def units(monkeypatch):
    """Have the CPU's units there, or not; bfloat16 is computed without them too, if slower."""

    def have(there):
        monkeypatch.setattr(mixed_precision, "_has_units", lambda: there)

    return have


@pytest.fixture(scope="module")
def images():
    X, y = load_digits(return_X_y=True)
    return X / 16, y


def weights(clf):
    return torch.cat([p.detach().flatten() for p in clf.to_torch().parameters()])


def test_images_are_trained_in_it_where_there_are_units(units, images):
    X, y = images
    units(True)
    mixed, again = (LipschitzClassifier(**FIT).fit(X, y) for _ in range(2))
    units(False)
    whole = LipschitzClassifier(**FIT).fit(X, y)
    assert mixed.net_.mixed_precision
    assert not whole.net_.mixed_precision
    assert torch.equal(weights(mixed), weights(again))
    # The same training, but for rounding: far closer than two seeds are.
    other = LipschitzClassifier(**{**FIT, "random_state": 1}).fit(X, y)
    apart = torch.linalg.vector_norm(weights(mixed) - weights(whole))
    assert 0 < apart < 0.5 * torch.linalg.vector_norm(weights(other) - weights(whole))


def test_the_precision_can_be_asked_for(units, images):
    X, y = images
    units(True)
    asked = LipschitzClassifier(**FIT, dtype="float32").fit(X, y)
    units(False)
    whole = LipschitzClassifier(**FIT).fit(X, y)
    assert torch.equal(weights(asked), weights(whole))
    np.testing.assert_array_equal(asked.certificates_(X), whole.certificates_(X))


def test_it_is_as_good(units, images):
    X, y = images
    found = []
    for there in (True, False):
        units(there)
        clf = LipschitzClassifier(**{**FIT, "max_epochs": 20}).fit(X[:1000], y[:1000])
        labels, radii = clf.predict_with_radii(X[1000:])
        right = labels == y[1000:]
        found.append((right.mean(), (radii * right).mean()))
    (accuracy, radius), (accuracy_in_full, radius_in_full) = found
    assert accuracy > accuracy_in_full - 0.02
    assert radius > 0.95 * radius_in_full


def test_what_is_trained_is_as_orthogonal_and_predicts_in_float32(units, images):
    X, y = images
    units(True)
    clf = LipschitzClassifier(**FIT).fit(X, y)
    assert clf.dtype_ == "float32"
    assert 1 - 1e-5 < clf.lipschitz_bound_ < 1 + 1e-5
    assert all(value.dtype == torch.float32 for value in clf.net_.module_.state_dict().values())
    network = clf.to_torch().double()
    with torch.no_grad():
        exact = network(torch.from_numpy(X).double().reshape(-1, 1, 8, 8)).numpy()
    # bfloat16 would be off by 1e-3 or more.
    np.testing.assert_allclose(clf.decision_function(X), exact, atol=1e-5)


def test_gradients_are_those_of_float32_up_to_rounding(images):
    X = torch.from_numpy(images[0][:200]).float().reshape(-1, 1, 8, 8)
    torch.manual_seed(0)
    network = lipschitz_cnn((1, 8, 8), 10, (8, 8), (16,))

    def gradients(mixed):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            outputs = network(X)
        outputs.float().square().mean().backward()
        return [parameter.grad.clone() for parameter in network.parameters()]

    for mixed, whole in zip(gradients(True), gradients(False), strict=True):
        assert mixed.dtype == torch.float32
        assert 0 < torch.linalg.vector_norm(mixed - whole) < 0.02 * torch.linalg.vector_norm(whole)


@pytest.mark.parametrize(
    ("network", "device", "pays"),
    [
        (lambda: lipschitz_cnn((1, 8, 8), 3), "cpu", True),
        (lambda: nn.Sequential(OrthogonalConv2d(1, 4, 3)), "cpu", True),  # of somebody else
        (lambda: nn.Sequential(OrthogonalConv2d(1, 4, 3), nn.Tanh()), "cpu", False),
        (lambda: lipschitz_cnn((1, 8, 8), 3).double(), "cpu", False),
        (lambda: lipschitz_cnn((1, 8, 8), 3), "cuda", False),
        (lambda: lipschitz_cnn((1, 8, 8), 3).append(FullSort()), "cpu", False),
        (lambda: lipschitz_mlp((4,), 3), "cpu", False),
        (lambda: tutorial_cnn((1, 8, 8), 3), "cpu", False),
        (lambda: SpectralLinear(4, 4), "cpu", False),
    ],
)
def test_networks_that_it_suits(units, network, device, pays):
    units(True)
    assert mixed_precision_pays(network(), device) == pays
    units(False)
    assert not mixed_precision_pays(network(), device)


def test_a_torch_that_cannot_tell_has_no_units(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not mixed_precision_pays(lipschitz_cnn((1, 8, 8), 3), "cpu")
