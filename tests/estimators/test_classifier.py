"""LipschitzClassifier: what goes in and what comes out."""

import copy
import gc
import io
import pickle
import weakref
from contextlib import redirect_stdout

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split
from sklearn.utils import compute_sample_weight
from skorch.callbacks import Callback, EpochScoring
from torch import nn

from sklip import LipschitzClassifier, lipschitz_bound, losses
from sklip.layers import (
    GroupSort2,
    OrthogonalConv2d,
    OrthogonalLayer,
    Residual,
    ScaledL2NormPool2d,
    Sequential,
    SpectralLinear,
)
from sklip.losses.reductions import normalized_margins
from sklip.networks import lipschitz_mlp, tutorial_cnn
from sklip.training.data import _one_ahead


def quick(**parameters):
    return LipschitzClassifier(**{"max_epochs": 8, "random_state": 0, **parameters})


@pytest.fixture(scope="module")
def digits(digits):
    X, y = digits
    return X[:600], y[:600]


@pytest.fixture(scope="module")
def fitted(digits):
    return quick(max_epochs=30).fit(*digits)


class SmallNetwork:
    """A picklable architecture: one hidden layer."""

    def __call__(self, input_shape, n_outputs):
        return torch.nn.Sequential(
            torch.nn.Flatten(),
            SpectralLinear(int(np.prod(input_shape)), 16),
            GroupSort2(),
            SpectralLinear(16, n_outputs),
        )


# -- what goes in ----------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [str, lambda digit: int(digit) * 7 - 3, np.float64])
def test_labels_of_any_kind_come_back_from_predict(digits, labels):
    X, y = digits
    named = np.array([labels(digit) for digit in y])
    clf = quick().fit(X, named)
    assert set(clf.predict(X)) <= set(named)
    assert clf.classes_.dtype == named.dtype
    assert clf.score(X, named) > 0.8


def test_boolean_labels_are_a_binary_problem(digits):
    X, y = digits
    clf = quick().fit(X, y > 4)
    assert clf.predict(X).dtype == bool
    assert clf.decision_function(X).shape == (len(X),)
    np.testing.assert_array_equal(clf.predict(X), clf.decision_function(X) > 0)
    assert clf.predict_proba(X).shape == (len(X), 2)


def test_every_container_of_the_same_values_gives_the_same_model(digits):
    X, y = digits
    expected = quick().fit(X, y).decision_function(X)
    for data, target in (
        (pd.DataFrame(X, columns=[f"p{i}" for i in range(64)]), pd.Series(y)),
        (torch.tensor(X), torch.tensor(y)),
        (X.tolist(), y.tolist()),
        (np.asfortranarray(X), y.astype(np.int8)),
        (X.astype(object), y),
    ):
        np.testing.assert_array_equal(quick().fit(data, target).decision_function(data), expected)


def test_images_in_every_layout_give_the_same_model():
    rng = np.random.default_rng(0)
    images = rng.random((60, 3, 8, 6), dtype=np.float32)
    y = rng.integers(0, 3, 60)
    small = {"conv_channels": (4, 8), "hidden_layer_sizes": (8,), "max_epochs": 2}
    expected = quick(**small).fit(images, y).decision_function(images)
    flat = images.reshape(60, -1)
    channels_last = images.transpose(0, 2, 3, 1)
    for X in (flat, channels_last, images, torch.from_numpy(images)):
        clf = quick(input_shape=(3, 8, 6), **small).fit(X, y)
        np.testing.assert_array_equal(clf.decision_function(X), expected)
        assert clf.n_features_in_ == 144
        assert clf.input_shape_ == (3, 8, 6)


def test_grey_images_need_no_channel_axis():
    X, y = load_digits(return_X_y=True)
    images = X.reshape(-1, 8, 8)[:100]
    clf = quick(max_epochs=2).fit(images, y[:100])
    assert clf.input_shape_ == (1, 8, 8)
    np.testing.assert_array_equal(clf.predict(images), clf.predict(X[:100]))


def test_unsigned_bytes_are_read_by_value():
    X, y = load_digits(return_X_y=True)
    first, second = (quick(max_epochs=2, dtype="float32") for _ in range(2))
    first.fit(X[:100].astype(np.uint8), y[:100])
    second.fit(X[:100], y[:100])
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))


