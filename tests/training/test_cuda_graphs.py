"""Recorded training steps: the same training, whoever records, and nothing that a graph can't hold."""

import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from sklip import LipschitzClassifier, losses
from sklip.networks import lipschitz_cnn, lipschitz_mlp, tutorial_cnn
from sklip.training import StiefelMuon
from sklip.training.cuda_graphs import CudaRecorder, GraphedStep
from sklip.training.net import LipschitzNet

HAS_CUDA = torch.cuda.is_available()
GPU = [pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")]


class Replayer:
    """Stands for CUDA graphs where there are none: a replay calls the function again.

    As there, recording moves no weights, inputs are read from where they lay, and outputs are
    overwritten. That all else stays where it was recorded has a test of its own.
    """

    def __init__(self, net):
        self.net = net
        self.replays = 0

    def warm_up(self, function):
        return function()

    def record(self, function):
        module, optimizer = self.net.module_, self.net.optimizer_
        weights, state = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
        outputs = tuple(output.clone() for output in function())
        module.load_state_dict(weights)
        optimizer.load_state_dict(state)

        def replay():
            self.replays += 1
            for place, output in zip(outputs, function(), strict=True):
                place.copy_(output)

        return replay, outputs


# Layers of all kinds that training moves in ways of their own.
SMALL = {"conv_channels": (4,), "hidden_layer_sizes": (8,)}


def images(n=1100):
    rng = np.random.default_rng(0)
    return rng.random((n, 1, 8, 8), dtype=np.float32), rng.integers(0, 3, n)


def trained(monkeypatch, recorded, **parameters):
    """Classifier, and the recorder if there was one; 1100 rows are 17 batches of 64 and one of 12."""
    recorders = []

    def make_recorder(net, n_steps):
        recorders.append(Replayer(net) if recorded else None)
        return recorders[-1]

    monkeypatch.setattr(LipschitzNet, "_make_recorder", make_recorder)
    X, y = images()
    parameters = {"max_epochs": 2, "batch_size": 64, "device": "cpu", "random_state": 0} | parameters
    weight = np.where(y == 0, 2.0, 0.5)
    return LipschitzClassifier(**parameters).fit(X, y, sample_weight=weight), recorders[-1]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"learning_rate_schedule": "constant", "loss": "hkr", **SMALL},
        {"architecture": "mlp", "early_stopping": True},
        {"batch_size": 1100, "max_epochs": 20, "solver": "muon", **SMALL},
    ],
    ids=str,
)
def test_recorded_training_is_the_same_training(monkeypatch, parameters):
    plain, _ = trained(monkeypatch, recorded=False, **parameters)
    replayed, recorder = trained(monkeypatch, recorded=True, **parameters)
    # A turn takes a replay of its own.
    assert recorder.replays >= 10
    for name, value in plain.net_.module_.state_dict().items():
        torch.testing.assert_close(replayed.net_.module_.state_dict()[name], value, rtol=0, atol=1e-5)
    for row, expected in zip(replayed.history_, plain.history_, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)


def nothing(replay, _):
    return lambda: None


def stale_outputs(replay, outputs):
    first = [output.clone() for output in outputs]

    def lie():
        replay()
        for place, value in zip(outputs, first, strict=True):
            place.copy_(value)

    return lie


def not_a_number(replay, outputs):
    def lie():
        replay()
        for place in outputs:
            place.fill_(float("nan"))

    return lie


def twice(replay, _):
    def lie():
        replay()
        replay()

    return lie


TURN, STEP = 0, 1  # in the order in which they are recorded


