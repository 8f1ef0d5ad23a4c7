r"""Accuracy and a robustness score against the parameter that trades one for the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from sklip.plots.axes import axes_for
from sklip.plots.candidates import on_the_front, scores_of, searched, varied_parameters
from sklip.plots.words import score_words, told_apart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["TradeoffDisplay"]


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
    accuracy_name : str, default="accuracy"
        What the accuracy is called in the legend.
    accuracy_std, robustness_std : ndarray of shape (n_candidates,), default=None
        Standard deviations over folds: error bars.
    chosen : int, default=None
        Position in `param_values` of the candidate that is marked.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    lines_ : list of matplotlib Line2D
        Accuracy and robustness; points that another candidate beats in both scores are hollow.
    chosen_ : matplotlib Line2D, or None

    See Also
    --------
    sklip.plots.ParetoDisplay : The plane of both scores, for searches over several parameters as well.

    Examples
    --------
    >>> import numpy as np
    >>> from sklip import TradeoffDisplay
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
        accuracy_name: str = "accuracy",
        accuracy_std: NDArray[np.float64] | None = None,
        robustness_std: NDArray[np.float64] | None = None,
        chosen: int | None = None,
    ) -> None:
        self.param_name = param_name
        self.param_values = param_values
        self.accuracy = accuracy
        self.robustness = robustness
        self.robustness_name = robustness_name
        self.accuracy_name = accuracy_name
        self.accuracy_std = accuracy_std
        self.robustness_std = robustness_std
        self.chosen = chosen

    @classmethod
    def from_estimator(
        cls,
        search: Any,
        param_name: str | None = None,
        *,
        accuracy: str = "accuracy",
        robustness: str = "certified",
        ax: Axes | None = None,
        **plot_kwargs: Any,
    ) -> Self:
        """Draw a fitted search over one parameter, and mark the candidate that it chose.

        Parameters
        ----------
        search : fitted search
            GridSearchCV or the like, with both scores in its `scoring`.
        param_name : str, default=None
            Name of the parameter as in the grid; the one with several values if None.
        accuracy, robustness, ax, **plot_kwargs
            As for :meth:`from_cv_results`.

        Returns
        -------
        display : TradeoffDisplay
        """
        results, scoring, chosen = searched(search)
        varied = varied_parameters(results)
        if param_name is None:
            if len(varied) != 1:
                raise ValueError(_one_parameter(varied))
            (param_name,) = varied
        return cls.from_cv_results(
            results,
            param_name,
            accuracy=accuracy,
            robustness=robustness,
            scoring=scoring,
            chosen=chosen,
            ax=ax,
            **plot_kwargs,
        )

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[str, Any],
        param_name: str,
        *,
        accuracy: str = "accuracy",
        robustness: str = "certified",
        scoring: Mapping[str, Any] | None = None,
        chosen: int | None = None,
        ax: Axes | None = None,
        **plot_kwargs: Any,
    ) -> Self:
        """Draw the ``cv_results_`` of a search over one parameter.

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
        scoring : dict of str to scorer, default=None
            The search's `scoring`, by which scores are named with their eps.
        chosen : int, default=None
            Which candidate is marked: ``search.best_index_``, say.
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None.
        **plot_kwargs : dict
            Passed to matplotlib's ``plot`` for both lines.

        Returns
        -------
        display : TradeoffDisplay

        Raises
        ------
        ValueError
            For columns that are missing, values that are no numbers, and searches over several
            parameters.
        """
        column = f"param_{param_name}"
        means, deviations = scores_of(cv_results, (accuracy, robustness), (column,))
        others = [name for name in varied_parameters(cv_results) if name != param_name]
        if others:
            raise ValueError(_one_parameter([param_name, *others]))
        values = _numbers(cv_results[column], param_name)
        order = np.argsort(values, kind="stable")
        sorted_std = [None if each is None else each[order] for each in deviations]
        display = cls(
            param_name=param_name.rpartition("__")[2],
            param_values=values[order],
            accuracy=means[0][order],
            robustness=means[1][order],
            robustness_name=score_words(robustness, scoring),
            accuracy_name=score_words(accuracy, scoring),
            accuracy_std=sorted_std[0],
            robustness_std=sorted_std[1],
            chosen=None if chosen is None else int(np.flatnonzero(order == chosen)[0]),
        )
        return display.plot(ax=ax, **plot_kwargs)

    def plot(self, ax: Axes | None = None, **plot_kwargs: Any) -> Self:
        """Draw both scores against the parameter, on a logarithmic axis (linear around 0).

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
        self.ax_ = axes_for(ax)
        self.figure_ = self.ax_.figure
        style: dict[str, Any] = {"marker": "o", **plot_kwargs}
        style.pop("label", None)  # the two lines have names of their own
        front = on_the_front(self.accuracy, self.robustness)
        self.lines_, tops = [], [1.02]
        for scores, deviations, label in (
            (self.accuracy, self.accuracy_std, self.accuracy_name),
            (self.robustness, self.robustness_std, self.robustness_name),
        ):
            (line,) = self.ax_.plot(self.param_values, scores, label=label, **style)
            self.lines_.append(line)
            hollow = self.ax_.scatter(
                self.param_values[~front],
                scores[~front],
                s=line.get_markersize() ** 2,
                facecolor=self.ax_.get_facecolor(),
                edgecolor=line.get_color(),
                zorder=line.get_zorder() + 0.1,
            )
            if deviations is not None:
                # Below the points, and no line of their own in the legend.
                self.ax_.vlines(
                    self.param_values,
                    np.maximum(scores - deviations, 0),
                    scores + deviations,
                    color=line.get_color(),
                    alpha=0.5,
                )
            spread = 0.0 if deviations is None else deviations
            tops.append(1.02 * float(np.nanmax(scores + spread, initial=0.0)))
        if not front.all():
            hollow.set_label("hollow: beaten by another in both")
        self._scale_axis()
        mean = "score" if self.accuracy_std is None else "score (mean over folds ± 1 std)"
        # Accuracies end at 1; a mean radius may be any length.
        self.ax_.set(xlabel=self.param_name, ylabel=mean, ylim=(0, max(tops)))
        self.chosen_ = None
        if self.chosen is not None:
            value = float(self.param_values[self.chosen])
            word = told_apart(self.param_values.tolist())[self.chosen]
            label = f"chosen: {self.param_name} = {word}"
            self.chosen_ = self.ax_.axvline(value, color="0.4", linestyle=":", zorder=1, label=label)
        self.ax_.legend()
        return self

    def _scale_axis(self) -> None:
        """Show each candidate at a tick: those of a short logarithmic axis run into each other."""
        sizes = np.abs(self.param_values[self.param_values != 0])
        if (self.param_values > 0).all():
            self.ax_.set_xscale("log")
        elif len(sizes):
            self.ax_.set_xscale("symlog", linthresh=float(sizes.min()))
            self.ax_.margins(x=0.08)
        ticks = np.unique(self.param_values)
        self.ax_.set_xticks(ticks, told_apart(ticks.tolist()))
        self.ax_.set_xticks([], minor=True)


def _one_parameter(varied: list[str]) -> str:
    return (
        f"cv_results must be of a search over one parameter, got {varied}; draw both "
        "scores with ParetoDisplay, or search over one of them."
    )


def _numbers(values: Any, param_name: str) -> NDArray[np.float64]:
    try:
        if np.ma.is_masked(values):
            raise TypeError("values are missing")
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{param_name} must have a number for each candidate, got {list(values)}; draw both "
            "scores with ParetoDisplay."
        ) from error
    if not np.isfinite(numbers).all():
        raise ValueError(f"{param_name} must be finite, got {numbers.tolist()}.")
    return numbers
