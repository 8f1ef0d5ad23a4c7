"""Ctrl-C ends whatever surrounds a fit; a callback of skorch ends one training."""

import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EarlyStopping

from sklip import LipschitzClassifier
from sklip.training.interrupts import is_raised_by_statement


@pytest.fixture(scope="module")
def data(digits):
    X, y = digits
    return X[:200], y[:200]


@pytest.fixture(autouse=True)
def _sigint_interrupts():
    """A shell ignores it for what it starts in the background, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 6, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


class Stop(Callback):
    """Ends training as skorch's callbacks do."""

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 2:
            raise KeyboardInterrupt


class CtrlC(Callback):
    """A user's interrupt, at a moment that is known, while a callback is at work."""

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 2:
            signal.raise_signal(signal.SIGINT)


class InterruptedLoss(torch.nn.Module):
    """A user's interrupt in the middle of the fourth step."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, logits, target, sample_weight=None):
        self.calls += 1
        if self.calls == 4:
            signal.raise_signal(signal.SIGINT)
        return torch.nn.functional.cross_entropy(logits, target)


class NotFinite(InterruptedLoss):
    def forward(self, logits, target, sample_weight=None):
        return super().forward(logits, target) * torch.nan


def test_callbacks_end_one_training_and_a_search_goes_on(data):
    clf = quick(callbacks=[Stop()]).fit(*data)
    assert clf.n_iter_ == 2
    search = GridSearchCV(quick(callbacks=[Stop()]), {"tau": [1.0, 3.0]}, cv=2).fit(*data)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    stopping = EarlyStopping(monitor="train_loss", patience=1, threshold=10.0)
    assert quick(callbacks=[stopping]).fit(*data).n_iter_ < 6


@pytest.mark.parametrize(
    "interrupted", [{"callbacks": [CtrlC()]}, {"loss": InterruptedLoss(), "batch_size": 80}]
)
def test_an_interrupt_comes_out_of_fit_and_leaves_a_proven_model(data, interrupted):
    X, y = data
    clf = quick(**interrupted)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    assert clf.n_iter_ == 2
    assert clf.certified_network_.lipschitz_bound <= 1 + 1e-9
    plain = clf.to_torch()
    np.testing.assert_array_equal(clf.predict(X), plain(torch.tensor(X)).argmax(1).numpy())
    assert (clf.certificates_(X) > 0).any()


@pytest.mark.parametrize(
    "interrupted", [{"callbacks": [CtrlC()]}, {"loss": InterruptedLoss(), "batch_size": 80}]
)
def test_an_interrupt_ends_a_search_whatever_its_error_score(data, interrupted):
    search = GridSearchCV(quick(**interrupted), {"tau": [1.0, 3.0]}, cv=2, error_score=0.0)
    with pytest.raises(KeyboardInterrupt):
        search.fit(*data)
    assert not hasattr(search, "cv_results_")


def test_an_interrupt_while_a_model_is_taken_up_leaves_the_earlier_one_whole(data, monkeypatch):
    def interrupted(clf, data):
        raise KeyboardInterrupt

    clf = quick(warm_start=True).fit(*data)
    before = dict(vars(clf))
    monkeypatch.setattr(LipschitzClassifier, "_keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(*data)
    assert [name for name, value in vars(clf).items() if value is not before[name]] == []


def test_no_other_error_takes_the_place_of_an_interrupt(data):
    clf = quick(loss=NotFinite(), batch_size=40)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(*data)
    with pytest.raises(NotFittedError):
        clf.predict(data[0])


def test_signals_are_told_from_statements_wherever_they_come():
    """100 interrupts at random moments of a loop that also raises, catches and calls."""
    ready, rng, caught = [], np.random.default_rng(0), []

    def busy():
        ready.append(True)
        while True:
            for value in rng.random(5):
                try:
                    raise ValueError(value)
                except ValueError as error:
                    str(error)

    def interrupt(delay):
        while not ready:  # no lock that the interrupt could leave half taken
            time.sleep(1e-4)
        time.sleep(delay)
        signal.raise_signal(signal.SIGINT)

    for delay in np.random.default_rng(1).random(100) / 200:
        ready.clear()
        thread = threading.Thread(target=interrupt, args=[delay])
        thread.start()
        try:
            busy()
        except KeyboardInterrupt as error:
            caught.append(is_raised_by_statement(error))
        thread.join()
    assert caught == [False] * 100
    with pytest.raises(KeyboardInterrupt) as raised:
        Stop().on_epoch_end(type("Net", (), {"history": [0, 1]}))
    assert is_raised_by_statement(raised.value)


@pytest.mark.slow
def test_ctrl_c_ends_the_process_of_a_search():
    """A real signal to a real process, which must not go on to the next candidate."""
    script = textwrap.dedent("""
        from sklearn.datasets import load_iris
        from sklearn.model_selection import GridSearchCV
        from skorch.callbacks import Callback
        from sklip import LipschitzClassifier

        class Tell(Callback):
            def on_train_begin(self, net, **kwargs):
                print("training", flush=True)

        clf = LipschitzClassifier(hidden_layer_sizes=(8,), max_epochs=10**6, callbacks=[Tell()])
        search = GridSearchCV(clf, {"tau": [1.0, 3.0]}, cv=2).fit(*load_iris(return_X_y=True))
        print("went on", flush=True)
        """)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "training\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert out == ""
    assert err.rstrip().endswith("KeyboardInterrupt")
    # By the signal itself, as Python ends.
    assert process.returncode == -signal.SIGINT
