"""Tau and eps chosen by cross-validation, of which candidates share the work."""

from sklip.path.classifier import LipschitzClassifierCV

__all__ = ["LipschitzClassifierCV"]
