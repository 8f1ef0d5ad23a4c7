"""Estimators on certified networks."""

from sklip.estimators.classifier import LipschitzClassifier

__all__ = ["LipschitzClassifier"]