@pytest.mark.parametrize(
    ("parameters", "shape", "dtype"),
    [
        ({}, (20, 4), "float64"),
        ({}, (20, 1, 8, 8), "float32"),
        ({"dtype": "float64"}, (20, 1, 8, 8), "float64"),
        ({"dtype": "float32"}, (20, 4), "float32"),
    ],
)
def test_precision_follows_the_kind_of_data_and_reaches_every_output(parameters, shape, dtype):
    X = np.random.default_rng(0).random(shape)
    clf = quick(max_epochs=1, **parameters).fit(X, np.arange(20) % 3)
    assert clf.dtype_ == dtype
    assert clf.decision_function(X).dtype == clf.predict_proba(X).dtype == dtype


# -- weights ---------------------------------------------------------------------------------


def test_weights_equal_repetitions():
    X, y = make_blobs(60, 3, centers=3, random_state=0)
    weight = np.random.default_rng(0).integers(0, 4, 60)
    repeated = np.repeat(np.arange(60), weight)
    for loss in ("tau_cross_entropy", "hkr"):
        a = quick(loss=loss, max_epochs=60).fit(X, y, sample_weight=weight)
        b = quick(loss=loss, max_epochs=60).fit(X[repeated], y[repeated])
        # Equal in exact arithmetic; sums in another order, through 60 steps of Adam.
        np.testing.assert_allclose(a.decision_function(X), b.decision_function(X), atol=1e-9)


@pytest.mark.parametrize("class_weight", ["balanced", {0: 1.0, 1: 5.0, 2: 0.5}])
def test_class_weight_equals_sample_weight(class_weight):
    X, y = make_blobs([50, 20, 10], 3, random_state=0)
    a = quick(class_weight=class_weight).fit(X, y)
    b = quick().fit(X, y, sample_weight=compute_sample_weight(class_weight, y))
    np.testing.assert_allclose(a.decision_function(X), b.decision_function(X), rtol=1e-9)


# -- training --------------------------------------------------------------------------------


def test_training_leaves_the_global_generators_alone(digits):
    torch_state, (_, key, *rest) = torch.get_rng_state(), np.random.get_state()
    key = key.copy()
    quick().fit(*digits).predict(digits[0])
    assert torch.equal(torch.get_rng_state(), torch_state)
    _, new_key, *new_rest = np.random.get_state()
    np.testing.assert_array_equal(new_key, key)
    assert new_rest == rest


def test_the_seed_and_nothing_else_decides_the_model(digits, seeded_torch):
    X, y = digits
    torch.manual_seed(1)
    first = quick(random_state=7).fit(X, y).decision_function(X)
    torch.manual_seed(2)
    np.testing.assert_array_equal(quick(random_state=7).fit(X, y).decision_function(X), first)
    assert not np.array_equal(quick(random_state=8).fit(X, y).decision_function(X), first)


def test_a_lower_tau_gives_larger_radii(digits):
    X, y = digits
    radii = [quick(tau=tau, max_epochs=30).fit(X, y).certificates_(X).mean() for tau in (0.5, 5, 50)]
    assert radii[0] > radii[1] > radii[2]


def test_early_stopping_keeps_the_best_epoch(digits):
    clf = quick(early_stopping=True, n_iter_no_change=2, max_epochs=200, learning_rate=0.01)
    clf.fit(*digits)
    margins = [row["valid_normalized_margin"] for row in clf.history_]
    assert clf.n_iter_ < 200
    # Of those that improve by the threshold of 1e-4 or more, two epochs before the last.
    assert max(margins) <= margins[clf.n_iter_ - 3] * (1 + 1e-4)
    seed = np.random.RandomState(0).randint(np.iinfo(np.int32).max)
    _, held_out = train_test_split(
        np.arange(len(digits[0])), test_size=0.1, stratify=digits[1], random_state=seed
    )
    logits = torch.from_numpy(clf.decision_function(digits[0][held_out]))
    kept = normalized_margins(logits, torch.from_numpy(digits[1][held_out])).clamp(min=0).mean()
    assert float(kept) == pytest.approx(margins[clf.n_iter_ - 3], rel=1e-6)
    assert set(clf.history_[0]) >= {"valid_accuracy", "valid_normalized_margin", "train_loss"}


