r"""Dense networks in the form that other verifiers read: matrices, ReLU and additions.

Note [Sorting by ReLU]
----------------------
With :math:`z = \max(a - b, 0)`, the smaller of a and b is :math:`a - z` and the larger :math:`b + z`.
So sorting the pairs of x is :math:`x + Q \max(R x, 0)`, where R takes the differences of pairs and Q
puts each back with both signs: as many ReLUs as pairs.
"""

from __future__ import annotations

import copy
import math
import os
from typing import Any

import numpy as np
import torch
from sklearn.impute import SimpleImputer
from torch import Tensor, nn

import sklip
from sklip import layers
from sklip.certified import CertifiedNetwork
from sklip.certified.direct_sums import flat_chain
from sklip.estimators.base import proven_network
from sklip.export.graph import Graph
from sklip.export.layers import add_network
from sklip.export.service import chain_of
from sklip.export.steps import Rows, add_step
from sklip.preprocessing.steps import nested_steps

__all__ = ["relu_form", "to_verifier_onnx"]


def relu_form(network: CertifiedNetwork) -> nn.Sequential:
    r"""Return the same function, up to rounding, of linear maps, ReLU and additions only.

    For verifiers that know no sorting: auto_LiRPA and alpha-beta-CROWN take the module as it is,
    whatever reads ONNX the file of :func:`to_verifier_onnx`. Nothing is promised of it here: what they
    prove is of this network, in the precision in which they evaluate it.

    Parameters
    ----------
    network : CertifiedNetwork
        Of dense layers with GroupSort2 or ReLU between them: ``clf.certified_network_``, say.

    Returns
    -------
    network : torch.nn.Sequential
        It takes flat rows, shape (n, n_values), in the precision of `network`.

    Raises
    ------
    TypeError
        For layers of another kind: convolutions, longer sorts, pools.

    References
    ----------
    Anil, Lucas, Grosse (2019), Sorting out Lipschitz function approximation, arXiv 1811.05381, section
    4 (ReLU and sorting).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklip import LipschitzClassifier
    >>> from sklip.export import relu_form
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LipschitzClassifier(max_epochs=5, hidden_layer_sizes=(8,), random_state=0).fit(X, y)
    >>> [type(layer).__name__ for layer in relu_form(clf.certified_network_)]
    ['Center', 'Linear', 'Residual', 'Linear']
    """
    network.check_unchanged()
    chain = flat_chain(network.network)
    if len(network.input_shape) > 1 and type(chain[0]) is not nn.Flatten:
        raise TypeError(_refusal(chain[0]))
    width, dtype = math.prod(network.input_shape), getattr(torch, network.arithmetic.dtype)
    found: list[nn.Module] = []
    for layer in chain:
        if type(layer) is layers.GroupSort2:
            found.append(_sorting(width).to(dtype))
        elif type(layer) in (nn.Linear, nn.ReLU, layers.Center, layers.Scale):
            found.append(copy.deepcopy(layer).cpu())
        elif type(layer) not in (nn.Flatten, nn.Identity, nn.Dropout):
            raise TypeError(_refusal(layer))
        width = len(layer.weight) if isinstance(layer, nn.Linear) else width
    return nn.Sequential(*found).eval().requires_grad_(False)


def _refusal(layer: nn.Module) -> str:
    return (
        f"{type(layer).__name__} has no form that other verifiers are sure to read; use dense layers "
        "with GroupSort2, as of architecture='mlp'."
    )


def _sorting(width: int) -> nn.Module:
    """Return GroupSort2 as in Note [Sorting by ReLU]."""
    pairs = torch.arange(width // 2)
    differences = torch.zeros(width // 2, width)
    differences[pairs, 2 * pairs], differences[pairs, 2 * pairs + 1] = 1.0, -1.0
    return layers.Residual(_linear(differences), nn.ReLU(), _linear(-differences.T))


def _linear(weight: Tensor) -> nn.Linear:
    # Without initial values: drawing them would move torch's global generator.
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight)
    return linear


def to_verifier_onnx(estimator: Any, path: str | os.PathLike[str]) -> None:
    r"""Write the logits of a fitted estimator to an ONNX file that other verifiers read.

    The file holds products of matrices, ReLU and additions only (Note [Sorting by ReLU]) in float32, as
    verifiers expect: input ``X`` of shape (n, n_columns), output ``logits`` of shape (n, n_outputs), of
    which the largest decides, or the sign if there is one. It is equal to the estimator up to rounding.
    Nothing is promised of it: what a verifier proves is of the file, as it evaluates it.

    Needs the extra scikit-lipschitz[onnx].

    Parameters
    ----------
    estimator : fitted estimator
        As for :func:`sklip.to_onnx`, with dense layers and GroupSort2 or ReLU between them, and without
        a SimpleImputer.
    path : str or path-like
        An existing file is replaced once the new one is complete.

    Raises
    ------
    TypeError
        For layers and steps of another kind.
    NotFittedError
        If the estimator is not fitted.
    OSError
        If the file can't be written; what stood there before still does.

    See Also
    --------
    relu_form : The same as a torch module.
    to_onnx : A file with certified radii.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_iris
    >>> from sklip import LipschitzClassifier, to_verifier_onnx
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LipschitzClassifier(max_epochs=5, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_verifier_onnx(clf, os.path.join(folder, "iris.onnx"))
    """
    chain, _ = chain_of(estimator)
    network = proven_network(chain.classifier, chain.method)
    plain = relu_form(network)
    inside = [inner for step in chain.steps for inner in nested_steps(step)]
    if any(type(step) is SimpleImputer for step in inside):
        raise TypeError(
            "SimpleImputer has no form that other verifiers read; leave it out and give the verifier "
            "rows without missing values."
        )
    n_columns = chain.n_columns(np.empty((1, 0)))
    graph = Graph("float32")
    rows = Rows(graph.input("X", ["n", n_columns]), n_columns)
    for step in chain.steps:
        rows = add_step(graph, step, rows)
    logits = add_network(graph, plain, rows.name, (rows.n_values,))
    graph.output("logits", logits, np.float32, ["n", network.n_outputs])
    graph.write(path, {"sklip": sklip.__version__})
