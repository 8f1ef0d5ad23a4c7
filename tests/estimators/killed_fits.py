"""Fits that are killed and made again, each in a process of its own, forked from this one.

It is a program, since a process that holds threads, as a test's may, can't be forked safely:
``python killed_fits.py folder names`` writes for each case what the fit gave that was left alone, and
what the one gave that was killed on its way.
"""

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import (
    BatchScoring,
    Callback,
    EarlyStopping,
    EpochScoring,
    GradientNormClipping,
    LRScheduler,
    PassthroughScoring,
    PrintLog,
)

from sklip import LipschitzClassifier, LipschitzClassifierCV, certified_accuracy_scorer
from sklip.layers import FullSort, SpectralLinear
from sklip.training import RandomFlip, RandomShift, checkpoints
from sklip.training.net import LipschitzNet

FORKED = multiprocessing.get_context("fork")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def with_dropout(input_shape, n_outputs):
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        SpectralLinear(math.prod(input_shape), 16),
        FullSort(),
        torch.nn.Dropout(0.2),
        SpectralLinear(16, n_outputs),
    )


class Moving(torch.nn.Module):
    """Cross-entropy of logits over a size that it has seen grow."""

    def __init__(self):
        super().__init__()
        self.register_buffer("size", torch.ones(()))

    def forward(self, logits, target, sample_weight=None):
        self.size.mul_(0.99).add_(0.01 * logits.detach().abs().mean())
        return torch.nn.functional.cross_entropy(logits / self.size, target)


class Decay(Callback):
    """Halves Adam's part of the rate once in two epochs, by a count of its own."""

    def __init__(self):
        self.count_ = 0

    def on_epoch_end(self, net, **kwargs):
        self.count_ += 1
        if self.count_ % 2 == 0:
            net.optimizer_.param_groups[-1]["lr"] *= 0.5

    def state_dict(self):
        return {"count": self.count_}

    def load_state_dict(self, state):
        self.count_ = state["count"]


def digits(n_rows):
    X, y = load_digits(return_X_y=True)
    return X[:n_rows] / 16, y[:n_rows]


def images(n_rows):
    X, y = digits(n_rows)
    return X.reshape(-1, 8, 8).astype(np.float32), y


def table():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 12))
    return X, (X[:, 0] + X[:, 1] > 0).astype(int)


def weighted(n_rows):
    X, y = digits(n_rows)
    return X, y, np.random.default_rng(0).integers(0, 4, n_rows) / 2.0


SMALL = {"hidden_layer_sizes": (16,), "max_epochs": 6, "batch_size": 40}
SCORES = [
    EpochScoring("accuracy", lower_is_better=False),
    EpochScoring(certified_accuracy_scorer(eps=0.1), on_train=True, lower_is_better=False),
    BatchScoring("accuracy", name="of_batches", lower_is_better=False),
    PassthroughScoring("train_batch_size", on_train=True),
]
# Parameters, what fit is given, and the step at which it is killed each time.
CASES = {
    "muon": (SMALL, digits(200), 8),
    "adam with weights of rows and classes": (
        {**SMALL, "solver": "adam", "class_weight": "balanced", "loss": "hkr"},
        weighted(200),
        6,
    ),
    "images with augmentation and dropout": (
        {
            **SMALL,
            "architecture": with_dropout,
            "augmentation": [RandomShift(1), RandomFlip()],
            "learning_rate_schedule": "constant",
        },
        images(200),
        8,
    ),
    "early stopping with scores": (
        {
            **SMALL,
            "early_stopping": True,
            "n_iter_no_change": 2,
            "max_epochs": 30,
            "learning_rate": 0.3,
            "callbacks": SCORES,
        },
        digits(200),
        8,
    ),
    "callbacks and a loss that remember": (
        {
            **SMALL,
            "loss": Moving(),
            "learning_rate_schedule": "constant",
            "max_epochs": 7,
            "callbacks": [
                LRScheduler("StepLR", step_size=2, gamma=0.5),
                EarlyStopping(monitor="train_loss", patience=3, threshold=0.08),
                ("decay", Decay()),
                GradientNormClipping(0.05),
                PrintLog(sink=str),
            ],
        },
        digits(200),
        8,
    ),
    "chosen columns in one batch": ({"hidden_layer_sizes": (8,), "max_epochs": 12}, table(), 6),
    "convolutions": ({"max_epochs": 3, "conv_channels": (4, 8), "batch_size": 50}, images(150), 5),
    "large matrices": (
        {"hidden_layer_sizes": (520, 512), "max_epochs": 3, "batch_size": 20, "dtype": "float32"},
        digits(120),
        10,
    ),
}


def classifier(name, **more):
    return LipschitzClassifier(**{"random_state": 0, **CASES[name][0], **more})


def as_told(clf, data):
    """All that a fit gives, and what one more pass makes of it, by the optimiser and the generators."""
    rows = data[0]
    told = {
        "history": [{k: v for k, v in row.items() if k != "seconds"} for row in clf.history_],
        "radii": clf.certificates_(rows),
        "bound": clf.lipschitz_bound_,
        "scores": clf.decision_function(rows),
    }
    told.update(weights_of(clf, "weights"))
    if not clf.early_stopping and clf.class_weight is None:
        told.update(weights_of(clf.partial_fit(*data[:2]), "weights after one more pass"))
    return told


