r"""Scorers for searches and cross-validation, and the rule that picks the most robust candidate.

Note [Errors and nan]
---------------------
A search puts nan and a warning in the place of an error that a scorer raises, as it does for a fit
that fails, unless it was made with ``error_score="raise"``. So what is wrong whatever the data are is
an error where the scorer is made, as with ``sklearn.metrics.make_scorer``, and scores that are nothing
but nan are one where :class:`most_robust` chooses. What is wrong for some candidates only, a step
without a proven bound, say, leaves the others in the choice.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.metadata_routing import UNUSED

from sklip.certification import predict_with_radii
from sklip.metrics import as_float, average_certified_radius_score, certified_accuracy_score, check_eps
from sklip.preprocessing.changes import Changes
from sklip.training.net import LipschitzNet

__all__ = ["average_certified_radius_scorer", "certified_accuracy_scorer", "most_robust"]


class _CertifiedScorer(BaseEstimator):  # type: ignore[misc]
    """What scorers share: what may change, in which units that is measured, and weights of samples."""

    # Of the arguments of `score`, only weights are metadata.
    __metadata_request__score: ClassVar = {"estimator": UNUSED}

    fixed_columns: Sequence[str | int]
    scale: Any
    categorical_edits: int | None
    categorical_columns: Sequence[str | int] | None

    def _accept_sample_weight(self) -> bool:
        """Searches ask each scorer by this name, as long as metadata routing is not the only way."""
        return True

    @property
    @abstractmethod
    def __name__(self) -> str:
        """The score's name in scikit-learn's curve displays and in skorch's history."""

    def _check(self) -> None:
        """Refuse what is wrong whatever the data are. See Note [Errors and nan]."""
        given = {"fixed_columns": self.fixed_columns}
        if self.categorical_columns is not None:
            given["categorical_columns"] = self.categorical_columns
        for name, columns in given.items():
            if isinstance(columns, str | bytes) or not isinstance(columns, Iterable):
                raise ValueError(f"{name} must be an iterable of columns, got {columns!r}.")
            # An iterator would be empty at the second score, and no column held.
            if isinstance(columns, Iterator):
                raise ValueError(f"{name} must be a list or tuple of columns, got {columns!r}.")
        Changes(self.fixed_columns, self.scale, self.categorical_edits, self.categorical_columns)
        edits = self.categorical_edits
        is_number = isinstance(edits, Integral) and not isinstance(edits, bool)
        if edits is not None and not (is_number and edits >= 0):
            raise ValueError(
                f"categorical_edits must be None or an integer of at least 0, got {edits!r}."
            )
        _check_scale(self.scale, check_numbers=len(list(self.fixed_columns)) == 0)

    @abstractmethod
    def score(
        self, estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the score of a fitted estimator."""

    def __call__(
        self, estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the score of a fitted estimator."""
        return self.score(estimator, X, y, sample_weight)

    def set_params(self, **params: Any) -> Self:
        """Set parameters, checked as where the scorer is made."""
        super().set_params(**params)
        self._check()
        return self

    def _found(
        self, estimator: Any, X: ArrayLike, y: ArrayLike
    ) -> tuple[ArrayLike, NDArray[Any], NDArray[np.float64]]:
        """Return true labels, predicted labels, and radii."""
        if isinstance(estimator, LipschitzNet):  # from a callback of skorch, in training
            estimator, X, y = estimator.trained_so_far(X, y)
        labels, radii = predict_with_radii(
            estimator,
            X,
            fixed_columns=self.fixed_columns,
            scale=self.scale,
            categorical_edits=self.categorical_edits,
            categorical_columns=self.categorical_columns,
        )
        return y, labels, radii


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

    Raises
    ------
    ValueError
        For what no data can be scored with, a negative `eps`, say. What depends on the data, such as
        the length of `scale`, is an error when a fitted estimator is scored: searches turn it into nan
        and a warning, unless they have ``error_score="raise"``.

    Notes
    -----
    With scikit-learn's metadata routing, ``set_score_request(sample_weight=True)`` asks for weights of
    samples. scikit-learn 1.9's ScoringMonitor takes scorers in a dict only. In a
    ``skorch.callbacks.EpochScoring`` that a LipschitzClassifier has among its
    `callbacks`, the network is proven anew after each epoch, and X is what the classifier itself sees,
    behind the steps of a Pipeline.

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
        self._check()

    @property
    def __name__(self) -> str:
        """The score's name in scikit-learn's curve displays and in skorch's history."""
        return f"certified_accuracy_at_{self.eps:g}"

    def _check(self) -> None:
        check_eps(self.eps)
        super()._check()

    def score(
        self, estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the score of a fitted estimator, as a call does."""
        y, labels, radii = self._found(estimator, X, y)
        return certified_accuracy_score(y, labels, radii, eps=self.eps, sample_weight=sample_weight)


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
        self._check()

    @property
    def __name__(self) -> str:
        """The score's name in scikit-learn's curve displays and in skorch's history."""
        return "average_certified_radius"

    def score(
        self, estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the score of a fitted estimator, as a call does."""
        y, labels, radii = self._found(estimator, X, y)
        return average_certified_radius_score(y, labels, radii, sample_weight=sample_weight)


def _check_scale(scale: Any, *, check_numbers: bool) -> None:
    """Refuse a scale that fits no data; numbers for fixed columns are never read."""
    if scale is None or (isinstance(scale, str) and scale == "std"):
        return
    numbers = np.asarray(list(scale.values()) if isinstance(scale, Mapping) else scale, dtype=object)
    if numbers.ndim != 1:
        raise ValueError(
            "scale must be 'std', a positive number for each column, or a dict of these, got "
            f"{scale!r}."
        )
    for number in numbers if check_numbers else ():
        if not 0 < as_float(number) < np.inf:
            raise ValueError(f"scale must hold positive and finite numbers, got {number!r}.")


def check_accuracy_loss(accuracy_loss: float) -> float:
    """Return `accuracy_loss` if it is a share of at least 0 and below 1."""
    if not (isinstance(accuracy_loss, Real) and 0 <= accuracy_loss < 1):
        raise ValueError(f"accuracy_loss must be in [0, 1), got {accuracy_loss!r}.")
    return float(accuracy_loss)


class most_robust(BaseEstimator):  # type: ignore[misc]  # noqa: N801
    """`refit` rule for searches: the most robust candidate among those accurate enough.

    Enough is a mean accuracy of at least that of the most accurate candidate less
    `accuracy_loss`. Of equally robust candidates the more accurate one wins. The fitted search's
    ``score`` is the score that `robustness` names.

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

    # ``search.score`` looks its score up by ``refit``, also where that is a rule: so a rule is found
    # where the name of its robustness score is.

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return bool(self.robustness == other)
        if type(other) is type(self):
            return bool(self.get_params() == other.get_params())
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.robustness)

    def __call__(self, cv_results: Mapping[str, Any]) -> int:
        """Return the index of the chosen candidate."""
        accuracy_loss = check_accuracy_loss(self.accuracy_loss)
        robustness, accuracy = (
            _mean_test_score(cv_results, name) for name in (self.robustness, self.accuracy)
        )
        if np.isnan(accuracy).all():
            raise ValueError(_all_nan(self.accuracy))
        # The comparison allows for the rounding of means over folds.
        enough = accuracy >= np.nanmax(accuracy) - accuracy_loss - 1e-12
        candidates = np.flatnonzero(enough & ~np.isnan(robustness))
        if len(candidates) == 0:
            raise ValueError(_all_nan(self.robustness))
        # Of equal ones the first, as everywhere in scikit-learn's searches.
        return int(max(candidates, key=lambda i: (robustness[i], accuracy[i], -i)))


def _all_nan(name: str) -> str:
    return (
        f"All candidates have a NaN score for {name!r}: fits or scoring failed. The warnings say why; "
        "with error_score='raise' the search ends with the first of these errors."
    )


def _mean_test_score(cv_results: Mapping[str, Any], name: str) -> Any:
    key = f"mean_test_{name}"
    if key not in cv_results:
        scores = sorted(k[10:] for k in cv_results if k.startswith("mean_test_"))
        raise ValueError(f"scoring must contain a score named {name!r}, got {scores}.")
    return np.asarray(cv_results[key], dtype=float)
