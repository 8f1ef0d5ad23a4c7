"""What users of skorch do: scores and checkpoints by callbacks, schedules, nested parameters."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    LRScheduler,
    TrainEndCheckpoint,
)

from sklip import LipschitzClassifier, average_certified_radius_scorer, certified_accuracy_scorer
from sklip.losses import BinaryHKRLoss, CertifiedRadiusLoss, MulticlassKRLoss, TauCrossEntropyLoss


@pytest.fixture(scope="module")
def data(digits):
    X, y = digits
    return X[:300], np.array(["zero", "one", "two", *"3456789"])[y[:300]]


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 5, "batch_size": 100, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


class Weights(Callback):
    """Keeps the weights after each epoch."""

    def initialize(self):
        self.epochs_ = []

    def on_epoch_end(self, net, **kwargs):
        self.epochs_.append({k: v.clone() for k, v in net.module_.state_dict().items()})


class Rates(Callback):
    """Keeps the learning rates in force at each step."""

    def initialize(self):
        self.rates_ = []

    def on_grad_computed(self, net, **kwargs):
        self.rates_.append([group["lr"] for group in net.optimizer_.param_groups])


def callback(clf, name):
    return dict(clf.net_.callbacks_)[name]


# -- scores --------------------------------------------------------------------------------------


class Keep(Callback):
    """Keeps what is held out."""

    def on_train_begin(self, net, **kwargs):
        self.held_out_ = net._validation


@pytest.mark.parametrize("binary", [False, True])
def test_scores_of_epochs_are_those_of_the_fitted_model(data, binary):
    """Of the last epoch, by the public methods of the model that it became."""
    X, y = data
    y = np.where(np.isin(y, ["zero", "one", "two"]), "low", "high") if binary else y
    scorers = {
        "accuracy": EpochScoring("accuracy", lower_is_better=False),
        "neg_log_loss": EpochScoring("neg_log_loss", lower_is_better=False),
        "certified": EpochScoring(certified_accuracy_scorer(eps=0.1), lower_is_better=False),
        "radius": EpochScoring(average_certified_radius_scorer(), lower_is_better=False),
        "batches": BatchScoring("accuracy", name="of_batches"),
        "keep": Keep(),
    }
    clf = quick(early_stopping=True, callbacks=list(scorers.items()), max_epochs=6).fit(X, y)
    kept = callback(clf, "keep").held_out_
    rows, labels = kept.rows(), clf.classes_[kept.y.numpy()]
    best = int(np.argmax([row["valid_normalized_margin"] for row in clf.history_]))
    row = clf.history_[best]
    assert row["accuracy"] == pytest.approx(accuracy_score(labels, clf.predict(rows)), abs=1e-12)
    assert row["of_batches"] == pytest.approx(row["accuracy"], abs=1e-12)
    loss = log_loss(labels, clf.predict_proba(rows), labels=clf.classes_)
    assert row["neg_log_loss"] == pytest.approx(-loss, rel=1e-6)
    certified = certified_accuracy_scorer(eps=0.1)(clf, rows, labels)
    assert row["certified_accuracy_at_0.1"] == pytest.approx(certified, abs=1e-12)
    assert 0 < certified < 1
    radius = average_certified_radius_scorer()(clf, rows, labels)
    assert row["average_certified_radius"] == pytest.approx(radius, rel=1e-9)
    best_so_far = np.maximum.accumulate([r["accuracy"] for r in clf.history_])
    assert [r["accuracy_best"] for r in clf.history_] == [
        i == 0 or best_so_far[i] > best_so_far[i - 1] for i in range(len(clf.history_))
    ]


@pytest.mark.parametrize("use_caching", [False, True])
def test_scores_of_training_rows_that_are_drawn_in_random_order(data, use_caching):
    """Rows and labels belong together, and scoring does not change training."""
    X, y = data
    scoring = EpochScoring(certified_accuracy_scorer(0.1), on_train=True, use_caching=use_caching)
    scored, plain = quick(callbacks=[scoring]).fit(X, y), quick(callbacks=[Weights()]).fit(X, y)
    np.testing.assert_array_equal(scored.decision_function(X), plain.decision_function(X))
    assert scored.history_[-1]["certified_accuracy_at_0.1"] == certified_accuracy_scorer(0.1)(
        scored, X, y
    )


def test_scores_in_standard_deviations():
    X, y = load_iris(return_X_y=True)
    scorer = average_certified_radius_scorer(scale="std")
    clf = quick(callbacks=[EpochScoring(scorer, on_train=True)]).fit(X, y)
    expected = average_certified_radius_scorer(scale=X.std(axis=0))(clf, X, y)
    assert clf.history_[-1]["average_certified_radius"] == pytest.approx(expected, rel=1e-9)


def test_scores_of_frames_with_names_and_in_pipelines(data):
    pandas = pytest.importorskip("pandas")
    X, y = data
    frame = pandas.DataFrame(X).add_prefix("pixel")
    scoring = EpochScoring(certified_accuracy_scorer(eps=0.1), on_train=True)
    pipeline = make_pipeline(StandardScaler(with_std=False), quick(callbacks=[scoring])).fit(frame, y)
    clf = pipeline[-1]
    seen = pipeline[0].transform(frame)
    expected = certified_accuracy_scorer(eps=0.1)(clf, seen, y)
    assert clf.history_[-1]["certified_accuracy_at_0.1"] == expected


def test_a_net_certifies_for_callbacks_in_training_only(data):
    clf = quick().fit(*data)
    with pytest.raises(RuntimeError, match="in training only"):
        certified_accuracy_scorer()(clf.net_, data[0], data[1])


@pytest.mark.parametrize(
    ("entry", "remedy"),
    [
        (EpochScoring("accuracy"), "on_train=True"),
        (BatchScoring("accuracy"), "on_train=True"),
        (Checkpoint(), "monitor='train_loss_best'"),
        (EarlyStopping(), "monitor='train_loss'"),
    ],
)
def test_callbacks_that_need_held_out_rows_say_so(data, entry, remedy):
    message = rf"^{type(entry).__name__} in callbacks needs rows that are held out.*{remedy}"
    with pytest.raises(ValueError, match=message):
        quick(callbacks=[entry]).fit(*data)


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held_out", "monitor"), [(True, "valid_loss_best"), (False, "train_loss_best")]
)
def test_checkpoints_hold_the_weights_of_the_least_loss(data, tmp_path, held_out, monitor):
    given = {"monitor": monitor} if monitor != "valid_loss_best" else {}
    checkpoint = Checkpoint(dirname=str(tmp_path), **given)
    clf = quick(early_stopping=held_out, callbacks=[("keep", Weights()), checkpoint], max_epochs=8).fit(
        *data
    )
    losses = [row[monitor.removesuffix("_best")] for row in clf.history_]
    assert [row[monitor] for row in clf.history_] == [
        loss < min(losses[:i], default=np.inf) for i, loss in enumerate(losses)
    ]
    expected = callback(clf, "keep").epochs_[int(np.argmin(losses))]
    stored = torch.load(tmp_path / "params.pt", weights_only=True)
    assert stored.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(stored[name], value, rtol=0, atol=0)
    assert (tmp_path / "history.json").exists()
    assert (tmp_path / "optimizer.pt").exists()


class Ruin(Callback):
    """Makes everything worse from the fourth epoch on."""

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) > 3:
            with torch.no_grad():
                net.module_[-1].bias.add_(10.0 * torch.arange(10))


def test_the_best_checkpoint_can_be_what_is_proven(data, tmp_path):
    X, y = data
    checkpoint = Checkpoint(monitor="train_loss_best", dirname=str(tmp_path), load_best=True)
    ruined = quick(callbacks=[Ruin(), checkpoint], learning_rate_schedule="constant").fit(X, y)
    best = quick(max_epochs=3, learning_rate_schedule="constant").fit(X, y)
    assert ruined.n_iter_ == 3
    # The same up to the orthogonality of weights that are not yet those of a finished network.
    np.testing.assert_allclose(
        ruined.decision_function(X), best.decision_function(X), rtol=1e-9, atol=1e-9
    )


def test_a_checkpoint_at_the_end_is_written(data, tmp_path):
    clf = quick(callbacks=[TrainEndCheckpoint(dirname=str(tmp_path))]).fit(*data)
    stored = torch.load(tmp_path / "train_end_params.pt", weights_only=True)
    assert stored.keys() == clf.net_.module_.state_dict().keys()


# -- schedules -----------------------------------------------------------------------------------


def test_schedules_of_torch_set_the_rate(data):
    schedule = LRScheduler("StepLR", step_size=2, gamma=0.5)
    clf = quick(
        callbacks=[("rates", Rates()), schedule],
        learning_rate_schedule="constant",
        learning_rate=0.08,
        max_epochs=4,
    ).fit(*data)
    rates = np.array(callback(clf, "rates").rates_)[:, 0]
    np.testing.assert_allclose(rates, np.repeat([0.08, 0.08, 0.04, 0.04], 3))
    assert [row["event_lr"] for row in clf.history_] == [0.08, 0.08, 0.04, 0.04]
    clf.partial_fit(*data)  # where the rate is constant


def test_a_schedule_beside_the_estimators_own_is_refused(data):
    with pytest.raises(ValueError, match=r"LRScheduler .*set learning_rate_schedule='constant'"):
        quick(callbacks=[LRScheduler("StepLR", step_size=2)]).fit(*data)


# -- nested parameters ---------------------------------------------------------------------------


def test_parameters_of_callbacks_are_read_set_and_searched(data):
    clf = quick(
        callbacks=[("rate", LRScheduler("StepLR", step_size=2, gamma=0.5)), Rates(), Rates()],
        learning_rate_schedule="constant",
    )
    params = clf.get_params()
    assert params["callbacks__rate__gamma"] == 0.5
    assert {"callbacks__rate", "callbacks__Rates_1", "callbacks__Rates_2"} <= params.keys()
    assert not any("__" in name for name in clf.get_params(deep=False))
    copied = clone(clf).set_params(callbacks__rate__gamma=0.1, callbacks__Rates_2=None)
    assert copied.get_params()["callbacks__rate__gamma"] == 0.1
    assert clf.get_params()["callbacks__rate__gamma"] == 0.5
    assert [name for name, _ in copied.fit(*data).net_.callbacks_] == ["rate", "Rates_1"]
    search = GridSearchCV(clf, {"callbacks__rate__gamma": [0.01, 0.5]}, cv=2).fit(*data)
    assert search.best_estimator_.history_[2]["event_lr"] == pytest.approx(
        0.05 * search.best_params_["callbacks__rate__gamma"]
    )
    with pytest.raises(ValueError, match="Invalid parameter 'callbacks__other' for estimator"):
        clf.set_params(callbacks__other__gamma=1.0)


def test_scorers_inside_of_callbacks_are_reached():
    clf = quick(callbacks=[("certified", EpochScoring(certified_accuracy_scorer(eps=0.1)))])
    clf.set_params(callbacks__certified__scoring__eps=0.2)
    assert clf.callbacks[0][1].scoring.eps == 0.2


LOSSES = {
    "TauCrossEntropyLoss(tau=2.0)": (TauCrossEntropyLoss(2.0), {"tau": 3.0}),
    "BinaryHKRLoss(min_margin=1.0, alpha=10.0)": (BinaryHKRLoss(1.0, 10.0), {"min_margin": 0.5}),
    "CertifiedRadiusLoss(loss=TauCrossEntropyLoss(tau=2.0, offset=0.5), weight=0.5, radius=1.0)": (
        CertifiedRadiusLoss(TauCrossEntropyLoss(2.0, 0.5), 0.5, 1.0),
        {"loss__offset": 0.1, "weight": 0.2},
    ),
    "MulticlassKRLoss()": (MulticlassKRLoss(), {}),
}


@pytest.mark.parametrize("text", LOSSES)
def test_losses_print_their_constructor_and_are_made_anew_by_it(text):
    loss, changes = LOSSES[text]
    assert repr(loss) == text
    assert text in repr(LipschitzClassifier(loss=loss))
    copied = clone(loss, safe=False)
    assert copied is not loss
    assert repr(copied) == text
    changed = copied.set_params(**changes)
    assert changed is copied
    # As if made by those, wherever a parameter is kept inside.
    logits, codes = torch.tensor([[0.1], [0.7]]), torch.tensor([0, 1])
    if not text.startswith("Binary"):
        logits = torch.tensor([[0.1, 0.4, -0.2], [0.7, 0.1, 0.0]])
    made = eval(repr(changed))
    assert changed(logits, codes) == made(logits, codes)
    assert not changes or changed(logits, codes) != loss(logits, codes)
    assert repr(pickle.loads(pickle.dumps(changed))) == repr(changed)
    assert repr(loss) == text


def test_losses_refuse_what_their_constructor_refuses_and_stay_as_they_were():
    loss = TauCrossEntropyLoss(2.0)
    with pytest.raises(ValueError, match="tau must be positive"):
        loss.set_params(tau=-1.0)
    assert loss.tau == 2.0
    with pytest.raises(ValueError, match=r"Invalid parameter 'rho' for loss .*\['tau', 'offset'"):
        loss.set_params(rho=1.0)


def test_a_search_goes_over_parameters_of_a_loss(data):
    clf = quick(loss=TauCrossEntropyLoss(1.0))
    search = GridSearchCV(clf, {"loss__tau": [0.1, 30.0]}, cv=2).fit(*data)
    by_name = GridSearchCV(quick(), {"tau": [0.1, 30.0]}, cv=2).fit(*data)
    for name in ("split0_test_score", "split1_test_score"):
        np.testing.assert_array_equal(search.cv_results_[name], by_name.cv_results_[name])
    assert clf.loss.tau == 1.0


def test_a_changed_parameter_of_a_loss_is_taken_up_by_further_training(data):
    changed = quick(loss=TauCrossEntropyLoss(1.0))
    same = quick(loss=TauCrossEntropyLoss(1.0))
    for clf in (changed, same):
        clf.partial_fit(*data, classes=np.unique(data[1]))
    changed.set_params(loss__tau=100.0)
    for clf in (changed, same):
        clf.partial_fit(*data)
    assert changed.net_.criterion_.tau == 100.0
    assert not np.array_equal(changed.decision_function(data[0]), same.decision_function(data[0]))


def test_parameters_of_a_loss_that_has_none_are_refused():
    with pytest.raises(ValueError, match=r"^loss__tau needs a loss that has parameters"):
        quick().set_params(loss__tau=1.0)


# -- logarithms of probabilities ------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("tau", [1.0, 1e4])
def test_log_probabilities_are_exact_in_the_tails(n_classes, tau):
    """Against sums of Python's floats, in another order of operations."""
    from math import exp, fsum, log1p

    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    y = np.arange(60) % n_classes
    clf = quick(tau=tau, dtype="float64").fit(X, y)
    got, scores = clf.predict_log_proba(X), clf.decision_function(X)
    for row, logits in zip(got, np.atleast_2d(scores.T).T.tolist(), strict=True):
        both = [0.0, logits[0]] if n_classes == 2 else logits
        top = max(both)
        rest = list(both)
        rest.remove(top)
        log_sum = log1p(fsum(exp(tau * (each - top)) for each in rest))
        expected = [tau * (each - top) - log_sum for each in both]
        np.testing.assert_allclose(row, expected, rtol=1e-12, atol=1e-300)
    np.testing.assert_array_equal(clf.classes_[got.argmax(1)], clf.predict(X))
    with np.errstate(divide="ignore"):
        logarithms = np.log(clf.predict_proba(X))
    inside = logarithms > -600
    np.testing.assert_allclose(got[inside], logarithms[inside], rtol=1e-9, atol=1e-12)
    if tau == 1e4:
        assert (clf.predict_proba(X) == 0).any()
        assert np.isfinite(got).all()


