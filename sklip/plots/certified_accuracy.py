r"""Certified accuracy against the perturbation budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklip.certification import predict_with_radii
from sklip.metrics import certified_accuracy_score
from sklip.plots.axes import axes_for, refuse_regressor
from sklip.plots.candidates import folds_of
from sklip.plots.checks import checked_distances, checked_eps
from sklip.plots.words import unit_words
from sklip.scoring import certified_accuracy_scorer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CertifiedAccuracyDisplay"]


class CertifiedAccuracyDisplay:
    """Certified accuracy against the perturbation budget.

    The curve starts at the accuracy of the samples with a positive radius and falls: at eps it is the
    share of samples predicted right for every perturbation of L2 length up to eps. The accuracy under
    an attack lies above it: what the best possible attack would leave lies between the two.

    Parameters
    ----------
    eps : ndarray of shape (n_points,)
        Budgets: L2, in the units of X, or of `scale`.
    certified_accuracy : ndarray of shape (n_points,)
        Certified accuracy at each; their mean over folds, if there are several.
    std : ndarray of shape (n_points,), default=None
        Standard deviation over folds.
    attacked_accuracy : ndarray of shape (n_points,), default=None
        Share of samples right whatever an attack with that budget found.
    unit : str, default="units of X"
        What `eps` is measured in, for the axis.
    name : str, default=None
        Label of the curve.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    line_ : matplotlib Line2D
    attack_line_ : matplotlib Line2D, or None
    band_ : matplotlib FillBetweenPolyCollection, or None
        One standard deviation to both sides.

    Examples
    --------
    >>> from sklip import CertifiedAccuracyDisplay
    >>> display = CertifiedAccuracyDisplay.from_predictions([0, 1], [0, 1], [0.5, 1.0])
    >>> float(display.certified_accuracy[0])
    1.0
    """

    def __init__(
        self,
        *,
        eps: NDArray[np.float64],
        certified_accuracy: NDArray[np.float64],
        std: NDArray[np.float64] | None = None,
        attacked_accuracy: NDArray[np.float64] | None = None,
        unit: str = "units of X",
        name: str | None = None,
    ) -> None:
        self.eps = eps
        self.certified_accuracy = certified_accuracy
        self.std = std
        self.attacked_accuracy = attacked_accuracy
        self.unit = unit
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike,
        *,
        eps: ArrayLike | None = None,
        distances: ArrayLike | None = None,
        fixed_columns: Iterable[str | int] = (),
        scale: Any = None,
        categorical_edits: int | None = None,
        categorical_columns: Iterable[str | int] | None = None,
        sample_weight: ArrayLike | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **plot_kwargs: Any,
    ) -> Self:
        """Draw the curve of a fitted estimator.

        Parameters
        ----------
        estimator : fitted estimator
            Anything that :func:`sklip.certificates` takes.
        X : array-like
            Samples.
        y : array-like of shape (n_samples,)
            True labels.
        eps : array-like of shape (n_points,), default=None
            Budgets, at least 0 and ascending; 200 up to beyond the largest radius if None.
        distances : array-like of shape (n_samples,), default=None
            Distance at which an attack gave each sample another label, infinite where it did not: those
            of :func:`sklip.counterfactual`, say. In the same units as the radii.
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

        Raises
        ------
        ValueError
            For a regressor, for `eps` that are negative or not ascending, and for `distances` below
            radii.
        """
        refuse_regressor(estimator)
        labels, radii = predict_with_radii(
            estimator,
            X,
            fixed_columns=fixed_columns,
            scale=scale,
            categorical_edits=categorical_edits,
            categorical_columns=categorical_columns,
        )
        return cls.from_predictions(
            y,
            labels,
            radii,
            eps=eps,
            distances=distances,
            sample_weight=sample_weight,
            unit=unit_words(scale),
            name=type(estimator).__name__ if name is None else name,
            ax=ax,
            **plot_kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        radii: ArrayLike,
        *,
        eps: ArrayLike | None = None,
        distances: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        unit: str = "units of X",
        name: str | None = None,
        ax: Axes | None = None,
        **plot_kwargs: Any,
    ) -> Self:
        """Draw the curve of labels and radii.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            True labels.
        y_pred : array-like of shape (n_samples,)
            Predicted labels.
        radii : array-like of shape (n_samples,)
            Certified radii.
        eps, distances, sample_weight, ax, **plot_kwargs
            As for :meth:`from_estimator`.
        unit : str, default="units of X"
            What the radii are measured in, for the axis.
        name : str, default=None
            Label of the curve.

        Returns
        -------
        display : CertifiedAccuracyDisplay
        """
        values = np.asarray(radii, dtype=np.float64)
        broken = None if distances is None else checked_distances(distances, values)
        reached = values if broken is None else np.concatenate([values, broken])
        if eps is None:
            largest = reached[np.isfinite(reached)].max(initial=0.0)
            budgets = np.linspace(0, 1.02 * largest or 1.0, 200)
        else:
            budgets = checked_eps(eps)

        def curve(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.array(
                [
                    certified_accuracy_score(
                        y_true, y_pred, lengths, eps=e, sample_weight=sample_weight
                    )
                    for e in budgets
                ]
            )

        display = cls(
            eps=budgets,
            certified_accuracy=curve(values),
            attacked_accuracy=None if broken is None else curve(broken),
            unit=unit,
            name=name,
        )
        return display.plot(ax=ax, **plot_kwargs)

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[str, Any],
        scoring: Mapping[str, Any],
        *,
        index: int | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **plot_kwargs: Any,
    ) -> Self:
        """Draw the mean over folds, at the eps of the scorers that a search was given.

        Parameters
        ----------
        cv_results : dict
            ``cv_results_`` of a search, or what ``cross_validate`` returns.
        scoring : dict of str to scorer
            The `scoring` that it was given, with a ``certified_accuracy_scorer`` for each of several
            eps: ``{f"at {eps}": certified_accuracy_scorer(eps) for eps in (0, 0.5, 1)}``, say.
        index : int, default=None
            Which candidate of a search: ``search.best_index_``, say. Needed if there are several.
        name : str, default=None
            Label of the curve.
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None.
        **plot_kwargs : dict
            Passed to matplotlib's ``plot``.

        Returns
        -------
        display : CertifiedAccuracyDisplay

        Raises
        ------
        ValueError
            For fewer than two eps, scores that `cv_results` lacks, and several candidates without an
            `index`.
        """
        if not isinstance(scoring, Mapping):
            raise ValueError(f"scoring must be a dict of scorers by name, got {scoring!r}.")
        scorers = {
            key: scorer
            for key, scorer in scoring.items()
            if isinstance(scorer, certified_accuracy_scorer)
        }
        names = sorted(scorers, key=lambda key: float(scorers[key].eps))
        budgets = np.array([float(scorers[key].eps) for key in names])
        if len(set(budgets.tolist())) < 2 or len(set(budgets.tolist())) < len(budgets):
            raise ValueError(
                "scoring must hold certified_accuracy_scorers at two or more different eps, got "
                f"{budgets.tolist()}; add some, and repeat the search."
            )
        units = {unit_words(scorer.scale) for scorer in scorers.values()}
        if len(units) > 1:
            raise ValueError(f"scoring must measure all eps in one unit, got {sorted(units)}.")
        folds = np.stack([folds_of(cv_results, key, index) for key in names], axis=1)
        display = cls(
            eps=budgets,
            certified_accuracy=folds.mean(axis=0),
            std=folds.std(axis=0),
            unit=units.pop(),
            name=name,
        )
        return display.plot(ax=ax, **{"marker": "o", **plot_kwargs})

    def plot(self, ax: Axes | None = None, *, name: str | None = None, **plot_kwargs: Any) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None. Several displays can share one.
        name : str, default=None
            Label of the curve; the one given before if None.
        **plot_kwargs : dict
            Passed to matplotlib's ``plot``.

        Returns
        -------
        display : CertifiedAccuracyDisplay
        """
        self.ax_ = axes_for(ax)
        self.figure_ = self.ax_.figure
        name = self.name if name is None else name
        style = dict(plot_kwargs)
        label = style.pop("label", name)
        (self.line_,) = self.ax_.plot(self.eps, self.certified_accuracy, **style)
        self.attack_line_, self.band_ = None, None
        if self.attacked_accuracy is not None:
            dashed = {"linestyle": "--", **style, "color": self.line_.get_color()}
            (self.attack_line_,) = self.ax_.plot(self.eps, self.attacked_accuracy, **dashed)
            self.attack_line_.set_label("under attack" if label is None else f"{label}, under attack")
            label = "certified" if label is None else f"{label}, certified"
        if self.std is not None:
            low, high = self.certified_accuracy - self.std, self.certified_accuracy + self.std
            self.band_ = self.ax_.fill_between(
                self.eps,
                np.maximum(low, 0),
                np.minimum(high, 1),
                color=self.line_.get_color(),
                alpha=0.2,
                linewidth=0,
            )
            label = "mean over folds ± 1 std" if label is None else f"{label} (mean over folds ± 1 std)"
        if label is not None:
            self.line_.set_label(label)
        # Of all curves on these axes; markers at 0 are to be seen as a whole.
        right = 1.015 * max(float(np.max(line.get_xdata())) for line in self.ax_.get_lines()) or 1.0
        self.ax_.set(
            xlabel=f"eps: length of the change (L2, in {self.unit})",
            ylabel="share of samples that stay right",
            ylim=(0, 1.02),
            xlim=(-0.015 * right, right),
        )
        if label is not None:
            self.ax_.legend()
        return self
