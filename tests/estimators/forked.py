"""Forked processes that inherit a fitted estimator, predict by it, and fit. Not a test by itself.

It is a program, since a process that holds threads, as a test's may, can't be forked safely:
``python forked.py``. torch computes on two threads in the first process, and on one in each that is
forked from it; on two it would wait there for a thread that fork does not copy.
"""

import multiprocessing

import numpy as np
import torch

from sklip import LipschitzClassifier, certificates

X = np.random.default_rng(0).normal(size=(300, 20))
Y = np.arange(300) % 3
PARAMETERS = {"hidden_layer_sizes": (16,), "max_epochs": 3, "random_state": 0}


def answers(clf):
    return [clf.predict(X), clf.predict_proba(X), clf.certificates_(X), certificates(clf, X)]


torch.set_num_threads(2)
CLF = LipschitzClassifier(**PARAMETERS).fit(X, Y)
EXPECTED = answers(CLF)


def differ(found):
    return [not np.array_equal(*pair) for pair in zip(found, EXPECTED, strict=True)]


def inherited():
    return differ(answers(CLF))


def fitted_anew():
    return differ(answers(LipschitzClassifier(**PARAMETERS).fit(X, Y)))


def gone_on():
    CLF.partial_fit(X, Y)
    return not any(differ(answers(CLF)))


if __name__ == "__main__":
    forking = multiprocessing.get_context("fork")
    with forking.Pool(2, torch.set_num_threads, (1,)) as children:
        for task in (inherited, inherited, fitted_anew, gone_on):
            assert not np.any(children.apply_async(task).get(timeout=60)), task
    # What a child has trained on is its own.
    torch.set_num_threads(1)
    assert not any(inherited())
