"""The networks: their layers, their shapes, and Jacobians below the proven bound."""

import numpy as np
import pytest
import torch
from torch import nn

from sklip import lipschitz_bound
from sklip.layers import (
    Center,
    GroupSort2,
    OrthogonalConv2d,
    ScaledL2NormPool2d,
    Sequential,
    SpectralConv2d,
    SpectralLinear,
    polish_,
    to_torch,
)
from sklip.networks import NetworkPlan, lipschitz_cnn, lipschitz_mlp, tutorial_cnn

EPS = float(np.finfo(np.float64).eps)


pytestmark = pytest.mark.usefixtures("seeded_torch")


def small_cnn(input_shape, n_outputs):
    return lipschitz_cnn(input_shape, n_outputs, (4, 8, 6), (12,))


def small_mlp(input_shape, n_outputs):
    return lipschitz_mlp(input_shape, n_outputs, (16, 8))


NETWORKS = [
    (small_mlp, (6,), 3),
    (small_mlp, (20,), 1),
    (small_mlp, (2, 3, 4), 4),
    (small_cnn, (1, 8, 8), 3),
    (small_cnn, (3, 7, 5), 10),
    (small_cnn, (2, 1, 1), 1),
    (tutorial_cnn, (1, 8, 8), 3),
    (tutorial_cnn, (3, 7, 5), 10),
]
every_network = pytest.mark.parametrize(("make", "input_shape", "n_outputs"), NETWORKS)


def jacobians(network, points):
    """Jacobian matrices in float64, one row of the output at a time."""
    points = points.requires_grad_()
    rows = [torch.autograd.grad(row.sum(), points, retain_graph=True)[0] for row in network(points).T]
    return torch.stack([row.flatten(1) for row in rows], 1).numpy()


def prepared(make, input_shape, n_outputs):
    """The network in float64, polished, with biases, and the length n of its longest sums."""
    network = polish_(make(input_shape, n_outputs).double())
    with torch.no_grad():
        for name, values in network.named_parameters():
            if name.endswith("bias"):
                values.normal_()
    return network, max(parameter[0].numel() for parameter in network.parameters())


def largest_norm(network, points):
    return np.linalg.norm(jacobians(network, points), 2, axis=(1, 2)).max()


@every_network
@pytest.mark.parametrize("export", [False, True], ids=["as built", "plain"])
def test_jacobian_norm_is_at_most_the_bound_and_that_is_at_most_one(
    make, input_shape, n_outputs, export
):
    network, n = prepared(make, input_shape, n_outputs)
    network = to_torch(network) if export else network
    bound = lipschitz_bound(network)
    # A product of fewer than 32 matrices, each off by n eps.
    norm = largest_norm(network, torch.randn(20, *input_shape, dtype=torch.float64))
    assert norm <= bound * (1 + 32 * n * EPS)
    # The layers are orthogonal up to n eps; each of fewer than 8 charges up to 16 n^2 eps.
    assert bound <= 1 + 8 * 16 * n**2 * EPS


@every_network
def test_bound_dominates_the_jacobian_whatever_the_weights(make, input_shape, n_outputs):
    network, n = prepared(make, input_shape, n_outputs)
    with torch.no_grad():
        for values in network.parameters():
            values.add_(torch.randn_like(values))
    norm = largest_norm(network, torch.randn(20, *input_shape, dtype=torch.float64))
    assert norm <= lipschitz_bound(network) * (1 + 32 * n * EPS)


@every_network
def test_differences_of_outputs_are_at_most_those_of_inputs(make, input_shape, n_outputs):
    network, n = prepared(make, input_shape, n_outputs)
    x, y = torch.randn(2, 20, *input_shape, dtype=torch.float64)
    # Far apart, and so near that most channels keep their order.
    for other in (y, x + 1e-3 * y):
        with torch.no_grad():
            fx, moved = network(x), (network(x) - network(other)).norm(dim=1)
        size = x.flatten(1).norm(dim=1) + fx.norm(dim=1)
        # Rounding is that of the outputs themselves.
        assert torch.all(moved <= (x - other).flatten(1).norm(dim=1) + 32 * n * EPS * size)


@every_network
def test_shape_of_the_logits(make, input_shape, n_outputs):
    assert make(input_shape, n_outputs)(torch.zeros(5, *input_shape)).shape == (5, n_outputs)


