r"""Displays after scikit-learn's: compute, store, draw. The only file that imports matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklip.certification import predict_with_radii
from sklip.metrics import certified_accuracy_score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CertifiedAccuracyDisplay", "TradeoffDisplay"]


def _axes(ax: Axes | None) -> Axes:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Displays need matplotlib; install it with the extra: scikit-lipschitz[plot]."
        ) from error
    return plt.subplots()[1] if ax is None else ax


class CertifiedAccuracyDisplay:
    """Certified accuracy against the perturbation budget.

    The curve starts at the accuracy of the samples with a positive radius and falls: at eps it is the
    share of samples predicted right for every perturbation of L2 length up to eps.

    Parameters
    ----------
    eps : ndarray of shape (n_points,)
        Budgets: L2, in the units of X, or of `scale`.
    certified_accuracy : ndarray of shape (n_points,)
        Certified accuracy at each.
    name : str, default=None
        Label of the curve.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    line_ : matplotlib Line2D

    Examples
    --------
    >>> from sklip.plots import CertifiedAccuracyDisplay
    >>> display = CertifiedAccuracyDisplay.from_predictions([0, 1], [0, 1], [0.5, 1.0])
    >>> float(display.certified_accuracy[0])
    1.0
    """

    def __init__(
        self,
        *,
        eps: NDArray[np.float64],
        certified_accuracy: NDArray[np.float64],
        name: str | None = None,
    ) -> None:
        self.eps = eps
        self.certified_accuracy = certified_accuracy
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike,
        *,
        fixed_columns: Iterable[str | int] = (),
        scale: Any = None,
        categorical_edits: int | None = None,
        categorical_columns: Iterable[str | int] | None = None,
        sample_weight: ArrayLike | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **plot_kwargs: Any,
    ) -> Self:
        """Compute the curve of a fitted estimator and draw it.

        Parameters
        ----------
        estimator : fitted estimator
            Anything that :func:`sklip.certificates` takes.
        X : array-like
            Samples.
        y : array-like of shape (n_samples,)
            True labels.
        fixed_columns, scale, categorical_edits, categorical_columns
            What may change, and in which units: as for :func:`sklip.certificates`.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.
        name : str, default=None
            Label of the curve; the class name of the estimator if None.
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None.
        **plot_kwargs : dict
            Passed to matplotlib's ``plot``.

        Returns
        -------
        display : CertifiedAccuracyDisplay
        """
        labels, radii = predict_with_radii(
            estimator,
            X,
            fixed_columns=fixed_columns,
            scale=scale,
            categorical_edits=categorical_edits,
            categorical_columns=categorical_columns,
        )
        name = type(estimator).__name__ if name is None else name
        display = cls.from_predictions(y, labels, radii, sample_weight=sample_weight, name=name)
        return display.plot(ax=ax, **plot_kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        radii: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        name: str | None = None,
    ) -> Self:
        """Compute the curve from predictions; call :meth:`plot` to draw it.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            True labels.
        y_pred : array-like of shape (n_samples,)
            Predicted labels.
        radii : array-like of shape (n_samples,)
            Certified radii.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.
        name : str, default=None
            Label of the curve.

        Returns
        -------
        display : CertifiedAccuracyDisplay
        """
        values = np.asarray(radii, dtype=np.float64)
        finite = values[np.isfinite(values)]
        eps = np.linspace(0, 1.02 * finite.max(initial=0.0) or 1.0, 200)
        curve = [
            certified_accuracy_score(y_true, y_pred, values, eps=e, sample_weight=sample_weight)
            for e in eps
        ]
        return cls(eps=eps, certified_accuracy=np.array(curve), name=name)

    def plot(self, ax: Axes | None = None, *, name: str | None = None, **plot_kwargs: Any) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None.
        name : str, default=None
            Label of the curve; the one given before if None.
        **plot_kwargs : dict
            Passed to matplotlib's ``plot``.

        Returns
        -------
        display : CertifiedAccuracyDisplay
        """
        self.ax_ = _axes(ax)
        self.figure_ = self.ax_.figure
        name = self.name if name is None else name
        if name is not None:
            plot_kwargs = {"label": name, **plot_kwargs}
        (self.line_,) = self.ax_.plot(self.eps, self.certified_accuracy, **plot_kwargs)
        self.ax_.set(
            xlabel="eps (L2, in the units of the radii)",
            ylabel="Certified accuracy",
            ylim=(0, 1.02),
            xlim=(0, None),
        )
        if "label" in plot_kwargs:
            self.ax_.legend()
        return self