@pytest.mark.parametrize("parameters", [{}, {"solver": "adam"}, {"early_stopping": True}], ids=str)
def test_a_discarded_model_frees_its_memory_at_once(digits, parameters):
    # A search would else fill a device with models that wait for the garbage collector.
    X, y = digits
    quick().fit(X[:64], y[:64])  # what torch keeps of its first optimiser is not ours
    gc.collect()
    gc.disable()
    try:
        clf = quick(**parameters).fit(X, y)
        clf.certificates_(X)
        parts = (clf.net_, clf.net_.module_, clf.net_.optimizer_, clf.certified_network_.network)
        assert all(parameter.grad is None for parameter in clf.net_.module_.parameters())
        alive = [weakref.ref(part) for part in (*parts, *clf.net_.module_.parameters())]
        del clf, parts
        assert [part() for part in alive] == [None] * len(alive)
    finally:
        gc.enable()


def test_constant_schedule_and_plain_networks_can_be_had(digits):
    X, y = digits
    clf = quick(learning_rate_schedule="constant", learning_rate=1e-3, hidden_layer_sizes=())
    clf.fit(X, y)
    assert [type(layer).__name__ for layer in clf.to_torch()] == ["Center", "Linear"]


def test_verbose_prints_a_line_an_epoch_and_silence_otherwise(digits):
    for verbose, lines in ((0, 0), (1, 3)):
        output = io.StringIO()
        with redirect_stdout(output):
            quick(verbose=verbose, max_epochs=3).fit(*digits)
        printed = output.getvalue().splitlines()
        assert len(printed) == lines
        for word in ("epoch", "loss", "accuracy", "normalized margin"):
            assert all(word in line for line in printed)


class Recorder(Callback):
    """Counts what it is told of."""

    def __init__(self):
        self.calls = []

    def on_epoch_end(self, net, **kwargs):
        self.calls.append("epoch")

    def on_grad_computed(self, net, named_parameters, **kwargs):
        assert all(parameter.grad is not None for _, parameter in named_parameters)
        self.calls.append("grad")


class StopAtOnce(Callback):
    def on_epoch_end(self, net, **kwargs):
        raise KeyboardInterrupt


def test_callbacks_reach_skorch_as_copies(digits):
    recorder = Recorder()
    clf = quick(callbacks=[("recorder", recorder)], max_epochs=2, batch_size=256).fit(*digits)
    assert recorder.calls == []
    assert dict(clf.net_.callbacks_)["recorder"].calls == ["grad"] * 3 + ["epoch"] + ["grad"] * 3 + [
        "epoch"
    ]
    assert quick(callbacks=[StopAtOnce()]).fit(*digits).n_iter_ == 1


def test_skorch_scoring_callbacks_work_on_the_batches(digits):
    def largest_logit(net, X, y):
        return float(net.forward(X).max()) if isinstance(X, np.ndarray) else 1.0

    scoring = EpochScoring(largest_logit, name="probe", on_train=True, use_caching=True)
    clf = quick(callbacks=[scoring], max_epochs=2).fit(*digits)
    assert "probe" in clf.history_[-1]


# -- certificates ----------------------------------------------------------------------------


def test_no_step_inside_the_radius_changes_the_prediction(digits, fitted, seeded_torch):
    """Gradient ascent towards the runner-up, projected on spheres just inside the radius."""
    X, _ = digits
    network, radii = fitted.to_torch(), fitted.certificates_(X)
    start = torch.tensor(X)
    predicted = network(start).argmax(1)
    budget = torch.from_numpy(radii)[:, None] * (1 - 1e-9)
    moved = start + torch.randn_like(start) * 1e-3
    for _ in range(40):
        moved = moved.detach().requires_grad_()
        logits = network(moved)
        true = logits.gather(1, predicted[:, None]).squeeze(1)
        rival = logits.scatter(1, predicted[:, None], -torch.inf).amax(1)
        (gradient,) = torch.autograd.grad((rival - true).sum(), moved)
        step = moved.detach() + gradient / gradient.norm(dim=1, keepdim=True) * budget / 4
        offset = step - start
        moved = start + offset * (budget / offset.norm(dim=1, keepdim=True)).clamp(max=1)
    np.testing.assert_array_equal(fitted.predict(moved.detach().numpy()), fitted.predict(X))
    assert np.median(radii) > 0.1


