r"""The last choice among candidates that were compared along a path.

Note [Finals]
-------------
Scores along a path (Note [The path] of :mod:`sklip.path.walk`) are of networks that had few epochs, so
accuracies are up to two points too low, and the rule may pass over the winner for its neighbour. On
10,000 MNIST images and three folds, with a quarter of the epochs, tau = 1.59 has 0.9656 along the path,
under the 0.02 that may be given up, and 0.9715 in full, above it. So the winner of the path and its
more robust neighbour are trained in full on each fold, and then whatever wins by its scores along the
path, until what wins has been trained in full.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.parallel import Parallel, delayed

from sklip.path.candidates import Candidates, Rows, scores_in_full

__all__ = ["settle"]


def settle(
    candidates: Candidates,
    scorer: Any,
    rows: Rows,
    folds: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    scores: NDArray[np.float64],
    choose: Callable[[NDArray[np.float64]], int],
    n_jobs: int | None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return scores by which one that was trained in full wins, and which candidates were.

    Parameters
    ----------
    candidates : Candidates
    scorer : callable
        ``(classifier, X, y) -> float``.
    rows : (X, y, sample_weight or None)
    folds : sequence of (rows to train on, rows to score)
    scores : ndarray of shape (n_folds, n_candidates, 2)
        Along the path.
    choose : callable
        Returns the winner's place by such scores.
    n_jobs : int or None
        Fits at once.

    Returns
    -------
    scores : ndarray of shape (n_folds, n_candidates, 2)
    in_full : ndarray of shape (n_candidates,)
    """
    scores, in_full = scores.copy(), np.zeros(scores.shape[1], dtype=bool)
    n_taus = len(candidates.taus)
    best = choose(scores)
    # Within a row of the grid, a smaller tau is more robust.
    contenders = [best - 1, best] if best % n_taus else [best]
    while contenders:
        trials = list(itertools.product(range(len(folds)), contenders))
        found = Parallel(n_jobs=n_jobs)(
            delayed(scores_in_full)(
                candidates.unfitted(*divmod(place, n_taus)), scorer, rows, *folds[fold]
            )
            for fold, place in trials
        )
        for trial, values in zip(trials, found, strict=True):
            scores[trial] = values
        in_full[contenders] = True
        contenders = [each for each in [choose(scores)] if not in_full[each]]
    return scores, in_full
