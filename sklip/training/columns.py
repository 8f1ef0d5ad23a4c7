r"""Columns of a table that are weakened where they are no better than noise.

Note [Weights of columns]
-------------------------
An orthogonal layer keeps every column at its full size, so a network that fits its training rows
exactly fits them through noise as well as through anything else: of 100 columns with 5 that matter
and 160 rows, it is right on 64 % of other rows. A :class:`sklip.layers.ColumnWeightedLinear` has a
weight in [0, 1] for each column, which costs nothing in robustness, and training is to lower those
of noise. A column that has nothing to do with the target changes the mean loss of n rows by chance:
the derivative by its weight has a standard deviation of at most

.. math::
    \sigma_c \, \rho / \sqrt n, \qquad
    \rho^2 = \tfrac1n \sum_i \|\partial \ell_i / \partial f(x_i)\|^2 ,

with :math:`\sigma_c` that of the column, since logits move no faster than the input. So each weight
is pulled down by a share :math:`\kappa` of that, and only a column that helps by more keeps it: an
L1 penalty in the manner of the square-root lasso, which needs no knowledge of the noise, since
:math:`\rho` is measured at each step. Where the rows are fitted, :math:`\rho` and the pull are
small, so columns that all agree keep their weights, and radii with them.

Accuracy and mean certified radius (5 folds; 64-64 network, 60 steps): 100 columns, 5 of which
matter, 200 rows 0.63 / 0.36 without weights, 0.90 / 0.70 with them (LogisticRegression 0.73,
MLPClassifier 0.62); wine 0.98 / 1.36 and 0.98 / 1.22; German credit 0.744 / 0.42 and 0.729 / 0.31.
So it depends on the table, and held-out rows decide: see :mod:`sklip.estimators.column_choice`.

References
----------
Belloni, Chernozhukov, Wang (2011), Square-root lasso, arXiv 1009.5689.
"""

from __future__ import annotations

from torch import Tensor, nn

from sklip.layers import ColumnWeightedLinear

__all__ = ["penalize_", "weighted_columns"]

# Share of the standard deviation. With 0.5 noise goes as well, but German credit falls to 0.72.
_KAPPA = 0.3


def weighted_columns(module: nn.Module, scales: Tensor | None) -> list[nn.Parameter]:
    """Return the weights of the columns in `module` that `scales`, (..., n_features), can be for."""
    return [
        layer.column_weights
        for layer in module.modules()
        if isinstance(layer, ColumnWeightedLinear)
        and scales is not None
        and layer.in_features == scales.shape[-1]
    ]


def penalize_(
    weights: nn.Parameter, scales: Tensor, logits: Tensor, sample_weight: Tensor | None
) -> None:
    """Add the pull on the weights of columns to their gradient. See Note [Weights of columns].

    Where the scale is 0 the gradient becomes 0: a column that does not vary keeps its weight.

    Parameters
    ----------
    weights : Parameter of shape (n_features,), or (n_networks, n_features)
        With its gradient of a mean loss.
    scales : Tensor of shape (n_features,), or (n_networks, n_features)
        Standard deviations of the columns over the root of the number of rows.
    logits : Tensor of shape (n_samples, n_outputs), or (n_networks, n_samples, n_outputs)
        With their gradient.
    sample_weight : Tensor of shape (n_samples,), or None
    """
    if weights.grad is None:  # frozen
        return
    assert logits.grad is not None, "of logits that keep their gradient"
    squares = logits.grad.square().sum(-1)
    # Row i counts w_i / sum(w) in a mean; so does the gradient by its logits, twice when squared.
    if sample_weight is None:
        size = (squares.sum(-1, keepdim=True) * squares.shape[-1]).sqrt()
    else:
        size = ((squares / sample_weight).sum(-1, keepdim=True) * sample_weight.sum()).sqrt()
    weights.grad.add_(_KAPPA * size * scales).mul_(scales > 0)
