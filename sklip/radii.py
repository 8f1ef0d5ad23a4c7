r"""From logits and bounds to certified radii."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_array, check_is_fitted
from torch import nn

from sklip.bounds import lipschitz_bound, refuse_altered, rounded_up_product
from sklip.inference import flat_chain
from sklip.norms import row_distances_upper
from sklip.rounding import Precision, layer_steps, longest_input, propagate
from sklip.transformers import transformer_steps

__all__ = [
    "Proof",
    "RoundingCharges",
    "certificates",
    "certified_radii",
    "margin_bounds",
    "margin_radii",
    "prove",
    "rounding_charges",
    "row_lengths_upper",
]


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
    chain = _checked_chain(network)
    return _margin_bounds(chain, [lipschitz_bound(layer) for layer in chain], n_outputs)


def _margin_bounds(
    chain: list[nn.Module], constants: list[float], n_outputs: int
) -> NDArray[np.float64]:
    if type(chain[-1]) is nn.Linear:
        if chain[-1].out_features != n_outputs:
            raise ValueError(
                f"n_outputs must be that of the network, {chain[-1].out_features}, got {n_outputs}."
            )
        body = rounded_up_product(constants[:-1])
        weight = chain[-1].weight
        if n_outputs == 1:
            weight = nn.functional.pad(weight, (0, 0, 0, 1))  # the distance from zero
        distances = row_distances_upper(weight).numpy()
        # A product that underflows must not read as a constant of 0.
        positive = (distances > 0) & (body > 0)
        distances = np.maximum(distances * (body * (1 + 2.0**-51)), np.where(positive, 5e-324, 0.0))
        return distances[:1, 1:] if n_outputs == 1 else distances
    bound = rounded_up_product(constants)
    if n_outputs == 1:
        return np.array([[bound]])
    pairs: NDArray[np.float64] = math.sqrt(2) * (1 + 2.0**-51) * bound * (1 - np.eye(n_outputs))
    return pairs


def _checked_chain(network: nn.Module) -> list[nn.Module]:
    """Return the layers in order; containers and layers must be what their class says."""
    for module in network.modules():
        refuse_altered(module)
    return flat_chain(network) or [nn.Identity()]


class RoundingCharges(NamedTuple):
    """What :func:`rounding_charges` found."""

    offsets: NDArray[np.float64]
    slopes: NDArray[np.float64]
    longest: float


def rounding_charges(
    network: nn.Module, n_outputs: int, dtype: str, input_shape: tuple[int, ...]
) -> RoundingCharges:
    r"""Bound the rounding error of all computed logit differences of a plain network.

    Parameters
    ----------
    network : torch.nn.Module
        The finished network, in plain layers.
    n_outputs : int
        Number of logits.
    dtype : str
        Precision in which :func:`sklip.inference.direct_forward` evaluates it.
    input_shape : tuple of int
        Shape of one sample.

    Returns
    -------
    charges : RoundingCharges
        ``offsets`` and ``slopes``, of shape (n_outputs, n_outputs): for an input of length t, the
        computed difference of logits i and j lies within ``offsets[i, j] + slopes[i, j] * t`` of the
        exact one; for a single logit, of the logit. It holds for t up to ``longest``, beyond which
        something might overflow.
    """
    chain = _checked_chain(network)
    constants = [lipschitz_bound(layer) for layer in chain]
    return _rounding_charges(chain, constants, n_outputs, dtype, input_shape)


def _rounding_charges(
    chain: list[nn.Module],
    constants: list[float],
    n_outputs: int,
    dtype: str,
    input_shape: tuple[int, ...],
) -> RoundingCharges:
    head = chain[-1] if type(chain[-1]) is nn.Linear else None
    body = chain if head is None else chain[:-1]
    precision = Precision.of(dtype)
    steps = layer_steps(chain, constants, dtype, input_shape)
    # Every value is rounded to the network's precision before the first layer.
    lost = precision.smallest * math.sqrt(math.prod(input_shape))
    longest = longest_input(steps, precision.unit, lost, precision)
    value, error = propagate(steps[: len(body)], precision.unit, lost)
    if head is None:
        both = np.ones((1, 1)) if n_outputs == 1 else 1.5 * (1 - np.eye(n_outputs))
        return RoundingCharges(both * error.offset, both * error.slope, longest)
    # Two roundings more than the sum: where it is done in float64, the result is cast.
    gamma = precision.gamma_of_sum(head.in_features) + 2 * precision.unit
    weight = head.weight.detach().cpu().double()
    rows = weight.norm(dim=1).numpy() * (1 + 2.0**-30)
    bias = np.zeros(n_outputs)
    if head.bias is not None:
        bias = np.abs(head.bias.detach().cpu().double().numpy())
    flushed = 4 * precision.smallest * (head.in_features + 1)
    if n_outputs == 1:
        distances, rows, bias = rows[:, None], rows[:, None], bias[:, None]
    else:
        distances = row_distances_upper(weight).numpy()
        rows, bias = rows[:, None] + rows, bias[:, None] + bias
    offsets = distances * error.offset + gamma * (rows * (value.offset + error.offset) + bias)
    slopes = distances * error.slope + gamma * rows * (value.slope + error.slope)
    up = 1 + 2.0**-40
    return RoundingCharges((offsets + flushed) * up, slopes * up, longest)


class Proof(NamedTuple):
    """All that is proven of a network: see the functions of the same names."""

    lipschitz_bound: float
    margin_bounds: NDArray[np.float64]
    rounding_charges: RoundingCharges


def prove(network: nn.Module, n_outputs: int, dtype: str, input_shape: tuple[int, ...]) -> Proof:
    """Prove everything that a certificate rests on, each layer's constant once.

    Parameters
    ----------
    network : torch.nn.Module
        The finished network, in plain layers.
    n_outputs : int
        Number of logits.
    dtype : str
        Precision in which it is evaluated.
    input_shape : tuple of int
        Shape of one sample.

    Returns
    -------
    proof : Proof
    """
    chain = _checked_chain(network)
    constants = [lipschitz_bound(layer) for layer in chain]
    return Proof(
        rounded_up_product(constants),
        _margin_bounds(chain, constants, n_outputs),
        _rounding_charges(chain, constants, n_outputs, dtype, input_shape),
    )


def certified_radii(
    logits: NDArray[np.floating[Any]],
    bounds: NDArray[np.float64],
    *,
    offsets: NDArray[np.float64] | float = 0.0,
    slopes: NDArray[np.float64] | float = 0.0,
    lengths: NDArray[np.float64] | float = 0.0,
) -> NDArray[np.float64]:
    r"""Radius around each row inside which neither the computed nor the exact class changes.

    With y the predicted class, m_j the computed margin over class j and the rounding error of a margin
    at x' bounded by :math:`p_j + q_j \|x'\|`, the radius is the largest r with

    .. math:: m_j - (p_j + q_j \|x\|) - (p_j + q_j (\|x\| + r)) - K_{yj} r \ge 0

    for all j, and 0 if there is none. Without charges (the defaults) it is
    :math:`\min_j m_j / K_{yj}`, which holds in exact arithmetic. Ties and rows with a logit that is not
    finite get 0. The arithmetic rounds towards 0.

    Parameters
    ----------
    logits : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        One logit (its sign decides) or one a class (the largest decides).
    bounds : ndarray of shape (n_outputs, n_outputs)
        From :func:`margin_bounds`.
    offsets, slopes : ndarray of shape (n_outputs, n_outputs), default=0.0
        From :func:`rounding_charges`.
    lengths : ndarray of shape (n_samples,), default=0.0
        Upper bounds on the L2 lengths of the rows.

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
    scores = scores[:, None] if scores.ndim == 1 else scores
    if bounds.shape != (scores.shape[1], scores.shape[1]):
        raise ValueError(
            f"bounds must have shape {(scores.shape[1], scores.shape[1])} for logits of shape "
            f"{np.shape(logits)}, got {bounds.shape}."
        )
    finite = np.asarray(np.isfinite(scores).all(axis=1))
    scores = np.where(finite[:, None], scores, 0.0)
    largest = np.finfo(np.float64).max
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if scores.shape[1] == 1:
            predicted, margins = np.zeros(len(scores), dtype=np.intp), np.abs(scores)
            others = np.ones(scores.shape, dtype=bool)
        else:
            predicted = scores.argmax(axis=1)
            margins = scores.max(axis=1, keepdims=True) - scores
            others = np.arange(scores.shape[1]) != predicted[:, None]
        p, q = (np.broadcast_to(charge, bounds.shape)[predicted] for charge in (offsets, slopes))
        charged = 2 * (p + q * np.broadcast_to(lengths, len(scores))[:, None])
        # An overflow to infinity is replaced by a smaller number, which is safe. The difference of two
        # large numbers is rounded in its last place, hence the factor on what is taken away.
        left = np.minimum(margins, largest) * (1 - 2.0**-51) - charged * (1 + 2.0**-50)
        ratios = left / (bounds[predicted] + q)
    # Where K is 0 and nothing is charged, the difference never moves: a positive margin is for ever.
    ratios = np.where((left > 0) & others, ratios, np.where(others, 0.0, np.inf)).min(axis=1)
    # The quotient's rounding, and that of the difference when it is small against its terms.
    radii: NDArray[np.float64] = np.nextafter(ratios * (1 - 2.0**-51), 0.0)
    return np.where(finite, np.maximum(np.where(np.isinf(ratios), np.inf, radii), 0.0), 0.0)


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
        these, and more: see :func:`sklip.transformers.transformer_bound`.
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
    if hasattr(estimator, "refit") and hasattr(estimator, "error_score"):
        check_is_fitted(estimator)
        raise TypeError(f"{type(estimator).__name__} needs refit=True to give certificates.")
    raise TypeError(
        f"{type(estimator).__name__} gives no certificates; pass a LipschitzClassifier, a Pipeline "
        "that ends in one, or a fitted search over either."
    )


def _pipeline_certificates(pipeline: Pipeline, X: ArrayLike) -> NDArray[np.float64]:
    transformers, final = [step for _, step in pipeline.steps[:-1]], pipeline.steps[-1][1]
    # The bounds come first: a step that has none is refused before any work is done.
    for transformer in transformers:
        transformer_steps(transformer, np.float64)
    if not transformers:
        return certificates(final, X)
    lengths = row_lengths_upper(np.asarray(X, dtype=np.float64))
    # A scaler with copy=False would overwrite the caller's X.
    transformed = pipeline[:-1].transform(copy.deepcopy(X))
    radii = certificates(final, transformed)
    # The coarsest precision on the way: a scaler may compute in float32 and a PCA after it in float64.
    ends = [np.asarray(values).dtype for values in (X, transformed)]
    if np.float16 in ends:
        raise TypeError("certificates of a Pipeline need X of float32 or wider, got float16.")
    dtype = np.dtype(np.float32 if np.float32 in ends else np.float64)
    steps = [s for transformer in transformers for s in transformer_steps(transformer, dtype)]
    _, error = propagate(steps, 0.0, 0.0)
    bound = rounded_up_product(step.constant for step in steps)
    # The point that the classifier sees lies within error(||x||) of where exact steps would put it, at
    # x and at any x' in the ball.
    charged = 2 * (error.offset + error.slope * lengths)
    with np.errstate(invalid="ignore"):
        shrunk = (radii - charged * (1 + 2.0**-50)) / (bound + error.slope)
    return np.maximum(np.nextafter(shrunk * (1 - 2.0**-50), -np.inf), 0.0)


def row_lengths_upper(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return upper bounds on the L2 lengths of flat rows, whatever their precision loses."""
    values = rows.astype(np.float64, copy=False)
    lengths = np.linalg.norm(values, axis=1)
    # Rounding to float32 moves a length by less than this factor, summation by far less.
    return np.asarray(lengths * (1 + 2.0**-20) + 1e-30)
