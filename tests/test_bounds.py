"""Proven Lipschitz constants against Jacobians, and everything that must be refused."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import prune

from sklip import bounds, layers
from sklip.bounds import (
    lipschitz_bound,
    register_lipschitz_bound,
)

EPS = float(np.finfo(np.float64).eps)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def rounding(matrix):
    """Relative tolerance: entries are sums of at most n products, and NumPy's SVD adds n eps."""
    return 16 * max(matrix.shape) * EPS


def jacobian(module, shape):
    """Jacobian matrix in float64 at a random point: one row a copy of it in a batch."""
    x = torch.randn(1, *shape, dtype=torch.float64)
    size = module(x).numel()
    copies = x.repeat(size, *[1] * len(shape)).requires_grad_()
    out = module(copies).reshape(size, size)
    return torch.autograd.grad(out, copies, torch.eye(size, dtype=torch.float64))[0].flatten(1).numpy()


def assert_bound_dominates(module, shape, *, points=1, tightness=None):
    """The bound is at least the norm of the Jacobian; with `tightness`, at most that times it."""
    bound = lipschitz_bound(module.double())
    matrices = [jacobian(module, shape) for _ in range(points)]
    norm = max(np.linalg.norm(matrix, 2) for matrix in matrices)
    slack = rounding(matrices[0])
    assert norm <= bound * (1 + slack)
    if tightness is not None:
        assert bound <= norm * tightness * (1 + slack)


# -- a rule for each layer ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (1, 4)])
def test_bound_of_a_matrix_is_its_norm(shape):
    # Charges of 16 n^2 eps at most, see test_norms.py.
    assert_bound_dominates(nn.Linear(*shape), shape[:1], tightness=1 + 16 * 64 * EPS)


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (2, 3), "padding": "same"},
    {"kernel_size": 3, "padding": (4, 0)},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 3)},
    {"kernel_size": 2, "stride": 4},
    {"kernel_size": 2, "dilation": (2, 3), "padding": 3},
    {"kernel_size": 3, "dilation": 2, "stride": 2, "padding": 2},
    {"kernel_size": 3, "groups": 2, "padding": 1},
    {"kernel_size": 3, "groups": 2, "dilation": 2, "stride": (2, 1), "padding": 2},
    {"kernel_size": 1, "groups": 2, "bias": False},
    {"kernel_size": 3, "padding": "valid"},
]
CIRCULAR = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 5, "padding": 2},
    {"kernel_size": 5, "padding": (1, 0)},
    {"kernel_size": 2, "padding": 0},
    {"kernel_size": (2, 3), "padding": "same"},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 2, "dilation": 2, "padding": "same"},
    {"kernel_size": 3, "groups": 2, "padding": 1},
    {"kernel_size": 3, "padding": "valid"},
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_bound_dominates_zero_padded_convolutions(options):
    for shape in [(4, 5, 6), (4, 9, 8)]:
        assert_bound_dominates(nn.Conv2d(4, 6, **options), shape)


@pytest.mark.parametrize("options", CIRCULAR, ids=str)
def test_bound_dominates_circular_convolutions(options):
    for shape in [(4, 5, 6), (4, 9, 8)]:
        assert_bound_dominates(nn.Conv2d(4, 6, padding_mode="circular", **options), shape)


@pytest.mark.parametrize(
    ("options", "map_size"),
    [
        ({"kernel_size": 3, "padding": 1}, 12),
        ({"kernel_size": 3, "padding": 1, "groups": 2}, 12),
        ({"kernel_size": 2, "dilation": 2, "padding": 1}, 12),
    ],
)
def test_bound_is_tight_for_circular_convolutions(options, map_size):
    # A circular map is its symbol on a grid of 12 frequencies an axis, degree 2: it may miss
    # 1 / cos(2 pi / 12)^2 of the squared norm (Ehlich, Zeller), and sklip's grid adds 0.4 %.
    tightness = 1.004 / math.cos(2 * math.pi / map_size)
    module = nn.Conv2d(2, 4, padding_mode="circular", **options)
    assert_bound_dominates(module, (2, map_size, map_size), tightness=tightness)


def test_bound_of_groups_is_that_of_the_largest_group():
    module = nn.Conv2d(2, 4, 1, groups=2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([3.0, 4.0, 1.0, 0.0]).view(4, 1, 1, 1))
    assert lipschitz_bound(module) == pytest.approx(5.0, rel=16 * 4 * EPS)


@pytest.mark.parametrize("module", [nn.Identity(), nn.Flatten(), nn.Flatten(1, 2)], ids=repr)
def test_maps_that_keep_distances_have_bound_one(module):
    assert lipschitz_bound(module) == 1
    assert_bound_dominates(module, (2, 3, 4), tightness=1)


