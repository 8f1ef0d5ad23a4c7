r"""Losses on the logits of a Lipschitz network.

All losses take ``(logits, target, sample_weight=None)`` and return a scalar tensor.

* Multiclass: `logits` of shape (n, n_classes), `target` of shape (n,) with class indices.
* Binary: `logits` of shape (n,) or (n, 1), `target` of shape (n,) with 0 or 1.

Weights act as repetitions of the samples would: averages over samples are
:math:`\sum w_i l_i / \sum w_i`, class means in the KR terms are weighted means.

A Lipschitz network can't scale its logits, so the losses have parameters that do: `tau`,
`min_margin` and `alpha` set where between accuracy and robustness the network ends.
"""

from sklip.losses.cross_entropy import BinaryTauCrossEntropyLoss, TauCrossEntropyLoss
from sklip.losses.hkr import (
    BinaryHingeLoss,
    BinaryHKRLoss,
    BinaryKRLoss,
    CategoricalHingeLoss,
    MulticlassHingeLoss,
    MulticlassHKRLoss,
    MulticlassKRLoss,
)
from sklip.losses.radius import CertifiedRadiusLoss
from sklip.losses.soft_hkr import MulticlassLogSumExpHKRLoss, MulticlassSoftHKRLoss

__all__ = [
    "BinaryHKRLoss",
    "BinaryHingeLoss",
    "BinaryKRLoss",
    "BinaryTauCrossEntropyLoss",
    "CategoricalHingeLoss",
    "CertifiedRadiusLoss",
    "MulticlassHKRLoss",
    "MulticlassHingeLoss",
    "MulticlassKRLoss",
    "MulticlassLogSumExpHKRLoss",
    "MulticlassSoftHKRLoss",
    "TauCrossEntropyLoss",
]