@pytest.mark.parametrize(
    ("input_shape", "n_outputs"),
    [
        ((1, 28, 28), 10),
        ((3, 32, 32), 10),
        ((1, 8, 8), 1),
        ((2, 5, 9), 3),
        ((1, 1, 7), 2),
        ((4, 3, 3), 2),
    ],
)
@pytest.mark.parametrize("make", [lipschitz_cnn, lipschitz_mlp])
def test_default_networks_take_images_of_many_sizes(make, input_shape, n_outputs):
    network = make(input_shape, n_outputs)
    assert network(torch.zeros(2, *input_shape)).shape == (2, n_outputs)


def test_default_cnn_on_mnist_has_884938_parameters():
    assert sum(p.numel() for p in lipschitz_cnn((1, 28, 28), 10).parameters()) == 884_938


def layer_types(network):
    return [type(layer) for layer in network]


def test_layers_of_the_default_cnn():
    network = lipschitz_cnn((1, 28, 28), 10)
    convolutions = [OrthogonalConv2d, GroupSort2] * 3
    dense = [nn.Flatten, SpectralLinear, GroupSort2, SpectralLinear, GroupSort2, SpectralLinear]
    assert layer_types(network) == convolutions + dense
    assert [network[i].stride for i in (0, 2, 4)] == [(2, 2), (1, 1), (2, 2)]
    assert [network[i].out_channels for i in (0, 2, 4)] == [32, 32, 64]
    assert [network[i].out_features for i in (7, 9, 11)] == [256, 256, 10]


@pytest.mark.parametrize(
    ("input_shape", "channels", "last_map"),
    [
        ((1, 28, 28), (32, 32, 64), 7),
        ((3, 32, 32), (12, 64, 128), 8),
        ((1, 8, 8), (32, 32, 64), 2),
        ((1, 64, 64), (32, 32, 64, 64), 8),
        ((2, 8, 8), (8, 64, 128), 2),
        ((100, 8, 8), (64, 64, 128), 2),
        ((3, 64, 64), (12, 64, 128, 128), 8),
        ((3, 96, 96), (12, 64, 128, 128, 128), 6),
        ((3, 224, 224), (12, 64, 128, 128, 128, 128), 7),
        ((1, 2, 2), (32, 32, 64), 2),
    ],
)
def test_default_cnn_grows_with_the_image(input_shape, channels, last_map):
    network = lipschitz_cnn(input_shape, 10)
    convolutions = [layer for layer in network if type(layer) is OrthogonalConv2d]
    assert tuple(layer.out_channels for layer in convolutions) == channels
    dense = next(layer for layer in network if type(layer) is SpectralLinear)
    assert dense.in_features == channels[-1] * last_map**2


def test_cnn_stops_halving_below_four_pixels():
    network = lipschitz_cnn((1, 9, 5), 2, (2, 2, 2, 2), ())
    strides = [layer.stride[0] for layer in network if hasattr(layer, "stride")]
    assert strides == [2, 1, 1, 1]  # 5 x 3 after the first


def test_layers_of_the_mlp():
    dense = [SpectralLinear, GroupSort2, SpectralLinear, GroupSort2, SpectralLinear]
    assert layer_types(lipschitz_mlp((7,), 3)) == [Center, *dense]
    assert layer_types(lipschitz_mlp((1, 2, 2), 3)) == [nn.Flatten, *dense]
    sizes = [layer.out_features for layer in lipschitz_mlp((7,), 3) if type(layer) is SpectralLinear]
    assert sizes == [256, 64, 3]
    assert layer_types(lipschitz_mlp((7,), 3, ())) == [Center, SpectralLinear]


def test_tutorial_network_is_that_of_the_tutorial():
    network = tutorial_cnn((1, 28, 28), 10)
    assert layer_types(network) == [
        SpectralConv2d,
        GroupSort2,
        ScaledL2NormPool2d,
        SpectralConv2d,
        GroupSort2,
        ScaledL2NormPool2d,
        nn.Flatten,
        SpectralLinear,
        GroupSort2,
        SpectralLinear,
    ]
    for convolution, channels in ((network[0], 16), (network[3], 32)):
        assert convolution.out_channels == channels
        assert (convolution.kernel_size, convolution.stride) == ((3, 3), (1, 1))
        assert convolution.padding == (1, 1)  # "same"
        assert convolution.padding_mode == "zeros"
        assert convolution.bias is not None
    assert network[2].kernel_size == network[5].kernel_size == (2, 2)
    assert (network[7].in_features, network[7].out_features) == (1568, 64)
    assert network[7].bias is not None
    assert (network[9].in_features, network[9].out_features) == (64, 10)
    assert network[9].bias is None


