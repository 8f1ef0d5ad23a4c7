r"""What estimators on certified networks share: reading, fitting, predicting, storing."""

from __future__ import annotations

import contextlib
import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from sklip import networks
from sklip.certified import CertifiedNetwork
from sklip.certified.integrity import refuse_altered
from sklip.certified.seals import opened, sealed
from sklip.estimators import nested
from sklip.estimators.column_choice import FEWEST_COLUMNS, FEWEST_ROWS, weights_pay
from sklip.estimators.fit_tasks import CallbackSupportMixin, FitTasks
from sklip.estimators.pace import Pace
from sklip.estimators.parameters import resolve_augmentation, resolve_dtype
from sklip.inputs import (
    as_images,
    as_labels,
    check_castable,
    check_input_shape,
    check_sample_weight,
    inferred_input_shape,
)
from sklip.layers import Center, polish_, to_torch
from sklip.rows import as_numpy, as_stored, joined
from sklip.training.callbacks import StopEarly, check_callbacks, check_heard
from sklip.training.columns import weighted_columns
from sklip.training.data import Moments, Samples, TrainingData
from sklip.training.devices import available_device, resolve_device
from sklip.training.net import LipschitzNet, Watcher
from sklip.training.parallel import current_processes, fingerprint
from sklip.training.seeding import seeded

__all__ = ["LipschitzEstimator", "as_fitted", "proven_network"]

Estimator = TypeVar("Estimator", bound="LipschitzEstimator")

# Parameters that a net is made with: it trains on only as long as they are the same.
_OF_THE_NET = (
    *("loss", "tau", "eps", "min_margin", "alpha", "batch_size", "solver", "learning_rate"),
    *("learning_rate_schedule", "augmentation", "early_stopping", "n_iter_no_change"),
    *("callbacks", "verbose"),
)


