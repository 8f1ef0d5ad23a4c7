"""Fitted estimators in ONNX files: as services with certificates, and for other verifiers.

* graph: files, node by node.
* layers, steps: networks and transformers as operators.
* charges, answers: what is set aside of margins, and the label, probabilities and radius at the end.
* service, verifiers: the public functions.
"""

from sklip.export.service import to_onnx
from sklip.export.verifiers import relu_form, to_verifier_onnx

__all__ = ["relu_form", "to_onnx", "to_verifier_onnx"]
