"""Provably robust classification with the scikit-learn API.

The rooms, in the order in which they may import each other:

* layers, losses, networks: 1-Lipschitz modules, criteria on logits, and how they are put together.
* certified: finished networks and what is proven of them. It needs torch and NumPy only.
* preprocessing: what is proven of fitted transformers, and of rows on their way through a pipeline.
* training: data, optimiser, CUDA graphs, augmentation, callbacks, the skorch net.
* metrics: numbers of labels and radii.
* estimators: parameters, validation, fit, predict, storage; a base and the classifier.
* certification: whole estimators: through which steps rows reach which networks, how those decide, and
  what is certified of that, in the units of the caller's own columns.
* export: estimators in ONNX files, with the radius in the graph, and for other verifiers.
* explanation: the nearest rows with another answer, upper bounds beside the radii.
* scoring, plots: scorers and refit rules for searches; pictures.
* path: tau and eps chosen by cross-validation, of which candidates share the work.
"""

from sklip.certification import (
    categorical_edit_lengths,
    certificates,
    certified_ranges,
    cross_val_certificates,
    nearest_rival,
    predict_or_reject,
    predict_with_radii,
    register_wrapper,
)
from sklip.certified import CertifiedNetwork, lipschitz_bound, lipschitz_estimate
from sklip.estimators import LipschitzClassifier
from sklip.explanation import counterfactual
from sklip.export import to_onnx, to_verifier_onnx
from sklip.metrics import (
    average_certified_radius_score,
    average_normalized_margin_score,
    certified_accuracy_score,
)
from sklip.path import LipschitzClassifierCV
from sklip.plots import (
    CertificateDisplay,
    CertifiedAccuracyDisplay,
    ParetoDisplay,
    TradeoffDisplay,
)
from sklip.scoring import average_certified_radius_scorer, certified_accuracy_scorer, most_robust

__all__ = [
    "CertificateDisplay",
    "CertifiedAccuracyDisplay",
    "CertifiedNetwork",
    "LipschitzClassifier",
    "LipschitzClassifierCV",
    "ParetoDisplay",
    "TradeoffDisplay",
    "average_certified_radius_score",
    "average_certified_radius_scorer",
    "average_normalized_margin_score",
    "categorical_edit_lengths",
    "certificates",
    "certified_accuracy_score",
    "certified_accuracy_scorer",
    "certified_ranges",
    "counterfactual",
    "cross_val_certificates",
    "lipschitz_bound",
    "lipschitz_estimate",
    "most_robust",
    "nearest_rival",
    "predict_or_reject",
    "predict_with_radii",
    "register_wrapper",
    "to_onnx",
    "to_verifier_onnx",
]

__version__ = "0.1.0"
