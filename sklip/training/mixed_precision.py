r"""Products in bfloat16 while images are trained on, where a CPU has units for them.

Note [Mixed precision]
----------------------
Convolutions and dense layers take most of a training step on images, and a CPU with units for products
of matrices in bfloat16 (Intel's AMX) does them several times as fast as in float32: forward and
backward passes of 256 images of CIFAR-10 take 0.4 to 0.6 of the time there, ten epochs with all that
belongs to them 0.63 (32, 32, 64 channels, dense layers of 256 and 256). Only gradients feel the eight
digits of bfloat16: weights, momentum and turns stay in float32, the trained network is made orthogonal
in float64 and proven as it is, and predictions are in float32 as ever. Those ten epochs of 45,000
images gave 0.676 and 0.539 certified at 36/255 on 5,000 others, in float32 0.677 and 0.531.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sklip.layers import GroupSort2, OrthogonalConv2d, Sequential, SpectralLinear

__all__ = ["mixed_precision_pays"]

# Layers that are products and sorting: in others few digits might do harm.
_SUITED = (OrthogonalConv2d, SpectralLinear, GroupSort2, Sequential, nn.Sequential, nn.Flatten)


def mixed_precision_pays(module: nn.Module, device: str | torch.device) -> bool:
    """Whether to train a network in mixed precision. See Note [Mixed precision].

    Parameters
    ----------
    module : torch.nn.Module
    device : str or torch.device
        Where it is trained.

    Returns
    -------
    pays : bool
    """
    layers = list(module.modules())
    return (
        torch.device(device).type == "cpu"
        and any(isinstance(layer, OrthogonalConv2d) for layer in layers)
        and all(type(layer) in _SUITED for layer in layers)
        and all(parameter.dtype == torch.float32 for parameter in module.parameters())
        and _has_units()
    )


def _has_units() -> bool:
    """Whether the CPU has units for bfloat16 and torch uses them; False where torch can't tell."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkldnn.is_available() and bool(capabilities.get("amx_bf16", False))