def test_pipelines_and_searches_have_log_probabilities(data):
    X, y = data
    pipeline = make_pipeline(StandardScaler(with_std=False), quick()).fit(X, y)
    np.testing.assert_allclose(np.exp(pipeline.predict_log_proba(X)), pipeline.predict_proba(X))


# -- weight decay ---------------------------------------------------------------------------------


class Decay(Callback):
    def __init__(self, weight_decay):
        self.weight_decay = weight_decay

    def on_train_begin(self, net, **kwargs):
        for group in net.optimizer_.param_groups:
            group["weight_decay"] = self.weight_decay


def plain_network(input_shape, n_outputs):
    """Layers that nothing constrains."""
    return torch.nn.Sequential(
        torch.nn.Linear(*input_shape, 8), torch.nn.ReLU(), torch.nn.Linear(8, n_outputs)
    )


def test_weight_decay_of_plain_layers_is_set_by_a_callback(data):
    clf = quick(architecture=plain_network, callbacks=[("decay", Decay(0.0))], learning_rate=0.3)
    bounds = [
        clone(clf).set_params(callbacks__decay__weight_decay=decay).fit(*data).lipschitz_bound_
        for decay in (0.0, 3.0)
    ]
    assert 0 < bounds[1] < 0.8 * bounds[0]
