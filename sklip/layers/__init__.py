"""1-Lipschitz layers for PyTorch, and how their weights are kept orthogonal."""

from sklip.layers.activation import FullSort, GroupSort, GroupSort2
from sklip.layers.convolution import OrthogonalConv2d, SpectralConv2d
from sklip.layers.linear import ColumnWeightedLinear, SpectralLinear
from sklip.layers.orthogonal import (
    OrthogonalLayer,
    keep_orthogonal,
    polish_,
    project_gradients_,
    retract_,
)
from sklip.layers.pooling import ScaledAvgPool2d, ScaledL2NormPool2d
from sklip.layers.residual import Residual
from sklip.layers.sequential import Center, Scale, Sequential, to_torch

__all__ = [
    "Center",
    "ColumnWeightedLinear",
    "FullSort",
    "GroupSort",
    "GroupSort2",
    "OrthogonalConv2d",
    "OrthogonalLayer",
    "Residual",
    "Scale",
    "ScaledAvgPool2d",
    "ScaledL2NormPool2d",
    "Sequential",
    "SpectralConv2d",
    "SpectralLinear",
    "keep_orthogonal",
    "polish_",
    "project_gradients_",
    "retract_",
    "to_torch",
]