@pytest.mark.parametrize(
    ("module", "constant"),
    [
        (nn.ReLU(), 1),
        (nn.Tanh(), 1),
        (nn.LeakyReLU(), 1),
        (nn.LeakyReLU(-1.0), 1),
        (nn.LeakyReLU(-3.0), 3),
        (nn.LeakyReLU(2.5), 2.5),
        (nn.Dropout().eval(), 1),
        (nn.Dropout2d().eval(), 1),
        (layers.GroupSort2(), 1),
        (layers.GroupSort(3), 1),
        (layers.FullSort(), 1),
        (layers.Flatten(), 1),
        (layers.Center(3), 1),
        (layers.Scale(2.0), 2),
        (layers.ScaledL2NormPool2d(2, k=0.5), 0.5),
        (layers.ScaledAvgPool2d((1, 2), k=3.0), 3),
    ],
    ids=repr,
)
def test_bound_of_a_layer_without_weights_is_its_constant(module, constant):
    assert lipschitz_bound(module) == constant
    # Slopes at random points reach the constant, except that of tanh, which has it at zero only.
    assert_bound_dominates(module, (6, 4, 3), tightness=None if type(module) is nn.Tanh else 1)


CONSTRAINED = [
    (layers.SpectralLinear(4, 6, k=2.0), (4,), 2.0),
    (layers.SpectralConv2d(2, 4, 3, k=0.5), (2, 5, 5), 0.5),
    (layers.OrthogonalConv2d(2, 8, 4, 2), (2, 6, 6), 1.0),
    (layers.OrthogonalConv2d(3, 3, 3, padding_mode="circular"), (3, 6, 6), 1.0),
    (
        layers.Sequential(
            layers.OrthogonalConv2d(1, 8, 3, k=3.0),
            layers.GroupSort2(),
            layers.ScaledL2NormPool2d(2, k=0.1),
            layers.Flatten(),
            layers.SpectralLinear(72, 5),
            k=4.0,
        ),
        (1, 6, 6),
        4.0,
    ),
]


@pytest.mark.parametrize(("module", "shape", "k"), CONSTRAINED, ids=lambda value: type(value).__name__)
def test_bound_of_a_constrained_layer_is_near_its_k(module, shape, k):
    layers.polish_(module.double())
    assert_bound_dominates(module, shape, points=3)
    # Orthogonal up to n eps, and the charges of the bound, which test_norms.py derives.
    assert lipschitz_bound(module) <= k * (1 + 1e-9)
    # The export multiplies the same numbers in another order.
    assert lipschitz_bound(layers.to_torch(module)) == pytest.approx(
        lipschitz_bound(module), rel=64 * EPS
    )


def test_bound_follows_a_k_that_was_changed():
    for k in (-3.0, 0.5):
        assert lipschitz_bound(with_attribute(layers.Scale(1.0), k=k)) == abs(k)
        linear = with_attribute(layers.polish_(layers.SpectralLinear(3, 3).double()), k=abs(k))
        assert_bound_dominates(linear, (3,), tightness=1 + 16 * 9 * EPS)


def test_bound_of_a_chain_is_the_product_and_dominates_the_jacobian():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.LeakyReLU(2.0),
        nn.Sequential(nn.Flatten(), nn.Linear(36, 8), layers.GroupSort2()),
        nn.Linear(8, 3),
    ).double()
    assert_bound_dominates(module, (1, 6, 6), points=5)
    factors = [lipschitz_bound(part) for part in (module[0], module[1], module[2][1], module[3])]
    assert math.prod(factors) <= lipschitz_bound(module) <= math.prod(factors) * (1 + 16 * EPS)


def test_bound_of_a_chain_multiplies_norms_even_where_directions_differ():
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.diag(torch.tensor([3.0, 0.0])))
        second.weight.copy_(torch.diag(torch.tensor([5.0, 7.0])))
    # 3 * 7, not the 15 of the product of the matrices: chains multiply. 16 n^2 eps for each.
    bound = lipschitz_bound(nn.Sequential(first, second))
    assert 21 <= bound <= 21 * (1 + 2 * 16 * 2**2 * EPS)


def test_empty_chain_is_the_identity():
    assert lipschitz_bound(nn.Sequential()) == 1


def test_a_module_used_twice_counts_twice():
    double = layers.Scale(2.0)
    assert lipschitz_bound(nn.Sequential(double, double)) == pytest.approx(4.0, rel=4 * EPS)


def test_a_changed_weight_changes_the_bound():
    module = nn.Linear(3, 3)
    before = lipschitz_bound(module)
    with torch.no_grad():
        module.weight.mul_(2)
    assert lipschitz_bound(module) == pytest.approx(2 * before, rel=4 * EPS)


def test_bound_leaves_module_and_random_generator_alone():
    module = layers.Sequential(layers.SpectralLinear(3, 2), k=2.0)
    state, generator = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    lipschitz_bound(module)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_weights_that_are_not_finite_are_refused():
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="finite"):
        lipschitz_bound(module)


# -- refusals ----------------------------------------------------------------------------------


class LouderLinear(nn.Linear):
    def forward(self, x):
        return 10 * super().forward(x)


class LouderSpectralLinear(layers.SpectralLinear):
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
    nn.Softmax(1),
    nn.MaxPool2d(2),
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
    for attempt in (module, nn.Sequential(nn.Identity(), nn.Sequential(module))):
        with pytest.raises(TypeError, match=type(module).__name__):
            lipschitz_bound(attempt)


