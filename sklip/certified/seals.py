"""Seals of stored states: which format they have, and whether they are still what was stored.

A model is proven anew when it is loaded, so that no damage makes its radii wrong. But a flipped bit in
a weight makes another model, with radii of its own: the seal finds that. It is no signature, since
whoever writes the file can write the seal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

import sklip

__all__ = ["FORMAT", "opened", "seal_of", "sealed"]

# Raised whenever states are laid out in another way.
FORMAT = 1
_KEY = "_stored_"


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with a seal: the version and format it is of, and a digest of its values.

    Parameters
    ----------
    state : dict
        Whatever is in it that is no plain value or array is not part of the digest.

    Returns
    -------
    state : dict
    """
    return {**state, _KEY: {"format": FORMAT, "version": sklip.__version__, "digest": seal_of(state)}}


def opened(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a state without its seal, which must be of this format and unbroken.

    Parameters
    ----------
    state : dict
        From :func:`sealed`.
    name : str
        What the state is of, for errors.

    Returns
    -------
    state : dict

    Raises
    ------
    ValueError
        For another format, and if the state is not what was sealed.
    """
    inner = {key: value for key, value in state.items() if key != _KEY}
    seal = state.get(_KEY)
    if not isinstance(seal, Mapping) or not {"format", "version", "digest"} <= set(seal):
        raise ValueError(
            f"the stored {name} says no format: it was stored by a version of sklip before there were "
            "any, or is damaged; load it with the version that stored it, or fit anew."
        )
    if seal["format"] != FORMAT:
        raise ValueError(
            f"the stored {name} has format {seal['format']!r} of sklip {seal['version']}, but sklip "
            f"{sklip.__version__} reads format {FORMAT}; load it with sklip {seal['version']}, or fit "
            "anew."
        )
    if seal["digest"] != seal_of(inner):
        raise ValueError(
            f"the stored {name} is damaged: it is not what sklip {seal['version']} stored; take "
            "another copy of the file, or fit anew."
        )
    return inner


def seal_of(state: Mapping[str, Any]) -> str:
    """Return a digest of all plain values and arrays in nested dicts, lists and tuples."""
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, dict(state))
    return digest.hexdigest()


def _add(digest: hashlib.blake2b, value: Any) -> None:
    # Each kind starts with a letter of its own and its length, so that no two values look the same.
    if isinstance(value, Mapping):
        # In an order that does not depend on how the dict was made.
        items = sorted(value.items(), key=lambda item: f"{type(item[0]).__name__} {item[0]}")
        digest.update(f"m{len(items)};".encode())
        for key, inner in items:
            _add(digest, key)
            _add(digest, inner)
    elif isinstance(value, list | tuple):
        digest.update(f"l{len(value)};".encode())
        for inner in value:
            _add(digest, inner)
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.hasobject:
        digest.update(f"o{value.shape};".encode())
        _add(digest, np.asarray(value).ravel().tolist())
    elif isinstance(value, np.ndarray | np.generic):
        # In one order of bytes: pickle may give back another than the one it took.
        value = np.asarray(value).astype(value.dtype.newbyteorder("<"), copy=False)
        digest.update(f"a{value.dtype.str}{value.shape};".encode())
        digest.update(value.tobytes())
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        word = f"{type(value).__name__} {value!r}".encode()
        digest.update(f"v{len(word)};".encode() + word)
    else:
        digest.update(f"t{type(value).__name__};".encode())
