"""What "auto" stands for, by the size of the data."""

import pytest

from sklip.estimators.pace import Pace


def pace(n_samples, **changes):
    settings = {
        "solver": "muon",
        "batch_size": "auto",
        "max_epochs": "auto",
        "learning_rate": "auto",
        "is_table": True,
    }
    return Pace.resolve(n_samples, **{**settings, **changes})


@pytest.mark.parametrize(
    ("arguments", "changes", "expected"),
    [
        ((150,), {}, (150, 48, 0.1)),
        ((1024,), {}, (1024, 48, 0.1)),
        ((1025,), {}, (256, 48, 0.05)),
        ((60_000,), {}, (256, 10, 0.05)),
        ((150,), {"is_table": False}, (256, 150, 0.06)),
        ((600,), {"is_table": False}, (256, 134, 0.03)),
        ((150,), {"solver": "adam"}, (150, 1000, 2e-3)),
        ((150,), {"solver": "adam", "is_table": False}, (256, 1000, 2e-3)),
        ((150,), {"batch_size": 64}, (64, 80, 0.05)),
        ((150,), {"max_epochs": 7, "learning_rate": 0.5}, (150, 7, 0.5)),
        ((None,), {}, (256, 240, 0.05)),  # a part of the data, for partial_fit
    ],
    ids=str,
)
def test_batches_epochs_and_rate(arguments, changes, expected):
    got = pace(*arguments, **changes)
    assert (got.batch_size, got.max_epochs, got.learning_rate) == expected


def test_a_comparison_takes_a_third_of_the_steps_at_twice_the_rate():
    whole, short = pace(150), pace(150).hurried()
    assert (short.max_epochs, short.learning_rate) == (16, pytest.approx(2 * whole.learning_rate))
    assert pace(150, max_epochs=1).hurried().max_epochs == 1