@pytest.mark.parametrize("classes", [2, 10])
def test_a_linear_model_flips_just_outside_its_radius(digits, classes):
    X, y = digits
    clf = quick(hidden_layer_sizes=(), max_epochs=60).fit(X, y if classes == 10 else y % 2)
    weight = clf.to_torch()[-1].weight.numpy()
    scores, radii = clf.decision_function(X), clf.certificates_(X)
    if classes == 2:
        directions = np.where(scores > 0, -1, 1)[:, None] * weight
    else:
        predicted = scores.argmax(1)
        ratios = clf.certified_network_.margin_bounds[predicted]
        with np.errstate(invalid="ignore"):
            quotients = (scores.max(1, keepdims=True) - scores) / ratios
        quotients[np.arange(len(X)), predicted] = np.inf
        directions = weight[quotients.argmin(1)] - weight[predicted]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    inside, outside = (X + directions * radii[:, None] * factor for factor in (1 - 1e-9, 1 + 1e-6))
    np.testing.assert_array_equal(clf.predict(inside), clf.predict(X))
    assert (clf.predict(outside) != clf.predict(X)).all()


def test_the_bound_is_that_of_the_exported_network(fitted):
    assert fitted.lipschitz_bound_ == lipschitz_bound(fitted.to_torch())
    # A default network is orthogonal throughout: its bound is 1 up to the rounding of weights.
    assert 1 - 1e-9 <= fitted.lipschitz_bound_ <= 1 + 1e-9


def test_certified_score_counts_right_rows_with_a_larger_radius(digits, fitted):
    X, y = digits
    right = fitted.predict(X) == y
    radii = fitted.certificates_(X)
    for eps in (0.0, 0.1, 0.5):
        assert fitted.certified_score(X, y, eps=eps) == np.mean(right & (radii > eps))
    with pytest.raises(ValueError, match="eps must be"):
        fitted.certified_score(X, y, eps=-1)


def test_probabilities_are_the_softmax_of_tau_times_the_logits(digits, fitted):
    X, _ = digits
    scaled = np.exp(fitted.tau * fitted.decision_function(X))
    np.testing.assert_allclose(
        fitted.predict_proba(X), scaled / scaled.sum(1, keepdims=True), rtol=1e-12
    )


# -- architectures ---------------------------------------------------------------------------


def test_an_architecture_of_ones_own_is_built_certified_and_stored(digits):
    X, y = digits
    clf = quick(architecture=SmallNetwork()).fit(X, y)
    assert [type(layer).__name__ for layer in clf.to_torch()] == [
        "Flatten",
        "Linear",
        "GroupSort2",
        "Linear",
    ]
    loaded = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(loaded.certificates_(X), clf.certificates_(X))


def test_the_tutorials_network_is_an_architecture():
    X, y = load_digits(return_X_y=True)
    clf = quick(architecture=tutorial_cnn, input_shape=(1, 8, 8), max_epochs=1).fit(X[:99], y[:99])
    assert clf.certificates_(X).shape == (len(X),)


class ResidualNetwork:
    """A picklable architecture: convolutions and dense layers with ways around them."""

    def __call__(self, input_shape, n_outputs):
        return Sequential(
            OrthogonalConv2d(input_shape[0], 8, 3),
            Residual(OrthogonalConv2d(8, 8, 3), GroupSort2(), OrthogonalConv2d(8, 8, 3)),
            ScaledL2NormPool2d(2),
            nn.Flatten(),
            Residual(Sequential(SpectralLinear(128, 64), GroupSort2(), SpectralLinear(64, 128))),
            SpectralLinear(128, n_outputs),
        )