@pytest.mark.parametrize("conv", [lipschitz_cnn, tutorial_cnn])
def test_orthogonal_first_layer_passes_norms_on(conv):
    # With outputs enough nothing is lost in the middle of the image, only at its border.
    layer = polish_(conv((1, 28, 28), 10)[0].double())
    x = torch.zeros(1, 1, 28, 28, dtype=torch.float64)
    x[0, 0, 8:20, 8:20] = torch.randn(12, 12, dtype=torch.float64)
    np.testing.assert_allclose(layer(x).detach().norm(), x.norm(), rtol=16 * x.numel() * EPS)


# -- plans -------------------------------------------------------------------------------------


def plan(
    architecture="auto",
    input_shape=(1, 8, 8),
    dtype="float32",
    conv_channels=(4, 8),
    hidden_layer_sizes="auto",
    n_samples=None,
):
    return NetworkPlan.resolve(
        architecture,
        input_shape,
        3,
        dtype,
        n_samples=n_samples,
        conv_channels=conv_channels,
        hidden_layer_sizes=hidden_layer_sizes,
    )


@pytest.mark.parametrize(
    ("arguments", "architecture", "channels", "sizes"),
    [
        ({}, "cnn", (4, 8), (256, 256)),
        ({"input_shape": (5,)}, "mlp", (), (256, 64)),
        ({"architecture": "mlp"}, "mlp", (), (256, 64)),
        ({"architecture": "mlp", "n_samples": 1024}, "mlp", (), (128, 64)),
        ({"architecture": "mlp", "n_samples": 1025}, "mlp", (), (256, 64)),
        ({"n_samples": 100}, "cnn", (4, 8), (256, 256)),
        ({"hidden_layer_sizes": [8, np.int64(6)]}, "cnn", (4, 8), (8, 6)),
        ({"conv_channels": "auto"}, "cnn", (32, 32, 64), (256, 256)),
        ({"conv_channels": [], "hidden_layer_sizes": ()}, "cnn", (), ()),
    ],
)
def test_plan_replaces_auto(arguments, architecture, channels, sizes):
    resolved = plan(**arguments)
    assert (resolved.architecture, resolved.conv_channels) == (architecture, channels)
    assert resolved.hidden_layer_sizes == sizes
    assert all(type(size) is int for size in resolved.hidden_layer_sizes)
    network = resolved.build()
    assert type(network) is Sequential
    assert network(torch.zeros(2, *resolved.input_shape)).shape == (2, 3)


def test_plan_builds_what_a_callable_returns():
    assert type(plan(lambda shape, n_outputs: nn.Linear(shape[0], n_outputs)).build()) is nn.Linear
    with pytest.raises(TypeError, match=r"architecture must return a torch\.nn\.Module, got str"):
        plan(lambda shape, n_outputs: "network").build()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "cnn", "input_shape": (64,)}, "architecture='cnn' needs images"),
        ({"conv_channels": (4, 5)}, r"conv_channels must be positive even integers.* got \(4, 5\)"),
        ({"conv_channels": (0,)}, r"conv_channels must .* got \(0,\)"),
        ({"hidden_layer_sizes": (3,)}, r"hidden_layer_sizes must .* got \(3,\)"),
        ({"hidden_layer_sizes": (8.0,)}, r"hidden_layer_sizes must .* got \(8\.0,\)"),
        ({"hidden_layer_sizes": (-2,)}, r"hidden_layer_sizes must .* got \(-2,\)"),
    ],
)
def test_plan_names_a_wrong_argument_with_its_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(**arguments)


def test_plans_are_equal_by_value():
    assert plan() == plan()
    assert plan() != plan(conv_channels=(2, 2))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, []),
        ({"architecture": "cnn", "hidden_layer_sizes": [256, np.int64(256)]}, []),
        ({"conv_channels": (2, 2)}, ["conv_channels"]),
        ({"dtype": "float64"}, ["dtype"]),
        ({"input_shape": (1, 8, 9), "hidden_layer_sizes": (8,)}, ["input_shape", "hidden_layer_sizes"]),
        ({"architecture": "mlp"}, ["architecture", "conv_channels", "hidden_layer_sizes"]),
        ({"architecture": small_mlp}, ["architecture", "conv_channels", "hidden_layer_sizes"]),
    ],
)
def test_plans_name_what_is_not_the_same_in_both(arguments, names):
    assert plan().differences(plan(**arguments)) == names
    assert plan(**arguments).differences(plan()) == names
    assert (plan() == plan(**arguments)) == (not names)
