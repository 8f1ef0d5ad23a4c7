r"""An estimator taken apart, and rows on their way through its parts with what is proven of it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklip.certified import Affine, Budget, CertifiedNetwork
from sklip.certified.decisions import Decisions
from sklip.certified.gains import Gains
from sklip.certified.radii import softmax_budget
from sklip.estimators import LipschitzClassifier
from sklip.estimators.base import proven_network
from sklip.preprocessing.scales import column_names, given_scale, standard_deviations
from sklip.preprocessing.walk import Distances, walk

__all__ = ["CertifiedRows", "OpenedEstimator", "refuse_images"]

# A column whose gain is so many times the median limits the radius alone.
_THROTTLED = 30
# Warnings that were given: Python forgets which it has shown whenever filters change, as they do in
# each of scikit-learn's checks.
_WARNED: set[str] = set()


@dataclass(frozen=True)
class CertifiedRows:
    """What an estimator predicts for some rows, and what is proven of the way there.

    Distances are measured in the units of the columns that `gains` starts from.

    Parameters
    ----------
    network : CertifiedNetwork
    decided : Decisions
        What it made of the rows.
    labels : ndarray of shape (n_samples,)
        The class of each row's largest logit.
    gains : Gains
        How far a change of the columns comes where it gets to the network.
    drift : Affine
        How far rounding in the steps moves it.
    longest : ndarray of shape (n_samples,), or float
        Distance up to which no step can overflow.
    inverse_temperature : float, or None
        Of a softmax that decides instead.
    """

    network: CertifiedNetwork
    decided: Decisions
    labels: NDArray[Any]
    gains: Gains
    drift: Affine
    longest: Distances
    inverse_temperature: float | None

    def budget(self, bounds: NDArray[np.float64] | None) -> Budget:
        """Return what claims about neighbours set aside of the margins.

        Parameters
        ----------
        bounds : ndarray of shape (n_outputs, n_outputs), or None
            How fast each difference of logits moves with the change that a claim is about; None: that
            of what the network sees.

        Returns
        -------
        budget : Budget
        """
        network, decided, reach, drift = self.network, self.decided, self.gains.bound, self.drift
        budget = network.budget(decided, reach=reach, bounds=bounds, drift=drift)
        budget = replace(budget, longest=np.minimum(budget.longest, self.longest))
        if self.inverse_temperature is not None:
            change = network.lipschitz_bound * (reach + float(drift.slope))
            logits = decided.logits_in(network.arithmetic.dtype)
            budget += softmax_budget(logits, self.inverse_temperature, change)
            # What decides is made of logits in the network's precision, at x' as well.
            budget += network.precisions[0].budget(decided.pairs, decided.lengths, reach, drift)
        return budget


@dataclass(frozen=True)
class OpenedEstimator:
    """An estimator taken apart, and the columns of the rows that it is given.

    Parameters
    ----------
    steps : list of fitted transformers
        What comes before the classifier.
    classifier : LipschitzClassifier
    inverse_temperature : float, or None
        Of a calibration around it.
    names : ndarray of shape (n_columns,), or None
        Names of the columns, where they have any.
    fixed : ndarray of shape (n_columns,)
        Which columns can't change.
    """

    steps: list[Any]
    classifier: LipschitzClassifier
    inverse_temperature: float | None
    names: NDArray[Any] | None
    fixed: NDArray[np.bool_]

    def start(self, scale: NDArray[np.float64] | float = 1.0) -> Gains:
        """Return the columns as they are, in units of `scale`."""
        return Gains.at_start(len(self.fixed), self.fixed, scale)

    def is_network_alone(self, start: Gains) -> bool:
        """Whether columns get to the network as they are."""
        return not self.steps and bool((start.matrix == 1).all())

    def rows(self, X: Any, start: Gains) -> CertifiedRows:
        """Evaluate rows, a change of which is measured in the units of `start`."""
        network = proven_network(self.classifier)
        gains, drift = start, Affine()
        longest: Distances = math.inf
        if not self.is_network_alone(start):
            X, gains, drift, longest = walk(self.steps, X, self.names, start)
        decided = network.decisions(self.classifier.network_rows(X))
        labels = self.classifier.classes_[decided.codes]
        return CertifiedRows(network, decided, labels, gains, drift, longest, self.inverse_temperature)

    def chosen_scale(self, X: Any, scale: Any) -> NDArray[np.float64] | float:
        """Return the units that a caller chose, as numbers."""
        if scale is None:
            return 1.0
        refuse_images(X, "scale")
        if not (isinstance(scale, str) and scale == "std"):
            return given_scale(scale, self.names, self.fixed)
        of_network = getattr(self.classifier, "feature_std_", None)
        return standard_deviations(self.steps, of_network, self.names, self.fixed)

    def warn_of_a_throttle(self, gains: Gains) -> None:
        """Warn, once for each, of a column that makes all radii small since it counts far more."""
        moving = gains.of_columns[gains.of_columns > 0]
        if len(moving) and moving.max() > _THROTTLED * np.median(moving):
            column = column_names(np.array([gains.of_columns.argmax()]), self.names)[0]
            message = (
                f"The steps enlarge a change of column {column!r} far more than one of most other "
                "columns, so that it limits all radii in the units of X; pass scale='std', or a scale "
                "of your own, to measure each column in a unit that suits it."
            )
            if message not in _WARNED:
                _WARNED.add(message)
                warnings.warn(message, UserWarning, stacklevel=4)


def refuse_images(X: Any, argument: str) -> None:
    """Refuse arrays of images where columns are spoken of."""
    if np.ndim(X) > 2:
        raise ValueError(
            f"{argument} needs X of flat rows, got shape {np.shape(X)}; flatten the images, "
            "channels first."
        )
