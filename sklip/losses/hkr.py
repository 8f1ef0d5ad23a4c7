r"""Kantorovich-Rubinstein terms, hinges, and their sum: HKR."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from sklip.losses.parameters import Loss
from sklip.losses.reductions import (
    binary_scores,
    check_non_negative,
    check_positive,
    normalized_margins,
    one_hot_mask,
    true_margins,
    weighted_mean,
)

__all__ = [
    "BinaryHKRLoss",
    "BinaryHingeLoss",
    "BinaryKRLoss",
    "CategoricalHingeLoss",
    "MulticlassHKRLoss",
    "MulticlassHingeLoss",
    "MulticlassKRLoss",
]


def hkr_sum(kr: Tensor, hinge: Tensor, alpha: float) -> Tensor:
    """Weighted difference of both terms; the hinge alone for an infinite alpha."""
    return hinge if alpha == math.inf else alpha * hinge - kr


def _kr(scores: Tensor, membership: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Mean of each column's scores over its members minus the mean over the others."""
    inside = membership.to(scores.dtype)
    outside = 1 - inside
    if sample_weight is not None:
        weight = sample_weight.unsqueeze(1)
        inside, outside = inside * weight, outside * weight
    return _mean_or_zero(scores, inside) - _mean_or_zero(scores, outside)


def _mean_or_zero(scores: Tensor, weights: Tensor) -> Tensor:
    totals = weights.sum(0)
    empty = totals == 0
    return torch.where(empty, 0.0, (scores * weights).sum(0) / torch.where(empty, 1.0, totals))


def _multiclass_hinge(logits: Tensor, member: Tensor, min_margin: float) -> Tensor:
    """Hinge of each sample: mean over classes, the true class counted n_classes - 1 times."""
    n_classes = logits.shape[1]
    hinge = functional.relu(min_margin / 2 - torch.where(member, logits, -logits))
    return torch.where(member, (n_classes - 1) * hinge, hinge).mean(1)


class MulticlassKRLoss(Loss):
    r"""Negative Kantorovich-Rubinstein term, :math:`-\frac1C \sum_c \mathrm{KR}_c`.

    :math:`\mathrm{KR}_c` is the mean of :math:`f_c` over the batch's samples of class c minus its
    mean over the others; a mean over no samples counts 0. For a 1-Lipschitz network it is a lower
    bound on the Wasserstein-1 distance between a class and the rest.

    References
    ----------
    Serrurier et al. (2021), arXiv 2006.06520.
    """

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        return -_kr(logits, one_hot_mask(logits, target), sample_weight).mean()


class MulticlassHingeLoss(Loss):
    r"""Hinge on every logit, mean over classes and samples.

    For class c it is :math:`\mathrm{relu}(m/2 - s_c f_c)` with :math:`s_c = +1` for the true class
    and -1 otherwise; the true class' term is multiplied by C - 1.

    Parameters
    ----------
    min_margin : float
        The margin m between the true logit and the others that costs nothing.

    References
    ----------
    Serrurier et al. (2021), arXiv 2006.06520.
    """

    def __init__(self, min_margin: float) -> None:
        super().__init__()
        self.min_margin = check_positive("min_margin", min_margin)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        hinge = _multiclass_hinge(logits, one_hot_mask(logits, target), self.min_margin)
        return weighted_mean(hinge, sample_weight)


class MulticlassHKRLoss(Loss):
    r"""Hinge-regularised Kantorovich-Rubinstein loss, :math:`\alpha \, \mathrm{hinge} - \mathrm{KR}`.

    A higher `min_margin` and a lower `alpha` give a more robust and less accurate network.

    Parameters
    ----------
    min_margin : float
        Margin of the hinge term, see :class:`MulticlassHingeLoss`.
    alpha : float
        Weight of the hinge term, at least 0; infinity leaves the hinge alone. It is the alpha of
        the deel-lip tutorial (50, 1000), not deel-torchlip's, which lies in [0, 1].

    References
    ----------
    Serrurier et al. (2021), arXiv 2006.06520.

    Examples
    --------
    >>> import torch
    >>> from sklip.losses import MulticlassHKRLoss
    >>> loss = MulticlassHKRLoss(min_margin=1.0, alpha=10.0)
    >>> logits = torch.tensor([[0.5, -0.5], [-0.5, 0.5]])
    >>> float(loss(logits, torch.tensor([0, 1])))
    -1.0
    """

    def __init__(self, min_margin: float, alpha: float) -> None:
        super().__init__()
        self.min_margin = check_positive("min_margin", min_margin)
        self.alpha = check_non_negative("alpha", alpha)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        member = one_hot_mask(logits, target)
        kr = _kr(logits, member, sample_weight).mean()
        hinge = _multiclass_hinge(logits, member, self.min_margin)
        return hkr_sum(kr, weighted_mean(hinge, sample_weight), self.alpha)


class CategoricalHingeLoss(Loss):
    r"""Hinge on the full margin, :math:`\mathrm{relu}(m - (f_y - \max_{j \ne y} f_j))`.

    Parameters
    ----------
    min_margin : float
        The margin m between the true logit and the largest other that costs nothing.
    """

    def __init__(self, min_margin: float) -> None:
        super().__init__()
        self.min_margin = check_positive("min_margin", min_margin)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        margins = true_margins(logits, target)
        return weighted_mean(functional.relu(self.min_margin - margins), sample_weight)


class BinaryKRLoss(Loss):
    r"""Negative Kantorovich-Rubinstein term, mean of f over class 0 minus its mean over class 1.

    A mean over no samples counts 0.

    References
    ----------
    Serrurier et al. (2021), arXiv 2006.06520.
    """

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        member = (target > 0).unsqueeze(1)
        return -_kr(binary_scores(logits).unsqueeze(1), member, sample_weight).squeeze(0)


class BinaryHingeLoss(Loss):
    r"""Hinge on the signed logit, :math:`\mathrm{relu}(m/2 - s f)` with s = +1 for class 1 else -1.

    Parameters
    ----------
    min_margin : float
        The margin m between the two classes that costs nothing.
    """

    def __init__(self, min_margin: float) -> None:
        super().__init__()
        self.min_margin = check_positive("min_margin", min_margin)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        signed = normalized_margins(binary_scores(logits), target)
        return weighted_mean(functional.relu(self.min_margin / 2 - signed), sample_weight)


class BinaryHKRLoss(Loss):
    r"""Binary hinge-regularised Kantorovich-Rubinstein loss.

    Parameters
    ----------
    min_margin : float
        Margin of the hinge term, see :class:`BinaryHingeLoss`.
    alpha : float
        Weight of the hinge term, at least 0; infinity leaves the hinge alone.

    References
    ----------
    Serrurier et al. (2021), arXiv 2006.06520.
    """

    def __init__(self, min_margin: float, alpha: float) -> None:
        super().__init__()
        self.min_margin = check_positive("min_margin", min_margin)
        self.alpha = check_non_negative("alpha", alpha)
        self.negative_kr = BinaryKRLoss()
        self.hinge = BinaryHingeLoss(min_margin)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        kr = -self.negative_kr(logits, target, sample_weight)
        return hkr_sum(kr, self.hinge(logits, target, sample_weight), self.alpha)
