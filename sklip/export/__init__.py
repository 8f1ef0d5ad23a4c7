"""Fitted estimators in ONNX files: as services with certificates, and for other verifiers."""

from sklip.export.service import to_onnx

__all__ = ["to_onnx"]
