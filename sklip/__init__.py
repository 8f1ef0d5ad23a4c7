"""Provably robust classification with the scikit-learn API."""

from sklip.bounds import lipschitz_bound
from sklip.certification import certificates
from sklip.estimates import lipschitz_estimate
from sklip.estimator import LipschitzClassifier
from sklip.metrics import (
    average_certified_radius_score,
    average_signed_radius_score,
    certified_accuracy_score,
)
from sklip.plots import CertifiedAccuracyDisplay, TradeoffDisplay
from sklip.scoring import average_certified_radius_scorer, certified_accuracy_scorer, most_robust

__all__ = [
    "CertifiedAccuracyDisplay",
    "LipschitzClassifier",
    "TradeoffDisplay",
    "average_certified_radius_score",
    "average_certified_radius_scorer",
    "average_signed_radius_score",
    "certificates",
    "certified_accuracy_score",
    "certified_accuracy_scorer",
    "lipschitz_bound",
    "lipschitz_estimate",
    "most_robust",
]

__version__ = "0.1.0"
