r"""1-Lipschitz networks, put together from the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any, Self

from torch import nn

from sklip.layers import (
    Center,
    Flatten,
    GroupSort2,
    OrthogonalConv2d,
    ScaledL2NormPool2d,
    Sequential,
    SpectralConv2d,
    SpectralLinear,
)

__all__ = ["NetworkPlan", "lipschitz_cnn", "lipschitz_mlp", "tutorial_cnn"]


def lipschitz_mlp(
    input_shape: tuple[int, ...], n_outputs: int, hidden_layer_sizes: Sequence[int] = (128, 128)
) -> nn.Module:
    """1-Lipschitz network of dense layers and GroupSort2.

    Parameters
    ----------
    input_shape : tuple of int
        (n_features,), or (C, H, W) for images, which are flattened.
    n_outputs : int
        Number of logits: the number of classes, or 1 for a binary problem.
    hidden_layer_sizes : sequence of int, default=(128, 128)
        Width of each hidden layer, even.

    Returns
    -------
    network : Sequential

    Examples
    --------
    >>> from sklip.networks import lipschitz_mlp
    >>> [type(layer).__name__ for layer in lipschitz_mlp((4,), 3, (8,))]
    ['Center', 'SpectralLinear', 'GroupSort2', 'SpectralLinear']
    """
    first: list[nn.Module]
    if len(input_shape) == 1:
        n_features, first = input_shape[0], [Center(input_shape[0])]
    else:
        n_features, first = math.prod(input_shape), [Flatten()]
    return Sequential(*first, *_dense(n_features, hidden_layer_sizes, n_outputs))


def lipschitz_cnn(
    input_shape: tuple[int, ...],
    n_outputs: int,
    conv_channels: Sequence[int] = (16, 32, 64),
    hidden_layer_sizes: Sequence[int] = (256, 256),
) -> nn.Module:
    """1-Lipschitz network of orthogonal convolutions, dense layers and GroupSort2.

    The first convolution keeps the size of the map, each further one halves it (stride 2) while
    the map is at least 4 pixels wide. Strides rather than pooling: a strided orthogonal convolution
    loses nothing.

    Parameters
    ----------
    input_shape : (int, int, int)
        Channels, height and width of an image.
    n_outputs : int
        Number of logits: the number of classes, or 1 for a binary problem.
    conv_channels : sequence of int, default=(16, 32, 64)
        Channels of each 3x3 convolution, even.
    hidden_layer_sizes : sequence of int, default=(256, 256)
        Width of each dense hidden layer, even.

    Returns
    -------
    network : Sequential

    Examples
    --------
    >>> from sklip.networks import lipschitz_cnn
    >>> sum(p.numel() for p in lipschitz_cnn((1, 28, 28), 10).parameters())
    883210
    """
    channels, height, width = input_shape
    layers: list[nn.Module] = []
    for index, out_channels in enumerate(conv_channels):
        stride = 2 if index > 0 and min(height, width) >= 4 else 1
        # With this many outputs a reshaped kernel is exactly orthogonal, and cheaper.
        if stride == 1 and out_channels >= 9 * channels:
            layers.append(SpectralConv2d(channels, out_channels, 3))
        else:
            layers.append(OrthogonalConv2d(channels, out_channels, 3, stride))
        layers.append(GroupSort2())
        channels, height, width = out_channels, -(-height // stride), -(-width // stride)
    dense = _dense(channels * height * width, hidden_layer_sizes, n_outputs)
    return Sequential(*layers, Flatten(), *dense)


def tutorial_cnn(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """Network of the deel-lip tutorial: two pooled spectral convolutions, two dense layers.

    Parameters
    ----------
    input_shape : (int, int, int)
        Channels, height and width of an image.
    n_outputs : int
        Number of logits.

    Returns
    -------
    network : Sequential

    References
    ----------
    deel-lip, Getting started 2: training adversarially robust 1-Lipschitz neural networks for
    classification.

    Examples
    --------
    >>> from sklip import LipschitzClassifier
    >>> from sklip.networks import tutorial_cnn
    >>> clf = LipschitzClassifier(architecture=tutorial_cnn, input_shape=(1, 28, 28))
    """
    channels, height, width = input_shape
    return Sequential(
        SpectralConv2d(channels, 16, 3),
        GroupSort2(),
        ScaledL2NormPool2d(2),
        SpectralConv2d(16, 32, 3),
        GroupSort2(),
        ScaledL2NormPool2d(2),
        Flatten(),
        SpectralLinear(32 * (height // 4) * (width // 4), 64),
        GroupSort2(),
        SpectralLinear(64, n_outputs, bias=False),
    )


def _dense(n_features: int, hidden_layer_sizes: Sequence[int], n_outputs: int) -> list[nn.Module]:
    """Hidden dense layers with GroupSort2, and the head."""
    layers: list[nn.Module] = []
    widths = [n_features, *hidden_layer_sizes]
    for before, after in pairwise(widths):
        layers += [SpectralLinear(before, after), GroupSort2()]
    return [*layers, SpectralLinear(widths[-1], n_outputs)]


_DENSE_SIZES = {"mlp": (128, 128), "cnn": (256, 256)}


@dataclass(frozen=True)
class NetworkPlan:
    """All that is needed to build a network: now, and again when a stored model is loaded."""

    architecture: str | Callable[[tuple[int, ...], int], nn.Module]
    input_shape: tuple[int, ...]
    n_outputs: int
    conv_channels: tuple[int, ...]
    hidden_layer_sizes: tuple[int, ...]

    @classmethod
    def resolve(
        cls,
        architecture: str | Callable[[tuple[int, ...], int], nn.Module],
        input_shape: tuple[int, ...],
        n_outputs: int,
        *,
        conv_channels: Any,
        hidden_layer_sizes: Any,
    ) -> Self:
        """Replace every "auto" by what it stands for, and check the rest."""
        if callable(architecture):
            return cls(architecture, input_shape, n_outputs, (), ())
        if architecture == "auto":
            architecture = "cnn" if len(input_shape) == 3 else "mlp"
        if architecture == "cnn" and len(input_shape) != 3:
            raise ValueError(
                "architecture='cnn' needs images; pass X of shape (n_samples, channels, height, "
                "width), or flat rows with input_shape=(channels, height, width)."
            )
        if isinstance(hidden_layer_sizes, str):
            hidden_layer_sizes = _DENSE_SIZES[architecture]
        return cls(
            architecture,
            input_shape,
            n_outputs,
            _widths("conv_channels", conv_channels) if architecture == "cnn" else (),
            _widths("hidden_layer_sizes", hidden_layer_sizes),
        )

    def build(self) -> nn.Module:
        """Return a new network; its weights come from torch's default generator."""
        if callable(self.architecture):
            network = self.architecture(self.input_shape, self.n_outputs)
            if not isinstance(network, nn.Module):
                raise TypeError(
                    f"architecture must return a torch.nn.Module, got {type(network).__name__}."
                )
            return network
        if self.architecture == "cnn":
            return lipschitz_cnn(
                self.input_shape, self.n_outputs, self.conv_channels, self.hidden_layer_sizes
            )
        return lipschitz_mlp(self.input_shape, self.n_outputs, self.hidden_layer_sizes)


def _widths(name: str, value: Any) -> tuple[int, ...]:
    sizes = tuple(value)
    for size in sizes:
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 2 or size % 2:
            raise ValueError(
                f"{name} must be positive even integers, as GroupSort2 sorts pairs of channels, got "
                f"{value!r}."
            )
    return tuple(int(size) for size in sizes)
