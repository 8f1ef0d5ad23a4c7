"""Searches on workers of dask and Ray find what one process finds, also when a worker is killed."""

import os
import re
import runpy
import signal
import sys
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from joblib import parallel_config
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from sklip import LipschitzClassifier, certificates, certified_accuracy_scorer

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parent.parent / "examples" / "dask_search.py"


def searched(X, y, n_jobs, cv=2, scoring=None):
    clf = LipschitzClassifier(max_epochs=5, hidden_layer_sizes=(8,), random_state=0)
    scoring = scoring or {"accuracy": "accuracy", "certified": certified_accuracy_scorer(eps=0.5)}
    return GridSearchCV(
        clf, {"tau": [0.5, 3.0, 20.0]}, scoring=scoring, refit="certified", cv=cv, n_jobs=n_jobs
    ).fit(X, y)


def assert_same(search, expected, X):
    for name, column in expected.cv_results_.items():
        if not name.endswith("_time"):
            np.testing.assert_array_equal(search.cv_results_[name], column)
    np.testing.assert_array_equal(certificates(search, X), certificates(expected, X))


@pytest.fixture(scope="module")
def alone(few_digits):
    """The search in one process."""
    return searched(*few_digits, 1)


class KillsItsWorker:
    """A scorer whose first call on a worker ends that worker's process, at once and for good."""

    def __init__(self, folder):
        self.folder, self.home = folder, os.getpid()

    def __call__(self, estimator, X, y):
        if os.getpid() != self.home:
            try:
                (self.folder / "killed").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        accuracy = estimator.score(X, y)
        return {"accuracy": accuracy, "certified": certified_accuracy_scorer(eps=0.5)(estimator, X, y)}


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("distributed", reason="dask is not installed (extra `dask`)")
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def client(example):
    """Two processes of two threads each, as the example starts them."""
    # Workers can't import this file.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with example["workers"](None) as client:
        assert list(client.nthreads().values()) == [2, 2]
        yield client
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class TestDask:
    def test_a_search_finds_what_one_process_finds(self, client, alone, few_digits):
        X, y = few_digits
        with parallel_config("dask"):
            search = searched(X, y, -1)
        assert_same(search, alone, X)

    def test_the_example_chooses_from_what_the_workers_found(
        self, client, example, monkeypatch, capsys
    ):
        """On a cluster that runs already: that of the other tests."""
        arguments = ["--epochs", "5", "--scheduler", client.scheduler.address]
        monkeypatch.setattr(sys, "argv", ["dask_search.py", *arguments])
        example["main"]()
        output = capsys.readouterr().out
        rows = re.findall(r"^ +(\d+\.0) +(0\.\d) +(0\.\d{3}) +(0\.\d{3})", output, re.MULTILINE)
        assert [r[:2] for r in rows] == [(t, e) for e in ("0.0", "0.5") for t in ("1.0", "3.0", "10.0")]
        assert all(float(accuracy) > float(certified) for *_, accuracy, certified in rows)
        assert output.count("<- chosen") == 1
        made = r"^18 fits in [\d.]+ s: \d+(?: and \d+)? on [12] workers$"
        assert re.search(made, output, re.MULTILINE)

    @pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
    def test_a_search_survives_a_killed_worker(self, client, alone, few_digits, tmp_path):
        X, y = few_digits
        # X and y lie on every worker, and folds that are lists travel with their task: what the
        # killed worker alone held is lost to dask.
        folds = [(train.tolist(), test.tolist()) for train, test in StratifiedKFold(2).split(X, y)]
        before = set(client.run(os.getpid).values())
        with parallel_config("dask", scatter=[X, y]):
            search = searched(X, y, -1, folds, KillsItsWorker(tmp_path))
        assert (tmp_path / "killed").exists()
        deadline = time.monotonic() + 60
        while len(pids := set(client.run(os.getpid).values())) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(pids - before) == 1  # one worker is another process now
        assert_same(search, alone, X)


@pytest.fixture(scope="module")
def ray_backend():
    """Two processes of Ray's, for joblib."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
    from ray.util.joblib import register_ray

    # Workers can't import this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False)
    register_ray()
    yield "ray"
    ray.shutdown()


@pytest.mark.filterwarnings("ignore")  # of Ray's own
class TestRay:
    def test_a_search_finds_what_one_process_finds(self, ray_backend, alone, few_digits):
        with parallel_config(ray_backend):
            search = searched(*few_digits, 2)
        assert_same(search, alone, few_digits[0])

    @pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
    def test_a_search_survives_a_killed_worker(self, ray_backend, alone, few_digits, tmp_path):
        retries = {"max_restarts": 3, "max_task_retries": 3}
        with parallel_config(ray_backend, ray_remote_args=retries):
            search = searched(*few_digits, 2, scoring=KillsItsWorker(tmp_path))
        assert (tmp_path / "killed").exists()
        assert_same(search, alone, few_digits[0])
