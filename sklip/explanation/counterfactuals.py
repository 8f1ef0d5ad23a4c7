r"""The nearest row with another answer: upper bounds beside certified radii."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklip.certification.chains import Chain, refuse_other_labels, start_of
from sklip.certification.wrappers import decider_of
from sklip.certified.radii import row_lengths_upper
from sklip.explanation.neighbours import Neighbours, neighbours_of
from sklip.explanation.search import Landscape, Way, nearest_changes
from sklip.inputs import as_rows
from sklip.preprocessing.changes import Changes
from sklip.preprocessing.steps import described_steps
from sklip.preprocessing.walk import check_columns, check_shape
from sklip.rows import as_numpy

__all__ = ["Counterfactuals", "counterfactual"]

# Multiples of what the search finds at which predict is asked, and how often the bracket is halved.
_MULTIPLES = (0.97, 1.0, 1.03, 1.1, 1.3, 2.0, 4.0)
_HALVINGS = 8


class Counterfactuals(NamedTuple):
    """Rows with another label, beside the rows that they were found for.

    Parameters
    ----------
    X : ndarray, DataFrame or sparse matrix of shape (n_samples, ...)
        The other rows; where none was found, the row itself.
    labels : ndarray of shape (n_samples,)
        What ``estimator.predict`` gives for exactly these rows.
    distances : ndarray of shape (n_samples,)
        L2, in the units of X, or of `scale`, rounded up; infinite where none was found.
    """

    X: Any
    labels: NDArray[Any]
    distances: NDArray[np.float64]


def counterfactual(
    estimator: Any,
    X: ArrayLike,
    target: Any = None,
    *,
    fixed_columns: Iterable[str | int] = (),
    scale: Any = None,
) -> Counterfactuals:
    r"""For each row of X a row near it that ``estimator.predict`` gives another label.

    Each label is asked of ``predict``, for exactly the row that is returned, so its distance is an
    upper bound on that of the nearest row of another class, as the radius from
    :func:`sklip.certificates` is a lower one: no distance to another label lies below the radius.
    Nothing says that a row found is the nearest; where none was found, the distance is infinite.

    Parameters
    ----------
    estimator : fitted estimator
        What :func:`sklip.certificates` takes.
    X : array-like, sparse matrix or DataFrame
        What `estimator` takes.
    target : label or array-like of shape (n_samples,), default=None
        Label to be reached, the same for all rows or one for each. A row that has it already is
        returned as it is, at distance 0. None: whichever other label is near.
    fixed_columns, scale
        What may change, and in which units: as for :func:`sklip.certificates`. Columns of words must be
        in `fixed_columns`. Values that are missing stay so, and others may be any numbers: pixels, say,
        leave the range from 0 to 1.

    Returns
    -------
    found : Counterfactuals
        Of three fields, ``X, labels, distances``.

    Raises
    ------
    TypeError
        For an estimator without certificates, a step without a proven bound, and columns that may be
        moved and hold no numbers.
    ValueError
        For a target that is no class of the estimator's, and as :func:`sklip.certificates`.
    NotFittedError
        If the estimator is not fitted.

    See Also
    --------
    sklip.certificates : The radius inside which there is none.
    sklip.nearest_rival : The class that limits the radius.

    Notes
    -----
    The gradient of a 1-Lipschitz network's margin points to the nearest row of the other class, and has
    a length near 1 all along (Serrurier et al. 2023). It is followed from x for the two nearest
    classes, back through the steps by their matrix, or by differences where they are not linear; in
    votes, that of the members' sum. Where it leads nowhere, the way to the nearest row of X that has
    such a label is taken. The change is then shortened by asking ``predict`` only.

    References
    ----------
    Serrurier et al. (2023), On the explainable properties of 1-Lipschitz neural networks: an optimal
    transport perspective, arXiv 2206.06854.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklip import LipschitzClassifier, certificates, counterfactual
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LipschitzClassifier(max_epochs=50, random_state=0).fit(X, y)
    >>> found = counterfactual(clf, X)
    >>> bool((found.labels != clf.predict(X)).all())
    True
    >>> bool((found.distances >= certificates(clf, X)).all())
    True
    """
    decider, X = decider_of(estimator), as_numpy(X)
    given, chains = Changes(fixed_columns, scale), decider.chains
    names = chains[0].names
    refuse_other_labels(X, names, given)
    start = start_of(chains, X, given)
    gains = [described_steps(chain.steps, start)[1] for chain in chains]
    for chain in chains:
        _check_rows(chain, X)
    neighbours = neighbours_of(X, names, start.matrix > 0)
    ways = [
        Way(chain, neighbours, start.matrix, gain, _order(chain, X))
        for chain, gain in zip(chains, gains, strict=True)
    ]
    asked = _Asked(estimator, neighbours, start.matrix, target, decider.classes)
    changes = np.zeros(neighbours.values.shape)
    away = np.flatnonzero(~asked.there)
    if len(away):
        goals = asked.goals(away)
        changes[away] = nearest_changes(Landscape(decider, ways), away, len(start.matrix), goals)
        changes[away] = asked.shortened(away, changes[away])
    lacking = np.flatnonzero(~np.isfinite(changes).all(axis=1))
    if len(lacking):
        towards = np.stack([asked.towards_nearest(row) for row in lacking.tolist()])
        changes[lacking] = asked.shortened(lacking, towards)
    return asked.answered(changes)


class _Asked:
    """Rows that predict is asked about, and what counts as another label.

    Parameters
    ----------
    estimator : fitted estimator
    neighbours : Neighbours
        Of the rows.
    units : ndarray of shape (n_columns,)
        What a change of 1 is in each column; 0 for those held fixed.
    target : label, array-like or None
    classes : ndarray

    Attributes
    ----------
    labels : ndarray of shape (n_samples,)
        Those of the rows as they are.
    there : ndarray of shape (n_samples,), bool
        Which rows have the label that is to be reached.
    """

    def __init__(
        self,
        estimator: Any,
        neighbours: Neighbours,
        units: NDArray[np.float64],
        target: Any,
        classes: NDArray[Any],
    ) -> None:
        self._estimator, self._neighbours, self._units = estimator, neighbours, units
        self._every, still = np.arange(len(neighbours)), np.zeros(neighbours.values.shape)
        self._code_of = {label: code for code, label in enumerate(classes.tolist())}
        self.labels = self._predicted(self._every, still)
        self._wanted = _wanted(target, self.labels, classes)
        self.there = np.zeros(len(self.labels), dtype=bool)
        if self._wanted is not None:
            self.there = np.asarray(self.labels == self._wanted)

    def _predicted(self, rows: NDArray[np.intp], changes: NDArray[np.float64]) -> NDArray[Any]:
        # In rows made for it: steps may overwrite what they are given.
        return np.asarray(self._estimator.predict(self._neighbours.at(rows, changes * self._units)))

    def _counts(self, answers: NDArray[Any], rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether answers are what is looked for."""
        if self._wanted is None:
            return np.asarray(answers != self.labels[rows])
        return np.asarray(answers == self._wanted[rows])

    def goals(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return positions of the classes that rows may be led to: (n_rows, n_goals)."""
        if self._wanted is not None:
            return np.array([[self._code_of[label]] for label in self._wanted[rows].tolist()])
        others = np.arange(len(self._code_of) - 1)
        codes = np.array([self._code_of[label] for label in self.labels[rows].tolist()])
        return np.asarray(others + (others >= codes[:, None]))

    def shortened(self, rows: NDArray[np.intp], changes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return changes as short as predict allows along the same lines; NaN where it allows none."""
        low, high = np.zeros(len(rows)), np.full(len(rows), np.inf)

        def ask(places: NDArray[np.intp], multiples: NDArray[np.float64]) -> None:
            answers = self._predicted(rows[places], changes[places] * multiples[:, None])
            beyond = self._counts(answers, rows[places])
            high[places[beyond]] = multiples[beyond]
            low[places[~beyond]] = multiples[~beyond]

        led = np.isfinite(changes).all(axis=1)
        for multiple in _MULTIPLES:
            places = np.flatnonzero(led & np.isinf(high))
            if len(places):
                ask(places, np.full(len(places), multiple))
        places = np.flatnonzero(np.isfinite(high))
        for _ in range(_HALVINGS if len(places) else 0):
            ask(places, (low[places] + high[places]) / 2)
        return changes * np.where(np.isfinite(high), high, np.nan)[:, None]

    @np.errstate(over="ignore", invalid="ignore")
    def towards_nearest(self, row: int) -> NDArray[np.float64]:
        """Return the change from a row to the nearest one with a label that counts; NaN if none has."""
        units, values, movable = self._units, self._neighbours.values, self._neighbours.movable
        others = np.flatnonzero(self._counts(self.labels, np.full(len(self.labels), row)))
        if len(others) == 0:
            return np.full(len(units), np.nan)
        differences = np.where(movable[row] & movable[others], values[others] - values[row], 0.0)
        changes = np.divide(differences, units, out=np.zeros_like(differences), where=units > 0)
        nearest: NDArray[np.float64] = changes[(changes**2).sum(axis=1).argmin()]
        return nearest

    def answered(self, changes: NDArray[np.float64]) -> Counterfactuals:
        """Return the rows that changes (NaN: none found) lead to, with what predict says of them."""
        found = np.isfinite(changes).all(axis=1) & ~self.there
        # Once more, of all rows together: should an answer depend on the company of a row, then what is
        # said in that of the returned rows counts.
        while True:
            changes = np.where(found[:, None], changes, 0.0)
            answers = self._predicted(self._every, changes)
            lost = found & ~self._counts(answers, self._every)
            if not lost.any():
                break
            found &= ~lost
        others = self._neighbours.at(self._every, changes * self._units)
        moving = self._units > 0
        moved = self._neighbours.moved(self._every, others)[:, moving] / self._units[moving]
        distances = np.where(found, row_lengths_upper(moved), np.where(self.there, 0.0, np.inf))
        return Counterfactuals(others, answers, distances)


def _wanted(target: Any, labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[Any] | None:
    """Return the label to be reached by each row; None for any other than its own."""
    if target is None:
        return None
    wanted = np.asarray(target)
    if wanted.ndim > 0 and wanted.shape != labels.shape:
        raise ValueError(
            f"target must be one label, or one for each of {len(labels)} rows, got shape "
            f"{wanted.shape}."
        )
    unknown = set(np.unique(wanted).tolist()) - set(classes.tolist())
    if unknown:
        raise ValueError(f"target must be one of the classes {classes.tolist()}, got {unknown}.")
    return np.broadcast_to(wanted, labels.shape)


def _order(chain: Chain, X: Any) -> NDArray[np.intp] | None:
    """Return where in X each value of a network's image is; None for flat rows."""
    if np.ndim(X) <= 2:
        return None
    places = np.arange(math.prod(np.shape(X)[1:])).reshape(1, *np.shape(X)[1:])
    order: NDArray[np.intp] = as_rows(places, chain.classifier.input_shape_, "")[0]
    return order


def _check_rows(chain: Chain, X: Any) -> None:
    """Refuse what predict refuses, before any work is done."""
    if chain.steps:
        check_shape(X)
        check_columns(chain.steps, X, chain.names)
    else:
        chain.classifier.network_rows(X)
