r"""Fitted estimators as plain values and arrays, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import torch

from sklip import networks
from sklip.certified import CertifiedNetwork
from sklip.certified.seals import opened, sealed
from sklip.estimators.planning import PlanningEstimator
from sklip.training.data import Moments
from sklip.training.devices import available_device
from sklip.training.net import LipschitzNet
from sklip.training.seeding import seeded

__all__ = ["StoredEstimator"]


class StoredEstimator(PlanningEstimator):
    """The part of :class:`sklip.estimators.base.LipschitzEstimator` that is for pickle and the like."""

    certified_network_: CertifiedNetwork
    device_: str
    history_: list[dict[str, Any]]
    net_: LipschitzNet
    _moments_: Moments
    _settings_: dict[str, Any]

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "certified_network_")

    def __getstate__(self) -> dict[str, Any]:
        """Networks are stored as NumPy arrays: they load on a machine without the same device.

        All that was fitted is plain values and arrays, under a seal (:mod:`sklip.certified.seals`),
        and of one model, which another thread may replace meanwhile.
        """
        state = dict(super().__getstate__())
        if "certified_network_" in state:
            network, net, plan = (state[name] for name in ("certified_network_", "net_", "_plan_"))
            network.check_unchanged()
            state["certified_network_"] = network.to_state()
            state["net_"] = {
                name: value.cpu().numpy().copy() for name, value in net.module_.state_dict().items()
            }
            state["_plan_"] = {field.name: getattr(plan, field.name) for field in fields(plan)}
            if "_moments_" in state:
                state["_moments_"] = asdict(state["_moments_"])
            # Known from the parameters.
            del state["_settings_"], state["lipschitz_bound_"]
        return sealed(state)

    @torch.inference_mode(False)  # tensors made in it could never be trained
    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Build the networks, and prove the one that predicts anew.

        Raises
        ------
        ValueError
            For a state of another format, and for one that is not what was stored.
        """
        state = opened(state, type(self).__name__)
        super().__setstate__(dict(state))
        if "certified_network_" not in state:
            return
        self._plan_ = networks.NetworkPlan(**state["_plan_"])
        if "_moments_" in state:
            self._moments_ = Moments(**state["_moments_"])
        self.device_ = available_device(self.device_)
        self.certified_network_ = CertifiedNetwork.from_state(state["certified_network_"])
        self.certified_network_.to(self.device_)
        self.lipschitz_bound_ = self.certified_network_.lipschitz_bound
        with seeded(0):
            module = self._plan_.build()
        values = {name: torch.from_numpy(np.array(array)) for name, array in state["net_"].items()}
        module.load_state_dict(values, assign=True)
        classes, moments = getattr(self, "classes_", None), getattr(self, "_moments_", None)
        pace = replace(self._pace(None, self.input_shape_), solver=self.solver_)
        self.net_ = self._make_net(module, classes, moments, self.device_, pace, 0, seeded(0))
        self.net_.restore_history(self.history_)
        self._settings_ = self._net_settings()
