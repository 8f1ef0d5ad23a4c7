"""Files run by onnxruntime, at both ends of what its optimiser does."""

import numpy as np
import onnxruntime
import pytest

LEVELS = onnxruntime.GraphOptimizationLevel


def run(path, X, *, optimised=True):
    """Outputs of a file by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = LEVELS.ORT_ENABLE_ALL if optimised else LEVELS.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    kind = {"tensor(double)": np.float64, "tensor(float)": np.float32}[session.get_inputs()[0].type]
    return dict(zip(names, session.run(None, {"X": np.asarray(X, dtype=kind)}), strict=True))


@pytest.fixture(name="run")
def _run():
    return run
