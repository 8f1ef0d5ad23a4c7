"""Candidates of a grid of tau and eps, and their scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils import _safe_indexing

from sklip.estimators import LipschitzClassifier

__all__ = ["Candidates", "Rows", "as_results", "scores_in_full", "scores_on_fold"]

# X, labels and weights.
Rows = tuple[Any, NDArray[Any], NDArray[np.float64] | None]


@dataclass(frozen=True)
class Candidates(ABC):
    """A grid of candidates, and how they are trained to be compared.

    Parameters
    ----------
    prototype : LipschitzClassifier
        Each is a copy of it with a tau and an eps. Its random_state is an int.
    taus : ndarray of shape (n_taus,)
        Rising.
    epss : ndarray of shape (n_epss,)
        Rising.
    """

    prototype: LipschitzClassifier
    taus: NDArray[np.float64]
    epss: NDArray[np.float64]

    @abstractmethod
    def fitted(self, rows: Rows) -> Iterator[tuple[int, int, LipschitzClassifier]]:
        """Yield places in epss and in taus, and the candidate, which is changed after that."""

    def unfitted(self, row: int, column: int) -> LipschitzClassifier:
        """Return the candidate of places in epss and in taus, to be fitted by itself."""
        clf: LipschitzClassifier = clone(self.prototype)
        return clf.set_params(tau=float(self.taus[column]), eps=float(self.epss[row]))


def scores_on_fold(
    candidates: Candidates, scorer: Any, rows: Rows, train: NDArray[np.intp], test: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return accuracy and robustness of each candidate, by eps and then by tau."""
    held_out = _some(rows, test)
    scores = np.empty((len(candidates.epss), len(candidates.taus), 2))
    for row, column, clf in candidates.fitted(_some(rows, train)):
        scores[row, column] = _scores(clf, scorer, held_out)
    return scores.reshape(-1, 2)


def scores_in_full(
    clf: LipschitzClassifier,
    scorer: Any,
    rows: Rows,
    train: NDArray[np.intp],
    test: NDArray[np.intp],
) -> tuple[float, float]:
    """Return accuracy and robustness of one candidate, fitted by itself."""
    return _scores(clf.fit(*_some(rows, train)), scorer, _some(rows, test))


def _scores(clf: LipschitzClassifier, scorer: Any, rows: Rows) -> tuple[float, float]:
    X, y, weight = rows
    weighted = {} if weight is None else {"sample_weight": weight}
    return clf.score(X, y, **weighted), scorer(clf, X, y, **weighted)


def _some(rows: Rows, members: NDArray[np.intp]) -> Rows:
    X, y, weight = rows
    return _safe_indexing(X, members), y[members], None if weight is None else weight[members]


def as_results(
    taus: NDArray[np.float64], epss: NDArray[np.float64], scores: NDArray[np.float64]
) -> dict[str, Any]:
    """Give scores of shape (n_folds, n_candidates, 2) the names that a search gives its own."""
    params = [{"tau": float(tau), "eps": float(eps)} for eps in epss for tau in taus]
    results: dict[str, Any] = {"params": params}
    for name in ("tau", "eps"):
        results[f"param_{name}"] = np.array([each[name] for each in params])
    for position, name in enumerate(("accuracy", "certified")):
        of_folds = scores[:, :, position]
        for fold, values in enumerate(of_folds):
            results[f"split{fold}_test_{name}"] = values
        results[f"mean_test_{name}"] = of_folds.mean(axis=0)
        results[f"std_test_{name}"] = of_folds.std(axis=0)
    return results
