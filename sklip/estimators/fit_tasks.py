r"""scikit-learn's own callbacks, which it has from 1.9 on: each epoch of a fit is a task of theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing: there are no callbacks to support."""

    def with_callbacks(method: Any) -> Any:
        """Return the method as it is."""
        return method


__all__ = ["CallbackSupportMixin", "FitTasks", "is_followed", "with_callbacks"]


def is_followed(estimator: Any) -> bool:
    """Whether scikit-learn's callbacks have been set on an estimator."""
    # There is no public way to ask.
    return hasattr(estimator, "_skl_callbacks")


class FitTasks:
    """A fit and its epochs as tasks; nothing happens where scikit-learn has no callbacks.

    Parameters
    ----------
    estimator : estimator
        It is told to the callbacks.
    X, y, sample_weight : object
        As the user gave them to ``fit``.
    """

    def __init__(self, estimator: Any, X: Any, y: Any, sample_weight: Any) -> None:
        self._estimator = estimator
        weights = None if sample_weight is None else {"sample_weight": sample_weight}
        self._data = {"X": X, "y": y, "metadata": weights}
        self._fit: Any = None
        self._epoch: Any = None

    def begin(self, max_epochs: int) -> None:
        """Say that the fit begins, which takes at most so many epochs."""
        # A method for developers of estimators, in spite of its name.
        init = getattr(self._estimator, "_init_callback_context", None)
        if init is not None:
            self._fit = init(max_subtasks=max_epochs)
            self._fit.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def epoch_begins(self) -> None:
        """Say that the next epoch begins."""
        if self._fit is not None:
            self._epoch = self._fit.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def epoch_ends(self, fitted: Callable[[], dict[str, Any]]) -> bool:
        """Say that an epoch ends, and return whether a callback wants training to end.

        `fitted` returns the attributes of the fitted estimator; only callbacks that ask for it have it
        called.
        """
        if self._epoch is None:
            return False
        return bool(
            self._epoch.call_on_fit_task_end(
                estimator=self._estimator, reconstruction_attributes=fitted, **self._data
            )
        )

    def end(self) -> None:
        """Say that the fit ends, with the estimator fitted."""
        if self._fit is not None:
            self._fit.call_on_fit_task_end(
                estimator=self._estimator, reconstruction_attributes={}, **self._data
            )
