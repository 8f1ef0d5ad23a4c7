r"""What a classifier predicts, and the radii of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from sklip.certified.decisions import with_winners
from sklip.certified.radii import predicted_codes
from sklip.estimators.base import LipschitzEstimator, as_fitted, proven_network
from sklip.metrics import certified_accuracy_score
from sklip.rows import joined

__all__ = ["PredictingEstimator", "probabilities_of"]


class PredictingEstimator(LipschitzEstimator):
    """The part of :class:`sklip.LipschitzClassifier` that predicts."""

    classes_: NDArray[Any]
    tau_: float

    def decision_function(self, X: ArrayLike) -> NDArray[Any]:
        """Return the logits, of which the largest is the class that :meth:`predict` gives.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        scores : ndarray of shape (n_samples,) or (n_samples, n_classes)
            For two classes one logit, positive for ``classes_[1]``.
        """
        fitted = as_fitted(self)
        logits = fitted.certified_network_.logits(fitted.network_rows(X))
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class of each row: that of the exact function of the stored weights.

        Only where two classes are closer than float64 can tell it may be the other; the certified
        radius is 0 there. Networks in float32 decide in float32 where that is proven to give the same.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        """
        fitted = as_fitted(self)

        def predicted(rows: NDArray[Any]) -> tuple[NDArray[Any]]:
            return (fitted.classes_[fitted.certified_network_.predict(rows)],)

        (labels,) = fitted._by_pieces(X, predicted)
        return labels

    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Return the softmax of `tau_` times the logits (the sigmoid for two classes).

        The largest is that of the class that :meth:`predict` gives.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
        """
        return self._from_logits(X, probabilities_of)

    def predict_log_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Return the logarithms of :meth:`predict_proba`, exact where that is 0 or 1 by rounding.

        The largest is that of the class that :meth:`predict` gives.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        log_probabilities : ndarray of shape (n_samples, n_classes)
        """
        return self._from_logits(X, _log_probabilities)

    def _from_logits(
        self, X: ArrayLike, function: Callable[[torch.Tensor, float], torch.Tensor]
    ) -> NDArray[Any]:
        """Return ``function(logits, tau)``, its largest values those of the predicted classes."""
        fitted = as_fitted(self)

        def found(rows: NDArray[Any]) -> tuple[NDArray[Any]]:
            logits = fitted.certified_network_.logits(rows)
            values = function(torch.from_numpy(logits), fitted.tau_).numpy()
            return (with_winners(values, predicted_codes(logits)),)

        (values,) = fitted._by_pieces(X, found)
        return values

    def certificates_(self, X: ArrayLike) -> NDArray[np.float64]:
        r"""Return for each row a radius inside which the predicted class can't change.

        Neither the class that ``predict`` computes for any representable x' in the ball, nor that of
        the exact function of the stored weights.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        radii : ndarray of shape (n_samples,)
            L2, in the units of X; 0 where nothing can be said.

        Raises
        ------
        RuntimeError
            If layers or weights of `certified_network_` were changed after ``fit``.

        See Also
        --------
        predict_with_radii : The labels as well, for the same time.
        sklip.certified.certified_radii : The formula.
        rounding_loss : What rounding takes of it.
        """
        return self.predict_with_radii(X)[1]

    def predict_with_radii(self, X: ArrayLike) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Return the labels of :meth:`predict` and the radii of :meth:`certificates_`, in one pass.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        radii : ndarray of shape (n_samples,)
            L2, in the units of X; 0 where nothing can be said.
        """
        fitted = as_fitted(self)
        network, rows = proven_network(fitted), fitted.network_rows(X)
        pieces = network.predicted_pieces(rows)
        labels, radii = joined(len(rows), ((fitted.classes_[codes], radii) for codes, radii in pieces))
        return labels, radii

    def rounding_loss(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the share of each radius that rounding takes away: at most about 1 %.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.

        Returns
        -------
        losses : ndarray of shape (n_samples,)
            Between 0 and 1; 0 where the radius is 0 with or without the charge.
        """
        fitted = as_fitted(self)
        return proven_network(fitted).rounding_loss(fitted.network_rows(X))

    def certified_score(
        self, X: ArrayLike, y: ArrayLike, eps: float, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the share of rows predicted right with a radius above `eps`.

        Parameters
        ----------
        X : array-like
            As for :meth:`fit`.
        y : array-like of shape (n_samples,)
            True labels.
        eps : float
            Perturbation budget: L2, in the units of X, at least 0.
        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Returns
        -------
        score : float
        """
        labels, radii = self.predict_with_radii(X)
        return certified_accuracy_score(y, labels, radii, eps=eps, sample_weight=sample_weight)


def probabilities_of(logits: torch.Tensor, tau: float) -> torch.Tensor:
    """Return the softmax of tau times logits, or both sigmoids of a single one."""
    if logits.shape[1] == 1:
        return torch.sigmoid(tau * torch.cat((-logits, logits), dim=1))
    # Less the largest before tau is multiplied in, which may overflow.
    return torch.softmax(tau * (logits - logits.max(dim=1, keepdim=True).values), dim=1)


def _log_probabilities(logits: torch.Tensor, tau: float) -> torch.Tensor:
    """Return the logarithms of what `probabilities_of` returns, to their last digits."""
    if logits.shape[1] == 1:
        return nn.functional.logsigmoid(tau * torch.cat((-logits, logits), dim=1))
    largest, winners = logits.max(dim=1, keepdim=True)
    scores = tau * (logits - largest)
    # Of a class that is nearly certain, what the others leave it is small, and no difference to 1.
    others = scores.exp().scatter(1, winners, 0.0)
    return scores - torch.log1p(others.sum(dim=1, keepdim=True))
