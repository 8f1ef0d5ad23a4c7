"""A fit that was killed and is made again ends with the bits of one that was left alone."""

import importlib.util
import io
import os
import pickle
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from sklip import LipschitzClassifier
from sklip.estimators.facts import digest_of
from sklip.estimators.fit_tasks import FitTasks
from sklip.losses import MulticlassHKRLoss, TauCrossEntropyLoss
from sklip.training import RandomShift, checkpoints

PROGRAM = Path(__file__).with_name("killed_fits.py")
SPEC = importlib.util.spec_from_file_location("killed_fits", PROGRAM)
killed_fits = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(killed_fits)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
SLOW = ["convolutions", "large matrices"]
CASES = [name for name in killed_fits.CASES if name not in SLOW]


def told_by_program(folder, *names):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), *names],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return pickle.loads((folder / "told").read_bytes())


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return told_by_program(tmp_path_factory.mktemp("told"), *CASES, "while writing", "searches")


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == second[name].dtype, name
            assert value.tobytes() == second[name].tobytes(), name
        else:
            assert value == second[name], name


@pytest.mark.parametrize("name", CASES)
def test_a_killed_fit_ends_with_the_bits_of_one_left_alone(told, name):
    found = told[name]
    assert_same_bits(found["alone"], found["again"])
    # By SIGKILL, SIGTERM and an interrupt, after which Python exits with 1.
    assert found["codes"][:2] == [-signal.SIGKILL, -signal.SIGTERM]
    assert set(found["codes"][2:]) <= {-signal.SIGKILL, -signal.SIGTERM, 1}
    # What had come to its end trains no more, but for the pass that asks how it would go on.
    alone, again = found["steps"]
    assert again <= alone / 4
    assert len(found["files"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_so_does_a_slow_one(tmp_path, name):
    test_a_killed_fit_ends_with_the_bits_of_one_left_alone(told_by_program(tmp_path, name), name)


@pytest.mark.parametrize(("moment", "n_steps"), [("fsync", 20), ("replace", 20), ("unlink", 15)])
def test_a_fit_killed_while_it_writes_goes_on_from_a_whole_file(told, moment, n_steps):
    """In the third epoch of five batches: from the second before the file has its name."""
    alone, _ = told["while writing"]["alone"]
    code, again, n_taken = told["while writing"]["writing"][moment]
    assert code == -signal.SIGKILL
    assert n_taken == n_steps + 5
    assert_same_bits(alone, again)


@pytest.mark.parametrize(("search", "n_fits"), [("grid", 5), ("path", 9)])
def test_a_killed_search_goes_on_with_each_fit_in_a_file_of_its_own(told, search, n_fits):
    found = told["searches"][search]
    assert found["codes"] == [-signal.SIGKILL]
    assert_same_bits(found["alone"], found["again"])
    assert len(found["files"]) == n_fits
    alone, again = found["steps"]
    assert alone - again in (25, 35, 39, 24)


# -- in this process ------------------------------------------------------------------------------


@pytest.fixture
def every_epoch(monkeypatch):
    """Files are written at the end of every epoch."""
    monkeypatch.setattr(checkpoints, "_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "_SHARE", np.inf)


@pytest.fixture(scope="module")
def data():
    return killed_fits.CASES["muon"][1]


def quick(folder, **parameters):
    return killed_fits.classifier("muon", checkpoint_dir=folder, **parameters)


def interrupt():
    raise KeyboardInterrupt


def steps_of(clf, *data):
    with killed_fits.steps_counted() as counted:
        clf.fit(*data)
    return counted[0]


def interrupted(folder, *data, **parameters):
    """Interrupt in the fourth of six epochs, each of five steps."""
    clf = quick(folder, **parameters)
    with killed_fits.steps_counted(18, interrupt), pytest.raises(KeyboardInterrupt):
        clf.fit(*data)
    return clf


def test_an_interrupt_leaves_a_model_and_a_fit_that_goes_on(every_epoch, tmp_path, data, capsys):
    clf = interrupted(tmp_path, *data)
    assert clf.n_iter_ == 4
    assert (clf.certificates_(data[0]) > 0).any()
    assert steps_of(clf.set_params(verbose=1), *data) == 15
    out = capsys.readouterr().out
    assert out.startswith("epoch 3/6  from ")
    assert "epoch 4/6" in out
    assert [row["epoch"] for row in clf.history_] == [1, 2, 3, 4, 5, 6]


def test_a_finished_fit_returns_its_model_at_once(tmp_path, data):
    first, second = quick(tmp_path).fit(*data), quick(tmp_path)
    assert steps_of(second, *data) == 0
    assert_same_bits(killed_fits.as_told(first, data), killed_fits.as_told(second, data))


def test_a_fit_that_was_ended_from_outside_goes_on_where_it_is_not(tmp_path, data, monkeypatch):
    """As scikit-learn's callbacks end it, of which a file knows nothing."""
    alone, ended = quick(None).fit(*data), quick(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(FitTasks, "epoch_ends", lambda tasks, _: len(tasks._estimator.ends) == 3)
        patched.setattr(FitTasks, "epoch_begins", lambda tasks: tasks._estimator.ends.append(1))
        ended.ends = []
        assert steps_of(ended, *data) == 15
    again = quick(tmp_path)
    assert steps_of(again, *data) == 15
    assert_same_bits(killed_fits.as_told(alone, data), killed_fits.as_told(again, data))


def test_files_are_named_alike_in_all_processes(told, tmp_path):
    for name in ("muon", "early stopping with scores"):
        killed_fits.classifier(name, checkpoint_dir=tmp_path / name).fit(*killed_fits.CASES[name][1])
        assert os.listdir(tmp_path / name) == told[name]["files"]


def changed(rows):
    rows = rows.copy()
    rows[0, 0] += 1e-6
    return rows


@pytest.mark.parametrize(
    ("parameters", "change"),
    [
        ({"tau": 3.5}, lambda X, y: (X, y)),
        ({"random_state": 1}, lambda X, y: (X, y)),
        ({"max_epochs": 7}, lambda X, y: (X, y)),
        ({"loss": TauCrossEntropyLoss(3.0)}, lambda X, y: (X, y)),
        ({}, lambda X, y: (changed(X), y)),
        ({}, lambda X, y: (X[::-1], y[::-1])),
        ({}, lambda X, y: (X, np.roll(y, 1))),
        ({}, lambda X, y: (X, y + 1)),
        ({}, lambda X, y: (X, y, np.ones(len(y)))),
    ],
)
def test_a_fit_with_anything_changed_starts_anew(every_epoch, tmp_path, data, parameters, change):
    interrupted(tmp_path, *data)
    (first,) = tmp_path.iterdir()
    stored = first.read_bytes()
    other = quick(tmp_path, **parameters)
    assert steps_of(other, *change(*data)) == 5 * other.max_epochs
    assert first.read_bytes() == stored
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("verbose", [0, 1])
def test_what_is_printed_and_where_files_lie_change_no_fit(tmp_path, data, verbose):
    quick(tmp_path / "here").fit(*data)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = quick(str(tmp_path / "there"), verbose=verbose)
    assert steps_of(moved, *data) == 0


@pytest.mark.parametrize("damage", ["empty", "cut", "one bit", "word", "another version"])
def test_a_damaged_file_is_an_error_and_never_a_model(every_epoch, tmp_path, data, damage, monkeypatch):
    interrupted(tmp_path, *data)
    (path,) = tmp_path.iterdir()
    stored = path.read_bytes()
    middle = len(stored) // 2
    flipped = bytes([stored[middle] ^ 1])
    path.write_bytes(
        {
            "empty": b"",
            "cut": stored[:middle],
            "one bit": stored[:middle] + flipped + stored[middle + 1 :],
            "word": b"S" + stored[1:],
            "another version": stored,
        }[damage]
    )
    message = f"the checkpoint .*{path.name}' is damaged: .* delete it to start this fit anew"
    if damage == "another version":
        monkeypatch.setattr("sklip.__version__", "9.0")
        message = r"was written by sklip 0.* and torch .*, this is sklip 9.0 and torch .*: .* delete it"
    clf = quick(tmp_path)
    with pytest.raises(ValueError, match=message):
        clf.fit(*data)
    assert not hasattr(clf, "certified_network_")
    path.unlink()
    assert steps_of(clf, *data) == 30


class Code:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_file_runs_no_code(tmp_path, data, capsys):
    quick(tmp_path).fit(*data)
    (path,) = tmp_path.iterdir()
    file = io.BytesIO()
    torch.save({"versions": Code()}, file)
    path.write_bytes(checkpoints._WORD + checkpoints._digest(file.getvalue()) + file.getvalue())
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        quick(tmp_path).fit(*data)
    assert "this ran" not in capsys.readouterr().out


def test_a_full_disk_is_a_warning_and_training_goes_on(every_epoch, tmp_path, data, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    alone = quick(None).fit(*data)
    monkeypatch.setattr(os, "fsync", full)
    clf = quick(tmp_path)
    with pytest.warns(UserWarning, match=r"goes on without a new checkpoint.*No space left"):
        clf.fit(*data)
    assert_same_bits(killed_fits.as_told(alone, data), killed_fits.as_told(clf, data))
    assert list(tmp_path.iterdir()) == []


def test_files_are_as_rare_as_writing_is_slow(tmp_path, data, monkeypatch):
    now, written = [0.0], []

    def write(path, _):
        written.append(now[0])
        now[0] += 1.0

    def step():
        now[0] += 2.0

    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoints, "write_whole", write)
    clf = quick(tmp_path, callbacks=[("clock", Clock(step))], max_epochs=40)
    clf.fit(*data)
    # After 5 seconds; then a second is a twentieth of the time; and at the end.
    assert written == [6.0, 27.0, 48.0, 69.0, 84.0]


class Clock(Callback):
    def __init__(self, step):
        self.step = step

    def on_epoch_begin(self, net, **kwargs):
        self.step()

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Unknown(Callback):
    pass


class Strange(Clock):
    def on_epoch_end(self, net, **kwargs):
        net.history.record("strange", object())


class Noisy(TauCrossEntropyLoss):
    def __init__(self):
        super().__init__(3.0)
        self.noise = np.random.default_rng(0)


def nothing():
    pass


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"random_state": None}, ValueError, "checkpoint_dir needs a random_state, got None"),
        ({"callbacks": [Unknown()]}, TypeError, "^Unknown in callbacks can't be stored .*state_dict"),
        ({"callbacks": [Strange(nothing)]}, TypeError, "tensors, numbers and words, got object"),
        ({"loss": Noisy()}, TypeError, "a Generator among the parameters doesn't tell one fit"),
        ({"checkpoint_dir": 3}, ValueError, "'checkpoint_dir' parameter"),
    ],
)
def test_what_can_not_be_stored_is_refused(every_epoch, tmp_path, data, parameters, error, message):
    with pytest.raises(error, match=message):
        quick(tmp_path).set_params(**parameters).fit(*data)


