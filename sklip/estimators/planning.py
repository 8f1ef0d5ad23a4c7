r"""What parameters and data say of a network, and the net that trains it."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from torch import nn

from sklip import networks
from sklip.certified import CertifiedNetwork
from sklip.certified.integrity import refuse_altered
from sklip.estimators import nested
from sklip.estimators.column_choice import FEWEST_COLUMNS, FEWEST_ROWS
from sklip.estimators.pace import Pace
from sklip.estimators.parameters import resolve_augmentation
from sklip.inputs import check_input_shape
from sklip.layers import Center, to_torch
from sklip.training.callbacks import StopEarly, check_callbacks
from sklip.training.data import Moments, TrainingData
from sklip.training.mixed_precision import mixed_precision_pays
from sklip.training.net import LipschitzNet
from sklip.training.seeding import seeded

__all__ = ["PlanningEstimator"]

# Parameters that a net is made with: it trains on only as long as they are the same.
_OF_THE_NET = (
    *("loss", "tau", "eps", "min_margin", "alpha", "batch_size", "solver", "learning_rate"),
    *("learning_rate_schedule", "augmentation", "early_stopping", "n_iter_no_change"),
    *("callbacks", "verbose"),
)


class PlanningEstimator(BaseEstimator):  # type: ignore[misc]
    """The part of :class:`sklip.estimators.base.LipschitzEstimator` that makes networks and nets."""

    callbacks: Any
    _plan_: networks.NetworkPlan

    @abstractmethod
    def _n_outputs(self, classes: NDArray[Any] | None) -> int:
        """Return the number of outputs of the network."""

    @abstractmethod
    def _criterion(self, classes: NDArray[Any] | None) -> nn.Module:
        """Return the loss, which takes (outputs, targets, sample_weight or None)."""

    @abstractmethod
    def _nonlinearity(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return what makes predictions of outputs, for callbacks that score them in training."""

    def _draw_seed(self) -> int:
        """Return the seed of one fit."""
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _pace(self, n_samples: int | None, input_shape: tuple[int, ...]) -> Pace:
        return Pace.resolve(
            n_samples,
            solver=self.solver,
            batch_size=self.batch_size,
            max_epochs=self.max_epochs,
            learning_rate=self.learning_rate,
            is_table=len(input_shape) == 1,
        )

    def _may_weigh_columns(self, plan: networks.NetworkPlan, pace: Pace, n_samples: int) -> bool:
        """Whether it is asked if columns are to have weights: of small tables, by a cross-entropy."""
        return (
            plan.is_dense_for_table
            and FEWEST_ROWS <= n_samples <= min(pace.batch_size, networks.SMALL_TABLE_ROWS)
            and len(plan.hidden_layer_sizes) > 0
            and plan.input_shape[0] >= FEWEST_COLUMNS
            and self.loss in ("tau_cross_entropy", "logit_annealing")
        )

    def _plan(
        self, data: TrainingData, n_samples: int | None, hidden_layer_sizes: Any
    ) -> networks.NetworkPlan:
        return networks.NetworkPlan.resolve(
            self.architecture,
            check_input_shape(self.input_shape) or data.input_shape,
            self._n_outputs(data.classes),
            data.dtype,
            n_samples=n_samples,
            conv_channels=self.conv_channels,
            hidden_layer_sizes=hidden_layer_sizes,
        )

    def _plan_going_on(self, data: TrainingData) -> networks.NetworkPlan:
        """Return the plan of the fit before, unless a parameter now says otherwise."""
        before, sizes = self._plan_, self.hidden_layer_sizes
        # "auto" is by the number of rows, which may be another now.
        kept = before.hidden_layer_sizes if isinstance(sizes, str) else sizes
        plan = replace(self._plan(data, None, kept), column_weights=before.column_weights)
        changed = plan.differences(before)
        if changed:
            raise ValueError(
                f"{', '.join(changed)} can't change while training goes on with the same network; set "
                "the values of the first fit, or fit anew with warm_start=False."
            )
        return plan

    def _build(self, plan: networks.NetworkPlan, data: TrainingData, draws: seeded) -> nn.Module:
        dtype = getattr(torch, data.dtype)
        with draws:
            network = plan.build().to(dtype=dtype)
        first: nn.Module = network
        while isinstance(first, nn.Sequential) and len(first):
            first = first[0]
        # One that somebody has filled is left as it is.
        if isinstance(first, Center) and not first.center.any():
            first.center.copy_(torch.from_numpy(data.moments.mean))
        if callable(self.architecture):
            self._check_network(network, plan, dtype)
        return network

    def _check_network(
        self, network: nn.Module, plan: networks.NetworkPlan, dtype: torch.dtype
    ) -> None:
        """Refuse a user's network before hours of training, not after."""
        # A hook is dropped by the export, so it must be refused before; and before any call.
        for module in network.modules():
            refuse_altered(module)
        try:
            with torch.no_grad():
                outputs = network.eval()(torch.zeros(2, *plan.input_shape, dtype=dtype))
        except RuntimeError as error:
            raise ValueError(
                f"architecture must return a network for rows of shape {plan.input_shape}, got one "
                f"that fails on them: {error}"
            ) from error
        if tuple(outputs.shape) != (2, plan.n_outputs):
            raise ValueError(
                f"architecture must return a network with {plan.n_outputs} outputs for rows of shape "
                f"{plan.input_shape}, got outputs of shape {tuple(outputs.shape[1:])}."
            )
        CertifiedNetwork.prove(to_torch(network), plan.input_shape, plan.dtype)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters.

        Parameters
        ----------
        deep : bool, default=True
            Whether to add those of the loss, if it has any, and of callbacks, as skorch names them:
            ``loss__tau``, ``callbacks__name``, ``callbacks__name__parameter``.

        Returns
        -------
        params : dict
        """
        params: dict[str, Any] = super().get_params(deep=deep)
        return {**params, **nested.nested_params(self.callbacks)} if deep else params

    def set_params(self, **params: Any) -> Self:
        """Set parameters, also those of the loss and of callbacks: see :meth:`get_params`.

        A callback that is replaced by None stays out of training.

        Parameters
        ----------
        **params : dict

        Returns
        -------
        self : estimator
        """
        prefix = "callbacks__"
        loss = params.get("loss", self.loss)
        for name in params:
            if name.startswith("loss__") and not hasattr(loss, "set_params"):
                raise ValueError(
                    f"{name} needs a loss that has parameters, a module of sklip.losses, got "
                    f"loss={loss!r}; what is named by a string takes tau, eps, min_margin and alpha of "
                    "the estimator."
                )
        super().set_params(**{k: v for k, v in params.items() if not k.startswith(prefix)})
        inner = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
        if inner:
            self.callbacks = nested.with_params_set(self.callbacks, inner, self)
        return self

    def _net_settings(self) -> dict[str, Any]:
        """Return the parameters of the net; what is inside of one may be set without replacing it."""
        return {
            name: value
            for name, value in self.get_params().items()
            if name.partition("__")[0] in _OF_THE_NET
        }

    def _make_net(
        self,
        module: nn.Module,
        classes: NDArray[Any] | None,
        moments: Moments | None,
        device: str,
        pace: Pace,
        seed: int,
        draws: seeded,
        *,
        criterion: nn.Module | None = None,
        watched: bool = True,
    ) -> LipschitzNet:
        """Return a net that is ready to train.

        `moments` are those of a table, None for images; `criterion` is None for this estimator's own; a
        net that is not `watched` reports nothing and has no callbacks.
        """
        net = LipschitzNet(
            module,
            self._criterion(classes) if criterion is None else criterion,
            schedule=self.learning_rate_schedule,
            augmentation=resolve_augmentation(self.augmentation, moments is None),
            shuffle_seed=seed,
            draws=draws,
            report=watched and bool(self.verbose),
            solver=pace.solver,
            lr=pace.learning_rate,
            batch_size=pace.batch_size,
            column_scales=_column_scales(moments, device),
            mixed_precision=self.dtype == "auto" and mixed_precision_pays(module, device),
            train_split=None,
            classes=None if classes is None else np.arange(len(classes)),
            predict_nonlinearity=self._nonlinearity(),
            callbacks=self._callbacks() if watched else [],
            device=device,
            verbose=int(self.verbose) if watched else 0,
        )
        net.initialize()
        return net

    def _callbacks(self) -> list[tuple[str, Any]]:
        callbacks = check_callbacks(nested.named_callbacks(copy.deepcopy(self.callbacks)))
        if self.early_stopping:
            callbacks.append(("early_stopping", StopEarly(self.n_iter_no_change)))
        return callbacks


def _column_scales(moments: Moments | None, device: str) -> torch.Tensor | None:
    """Return what a net weakens columns by: see sklip.training.columns."""
    if moments is None:
        return None
    return torch.from_numpy(moments.deviations / math.sqrt(moments.weight)).to(device)
