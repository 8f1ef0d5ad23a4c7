r"""What losses share: parameters in scikit-learn's manner, so that a search can set them."""

from __future__ import annotations

import inspect
from typing import Any, Self

from torch import nn

__all__ = ["Loss"]


class Loss(nn.Module):
    """Loss with parameters that can be read, set and searched over, as ``loss__tau``, say.

    The parameters are those of the subclass' constructor, which stores each under its own name.

    Examples
    --------
    >>> from sklip.losses import TauCrossEntropyLoss
    >>> loss = TauCrossEntropyLoss(tau=2.0)
    >>> loss.set_params(offset=0.5)
    TauCrossEntropyLoss(tau=2.0, offset=0.5)
    """

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        if cls.__init__ is nn.Module.__init__:
            return {}
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters.

        Parameters
        ----------
        deep : bool, default=True
            Whether to add those of a loss inside of this one, as ``loss__tau``.

        Returns
        -------
        params : dict
        """
        params = {name: getattr(self, name) for name in self._defaults()}
        if deep:
            for name, value in list(params.items()):
                if isinstance(value, Loss):
                    params.update({f"{name}__{key}": each for key, each in value.get_params().items()})
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters; the loss is then as if made with them.

        Parameters
        ----------
        **params : dict

        Returns
        -------
        self : Loss

        Raises
        ------
        ValueError
            For a parameter that there is none of, or a value out of range.
        """
        own, inner = self.get_params(deep=False), dict[str, dict[str, Any]]()
        for key, value in params.items():
            name, _, rest = key.partition("__")
            if name not in own:
                raise ValueError(
                    f"Invalid parameter {name!r} for loss {self}. Valid parameters are: {list(own)!r}."
                )
            if rest:
                inner.setdefault(name, {})[rest] = value
            else:
                own[name] = value
        for name, some in inner.items():
            own[name].set_params(**some)
        if own:
            # Whatever follows from a parameter is made anew; a value out of range leaves all as it was.
            type(self)(**own)
            self.__init__(**own)  # type: ignore[misc]
        return self

    def __repr__(self) -> str:
        defaults = self._defaults()
        given = ", ".join(
            f"{name}={value!r}"
            for name, value in self.get_params(deep=False).items()
            if defaults[name] is inspect.Parameter.empty or value != defaults[name]
        )
        return f"{type(self).__name__}({given})"
