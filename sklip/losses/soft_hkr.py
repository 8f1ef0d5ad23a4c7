r"""HKR losses in which the wrong classes count by a soft maximum."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from sklip.losses.hkr import hkr_sum
from sklip.losses.parameters import Loss
from sklip.losses.reductions import check_non_negative, check_positive, one_hot_mask, weighted_mean

__all__ = [
    "MulticlassLogSumExpHKRLoss",
    "MulticlassSoftHKRLoss",
]


class MulticlassLogSumExpHKRLoss(Loss):
    r"""HKR between the true logit and a soft maximum of the others (LSE-HKR).

    With :math:`t = \ln(C - 1) / (p\,m/2)` and :math:`g = \frac1t \ln \sum_{j \ne y} e^{t f_j}`,
    which exceeds the largest other logit by at most :math:`p\,m/2`, each sample pays

    .. math:: \alpha\,[\mathrm{relu}(m/2 - f_y) + \mathrm{relu}(m/2 + g)] - (f_y - g) .

    For two classes g is the other logit.

    Parameters
    ----------
    min_margin : float
        Margin m of the hinge.
    alpha : float
        Weight of the hinge, at least 0; infinity leaves the hinge alone.
    penalty : float, default=1.0
        The factor p: how far the soft maximum may exceed the maximum, in halves of the margin.

    References
    ----------
    The loss LseHKRMulticlassLoss of deel-torchlip 1.0.5, with the alpha of the tutorial.
    """

    def __init__(self, min_margin: float, alpha: float, penalty: float = 1.0) -> None:
        super().__init__()
        self.min_margin = check_positive("min_margin", min_margin)
        self.alpha = check_non_negative("alpha", alpha)
        self.penalty = check_positive("penalty", penalty)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        member = one_hot_mask(logits, target)
        half = self.min_margin / 2
        true = logits.gather(1, target.unsqueeze(1)).squeeze(1)
        others = logits.masked_fill(member, -math.inf)
        if logits.shape[1] == 2:
            rival = others.amax(1)
        else:
            t = math.log(logits.shape[1] - 1) / (self.penalty * half)
            rival = torch.logsumexp(t * others, 1) / t
        hinge = functional.relu(half - true) + functional.relu(half + rival)
        return hkr_sum(
            weighted_mean(true - rival, sample_weight),
            weighted_mean(hinge, sample_weight),
            self.alpha,
        )


class MulticlassSoftHKRLoss(Loss):
    r"""HKR in which the wrong classes count by a softmax of their logits.

    Each sample pays :math:`\sum_c p_c\,[\alpha\,\mathrm{relu}(m/2 - s_c f_c) - s_c f_c]`, where
    :math:`p_y = 1` for the true class and p is the softmax of :math:`T f` over the others. The
    temperature follows the size of the logits, :math:`T = T_0\, m / \max(\mu, m)` clipped to
    [0.005, 250], with :math:`\mu` a running mean of :math:`|f|` that starts at m and is kept in
    [0.005, 1000]. No gradient passes through T.

    Parameters
    ----------
    min_margin : float
        Margin m of the hinge.
    alpha : float
        Weight of the hinge, at least 0; infinity leaves the hinge alone.
    decay : float, default=0.99
        Factor of the running mean.
    temperature : float, default=1.0
        The factor :math:`T_0`.

    References
    ----------
    Serrurier et al. (2024), On the explainable properties of 1-Lipschitz neural networks: an
    optimal transport perspective; the loss SoftHKRMulticlassLoss of deel-torchlip 1.0.5, with the
    alpha of the tutorial.
    """

    running_mean: Tensor

    def __init__(
        self, min_margin: float, alpha: float, decay: float = 0.99, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.min_margin = check_positive("min_margin", min_margin)
        self.alpha = check_non_negative("alpha", alpha)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay!r}.")
        self.decay = float(decay)
        self.temperature = check_positive("temperature", temperature)
        self.register_buffer("running_mean", torch.tensor(self.min_margin))

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar; in training mode the running mean moves on."""
        member = one_hot_mask(logits, target)
        with torch.no_grad():
            mean = self.running_mean = self.running_mean.to(logits)
            if self.training:
                size = weighted_mean(logits.abs().mean(1), sample_weight)
                mean = torch.lerp(size, mean, self.decay)
                # In place: a step that was recorded writes to where the buffer lay.
                self.running_mean.copy_(mean.clamp(0.005, 1000.0))
            temperature = self.temperature * self.min_margin / mean.clamp(min=self.min_margin)
            temperature = temperature.clamp(0.005, 250.0)
        share = torch.softmax((temperature * logits).masked_fill(member, -math.inf), 1)
        share = share.masked_fill(member, 1.0)
        signed = torch.where(member, logits, -logits)
        hinge = functional.relu(self.min_margin / 2 - signed)
        return hkr_sum(
            weighted_mean((share * signed).sum(1), sample_weight),
            weighted_mean((share * hinge).sum(1), sample_weight),
            self.alpha,
        )
