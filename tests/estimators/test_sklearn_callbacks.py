"""scikit-learn's own callbacks, where it has them."""

import importlib.util
import pickle
import sys

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklip import LipschitzClassifier, LipschitzClassifierCV, certified_accuracy_scorer
from sklip.estimators import fit_tasks


@pytest.fixture(scope="module")
def data(digits):
    X, y = digits
    return X[:200], y[:200]


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 4, "batch_size": 100, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


@pytest.fixture(scope="module")
def callback():
    return pytest.importorskip("sklearn.callback", reason="scikit-learn before 1.9 has no callbacks")


class Recorder:
    """A callback as scikit-learn describes it, without a base class."""

    max_propagation_depth = None

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.events = []
        self.certified = []

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.events.append(("begin", context.estimator_name, context.task_name, context.max_subtasks))

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
        self.events.append(("end", context.estimator_name, context.task_name, context.max_subtasks))
        if context.task_name == "epoch":
            assert fitted_estimator is not estimator
            self.certified.append((fitted_estimator.predict(X), fitted_estimator.certificates_(X)))
            return context.task_id + 1 == self.stop_after
        return False


class NotFinite(torch.nn.Module):
    def forward(self, logits, target, sample_weight=None):
        return logits.sum() * torch.nan


def test_every_epoch_is_a_task_with_a_model_that_is_proven(callback, data):
    X, y = data
    recorder = Recorder()
    clf = quick()
    assert clf.set_callbacks(recorder) is clf
    clf.fit(X, y)
    epoch = [("begin", "LipschitzClassifier", "epoch", 0), ("end", "LipschitzClassifier", "epoch", 0)]
    fit = ("LipschitzClassifier", "fit", 4)
    assert recorder.events == ["setup", ("begin", *fit), *epoch * 4, ("end", *fit), "teardown"]
    labels, radii = recorder.certified[-1]
    np.testing.assert_array_equal(labels, clf.predict(X))
    np.testing.assert_array_equal(radii, clf.certificates_(X))
    # What training had reached earlier is what a shorter training reaches at a constant rate.
    short = quick(max_epochs=2, learning_rate_schedule="constant")
    longer, watcher = quick(learning_rate_schedule="constant"), Recorder()
    longer.set_callbacks(watcher).fit(X, y)
    np.testing.assert_array_equal(watcher.certified[1][0], short.fit(X, y).predict(X))
    np.testing.assert_allclose(watcher.certified[1][1], short.certificates_(X), rtol=1e-9)


def test_callbacks_do_not_change_training_and_do_not_stay(callback, data):
    X, y = data
    watched, plain = quick().set_callbacks(Recorder()).fit(X, y), quick().fit(X, y)
    np.testing.assert_array_equal(watched.decision_function(X), plain.decision_function(X))
    watched.set_callbacks()
    assert vars(watched).keys() == vars(plain).keys()
    assert not hasattr(watched.net_, "_watcher")


def test_a_callback_ends_training(callback, data):
    assert quick().set_callbacks(Recorder(stop_after=2)).fit(*data).n_iter_ == 2


def test_callbacks_are_torn_down_where_a_fit_fails(callback, data):
    recorder = Recorder()
    with pytest.raises(ValueError, match="non-finite"):
        quick(loss=NotFinite()).set_callbacks(recorder).fit(*data)
    assert recorder.events[-2:] == [("begin", "LipschitzClassifier", "epoch", 0), "teardown"]
    recorder = Recorder()
    with pytest.raises(ValueError, match="tau"):
        quick(tau=-1.0).set_callbacks(recorder).fit(*data)
    assert recorder.events == []


def test_scores_of_epochs_go_through_searches_and_pipelines(callback, data):
    X, y = data
    weights = np.random.default_rng(0).uniform(0.5, 2.0, len(X))
    monitor = callback.ScoringMonitor(
        scoring={"accuracy": "accuracy", "certified": certified_accuracy_scorer(eps=0.05)}
    )
    pipeline = make_pipeline(StandardScaler(with_std=False), quick().set_callbacks(monitor))
    search = GridSearchCV(pipeline, {"lipschitzclassifier__tau": [1.0, 10.0]}, cv=2)
    search.fit(X, y, lipschitzclassifier__sample_weight=weights)
    rows = monitor.get_logs().data
    # Four epochs and the whole fit, of two candidates in two folds and the best one's refit.
    assert [row["task_name"] for row in rows].count("epoch") == 4 * (2 * 2 + 1)
    assert len(rows) == 5 * (2 * 2 + 1)
    clf, seen = search.best_estimator_[-1], X - X.mean(axis=0)
    scorer = certified_accuracy_scorer(eps=0.05)
    certified = scorer(clf, seen, y, sample_weight=weights)
    accuracy = clf.score(seen, y, sample_weight=weights)
    refit = [(r["certified"], r["accuracy"]) for r in rows if r["task_id_path"][:2] == (0, 1)]
    assert len(refit) == 5
    assert (certified, accuracy) in [tuple(map(pytest.approx, each)) for each in refit]


def test_warm_starts_are_watched_as_well(callback, data):
    X, y = data
    recorder = Recorder()
    clf = quick(warm_start=True).set_callbacks(recorder).fit(X, y).fit(X, y)
    assert len(recorder.certified) == 8
    np.testing.assert_array_equal(recorder.certified[-1][1], clf.certificates_(X))
    assert pickle.loads(pickle.dumps(clf)).n_iter_ == 8


def test_a_progress_bar_shows_the_epochs(callback, data, capsys):
    pytest.importorskip("rich")
    bar = callback.ProgressBar(max_propagation_depth=2)
    search = GridSearchCV(quick(), {"tau": [1.0, 10.0]}, cv=2).set_callbacks(bar)
    search.fit(*data)
    assert "LipschitzClassifier - fit" in capsys.readouterr().out


def test_the_rest_works_where_scikit_learn_has_no_callbacks(monkeypatch):
    """As before 1.9: the module is not there."""
    monkeypatch.setitem(sys.modules, "sklearn.callback", None)
    spec = importlib.util.spec_from_file_location("without_callbacks", fit_tasks.__file__)
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)

    class Estimator(without.CallbackSupportMixin):
        @without.with_callbacks
        def fit(self, epochs):
            tasks = without.FitTasks(self, None, None, None)
            tasks.begin(epochs)
            stops = [(tasks.epoch_begins(), tasks.epoch_ends(dict))[1] for _ in range(epochs)]
            tasks.end()
            return stops

    assert not hasattr(Estimator(), "set_callbacks")
    assert Estimator().fit(3) == [False] * 3


def test_candidates_of_a_small_table_are_followed_one_by_one(data, callback):
    X, y = data
    recorder = Recorder()
    estimator = quick(batch_size=200).set_callbacks(recorder)
    LipschitzClassifierCV(estimator, taus=[1.0, 3.0], cv=2).fit(X[:, :20], y)
    fits = [event for event in recorder.events if event[:1] == ("begin",) and event[2] == "fit"]
    assert len(fits) == 5  # two candidates on two folds, and the winner
    assert len(recorder.certified) == 5 * 4
