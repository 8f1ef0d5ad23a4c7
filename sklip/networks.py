r"""1-Lipschitz networks, put together from the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from numbers import Integral
from typing import Any, Self

from torch import nn

from sklip.layers import (
    Center,
    ColumnWeightedLinear,
    GroupSort2,
    OrthogonalConv2d,
    ScaledL2NormPool2d,
    Sequential,
    SpectralConv2d,
    SpectralLinear,
)

__all__ = ["SMALL_TABLE_ROWS", "NetworkPlan", "lipschitz_cnn", "lipschitz_mlp", "tutorial_cnn"]

# Up to this many rows a table is one batch, and narrow layers are as good as wide ones.
SMALL_TABLE_ROWS = 1024
_SMALL_TABLE_SIZES = (128, 64)
_TABLE_SIZES = (256, 64)
_IMAGE_SIZES = (256, 256)


def lipschitz_mlp(
    input_shape: tuple[int, ...],
    n_outputs: int,
    hidden_layer_sizes: Sequence[int] | str = "auto",
    column_weights: bool = False,
) -> nn.Module:
    """1-Lipschitz network of dense layers and GroupSort2.

    Parameters
    ----------
    input_shape : tuple of int
        (n_features,), or (C, H, W) for images, which are flattened.
    n_outputs : int
        Number of logits: the number of classes, or 1 for a binary problem.
    hidden_layer_sizes : sequence of int or "auto", default="auto"
        Width of each hidden layer, even; "auto" is (256, 64).
    column_weights : bool, default=False
        Whether the first layer has a weight in [0, 1] for each column of a table.

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
        n_features, first = math.prod(input_shape), [nn.Flatten()]
    sizes = _TABLE_SIZES if isinstance(hidden_layer_sizes, str) else hidden_layer_sizes
    kind = ColumnWeightedLinear if column_weights else SpectralLinear
    return Sequential(*first, *_dense(n_features, sizes, n_outputs, kind))


