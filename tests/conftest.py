"""Fixtures that the rooms share."""

import os

# Before anything imports matplotlib: tests have no screen.
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import HealthCheck, settings
from sklearn.datasets import load_digits

# Of tests/test_fuzz.py; by `pytest tests/test_fuzz.py --hypothesis-profile=long`.
settings.register_profile(
    "long", max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck)
)


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


@pytest.fixture
def seeded_torch():
    """torch's default generator starts from 0, and is put back."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
