r"""Candidates one after another, each from the weights of its neighbour.

Note [The path]
---------------
Where rows are several batches, networks for neighbouring values of tau are much alike. So where they
can't train side by side (see Note [From random weights] of :mod:`sklip.path.anew`), each candidate but
the first starts from the weights of the next more robust one, with a share of the epochs and of the
learning rate. It walks from robust to accurate: from large eps to small, and there from small tau to
large,

.. math:: (\varepsilon, \tau_1) \to (\varepsilon, \tau_2) \to \dots, \qquad
    (\varepsilon_{\max}, \tau_1) \to \dots \to (\varepsilon_{\min}, \tau_1) .

Each fold has a path of its own: a start from another fold's weights would have seen the rows that this
one holds out. Where a path ends depends on where it came from: networks of large tau keep wide margins
that they had at a small one, while fits from random weights lose them. On the digits at tau = 47, three
folds, 0.08 of rows are certified at 0.5 from random weights, 0.51 along the path, and 0.981 and 0.991
are right. So the path only says which candidates may win: see :mod:`sklip.path.finals`.

With 0.25, 0.15 or 0.1 of the epochs the winner on the digits is the same in three of three splits, that
of separate fits in the two where those were made; accuracies are within 0.007 of each other. On 10,000
MNIST images (a fold of three, tau = 2.3), a quarter of the epochs at half the rate gives 0.972 right
and 0.917 certified at 0.5, at the full rate 0.973 and 0.912, and separate fits 0.976 and 0.919.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

from sklearn.base import clone

from sklip.estimators import LipschitzClassifier
from sklip.path.candidates import Candidates, Rows

__all__ = ["WarmStarts"]

# Of the epochs and of the learning rate of a fit from random weights, for one that goes on.
_SHARE_OF_EPOCHS, _SHARE_OF_RATE = 0.15, 0.5


class WarmStarts(Candidates):
    """Candidates along a path. See Note [The path]."""

    def fitted(self, rows: Rows) -> Iterator[tuple[int, int, LipschitzClassifier]]:
        """Yield places in epss and in taus, and the candidate, which is changed after that."""
        trunk = _Walk(self.prototype, rows)
        for row, eps in reversed(list(enumerate(self.epss))):
            trunk.go_on(self.taus[0], eps)
            branch = trunk.fork() if row else trunk
            for column, tau in enumerate(self.taus):
                if column:
                    branch.go_on(tau, eps)
                yield row, column, branch.classifier


class _Walk:
    """A classifier on its way from candidate to candidate.

    Parameters
    ----------
    prototype : LipschitzClassifier
    rows : (X, y, sample_weight or None)
        What each candidate is trained on.
    """

    def __init__(self, prototype: LipschitzClassifier, rows: Rows) -> None:
        self.classifier: LipschitzClassifier = clone(prototype).set_params(warm_start=True)
        self._rows = rows

    def go_on(self, tau: float, eps: float) -> None:
        """Train the next candidate."""
        is_first = not hasattr(self.classifier, "net_")
        self.classifier.set_params(tau=tau, eps=eps).fit(*self._rows)
        if is_first:
            self.classifier.set_params(
                max_epochs=math.ceil(_SHARE_OF_EPOCHS * self.classifier.n_iter_),
                learning_rate=_SHARE_OF_RATE * self.classifier.net_.lr,
            )

    def fork(self) -> _Walk:
        """Return another that goes on from here."""
        other = copy.copy(self)
        other.classifier = copy.deepcopy(self.classifier)
        return other
