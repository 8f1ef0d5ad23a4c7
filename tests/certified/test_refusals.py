"""What gets no Lipschitz bound, and how a rule of one's own gives one."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import prune

from sklip import layers, lipschitz_bound
from sklip.certified import MapBound, exact, register_layer
from sklip.certified.rules import LAYERS

pytestmark = pytest.mark.usefixtures("seeded_torch")

EPS = float(np.finfo(np.float64).eps)


# -- refusals ----------------------------------------------------------------------------------


class LouderLinear(nn.Linear):
    def forward(self, x):
        return 10 * super().forward(x)


class LouderSpectralLinear(layers.SpectralLinear):
    def forward(self, x):
        return 10 * super().forward(x)


class LouderResidual(layers.Residual):
    def forward(self, x):
        return 10 * super().forward(x)


def pruned():
    module = nn.Linear(2, 2)
    prune.l1_unstructured(module, "weight", 1)
    return module


UNKNOWN = [
    LouderLinear(2, 2),
    LouderSpectralLinear(2, 2),
    nn.BatchNorm1d(2).eval(),
    nn.BatchNorm2d(2).train(),
    nn.LayerNorm(2),
    nn.GELU(),
    nn.SiLU(),
    nn.Mish(),
    nn.Hardswish(),
    nn.Softmax(1),
    nn.MaxPool1d(2),
    nn.AvgPool1d(2),
    nn.MaxPool2d(3, 2),
    nn.MaxPool2d(2, (2, 1)),
    nn.MaxPool2d(2, dilation=2),
    nn.AvgPool2d(2, 1),
    nn.AvgPool2d((1, 3), 2),
    nn.LPPool2d(1, 2),
    nn.LPPool2d(3, 2),
    nn.LPPool2d(2, 2, ceil_mode=True),
    nn.LPPool2d(2, 2, stride=1),
    LouderResidual(),
    nn.Flatten(0),
    nn.Conv1d(1, 1, 1),
    nn.ConvTranspose2d(1, 1, 1),
    nn.LocalResponseNorm(2),
    nn.ModuleList([nn.Linear(2, 2)]),
    nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(1, 1, 3, padding=1, padding_mode="replicate"),
    nn.Conv2d(1, 1, 1, padding=2, padding_mode="circular"),
    nn.Conv2d(1, 1, (5, 3), padding=(2, 2), padding_mode="circular"),
    nn.Conv2d(1, 1, 2, padding=1, padding_mode="circular"),
    nn.Conv2d(1, 1, 3, padding=1, stride=2, padding_mode="circular"),
    nn.utils.parametrizations.orthogonal(nn.Linear(2, 2)),
    nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 3)),
    pruned(),
]


@pytest.mark.parametrize("module", UNKNOWN, ids=str)
def test_what_has_no_rule_is_refused_by_name(module):
    inside = nn.Sequential(nn.Identity(), nn.Sequential(module))
    for attempt in (module, inside, layers.Residual(nn.Identity(), layers.Residual(module))):
        with pytest.raises(TypeError, match=type(module).__name__):
            lipschitz_bound(attempt)


@pytest.mark.parametrize("module", [nn.Dropout(), nn.Dropout(0.0), nn.Dropout2d()], ids=repr)
def test_dropout_is_refused_until_it_is_switched_off(module):
    for attempt in (module, nn.Sequential(module), layers.Residual(module)):
        with pytest.raises(TypeError, match=r"Dropout.* in training mode .* call module\.eval\(\)"):
            lipschitz_bound(attempt.train())
        assert lipschitz_bound(attempt.eval()) <= 2 + 4 * EPS


@pytest.mark.parametrize("thing", [nn.Identity, None, torch.eye(2)], ids=["class", "None", "tensor"])
def test_what_is_no_module_is_refused(thing):
    with pytest.raises(TypeError, match=type(thing).__name__):
        lipschitz_bound(thing)


def louder(module, inputs, output=None):
    return 10 * inputs[0] if output is None else 10 * output


HOOKS = {
    "forward": lambda module: module.register_forward_hook(louder),
    "forward, always": lambda module: module.register_forward_hook(louder, always_call=True),
    "forward with keywords": lambda module: module.register_forward_hook(
        lambda module, inputs, keywords, output: 10 * output, with_kwargs=True
    ),
    "before": lambda module: module.register_forward_pre_hook(louder),
    "before with keywords": lambda module: module.register_forward_pre_hook(
        lambda module, inputs, keywords: ((10 * inputs[0],), keywords), with_kwargs=True
    ),
    "backward": lambda module: module.register_full_backward_hook(louder),
    "before backward": lambda module: module.register_full_backward_pre_hook(louder),
    "on storing": lambda module: module.register_state_dict_pre_hook(louder),
    "on loading": lambda module: module.register_load_state_dict_post_hook(louder),
    "global backward": lambda module: torch_module.register_module_full_backward_hook(louder),
    "global": lambda module: torch_module.register_module_forward_hook(louder),
    "global, always": lambda module: torch_module.register_module_forward_hook(
        louder, always_call=True
    ),
    "global before": lambda module: torch_module.register_module_forward_pre_hook(louder),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS.keys())
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(2, 2),
        nn.ReLU,
        lambda: layers.SpectralLinear(2, 2),
        lambda: layers.Sequential(layers.SpectralLinear(2, 2)),
        lambda: layers.Residual(layers.SpectralLinear(2, 2)),
    ],
    ids=["Linear", "ReLU", "SpectralLinear", "Sequential", "Residual"],
)
def test_hooks_are_refused_and_forgotten_once_removed(make, register):
    module = make()
    before = lipschitz_bound(module)
    hook = register(module)
    try:
        for attempt in (module, nn.Sequential(module), layers.Residual(nn.Sequential(module))):
            with pytest.raises(TypeError, match="hooks"):
                lipschitz_bound(attempt)
    finally:
        hook.remove()
    assert lipschitz_bound(module) == before


def ten_times(x, *_):
    return 10 * x


def replaced(module, method):
    setattr(module, method, ten_times)
    return module


@pytest.mark.parametrize("method", ["forward", "_conv_forward"])
def test_a_replaced_forward_is_refused(method):
    module = replaced(nn.Conv2d(1, 1, 1), method)
    for attempt in (module, nn.Sequential(module), layers.Residual(module)):
        with pytest.raises(TypeError, match=f"Conv2d has a replaced .*{method}"):
            lipschitz_bound(attempt)


def hooked(module, register):
    register(module)
    return module


ALTERED = {
    "hook on a layer in Sequential": lambda: layers.Sequential(
        hooked(layers.SpectralLinear(4, 4), HOOKS["forward"])
    ),
    "pre-hook on a layer in Sequential": lambda: layers.Sequential(
        hooked(layers.SpectralLinear(4, 4), HOOKS["before"])
    ),
    "hook on a Sequential in Sequential": lambda: layers.Sequential(
        hooked(layers.Sequential(layers.SpectralLinear(4, 4)), HOOKS["forward"])
    ),
    "replaced forward in Sequential": lambda: layers.Sequential(
        replaced(layers.SpectralLinear(4, 4), "forward")
    ),
    "hook on a layer in Residual": lambda: layers.Residual(
        hooked(layers.SpectralLinear(4, 4), HOOKS["forward"])
    ),
    "replaced join in Residual": lambda: replaced(layers.Residual(), "join"),
    "subclass": lambda: LouderSpectralLinear(4, 4),
    "replaced _call_impl": lambda: replaced(nn.Identity(), "_call_impl"),
    "replaced _compiled_call_impl": lambda: replaced(nn.Identity(), "_compiled_call_impl"),
}


@pytest.mark.parametrize("make", ALTERED.values(), ids=ALTERED.keys())
def test_what_computes_something_else_than_its_class_says_is_refused(make):
    for attempt in (make(), nn.Sequential(make())):
        with pytest.raises(TypeError, match=r"hooks|replaced|LouderSpectralLinear"):
            lipschitz_bound(attempt)


def test_complex_layers_are_refused():
    with pytest.raises(TypeError, match="complex64"):
        lipschitz_bound(nn.Linear(2, 2, dtype=torch.complex64))


# -- rules of one's own ------------------------------------------------------------------------


class Negate(nn.Module):
    def forward(self, x):
        return -x


class NegateToo(Negate):
    pass


@pytest.fixture
def registry(monkeypatch):
    """Whatever a test registers is forgotten after it."""
    monkeypatch.setattr(LAYERS, "_rules", dict(LAYERS._rules))


@pytest.mark.usefixtures("registry")
def test_a_registered_rule_counts_for_exactly_its_types():
    @register_layer(Negate, nn.Hardtanh)
    def rule(module, shape):
        return MapBound(1.0, exact)

    assert rule(None, None).constant == 1.0
    assert lipschitz_bound(Negate()) == lipschitz_bound(nn.Hardtanh()) == 1.0
    assert 3 <= lipschitz_bound(nn.Sequential(layers.Scale(3.0), Negate())) <= 3 * (1 + 4 * EPS)
    with pytest.raises(TypeError, match="NegateToo"):
        lipschitz_bound(NegateToo())
    with pytest.raises(TypeError, match="hooks"):
        lipschitz_bound(hooked(Negate(), HOOKS["forward"]))


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_rule_that_gives_no_constant_is_an_error(value):
    register_layer(Negate)(lambda module, shape: MapBound(value, exact))
    with pytest.raises(ValueError, match=f"Negate must be finite and at least 0, got {value}"):
        lipschitz_bound(nn.Sequential(Negate()))


def test_the_refusal_says_how_to_register_a_rule():
    with pytest.raises(TypeError, match=r"Negate has .*\.register_layer"):
        lipschitz_bound(Negate())
