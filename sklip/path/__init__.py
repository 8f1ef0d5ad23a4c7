"""Tau and eps chosen by cross-validation, along a path of warm starts."""

from sklip.path.classifier import LipschitzClassifierCV

__all__ = ["LipschitzClassifierCV"]
