"""Candidates of a search: their scores, and what tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["folds_of", "on_the_front", "scores_of", "searched", "varied_parameters"]


def on_the_front(accuracy: NDArray[np.float64], robustness: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which candidates no other beats in one score without being beaten in the other.

    Candidates without a score (NaN) are never among them.
    """
    better_or_equal = (accuracy >= accuracy[:, None]) & (robustness >= robustness[:, None])
    better = better_or_equal & ((accuracy > accuracy[:, None]) | (robustness > robustness[:, None]))
    scored = np.isfinite(accuracy) & np.isfinite(robustness)
    return np.asarray(scored & ~better.any(axis=1))


def searched(search: Any) -> tuple[Mapping[str, Any], Mapping[str, Any] | None, int | None]:
    """Return the results of a fitted search, its scorers by name, and which candidate it chose."""
    if not hasattr(search, "cv_results_"):
        raise ValueError(
            f"Expected 'search' to be a fitted search with cv_results_. Got {type(search).__name__} "
            "instead; fit it first."
        )
    scorers = getattr(search, "scorer_", None)
    return (
        search.cv_results_,
        scorers if isinstance(scorers, Mapping) else None,
        getattr(search, "best_index_", None),
    )


def scores_of(
    cv_results: Mapping[str, Any], names: tuple[str, ...], others: tuple[str, ...] = ()
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64] | None]]:
    """Return mean scores, and their standard deviations over folds where these are told.

    Raises
    ------
    ValueError
        For columns that `cv_results` lacks, among them `others`.
    """
    needed = [*others, *(f"mean_test_{name}" for name in names)]
    missing = [key for key in needed if key not in cv_results]
    if missing:
        raise ValueError(f"cv_results must contain {needed}, {missing} missing.")
    means = [np.asarray(cv_results[f"mean_test_{name}"], dtype=np.float64) for name in names]
    deviations = [cv_results.get(f"std_test_{name}") for name in names]
    return means, [None if each is None else np.asarray(each, dtype=np.float64) for each in deviations]


def varied_parameters(cv_results: Mapping[str, Any]) -> list[str]:
    """Return names of parameters that have several values."""
    names = [key.removeprefix("param_") for key in cv_results if key.startswith("param_")]
    if not names:
        names = list(dict.fromkeys(key for each in cv_results.get("params", []) for key in each))
        values = {name: [each.get(name) for each in cv_results["params"]] for name in names}
    else:
        values = {name: list(cv_results[f"param_{name}"]) for name in names}
    return [name for name in names if len({repr(value) for value in values[name]}) > 1]


def folds_of(cv_results: Mapping[str, Any], name: str, index: int | None) -> NDArray[np.float64]:
    """Return the scores of one candidate on all folds."""
    if f"test_{name}" in cv_results:
        return np.asarray(cv_results[f"test_{name}"], dtype=np.float64)
    columns: list[NDArray[np.float64]] = []
    while (key := f"split{len(columns)}_test_{name}") in cv_results:
        columns.append(np.asarray(cv_results[key], dtype=np.float64))
    if not columns:
        raise ValueError(f"cv_results must contain the scores of {name!r} on each fold, none found.")
    scores = np.stack(columns)
    if index is None and scores.shape[1] > 1:
        raise ValueError(
            f"index must say which of {scores.shape[1]} candidates; pass search.best_index_, say."
        )
    place = 0 if index is None else index
    if not -scores.shape[1] <= place < scores.shape[1]:
        raise ValueError(f"index must be below {scores.shape[1]}, got {index!r}.")
    return np.asarray(scores[:, place])
