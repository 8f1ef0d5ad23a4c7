r"""Losses on the logits of a Lipschitz network.

All losses take ``(logits, target, sample_weight=None)`` and return a scalar tensor.

* Multiclass: `logits` of shape (n, n_classes), `target` of shape (n,) with class indices.
* Binary: `logits` of shape (n,) or (n, 1), `target` of shape (n,) with 0 or 1.

Weights act as repetitions of the samples would: averages over samples are
:math:`\sum w_i l_i / \sum w_i`, class means in the KR terms are weighted means.

A Lipschitz network can't scale its logits, so the losses have parameters that do: `tau`,
`min_margin` and `alpha` set where between accuracy and robustness the network ends.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "BinaryHKRLoss",
    "BinaryHingeLoss",
    "BinaryKRLoss",
    "BinaryTauCrossEntropyLoss",
    "CategoricalHingeLoss",
    "MulticlassHKRLoss",
    "MulticlassHingeLoss",
    "MulticlassKRLoss",
    "MulticlassLogSumExpHKRLoss",
    "MulticlassSoftHKRLoss",
    "TauCrossEntropyLoss",
]


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}.")
    return float(value)


def _non_negative(name: str, value: float) -> float:
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0 (infinity is allowed), got {value!r}.")
    return float(value)


def _weighted_mean(values: Tensor, sample_weight: Tensor | None) -> Tensor:
    if sample_weight is None:
        return values.mean()
    return (values * sample_weight).sum() / sample_weight.sum()


def _hkr(kr: Tensor, hinge: Tensor, alpha: float) -> Tensor:
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


def _one_hot(logits: Tensor, target: Tensor) -> Tensor:
    return functional.one_hot(target, logits.shape[1]).bool()


def _multiclass_hinge(logits: Tensor, member: Tensor, min_margin: float) -> Tensor:
    """Hinge of each sample: mean over classes, the true class counted n_classes - 1 times."""
    n_classes = logits.shape[1]
    hinge = functional.relu(min_margin / 2 - torch.where(member, logits, -logits))
    return torch.where(member, (n_classes - 1) * hinge, hinge).mean(1)


class TauCrossEntropyLoss(nn.Module):
    r"""Cross-entropy with temperature, :math:`\mathrm{CE}(\tau f, y) / \tau`.

    A lower tau gives a more robust and less accurate network.

    Parameters
    ----------
    tau : float
        Positive; 1 / tau is the size of the margins, in the units of X, that training asks for.

    Examples
    --------
    >>> import torch
    >>> from sklip.losses import TauCrossEntropyLoss
    >>> loss = TauCrossEntropyLoss(tau=2.0)
    >>> round(float(loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))), 4)
    0.3466
    """

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = _positive("tau", tau)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        if sample_weight is None:
            return functional.cross_entropy(self.tau * logits, target) / self.tau
        each = functional.cross_entropy(self.tau * logits, target, reduction="none")
        return _weighted_mean(each, sample_weight) / self.tau


class MulticlassKRLoss(nn.Module):
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
        return -_kr(logits, _one_hot(logits, target), sample_weight).mean()


class MulticlassHingeLoss(nn.Module):
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
        self.min_margin = _positive("min_margin", min_margin)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        hinge = _multiclass_hinge(logits, _one_hot(logits, target), self.min_margin)
        return _weighted_mean(hinge, sample_weight)


class MulticlassHKRLoss(nn.Module):
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
        self.min_margin = _positive("min_margin", min_margin)
        self.alpha = _non_negative("alpha", alpha)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        member = _one_hot(logits, target)
        kr = _kr(logits, member, sample_weight).mean()
        hinge = _multiclass_hinge(logits, member, self.min_margin)
        return _hkr(kr, _weighted_mean(hinge, sample_weight), self.alpha)


class CategoricalHingeLoss(nn.Module):
    r"""Hinge on the full margin, :math:`\mathrm{relu}(m - (f_y - \max_{j \ne y} f_j))`.

    Parameters
    ----------
    min_margin : float
        The margin m between the true logit and the largest other that costs nothing.
    """

    def __init__(self, min_margin: float) -> None:
        super().__init__()
        self.min_margin = _positive("min_margin", min_margin)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        member = _one_hot(logits, target)
        rival = logits.masked_fill(member, -math.inf).amax(1)
        margin = logits.gather(1, target.unsqueeze(1)).squeeze(1) - rival
        return _weighted_mean(functional.relu(self.min_margin - margin), sample_weight)


class MulticlassLogSumExpHKRLoss(nn.Module):
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
        self.min_margin = _positive("min_margin", min_margin)
        self.alpha = _non_negative("alpha", alpha)
        self.penalty = _positive("penalty", penalty)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        member = _one_hot(logits, target)
        half = self.min_margin / 2
        true = logits.gather(1, target.unsqueeze(1)).squeeze(1)
        others = logits.masked_fill(member, -math.inf)
        if logits.shape[1] == 2:
            rival = others.amax(1)
        else:
            t = math.log(logits.shape[1] - 1) / (self.penalty * half)
            rival = torch.logsumexp(t * others, 1) / t
        hinge = functional.relu(half - true) + functional.relu(half + rival)
        return _hkr(
            _weighted_mean(true - rival, sample_weight),
            _weighted_mean(hinge, sample_weight),
            self.alpha,
        )


class MulticlassSoftHKRLoss(nn.Module):
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
        self.min_margin = _positive("min_margin", min_margin)
        self.alpha = _non_negative("alpha", alpha)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay!r}.")
        self.decay = float(decay)
        self.temperature = _positive("temperature", temperature)
        self.register_buffer("running_mean", torch.tensor(self.min_margin))

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar; in training mode the running mean moves on."""
        member = _one_hot(logits, target)
        with torch.no_grad():
            mean = self.running_mean.to(logits)
            if self.training:
                size = _weighted_mean(logits.abs().mean(1), sample_weight)
                mean = torch.lerp(size, mean, self.decay)
                self.running_mean = mean.clamp(0.005, 1000.0)
            temperature = self.temperature * self.min_margin / mean.clamp(min=self.min_margin)
            temperature = temperature.clamp(0.005, 250.0)
        share = torch.softmax((temperature * logits).masked_fill(member, -math.inf), 1)
        share = share.masked_fill(member, 1.0)
        signed = torch.where(member, logits, -logits)
        hinge = functional.relu(self.min_margin / 2 - signed)
        return _hkr(
            _weighted_mean((share * signed).sum(1), sample_weight),
            _weighted_mean((share * hinge).sum(1), sample_weight),
            self.alpha,
        )


