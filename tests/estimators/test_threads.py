"""Fits in threads: the results of each alone, and nobody's generators or filters are moved."""

import asyncio
import pickle
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from sklearn.model_selection import cross_val_score
from torch import nn

from sklip import CertifiedNetwork, LipschitzClassifier, certificates, certified_ranges

pytestmark = pytest.mark.usefixtures("two_threads")


def dropping(input_shape, n_outputs):
    """Plain layers that draw their weights by torch's own rules, and draw in training as well."""
    return nn.Sequential(
        nn.Linear(input_shape[0], 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, n_outputs)
    )


MODELS = {
    "default": {"hidden_layer_sizes": (16,)},
    "several batches": {"hidden_layer_sizes": (16,), "batch_size": 32},
    "early stopping": {"hidden_layer_sizes": (16,), "early_stopping": True},
    "a network of torch's layers": {"architecture": dropping, "batch_size": 32},
}


def fitted_weights(parameters, X, y, seed=0):
    clf = LipschitzClassifier(max_epochs=3, random_state=seed, **parameters).fit(X, y)
    return torch.cat([value.detach().flatten() for value in clf.to_torch().parameters()]).numpy()


@pytest.mark.parametrize("parameters", MODELS.values(), ids=MODELS)
def test_fits_in_threads_give_what_they_give_in_turn(parameters, few_digits):
    seeds = [0, 1, 0, 2, 0, 1]
    expected = [fitted_weights(parameters, *few_digits, seed) for seed in seeds]
    start = threading.Barrier(3)

    def fit(seed):
        start.wait()
        return fitted_weights(parameters, *few_digits, seed)

    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(fit, seeds))
    for result, alone in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, alone)


def test_joblib_threads_give_what_they_give_in_turn(few_digits):
    parameters = MODELS["a network of torch's layers"]
    alone = fitted_weights(parameters, *few_digits)
    results = Parallel(n_jobs=2, backend="threading")(
        delayed(fitted_weights)(parameters, *few_digits) for _ in range(4)
    )
    for result in results:
        np.testing.assert_array_equal(result, alone)


def test_scores_of_folds_in_threads_are_those_in_turn(few_digits):
    clf = LipschitzClassifier(hidden_layer_sizes=(16,), max_epochs=3, random_state=0)
    alone = cross_val_score(clf, *few_digits, cv=4)
    with_threads = Parallel(n_jobs=2, backend="threading")(
        delayed(cross_val_score)(clf, *few_digits, cv=4) for _ in range(2)
    )
    for scores in with_threads:
        np.testing.assert_array_equal(scores, alone)


@pytest.mark.parametrize("parameters", MODELS.values(), ids=MODELS)
def test_no_global_generator_moves(parameters, few_digits):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)
    seen, stop = [], threading.Event()

    def watch():
        while not stop.wait(0.0005):
            seen.append(torch.equal(torch.get_rng_state(), torch_state))

    watcher = threading.Thread(target=watch)
    watcher.start()
    clf = LipschitzClassifier(max_epochs=3, random_state=0, **parameters).fit(*few_digits)
    clf.partial_fit(*few_digits) if not clf.early_stopping else clf.predict(few_digits[0])
    clf.__setstate__(clf.__getstate__())
    stop.set()
    watcher.join()
    assert len(seen) > 3
    assert all(seen)  # at no moment, not only in the end
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_equal(np.random.get_state(legacy=False), numpy_state)


def test_no_filter_of_warnings_is_set(few_digits, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a filter of warnings is the whole process's")

    clf = LipschitzClassifier(hidden_layer_sizes=(16,), max_epochs=2, random_state=0)
    clf.fit(*few_digits)
    rows = clf.network_rows(few_digits[0])
    assert not few_digits[0].flags.writeable
    monkeypatch.setattr(warnings, "filterwarnings", refused)
    monkeypatch.setattr(warnings, "simplefilter", refused)
    assert len(clf.certified_network_.logits(rows)) == len(rows)


def test_what_is_certified_is_of_one_model_while_another_thread_trains(monkeypatch):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 3)), np.arange(60) % 3
    clf = LipschitzClassifier(hidden_layer_sizes=(4,), max_epochs=2, random_state=0).fit(X, y)
    calls = {
        "ranges": lambda: certified_ranges(clf, X),
        "radii": lambda: certificates(clf, X),
        "labels and radii": lambda: np.stack(clf.predict_with_radii(X)),
        "probabilities": lambda: clf.predict_proba(X),
    }
    network = clf.certified_network_
    expected = {name: call() for name, call in calls.items()}
    decisions = CertifiedNetwork._decided

    def trains_meanwhile(self, *arguments):
        with ThreadPoolExecutor(1) as other:
            other.submit(clf.set_params(tau=7.0).partial_fit, X, y).result()
        return decisions(self, *arguments)

    for name, call in calls.items():
        clf.set_params(tau=3.0).fit(X, y)
        monkeypatch.setattr(CertifiedNetwork, "_decided", trains_meanwhile)
        np.testing.assert_array_equal(call(), expected[name])
        monkeypatch.undo()
        assert clf.certified_network_ is not network
        assert not np.array_equal(call(), expected[name])


def test_a_pickle_is_of_one_model_while_another_thread_trains(monkeypatch):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 3)), np.arange(60) % 3
    clf = LipschitzClassifier(hidden_layer_sizes=(4,), max_epochs=2, random_state=0).fit(X, y)
    expected, n_epochs = clf.predict_proba(X), clf.n_iter_
    unchanged = CertifiedNetwork.check_unchanged

    def trains_meanwhile(self):
        monkeypatch.undo()
        with ThreadPoolExecutor(1) as other:
            other.submit(clf.set_params(tau=7.0).partial_fit, X + 1, y).result()
        return unchanged(self)

    monkeypatch.setattr(CertifiedNetwork, "check_unchanged", trains_meanwhile)
    loaded = pickle.loads(pickle.dumps(clf))
    assert clf.n_iter_ == n_epochs + 1
    np.testing.assert_array_equal(loaded.predict_proba(X), expected)
    assert loaded.n_iter_ == n_epochs
    assert loaded.partial_fit(X, y).n_iter_ == n_epochs + 1


@pytest.fixture
def busy_threads():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
def test_a_thousand_requests_at_once_get_the_answers_of_each_alone(busy_threads):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 3)), np.arange(50) % 3
    clf = LipschitzClassifier(hidden_layer_sizes=(4,), max_epochs=2, random_state=0).fit(X, y)

    def answer(row):
        return np.concatenate([*clf.predict_with_radii(row[None]), clf.predict_proba(row[None])[0]])

    async def service(rows):
        return await asyncio.gather(*(asyncio.to_thread(answer, row) for row in rows))

    alone = np.stack([answer(row) for row in X])
    answers = asyncio.run(service(np.tile(X, (20, 1))))
    np.testing.assert_array_equal(answers, np.tile(alone, (20, 1)))
