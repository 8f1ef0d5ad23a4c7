r"""From logits and bounds to certified radii."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_array, check_is_fitted
from torch import nn

from sklip.bounds import lipschitz_bound, refuse_altered, transformer_bound
from sklip.norms import row_distances_upper

__all__ = ["certificates", "certified_radii", "margin_bounds", "margin_radii"]


def margin_bounds(network: nn.Module, n_outputs: int) -> NDArray[np.float64]:
    r"""Proven Lipschitz constants of all logit differences :math:`f_i - f_j` of a plain network.

    If the network ends in a linear layer with rows :math:`w_i`, the constant is
    :math:`\|w_i - w_j\|_2 L` with L the bound of everything before; that is never larger than
    :math:`\sqrt2 \|W\|_2 L`. For any other end it is :math:`\sqrt2` times the network's bound.

    Parameters
    ----------
    network : torch.nn.Module
        The finished network, in plain layers (see :func:`sklip.layers.to_torch`).
    n_outputs : int
        Number of logits.

    Returns
    -------
    bounds : ndarray of shape (n_outputs, n_outputs)
        Symmetric with a zero diagonal. For a single logit, the 1 x 1 matrix of its own constant.

    References
    ----------
    Singla, Singla, Feizi (2022), Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100,
    arXiv 2108.04062.
    """
    chain = _flat_chain(network)
    if type(chain[-1]) is nn.Linear:
        refuse_altered(chain[-1])
        body = lipschitz_bound(nn.Sequential(*chain[:-1]))
        weight = chain[-1].weight
        if n_outputs == 1:
            weight = nn.functional.pad(weight, (0, 0, 0, 1))  # the distance from zero
        distances = row_distances_upper(weight).numpy() * (body * (1 + 2.0**-51))
        return distances[:1, 1:] if n_outputs == 1 else distances
    bound = lipschitz_bound(network)
    if n_outputs == 1:
        return np.array([[bound]])
    pairs: NDArray[np.float64] = math.sqrt(2) * (1 + 2.0**-51) * bound * (1 - np.eye(n_outputs))
    return pairs


def _flat_chain(network: nn.Module) -> list[nn.Module]:
    """The layers of nested plain Sequentials in order."""
    if type(network) is not nn.Sequential:
        return [network]
    refuse_altered(network)
    return [layer for child in network for layer in _flat_chain(child)] or [nn.Identity()]


def certified_radii(
    logits: NDArray[np.floating[Any]], bounds: NDArray[np.float64]
) -> NDArray[np.float64]:
    r"""Radius :math:`\min_{j \ne y} (f_y - f_j) / K_{yj}` around each row, y the predicted class.

    Ties and rows with a logit that is not finite get 0. Operations round towards 0.

    Parameters
    ----------
    logits : ndarray of shape (n_samples,) or (n_samples, n_classes)
        One logit (its sign decides) or one a class (the largest decides).
    bounds : ndarray of shape (n_outputs, n_outputs)
        From :func:`margin_bounds`.

    Returns
    -------
    radii : ndarray of shape (n_samples,)
        L2, in the units of the network's input. Infinite where no other class can be reached.

    Examples
    --------
    >>> import numpy as np
    >>> from sklip.radii import certified_radii
    >>> bounds = np.sqrt(2) * (1 - np.eye(3))
    >>> certified_radii(np.array([[3.0, 1.0, 0.0]]), bounds).round(4)
    array([1.4142])
    """
    scores = np.asarray(logits, dtype=np.float64)
    finite = np.isfinite(scores if scores.ndim == 1 else scores.sum(axis=1))
    scores = np.where(finite if scores.ndim == 1 else finite[:, None], scores, 0.0)
    if scores.ndim == 1:
        margins, constants = np.abs(scores)[:, None], bounds
        others = np.ones((len(scores), 1), dtype=bool)
    else:
        predicted = scores.argmax(axis=1)
        margins = scores.max(axis=1, keepdims=True) - scores
        constants = bounds[predicted]
        others = np.arange(scores.shape[1]) != predicted[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = margins / constants
    # Equal rows in the head: their difference never moves, so a positive margin is for ever.
    ratios = np.where(margins > 0, ratios, 0.0)
    ratios = np.where(others, ratios, np.inf).min(axis=1)
    # Two roundings: the difference and the quotient.
    radii: NDArray[np.float64] = np.where(finite, ratios * (1 - 2.0**-50), 0.0)
    return radii


def margin_radii(
    scores: ArrayLike, *, lipschitz_bound: float = 1.0, disjoint_neurons: bool = False
) -> NDArray[np.float64]:
    r"""The tutorial's certificate: margin over :math:`\sqrt2 L`, or over 2L.

    For comparisons with deel-lip. :meth:`sklip.LipschitzClassifier.certificates_` proves its
    constants instead and is never looser where L is proven.

    Parameters
    ----------
    scores : array-like of shape (n_samples,) or (n_samples, n_classes)
        Logits.
    lipschitz_bound : float, default=1.0
        L: the constant of the whole output vector or, for disjoint neurons, of each logit.
    disjoint_neurons : bool, default=False
        Whether each logit is L-Lipschitz on its own, which divides by 2L.

    Returns
    -------
    radii : ndarray of shape (n_samples,)
        L2, in the units of the network's input.

    Examples
    --------
    >>> from sklip.radii import margin_radii
    >>> margin_radii([[3.0, 1.0, 0.0]], disjoint_neurons=True)
    array([1.])
    """
    logits = check_array(scores, dtype=np.float64, ensure_2d=False)
    if not 0 < lipschitz_bound < math.inf:
        raise ValueError(f"lipschitz_bound must be positive and finite, got {lipschitz_bound!r}.")
    if logits.ndim == 1:
        return np.asarray(np.abs(logits) / lipschitz_bound)
    top = np.partition(logits, -2, axis=1)[:, -2:]
    radii: NDArray[np.float64] = (top[:, 1] - top[:, 0]) / (
        (2.0 if disjoint_neurons else math.sqrt(2)) * lipschitz_bound
    )
    return radii


def certificates(estimator: Any, X: ArrayLike) -> NDArray[np.float64]:
    r"""Radius around each row of X inside which ``estimator.predict`` can't change.

    In the units of the estimator's own input: for a Pipeline, the radius of its last step divided by
    the proven Lipschitz constants of the steps before it.

    Parameters
    ----------
    estimator : fitted estimator
        A LipschitzClassifier, a Pipeline that ends in one, or a fitted search (GridSearchCV and the
        like) over either. Pipeline steps: StandardScaler, MinMaxScaler, "passthrough", Pipelines of
        these, and what :func:`sklip.bounds.register_transformer_bound` was told.
    X : array-like
        What `estimator` takes.

    Returns
    -------
    radii : ndarray of shape (n_samples,)
        L2, in the units of X; 0 where nothing can be said.

    Raises
    ------
    TypeError
        For an estimator without certificates, or a step without a proven bound.
    NotFittedError
        If the estimator is not fitted.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklip import LipschitzClassifier, certificates
    >>> X, y = load_iris(return_X_y=True)
    >>> pipeline = make_pipeline(StandardScaler(), LipschitzClassifier(max_epochs=5, random_state=0))
    >>> certificates(pipeline.fit(X, y), X).shape
    (150,)
    """
    if hasattr(estimator, "certificates_"):
        radii: NDArray[np.float64] = estimator.certificates_(X)
        return radii
    if type(estimator) is Pipeline:
        check_is_fitted(estimator)
        return _pipeline_certificates(estimator, X)
    if hasattr(estimator, "best_estimator_"):
        return certificates(estimator.best_estimator_, X)
    if hasattr(estimator, "refit") and hasattr(estimator, "cv"):
        check_is_fitted(estimator)
        raise TypeError(f"{type(estimator).__name__} needs refit=True to give certificates.")
    raise TypeError(
        f"{type(estimator).__name__} gives no certificates; pass a LipschitzClassifier, a Pipeline "
        "that ends in one, or a fitted search over either."
    )


def _pipeline_certificates(pipeline: Pipeline, X: ArrayLike) -> NDArray[np.float64]:
    # The bounds come first: a step that has none is refused before any work is done.
    bound = 1.0
    for _, step in pipeline.steps[:-1]:
        bound *= transformer_bound(step) * (1 + 2.0**-52)
    final = pipeline.steps[-1][1]
    transformed = X if len(pipeline.steps) == 1 else pipeline[:-1].transform(X)
    radii = certificates(final, transformed)
    return radii / bound * (1 - 2.0**-51)