class TorchNetwork:
    """A picklable architecture of layers of torch."""

    def __call__(self, input_shape, n_outputs):
        return torch.nn.Sequential(
            torch.nn.Conv2d(input_shape[0], 8, 3, padding=1),
            torch.nn.MaxPool2d(2),
            Residual(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.Softplus()),
            torch.nn.AvgPool2d(2),
            torch.nn.Flatten(),
            Residual(torch.nn.Linear(32, 32), torch.nn.Sigmoid()),
            torch.nn.Linear(32, n_outputs),
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("architecture", "least_score"),
    # Eight epochs are few for the layers of torch: Sigmoid lets little through.
    [(ResidualNetwork(), 0.8), (TorchNetwork(), 0.15)],
    ids=["sklip", "torch"],
)
def test_residual_networks_are_trained_certified_exported_and_stored(
    digits, architecture, least_score, dtype
):
    X, y = digits
    clf = quick(architecture=architecture, input_shape=(1, 8, 8), dtype=dtype, batch_size=50).fit(X, y)
    assert clf.score(X, y) > least_score
    radii = clf.certificates_(X)
    assert (radii > 0).mean() > 0.8
    plain = clf.to_torch()
    assert not any(isinstance(part, OrthogonalLayer) for part in plain.modules())
    assert sum(type(part) is Residual for part in plain.modules()) == 2
    assert clf.lipschitz_bound_ == lipschitz_bound(plain)
    if isinstance(architecture, ResidualNetwork):
        # The sum over the layers of what polishing leaves in float32.
        assert clf.lipschitz_bound_ == pytest.approx(1, abs=1e-5)
    for stored in (copy.deepcopy(clf), pickle.loads(pickle.dumps(clf))):
        np.testing.assert_array_equal(stored.certificates_(X), radii)
        np.testing.assert_array_equal(stored.decision_function(X), clf.decision_function(X))
        assert repr(stored.to_torch()) == repr(plain)
    # Along the gradient of the margin, nearly as far as the radius allows.
    points = torch.tensor(X, dtype=torch.float64).view(-1, 1, 8, 8).requires_grad_()
    top = plain.double()(points).topk(2, dim=1).values
    (top[:, 0] - top[:, 1]).sum().backward()
    direction = points.grad.flatten(1).numpy()
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    moved = X - direction * radii[:, None] * (1 - 1e-9)
    np.testing.assert_array_equal(clf.predict(moved), clf.predict(X))


def hooked(network):
    network[5][0].register_forward_hook(lambda module, inputs, output: 10 * output)


def divided_by_less(network):
    network[3].divisor_override = 1


def steeper(network):
    network[2][1].beta = -1.0


@pytest.mark.parametrize("change", [hooked, divided_by_less, steeper])
def test_changes_inside_a_residual_network_are_refused(digits, change):
    X, y = digits
    clf = quick(architecture=TorchNetwork(), input_shape=(1, 8, 8), max_epochs=1).fit(X, y)
    change(clf.certified_network_.network)
    with pytest.raises((RuntimeError, TypeError), match=r"changed after its proof|Linear has hooks"):
        clf.certificates_(X)


def hooked_inside(input_shape, n_outputs):
    inside = torch.nn.Linear(64, 64)
    inside.register_forward_hook(lambda module, inputs, output: 10 * output)
    return torch.nn.Sequential(Residual(inside), torch.nn.Linear(64, n_outputs))


def of_another_shape(input_shape, n_outputs):
    return torch.nn.Sequential(Residual(torch.nn.Linear(64, 1)), torch.nn.Linear(64, n_outputs))


def unbounded(input_shape, n_outputs):
    return torch.nn.Sequential(torch.nn.Linear(input_shape[0], n_outputs), torch.nn.GELU())


def wrong_outputs(input_shape, n_outputs):
    return lipschitz_mlp(input_shape, n_outputs + 1)


def no_module(input_shape, n_outputs):
    return "network"


@pytest.mark.parametrize(
    ("architecture", "error", "message"),
    [
        (unbounded, TypeError, "GELU has no Lipschitz bound"),
        (hooked_inside, TypeError, "Linear has hooks"),
        (of_another_shape, ValueError, "Residual needs layers that keep the shape"),
        (wrong_outputs, ValueError, "architecture must return a network with 10 outputs"),
        (no_module, TypeError, "architecture must return a torch.nn.Module, got str"),
    ],
)
def test_a_network_that_cannot_be_certified_is_refused_before_training(
    digits, architecture, error, message
):
    clf = quick(architecture=architecture, max_epochs=10**6)
    with pytest.raises(error, match=message):
        clf.fit(*digits)


class Circular:
    """Strided orthogonal convolutions on a torus."""

    def __call__(self, input_shape, n_outputs):
        return Sequential(
            OrthogonalConv2d(1, 4, 3, stride=2, padding_mode="circular"),
            GroupSort2(),
            nn.Flatten(),
            SpectralLinear(64, n_outputs),
        )


def test_strided_circular_convolutions_train_and_certify():
    X, y = load_digits(return_X_y=True)
    clf = LipschitzClassifier(
        architecture=Circular(), input_shape=(1, 8, 8), max_epochs=30, random_state=0
    ).fit(X / 16, y)
    assert clf.lipschitz_bound_ < 1 + 1e-5
    assert clf.certified_score(X / 16, y, eps=0.1) > 0.3
    loaded = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(loaded.certificates_(X / 16), clf.certificates_(X / 16))


