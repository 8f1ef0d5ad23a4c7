r"""What estimators on certified networks share: reading, fitting, predicting."""

from __future__ import annotations

import contextlib
import copy
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from sklip import networks
from sklip.certified import CertifiedNetwork
from sklip.estimators.facts import digest_of, facts_of
from sklip.estimators.fit_tasks import CallbackSupportMixin, FitTasks
from sklip.estimators.parameters import resolve_dtype
from sklip.estimators.storage import StoredEstimator
from sklip.estimators.unwatched import Course, chosen_plan
from sklip.inputs import (
    as_images,
    as_labels,
    check_castable,
    check_input_shape,
    check_sample_weight,
    inferred_input_shape,
    too_large_refused,
)
from sklip.layers import polish_, to_torch
from sklip.rows import as_numpy, as_stored, joined
from sklip.training.callbacks import check_heard, check_resumable
from sklip.training.checkpoints import Checkpoint
from sklip.training.columns import weighted_columns
from sklip.training.data import Samples, TrainingData
from sklip.training.devices import resolve_device
from sklip.training.net import LipschitzNet, Watcher
from sklip.training.parallel import current_processes
from sklip.training.seeding import seeded

__all__ = ["LipschitzEstimator", "as_fitted", "prove_trained", "proven_network"]

Estimator = TypeVar("Estimator", bound="LipschitzEstimator")


class LipschitzEstimator(CallbackSupportMixin, StoredEstimator):  # type: ignore[misc]
    """Base of estimators that train a network, prove it, and predict by what was proven.

    A subclass has the parameters of :class:`sklip.LipschitzClassifier`, with defaults of its own, and
    says by five hooks what its targets are: :meth:`_read_targets`, :meth:`_n_outputs`,
    :meth:`_criterion`, :meth:`_nonlinearity`, :meth:`_keep`.
    """

    column_weights_: NDArray[np.float64]
    feature_std_: NDArray[np.float64]

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
    def _keep(self, data: TrainingData) -> None:
        """Store what predictions need of data and parameters."""

    # -- fitting -----------------------------------------------------------------------------

    def _forget(self) -> None:
        """Drop the model of an earlier fit: a fit that fails must not leave half of each."""
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)

    # Whatever the caller's code around it has switched off.
    @torch.inference_mode(False)
    @torch.enable_grad()
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
        processes.check_agreement(lambda: facts_of(self, data))
        seed = self._draw_seed()
        seed = processes.from_first(seed)
        checkpoint = Checkpoint(None)
        if not one_pass:
            checkpoint = self._checkpoint(data, device, seed, goes_on=goes_on)
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
                course = Course(plan, data, device, pace, seed)
                plan = chosen_plan(self, course, train, checkpoint)
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
            fitted._take_up(net, prove_trained(module, data), data, plan, rows, device, goes_on)
            return fitted

        def model() -> LipschitzEstimator:
            return taken_up(copy.deepcopy(net.module_))  # training goes on

        watcher = Watcher(
            model=lambda: _of_codes(model()),
            epoch_begins=tasks.epoch_begins,
            epoch_ends=lambda: tasks.epoch_ends(lambda: _fitted_attributes(model())),
        )
        try:
            net.train(train, validation, max_epochs, watcher, checkpoint)
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
        labels = as_labels(y)
        with too_large_refused("X"):
            rows, targets = validate_data(self, stored, labels, reset=not goes_on, order="C")
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

    def _checkpoint(self, data: TrainingData, device: str, seed: int, *, goes_on: bool) -> Checkpoint:
        """Return where this very fit is stored, and what is there of it."""
        if self.checkpoint_dir is None:
            return Checkpoint(None)
        if self.random_state is None:
            raise ValueError(
                "checkpoint_dir needs a random_state, got None: with another seed each time, a fit "
                "that is started again would be another fit; set random_state=0, say."
            )
        callbacks = self._callbacks()
        check_resumable(callbacks)
        facts = {
            **facts_of(self, data),
            "weights so far": digest_of(self.net_.module_.state_dict()) if goes_on else "none",
            "callbacks": digest_of(callbacks),
            "device": torch.device(device).type,
            "seed": str(seed),
        }
        folder = Path(self.checkpoint_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(
                error.errno, f"checkpoint_dir must be a folder ({error.strerror})", str(folder)
            ) from error
        return Checkpoint(folder / f"fit-{digest_of(facts)}.pt")

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
        with too_large_refused("X"):
            rows = validate_data(self, stored, reset=False)
        return check_castable(as_given(rows), self.dtype_)

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
            ``nn.Linear``, ``nn.Conv2d`` and sklip's parameter-free layers, on ``device_``; it takes
            (n, *input_shape_) in ``dtype_`` and returns (n, n_outputs).
        """
        check_is_fitted(self)
        return copy.deepcopy(self.certified_network_.network)


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


def prove_trained(module: nn.Module, data: TrainingData) -> CertifiedNetwork:
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