def lipschitz_cnn(
    input_shape: tuple[int, ...],
    n_outputs: int,
    conv_channels: Sequence[int] | str = "auto",
    hidden_layer_sizes: Sequence[int] | str = "auto",
) -> nn.Module:
    """1-Lipschitz network of orthogonal convolutions, dense layers and GroupSort2.

    * The first 3x3 convolution halves the map: at its full size every layer would cost four times as
      much, and a strided orthogonal convolution with channels enough loses nothing, unlike pooling. Of
      colours it keeps as many values as there are, which is enough.
    * The second one keeps the size, so that features larger than a few pixels are put together.
    * Each further one halves the map while that is at least 4 pixels wide.
    * GroupSort2 permutes its input, so it loses nothing either; ReLU would.
    * The dense layers see the whole map; their width matters more than the number of channels.

    Parameters
    ----------
    input_shape : (int, int, int)
        Channels, height and width of an image.
    n_outputs : int
        Number of logits: the number of classes, or 1 for a binary problem.
    conv_channels : sequence of int or "auto", default="auto"
        Channels of each 3x3 convolution, even; "auto" is 32, 32, 64, of colours 12, 64, 128 (4 for each
        colour, up to 64), and as many as the last for each further halving until the map is at most 8
        pixels wide.
    hidden_layer_sizes : sequence of int or "auto", default="auto"
        Width of each dense hidden layer, even; "auto" is (256, 256).

    Returns
    -------
    network : Sequential

    Examples
    --------
    >>> from sklip.networks import lipschitz_cnn
    >>> sum(p.numel() for p in lipschitz_cnn((1, 28, 28), 10).parameters())
    884938
    """
    channels, height, width = input_shape
    widths = _auto_channels(*input_shape) if isinstance(conv_channels, str) else conv_channels
    sizes = _IMAGE_SIZES if isinstance(hidden_layer_sizes, str) else hidden_layer_sizes
    layers: list[nn.Module] = []
    for index, out_channels in enumerate(widths):
        stride = _stride(index, height, width)
        layers += [OrthogonalConv2d(channels, out_channels, 3, stride), GroupSort2()]
        channels, height, width = out_channels, -(-height // stride), -(-width // stride)
    dense = _dense(channels * height * width, sizes, n_outputs)
    return Sequential(*layers, nn.Flatten(), *dense)


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
        nn.Flatten(),
        SpectralLinear(32 * (height // 4) * (width // 4), 64),
        GroupSort2(),
        SpectralLinear(64, n_outputs, bias=False),
    )


def _dense(
    n_features: int,
    hidden_layer_sizes: Sequence[int],
    n_outputs: int,
    first: type[SpectralLinear] = SpectralLinear,
) -> list[nn.Module]:
    """Hidden dense layers with GroupSort2, and the head; the first may be of another type."""
    layers: list[nn.Module] = []
    widths = [n_features, *hidden_layer_sizes, n_outputs]
    for position, (before, after) in enumerate(pairwise(widths)):
        layers += [(first if position == 0 else SpectralLinear)(before, after), GroupSort2()]
    return layers[:-1]


def _stride(index: int, height: int, width: int) -> int:
    """Step of a convolution: 2 while there is a map to halve, but the second keeps its size."""
    return 2 if index != 1 and min(height, width) >= 4 else 1


def _auto_sizes(architecture: Any, n_samples: int | None) -> tuple[int, ...]:
    """Widths of dense layers, behind convolutions or for a table of some rows."""
    if architecture == "cnn":
        return _IMAGE_SIZES
    small = n_samples is not None and n_samples <= SMALL_TABLE_ROWS
    return _SMALL_TABLE_SIZES if small else _TABLE_SIZES


def _auto_channels(channels: int, height: int, width: int) -> tuple[int, ...]:
    """Three convolutions, or more until the map is at most 8 pixels wide."""
    # Ten epochs of CIFAR-10, accuracy and certified at 36/255, means of two seeds: 12, 64, 128 channels
    # 0.682 and 0.546, 32, 64, 128 0.682 and 0.538; one of 32, 32, 64 0.676 and 0.539.
    of_three = (32, 32, 64) if channels == 1 else (min(4 * channels, 64), 64, 128)
    widths: list[int] = []
    while len(widths) < 3 or (min(height, width) >= 4 and max(height, width) > 8):
        stride = _stride(len(widths), height, width)
        widths.append(of_three[min(len(widths), 2)])
        height, width = -(-height // stride), -(-width // stride)
    return tuple(widths)


@dataclass(frozen=True)
class NetworkPlan:
    """All that is needed to build a network: now, and again when a stored model is loaded."""

    architecture: str | Callable[[tuple[int, ...], int], nn.Module]
    input_shape: tuple[int, ...]
    n_outputs: int
    dtype: str
    conv_channels: tuple[int, ...]
    hidden_layer_sizes: tuple[int, ...]
    column_weights: bool = False

    @classmethod
    def resolve(
        cls,
        architecture: str | Callable[[tuple[int, ...], int], nn.Module],
        input_shape: tuple[int, ...],
        n_outputs: int,
        dtype: str,
        *,
        n_samples: int | None,
        conv_channels: Any,
        hidden_layer_sizes: Any,
    ) -> Self:
        """Replace every "auto" by what it stands for, and check the rest.

        `n_samples` is the number of rows to train on, None where it isn't known.
        """
        if callable(architecture):
            return cls(architecture, input_shape, n_outputs, dtype, (), ())
        if architecture == "auto":
            architecture = "cnn" if len(input_shape) == 3 else "mlp"
        if architecture == "cnn" and len(input_shape) != 3:
            raise ValueError(
                "architecture='cnn' needs images; pass X of shape (n_samples, channels, height, "
                "width), or flat rows with input_shape=(channels, height, width)."
            )
        # Spelt out: a stored model must be built the same when a default has changed.
        if isinstance(hidden_layer_sizes, str):
            hidden_layer_sizes = _auto_sizes(architecture, n_samples)
        if architecture == "cnn" and isinstance(conv_channels, str):
            conv_channels = _auto_channels(*input_shape)
        return cls(
            architecture,
            input_shape,
            n_outputs,
            dtype,
            _widths("conv_channels", conv_channels) if architecture == "cnn" else (),
            _widths("hidden_layer_sizes", hidden_layer_sizes),
        )

    @property
    def is_dense_for_table(self) -> bool:
        """Whether it is our network of dense layers, for rows of a table."""
        return self.architecture == "mlp" and len(self.input_shape) == 1

    def differences(self, other: Self) -> list[str]:
        """Return the names of what is not the same in both."""
        return [
            field.name
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]

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
        return lipschitz_mlp(
            self.input_shape, self.n_outputs, self.hidden_layer_sizes, self.column_weights
        )


def _widths(name: str, value: Any) -> tuple[int, ...]:
    sizes = tuple(value)
    for size in sizes:
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 2 or size % 2:
            raise ValueError(
                f"{name} must be positive even integers, as GroupSort2 sorts pairs of channels, got "
                f"{value!r}."
            )
    return tuple(int(size) for size in sizes)
