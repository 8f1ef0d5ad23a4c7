"""Provably robust classification with the scikit-learn API."""

from sklip.bounds import lipschitz_bound
from sklip.estimator import LipschitzClassifier
from sklip.radii import certificates

__all__ = [
    "LipschitzClassifier",
    "certificates",
    "lipschitz_bound",
]

__version__ = "0.1.0"
