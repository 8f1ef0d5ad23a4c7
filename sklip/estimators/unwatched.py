"""Networks for a table that are trained without anybody following, for one estimator or for several.

The estimators differ in their loss alone. All networks have one plan and one seed, so they start from
the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from sklip.estimators.column_choice import weights_pay
from sklip.estimators.pace import Pace
from sklip.estimators.planning import PlanningEstimator
from sklip.networks import NetworkPlan
from sklip.training.checkpoints import Checkpoint
from sklip.training.data import Samples, TrainingData
from sklip.training.parallel import current_processes
from sklip.training.seeding import seeded
from sklip.training.side_by_side import SideBySide, SumOfLosses

__all__ = ["Course", "chosen_plan", "column_choices", "trained_unwatched"]


@dataclass(frozen=True)
class Course:
    """What the networks of one training have in common."""

    plan: NetworkPlan
    data: TrainingData
    device: str
    pace: Pace
    seed: int


def trained_unwatched(
    estimators: Sequence[PlanningEstimator], course: Course, samples: Samples, n_unweighted: int = 0
) -> tuple[list[nn.Module], list[dict[str, Any]]]:
    """Return the network trained for each estimator, and the history, which is of all together.

    The first `n_unweighted` keep the weights of columns that they start with, which are 1.
    """
    first, data, draws = estimators[0], course.data, seeded(course.seed)
    module = first._build(course.plan, data, draws)
    criteria = [each._criterion(data.classes) for each in estimators]
    together = SideBySide([cast(nn.Sequential, module)] * len(criteria)) if len(criteria) > 1 else None
    net = first._make_net(
        module if together is None else together,
        data.classes,
        data.moments,
        course.device,
        course.pace,
        course.seed,
        draws,
        criterion=criteria[0] if together is None else SumOfLosses(criteria),
        watched=False,
    )
    if n_unweighted:
        assert net.column_scales is not None, "as the data is a table"
        # Columns without a scale keep their weights.
        has_weights = torch.arange(len(criteria), device=course.device) >= n_unweighted
        net.column_scales = net.column_scales * has_weights.unsqueeze(-1)
    net.train(samples, None, course.pace.max_epochs)
    return [module] if together is None else [*together.apart()], net.epoch_rows()


def column_choices(
    estimators: Sequence[PlanningEstimator], course: Course, samples: Samples
) -> list[bool]:
    """Return for each estimator whether weights of columns pay: see sklip.estimators.column_choice."""
    hurried = replace(
        course, plan=replace(course.plan, column_weights=True), pace=course.pace.hurried()
    )

    def train(some: Samples) -> list[tuple[nn.Module, nn.Module]]:
        networks, _ = trained_unwatched([*estimators, *estimators], hurried, some, len(estimators))
        return list(zip(networks[: len(estimators)], networks[len(estimators) :], strict=True))

    taus = [float(each.tau) for each in estimators]
    return weights_pay(train, samples, taus, course.data.moments.weight, course.seed)


def chosen_plan(
    estimator: PlanningEstimator, course: Course, samples: Samples, checkpoint: Checkpoint
) -> NetworkPlan:
    """Return an estimator's plan with or without weights of columns, as held-out rows decide."""
    if "column_weights" in checkpoint.kept:
        return replace(course.plan, column_weights=checkpoint.kept["column_weights"])
    (pays,) = column_choices([estimator], course, samples)
    pays = current_processes().from_first(pays)
    checkpoint.keep("column_weights", lambda: pays)
    return replace(course.plan, column_weights=pays)
