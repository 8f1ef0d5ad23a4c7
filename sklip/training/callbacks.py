"""skorch callbacks of every fit, and the check of those that a user gives."""

from __future__ import annotations

from typing import Any

from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping
from tqdm import tqdm

__all__ = ["EpochReport", "StopEarly", "check_callbacks"]


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
        tqdm.write(f"{line}  {row['seconds']:.1f} s")


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


def check_callbacks(callbacks: Any) -> list[Any]:
    """Return `callbacks` as a list of skorch callbacks or (name, callback) pairs."""
    checked = list(callbacks or [])
    for entry in checked:
        callback = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
        if not isinstance(callback, Callback):
            raise TypeError(
                "callbacks must be skorch callbacks or (name, callback) pairs, got "
                f"{type(callback).__name__}."
            )
    return checked