def test_a_folder_that_can_not_be_is_an_error_before_training(tmp_path, data):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match=r"checkpoint_dir must be a folder .*file"):
        quick(tmp_path / "file").fit(*data)


def test_partial_fit_stores_nothing(every_epoch, tmp_path, data):
    quick(tmp_path / "none", random_state=None).partial_fit(*data, classes=np.arange(10))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_another_than_its_source_says_is_refused(
    every_epoch, tmp_path, data, monkeypatch
):
    interrupted(tmp_path, *data, architecture=by_a_global)
    monkeypatch.setitem(WIDTH, "width", 12)
    with pytest.raises(ValueError, match=r"is of another network; delete it"):
        quick(tmp_path, architecture=by_a_global).fit(*data)


WIDTH = {"width": 8}


def by_a_global(input_shape, n_outputs):
    return torch.nn.Sequential(
        torch.nn.Linear(*input_shape, WIDTH["width"]),
        torch.nn.ReLU(),
        torch.nn.Linear(WIDTH["width"], n_outputs),
    )


# -- what tells fits apart ------------------------------------------------------------------------


def network_of(width):
    return lambda input_shape, n_outputs: torch.nn.Linear(*input_shape, width)


def defined_as(tmp_path, body):
    """The function `f` of a module with this source."""
    path = tmp_path / f"module_{abs(hash(body))}.py"
    path.write_text(body)
    spec = importlib.util.spec_from_file_location("written_by_a_user", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.f


PAIRS = {
    "numbers": (1, 2),
    "kinds": (1, "1"),
    "arrays": (np.zeros(3), np.zeros(3, np.float32)),
    "tensors": (torch.zeros(2, 2), torch.eye(2)),
    "dicts": ({1: 2}, {1: 3}),
    "sets": ({1, 2}, {1, 3}),
    "lists": ([1, [2]], [[1], 2]),
    "closures": (network_of(3), network_of(4)),
    "partials": (partial(network_of, 3), partial(network_of, width=3)),
    "instances": (RandomShift(1), RandomShift(2)),
    "losses": (TauCrossEntropyLoss(1.0), TauCrossEntropyLoss(2.0)),
    "kinds of losses": (TauCrossEntropyLoss(1.0), MulticlassHKRLoss(0.2, 10.0)),
    "layers": (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
    "methods": (RandomShift(1).__call__, RandomShift(2).__call__),
    "builtins": (torch.relu, torch.sigmoid),
    "words of objects": (np.array(["a", "b"], object), np.array(["a", "c"], object)),
    "dtypes": (torch.float32, torch.float64),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_digest_tells_values_apart_and_copies_not(name):
    first, second = PAIRS[name]
    assert digest_of(first) != digest_of(second)
    assert digest_of([first]) == digest_of([first])


def test_a_digest_sees_the_source_of_functions_that_a_user_wrote(tmp_path):
    source = "def f(x):\n    return x + {}\n"
    one, two, same = (defined_as(tmp_path, source.format(value)) for value in (1, 2, 1))
    assert digest_of(one) == digest_of(same) != digest_of(two)


def test_a_digest_of_what_holds_itself_ends():
    first, second = [1], [1]
    first.append(first)
    second.append(second)
    assert digest_of(first) == digest_of(second)


def test_a_digest_of_what_does_not_say_what_it_is_is_refused():
    with pytest.raises(TypeError, match="a Generator among the parameters doesn't tell"):
        digest_of({"noise": np.random.default_rng(0)})


def test_the_default_stores_nothing():
    assert LipschitzClassifier().checkpoint_dir is None