class LipschitzEstimator(CallbackSupportMixin, BaseEstimator):  # type: ignore[misc]
    """Base of estimators that train a network, prove it, and predict by what was proven.

    A subclass has the parameters of :class:`sklip.LipschitzClassifier`, with defaults of its own, and
    says by five hooks what its targets are: :meth:`_read_targets`, :meth:`_n_outputs`,
    :meth:`_criterion`, :meth:`_nonlinearity`, :meth:`_keep`.
    """

    callbacks: Any
    certified_network_: CertifiedNetwork
    device_: str
    column_weights_: NDArray[np.float64]
    feature_std_: NDArray[np.float64]
    history_: list[dict[str, Any]]
    net_: LipschitzNet
    _moments_: Moments
    _settings_: dict[str, Any]

    # -- hooks -------------------------------------------------------------------------------

    @abstractmethod
    def _read_targets(
        self,
        y: NDArray[Any],
        weight: NDArray[np.float64] | None,
        classes: ArrayLike | None,
        *,
        goes_on: bool,
    ) -> tuple[NDArray[Any], NDArray[np.float64] | None, NDArray[Any] | None]:
        """Return targets for the criterion, weights, and the labels that codes stand for."""

    @abstractmethod
    def _n_outputs(self, classes: NDArray[Any] | None) -> int:
        """Return the number of outputs of the network."""

    @abstractmethod
    def _criterion(self, classes: NDArray[Any] | None) -> nn.Module:
        """Return the loss, which takes (outputs, targets, sample_weight or None)."""

    @abstractmethod
    def _nonlinearity(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return what makes predictions of outputs, for callbacks that score them in training."""

    @abstractmethod
    def _keep(self, data: TrainingData) -> None:
        """Store what predictions need of data and parameters."""

    # -- fitting -----------------------------------------------------------------------------

    def _forget(self) -> None:
        """Drop the model of an earlier fit: a fit that fails must not leave half of each."""
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)

    def _train(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None,
        classes: ArrayLike | None,
        *,
        goes_on: bool,
        one_pass: bool,
    ) -> Self:
        """Train and prove; only where all of it succeeds is there another model than before."""
        check_heard(
            self._callbacks(),
            one_cycle=self.learning_rate_schedule == "one_cycle" and not one_pass,
            held_out=self.early_stopping,
        )
        data = self._read(X, y, sample_weight, classes, goes_on=goes_on)
        device = self.device_ if goes_on else resolve_device(self.device)
        processes = current_processes()
        processes.check_agreement(lambda: self._facts(data))
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        seed = processes.from_first(seed)
        draws, samples = seeded(seed), data.samples(device)
        # Images have no columns.
        moments = data.moments if len(data.input_shape) == 1 else None
        train, validation = (samples, None) if one_pass else self._split(samples, seed)
        n_samples = None if one_pass else len(samples)
        pace = self._pace(None if one_pass else len(train), data.input_shape)
        if goes_on:
            plan = self._plan_going_on(data)
            module = self.net_.module_
        else:
            plan = self._plan(data, n_samples, self.hidden_layer_sizes)
            if self._may_weigh_columns(plan, pace, len(train)):
                plan = self._chosen_plan(plan, data, train, moments, device, pace, seed)
            module = self._build(plan, data, draws)
        settings = self._net_settings()
        if goes_on and one_pass and settings == self._settings_:
            net = self.net_
        else:
            net = self._make_net(module, data.classes, moments, device, pace, seed, draws)
        if one_pass:
            net.schedule, net.batch_size, net.lr = "constant", pace.batch_size, pace.learning_rate
        n_epochs_before = len(net.history)
        max_epochs = 1 if one_pass else pace.max_epochs
        # scikit-learn's callbacks follow fits.
        tasks = FitTasks(self, X, y, sample_weight)
        if not one_pass:
            tasks.begin(max_epochs)

        def taken_up(module: nn.Module) -> LipschitzEstimator:
            """Return a fitted estimator of its own, of what is trained so far."""
            fitted = object.__new__(type(self))
            fitted.__dict__.update(self.__dict__)
            rows = [*(self.history_ if goes_on else []), *net.epoch_rows()[n_epochs_before:]]
            fitted._take_up(net, _certified(module, data), data, plan, rows, device, goes_on)
            return fitted

        def model() -> LipschitzEstimator:
            return taken_up(copy.deepcopy(net.module_))  # training goes on

        watcher = Watcher(
            model=lambda: _of_codes(model()),
            epoch_begins=tasks.epoch_begins,
            epoch_ends=lambda: tasks.epoch_ends(lambda: _fitted_attributes(model())),
        )
        try:
            net.train(train, validation, max_epochs, watcher)
        except KeyboardInterrupt:
            # It ends a search, but whoever called fit at a keyboard has the model reached so far.
            with contextlib.suppress(Exception):
                self.__dict__.update(taken_up(net.module_).__dict__)
            raise
        # In one step, so that no interrupt leaves half of an earlier model.
        self.__dict__.update(taken_up(net.module_).__dict__)
        tasks.end()
        return self

    def _take_up(
        self,
        net: LipschitzNet,
        certified: CertifiedNetwork,
        data: TrainingData,
        plan: networks.NetworkPlan,
        history: list[dict[str, Any]],
        device: str,
        goes_on: bool,
    ) -> None:
        """Set what a fitted estimator has."""
        self.net_ = net
        self.lipschitz_bound_ = certified.lipschitz_bound
        self.history_, self.n_iter_ = history, len(history)
        self.device_, self.solver_ = device, net.solver
        self.input_shape_, self.dtype_ = data.input_shape, data.dtype
        self._plan_, self._settings_ = plan, self._net_settings()
        if len(data.input_shape) == 1:
            moments = data.moments
            self._moments_ = self._moments_ + moments if goes_on else moments
            self.feature_std_ = self._moments_.deviations
            self.column_weights_ = _column_weights(net, len(self.feature_std_))
        self._keep(data)
        # Last: with it the estimator is fitted.
        self.certified_network_ = certified

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
            plan.architecture == "mlp"
            and len(plan.input_shape) == 1
            and len(plan.hidden_layer_sizes) > 0
            and plan.input_shape[0] >= FEWEST_COLUMNS
            and FEWEST_ROWS <= n_samples <= min(pace.batch_size, networks.SMALL_TABLE_ROWS)
            and self.loss in ("tau_cross_entropy", "logit_annealing")
        )

    def _chosen_plan(
        self,
        plan: networks.NetworkPlan,
        data: TrainingData,
        samples: Samples,
        moments: Moments | None,
        device: str,
        pace: Pace,
        seed: int,
    ) -> networks.NetworkPlan:
        """Return the plan with or without weights of columns, whichever is better on held-out rows."""
        assert moments is not None, "of tables"
        pace = pace.hurried()

        def train(column_weights: bool, some: Samples) -> nn.Module:
            draws = seeded(seed)
            module = self._build(replace(plan, column_weights=column_weights), data, draws)
            net = self._make_net(
                module, data.classes, moments, device, pace, seed, draws, watched=False
            )
            net.train(some, None, pace.max_epochs)
            return module

        pays = weights_pay(train, samples, self.tau, moments.weight, seed)
        pays = current_processes().from_first(pays)
        return replace(plan, column_weights=pays)

    def _read(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None,
        classes: ArrayLike | None,
        *,
        goes_on: bool,
    ) -> TrainingData:
        """Validate everything. scikit-learn's own check stores the number and names of features."""
        given_shape, X = check_input_shape(self.input_shape), as_numpy(X)
        shape = self.input_shape_ if goes_on else inferred_input_shape(X, given_shape)
        images = as_images(X, shape, type(self).__name__)
        stored, as_given = as_stored(images)
        rows, targets = validate_data(self, stored, as_labels(y), reset=not goes_on, order="C")
        if given_shape is not None and rows.shape[1] != np.prod(given_shape):
            raise ValueError(
                f"X has {rows.shape[1]} features, but input_shape={given_shape} needs "
                f"{np.prod(given_shape)}."
            )
        weight = check_sample_weight(sample_weight, len(rows))
        targets, weight, labels = self._read_targets(targets, weight, classes, goes_on=goes_on)
        input_shape = (rows.shape[1],) if shape is None else shape
        rows = as_given(rows)
        if goes_on and self.dtype in ("auto", self.dtype_):
            dtype = self.dtype_
        else:
            dtype = resolve_dtype(self.dtype, len(input_shape) == 3, rows.size)
        rows = check_castable(rows, dtype)
        return TrainingData(rows, targets, weight, labels, input_shape, dtype)

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
        with torch.no_grad():
            outputs = network.eval()(torch.zeros(2, *plan.input_shape, dtype=dtype))
        if tuple(outputs.shape) != (2, plan.n_outputs):
            raise ValueError(
                f"architecture must return a network with {plan.n_outputs} outputs for rows of shape "
                f"{plan.input_shape}, got outputs of shape {tuple(outputs.shape[1:])}."
            )
        CertifiedNetwork.prove(to_torch(network), plan.input_shape, plan.dtype)

    def _facts(self, data: TrainingData) -> dict[str, str]:
        """Return what has to be the same in all processes that train together."""
        told = {
            name: repr(value)
            for name, value in self.get_params(deep=False).items()
            if name not in ("callbacks", "device", "random_state", "verbose")
            # The repr of anything else may name where it lies in memory.
            and isinstance(value, str | int | float | tuple | list | dict | np.ndarray | None)
        }
        weight, classes = data.sample_weight, data.classes
        return told | {
            "X": fingerprint(data.rows),
            "y": f"{fingerprint(data.targets)} {None if classes is None else classes.tolist()}",
            "sample_weight": fingerprint(weight),
            "the number of epochs so far": str(getattr(self, "n_iter_", 0)),
        }

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
        watched: bool = True,
    ) -> LipschitzNet:
        """Return a net that is ready to train.

        `moments` are those of a table, None for images; a net that is not `watched` reports nothing and
        has no callbacks.
        """
        net = LipschitzNet(
            module,
            self._criterion(classes),
            schedule=self.learning_rate_schedule,
            augmentation=resolve_augmentation(self.augmentation, moments is None),
            shuffle_seed=seed,
            draws=draws,
            report=watched and bool(self.verbose),
            solver=pace.solver,
            lr=pace.learning_rate,
            batch_size=pace.batch_size,
            column_scales=_column_scales(moments, device),
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

    def _split(self, samples: Samples, seed: int) -> tuple[Samples, Samples | None]:
        if not self.early_stopping:
            return samples, None
        train, held_out = train_test_split(
            np.arange(len(samples)),
            test_size=self.validation_fraction,
            stratify=None if samples.y.is_floating_point() else samples.y.cpu().numpy(),
            random_state=seed,
        )
        return samples.subset(torch.from_numpy(train)), samples.subset(torch.from_numpy(held_out))

    # -- prediction --------------------------------------------------------------------------

    def network_rows(self, X: ArrayLike) -> NDArray[Any]:
        """Return X, validated, as `certified_network_` takes it: where it lies, if that is possible.

        Parameters
        ----------
        X : array-like
            As for ``fit``.

        Returns
        -------
        rows : ndarray of shape (n_samples, n_features_in_) or (n_samples, *input_shape_)
        """
        check_is_fitted(self)
        stored, as_given = as_stored(as_images(X, self.input_shape_, type(self).__name__))
        return check_castable(as_given(validate_data(self, stored, reset=False)), self.dtype_)

    def _by_pieces(
        self, X: ArrayLike, evaluate: Callable[[NDArray[Any]], tuple[NDArray[Any], ...]]
    ) -> tuple[NDArray[Any], ...]:
        """Return what is computed of the rows of X, a piece at a time: X may be larger than memory."""
        rows = self.network_rows(X)
        return joined(len(rows), map(evaluate, self.certified_network_.pieces(rows)))

    def to_torch(self) -> nn.Module:
        """Return a copy of the trained network in plain layers, in evaluation mode.

        Returns
        -------
        network : torch.nn.Module
            ``nn.Linear``, ``nn.Conv2d`` and sklip's parameter-free layers; it takes
            (n, *input_shape_) and returns (n, n_outputs).
        """
        check_is_fitted(self)
        return copy.deepcopy(self.certified_network_.network)

    # -- storage -----------------------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "certified_network_")

    def __getstate__(self) -> dict[str, Any]:
        """Networks are stored as NumPy arrays: they load on a machine without the same device.

        All that was fitted is plain values and arrays, under a seal (:mod:`sklip.certified.seals`).
        """
        state = dict(super().__getstate__())
        if self.__sklearn_is_fitted__():
            self.certified_network_.check_unchanged()
            state["certified_network_"] = self.certified_network_.to_state()
            state["net_"] = {
                name: value.cpu().numpy().copy()
                for name, value in self.net_.module_.state_dict().items()
            }
            state["_plan_"] = {
                field.name: getattr(self._plan_, field.name) for field in fields(self._plan_)
            }
            if "_moments_" in state:
                state["_moments_"] = asdict(self._moments_)
            # Known from the parameters.
            del state["_settings_"], state["lipschitz_bound_"]
        return sealed(state)

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


def _column_scales(moments: Moments | None, device: str) -> torch.Tensor | None:
    """Return what a net weakens columns by: see sklip.training.columns."""
    if moments is None:
        return None
    return torch.from_numpy(moments.deviations / math.sqrt(moments.weight)).to(device)


def _column_weights(net: LipschitzNet, n_columns: int) -> NDArray[np.float64]:
    """Return the weights of the columns: of its first layer, if that has any."""
    found = weighted_columns(net.module_, net.column_scales)
    if not found:
        return np.ones(n_columns)
    weights: NDArray[np.float64] = found[0].detach().cpu().double().numpy()
    return weights


def _of_codes(model: LipschitzEstimator) -> LipschitzEstimator:
    """Return a fitted estimator as skorch's callbacks need it: of codes, and of rows without names."""
    if hasattr(model, "classes_"):
        model.classes_ = np.arange(len(model.classes_))
    model.__dict__.pop("feature_names_in_", None)
    return model


def _fitted_attributes(model: LipschitzEstimator) -> dict[str, Any]:
    return {name: value for name, value in vars(model).items() if name.endswith("_")}


def _certified(module: nn.Module, data: TrainingData) -> CertifiedNetwork:
    """Export the trained network and prove it."""
    if not all(torch.isfinite(v).all() for v in module.state_dict().values()):
        raise ValueError(
            "Training produced non-finite weights. Lower learning_rate, or scale X if it contains "
            "large values."
        )
    return CertifiedNetwork.prove(to_torch(polish_(module)), data.input_shape, data.dtype)


def as_fitted(estimator: Estimator) -> Estimator:
    """Return what an estimator is at this moment: later fits replace its networks in the other only.

    Whoever reads several fitted attributes, or one several times, would else have some of each model
    while another thread trains.

    Raises
    ------
    NotFittedError
        If it is not fitted.
    """
    fitted = object.__new__(type(estimator))
    fitted.__dict__.update(estimator.__dict__)  # at once: the interpreter's lock is held
    check_is_fitted(fitted)
    return fitted


def proven_network(estimator: LipschitzEstimator, method: str = "predict") -> CertifiedNetwork:
    """Return the network that a fitted estimator predicts by, which is the one that was proven.

    Parameters
    ----------
    estimator : LipschitzEstimator
    method : str, default="predict"
        What else decides: "predict_proba", say.

    Raises
    ------
    TypeError
        For a subclass or an instance that predicts in another way.
    RuntimeError
        If the network was changed after its proof.
    """
    check_is_fitted(estimator)
    mine = type(estimator)
    known = next(base for base in mine.__mro__ if base.__module__.startswith("sklip.estimators."))
    for name in ("predict", "decision_function", "predict_with_radii", "network_rows", method):
        own = getattr(known, name, None)
        if getattr(mine, name, None) is not own or name in vars(estimator):
            raise TypeError(
                f"{mine.__name__} has another {name} than {known.__name__}, so it gives no "
                "certificates; override certificates_ as well."
            )
    network: CertifiedNetwork = estimator.certified_network_
    network.check_unchanged()
    return network
