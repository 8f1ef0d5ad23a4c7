"""Whether an object computes what its class says, and whether a network is the one that was proven."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from sklip.certified.arithmetic import subnormal

__all__ = [
    "digest",
    "digest_of_array",
    "plain_settings",
    "refuse_altered",
    "refuse_hidden_state",
    "refuse_subnormal",
    "without_subnormal_",
]


def refuse_altered(item: Any) -> None:
    """Refuse a module or an estimator that computes something else than its class says.

    Raises
    ------
    TypeError
        For hooks of any kind, and for an attribute of the instance that replaces a method.
    """
    name, attributes = type(item).__name__, getattr(item, "__dict__", {})
    # Of every kind: on outputs, on gradients, on what is stored and loaded.
    hooks = [value for key, value in attributes.items() if key.endswith("_hooks")]
    if isinstance(item, nn.Module):
        hooks += [
            torch_module._global_forward_hooks,
            torch_module._global_forward_pre_hooks,
            torch_module._global_backward_hooks,
            torch_module._global_backward_pre_hooks,
        ]
    if any(hooks):
        raise TypeError(f"{name} has hooks, which may change what it computes; remove them.")
    for key, value in attributes.items():
        if callable(value) and hasattr(type(item), key):
            raise TypeError(f"{name} has a replaced {key} method; restore the one of its class.")


def digest(module: nn.Module) -> str:
    """Return a digest of all that decides what `module` computes: layers, settings, mode, weights."""
    state = hashlib.blake2b(digest_size=16)
    state.update(f"{module!r}{[part.training for part in module.modules()]}".encode())
    # A repr does not show everything: AvgPool2d leaves out what it divides by.
    state.update(repr([sorted(plain_settings(part).items()) for part in module.modules()]).encode())
    for part in module.modules():
        # Not the state_dict, which leaves out buffers that are not stored.
        for name, value in {**part._parameters, **part._buffers}.items():
            if value is not None:
                array = value.detach().cpu().numpy()
                state.update(f"{name}{array.dtype}{array.shape}".encode())
                state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def digest_of_array(array: NDArray[Any]) -> str:
    """Return a digest of the bytes of an array, which may be large: of all pairs of classes, say."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()


def plain_settings(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that the constructor set, or somebody since, and that are plain values."""
    return {name: _as_plain(value) for name, value in _own(module).items() if _is_plain(value)}


def refuse_hidden_state(module: nn.Module) -> None:
    """Refuse a module with attributes that neither a digest nor a stored state can hold.

    Raises
    ------
    TypeError
        For attributes that are no plain numbers, words or lists of them, parameters or buffers.
    """
    hidden = sorted(name for name, value in _own(module).items() if not _is_plain(value))
    if hidden:
        raise TypeError(
            f"{type(module).__name__} has attributes that can't be certified or stored, {hidden}; use "
            "plain numbers, words and lists of them, parameters or buffers."
        )


@torch.no_grad()
def without_subnormal_(network: nn.Module) -> nn.Module:
    """Set subnormal weights, which processors may take for 0, to 0 in place."""
    for _, value in _named_weights(network):
        value[subnormal(value)] = 0
    return network


@torch.no_grad()
def refuse_subnormal(network: nn.Module) -> None:
    """Refuse subnormal weights, which processors may take for 0.

    Raises
    ------
    ValueError
    """
    for name, value in _named_weights(network):
        if subnormal(value).any():
            raise ValueError(
                f"{name} has weights that are subnormal, of sizes below "
                f"{torch.finfo(value.dtype).tiny}; set them to 0, as CertifiedNetwork.prove does with "
                "its copy."
            )


def _named_weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    named = (*network.named_parameters(), *network.named_buffers())
    return ((name, value) for name, value in named if value.is_floating_point())


def _own(module: nn.Module) -> dict[str, Any]:
    """Return what the constructor of the class, or somebody since, has set."""
    inherited = vars(nn.Module())
    return {name: value for name, value in vars(module).items() if name not in inherited}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | np.generic)


def _as_plain(value: Any) -> Any:
    """Return NumPy's numbers as Python's."""
    if isinstance(value, tuple | list):
        return type(value)(map(_as_plain, value)) if type(value) in (tuple, list) else value
    return value.item() if isinstance(value, np.generic) else value
