r"""Candidates that each start from the same random weights.

Note [One batch]
----------------
NUMBERS
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from sklip.estimators import LipschitzClassifier
from sklip.path.candidates import Candidates, Rows

__all__ = ["FreshStarts"]


class FreshStarts(Candidates):
    """Candidates as of separate fits, with fewer choices. See Note [One batch]."""

    def fitted(self, rows: Rows) -> Iterator[tuple[int, int, LipschitzClassifier]]:
        """Yield places in epss and in taus, and the candidate."""
        columns = np.arange(len(self.taus))
        for row, eps in enumerate(self.epss):
            for column, clf in self._by_halves(columns, eps, rows, None):
                yield row, column, clf

    def _by_halves(
        self, columns: NDArray[np.intp], eps: float, rows: Rows, column_weights: bool | None
    ) -> Iterator[tuple[int, LipschitzClassifier]]:
        """Yield the middle candidate first, which decides for all of smaller or all of larger tau.

        `column_weights` is what is known of these candidates so far, None: nothing.
        """
        if not len(columns):
            return
        middle = len(columns) // 2
        clf = self._candidate(self.taus[columns[middle]], eps)
        clf._known_column_weights = column_weights
        clf.fit(*rows)
        yield int(columns[middle]), clf
        weighted = clf._plan_.column_weights
        below, above = (column_weights, True) if weighted else (False, column_weights)
        yield from self._by_halves(columns[:middle], eps, rows, below)
        yield from self._by_halves(columns[middle + 1 :], eps, rows, above)

    def winner(self, tau: float, eps: float, rows: Rows) -> LipschitzClassifier:
        """Return one candidate, as a fit of its own."""
        clf = self._candidate(tau, eps)
        clf.fit(*rows)
        return clf

    def _candidate(self, tau: float, eps: float) -> LipschitzClassifier:
        clf: LipschitzClassifier = clone(self.prototype).set_params(tau=tau, eps=eps)
        return clf
