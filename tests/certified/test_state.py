"""A certified network goes through plain values, and comes back with the same logits and radii."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from sklip import CertifiedNetwork, layers
from sklip.certified import Arithmetic, MapBound, exact, register_layer
from sklip.certified.integrity import digest
from sklip.certified.rules import LAYERS
from sklip.certified.state import network_from_state, network_state

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

pytestmark = pytest.mark.usefixtures("seeded_torch")

SHAPE = (2, 6, 6)
# Each in settings other than the default ones.
LAYER_SETTINGS = {
    "Identity": lambda: nn.Identity(),
    "Flatten": lambda: nn.Flatten(1, 2),
    "ReLU": lambda: nn.ReLU(inplace=True),
    "FullSort": lambda: layers.FullSort(),
    "GroupSort": lambda: layers.GroupSort(2),
    "GroupSort2": lambda: layers.GroupSort2(),
    "Dropout": lambda: nn.Dropout(0.9),
    "Dropout2d": lambda: nn.Dropout2d(0.9),
    "Center": lambda: layers.Center(6),
    "Scale": lambda: layers.Scale(1 / 3),
    "LeakyReLU": lambda: nn.LeakyReLU(-0.7),
    "Tanh": lambda: nn.Tanh(),
    "Sigmoid": lambda: nn.Sigmoid(),
    "Softplus": lambda: nn.Softplus(-1.3, 7),
    "MaxPool2d": lambda: nn.MaxPool2d((2, 1), (3, 2), (1, 0), ceil_mode=True),
    "ScaledL2NormPool2d": lambda: layers.ScaledL2NormPool2d((2, 3), k=0.3),
    "ScaledAvgPool2d": lambda: layers.ScaledAvgPool2d((1, 2), k=1.7),
    "LPPool2d": lambda: nn.LPPool2d(2, (1, 2), stride=(2, 3)),
    "AvgPool2d": lambda: nn.AvgPool2d(2, (3, 2), 1),
    "Linear": lambda: nn.Linear(6, 3),
    "Linear without bias": lambda: nn.Linear(6, 3, bias=False),
    "Conv2d": lambda: nn.Conv2d(2, 4, (3, 2), (1, 2), (2, 0), (1, 2), groups=2),
    "Conv2d circular": lambda: nn.Conv2d(2, 3, 3, 2, 1, bias=False, padding_mode="circular"),
    "Conv2d same": lambda: nn.Conv2d(2, 3, 3, padding="same"),
    "Sequential": lambda: nn.Sequential(nn.Sequential(nn.Tanh()), nn.Linear(6, 6), nn.Sequential()),
    "Residual": lambda: layers.Residual(nn.Conv2d(2, 2, 3, padding=1), layers.Residual(nn.Softplus())),
}
# In training, of whose kernels no rounding is known; `to_torch` brings them to plain layers.
CONSTRAINED = {
    layers.SpectralLinear,
    layers.SpectralConv2d,
    layers.OrthogonalConv2d,
    layers.Sequential,
}
every_layer = pytest.mark.parametrize("make", LAYER_SETTINGS.values(), ids=LAYER_SETTINGS.keys())


def network_of(layer):
    """A layer between others that bring it to logits, with no parameter at a neutral start."""
    with torch.no_grad():
        for name, values in [*layer.named_parameters(), *layer.named_buffers()]:
            if name.endswith(("bias", "center")):
                values.normal_()
        size = layer(torch.rand(1, *SHAPE)).numel()
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(size, 3))


def rows():
    return np.random.default_rng(0).normal(size=(40, *SHAPE))


def assert_equal_certificates(one, other, X):
    for a, b in [
        (one.logits(X), other.logits(X)),
        *zip(one.predict_with_radii(X), other.predict_with_radii(X), strict=True),
        (one.margin_bounds, other.margin_bounds),
        (one.precisions[0].from_length.offset, other.precisions[0].from_length.offset),
        (one.precisions[0].from_length.slope, other.precisions[0].from_length.slope),
    ]:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert (one.lipschitz_bound, one.precisions[0].longest) == (
        other.lipschitz_bound,
        other.precisions[0].longest,
    )
    assert (one.arithmetic, one.input_shape) == (other.arithmetic, other.input_shape)
    assert digest(one.network) == digest(other.network)


def assert_plain(value):
    if isinstance(value, dict):
        assert all(type(name) is str for name in value)
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            assert_plain(each)
    elif isinstance(value, np.ndarray):
        assert value.dtype.kind in "fiub"
    else:
        assert value is None or type(value) in (bool, int, float, str)


def test_every_type_with_a_rule_is_here():
    found = {type(part) for make in LAYER_SETTINGS.values() for part in make().modules()}
    # Others are rules that a user, or the example of a docstring, has registered.
    known = {
        each for name, each in LAYERS.types().items() if name.startswith(("torch.", "sklip.layers."))
    }
    assert found == known - CONSTRAINED


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_layer
def test_a_network_comes_back_with_equal_logits_and_radii(make, dtype):
    certified = CertifiedNetwork.prove(network_of(make()), SHAPE, dtype)
    state = certified.to_state()
    assert_plain(state)
    restored = CertifiedNetwork.from_state(state)
    assert_equal_certificates(certified, restored, rows())
    assert (restored.radii(rows()) > 0).any()
    assert repr(restored.network) == repr(certified.network)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_layer
def test_pickles_and_copies_are_proven_anew(make, dtype):
    certified = CertifiedNetwork.prove(network_of(make()), SHAPE, dtype)
    for twin in (pickle.loads(pickle.dumps(certified)), copy.deepcopy(certified)):
        assert_equal_certificates(certified, twin, rows())


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_of_a_device_is_stored_as_arrays(device):
    certified = CertifiedNetwork.prove(network_of(nn.Conv2d(2, 4, 3)), SHAPE)
    state = copy.deepcopy(certified).to(device).to_state()
    assert_plain(state)
    assert_equal_certificates(certified, CertifiedNetwork.from_state(state), rows())


def test_the_blocks_of_sums_are_stored():
    network = network_of(nn.Linear(6, 6)).eval()
    narrow = CertifiedNetwork(network, SHAPE, Arithmetic("float32", block=3, convolution_block=5))
    restored = CertifiedNetwork.from_state(narrow.to_state())
    assert restored.arithmetic == Arithmetic("float32", 3, 5)
    assert_equal_certificates(narrow, restored, rows())


# -- bits --------------------------------------------------------------------------------------

AWKWARD = [0.0, -0.0, 5e-324, 1e-310, -1.5, 1 / 3, np.finfo(np.float32).max, np.inf, -np.inf, np.nan]


class Everything(nn.Module):
    """Parameters, buffers and settings of every kind that a network may have."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 2, dtype=dtype), nn.Linear(2, 2, False, dtype=dtype))
        self.awkward = nn.Parameter(torch.tensor(AWKWARD, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(2, 2, dtype=dtype), requires_grad=False)
        self.empty = nn.Parameter(torch.zeros(0, 3, dtype=dtype))
        self.transposed = nn.Parameter(torch.arange(6.0, dtype=dtype).reshape(2, 3).mT)
        self.register_parameter("nothing", None)
        self.register_buffer("scalar", torch.tensor(0.1, dtype=dtype))
        self.register_buffer("whole", torch.arange(4))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("no_buffer", None)
        self.settings = [1, 2.5, "word", None, True, (3, [4])]

    def forward(self, x):
        return x


@pytest.fixture
def _rule_for_everything(monkeypatch):
    monkeypatch.setattr(LAYERS, "_rules", dict(LAYERS._rules))
    register_layer(Everything)(lambda module, shape: MapBound(1.0, exact))


def bits(module):
    return {
        name: (value.dtype, tuple(value.shape), value.detach().cpu().contiguous().numpy().tobytes())
        for name, value in module.state_dict().items()
    }


@pytest.mark.usefixtures("_rule_for_everything")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_a_state_holds_every_bit_of_a_network(dtype, device):
    module = Everything(dtype).to(device)
    state = network_state(module)
    assert_plain(state)
    restored = network_from_state(state)
    assert bits(restored) == bits(module)
    assert list(restored.state_dict()) == list(module.state_dict())
    assert restored.settings == module.settings
    assert restored.nothing is None
    assert restored.no_buffer is None
    assert digest(restored) == digest(module)


@pytest.mark.usefixtures("_rule_for_everything")
@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_stored_part_by_part(training):
    module = Everything().train(training)
    module.inner[1].train(not training)
    restored = network_from_state(network_state(module))
    modes = [part.training for part in module.modules()]
    assert [part.training for part in restored.modules()] == modes
    assert len(set(modes)) == 2


@pytest.mark.usefixtures("_rule_for_everything")
def test_states_and_networks_share_no_memory():
    module = Everything()
    state = network_state(module)
    original, stored = bits(module), copy.deepcopy(state)
    with torch.no_grad():
        for value in module.state_dict().values():
            value.zero_()
    module.settings.append("more")
    np.testing.assert_equal(state, stored)
    restored = network_from_state(state)
    for array in state["arrays"].values():
        if array is not None:
            array[...] = 1
    state["settings"]["settings"].append("more")
    assert bits(restored) == original
    assert restored.settings == Everything().settings


@pytest.mark.usefixtures("_rule_for_everything")
def test_restored_parameters_are_parameters_that_do_not_train():
    restored = network_from_state(network_state(Everything()))
    names = [name for name, _ in Everything().named_parameters()]
    assert [name for name, _ in restored.named_parameters()] == names
    assert all(isinstance(restored.get_parameter(name), nn.Parameter) for name in names)
    assert not any(parameter.requires_grad for parameter in restored.parameters())


# -- refusals ----------------------------------------------------------------------------------


def small():
    return CertifiedNetwork.prove(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (3,))


class Unknown(nn.Module):
    def forward(self, x):
        return x


def test_a_type_without_a_rule_is_not_stored():
    with pytest.raises(TypeError, match="Unknown has no Lipschitz bound"):
        network_state(nn.Sequential(nn.Linear(2, 2), Unknown()))


@pytest.mark.parametrize(
    "name", ["torch.nn.modules.rnn.LSTM", "os.system", "builtins.eval", f"{__name__}.Unknown", ""]
)
def test_a_state_that_names_a_type_without_a_rule_is_refused_with_the_name(name):
    state = small().to_state()
    state["network"]["children"][1][1]["type"] = name
    with pytest.raises(TypeError, match=rf"layer of type {name}, which has no rule"):
        CertifiedNetwork.from_state(state)


class Holding(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.held = held

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    "held",
    [
        np.zeros(2),
        torch.zeros(2),
        {"a": 1},
        [1, object()],
        (1, [2, {3}]),
        1j,
        b"bytes",
        torch.float32,
        torch.device("cpu"),
    ],
    ids=lambda held: type(held).__name__,
)
def test_an_attribute_that_is_no_plain_value_is_refused_with_its_name(held, monkeypatch):
    monkeypatch.setattr(LAYERS, "_rules", dict(LAYERS._rules))
    register_layer(Holding)(lambda module, shape: MapBound(1.0, exact))
    message = r"Holding has attributes that can't be certified or stored, \['held'\]"
    with pytest.raises(TypeError, match=message):
        CertifiedNetwork.prove(nn.Sequential(Holding(held), nn.Linear(2, 2)), (2,))
    with pytest.raises(TypeError, match=message):
        network_state(Holding(held))


def louder(module):
    module.register_forward_hook(lambda module, inputs, output: 10 * output)


def replaced(module):
    module.forward = lambda x: 10 * x


@pytest.mark.parametrize(
    ("change", "message"),
    [(louder, "ReLU has hooks"), (replaced, "ReLU has a replaced forward method")],
)
def test_a_layer_with_hooks_or_a_replaced_method_is_not_stored(change, message):
    certified = small()
    change(certified.network[1])
    for attempt in (certified.to_state, lambda: pickle.dumps(certified)):
        with pytest.raises(TypeError, match=message):
            attempt()


def test_a_network_changed_after_its_proof_is_not_pickled():
    certified = small()
    certified.network[2].weight.data.mul_(2)
    with pytest.raises(RuntimeError, match="changed after its proof"):
        pickle.dumps(certified)


# -- states that somebody has changed ----------------------------------------------------------


def test_the_proof_is_of_what_the_state_holds():
    certified = small()
    state = certified.to_state()
    state["network"]["children"][2][1]["arrays"]["weight"] *= 2
    changed = CertifiedNetwork.from_state(state)
    np.testing.assert_array_equal(changed.margin_bounds, 2 * certified.margin_bounds)
    assert changed.lipschitz_bound == 2 * certified.lipschitz_bound


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda arrays: arrays.pop("bias"), AttributeError, "has no attribute 'bias'"),
        (
            lambda arrays: arrays.update(weight=np.zeros((4, 2), np.float32)),
            ValueError,
            "take samples of shape",
        ),
        (lambda arrays: arrays.update(weight=np.full((4, 3), np.nan, "f4")), ValueError, "finite"),
        (lambda arrays: arrays.update(bias=np.full(4, np.inf, "f4")), ValueError, "finite"),
        (lambda arrays: arrays.update(bias=np.zeros(4)), ValueError, "float32, but 0.bias is in .*64"),
        (lambda arrays: arrays.update(bias=np.zeros(4, "f2")), ValueError, "0.bias is in .*float16"),
    ],
    ids=["missing", "shape", "weight", "bias", "wider bias", "narrower bias"],
)
def test_arrays_that_make_no_network_are_refused(change, error, message):
    state = small().to_state()
    change(state["network"]["children"][0][1]["arrays"])
    with pytest.raises(error, match=message):
        CertifiedNetwork.from_state(state)


def test_a_state_of_another_input_shape_is_refused():
    state = small().to_state()
    state["input_shape"] = [4]
    with pytest.raises(ValueError, match="take samples of shape"):
        CertifiedNetwork.from_state(state)