@pytest.fixture(scope="module")
def of_plain_steps():
    """Weights that steps leave which nobody records; dense layers wait for their turn, others don't."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("sklip.training.muon._is_large", dense)
        return trained(monkeypatch, recorded=False, **SMALL)[0].net_.module_.state_dict()


def dense(parameter, _):
    return parameter.ndim == 2


@pytest.mark.parametrize(
    ("which", "lie", "differs"),
    [
        *((which, lie, "weights") for which in (TURN, STEP) for lie in (nothing, twice)),
        (STEP, stale_outputs, "logits"),
        (STEP, not_a_number, "logits, loss"),
    ],
)
def test_a_recorder_that_lies_is_found_out_and_does_no_harm(
    monkeypatch, of_plain_steps, which, lie, differs
):
    monkeypatch.setattr("sklip.training.muon._is_large", dense)
    honest = Replayer.record
    calls = itertools.count()

    def record(self, function):
        replay, outputs = honest(self, function)
        return (lie(replay, outputs) if next(calls) == which else replay), outputs

    monkeypatch.setattr(Replayer, "record", record)
    with pytest.warns(UserWarning, match=f"without CUDA graphs.*differs from a plain one.*{differs}"):
        other, _ = trained(monkeypatch, recorded=True, **SMALL)
    for name, value in of_plain_steps.items():
        torch.testing.assert_close(other.net_.module_.state_dict()[name], value, rtol=0, atol=0)


class ReadsBack(nn.Module):
    """A loss that no graph can hold."""

    def forward(self, logits, target, sample_weight=None):
        loss = nn.functional.cross_entropy(logits, target)
        return loss if loss.item() < 1e9 else 2 * loss


def test_what_cannot_be_recorded_is_computed_step_by_step_with_a_warning(monkeypatch, of_plain_steps):
    monkeypatch.setattr("sklip.training.muon._is_large", dense)

    def refuse(self, function):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Replayer, "record", refuse)
    with pytest.warns(UserWarning, match="without CUDA graphs.*not permitted when stream"):
        other, _ = trained(monkeypatch, recorded=True, **SMALL)
    for name, value in of_plain_steps.items():
        torch.testing.assert_close(other.net_.module_.state_dict()[name], value, rtol=0, atol=0)


def test_steps_are_recorded_on_cuda_alone_and_not_under_the_eyes_of_callbacks(monkeypatch):
    made = []
    monkeypatch.setattr("sklip.training.net.CudaRecorder", lambda device: made.append(device) or device)

    def recorder(device="cuda:1", **parameters):
        net = LipschitzNet(nn.Linear(2, 2), nn.Identity(), callbacks=parameters.pop("callbacks", []))
        net.set_params(verbose=0).initialize()
        net.device = device
        net.solver = parameters.get("solver", "muon")
        net.criterion_ = parameters.get("loss", LOSSES[0])
        return net._make_recorder(parameters.get("n_steps", 100))

    assert recorder() == "cuda:1"
    assert recorder(device="cpu") is None
    assert recorder(solver="adam") is None
    assert recorder(callbacks=[("mine", Callback())]) is None
    assert recorder(loss=ReadsBack()) is None
    assert recorder(loss=losses.CertifiedRadiusLoss(ReadsBack(), weight=0.1, radius=1.0)) is None
    assert recorder(n_steps=20) is None
    monkeypatch.setenv("SKLIP_CUDA_GRAPHS", "0")
    assert recorder() is None


LOSSES = [
    losses.TauCrossEntropyLoss(3.0, 0.5, 5.0),
    losses.MulticlassHKRLoss(0.2, 50.0),
    losses.MulticlassLogSumExpHKRLoss(0.2, 50.0),
    losses.MulticlassSoftHKRLoss(0.2, 50.0),
    losses.CertifiedRadiusLoss(losses.TauCrossEntropyLoss(3.0), weight=0.1, radius=1.0),
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("build", "loss"),
    [
        *itertools.product([lipschitz_mlp], LOSSES),
        (lipschitz_cnn, LOSSES[0]),
        (tutorial_cnn, LOSSES[0]),
    ],
)
def test_a_step_asks_the_device_for_no_value(monkeypatch, build, loss, weighted):
    # The meta device computes shapes alone, so whatever needs a value fails there.
    module, criterion = build((1, 8, 8), 3).to("meta"), copy.deepcopy(loss).to("meta")
    optimizer = StiefelMuon(module)
    for group in optimizer.param_groups:
        group["lr"] = torch.full((), 0.03, device="meta")
    X, y = torch.empty(16, 1, 8, 8, device="meta"), torch.empty(16, dtype=torch.long, device="meta")
    weight = torch.empty(16, device="meta") if weighted else None

    def gradients(X, y, weight):
        optimizer.zero_grad()
        logits = module(X)
        value = criterion(logits, y, weight)
        value.backward()
        return value.detach(), logits.detach()

    class Runner:
        def warm_up(self, function):
            return function()

        def record(self, function):
            return function, function()

    step = GraphedStep(gradients, optimizer, Runner())
    # The comparison of the first replay reads values, once.
    monkeypatch.setattr("sklip.training.cuda_graphs._close", lambda *_: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(13):  # the last ones replayed, and one of these with a turn
            step(X, y, weight)
    with pytest.raises(RuntimeError, match="meta"):
        ReadsBack()(module(X), y)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_training_by_cuda_graphs_is_the_training_of_the_cpu(device, weighted):
    X, y = images()
    # Of classes that can be told apart: where none can, rounding decides most labels.
    X[np.arange(len(y)), 0, 2 * y] += 0.5
    weight = np.where(y == 0, 2.0, 0.5) if weighted else None
    models = [
        LipschitzClassifier(max_epochs=2, batch_size=64, device=place, random_state=0)
        for place in ("cpu", device)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cpu, cuda = (model.fit(X, y, sample_weight=weight) for model in models)
    for row, expected in zip(cuda.history_, cpu.history_, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-2)
    assert np.mean(cuda.predict(X) == cpu.predict(X)) > 0.95
    assert cpu.score(X, y) > 0.9


def test_only_what_turns_is_recorded(monkeypatch):
    recorded = []
    honest = Replayer.record
    monkeypatch.setattr(
        Replayer, "record", lambda self, function: recorded.append(function) or honest(self, function)
    )
    trained(monkeypatch, recorded=True, **SMALL)
    assert [function.__name__ for function in recorded] == ["step"]
    monkeypatch.setattr("sklip.training.muon._is_large", dense)
    trained(monkeypatch, recorded=True, **SMALL)
    assert [function.__name__ for function in recorded] == ["step", "turn", "step"]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_steps_keep_their_state_where_a_recording_would_write_it(loss, seeded_torch):
    module, loss = lipschitz_cnn((1, 8, 8), 3), copy.deepcopy(loss).train()
    optimizer = StiefelMuon(module)
    seen = []
    for _ in range(9):
        optimizer.zero_grad()
        loss(module(torch.rand(16, 1, 8, 8)), torch.randint(0, 3, (16,))).backward()
        optimizer.step()
        state = [value for part in optimizer.state.values() for value in part.values()]
        kept = [*module.parameters(), *module.buffers(), *loss.buffers(), *state]
        seen.append([value.data_ptr() for value in kept])
    assert seen[0] == seen[-1]


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")
def test_a_recording_that_fails_leaves_the_device_usable():
    place = torch.ones(3, device="cuda")
    stream = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        CudaRecorder("cuda").record(lambda: (place * place.sum().item(),))
    assert torch.cuda.current_stream() == stream
    assert (place + 1).tolist() == [2.0] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")
def test_a_recorded_function_reads_and_writes_in_place():
    place = torch.ones(3, device="cuda")
    recorder = CudaRecorder("cuda")
    recorder.warm_up(lambda: (place * 2,))
    replay, (output,) = recorder.record(lambda: (place * 2,))
    place.fill_(5.0)
    replay()
    assert output.tolist() == [10.0] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")
def test_what_a_recorded_function_reads_lives_as_long_as_its_replay():
    """Freed memory would be read, and written by others, with no error but later ones."""
    recorder = CudaRecorder("cuda")

    def recorded():
        place = torch.full((1 << 20,), 3.0, device="cuda")
        return recorder.record(lambda: (place * 2,))

    replay, (output,) = recorded()
    others = [torch.full((1 << 20,), 7.0, device="cuda") for _ in range(8)]
    replay()
    assert output.unique().tolist() == [6.0]
    assert len(others) == 8


def test_training_that_lacks_memory_says_what_to_set_and_keeps_the_model(monkeypatch, few_digits):
    X, y = few_digits
    clf = LipschitzClassifier(hidden_layer_sizes=(8,), max_epochs=2, warm_start=True, device="cpu")
    expected = clf.fit(X, y).decision_function(X)

    def no_memory(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(LipschitzNet, "_gradients", no_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"Lower batch_size.*CUDA out"):
        clf.fit(X, y)
    np.testing.assert_array_equal(clf.decision_function(X), expected)
