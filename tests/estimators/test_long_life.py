"""What many calls in one process leave behind: nothing, even before garbage is collected."""

import gc
import os
import pickle
import tempfile
import threading
import weakref
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from sklip import (
    CertifiedAccuracyDisplay,
    LipschitzClassifier,
    LipschitzClassifierCV,
    counterfactual,
    to_onnx,
)

N_TIMES = 3
X = np.random.default_rng(0).normal(size=(60, 4))
Y = np.arange(60) % 3
QUICK = {"hidden_layer_sizes": (4,), "max_epochs": 2, "random_state": 0}


def new(**parameters):
    return LipschitzClassifier(**QUICK, **parameters)


@pytest.fixture(scope="module")
def clf():
    return new().fit(X, Y)


def through_a_file(clf, folder):
    joblib.dump(clf, folder / "model.joblib")
    return joblib.load(folder / "model.joblib")


CALLS = {
    "fit": lambda clf, folder: new().fit(X, Y),
    "batches": lambda clf, folder: new(batch_size=16).fit(X, Y),
    "early stopping": lambda clf, folder: new(early_stopping=True).fit(X, Y),
    "images": lambda clf, folder: new(conv_channels=(2,)).fit(X.reshape(60, 2, 2), Y),
    "checkpoints": lambda clf, folder: new(checkpoint_dir=folder / "states").fit(X, Y),
    "partial_fit": lambda clf, folder: new().partial_fit(X, Y, [0, 1, 2]),
    "cross-validation": lambda clf, folder: LipschitzClassifierCV(new(), taus=(1, 3), cv=2).fit(X, Y),
    "predict": lambda clf, folder: clf.predict(X),
    "certificates_": lambda clf, folder: clf.certificates_(X),
    "pickle": lambda clf, folder: pickle.loads(pickle.dumps(clf)),
    "joblib": through_a_file,
    "counterfactual": lambda clf, folder: counterfactual(clf, X[:2]).X,
    "onnx": lambda clf, folder: to_onnx(clf, folder / "model.onnx"),
}


def left_behind():
    """How many things there are that a call could forget, and which files and threads."""
    kinds = [type(thing) for thing in gc.get_objects()]
    children = Path("/proc/self/task").glob("*/children")
    return {
        "tensors": sum(issubclass(kind, torch.Tensor) for kind in kinds),
        "networks": sum(issubclass(kind, torch.nn.Module) for kind in kinds),
        "estimators": sum(issubclass(kind, LipschitzClassifier) for kind in kinds),
        "open files": sorted(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else [],
        "threads": threading.enumerate(),
        "children": [file.read_text() for file in children if file.exists()],
        "temporary files": sorted(os.listdir(tempfile.gettempdir())),
    }


@pytest.fixture
def without_collection(tmp_path, monkeypatch):
    """Garbage is not collected, and temporary files have a folder of their own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nothing_stays_of_what_was_done_many_times(call, clf, tmp_path, without_collection):
    call(clf, tmp_path)  # whatever is made once
    before = left_behind()
    for _ in range(N_TIMES):
        call(clf, tmp_path)
    after = left_behind()
    assert after == before


def test_a_fitted_estimator_that_is_dropped_dies_at_once(without_collection):
    clf = new().fit(X, Y)
    gone = [weakref.ref(thing) for thing in (clf, clf.net_, clf.certified_network_, clf.net_.module_)]
    del clf
    assert [thing() for thing in gone] == [None] * len(gone)


def test_data_die_with_the_caller_not_with_the_estimator(without_collection):
    rows = X.astype(np.float32)
    clf = new(dtype="float32").fit(rows, Y)
    gone = weakref.ref(rows)
    del rows
    assert gone() is None
    assert clf.n_features_in_ == 4


def test_displays_leave_no_data_behind_once_their_figure_is_closed(clf):
    def closed():
        display = CertifiedAccuracyDisplay.from_estimator(clf, X, Y)
        plt.close(display.figure_)
        return [weakref.ref(display), weakref.ref(display.figure_)]

    gone = closed()
    gc.collect()  # a figure of matplotlib and its axes hold each other
    assert [thing() for thing in gone] == [None, None]
