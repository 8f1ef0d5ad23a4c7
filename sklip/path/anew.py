r"""Candidates that each start from the same random weights.

Note [From random weights]
--------------------------
Dense networks for a table train side by side (:mod:`sklip.estimators.side_by_side`), up to eight of
them, which saves the time between operations. So each candidate takes all its steps from the same
random weights, and its scores are those of a separate fit, up to rounding. Hundreds of steps with
several batches enlarge rounding where tau is large: on the digits at the last two of eight values 0.103
and 0.094 of rows are certified, in separate fits 0.081 and 0.086, and 0.064 and 0.104 if those have two
threads; at the first six nothing differs.

Where a network is wide nothing is saved so, and a path of warm starts is walked instead
(:mod:`sklip.path.walk`), unless the rows of a fold are one batch. Then a fit is 48 steps at a
large rate, and where they end depends on where they start. Along a path, in a third of the time, the
winner of 8 taus was that of separate fits in 4 of 10 cases on wine (5 splits, 2 seeds), 8 on iris, 7 on
breast_cancer, and in none on 300 rows of 50 columns with 4 that matter, where it was right on 0.55 of
rows instead of 0.83.

What else was tried on wine: a path with twice the epochs, at half the rate or the whole one, had the
same winner in 4 of 10 cases as well, and from accurate to robust it lost up to four points certified; a
third of the epochs from random weights, at one to three times the rate, gave certified accuracies up to
53 points off.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from sklip.estimators import LipschitzClassifier, fitted_side_by_side
from sklip.path.candidates import Candidates, Rows

__all__ = ["FreshStarts"]


class FreshStarts(Candidates):
    """Candidates as of separate fits. See Note [From random weights]."""

    def fitted(self, rows: Rows) -> Iterator[tuple[int, int, LipschitzClassifier]]:
        """Yield places in epss and in taus, and the candidate."""
        places = list(itertools.product(range(len(self.epss)), range(len(self.taus))))
        classifiers = [self.unfitted(*place) for place in places]
        for place, clf in zip(places, fitted_side_by_side(classifiers, *rows), strict=True):
            yield *place, clf
