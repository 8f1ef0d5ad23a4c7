"""Fixtures that the rooms share."""

import os

# Before anything imports matplotlib: tests have no screen.
os.environ.setdefault("MPLBACKEND", "Agg")
# Before anything imports numpy, and for the processes that tests start: as many threads as there are
# cores, in each of as many processes, wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from sklearn.datasets import load_digits

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    """All 1,797 digits with pixels from 0 to 1, and their labels."""
    X, y = load_digits(return_X_y=True)
    X /= 16
    X.flags.writeable = False
    return X, y


@pytest.fixture(scope="session")
def few_digits():
    """The first 200 digits with pixels from 0 to 16, and their labels."""
    X, y = load_digits(return_X_y=True)
    X.flags.writeable = False
    return X[:200], y[:200]


@pytest.fixture(autouse=True)
def seeded_torch():
    """torch's default generator starts from 0 in each test, whatever ran before it in this process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
