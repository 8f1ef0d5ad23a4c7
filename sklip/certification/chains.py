r"""Steps with the network behind them, and what that sees of rows that take their way through them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from sklip.certified import Affine, Budget, CertifiedNetwork, Gains
from sklip.certified.decisions import Decisions
from sklip.estimators.base import proven_network
from sklip.preprocessing.changes import Changes
from sklip.preprocessing.monotone_rules import refuse_sparse_quantiles
from sklip.preprocessing.scales import column_names, given_scale, standard_deviations
from sklip.preprocessing.walk import Distances, fixed_mask, walk
from sklip.rows import row_slices

__all__ = [
    "Chain",
    "View",
    "common_columns",
    "n_rows_of",
    "pieces_of",
    "refuse_images",
    "refuse_other_labels",
    "start_of",
    "view_of",
    "warn_of_a_throttle",
]

# A column whose gain is so many times the median limits the radius alone.
_THROTTLED = 30
# What is made of a value on the way through the steps, and of a logit, at the same time.
_NUMBERS_A_COLUMN, _NUMBERS_AN_OUTPUT = 4, 32
# Warnings that were given: Python forgets which it has shown whenever filters change, as they do in
# each of scikit-learn's checks.
_WARNED: set[str] = set()


@dataclass(frozen=True)
class Chain:
    """Steps, none of them a Pipeline, and the LipschitzClassifier behind them.

    Parameters
    ----------
    steps : tuple of fitted transformers
    classifier : LipschitzClassifier
    method : str
        The method of the classifier that decides.
    """

    steps: tuple[Any, ...]
    classifier: Any
    method: str

    @property
    def _first(self) -> Any:
        first = self.steps[0] if self.steps else self.classifier
        check_is_fitted(first)
        return first

    @property
    def names(self) -> NDArray[Any] | None:
        """Names of the columns seen at ``fit``, where they had any."""
        names: NDArray[Any] | None = getattr(self._first, "feature_names_in_", None)
        return names

    def n_columns(self, X: Any) -> int:
        """Return the number of columns seen at ``fit``; of those of X, if that is not known."""
        return int(getattr(self._first, "n_features_in_", None) or math.prod(np.shape(X)[1:]))


@dataclass(frozen=True)
class View:
    """What the network at the end of a chain sees of some rows x, and of their neighbours.

    Distances are measured in the units of the columns that `gains` starts from.

    Parameters
    ----------
    network : CertifiedNetwork
    decided : Decisions
        What it computes for the rows.
    gains : Gains
        How far a change of the columns comes where it gets to the network.
    bounds : ndarray of shape (n_outputs, n_outputs), or None
        How fast each difference of logits moves with the change that claims are about; None: that of
        what the network sees.
    drift : Affine
        How far rounding in the steps moves it.
    longest : ndarray of shape (n_samples,), or float
        Distance up to which no step before the network can overflow.
    """

    network: CertifiedNetwork
    decided: Decisions
    gains: Gains
    bounds: NDArray[np.float64] | None
    drift: Affine
    longest: Distances

    def budget(self, code: int | None = None) -> Budget:
        """Return what is set aside where the exact function, or float64, decides at neighbours.

        Of the margins of a class; of the predicted one if `code` is None.
        """
        budget = self.network.budget(
            self.decided, reach=self.gains.bound, bounds=self.bounds, drift=self.drift, code=code
        )
        return replace(budget, longest=np.minimum(budget.longest, self.longest))

    def budget_of_logits(self, code: int | None = None) -> Budget:
        """Return what is set aside where logits in the network's own precision decide."""
        own = self.network.precisions[0].budget(
            self.decided.pairs_of(code), self.decided.lengths, self.gains.bound, self.drift
        )
        return self.budget(code) + own

    def rows(self, rows: slice) -> View:
        """Return the view of some of the rows."""

        def of_rows(values: Distances) -> Distances:
            return values[rows] if isinstance(values, np.ndarray) and values.ndim else values

        drift = Affine(of_rows(self.drift.offset), of_rows(self.drift.slope))
        return replace(
            self, decided=self.decided.rows(rows), drift=drift, longest=of_rows(self.longest)
        )

    @property
    def largest_change(self) -> float:
        """How fast a logit can move with the distance of x'."""
        return self.network.lipschitz_bound * (self.gains.bound + float(self.drift.slope))


def view_of(chain: Chain, X: Any, start: Gains) -> View:
    """Take rows through a chain; a change of them is measured in the units of `start`."""
    network = proven_network(chain.classifier, chain.method)
    gains, bounds, drift = start, None, Affine()
    longest: Distances = math.inf
    if chain.steps or not (start.matrix == 1).all():
        given = X
        X, gains, drift, longest = walk(chain.steps, X, chain.names, start)
        refuse_sparse_quantiles(chain.steps, given)
        bounds = network.margins_behind(gains).bounds
    decided = network.decisions(chain.classifier.network_rows(X))
    return View(network, decided, gains, bounds, drift, longest)


