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
    fixed_columns, scale, categorical_edits, categorical_columns
        As for :func:`sklip.certificates`.

    Raises
    ------
    ValueError
        For columns that may be edited, if it is not said how many at once.
    """

    fixed_columns: Iterable[str | int] = ()
    scale: Any = None
    categorical_edits: int | None = None
    categorical_columns: Iterable[str | int] | None = None

    def __post_init__(self) -> None:
        for name in ("fixed_columns", "categorical_columns"):
            columns = getattr(self, name)
            # Iterators are read more than once; what is no iterable is refused where it is read.
            if isinstance(columns, Iterable) and not isinstance(columns, str | bytes):
                object.__setattr__(self, name, tuple(columns))
        if self.categorical_columns is not None and self.categorical_edits is None:
            raise ValueError(
                "categorical_columns needs categorical_edits, how many may change at once."
            )

    @property
    def tell_columns_apart(self) -> bool:
        """Whether columns are not all alike."""
        chosen = self.scale is not None or self.categorical_edits is not None
        return chosen or self.fixed_columns != ()
