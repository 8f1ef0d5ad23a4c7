"""Fixtures that the rooms share."""

import os

# Before anything imports matplotlib: tests have no screen.
os.environ.setdefault("MPLBACKEND", "Agg")
# Before anything imports numpy, and for the processes that tests start: threads of as many processes as
# there are cores would wait for one another, and spin while they do.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import sklearn
import torch
from hypothesis import HealthCheck, settings
from sklearn.datasets import load_digits
from sklearn.utils._param_validation import InvalidParameterError

torch.set_num_threads(1)
# Of tests/test_fuzz.py; by `pytest tests/test_fuzz.py --hypothesis-profile=long`.
settings.register_profile(
    "long", max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck)
)


if sklearn.__version__.startswith("1.7."):

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(pyfuncitem):
        try:
            return (yield)
        except InvalidParameterError as error:
            if "Got 'temperature' instead" not in str(error):
                raise
        pytest.skip("scikit-learn calibrates by a temperature from 1.8 on")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Let tests compute on the processor, whatever the machine has, unless they are marked gpu."""
    if item.get_closest_marker("gpu"):
        return (yield)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: False)
        patched.setenv("CUDA_VISIBLE_DEVICES", "")  # for the processes that they start
        return (yield)


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


@pytest.fixture
def two_threads():
    """torch computes on two threads, as it does for users; else it has one in each process of tests."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