def _binary(logits: Tensor) -> Tensor:
    if logits.ndim == 2 and logits.shape[1] == 1:
        logits = logits.squeeze(1)
    if logits.ndim != 1:
        raise ValueError(f"logits must have shape (n,) or (n, 1), got {tuple(logits.shape)}.")
    return logits


class BinaryTauCrossEntropyLoss(nn.Module):
    r"""Binary cross-entropy with temperature, :math:`\mathrm{BCE}(\tau f, y) / \tau`.

    Parameters
    ----------
    tau : float
        Positive; a lower tau gives a more robust and less accurate network.
    """

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = _positive("tau", tau)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        scores = _binary(logits)
        each = functional.binary_cross_entropy_with_logits(
            self.tau * scores, target.to(scores.dtype), reduction="none"
        )
        return _weighted_mean(each, sample_weight) / self.tau


class BinaryKRLoss(nn.Module):
    r"""Negative Kantorovich-Rubinstein term, mean of f over class 0 minus its mean over class 1.

    A mean over no samples counts 0.

    References
    ----------
    Serrurier et al. (2021), arXiv 2006.06520.
    """

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        member = (target > 0).unsqueeze(1)
        return -_kr(_binary(logits).unsqueeze(1), member, sample_weight).squeeze(0)


class BinaryHingeLoss(nn.Module):
    r"""Hinge on the signed logit, :math:`\mathrm{relu}(m/2 - s f)` with s = +1 for class 1 else -1.

    Parameters
    ----------
    min_margin : float
        The margin m between the two classes that costs nothing.
    """

    def __init__(self, min_margin: float) -> None:
        super().__init__()
        self.min_margin = _positive("min_margin", min_margin)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        scores = _binary(logits)
        signed = torch.where(target > 0, scores, -scores)
        return _weighted_mean(functional.relu(self.min_margin / 2 - signed), sample_weight)


class BinaryHKRLoss(nn.Module):
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
        self.alpha = _non_negative("alpha", alpha)
        self.negative_kr = BinaryKRLoss()
        self.hinge = BinaryHingeLoss(min_margin)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        kr = -self.negative_kr(logits, target, sample_weight)
        return _hkr(kr, self.hinge(logits, target, sample_weight), self.alpha)
