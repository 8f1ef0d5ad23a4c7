r"""Candidates of a search in the plane of accuracy and robustness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from sklip.plots.axes import axes_for
from sklip.plots.candidates import on_the_front, scores_of, searched, varied_parameters
from sklip.plots.words import score_words, value_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ParetoDisplay"]

# Points that get words beside them; more would overlap.
_MOST_WORDS = 12


class ParetoDisplay:
    """Candidates of a search in the plane of accuracy and a robustness score.

    Those that no other beats in both scores are joined by a line: the Pareto front.

    Parameters
    ----------
    accuracy : ndarray of shape (n_candidates,)
        Mean accuracy of each.
    robustness : ndarray of shape (n_candidates,)
        Mean robustness score of each.
    accuracy_name, robustness_name : str
        What the scores are called on the axes.
    candidate_names : list of str, default=None
        What is written beside the points of the front.
    chosen : int, default=None
        Position of the candidate that is marked.
    name : str, default=None
        Label of the front.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    line_ : matplotlib Line2D
        The front.
    points_ : matplotlib Line2D
        All other candidates.
    chosen_ : matplotlib Line2D, or None

    Examples
    --------
    >>> import numpy as np
    >>> from sklip.plots import ParetoDisplay
    >>> results = {
    ...     "params": [{"tau": 1.0}, {"tau": 3.0}, {"tau": 10.0}],
    ...     "mean_test_accuracy": np.array([0.91, 0.90, 0.98]),
    ...     "mean_test_certified": np.array([0.6, 0.5, 0.2]),
    ... }
    >>> ParetoDisplay.from_cv_results(results).front
    array([ True, False,  True])
    """

    def __init__(
        self,
        *,
        accuracy: NDArray[np.float64],
        robustness: NDArray[np.float64],
        accuracy_name: str = "accuracy",
        robustness_name: str = "certified",
        candidate_names: list[str] | None = None,
        chosen: int | None = None,
        name: str | None = None,
    ) -> None:
        self.accuracy = accuracy
        self.robustness = robustness
        self.accuracy_name = accuracy_name
        self.robustness_name = robustness_name
        self.candidate_names = candidate_names
        self.chosen = chosen
        self.name = name

    @property
    def front(self) -> NDArray[np.bool_]:
        """Which candidates no other beats: of shape (n_candidates,)."""
        return on_the_front(self.accuracy, self.robustness)

    @classmethod
    def from_estimator(
        cls,
        search: Any,
        *,
        accuracy: str = "accuracy",
        robustness: str = "certified",
        name: str | None = None,
        ax: Axes | None = None,
        **plot_kwargs: Any,
    ) -> Self:
        """Draw the candidates of a fitted search, and mark the one that it chose.

        Parameters
        ----------
        search : fitted search
            GridSearchCV or the like, with both scores in its `scoring`.
        accuracy, robustness, name, ax, **plot_kwargs
            As for :meth:`from_cv_results`.

        Returns
        -------
        display : ParetoDisplay
        """
        results, scoring, chosen = searched(search)
        return cls.from_cv_results(
            results,
            accuracy=accuracy,
            robustness=robustness,
            scoring=scoring,
            chosen=chosen,
            name=name,
            ax=ax,
            **plot_kwargs,
        )

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[str, Any],
        *,
        accuracy: str = "accuracy",
        robustness: str = "certified",
        scoring: Mapping[str, Any] | None = None,
        chosen: int | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **plot_kwargs: Any,
    ) -> Self:
        """Draw the candidates of a search over any parameters.

        Parameters
        ----------
        cv_results : dict
            ``cv_results_`` of a search.
        accuracy : str, default="accuracy"
            Name of the accuracy score in the search's `scoring`.
        robustness : str, default="certified"
            Name of the robustness score in the search's `scoring`.
        scoring : dict of str to scorer, default=None
            The search's `scoring`, by which scores are named with their eps.
        chosen : int, default=None
            Which candidate is marked: ``search.best_index_``, say.
        name : str, default=None
            Label of the front.
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None.
        **plot_kwargs : dict
            Passed to matplotlib's ``plot``, for front and points.

        Returns
        -------
        display : ParetoDisplay
        """
        means, _ = scores_of(cv_results, (accuracy, robustness))
        varied = varied_parameters(cv_results)
        settings = cv_results.get("params", [])
        parts: list[list[str]] = [[] for _ in settings]
        for key in varied:
            places = [i for i, each in enumerate(settings) if key in each]
            words = value_words([settings[i][key] for i in places])
            for i, word in zip(places, words, strict=True):
                parts[i].append(f"{key.rpartition('__')[2]} = {word}")
        display = cls(
            accuracy=means[0],
            robustness=means[1],
            accuracy_name=score_words(accuracy, scoring),
            robustness_name=score_words(robustness, scoring),
            candidate_names=[", ".join(each) for each in parts] or None,
            chosen=chosen,
            name=name,
        )
        return display.plot(ax=ax, **plot_kwargs)

    def plot(self, ax: Axes | None = None, *, name: str | None = None, **plot_kwargs: Any) -> Self:
        """Draw the plane.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None.
        name : str, default=None
            Label of the front; the one given before if None.
        **plot_kwargs : dict
            Passed to matplotlib's ``plot``, for front and points.

        Returns
        -------
        display : ParetoDisplay
        """
        self.ax_ = axes_for(ax)
        self.figure_ = self.ax_.figure
        name = self.name if name is None else name
        front = np.flatnonzero(self.front)
        front = front[np.argsort(self.accuracy[front], kind="stable")]
        others = np.flatnonzero(~self.front)
        style = {"marker": "o", **plot_kwargs}
        style.setdefault("label", "Pareto front" if name is None else f"{name}: Pareto front")
        (self.line_,) = self.ax_.plot(self.accuracy[front], self.robustness[front], **style)
        beaten = {**style, "color": self.line_.get_color(), "markerfacecolor": "none"}
        beaten.update(linestyle="none", label="beaten by another" if len(others) else "_none")
        (self.points_,) = self.ax_.plot(self.accuracy[others], self.robustness[others], **beaten)
        self.chosen_ = None
        if self.chosen is not None:
            (self.chosen_,) = self.ax_.plot(
                self.accuracy[[self.chosen]],
                self.robustness[[self.chosen]],
                "*",
                markersize=16,
                markerfacecolor="tab:red",
                markeredgecolor="white",
                label="chosen",
            )
        words = self.candidate_names
        if words is not None and len(front) <= _MOST_WORDS:
            for place in front.tolist():
                self.ax_.annotate(
                    words[place],
                    (self.accuracy[place], self.robustness[place]),
                    (8, 3),
                    textcoords="offset points",
                    ha="left",
                    va="bottom",
                    size="small",
                )
        # No candidate lies above and right of one of the front: there is room for words.
        self.ax_.margins(x=0.08, y=0.12)
        left, right = self.ax_.get_xlim()
        self.ax_.set_xlim(left, right + (0.35 if words else 0) * (right - left))
        self.ax_.set(xlabel=f"{self.accuracy_name} (mean over folds)", ylabel=self.robustness_name)
        self.ax_.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)
        return self
