"""1-Lipschitz layers for PyTorch, and how their weights are kept orthogonal."""

from sklip.layers.activation import FullSort, GroupSort, GroupSort2
from sklip.layers.convolution import OrthogonalConv2d, SpectralConv2d
from sklip.layers.linear import SpectralLinear
from sklip.layers.orthogonal import OrthogonalLayer, polish_, retract_, retract_after_step
from sklip.layers.pooling import ScaledAvgPool2d, ScaledL2NormPool2d
from sklip.layers.sequential import Center, Flatten, Scale, Sequential, to_torch

__all__ = [
    "Center",
    "Flatten",
    "FullSort",
    "GroupSort",
    "GroupSort2",
    "OrthogonalConv2d",
    "OrthogonalLayer",
    "Scale",
    "ScaledAvgPool2d",
    "ScaledL2NormPool2d",
    "Sequential",
    "SpectralConv2d",
    "SpectralLinear",
    "polish_",
    "retract_",
    "retract_after_step",
    "to_torch",
]
