r"""Scorers for searches and cross-validation, and the rule that picks the most robust candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from sklip.certification import predict_with_radii
from sklip.metrics import average_certified_radius_score, certified_accuracy_score, check_eps

__all__ = ["average_certified_radius_scorer", "certified_accuracy_scorer", "most_robust"]


class _CertifiedScorer(BaseEstimator):  # type: ignore[misc]
    """What scorers share: what may change, and in which units that is measured."""

    fixed_columns: Sequence[str | int]
    scale: Any
    categorical_edits: int | None
    categorical_columns: Sequence[str | int] | None

    def _labels_and_radii(
        self, estimator: Any, X: ArrayLike
    ) -> tuple[NDArray[Any], NDArray[np.float64]]:
        return predict_with_radii(
            estimator,
            X,
            fixed_columns=self.fixed_columns,
            scale=self.scale,
            categorical_edits=self.categorical_edits,
            categorical_columns=self.categorical_columns,
        )


class certified_accuracy_scorer(_CertifiedScorer):  # noqa: N801
    """Scorer: share of samples predicted right with a certified radius above `eps`.

    ``scorer(estimator, X, y)`` works on a LipschitzClassifier, on a Pipeline that ends in one and on
    a fitted search; `eps` is in the units of that estimator's own input, or of `scale`. make_scorer
    cannot build such a scorer, since it takes no method but predict and its kin.

    Parameters
    ----------
    eps : float, default=0.5
        Perturbation budget: L2, at least 0.
    fixed_columns, scale, categorical_edits, categorical_columns
        What may change, and in which units: as for :func:`sklip.certificates`.

    Examples
    --------
    >>> from sklip.scoring import certified_accuracy_scorer
    >>> certified_accuracy_scorer(eps=0.3)
    certified_accuracy_scorer(eps=0.3)
    """

    def __init__(
        self,
        eps: float = 0.5,
        fixed_columns: Sequence[str | int] = (),
        scale: Any = None,
        categorical_edits: int | None = None,
        categorical_columns: Sequence[str | int] | None = None,
    ) -> None:
        self.eps = eps
        self.fixed_columns = fixed_columns
        self.scale = scale
        self.categorical_edits = categorical_edits
        self.categorical_columns = categorical_columns

    def __call__(
        self, estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the score of a fitted estimator."""
        eps = check_eps(self.eps)
        labels, radii = self._labels_and_radii(estimator, X)
        return certified_accuracy_score(y, labels, radii, eps=eps, sample_weight=sample_weight)


class average_certified_radius_scorer(_CertifiedScorer):  # noqa: N801
    """Scorer: mean certified radius, a wrong prediction counting 0.

    ``scorer(estimator, X, y)`` works on a LipschitzClassifier, on a Pipeline that ends in one and on
    a fitted search. The score is a length in the units of that estimator's own input, or of `scale`.

    Parameters
    ----------
    fixed_columns, scale, categorical_edits, categorical_columns
        What may change, and in which units: as for :func:`sklip.certificates`.

    Examples
    --------
    >>> from sklip.scoring import average_certified_radius_scorer
    >>> average_certified_radius_scorer()
    average_certified_radius_scorer()
    """

    def __init__(
        self,
        fixed_columns: Sequence[str | int] = (),
        scale: Any = None,
        categorical_edits: int | None = None,
        categorical_columns: Sequence[str | int] | None = None,
    ) -> None:
        self.fixed_columns = fixed_columns
        self.scale = scale
        self.categorical_edits = categorical_edits
        self.categorical_columns = categorical_columns

    def __call__(
        self, estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the score of a fitted estimator."""
        labels, radii = self._labels_and_radii(estimator, X)
        return average_certified_radius_score(y, labels, radii, sample_weight=sample_weight)


class most_robust(BaseEstimator):  # type: ignore[misc]  # noqa: N801
    """`refit` rule for searches: the most robust candidate among those accurate enough.

    Enough is a mean accuracy of at least that of the most accurate candidate less
    `accuracy_loss`. Of equally robust candidates the more accurate one wins.

    Parameters
    ----------
    robustness : str, default="certified"
        Name of the robustness score in the search's `scoring`.
    accuracy : str, default="accuracy"
        Name of the accuracy score in the search's `scoring`.
    accuracy_loss : float, default=0.02
        Accuracy that may be given up for robustness: 0.02 is two points.

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklip import LipschitzClassifier
    >>> from sklip.scoring import certified_accuracy_scorer, most_robust
    >>> search = GridSearchCV(
    ...     LipschitzClassifier(),
    ...     {"tau": [1.0, 10.0, 100.0]},
    ...     scoring={"accuracy": "accuracy", "certified": certified_accuracy_scorer(eps=0.5)},
    ...     refit=most_robust(accuracy_loss=0.01),
    ... )
    """

    def __init__(
        self,
        robustness: str = "certified",
        accuracy: str = "accuracy",
        accuracy_loss: float = 0.02,
    ) -> None:
        self.robustness = robustness
        self.accuracy = accuracy
        self.accuracy_loss = accuracy_loss

    def __call__(self, cv_results: Mapping[str, Any]) -> int:
        """Return the index of the chosen candidate."""
        if not 0 <= self.accuracy_loss < 1:
            raise ValueError(f"accuracy_loss must be in [0, 1), got {self.accuracy_loss!r}.")
        robustness, accuracy = (
            _mean_test_score(cv_results, name) for name in (self.robustness, self.accuracy)
        )
        if np.isnan(accuracy).all():
            raise ValueError(f"All candidates have a NaN score for {self.accuracy!r}.")
        # The comparison allows for the rounding of means over folds.
        enough = accuracy >= np.nanmax(accuracy) - self.accuracy_loss - 1e-12
        candidates = np.flatnonzero(enough & ~np.isnan(robustness))
        if len(candidates) == 0:
            raise ValueError(f"All candidates have a NaN score for {self.robustness!r}.")
        # Of equal ones the first, as everywhere in scikit-learn's searches.
        return int(max(candidates, key=lambda i: (robustness[i], accuracy[i], -i)))


def _mean_test_score(cv_results: Mapping[str, Any], name: str) -> Any:
    key = f"mean_test_{name}"
    if key not in cv_results:
        scores = sorted(k[10:] for k in cv_results if k.startswith("mean_test_"))
        raise ValueError(f"scoring must contain a score named {name!r}, got {scores}.")
    return np.asarray(cv_results[key], dtype=float)
