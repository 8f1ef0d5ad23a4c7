"""Estimators on certified networks."""

from sklip.estimators.classifier import LipschitzClassifier
from sklip.estimators.side_by_side import fitted_side_by_side, is_faster_side_by_side

__all__ = ["LipschitzClassifier", "fitted_side_by_side", "is_faster_side_by_side"]