def pieces_of(chains: Sequence[Chain], X: Any) -> Iterator[Any]:
    """Yield the rows of X so many at a time that what is computed of them takes little memory.

    Parameters
    ----------
    chains : sequence of Chain
        All that see the rows.
    X : array-like, sparse matrix or DataFrame
        What has no rows that can be taken apart comes whole.

    Yields
    ------
    rows : array-like, sparse matrix or DataFrame
    """
    shape: tuple[int, ...] = getattr(X, "shape", ())
    if len(shape) < 2 or not hasattr(X, "__getitem__"):
        yield X
        return
    networks = [proven_network(chain.classifier) for chain in chains]
    sizes = [network.numbers_of_a_row(_NUMBERS_AN_OUTPUT) for network in networks]
    if any(chain.steps for chain in chains):
        sizes.append(_NUMBERS_A_COLUMN * shape[1])
    rows = getattr(X, "iloc", X)
    places = list(row_slices(shape[0], max(math.prod(shape[1:]), *sizes)))
    yield from (rows[place] for place in places) if len(places) > 1 else [X]


def n_rows_of(X: Any) -> int:
    """Return the number of rows; 0 of what has none, which is refused where it is read."""
    shape = np.shape(X)
    return int(shape[0]) if shape else 0


def start_of(chains: Sequence[Chain], X: Any, changes: Changes) -> Gains:
    """Return the columns as they are: some held fixed, each in the unit that was chosen.

    Parameters
    ----------
    chains : sequence of Chain
        All that see the rows.
    X : array-like
        The rows.
    changes : Changes

    Returns
    -------
    start : Gains

    Raises
    ------
    ValueError
        For columns that there are none of, scales that are missing or not known, and images where
        columns are told apart.
    TypeError
        As :func:`common_columns`.
    """
    names, n_columns = common_columns(chains, X, changes.tell_columns_apart)
    fixed = fixed_mask(changes.fixed_columns, names, n_columns)
    if fixed.any():
        refuse_images(X, "fixed_columns")
    scale: NDArray[np.float64] | float = 1.0
    if changes.scale is not None:
        refuse_images(X, "scale")
        if isinstance(changes.scale, str) and changes.scale == "std":
            ways = [(chain.steps, getattr(chain.classifier, "feature_std_", None)) for chain in chains]
            scale = standard_deviations(ways, names, fixed)
        else:
            scale = given_scale(changes.scale, names, fixed)
    return Gains.at_start(len(fixed), fixed, scale)


def common_columns(
    chains: Sequence[Chain], X: Any, told_apart: bool
) -> tuple[NDArray[Any] | None, int]:
    """Return names, where there are any, and the number of the columns that all chains start from.

    Parameters
    ----------
    chains : sequence of Chain
    X : array-like
        Rows, for their shape.
    told_apart : bool
        Whether it matters which column is which.

    Returns
    -------
    names : ndarray of shape (n_columns,), or None
    n_columns : int

    Raises
    ------
    TypeError
        If chains don't agree: what one has by name may lie elsewhere for another.
    """
    names, n_columns = chains[0].names, chains[0].n_columns(X)
    for chain in chains[1:]:
        renamed = told_apart and _listed(chain.names) != _listed(names)
        if chain.n_columns(X) != n_columns or renamed:
            raise TypeError(
                "members must be fitted on the same columns, got "
                f"{n_columns if names is None else list(names)} and "
                f"{chain.n_columns(X) if chain.names is None else list(chain.names)}; fit them on the "
                "same table."
            )
    return names, n_columns


def _listed(names: NDArray[Any] | None) -> list[Any] | None:
    return None if names is None else list(names)


def refuse_images(X: Any, argument: str) -> None:
    """Refuse arrays of images where columns are spoken of."""
    if np.ndim(X) > 2:
        raise ValueError(
            f"{argument} needs X of flat rows, got shape {np.shape(X)}; flatten the images, "
            "channels first."
        )


def refuse_other_labels(X: Any, names: NDArray[Any] | None, changes: Changes) -> None:
    """Refuse positions that X has as labels of other columns, where columns had no names at ``fit``.

    Raises
    ------
    ValueError
        For a DataFrame whose labels are integers in another order than positions.
    """
    if names is not None or not hasattr(X, "columns"):
        return
    labels, scale = list(X.columns), changes.scale
    scaled = scale.keys() if isinstance(scale, Mapping) or hasattr(scale, "items") else ()
    for given in (changes.fixed_columns, changes.categorical_columns, scaled):
        for column in given if isinstance(given, Iterable) else ():
            other = isinstance(column, int | np.integer) and column in labels
            if other and labels.index(column) != column:
                raise ValueError(
                    f"columns without names go by their positions at fit, but {column!r} is the label "
                    f"of the column at position {labels.index(column)} of X; give the columns words "
                    "for names before fit, or pass X and scale as arrays."
                )


def warn_of_a_throttle(gains: Gains, names: NDArray[Any] | None) -> None:
    """Warn a caller three calls away, once for each column, of one that makes all radii small."""
    moving = gains.of_columns[gains.of_columns > 0]
    if len(moving) and moving.max() > _THROTTLED * np.median(moving):
        column = column_names(np.array([gains.of_columns.argmax()]), names)[0]
        message = (
            f"The steps enlarge a change of column {column!r} far more than one of most other "
            "columns, so that it limits all radii in the units of X; pass scale='std', or a scale "
            "of your own, to measure each column in a unit that suits it."
        )
        if message not in _WARNED:
            _WARNED.add(message)
            warnings.warn(message, UserWarning, stacklevel=4)
