"""Classifiers that differ in their loss alone, fitted to the same table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import ArrayLike

from sklip.estimators.base import prove_trained
from sklip.estimators.classifier import LipschitzClassifier
from sklip.estimators.fit_tasks import is_followed
from sklip.estimators.pace import Pace
from sklip.estimators.unwatched import Course, column_choices, trained_unwatched
from sklip.networks import SMALL_TABLE_ROWS, NetworkPlan
from sklip.training.data import TrainingData
from sklip.training.devices import resolve_device
from sklip.training.parallel import Together, current_processes
from sklip.training.seeding import seeded

__all__ = ["fitted_side_by_side", "is_faster_side_by_side"]

# Networks in one training: with eight, half of the time of a step goes into products of matrices.
_MOST_NETWORKS = 8
# And values in all their matrices: larger ones gain nothing, and take memory. Seconds of eight, of
# those of eight separate fits: 0.6 to 0.7 with 19,000 to 42,000 values each, 0.92 with 120,000.
_MOST_VALUES = 2**19


def is_faster_side_by_side(classifier: LipschitzClassifier, data: TrainingData, n_rows: int) -> bool:
    """Whether training many like this one side by side, on so many rows, saves much of the time.

    Parameters
    ----------
    classifier : LipschitzClassifier
        With valid parameters.
    data : TrainingData
        Of which the rows are.
    n_rows : int
    """
    plan = classifier._plan(data, n_rows, classifier.hidden_layer_sizes)
    return _group_size(plan, classifier._pace(n_rows, data.input_shape), n_rows) == _MOST_NETWORKS


def fitted_side_by_side(
    classifiers: Sequence[LipschitzClassifier],
    X: Any,
    y: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> Iterator[LipschitzClassifier]:
    """Fit classifiers that differ in `tau` and `eps` alone, and yield them in order.

    Dense networks for a table are trained side by side, where nobody follows a single one: see Note
    [Side by side] of :mod:`sklip.training.side_by_side`. They are what ``fit`` makes of them up to
    rounding, and have the history of all together. All others are fitted one after another.

    Parameters
    ----------
    classifiers : sequence of LipschitzClassifier
        Of one seed, an int, and valid parameters.
    X, y, sample_weight : array-like
        As for :meth:`sklip.LipschitzClassifier.fit`.
    """
    first = classifiers[0]
    data = first._read(X, y, sample_weight, None, goes_on=False)
    n_rows = len(data.samples("cpu"))
    course = _course_of(first, data, n_rows)
    n_together = 1 if _is_fitted_alone(first) else _group_size(course.plan, course.pace, n_rows)
    for start in range(0, len(classifiers), n_together):
        group = classifiers[start : start + n_together]
        if len(group) > 1:
            for each in group:
                # Each keeps the names of its columns.
                each._read(X, y, sample_weight, None, goes_on=False)
            _fit(group, course)
        else:
            group[0].fit(X, y, sample_weight)
        yield from group


def _course_of(first: LipschitzClassifier, data: TrainingData, n_rows: int) -> Course:
    """Return what a classifier is trained by, but for weights of columns."""
    return Course(
        first._plan(data, n_rows, first.hidden_layer_sizes),
        data,
        resolve_device(first.device),
        first._pace(n_rows, data.input_shape),
        first._draw_seed(),
    )


def _is_fitted_alone(first: LipschitzClassifier) -> bool:
    """Whether classifiers like the first one need a training each."""
    followed = first._callbacks() or first.verbose or first.checkpoint_dir or is_followed(first)
    # A subclass may have a fit of its own.
    is_subclass = type(first) is not LipschitzClassifier
    return bool(followed or is_subclass or isinstance(current_processes(), Together))


def _group_size(plan: NetworkPlan, pace: Pace, n_rows: int) -> int:
    """Return how many networks of one plan are to be trained side by side where nobody follows one."""
    if not plan.is_dense_for_table or min(pace.batch_size, n_rows) > SMALL_TABLE_ROWS:
        return 1
    widths = [*plan.input_shape, *plan.hidden_layer_sizes, plan.n_outputs]
    n_values = sum(before * after for before, after in itertools.pairwise(widths))
    return max(1, min(_MOST_NETWORKS, _MOST_VALUES // n_values))


# Whatever the caller's code around it has switched off, as in fit.
@torch.inference_mode(False)
@torch.enable_grad()
def _fit(group: Sequence[LipschitzClassifier], course: Course) -> None:
    """Fit classifiers in one training."""
    plan, data, device = course.plan, course.data, course.device
    pace, seed = course.pace, course.seed
    samples = data.samples(device)
    choices = [False] * len(group)
    if group[0]._may_weigh_columns(plan, pace, len(samples)):
        choices = column_choices(group, course, samples)
    for choice in sorted(set(choices)):
        chosen = replace(plan, column_weights=choice)
        members = [each for each, own in zip(group, choices, strict=True) if own == choice]
        trained, history = trained_unwatched(members, replace(course, plan=chosen), samples)
        for each, network in zip(members, trained, strict=True):
            net = each._make_net(
                network, data.classes, data.moments, device, pace, seed, seeded(seed), watched=False
            )
            certified = prove_trained(network, data)
            each._take_up(net, certified, data, chosen, history, device, goes_on=False)
