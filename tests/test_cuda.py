"""On a CUDA device: fits that go on, memory that is short, and what is left behind."""

import gc
import os
import pickle
import warnings

import numpy as np
import pytest
import torch

from sklip import LipschitzClassifier, LipschitzClassifierCV
from sklip.certified.seals import opened, sealed
from sklip.training import RandomShift, checkpoints
from sklip.training.net import LipschitzNet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def images():
    """1,280 images of three classes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 1280)
    X = rng.random((1280, 1, 12, 12), dtype=np.float32) / 2
    X[np.arange(1280), 0, 3 * y] += 0.5
    return X, y


def classifier(**parameters):
    """Ten steps an epoch, six epochs: recorded, as they are more than 50."""
    parameters = {"conv_channels": (4, 4), "hidden_layer_sizes": (8,), **parameters}
    return LipschitzClassifier(
        batch_size=128, max_epochs=6, device="cuda", random_state=0, **parameters
    )


def interrupted_in_epoch(number, clf, X, y, monkeypatch):
    whole = LipschitzNet.run_single_epoch

    def epoch(net, iterator, training, *args, **kwargs):
        if training and len(net.history) == number:
            raise KeyboardInterrupt
        whole(net, iterator, training, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(LipschitzNet, "run_single_epoch", epoch)
        with pytest.raises(KeyboardInterrupt):
            clf.fit(X, y)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"augmentation": (RandomShift(1),)},
        {"architecture": "mlp", "dtype": "float64"},
        {"solver": "adam"},
        {"early_stopping": True},
    ],
    ids=["images", "moved", "float64", "adam", "early stopping"],
)
def test_an_interrupted_fit_goes_on(images, parameters, tmp_path, monkeypatch):
    """As near to one left alone as a second one would be: cuDNN adds in any order."""
    X, y = images
    monkeypatch.setattr(checkpoints, "_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "_SHARE", np.inf)
    alone = classifier(**parameters).fit(X, y)
    clf = classifier(checkpoint_dir=tmp_path, **parameters)
    interrupted_in_epoch(4, clf, X, y, monkeypatch)
    again = classifier(checkpoint_dir=tmp_path, **parameters).fit(X, y)
    assert [row["epoch"] for row in again.history_] == [row["epoch"] for row in alone.history_]
    for row, expected in zip(again.history_, alone.history_, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=0.02)
    largest = np.abs(again.decision_function(X) - alone.decision_function(X)).max()
    # Without momentum, or from the first rate of the schedule, it is several times that.
    assert largest < 0.02 * np.abs(alone.decision_function(X)).max()
    assert os.listdir(tmp_path)


def test_rows_are_halved_until_the_memory_holds_them(images):
    """Nothing but real allocations: most of the device is taken away from this process."""
    X, y = images
    clf = classifier().fit(X, y)
    expected = clf.predict_with_radii(X)
    tall = LipschitzClassifier(
        conv_channels=(32, 32), hidden_layer_sizes=(8,), max_epochs=1, batch_size=64, device="cuda"
    )
    rng = np.random.default_rng(0)
    large = rng.random((1024, 3, 64, 64), dtype=np.float32)
    tall.fit(large[:256], y[:256])
    labels, radii = tall.predict_with_radii(large)
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 120e6) / total)
    try:
        with pytest.warns(UserWarning, match="rows at once where 1024 would be evaluated"):
            found = tall.predict_with_radii(large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.mean(found[0] == labels) > 0.999
    np.testing.assert_allclose(found[1], radii, atol=1e-4)
    again = clf.predict_with_radii(X)
    assert (again[0] == expected[0]).all()


def test_training_without_memory_says_what_to_set(images):
    X, y = images
    large = np.random.default_rng(0).random((1024, 3, 64, 64), dtype=np.float32)
    clf = LipschitzClassifier(max_epochs=1, batch_size=1024, device="cuda")
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 200e6) / total)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError, match="Lower batch_size"):
            clf.fit(large, y[:1024])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (classifier().fit(X, y).certificates_(X) > 0).any()


def test_fits_leave_no_memory(images):
    X, y = images

    def everything():
        clf = classifier().fit(X, y)
        clf.certificates_(X)
        pickle.loads(pickle.dumps(clf)).partial_fit(X, y)
        LipschitzClassifierCV(classifier(), taus=(1.0, 5.0), cv=2).fit(X[:256], y[:256])

    taken = []
    for _ in range(6):
        everything()
        gc.collect()
        taken.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    # The first calls make what libraries keep for good.
    assert taken[-1][0] <= taken[2][0]
    assert taken[-1][1] <= taken[2][1]


def test_data_that_does_not_fit_trains_from_the_host(images, monkeypatch):
    X, y = images
    expected = classifier().fit(X, y)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1000, 10**9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = classifier().fit(X, y)
    assert np.mean(found.predict(X) == expected.predict(X)) > 0.98


def test_labels_and_radii_are_those_of_the_processor(images):
    X, y = images
    clf = classifier().fit(X, y)
    labels, radii = clf.predict_with_radii(X)
    elsewhere = LipschitzClassifier()
    elsewhere.__setstate__(sealed({**opened(clf.__getstate__(), "state"), "device_": "cuda:99"}))
    assert elsewhere.device_ == "cpu"
    found = elsewhere.predict_with_radii(X)
    assert (found[0] == labels).all()
    np.testing.assert_allclose(found[1], radii, rtol=1e-5, atol=1e-7)