# -- what a fit leaves as it was -------------------------------------------------------------


def test_the_html_repr_and_clone_work_after_fit(fitted):
    assert "LipschitzClassifier" in fitted._repr_html_()
    with pytest.raises(NotFittedError):
        clone(fitted).predict(np.zeros((1, 64)))


class InPlace:
    """A first layer that overwrites its input."""

    def __call__(self, input_shape, n_outputs):
        return nn.Sequential(nn.ReLU(inplace=True), SpectralLinear(input_shape[0], n_outputs))


@pytest.mark.parametrize("n_samples", [50, 600])
def test_fit_and_predict_leave_x_as_it_is(n_samples):
    X = np.random.default_rng(0).normal(size=(n_samples, 4))
    before = X.copy()
    clf = LipschitzClassifier(architecture=InPlace(), max_epochs=2, dtype="float64", random_state=0)
    clf.fit(X, X[:, 0] > 0).predict(X)
    np.testing.assert_array_equal(X, before)


# -- data that is not to be copied ----------------------------------------------------------------


@pytest.fixture
def mapped(tmp_path):
    """Read-only images in a file, and the same in memory."""
    images = np.random.default_rng(0).integers(0, 256, (600, 1, 6, 6)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    return np.load(tmp_path / "images.npy", mmap_mode="r"), images


@pytest.mark.parametrize("parameters", [{}, {"early_stopping": True}], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_mapped_file_trains_as_the_array_it_holds(mapped, parameters, weighted):
    file, images = mapped
    y = images[:, 0, 0, 0] > 127
    weight = np.where(np.arange(600) % 5 == 0, 0.0, 1.5) if weighted else None
    fits = [
        LipschitzClassifier(
            conv_channels=(2,),
            hidden_layer_sizes=(4,),
            max_epochs=3,
            batch_size=64,
            random_state=0,
            **parameters,
        ).fit(X, y, sample_weight=weight)
        for X in (file, images, images.astype(np.float32), images.astype(np.float64))
    ]
    for other in fits[1:]:
        np.testing.assert_array_equal(fits[0].decision_function(file), other.decision_function(images))
        np.testing.assert_array_equal(fits[0].certificates_(file), other.certificates_(images))


def test_a_file_is_read_a_batch_at_a_time(mapped, monkeypatch):
    """No array of all rows in the network's precision is ever made."""
    file, _ = mapped
    sizes = []
    to = torch.Tensor.to

    def watched(self, *args, **kwargs):
        if self.dtype == torch.uint8:
            sizes.append(len(self))
        return to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", watched)
    monkeypatch.setattr("sklip.rows.VALUES_AT_ONCE", 36 * 100)
    clf = LipschitzClassifier(conv_channels=(2,), hidden_layer_sizes=(4,), max_epochs=2, batch_size=64)
    clf.fit(file, np.arange(600) % 2).certificates_(file)
    # Once as it is, to its device; the rest are batches of training and pieces of prediction.
    assert sorted(sizes)[-2] <= 100
    assert sum(sizes) >= 3 * 600


@pytest.mark.parametrize("n_draws", [0, 1, 2, 7])
def test_batches_drawn_ahead_come_in_order(n_draws):
    assert list(_one_ahead(lambda draw: draw, iter(range(n_draws)))) == list(range(n_draws))


def test_an_error_in_a_batch_drawn_ahead_is_raised():
    def fails(draw):
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        list(_one_ahead(fails, iter(range(3))))


@pytest.mark.parametrize("size", [1e-300, 1e-46, 1e38, 1e300])
def test_only_ratios_of_weights_count_in_either_precision(size):
    X, y = make_blobs(60, centers=3, random_state=0)
    weight = np.random.default_rng(0).uniform(0.5, 1.0, 60)
    for dtype in ("float32", "float64"):
        fits = [
            LipschitzClassifier(max_epochs=5, dtype=dtype, random_state=0).fit(X, y, sample_weight=w)
            for w in (weight, weight * size)
        ]
        np.testing.assert_allclose(
            fits[0].decision_function(X), fits[1].decision_function(X), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4", "bool", "uint16"])
def test_arrays_of_other_types_train_as_float32(dtype):
    X = (np.random.default_rng(0).random((60, 4)) * 5).astype(dtype)
    y = np.arange(60) % 3
    fits = [
        LipschitzClassifier(max_epochs=3, dtype="float32", random_state=0).fit(values, y)
        for values in (X, X.astype(np.float32))
    ]
    np.testing.assert_array_equal(fits[0].certificates_(X), fits[1].certificates_(X))


# -- losses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(
    ("parameters", "kinds"),
    [
        ({}, (losses.BinaryTauCrossEntropyLoss, losses.TauCrossEntropyLoss)),
        (
            {"loss": "logit_annealing", "eps": 0.1},
            (losses.BinaryTauCrossEntropyLoss, losses.TauCrossEntropyLoss),
        ),
        ({"loss": "hkr"}, (losses.BinaryHKRLoss, losses.MulticlassHKRLoss)),
        ({"loss": "lse_hkr"}, (losses.BinaryHKRLoss, losses.MulticlassLogSumExpHKRLoss)),
    ],
    ids=str,
)
def test_every_loss_by_name_trains_both_kinds_of_problem(digits, parameters, kinds, classes):
    X, y = digits
    clf = quick(max_epochs=20, **parameters).fit(X, y if classes == 10 else y < 5)
    assert type(clf.net_.criterion_) is kinds[classes > 2]
    assert clf.score(X, clf.classes_[y] if classes == 10 else y < 5) > 0.85


@pytest.mark.parametrize(
    "loss",
    [
        losses.CertifiedRadiusLoss(losses.TauCrossEntropyLoss(5.0), 0.2, 1.0),
        losses.MulticlassSoftHKRLoss(0.5, 20.0),
        losses.CategoricalHingeLoss(0.5),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_a_loss_may_be_a_module_which_stays_as_it_was(digits, loss):
    before = copy.deepcopy(loss.state_dict())
    clf = clone(quick(loss=loss, max_epochs=20)).fit(*digits)
    assert clf.score(*digits) > 0.85
    assert clf.net_.criterion_ is not clf.loss
    assert loss.state_dict() == before
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(again.predict(digits[0]), clf.predict(digits[0]))


def test_eps_moves_accuracy_into_radii(digits):
    X, y = digits
    means = [
        quick(tau=10.0, eps=eps, max_epochs=40).fit(X, y).certificates_(X).mean()
        for eps in (0.0, 0.5, 1.5)
    ]
    assert means == sorted(means)
    assert means[2] > 1.1 * means[0]


def test_eps_of_a_binary_problem_counts_as_for_two_classes(digits):
    # One logit f is as far from its boundary as |f|; of two logits it is the difference / sqrt 2.
    X, y = digits
    binary = quick(eps=0.5).fit(X, y < 5).net_.criterion_
    pair = quick(eps=0.5).fit(X, y).net_.criterion_
    assert pair.offset == pytest.approx(np.sqrt(2) * binary.offset)


@pytest.mark.parametrize("loss", ["hkr", "lse_hkr"])
def test_eps_is_refused_where_it_means_nothing(digits, loss):
    with pytest.raises(ValueError, match=f"eps=0.5 is for the cross-entropies.*loss='{loss}'"):
        quick(loss=loss, eps=0.5).fit(*digits)


@pytest.mark.parametrize("solver", ["muon", "adam"])
@pytest.mark.parametrize(("width", "batch_size"), [(2, 32), (2048, 32), (2048, 4096)])
def test_default_learning_rates_suit_every_width_and_batch_size(digits, solver, width, batch_size):
    X, y = digits
    epochs = 2 if batch_size == 32 else 30
    clf = LipschitzClassifier(
        solver=solver,
        learning_rate_schedule="constant",  # no warm-up: the harder case
        hidden_layer_sizes=(width,),
        batch_size=batch_size,
        max_epochs=epochs,
        dtype="float32",
        random_state=0,
    ).fit(X, y)
    losses_by_epoch = [row["train_loss"] for row in clf.history_]
    if (solver, width, batch_size) == ("muon", 2048, 4096):
        # The last of 30 steps at the constant peak rate may go up and down a little.
        assert losses_by_epoch[-1] <= 1.05 * min(losses_by_epoch)
    else:
        assert losses_by_epoch[-1] == min(losses_by_epoch)
    assert losses_by_epoch[-1] < losses_by_epoch[0]
