r"""Networks of one shape, trained on the same rows in the same steps.

Note [Side by side]
-------------------
A step of a small network is some two hundred short operations, and most of its time goes by between
them. Where several such networks see the same batch, their matrices are put into one tensor, so that
each operation is done once for all of them. Their losses are added up, and each network has the
gradient of its own; the optimiser turns each matrix of a batch by itself. So each network is trained
as it would be alone, up to rounding (in float64, 60 steps with one batch: logits within 1e-8).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sklip.layers import SpectralLinear

__all__ = ["SideBySide", "SumOfLosses"]


class SideBySide(nn.Module):
    """Dense networks of one shape side by side. See Note [Side by side].

    Parameters
    ----------
    networks : sequence of torch.nn.Sequential
        Of the same layers in the same order: linear layers of :mod:`sklip.layers`, whose parameters are
        copied, and layers without parameters that treat each row by itself, of which the first
        network's stand for all.
    """

    def __init__(self, networks: Sequence[nn.Sequential]) -> None:
        super().__init__()
        self.layers = copy.deepcopy(networks[0])
        parameters = [dict(network.named_parameters()) for network in networks]
        for name in parameters[0]:
            stacked = torch.stack([each[name].detach() for each in parameters])
            _set_parameter(self.layers, name, stacked)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n_samples, n_features) to (n_networks, n_samples, n_outputs)."""
        for layer in self.layers:
            if isinstance(layer, SpectralLinear):
                x = layer(x)
            else:
                # To others all networks' rows are rows.
                x = layer(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return x

    def apart(self) -> list[nn.Sequential]:
        """Return the networks, each with a copy of its parameters."""
        stacked = dict(self.layers.named_parameters())
        networks = []
        for place in range(len(next(iter(stacked.values())))):
            network = copy.deepcopy(self.layers)
            for name, values in stacked.items():
                _set_parameter(network, name, values[place].detach().clone())
            networks.append(network)
        return networks


class SumOfLosses(nn.Module):
    """Sum of the losses of networks side by side, each by its own criterion.

    Parameters
    ----------
    criteria : sequence of torch.nn.Module
        One for each network.
    """

    def __init__(self, criteria: Sequence[nn.Module]) -> None:
        super().__init__()
        self.criteria = nn.ModuleList(criteria)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the sum for logits of shape (n_networks, n_samples, n_outputs)."""
        losses = [
            criterion(each, target, sample_weight)
            for criterion, each in zip(self.criteria, logits.unbind(), strict=True)
        ]
        return torch.stack(losses).sum()


def _set_parameter(module: nn.Module, name: str, values: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, nn.Parameter(values))
