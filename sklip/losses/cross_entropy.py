r"""Cross-entropy with a temperature, an offset and annealing."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from sklip.losses.parameters import Loss
from sklip.losses.reductions import binary_scores, check_positive, weighted_mean

__all__ = ["BinaryTauCrossEntropyLoss", "TauCrossEntropyLoss"]


class _TauCrossEntropy(Loss):
    def __init__(self, tau: float, offset: float = 0.0, annealing: float = 0.0) -> None:
        super().__init__()
        self.tau = check_positive("tau", tau)
        if not 0 <= offset < math.inf:
            raise ValueError(f"offset must be at least 0 and finite, got {offset!r}.")
        self.offset = float(offset)
        if not (annealing == 0 or 1 <= annealing < math.inf):
            # Between 0 and 1 the gradient of a certain prediction is infinite.
            raise ValueError(f"annealing must be 0, or at least 1 and finite, got {annealing!r}.")
        self.annealing = float(annealing)

    def _mean(self, each: Tensor, sample_weight: Tensor | None) -> Tensor:
        """Mean of cross-entropies ``-log p``, annealed by ``(1 - p) ** annealing``."""
        if self.annealing:
            each = each * torch.expm1(-each).neg().pow(self.annealing)
        return weighted_mean(each, sample_weight) / self.tau


class TauCrossEntropyLoss(_TauCrossEntropy):
    r"""Cross-entropy with temperature, :math:`\mathrm{CE}(\tau f, y) / \tau`.

    A lower tau gives a more robust and less accurate network.

    With an offset m the true logit counts as :math:`f_y - m`. For :math:`m = \sqrt 2\,\varepsilon`
    and a 1-Lipschitz network that bounds, from above, the cross-entropy of every input within
    :math:`\varepsilon`: training for a radius. With annealing, each sample's cross-entropy
    :math:`-\log p` is multiplied by :math:`(1 - p)^\beta`: what has margin enough counts no longer, and
    the network's capacity goes to the other samples.

    Parameters
    ----------
    tau : float
        Positive; 1 / tau is the size of the margins, in the units of X, that training asks for.
    offset : float, default=0.0
        The margin m, at least 0, in the units of the logits.
    annealing : float, default=0.0
        The exponent :math:`\beta`: 0, or at least 1.

    References
    ----------
    Tsuzuku, Sato, Sugiyama (2018), Lipschitz-margin training, arXiv 1802.04034, and Prach and Lampert
    (2022), Almost-orthogonal layers, arXiv 2208.03160 (offset). Lai et al. (2025), Enhancing
    certified robustness via block reflector orthogonal layers and logit annealing loss, arXiv
    2505.15174 (annealing).

    Examples
    --------
    >>> import torch
    >>> from sklip.losses import TauCrossEntropyLoss
    >>> loss = TauCrossEntropyLoss(tau=2.0)
    >>> round(float(loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))), 4)
    0.3466
    """

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        if self.offset:
            true = functional.one_hot(target, logits.shape[1]).to(logits.dtype)
            logits = logits - self.offset * true
        if sample_weight is None and not self.annealing:
            return functional.cross_entropy(self.tau * logits, target) / self.tau
        each = functional.cross_entropy(self.tau * logits, target, reduction="none")
        return self._mean(each, sample_weight)


class BinaryTauCrossEntropyLoss(_TauCrossEntropy):
    r"""Binary cross-entropy with temperature, :math:`\mathrm{BCE}(\tau f, y) / \tau`.

    With an offset m, the logit counts as :math:`f - m` for class 1 and :math:`f + m` for class 0; for a
    1-Lipschitz network :math:`m = \varepsilon` trains for the radius :math:`\varepsilon`. See
    :class:`TauCrossEntropyLoss`.

    Parameters
    ----------
    tau : float
        Positive; a lower tau gives a more robust and less accurate network.
    offset : float, default=0.0
        The margin m, at least 0.
    annealing : float, default=0.0
        The exponent :math:`\beta`: 0, or at least 1.
    """

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        scores = binary_scores(logits)
        membership = target.to(scores.dtype)
        if self.offset:
            scores = scores - self.offset * (2 * membership - 1)
        each = functional.binary_cross_entropy_with_logits(
            self.tau * scores, membership, reduction="none"
        )
        return self._mean(each, sample_weight)
