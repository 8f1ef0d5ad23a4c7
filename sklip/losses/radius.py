r"""A reward for certified radii, beside any other loss."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from sklip.losses.parameters import Loss
from sklip.losses.reductions import (
    check_non_negative,
    check_positive,
    normalized_margins,
    weighted_mean,
)

__all__ = ["CertifiedRadiusLoss"]


class CertifiedRadiusLoss(Loss):
    r"""Another loss, minus `weight` times the mean radius that counts.

    A sample's radius is its margin over :math:`\sqrt 2` (the logit's distance from 0 for two classes),
    0 where the prediction is wrong, and no more than `radius`: beyond what is wanted nothing is gained.

    Parameters
    ----------
    loss : torch.nn.Module
        Loss that takes (logits, target, sample_weight).
    weight : float
        Weight of the mean radius, at least 0.
    radius : float
        Largest radius that counts, in the units of X.

    References
    ----------
    Hu et al. (2023), Unlocking deterministic robustness certification on ImageNet, arXiv 2301.12549
    (which rewards radii without an upper end).

    Examples
    --------
    >>> import torch
    >>> from sklip.losses import CertifiedRadiusLoss, TauCrossEntropyLoss
    >>> loss = CertifiedRadiusLoss(TauCrossEntropyLoss(3.0), weight=0.5, radius=1.0)
    >>> loss(torch.tensor([[0.0, 2.0]]), torch.tensor([1])) < 0
    tensor(True)
    """

    def __init__(self, loss: nn.Module, weight: float, radius: float) -> None:
        super().__init__()
        self.loss = loss
        self.weight = check_non_negative("weight", weight)
        self.radius = check_positive("radius", radius)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        plain: Tensor = self.loss(logits, target, sample_weight)
        radii = functional.relu(normalized_margins(logits, target)).clamp(max=self.radius)
        return plain - self.weight * weighted_mean(radii, sample_weight)
