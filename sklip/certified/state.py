r"""Networks as plain values: names, numbers and NumPy arrays, from which the same network is built.

Only types with a rule are built: a stored file can't name anything else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from sklip.certified.integrity import plain_settings, refuse_hidden_state
from sklip.certified.rules import LAYERS

__all__ = ["network_from_state", "network_state"]


def network_state(network: nn.Module) -> dict[str, Any]:
    """Return type, settings, arrays and children of a plain network.

    Parameters
    ----------
    network : torch.nn.Module
        In types that have a rule.

    Returns
    -------
    state : dict

    Raises
    ------
    TypeError
        For a layer that holds something else than plain values and tensors.
    """
    LAYERS.refuse_unknown(network)
    refuse_hidden_state(network)
    settings = plain_settings(network)
    tensors = {**network._parameters, **network._buffers}
    return {
        "type": f"{type(network).__module__}.{type(network).__qualname__}",
        "settings": copy.deepcopy(settings),
        "training": network.training,
        "arrays": {
            name: None if value is None else value.detach().cpu().numpy().copy()
            for name, value in tensors.items()
        },
        "buffers": list(network._buffers),
        "children": [
            (name, network_state(child))
            for name, child in network._modules.items()
            if child is not None
        ],
    }


def network_from_state(state: Mapping[str, Any]) -> nn.Module:
    """Build the network of a state.

    Parameters
    ----------
    state : dict
        From :func:`network_state`.

    Returns
    -------
    network : torch.nn.Module

    Raises
    ------
    TypeError
        For a type without a rule.
    """
    known = LAYERS.types()
    if state["type"] not in known:
        raise TypeError(
            f"the stored network has a layer of type {state['type']}, which has no rule here; import "
            "the module that registers it before loading."
        )
    network: nn.Module = object.__new__(known[state["type"]])
    nn.Module.__init__(network)
    vars(network).update(copy.deepcopy(dict(state["settings"])))
    for name, array in state["arrays"].items():
        value = None if array is None else torch.from_numpy(np.array(array))
        if name in state["buffers"]:
            network.register_buffer(name, value)
        else:
            parameter = None if value is None else nn.Parameter(value, requires_grad=False)
            network.register_parameter(name, parameter)
    for name, child in state["children"]:
        network.add_module(name, network_from_state(child))
    network.training = state["training"]
    return network
