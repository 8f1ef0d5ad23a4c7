"""Files run by onnxruntime, at both ends of what its optimiser does."""

import numpy as np
import onnxruntime
import pytest

LEVELS = onnxruntime.GraphOptimizationLevel


def opened(path, *, optimised=True):
    """A function of rows that returns the outputs of a file by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = LEVELS.ORT_ENABLE_ALL if optimised else LEVELS.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    kind = {"tensor(double)": np.float64, "tensor(float)": np.float32}[session.get_inputs()[0].type]

    def outputs(X):
        return dict(zip(names, session.run(None, {"X": np.asarray(X, dtype=kind)}), strict=True))

    return outputs


@pytest.fixture(name="opened")
def _opened():
    return opened


@pytest.fixture
def run():
    return lambda path, X, **arguments: opened(path, **arguments)(X)
