r"""Certified networks in files that hold numbers and words, and run no code when they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklip.certified.network import CertifiedNetwork
from sklip.certified.seals import opened, sealed
from sklip.files import write_whole

__all__ = ["load_network", "save_network"]

# Under this word of a safetensors file's metadata stands all that is no array.
_WORD = "sklip"
# What a seal of the words calls the arrays that stand beside them.
_ARRAYS = "arrays of the file"


def save_network(network: CertifiedNetwork, path: str | os.PathLike[str]) -> None:
    """Write a certified network to a safetensors file, which loads as the same network or not at all.

    Whoever reads safetensors finds the weights in it, under the names that they have in
    ``network.network.state_dict()``. What else makes the network (types and settings of layers, the
    arithmetic) is in the metadata; no proven number is. Needs the extra scikit-lipschitz[storage].

    Parameters
    ----------
    network : CertifiedNetwork
        ``clf.certified_network_``, say.
    path : str or path-like
        An existing file is replaced once the new one is complete.

    Raises
    ------
    RuntimeError
        If the network was changed after its proof.
    OSError
        If the file can't be written.

    See Also
    --------
    load_network : The way back.

    Examples
    --------
    >>> import os, tempfile, torch
    >>> from sklip.certified import CertifiedNetwork, load_network, save_network
    >>> certified = CertifiedNetwork.prove(torch.nn.Sequential(torch.nn.Linear(4, 3)), (4,))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "network.safetensors")
    ...     save_network(certified, path)
    ...     load_network(path).lipschitz_bound == certified.lipschitz_bound
    True
    """
    safetensors, arrays = _safetensors(), dict[str, NDArray[Any]]()
    network.check_unchanged()
    state = network.to_state()
    state["network"] = _without_arrays(state["network"], "", arrays)
    words = sealed({**state, _ARRAYS: arrays})
    del words[_ARRAYS]
    write_whole(path, safetensors.save(arrays, metadata={_WORD: json.dumps(words)}))


def load_network(path: str | os.PathLike[str]) -> CertifiedNetwork:
    """Read a certified network from a file of :func:`save_network`, and prove it anew.

    Nothing in the file can name any code: layers are built if their type has a rule. Needs the extra
    scikit-lipschitz[storage].

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    network : CertifiedNetwork

    Raises
    ------
    ValueError
        For a file that is no safetensors file, truncated, damaged, or of another program or format.
    TypeError
        For a type of layer without a rule.

    Examples
    --------
    See :func:`save_network`.
    """
    safetensors, data = _safetensors(), Path(path).read_bytes()
    try:
        arrays = safetensors.load(data)
        # The header, behind its length in eight bytes.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        words = {**json.loads(header["__metadata__"][_WORD]), _ARRAYS: arrays}
    except Exception as error:
        raise ValueError(
            f"{os.fspath(path)!r} is no complete file of sklip.certified.save_network "
            f"({type(error).__name__}: {error}); take another copy of it."
        ) from error
    state = opened(words, "network")
    return CertifiedNetwork.from_state({**state, "network": _with_arrays(state["network"], "", arrays)})


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "Networks in files need safetensors; install it with the extra: scikit-lipschitz[storage]."
        ) from error
    return safetensors.numpy


def _without_arrays(
    state: Mapping[str, Any], prefix: str, arrays: dict[str, NDArray[Any]]
) -> dict[str, Any]:
    """Return a network's state for JSON, with its arrays moved to `arrays`."""
    names = []
    for name, array in state["arrays"].items():
        names.append([name, array is not None])
        if array is not None:
            # In order in memory; with a copy, a scalar would stay one.
            arrays[prefix + name] = np.array(array, order="C")
    children = [
        [name, _without_arrays(child, f"{prefix}{name}.", arrays)] for name, child in state["children"]
    ]
    settings = {name: _listed(value) for name, value in state["settings"].items()}
    return {**state, "settings": settings, "arrays": names, "children": children}


def _with_arrays(
    state: Mapping[str, Any], prefix: str, arrays: Mapping[str, NDArray[Any]]
) -> dict[str, Any]:
    """Undo :func:`_without_arrays`."""
    return {
        **state,
        "settings": {name: _unlisted(value) for name, value in state["settings"].items()},
        "arrays": {name: arrays[prefix + name] if held else None for name, held in state["arrays"]},
        "children": [
            (name, _with_arrays(child, f"{prefix}{name}.", arrays)) for name, child in state["children"]
        ],
    }


def _listed(value: Any) -> Any:
    """Mark tuples, which JSON has none of."""
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_listed(each) for each in value]}
    return value


def _unlisted(value: Any) -> Any:
    if isinstance(value, Mapping):
        ((kind, values),) = value.items()
        return {"tuple": tuple, "list": list}[kind](map(_unlisted, values))
    return value
