r"""Parameters of callbacks as skorch names them: ``callbacks__name``, ``callbacks__name__lr``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

__all__ = ["named_callbacks", "nested_params", "with_params_set"]


def named_callbacks(callbacks: Any) -> list[tuple[str, Any]]:
    """Return (name, callback) pairs, in order.

    One without a name is called by its class, and if there are several of that name, with a number.

    Parameters
    ----------
    callbacks : sequence, or None
        Callbacks and (name, callback) pairs. A pair's callback may be None, which is left out of
        training.
    """
    entries = [
        each if isinstance(each, tuple) and len(each) == 2 else (type(each).__name__, each)
        # Whatever else was set is refused in fit.
        for each in (callbacks if isinstance(callbacks, list | tuple) else ())
    ]
    total, seen = Counter(name for name, _ in entries), Counter[str]()
    named = []
    for name, callback in entries:
        seen[name] += 1
        named.append((name if total[name] == 1 else f"{name}_{seen[name]}", callback))
    return named


def nested_params(callbacks: Any) -> dict[str, Any]:
    """Return the callbacks by ``callbacks__name``, and their parameters behind that."""
    params = {}
    for name, callback in named_callbacks(callbacks):
        params[f"callbacks__{name}"] = callback
        if hasattr(callback, "get_params"):
            inner = callback.get_params(deep=True)
            params.update({f"callbacks__{name}__{key}": value for key, value in inner.items()})
    return params


def with_params_set(callbacks: Any, params: Mapping[str, Any], owner: Any) -> Any:
    """Return the callbacks with some replaced, or set in place as estimators inside of others are.

    Parameters
    ----------
    callbacks : sequence, or None
    params : dict
        By ``name``, a callback or None; by ``name__parameter``, a value.
    owner : object
        For errors.

    Raises
    ------
    ValueError
        For a name that no callback has.
    """
    named = dict(named_callbacks(callbacks))
    # A callback first, then what is to be set of it.
    for key, value in sorted(params.items(), key=lambda item: "__" in item[0]):
        name, _, rest = key.partition("__")
        if name not in named:
            raise ValueError(
                f"Invalid parameter 'callbacks__{name}' for estimator {owner}. Valid parameters are: "
                f"{[f'callbacks__{known}' for known in named]!r}."
            )
        if rest:
            named[name].set_params(**{rest: value})
        else:
            named[name] = value
    return list(named.items())