@pytest.mark.parametrize("module", [nn.Dropout(), nn.Dropout(0.0), nn.Dropout2d()], ids=repr)
def test_dropout_is_refused_until_it_is_switched_off(module):
    for attempt in (module, nn.Sequential(module)):
        with pytest.raises(TypeError, match=r"Dropout.* in training mode .* call module\.eval\(\)"):
            lipschitz_bound(attempt.train())
        assert lipschitz_bound(attempt.eval()) <= 1 + 4 * EPS


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
    ],
    ids=["Linear", "ReLU", "SpectralLinear", "Sequential"],
)
def test_hooks_are_refused_and_forgotten_once_removed(make, register):
    module = make()
    before = lipschitz_bound(module)
    hook = register(module)
    try:
        for attempt in (module, nn.Sequential(module)):
            with pytest.raises(TypeError, match="forward hooks"):
                lipschitz_bound(attempt)
    finally:
        hook.remove()
    assert lipschitz_bound(module) == before


@pytest.mark.parametrize("method", ["forward", "_conv_forward"])
def test_a_replaced_forward_is_refused(method):
    module = nn.Conv2d(1, 1, 1)
    setattr(module, method, lambda x, *_: 10 * x)
    for attempt in (module, nn.Sequential(module)):
        with pytest.raises(TypeError, match=f"Conv2d has a replaced .*{method}"):
            lipschitz_bound(attempt)


def with_attribute(module, **attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def hooked(module, register):
    register(module)
    return module


def circular_ones(kernel_size, **attributes):
    module = nn.Conv2d(1, 1, kernel_size, padding=2, padding_mode="circular", bias=False)
    return with_attribute(module, weight=nn.Parameter(torch.ones(1, 1, 1, 1)), **attributes)


def ten_times(x, *_):
    return 10 * x


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
        with_attribute(layers.SpectralLinear(4, 4), forward=ten_times)
    ),
    "subclass": lambda: LouderSpectralLinear(4, 4),
    "replaced _call_impl": lambda: with_attribute(nn.Identity(), _call_impl=ten_times),
    "replaced _compiled_call_impl": lambda: with_attribute(
        nn.Identity(), _compiled_call_impl=ten_times
    ),
}


@pytest.mark.parametrize("make", ALTERED.values(), ids=ALTERED.keys())
def test_what_computes_something_else_than_its_class_says_is_refused(make):
    for attempt in (make(), nn.Sequential(make())):
        with pytest.raises(TypeError, match=r"hooks|replaced|LouderSpectralLinear"):
            lipschitz_bound(attempt)


@pytest.mark.parametrize(
    "make",
    [lambda: circular_ones(5), lambda: circular_ones(1, padding=(0, 0))],
    ids=["weight", "padding"],
)
def test_altered_circular_convolutions_are_refused_or_bounded(make):
    module = make().double()
    try:
        bound = lipschitz_bound(module)
    except TypeError:
        return
    matrix = jacobian(module, (1, 2, 2))
    assert np.linalg.norm(matrix, 2) <= bound * (1 + rounding(matrix))


def test_complex_layers_are_refused():
    with pytest.raises(TypeError, match="complex64"):
        lipschitz_bound(nn.Linear(2, 2, dtype=torch.complex64))


def test_bound_of_a_chain_of_tiny_layers_is_positive():
    chain = nn.Sequential(*(layers.Scale(1e-200) for _ in range(2)))
    assert lipschitz_bound(chain) > 0


# -- rules of one's own ------------------------------------------------------------------------


class Negate(nn.Module):
    def forward(self, x):
        return -x


class NegateToo(Negate):
    pass


@pytest.fixture
def registry(monkeypatch):
    """Whatever a test registers is forgotten after it."""
    monkeypatch.setattr(bounds, "_MODULE_RULES", dict(bounds._MODULE_RULES))


@pytest.mark.usefixtures("registry")
def test_a_registered_rule_counts_for_exactly_its_types():
    @register_lipschitz_bound(Negate, nn.Hardtanh)
    def rule(module):
        return 1.0

    assert rule(None) == 1.0
    assert lipschitz_bound(Negate()) == lipschitz_bound(nn.Hardtanh()) == 1.0
    assert 3 <= lipschitz_bound(nn.Sequential(layers.Scale(3.0), Negate())) <= 3 * (1 + 4 * EPS)
    with pytest.raises(TypeError, match="NegateToo"):
        lipschitz_bound(NegateToo())
    with pytest.raises(TypeError, match="forward hooks"):
        lipschitz_bound(hooked(Negate(), HOOKS["forward"]))


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_rule_that_gives_no_constant_is_an_error(value):
    register_lipschitz_bound(Negate)(lambda module: value)
    with pytest.raises(ValueError, match=f"Negate must be finite and at least 0, got {value}"):
        lipschitz_bound(nn.Sequential(Negate()))


def test_the_refusal_says_how_to_register_a_rule():
    with pytest.raises(TypeError, match=r"Negate has .*\.register_lipschitz_bound"):
        lipschitz_bound(Negate())
