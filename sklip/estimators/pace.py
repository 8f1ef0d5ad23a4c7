"""How fast and how long a network is trained, by the size of the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from sklip.networks import SMALL_TABLE_ROWS

__all__ = ["Pace"]

# Steps that train a small data set well, and the rate for them. Without sampling noise Muon can turn
# further in a step, and of images, whose convolutions take longer, more steps pay: 250 of the digits as
# images, accuracy and mean radius of others: 0.946 and 0.51 after 60 steps, 0.957 and 0.56 after 150.
_ENOUGH = {
    "table in one batch": (48, 0.1),
    "table": (240, 0.05),
    "images in one batch": (150, 0.06),
    "images": (400, 0.03),
}
_ENOUGH_OF_ADAM = (1000, 2e-3)
_FEWEST_EPOCHS = 10
_ROWS_IN_A_BATCH = 256


@dataclass(frozen=True)
class Pace:
    """Batches, epochs and rate of a training."""

    solver: str
    batch_size: int
    max_epochs: int
    learning_rate: float

    def hurried(self) -> Self:
        """Return a third of the epochs at twice the rate: a network good enough to compare."""
        return replace(self, max_epochs=-(-self.max_epochs // 3), learning_rate=2 * self.learning_rate)

    @classmethod
    def resolve(
        cls,
        n_samples: int | None,
        *,
        solver: str,
        batch_size: int | str,
        max_epochs: int | str,
        learning_rate: float | str,
        is_table: bool,
    ) -> Self:
        """Replace every "auto" by what it stands for.

        `n_samples` is the number of rows to train on, None if they are a part of more.
        """
        if isinstance(batch_size, str):
            whole = n_samples is not None and is_table and n_samples <= SMALL_TABLE_ROWS
            batch_size = n_samples if whole and n_samples else _ROWS_IN_A_BATCH
        one_batch = n_samples is not None and n_samples <= batch_size
        kind = ("table" if is_table else "images") + (" in one batch" if one_batch else "")
        # Muon's rate is an angle and suits every width; Adam's is the change of an entry.
        n_steps, rate = _ENOUGH[kind] if solver == "muon" else _ENOUGH_OF_ADAM
        if isinstance(max_epochs, str):
            n_batches = -(-(n_samples or 1) // batch_size)
            max_epochs = max(_FEWEST_EPOCHS, -(-n_steps // n_batches))
        if isinstance(learning_rate, str):
            learning_rate = rate
        return cls(solver, int(batch_size), int(max_epochs), float(learning_rate))
