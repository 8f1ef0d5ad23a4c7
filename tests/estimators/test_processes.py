"""Fitted estimators in other processes, however these were started: the same answers, bit for bit."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklip import LipschitzClassifier, certificates

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_estimator_that_is_passed_in_answers_as_here(method):
    X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
    clf = LipschitzClassifier(hidden_layer_sizes=(16,), max_epochs=3, random_state=0).fit(X, y)
    pipeline = make_pipeline(StandardScaler(), clf).fit(X, y)
    calls = [
        *((getattr(clf, name), X) for name in ("predict", "predict_proba", "certificates_")),
        (certificates, pipeline, X),
    ]
    with multiprocessing.get_context(method).Pool(1) as worker:
        for function, *arguments in calls:
            found = worker.apply_async(function, arguments).get(timeout=120)
            np.testing.assert_array_equal(found, function(*arguments))
        again = worker.apply_async(clf.fit, (X, y)).get(timeout=120)
    np.testing.assert_array_equal(again.certificates_(X), clf.fit(X, y).certificates_(X))


@pytest.mark.skipif(sys.platform != "linux", reason="fork is safe on Linux only")
def test_forked_processes_predict_and_fit_on_one_thread_whatever_ran_before():
    program = [sys.executable, str(Path(__file__).with_name("forked.py"))]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
