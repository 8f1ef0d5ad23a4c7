"""What belongs to the whole process: no operation changes it, and results do not depend on it."""

import contextlib
import copy
import gc
import locale
import logging
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
import sklearn
import torch
from matplotlib import pyplot as plt
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_info

from sklip import (
    CertifiedAccuracyDisplay,
    LipschitzClassifier,
    LipschitzClassifierCV,
    certified_ranges,
    counterfactual,
    to_onnx,
)

PARAMETERS = {"hidden_layer_sizes": (8,), "max_epochs": 2, "random_state": 0}


def quick(**parameters):
    return LipschitzClassifier(**{**PARAMETERS, **parameters})


def flushes():
    return bool(torch.tensor([1e-310], dtype=torch.float64).mul(1.0) == 0)


def snapshot():
    """All that a process shares, by name."""
    return {
        "torch's generator": torch.get_rng_state().tolist(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "torch's threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "backends": (torch.backends.mkldnn.enabled, torch.backends.cudnn.flags),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomalies": torch.is_anomaly_enabled(),
        "flushing": flushes(),
        "function modes": len(torch.overrides._get_current_function_mode_stack()),
        "numpy's generator": repr(np.random.get_state(legacy=False)),
        "numpy's errors": np.geterr(),
        "numpy's printing": repr(np.get_printoptions()),
        "Python's generator": random.getstate(),
        "filters of warnings": (list(warnings.filters), warnings.showwarning),
        "environment": dict(os.environ),
        "handlers of signals": {s: signal.getsignal(s) for s in signal.valid_signals()},
        "locale": locale.setlocale(locale.LC_ALL),
        "directory": os.getcwd(),
        "pools of threads": [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()],
        "threads": threading.active_count(),
        "start of processes": multiprocessing.get_start_method(allow_none=True),
        "matplotlib": (dict(matplotlib.rcParams), plt.get_fignums()),
        "scikit-learn": sklearn.get_config(),
        "interpreter": (
            sys.getrecursionlimit(),
            sys.getswitchinterval(),
            sys.gettrace(),
            gc.isenabled(),
        ),
        "output": (sys.stdout, sys.stderr, sys.excepthook, logging.getLogger().level),
    }


def failing_fit(fitted, X, y, path):
    with pytest.raises(ValueError, match="non-finite"):
        quick(learning_rate=1e300, learning_rate_schedule="constant", max_epochs=5).fit(X, y)


def picture(fitted, X, y, path):
    plt.close(CertifiedAccuracyDisplay.from_estimator(fitted, X, y).figure_)


OPERATIONS: dict[str, Callable] = {
    "fit": lambda fitted, X, y, path: quick().fit(X, y),
    "fit of wide tables": lambda fitted, X, y, path: quick(hidden_layer_sizes="auto").fit(X, y),
    "fit with Adam": lambda fitted, X, y, path: quick(solver="adam", batch_size=32).fit(X, y),
    "fit of images": lambda fitted, X, y, path: quick(
        input_shape=(1, 8, 8), conv_channels=(4,), early_stopping=True
    ).fit(X, y),
    "fit that prints": lambda fitted, X, y, path: quick(verbose=1).fit(X, y),
    "fit that fails": failing_fit,
    "partial_fit": lambda fitted, X, y, path: quick().partial_fit(X, y, classes=np.unique(y)),
    "fit of a path": lambda fitted, X, y, path: LipschitzClassifierCV(
        quick(), taus=[1.0, 3.0], cv=2
    ).fit(X, y),
    "search": lambda fitted, X, y, path: GridSearchCV(quick(), {"tau": [1.0, 3.0]}, cv=2).fit(X, y),
    "predict": lambda fitted, X, y, path: fitted.predict(X),
    "predict_proba": lambda fitted, X, y, path: fitted.predict_proba(X),
    "certificates": lambda fitted, X, y, path: fitted.certificates_(X),
    "ranges": lambda fitted, X, y, path: certified_ranges(fitted, X[:2]),
    "counterfactual": lambda fitted, X, y, path: counterfactual(fitted, X[:2]),
    "pickle": lambda fitted, X, y, path: pickle.loads(pickle.dumps(fitted)),
    "copy": lambda fitted, X, y, path: copy.deepcopy(fitted),
    "ONNX": lambda fitted, X, y, path: to_onnx(fitted, path / "model.onnx"),
    "picture": picture,
}


@pytest.fixture(scope="module")
def fitted(few_digits):
    X, y = few_digits
    return quick().fit(X, y)


def in_a_thread(operation):
    """Run it in a thread, and return what that thread's own state was before and after."""
    states, errors = [], []

    def run():
        try:
            states.append(snapshot())
            operation()
            states.append(snapshot())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return states


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_operations_leave_the_state_of_the_process_as_it_was(operation, fitted, few_digits, tmp_path):
    def run():
        operation(fitted, *few_digits, tmp_path)

    run()  # what is imported late may set up state of its own
    before = snapshot()
    run()
    assert changes(before, snapshot()) == {}
    assert changes(*in_a_thread(run)) == {}
    assert changes(before, snapshot()) == {}


def changes(before, after):
    return {name: (value, after[name]) for name, value in before.items() if after[name] != value}


def test_a_fit_that_prints_starts_no_thread_and_makes_no_lock_for_processes(few_digits, monkeypatch):
    def refused(*_):
        raise AssertionError("it would fix the start method of multiprocessing")

    monkeypatch.delattr("tqdm.std.tqdm._lock", raising=False)
    monkeypatch.setattr("tqdm.std.TqdmDefaultWriteLock", refused)
    monkeypatch.setattr("tqdm.std.tqdm.monitor", None)
    monkeypatch.setattr("tqdm.std.TMonitor", refused)
    quick(verbose=1).fit(*few_digits)


# -- what the caller has set -------------------------------------------------------------------


@contextlib.contextmanager
def deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS = {
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "errors of numpy": lambda: np.errstate(all="raise"),
    "deterministic algorithms": deterministic_algorithms,
    "default device": lambda: torch.device("cpu"),
}


def results(X, y):
    clf = quick(batch_size=64).fit(X, y)
    clf = pickle.loads(pickle.dumps(clf)).partial_fit(X, y)
    found = counterfactual(clf, X[:2])
    weights = [value.numpy() for value in clf.to_torch().state_dict().values()]
    return [*weights, clf.decision_function(X), clf.certificates_(X), found.distances]


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_settings_of_the_caller_change_nothing(setting, few_digits):
    expected = results(*few_digits)
    with setting():
        under = results(*few_digits)
    for one, other in zip(under, expected, strict=True):
        np.testing.assert_array_equal(one, other)
