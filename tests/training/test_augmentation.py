"""Random changes of images: each result is one of the possible ones, drawn row by row."""

import pickle

import numpy as np
import pytest
import torch

from sklip import LipschitzClassifier
from sklip.training import RandomFlip, RandomShift


def draw(change, images, seed=0):
    return change(images, torch.Generator().manual_seed(seed))


def images(n=200):
    return torch.arange(1.0, 1 + n * 2 * 5 * 4).reshape(n, 2, 5, 4)


def all_shifts(image, pixels):
    """Each shifted image, by plain slices."""
    height, width = image.shape[1:]
    for down in range(-pixels, pixels + 1):
        for right in range(-pixels, pixels + 1):
            result = np.zeros_like(image)
            for row in range(height):
                for column in range(width):
                    if 0 <= row - down < height and 0 <= column - right < width:
                        result[:, row, column] = image[:, row - down, column - right]
            yield (down, right), result


def test_shifts_are_shifts_and_all_of_them_occur():
    X = images()
    moved = draw(RandomShift(1), X)
    shifted = moved.numpy()
    # Channels that come last would slow the layers behind down.
    assert moved.is_contiguous()
    seen = set()
    for image, result in zip(X.numpy(), shifted, strict=True):
        found = [step for step, other in all_shifts(image, 1) if np.array_equal(other, result)]
        assert found
        seen |= set(found)
    assert len(seen) == 9


def test_a_flip_mirrors_about_half_of_the_images():
    X = images()
    flipped = draw(RandomFlip(), X).numpy()
    same = [np.array_equal(a, b) for a, b in zip(X.numpy(), flipped, strict=True)]
    mirrored = [np.array_equal(a[:, :, ::-1], b) for a, b in zip(X.numpy(), flipped, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 60 < sum(mirrored) < 140


@pytest.mark.parametrize("change", [RandomShift(2), RandomFlip()], ids=str)
def test_changes_leave_their_input_and_repeat_with_the_seed(change):
    X = images()
    before = X.clone()
    first, second = draw(change, X), draw(change, X)
    assert torch.equal(first, second)
    assert torch.equal(X, before)
    assert not torch.equal(first, draw(change, X, seed=1))
    assert pickle.loads(pickle.dumps(change)) == change


@pytest.mark.parametrize("pixels", [0, -1, 1.5])
def test_shift_is_checked(pixels):
    with pytest.raises(ValueError, match="pixels must be an integer of at least 1"):
        RandomShift(pixels)


# -- in the estimator --------------------------------------------------------------------------


def fit(augmentation, X=None):
    rng = np.random.default_rng(0)
    X = rng.random((40, 1, 8, 8)) if X is None else X
    clf = LipschitzClassifier(
        augmentation=augmentation, max_epochs=2, random_state=0, hidden_layer_sizes=(8,)
    )
    return clf.fit(X, np.arange(len(X)) % 2)


@pytest.mark.parametrize("augmentation", [RandomShift(1), [RandomShift(1), RandomFlip()]], ids=str)
def test_estimator_augments_and_two_fits_agree(augmentation):
    rows = np.random.default_rng(1).random((5, 1, 8, 8))
    first, second = fit(augmentation), fit(augmentation)
    np.testing.assert_array_equal(first.decision_function(rows), second.decision_function(rows))
    assert not np.array_equal(first.decision_function(rows), fit(None).decision_function(rows))


def test_estimator_refuses_augmentation_of_tables_and_what_is_no_callable():
    with pytest.raises(ValueError, match="augmentation is for images"):
        fit(RandomShift(1), np.random.default_rng(0).random((40, 8)))
    with pytest.raises(TypeError, match=r"augmentation must be a callable.*got str"):
        fit(["shift"])
