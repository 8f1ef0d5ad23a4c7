r"""What a fit depends on, in words that are the same in every process."""

from __future__ import annotations

import functools
import hashlib
import inspect
import operator
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

from sklip.rows import as_numpy
from sklip.training.data import TrainingData
from sklip.training.parallel import fingerprint

__all__ = ["digest_of", "facts_of"]

# What may differ between two runs of one fit; callbacks and device may between processes.
_NOT_OF_THE_MODEL = ("callbacks", "checkpoint_dir", "device", "random_state", "verbose")
# Their code is known by their version.
_LIBRARIES = ("builtins", "numpy", "scipy", "sklearn", "sklip", "skorch", "torch")


def facts_of(estimator: BaseEstimator, data: TrainingData) -> dict[str, str]:
    """Return what makes two fits the same one, but for seed, device and callbacks.

    Parameters
    ----------
    estimator : BaseEstimator
    data : TrainingData

    Returns
    -------
    facts : dict
        By the names that the user knows them by.
    """
    parameters = estimator.get_params(deep=False)
    classes = None if data.classes is None else data.classes.tolist()
    return {
        "estimator": digest_of(type(estimator)),
        **{name: digest_of(parameters[name]) for name in parameters if name not in _NOT_OF_THE_MODEL},
        "X": fingerprint(data.rows),
        "y": f"{fingerprint(data.targets)} {classes}",
        "sample_weight": fingerprint(data.sample_weight),
        "the number of epochs so far": str(getattr(estimator, "n_iter_", 0)),
    }


def digest_of(value: Any) -> str:
    """Return a digest of a value, of whatever it holds, and of the code that is not a library's.

    Parameters
    ----------
    value : object
        Of plain values, arrays, functions, and instances of classes written in Python.

    Raises
    ------
    TypeError
        If it holds anything else.
    """
    return hashlib.blake2b(repr(_words(value, ())).encode(), digest_size=16).hexdigest()


def _words(value: Any, outer: tuple[int, ...]) -> Any:
    """Return nested tuples of words, which are the same for equal values."""
    if id(value) in outer:
        return ("again", outer.index(id(value)))
    words = functools.partial(_words, outer=(*outer, id(value)))
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, torch.Tensor):
        value = as_numpy(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return (str(value.dtype), value.shape, hashlib.blake2b(value.tobytes()).hexdigest())
    if isinstance(value, np.ndarray):
        return words(value.tolist())
    if isinstance(value, Mapping):
        pairs = [(repr(words(key)), words(inner)) for key, inner in value.items()]
        return ("dict", *sorted(pairs, key=operator.itemgetter(0)))
    if isinstance(value, set | frozenset):
        return ("set", *sorted(repr(words(inner)) for inner in value))
    if isinstance(value, list | tuple):
        return (type(value).__name__, *map(words, value))
    if isinstance(value, functools.partial):
        return ("partial", words(value.func), words(value.args), words(value.keywords))
    if isinstance(value, types.MethodType):
        return ("method", words(value.__func__), words(value.__self__))
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return (_code_of(value), words(cells), words(value.__defaults__), words(value.__kwdefaults__))
    if isinstance(value, type | types.BuiltinFunctionType):
        return _code_of(value)
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if hasattr(value, "__dict__"):
        return (_code_of(type(value)), words(vars(value)))
    raise TypeError(
        f"a {type(value).__name__} among the parameters doesn't tell one fit from another, as "
        "checkpoint_dir and data_parallel need it; use functions and classes written in Python, or "
        "neither of the two."
    )


def _code_of(value: Any) -> tuple[str, ...]:
    """Return the name of a function or class, and its source where that can be read."""
    name = (str(value.__module__), value.__qualname__)
    if name[0].partition(".")[0] in _LIBRARIES:
        return name
    try:
        return (*name, inspect.getsource(value))
    except (OSError, TypeError):  # typed at a prompt
        return name