def weights_of(clf, name):
    state = clf.net_.module_.state_dict()
    return {f"{name} {key}": value.numpy().copy() for key, value in state.items()}


@contextlib.contextmanager
def steps_counted(at=None, then=None):
    """Counts steps of training, and at one does something before it is taken."""
    take, counted = LipschitzNet.train_step, [0]

    def step(net, batch, **kwargs):
        counted[0] += 1
        if counted[0] == at:
            then()
        return take(net, batch, **kwargs)

    LipschitzNet.train_step = step
    try:
        yield counted
    finally:
        LipschitzNet.train_step = take


def run(function, *args):
    """Run a function in a process of its own, and return its exit code."""
    process = FORKED.Process(target=function, args=args)
    process.start()
    process.join()
    return process.exitcode


def killed_by(number):
    os.kill(os.getpid(), number)


def fit_until(fit, at, number):
    """Fit, and be killed at a step; an interrupt ends the process in Python's own way."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    with steps_counted(at, lambda: killed_by(number)):
        fit()


def fit_whole(fit, path):
    """Fit to the end, and write what was told and how many steps it took."""
    with steps_counted() as counted:
        told = fit()
    path.write_bytes(pickle.dumps((told, counted[0])))


def killed_again_and_again(fit, at):
    """Start a fit until one comes to its end; return how the others died."""
    codes = []
    while len(codes) < 20:
        codes.append(run(fit_until, fit, at, SIGNALS[len(codes) % 3]))
        if codes[-1] == 0:
            return codes[:-1]
    raise RuntimeError("a fit that is started again does not go on")


def case(name, folder):
    """A fit left alone, and one that is killed again and again, by each signal in turn."""
    _, data, at = CASES[name]

    def fit(**more):
        return as_told(classifier(name, **more).fit(*data), data)

    def stored():
        return fit(checkpoint_dir=folder / name)

    run(fit_whole, fit, folder / "alone")
    codes = killed_again_and_again(stored, at)
    run(fit_whole, stored, folder / "again")
    return told_of(folder, codes=codes, files=sorted(os.listdir(folder / name)))


def told_of(folder, **more):
    alone, steps_alone = pickle.loads((folder / "alone").read_bytes())
    again, steps_again = pickle.loads((folder / "again").read_bytes())
    return {"alone": alone, "again": again, "steps": (steps_alone, steps_again), **more}


def while_writing(folder):
    """Killed before a file is on disk, before it has its name, and after; in the third epoch."""
    data = CASES["muon"][1]
    told = {}
    for module, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
        place = folder / name

        def stored(place=place):
            return as_told(classifier("muon", checkpoint_dir=place).fit(*data), data)

        def fit(module=module, name=name, stored=stored):
            real, calls = getattr(module, name), [0]

            def killing(*args, **kwargs):
                calls[0] += 1
                if calls[0] == 3:
                    killed_by(signal.SIGKILL)
                return real(*args, **kwargs)

            setattr(module, name, killing)
            stored()

        code = run(fit)
        run(fit_whole, stored, folder / "again")
        told[name] = (code, *pickle.loads((folder / "again").read_bytes()))
    run(fit_whole, lambda: as_told(classifier("muon").fit(*data), data), folder / "alone")
    return {"writing": told, "alone": pickle.loads((folder / "alone").read_bytes())}


def searches(folder):
    """A search, and a path of warm starts, killed on their way."""
    X, y = CASES["muon"][1]
    told = {}

    def grid(**more):
        search = GridSearchCV(classifier("muon", **more), {"tau": [1.0, 10.0]}, cv=2).fit(X, y)
        found = {name: search.cv_results_[f"split{name}_test_score"] for name in (0, 1)}
        return {**found, **as_told(search.best_estimator_, (X, y))}

    def path(**more):
        # As images: candidates of tables don't go along a path.
        images = {"input_shape": (1, 1, X.shape[1]), "architecture": "mlp"}
        walked = classifier("muon", **images, **more)
        search = LipschitzClassifierCV(walked, taus=[1.0, 10.0], cv=2).fit(X, y)
        found = {name: search.scores_[name] for name in ("mean_test_certified", "mean_test_accuracy")}
        return {**found, **as_told(search.best_estimator_, (X, y))}

    for fit, at in ((grid, 40), (path, 27)):
        place = folder / fit.__name__
        place.mkdir()

        def stored(fit=fit, place=place):
            return fit(checkpoint_dir=place / "states")

        run(fit_whole, fit, place / "alone")
        code = run(fit_until, stored, at, signal.SIGKILL)
        run(fit_whole, stored, place / "again")
        told[fit.__name__] = told_of(place, codes=[code], files=os.listdir(place / "states"))
    return told


def main(folder, *names):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # What the first fit of a process imports takes longer than all else.
    classifier("muon").fit(*CASES["muon"][1])
    # At the end of every epoch.
    checkpoints._SECONDS, checkpoints._SHARE = 0.0, math.inf
    told = {}
    for index, name in enumerate(names):
        place = Path(folder) / str(index)
        place.mkdir()
        if name in CASES:
            told[name] = case(name, place)
        else:
            told[name] = {"while writing": while_writing, "searches": searches}[name](place)
    (Path(folder) / "told").write_bytes(pickle.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
