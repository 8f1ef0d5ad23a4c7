r"""Random numbers for one fit: from generators of its own, in the thread that fits.

torch's default generators belong to the whole process. To seed them and put them back, as
``torch.random.fork_rng`` does, makes two fits in two threads draw from each other's numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["seeded"]

# What draws, and takes a generator: torch's functions, tensors' methods, initialisers of layers.
_DRAWING: frozenset[Callable[..., Any]] = frozenset(
    [
        *(torch.bernoulli, torch.binomial, torch.multinomial, torch.normal, torch.poisson),
        *(torch.rand, torch.randint, torch.randn, torch.randperm),
        *(Tensor.bernoulli, Tensor.bernoulli_, Tensor.cauchy_, Tensor.exponential_, Tensor.geometric_),
        *(Tensor.log_normal_, Tensor.multinomial, Tensor.normal_, Tensor.random_, Tensor.uniform_),
        *(nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_),
    ]
)
_LIKE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.rand_like: torch.rand,
    torch.randint_like: torch.randint,
    torch.randn_like: torch.randn,
}
_DROPOUTS = (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d)


class seeded(TorchFunctionMode):  # noqa: N801
    """Inside, this thread's draws come from generators of one seed; no other generator moves.

    ``with seeded(seed):`` covers what torch and layers draw by functions that take a generator, the
    ``*_like`` functions and dropout by layers: all that a network with proven rules can draw. The
    numbers are those that ``torch.manual_seed(seed)`` would give. Other functions, such as
    ``torch.nn.functional.gumbel_softmax``, still draw from torch's generators.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def state(self) -> dict[str, Tensor]:
        """Return where the generators stand, by the kind of their device."""
        return {device.type: each.get_state() for device, each in self._generators.items()}

    def restore(self, state: Mapping[str, Tensor], device: Any) -> None:
        """Set the generators, of the CPU and of `device`, to where those of a :meth:`state` stood."""
        for kind, value in state.items():
            self._generator("cpu" if kind == "cpu" else device).set_state(value)

    def _generator(self, device: Any) -> torch.Generator:
        device = torch.device("cpu" if device is None else device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Hand a generator to what draws."""
        kwargs = dict(kwargs or {})
        first = args[0] if args else kwargs.get("input")
        first = first if isinstance(first, Tensor) else None
        device = kwargs.get("device") if first is None else first.device
        if func in _DRAWING and kwargs.get("generator") is None:
            return func(*args, **{**kwargs, "generator": self._generator(device)})
        if func in _LIKE and first is not None:
            options = {"dtype": first.dtype, "device": first.device, **kwargs}
            for name in ("input", "memory_format"):
                options.pop(name, None)
            generator = options.pop("generator", None) or self._generator(options["device"])
            return _LIKE[func](*args[1:], size=first.shape, generator=generator, **options)
        if func in _DROPOUTS:
            return self._dropout(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(
        self, func: Any, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return x
        # All but the first zero whole channels.
        shape = x.shape if func is functional.dropout else (*x.shape[:2], *(1 for _ in x.shape[2:]))
        kept = torch.empty(shape, dtype=x.dtype, device=x.device)
        kept.bernoulli_(1 - p, generator=self._generator(x.device))
        return x * (kept / (1 - p) if p < 1 else kept)
