"""Every layer of a file computes what torch's computes."""

import numpy as np
import pytest
import torch
from torch import nn

from sklip import layers
from sklip.certified import CertifiedNetwork, MapBound, exact, register_layer
from sklip.certified.rules import LAYERS
from sklip.export.graph import Graph
from sklip.export.layers import _WRITERS, add_network

pytestmark = pytest.mark.usefixtures("seeded_torch")
MAP, ROW = (4, 7, 6), (6,)
# Each in settings other than the default ones; together all types that have operators.
OF_MAPS = {
    "Conv2d": nn.Conv2d(4, 6, (3, 2), (1, 2), (2, 0), (1, 2), groups=2),
    "Conv2d without bias": nn.Conv2d(4, 3, 3, 2, 1, bias=False),
    "Conv2d circular": nn.Conv2d(4, 3, (3, 1), padding=(1, 0), padding_mode="circular"),
    "Conv2d same": nn.Conv2d(4, 3, (2, 4), padding="same"),
    "Conv2d of one channel": nn.Conv2d(4, 1, 3, 2),
    "MaxPool2d": nn.MaxPool2d((2, 1), (3, 2), (1, 0), ceil_mode=True),
    "MaxPool2d dilated": nn.MaxPool2d(2, 4, dilation=3),
    "AvgPool2d": nn.AvgPool2d(2, (3, 2), 1),
    "ScaledAvgPool2d": layers.ScaledAvgPool2d((1, 2), k=1.7),
    "ScaledL2NormPool2d": layers.ScaledL2NormPool2d((2, 3), k=0.3),
    "GroupSort2": layers.GroupSort2(),
    "GroupSort": layers.GroupSort(4),
    "FullSort": layers.FullSort(),
    "ReLU": nn.ReLU(inplace=True),
    "LeakyReLU": nn.LeakyReLU(-0.7),
    "Scale": layers.Scale(1 / 3),
    "Identity": nn.Identity(),
    "Dropout2d": nn.Dropout2d(0.9),
    "Residual": layers.Residual(nn.Conv2d(4, 4, 3, padding=1), nn.Sequential(layers.GroupSort2())),
}
OF_ROWS = {
    "Linear": nn.Linear(6, 4),
    "Linear without bias": nn.Linear(6, 4, bias=False),
    "Linear to one": nn.Linear(6, 1),
    "Center": layers.Center(6),
    "GroupSort2": layers.GroupSort2(),
    "GroupSort": layers.GroupSort(3),
    "FullSort": layers.FullSort(),
    "ReLU": nn.ReLU(),
    "LeakyReLU": nn.LeakyReLU(0.3),
    "Scale": layers.Scale(3.0),
    "Dropout": nn.Dropout(0.9),
    "Flatten": nn.Flatten(),
    "Residual": layers.Residual(nn.Linear(6, 6), layers.Residual(nn.ReLU())),
}


def outputs(network, shape, X, tmp_path, run, **arguments):
    graph = Graph("float64")
    rows = graph.input("X", ["n", int(np.prod(shape))])
    graph.output("Y", add_network(graph, network, rows, shape), np.float64, ["n", "m"])
    graph.write(tmp_path / "network.onnx", {})
    return run(tmp_path / "network.onnx", X.reshape(len(X), -1), **arguments)["Y"]


def test_every_type_with_operators_is_here():
    found = {type(part) for layer in (*OF_MAPS.values(), *OF_ROWS.values()) for part in layer.modules()}
    assert found - {nn.Sequential} == set(_WRITERS)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("optimised", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [*((layer, MAP) for layer in OF_MAPS.values()), *((layer, ROW) for layer in OF_ROWS.values())],
    ids=[*(f"{name} of maps" for name in OF_MAPS), *(f"{name} of rows" for name in OF_ROWS)],
)
def test_a_layer_computes_what_torch_computes(layer, shape, optimised, tmp_path, run):
    network = nn.Sequential(layer, *([nn.Flatten()] if shape == MAP else [])).double().eval()
    for name, buffer in network.named_buffers():
        if name.endswith("center"):
            buffer.normal_()
    X = np.random.default_rng(0).normal(size=(5, *shape))
    found = outputs(network, shape, X, tmp_path, run, optimised=optimised)
    with torch.no_grad():
        expected = network(torch.from_numpy(X.copy())).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("factor", [1 + 2.0**-30, 1 - 2.0**-40, 1e-50])
@pytest.mark.parametrize("width", [1, 2])
def test_no_factor_is_optimised_away(factor, width, tmp_path, run):
    """onnxruntime drops a factor of one element that is 1 once it is cast to float32."""
    network = nn.Sequential(nn.ReLU(), layers.Scale(factor), layers.GroupSort(1), nn.ReLU())
    X = np.random.default_rng(0).uniform(1, 2, size=(5, width))
    found = outputs(network, (width,), X, tmp_path, run)
    np.testing.assert_array_equal(found, X * factor)
    assert (found != X).all()


def test_no_translation_is_optimised_away(tmp_path, run):
    center = layers.Center(1)
    center.center = torch.tensor([1e-50], dtype=torch.float64)
    found = outputs(nn.Sequential(nn.ReLU(), center), (1,), np.zeros((2, 1)), tmp_path, run)
    np.testing.assert_array_equal(found, -1e-50)


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (nn.Tanh(), (4,), "Tanh has no form in ONNX whose rounding is known; .*Conv2d"),
        (nn.Sequential(nn.Linear(6, 3), nn.Flatten()), MAP, "Linear works along the width of maps"),
        (nn.Flatten(), (2, 3), r"rows or on maps .*, got input_shape=\(2, 3\)"),
        (nn.Flatten(1, 2), MAP, "must make rows or maps; flatten maps"),
    ],
)
def test_what_has_no_operators_is_refused_by_name(network, shape, message):
    graph = Graph("float64")
    with pytest.raises(TypeError, match=message):
        add_network(graph, network, graph.input("X", ["n", 4]), shape)


class Custom(nn.Module):
    def forward(self, x):
        return -x


def test_a_layer_of_the_users_own_is_refused_even_with_a_rule(monkeypatch):
    monkeypatch.setattr(LAYERS, "_rules", dict(LAYERS._rules))
    register_layer(Custom)(lambda module, shape: MapBound(1.0, exact))
    certified = CertifiedNetwork.prove(nn.Sequential(Custom(), nn.Linear(2, 2)), (2,))
    graph = Graph("float64")
    with pytest.raises(
        TypeError, match="Custom has no form in ONNX whose rounding is known; train with"
    ):
        add_network(graph, certified.network, graph.input("X", ["n", 2]), (2,))
