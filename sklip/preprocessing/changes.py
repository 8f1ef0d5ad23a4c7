r"""What may change in a row, and in which units that is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Changes"]


@dataclass(frozen=True)
class Changes:
    """What a caller says of the rows x' that a radius is about.

    Parameters
    ----------
    fixed_columns : iterable of str or int, default=()
    scale : array-like, Series, dict or "std", default=None
        All as for :func:`sklip.certificates`.
    """

    fixed_columns: Iterable[str | int] = ()
    scale: Any = None

    def __post_init__(self) -> None:
        # Iterators are read more than once; what is no iterable is refused where it is read.
        columns = self.fixed_columns
        if isinstance(columns, Iterable) and not isinstance(columns, str | bytes):
            object.__setattr__(self, "fixed_columns", tuple(columns))

    @property
    def tell_columns_apart(self) -> bool:
        """Whether columns are not all alike."""
        return self.scale is not None or self.fixed_columns != ()
