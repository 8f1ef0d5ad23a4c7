"""How fast and how long a network is trained, by the size of the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from sklip.networks import SMALL_TABLE_ROWS

__all__ = ["Pace"]

# Steps that train a small data set well, and the rate for them, by solver and by whether all rows are
# one batch: without sampling noise Muon can turn twice as far in a step.
_ENOUGH_STEPS = {
    ("muon", False): 400,
    ("muon", True): 60,
    ("adam", False): 1000,
    ("adam", True): 1000,
}
# Convolutions take longer. 250 of the digits as images, accuracy and mean radius of others: 0.946 and
# 0.51 after 60 steps, 0.957 and 0.56 after these.
_ENOUGH_STEPS_ON_IMAGES = 150
_RATES = {("muon", False): 0.03, ("muon", True): 0.06, ("adam", False): 2e-3, ("adam", True): 2e-3}
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
        """Return a third of the epochs at thrice the rate: a network good enough to compare."""
        return replace(self, max_epochs=-(-self.max_epochs // 3), learning_rate=3 * self.learning_rate)

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
        if isinstance(max_epochs, str):
            n_batches, n_steps = -(-(n_samples or 1) // batch_size), _ENOUGH_STEPS[solver, one_batch]
            if not is_table:
                n_steps = max(n_steps, _ENOUGH_STEPS_ON_IMAGES)
            max_epochs = max(_FEWEST_EPOCHS, -(-n_steps // n_batches))
        if isinstance(learning_rate, str):
            # Muon's is an angle and suits every width; Adam's is the change of an entry.
            learning_rate = _RATES[solver, one_batch]
        return cls(solver, int(batch_size), int(max_epochs), float(learning_rate))
