"""Processes that train together hold the model that one would have trained."""

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import distributed

from sklip import LipschitzClassifier
from sklip.training import data_parallel
from sklip.training.parallel import Together, current_processes, fingerprint

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()),
    reason="this build of torch has no gloo",
)
SCRIPT = Path(__file__).with_name("one_of_two.py")
SPEC = importlib.util.spec_from_file_location("one_of_two", SCRIPT)
one_of_two = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(one_of_two)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    # The loop-back device: nothing here is to reach another machine.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", one_of_two.MODELS)
def test_two_processes_train_what_one_trains(both, name):
    alone, together = one_of_two.fitted(name), both[0][name]
    assert len(together["losses"]) == len(alone["losses"])
    # Gradients are summed in another order: 1e-16 a step, which further steps may enlarge.
    np.testing.assert_allclose(together["losses"], alone["losses"], rtol=1e-9)
    for mine, theirs in zip(together["weights"], alone["weights"], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9)
    np.testing.assert_allclose(together["radii"], alone["radii"], rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*one_of_two.MODELS, "drawn seed"])
def test_both_processes_hold_the_same_model(both, name):
    first, second = (results[name] for results in both)
    assert first["losses"] == second["losses"]
    np.testing.assert_array_equal(first["radii"], second["radii"])
    np.testing.assert_array_equal(first["columns"], second["columns"])
    for mine, theirs in zip(first["weights"], second["weights"], strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_the_models_are_those_that_make_a_difference(both):
    """Early stopping stopped, columns were weighted, and seeds are not all one."""
    results = both[0]
    most = one_of_two.MODELS["early stopping"]["max_epochs"]
    assert 1 < len(results["early stopping"]["losses"]) < most
    assert (results["columns with weights"]["columns"] < 1).any()
    assert results["drawn seed"]["losses"] != results["early stopping"]["losses"]


@pytest.mark.slow
def test_what_differs_between_processes_is_named_in_each(both):
    for results in both:
        errors = results["errors"]
        for name in ("X", "y", "tau"):
            assert errors[name].startswith("ValueError: All processes of data_parallel must fit the ")
            assert f"got different {name}; give" in errors[name]
        assert errors["dropout"].startswith("TypeError: data_parallel can't train Dropout (layer '0')")


@pytest.mark.slow
def test_a_group_that_was_not_entered_is_left_alone(both):
    """The first process fitted by itself while the group was there, and got what one process gets."""
    alone = one_of_two.fitted("early stopping")
    assert both[0]["outside"]["losses"] == alone["losses"]


def test_without_a_group_it_says_what_to_call():
    with pytest.raises(RuntimeError, match=r"init_process_group first"), data_parallel():
        pass


@pytest.fixture
def group_of_one(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_the_context_ends_with_its_block(group_of_one, few_digits):
    def fail():
        with data_parallel():
            assert isinstance(current_processes(), Together)
            raise KeyError

    outside = current_processes()
    with pytest.raises(KeyError):
        fail()
    assert current_processes() is outside
    assert not isinstance(outside, Together)


def test_a_process_of_its_own_group_is_a_process(group_of_one, few_digits):
    X, y = few_digits
    quick = {"max_epochs": 2, "hidden_layer_sizes": (8,), "random_state": 0}
    alone = LipschitzClassifier(**quick).fit(X, y)
    with data_parallel(distributed.group.WORLD):
        together = LipschitzClassifier(**quick).fit(X, y)
    np.testing.assert_array_equal(alone.decision_function(X), together.decision_function(X))
    pickle.loads(pickle.dumps(together)).partial_fit(X, y)


@pytest.mark.parametrize(
    "other",
    [
        np.arange(12.0).reshape(4, 3),
        np.arange(12, dtype=np.int64).reshape(3, 4),
        np.arange(1.0, 13).reshape(3, 4),
    ],
    ids=["shape", "type", "values"],
)
def test_a_fingerprint_tells_arrays_apart(other):
    array = np.arange(12.0).reshape(3, 4)
    assert fingerprint(array) == fingerprint(np.asfortranarray(array)) == fingerprint(array.copy())
    assert fingerprint(array) != fingerprint(other)
    assert fingerprint(None) != fingerprint(array)
