"""Tau and eps chosen by cross-validation, on larger data along a path of warm starts."""

from sklip.path.classifier import LipschitzClassifierCV

__all__ = ["LipschitzClassifierCV"]
