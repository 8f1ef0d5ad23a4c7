"""skorch callbacks of every fit, and the check of those that a user gives."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from skorch import NeuralNet
from skorch.callbacks import (
    BatchScoring,
    Callback,
    EarlyStopping,
    EpochScoring,
    GradientNormClipping,
    LRScheduler,
    PassthroughScoring,
    PrintLog,
)
from skorch.callbacks.scoring import ScoringBase
from tqdm import tqdm

__all__ = [
    *("Bar", "EpochReport", "StopEarly", "check_callbacks", "check_heard", "check_resumable"),
    *("restore_callback", "state_of_callback"),
]


class Bar(tqdm):  # type: ignore[misc]
    """Progress bar that leaves the process as it was.

    tqdm's own makes a lock for processes, which settles how multiprocessing starts them, and a thread.
    """

    _lock = threading.RLock()
    monitor_interval = 0


class EpochReport(Callback):  # type: ignore[misc]
    """Prints a line an epoch, and shows a bar over the batches of epochs that take long."""

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Print loss, accuracy and normalized margin of the epoch that ended."""
        row = net.history[-1]
        last = net.planned_epochs
        line = f"epoch {row['epoch']:>{len(str(last))}}/{last}"
        for prefix, title in (("train", ""), ("valid", "validation ")):
            if f"{prefix}_accuracy" in row:
                line += (
                    f"  {title}loss {row[f'{prefix}_loss']:.4f}"
                    f"  {title}accuracy {row[f'{prefix}_accuracy']:.4f}"
                    f"  {title}normalized margin {row[f'{prefix}_normalized_margin']:.4f}"
                )
        Bar.write(f"{line}  {row['seconds']:.1f} s")


class StopEarly(EarlyStopping):  # type: ignore[misc]
    """Ends training when the normalized margin of held-out rows stalls; restores the best epoch.

    That is their mean radius if the network's constant is 1, a wrong row counting 0. The loss grows
    with certainty in rows that are wrong while margins still improve: on the digits (tau = 100, four
    splits) it stopped after 24 epochs at an accuracy of 0.950 and a mean radius of 0.23, where the
    margin gives 0.952 and 0.32, and at tau = 10 0.979 and 0.48 instead of 0.986 and 0.56.
    """

    def __init__(self, patience: int) -> None:
        super().__init__(
            monitor="valid_normalized_margin",
            lower_is_better=False,
            patience=patience,
            threshold=1e-4,  # of the margin, which is in the units of X
            threshold_mode="rel",
            load_best=True,
        )

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Judge the epoch, unless a later partial_fit trains without validation data."""
        if self.monitor in net.history[-1]:
            super().on_epoch_end(net, **kwargs)


def check_callbacks(callbacks: Sequence[tuple[str, Any]]) -> list[tuple[str, Callback]]:
    """Return (name, callback) pairs without those that are None; a TypeError for anything else."""
    checked = [(name, callback) for name, callback in callbacks if callback is not None]
    for _, callback in checked:
        if not isinstance(callback, Callback):
            raise TypeError(
                "callbacks must be skorch callbacks or (name, callback) pairs, got "
                f"{type(callback).__name__}."
            )
    return checked


def check_heard(callbacks: Sequence[tuple[str, Callback]], *, one_cycle: bool, held_out: bool) -> None:
    """Refuse callbacks that would do nothing, and not say so.

    Parameters
    ----------
    callbacks : sequence of (name, callback)
    one_cycle : bool
        Whether the estimator sets the learning rate at each step.
    held_out : bool
        Whether rows are held out in training.

    Raises
    ------
    ValueError
        For a callback that has nothing to score, or no say.
    """
    for name, callback in callbacks:
        if isinstance(callback, LRScheduler) and one_cycle:
            raise ValueError(
                f"{name} in callbacks has no say while learning_rate_schedule='one_cycle' sets the "
                "rate at each step; set learning_rate_schedule='constant'."
            )
        scores = isinstance(callback, ScoringBase | PassthroughScoring) and not callback.on_train
        monitor = str(getattr(callback, "monitor", None))
        reads = monitor.startswith("valid_")
        if (scores or reads) and not held_out:
            remedy = "on_train=True" if scores else f"monitor={monitor.replace('valid', 'train', 1)!r}"
            raise ValueError(
                f"{name} in callbacks needs rows that are held out; set early_stopping=True, which "
                f"holds out validation_fraction of them, or {remedy}."
            )


_OF_STOPPING = ("misses_", "dynamic_threshold_", "best_epoch_", "best_model_weights_")
# What callbacks of these very types remember from one epoch to the next. No other is taken for one that
# remembers nothing.
_REMEMBERED: dict[type, tuple[str, ...]] = {
    BatchScoring: ("best_score_",),
    EarlyStopping: _OF_STOPPING,
    EpochReport: (),
    EpochScoring: ("best_score_",),
    GradientNormClipping: (),
    LRScheduler: ("batch_idx_", "lr_scheduler_"),
    PassthroughScoring: ("best_score_",),
    PrintLog: (),
    StopEarly: _OF_STOPPING,
}


def check_resumable(callbacks: Sequence[tuple[str, Callback]]) -> None:
    """Raise a TypeError for a callback of which it isn't known what it remembers."""
    for name, callback in callbacks:
        own = hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict")
        if type(callback) not in _REMEMBERED and not own:
            raise TypeError(
                f"{name} in callbacks can't be stored by checkpoint_dir, since it isn't known what a "
                f"{type(callback).__name__} remembers from one epoch to the next; give it state_dict() "
                "and load_state_dict(state), of tensors, numbers and words ({} if nothing), or set "
                "checkpoint_dir=None."
            )


def state_of_callback(callback: Callback) -> dict[str, Any]:
    """Return what a callback remembers, for :func:`restore_callback`."""
    names = _REMEMBERED.get(type(callback))
    if names is None:
        return dict(callback.state_dict())
    values = {name: getattr(callback, name) for name in names}
    return {
        name: value.state_dict() if hasattr(value, "state_dict") else value
        for name, value in values.items()
    }


def restore_callback(callback: Callback, state: Mapping[str, Any]) -> None:
    """Have a callback, to which training has begun, remember what another one did."""
    if type(callback) not in _REMEMBERED:
        callback.load_state_dict(dict(state))
        return
    for name, value in state.items():
        inner = getattr(callback, name)
        if hasattr(inner, "load_state_dict"):
            inner.load_state_dict(value)
        else:
            setattr(callback, name, value)