class TradeoffDisplay:
    """Accuracy and a robustness score against a parameter that trades one for the other.

    Parameters
    ----------
    param_name : str
        Name of the parameter.
    param_values : ndarray of shape (n_candidates,)
        Its values, ascending.
    accuracy : ndarray of shape (n_candidates,)
        Mean accuracy at each.
    robustness : ndarray of shape (n_candidates,)
        Mean robustness score at each.
    robustness_name : str
        What the robustness score is called in the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    lines_ : list of matplotlib Line2D

    Examples
    --------
    >>> import numpy as np
    >>> from sklip.plots import TradeoffDisplay
    >>> results = {
    ...     "param_tau": np.array([10.0, 1.0]),
    ...     "mean_test_accuracy": np.array([0.98, 0.91]),
    ...     "mean_test_certified": np.array([0.2, 0.6]),
    ... }
    >>> TradeoffDisplay.from_cv_results(results, "tau").param_values
    array([ 1., 10.])
    """

    def __init__(
        self,
        *,
        param_name: str,
        param_values: NDArray[np.float64],
        accuracy: NDArray[np.float64],
        robustness: NDArray[np.float64],
        robustness_name: str,
    ) -> None:
        self.param_name = param_name
        self.param_values = param_values
        self.accuracy = accuracy
        self.robustness = robustness
        self.robustness_name = robustness_name

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[str, Any],
        param_name: str,
        *,
        accuracy: str = "accuracy",
        robustness: str = "certified",
    ) -> Self:
        """Take the means from a search's ``cv_results_``; call :meth:`plot` to draw them.

        Parameters
        ----------
        cv_results : dict
            ``cv_results_`` of a search over one numeric parameter.
        param_name : str
            Name of the parameter as in the grid, for example "lipschitzclassifier__tau".
        accuracy : str, default="accuracy"
            Name of the accuracy score in the search's `scoring`.
        robustness : str, default="certified"
            Name of the robustness score in the search's `scoring`.

        Returns
        -------
        display : TradeoffDisplay
        """
        names = (f"param_{param_name}", f"mean_test_{accuracy}", f"mean_test_{robustness}")
        missing = [name for name in names if name not in cv_results]
        if missing:
            raise ValueError(f"cv_results must contain {list(names)}, {missing} missing.")
        values, *scores = (np.asarray(cv_results[name], dtype=np.float64) for name in names)
        order = np.argsort(values)
        return cls(
            param_name=param_name.rpartition("__")[2],
            param_values=values[order],
            accuracy=scores[0][order],
            robustness=scores[1][order],
            robustness_name=robustness,
        )

    def plot(self, ax: Axes | None = None, **plot_kwargs: Any) -> Self:
        """Draw both scores against the parameter, on a logarithmic axis.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None.
        **plot_kwargs : dict
            Passed to matplotlib's ``plot`` for both lines.

        Returns
        -------
        display : TradeoffDisplay
        """
        self.ax_ = _axes(ax)
        self.figure_ = self.ax_.figure
        style: dict[str, Any] = {"marker": "o", **plot_kwargs}
        style.pop("label", None)  # the two lines have names of their own
        self.lines_ = [
            *self.ax_.plot(self.param_values, self.accuracy, label="accuracy", **style),
            *self.ax_.plot(self.param_values, self.robustness, label=self.robustness_name, **style),
        ]
        # Accuracies end at 1; a mean radius may be any length.
        top = max(1.02, 1.02 * float(np.max(self.robustness)))
        self.ax_.set(xscale="log", xlabel=self.param_name, ylabel="score", ylim=(0, top))
        # A tick at each candidate: those of a short logarithmic axis run into each other.
        self.ax_.set_xticks(self.param_values, [f"{value:g}" for value in self.param_values])
        self.ax_.set_xticks([], minor=True)
        self.ax_.legend()
        return self
