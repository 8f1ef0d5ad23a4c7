"""What a net has reached, as a value, and a net that goes on from there."""

from __future__ import annotations

from typing import Any

from skorch import NeuralNetClassifier

from sklip.training.callbacks import Bar, restore_callback, state_of_callback
from sklip.training.checkpoints import restore_optimizer_
from sklip.training.one_cycle import OneCycle

__all__ = ["ResumableNet"]


class ResumableNet(NeuralNetClassifier):  # type: ignore[misc]
    """The part of :class:`sklip.training.net.LipschitzNet` that takes up what an earlier net reached.

    See Note [Bit for bit] of :mod:`sklip.training.checkpoints`.
    """

    def epoch_rows(self) -> list[dict[str, Any]]:
        """Return what was recorded of each epoch."""
        return [
            {name: value for name, value in row.items() if name != "batches"} for row in self.history
        ]

    def restore_history(self, rows: list[dict[str, Any]]) -> None:
        """Take up the history of a stored net."""
        for row in rows:
            self.history.new_epoch()
            for name, value in row.items():
                self.history.record(name, value)

    def _reached(self, *, ended: bool) -> dict[str, Any]:
        """Return all that the rest of a training depends on, at the end of an epoch."""
        return {
            "ended": ended,
            "module": self.module_.state_dict(),
            "criterion": self.criterion_.state_dict(),
            "optimizer": self.optimizer_.state_dict(),
            "order": self._generator.get_state(),
            "draws": self.draws.state(),
            # What remembers nothing, as the report does, may be there in one run and not in another.
            "callbacks": {
                name: state for name, each in self.callbacks_ if (state := state_of_callback(each))
            },
            "history": self.epoch_rows(),
        }

    def _epochs_taken_up(self, epochs: int, n_samples: int) -> int:
        """Take up what the checkpoint holds of this training; return how many of `epochs` that are."""
        kept = self._checkpoint.kept.pop("training", None)
        if kept is None:
            return 0
        try:
            self.module_.load_state_dict(kept["module"])
        except RuntimeError as error:
            raise ValueError(
                f"the checkpoint {str(self._checkpoint.path)!r} is of another network; delete it to "
                "start this fit anew."
            ) from error
        self.criterion_.load_state_dict(kept["criterion"])
        self._generator.set_state(kept["order"])
        self.draws.restore(kept["draws"], self.device)
        callbacks = dict(self.callbacks_)
        for name, state in kept["callbacks"].items():
            restore_callback(callbacks[name], state)
        self.restore_history(kept["history"])
        n_taken = len(self.history)
        if isinstance(self._step_schedule, OneCycle):
            self._step_schedule.go_to(n_taken * -(-n_samples // self.batch_size))
        restore_optimizer_(self.optimizer_, kept["optimizer"])
        if self.report:
            Bar.write(f"epoch {n_taken}/{self.planned_epochs}  from {self._checkpoint.path}")
        return epochs if kept["ended"] else n_taken
