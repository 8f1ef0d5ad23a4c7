r"""The skorch net: the hot loop.

Batches in, a trained module out. Nothing here knows scikit-learn's validation. Inside an epoch nothing
asks the device for a value; sums are kept there and read once, at the epoch's end.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skorch.callbacks import Callback
from torch import Tensor, nn

from sklip.layers import keep_orthogonal
from sklip.training.callbacks import Bar, EpochReport, StopEarly
from sklip.training.checkpoints import Checkpoint
from sklip.training.columns import penalize_, weighted_columns
from sklip.training.cuda_graphs import CudaRecorder, GraphedStep, Recorder
from sklip.training.data import Batch, Samples
from sklip.training.epochs import Epoch, batch_sums, keep_freed_memory
from sklip.training.interrupts import is_raised_by_statement
from sklip.training.muon import StiefelMuon
from sklip.training.one_cycle import OneCycle
from sklip.training.parallel import Together, current_processes
from sklip.training.resumable import ResumableNet
from sklip.training.seeding import seeded

__all__ = ["LipschitzNet", "Watcher"]

# Rows a forward pass without gradients takes at once: bounds memory whatever n is.
INFERENCE_ROWS = 2048
# Recording takes about as long as some tens of steps.
_FEWEST_STEPS = 50
# Of the rate of matrices, for biases: in 48 steps they have to get as far from zero as columns spread.
# Means over 13 tables of one batch (5 folds, 3 seeds) with 0.1 and with 0.5: accuracy 0.883 and 0.889,
# certified at 0.5 0.558 and 0.572; MNIST's radii would be 1 % smaller.
_FREE_SHARE, _FREE_SHARE_OF_TABLES = 0.1, 0.5
# See Note [One batch] of sklip.training.muon.
_ITERATIONS, _ITERATIONS_OF_ONE_BATCH = 4, 2


@dataclass(frozen=True)
class Watcher:
    """Who else follows a training: asked between epochs, and never in a step.

    Parameters
    ----------
    model : callable
        Function without arguments that returns a fitted estimator of what is trained so far, whose
        labels are codes.
    epoch_begins : callable
        Called without arguments.
    epoch_ends : callable
        Called without arguments; it returns whether training is to end.
    """

    model: Callable[[], Any]
    epoch_begins: Callable[[], None]
    epoch_ends: Callable[[], bool]


class LipschitzNet(ResumableNet):
    """skorch net that keeps constrained layers orthogonal and moves whole tensors.

    To callbacks it is a classifier of codes: what scores predictions takes it, and the samples that
    skorch hands over.

    Parameters
    ----------
    module, criterion, **kwargs
        As for skorch's NeuralNetClassifier. The criterion takes (logits, target, sample_weight).
    solver : {"muon", "adam"}
        Optimiser: orthogonalised momentum, or Adam with projected gradients and retraction.
    schedule : {"one_cycle", "constant"}
        Course of the learning rate over a call of ``partial_fit``.
    augmentation : sequence of callables
        Changes ``(images, generator) -> images`` of each training batch, in order.
    shuffle_seed : int
        Seed of the order of the samples, and of the augmentation.
    draws : seeded
        Where a forward pass or loss that draws random numbers, as dropout does, has them from.
    column_scales : Tensor of shape (n_features,), default=None
        For tables: standard deviation of each column over the root of the number of rows, which says
        how much a column that is noise may seem to help. See :mod:`sklip.training.columns`.
    mixed_precision : bool
        Whether the forward and backward passes of training multiply in bfloat16. See
        :mod:`sklip.training.mixed_precision`.
    report : bool
        Whether to print a line an epoch, and to record the training accuracy for it.
    """

    def __init__(
        self,
        module: nn.Module,
        criterion: nn.Module,
        *,
        solver: str = "muon",
        schedule: str = "one_cycle",
        augmentation: Sequence[Callable[[Tensor, torch.Generator], Tensor]] = (),
        shuffle_seed: int = 0,
        draws: seeded | None = None,
        column_scales: Tensor | None = None,
        mixed_precision: bool = False,
        report: bool = False,
        **kwargs: Any,
    ) -> None:
        self.solver = solver
        self.schedule = schedule
        self.augmentation = augmentation
        self.shuffle_seed = shuffle_seed
        self.draws = seeded(shuffle_seed) if draws is None else draws
        self.column_scales = column_scales
        self.mixed_precision = mixed_precision
        self.report = report
        super().__init__(module, criterion=criterion, **kwargs)

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [("report", EpochReport())] if self.report else []

    def initialize_module(self) -> LipschitzNet:
        """Take the module as it is, and start the order of the samples anew."""
        super().initialize_module()
        self._generator = torch.Generator().manual_seed(self.shuffle_seed)
        return self

    def initialize_optimizer(self, *_: Any, **__: Any) -> LipschitzNet:
        """Make the optimiser, which keeps the constrained layers orthogonal."""
        optimizer: torch.optim.Optimizer
        if self.solver == "muon":
            share = _FREE_SHARE if self.column_scales is None else _FREE_SHARE_OF_TABLES
            optimizer = StiefelMuon(self.module_, lr=self.lr, free_share=share)
        else:
            optimizer = torch.optim.Adam(self.module_.parameters(), lr=self.lr, fused=True)
            keep_orthogonal(optimizer, self.module_)
        self.optimizer_ = optimizer
        return self

    def train(
        self,
        data: Samples,
        validation: Samples | None,
        epochs: int,
        watcher: Watcher | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> LipschitzNet:
        """Train for at most `epochs` passes over `data`; an error leaves the weights as they were.

        A training that `checkpoint` holds goes on from there: see Note [Bit for bit] of
        sklip.training.checkpoints.

        An interrupt by the user is raised once the callbacks have been told that training ends; the
        weights are those reached so far. See Note [Two interrupts] of sklip.training.interrupts.
        """
        self.planned_epochs = len(self.history) + epochs
        self._validation, self._watcher = validation, watcher
        self._checkpoint = Checkpoint(None) if checkpoint is None else checkpoint
        processes = current_processes()
        processes.check_network(self.module_)
        processes.align_(self.module_)
        self._processes = processes
        n_steps = epochs * -(-len(data) // self.batch_size)
        self._column_weights = weighted_columns(self.module_, self.column_scales)
        if isinstance(self.optimizer_, StiefelMuon):
            one_batch = len(data) <= self.batch_size
            self.optimizer_.iterations = _ITERATIONS_OF_ONE_BATCH if one_batch else _ITERATIONS
        recorder, optimizer = self._make_recorder(n_steps), self.optimizer_
        self._take_step = self._plain_step
        if recorder is not None and isinstance(optimizer, StiefelMuon):
            self._take_step = GraphedStep(self._gradients, optimizer, recorder)
        self._step_schedule = self._make_schedule(n_steps, as_tensors=recorder is not None)
        self._stopped_by_callback = self._stopped_by_watcher = False
        self._may_draw = self._draws_numbers()
        keep_freed_memory()
        before = copy.deepcopy(self.module_.state_dict())
        interrupt: KeyboardInterrupt | None = None
        try:
            self.notify("on_train_begin", X=data, y=None)
            epochs -= self._epochs_taken_up(epochs, len(data))
            try:
                self.fit_loop(data, epochs=epochs)
            except KeyboardInterrupt as error:
                self._finish_turn()
                interrupt = None if self._stopped_by_callback else error
            if epochs and interrupt is None:
                # One that was told to end from outside may be told to go on.
                ended = not self._stopped_by_watcher
                self._checkpoint.keep("training", lambda: self._reached(ended=ended))
            with contextlib.nullcontext() if interrupt is None else contextlib.suppress(Exception):
                self.notify("on_train_end", X=data, y=None)
        except Exception as error:
            # A model that was being trained further stays as it was.
            self.module_.load_state_dict(before)
            self.initialize_optimizer()
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise torch.cuda.OutOfMemoryError(
                    f"The device lacks memory to train with batch_size={self.batch_size}. Lower "
                    f"batch_size, or set device='cpu'. {error}"
                ) from error
            raise
        finally:
            del self._validation, self._watcher, self._processes, self._checkpoint
            del self._step_schedule, self._take_step, self._column_weights
            # A fitted model is to hold no more than its weights and the optimiser's state.
            self.optimizer_.zero_grad(set_to_none=True)
        if interrupt is not None:
            try:
                raise interrupt
            finally:
                del interrupt  # its traceback holds this frame
        return self

    def trained_so_far(self, X: Any, y: Any) -> tuple[Any, NDArray[Any], Any]:
        """Return a fitted estimator of what is trained so far, and what to score it on.

        Parameters
        ----------
        X : Samples, Tensor or ndarray
            What skorch's callbacks score: samples of the data, or a batch.
        y : array-like of shape (n_samples,)
            Codes. Those of samples are known, and skorch may have them in the order of batches.

        Returns
        -------
        estimator : object
            Proven as it is now; its labels are codes.
        rows : ndarray of shape (n_samples, n_features)
        codes : array-like of shape (n_samples,)

        Raises
        ------
        RuntimeError
            Outside of a training that is watched.
        """
        watcher = getattr(self, "_watcher", None)
        if watcher is None:
            raise RuntimeError("A net gives certificates to callbacks in training only.")
        if isinstance(X, Samples):
            return watcher.model(), X.rows(), X.y.cpu().numpy()
        values = X.detach().cpu().numpy() if isinstance(X, Tensor) else np.asarray(X)
        return watcher.model(), values.reshape(len(values), -1), y

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Call the callbacks and the watcher, and remember if one of them ended training."""
        try:
            super().notify(method_name, **cb_kwargs)
            watcher = self._watcher
            if method_name == "on_epoch_begin" and watcher is not None:
                watcher.epoch_begins()
            if method_name == "on_epoch_end":
                self._stopped_by_watcher = watcher is not None and watcher.epoch_ends()
                if self._stopped_by_watcher:
                    raise KeyboardInterrupt
                self._checkpoint.keep_if_due("training", lambda: self._reached(ended=False))
        except KeyboardInterrupt as interrupt:
            self._stopped_by_callback = is_raised_by_statement(interrupt)
            raise

    def _draws_numbers(self) -> bool:
        """Whether the forward pass or the loss may draw random numbers, as dropout does."""
        parts = (*self.module_.modules(), *self.criterion_.modules())
        homes = [type(part).__module__ for part in parts]
        return any(
            home == "torch.nn.modules.dropout" or not home.startswith(("sklip.", "torch.nn."))
            for home in homes
        )

    def _make_recorder(self, n_steps: int) -> Recorder | None:
        """CUDA graphs, where they pay and Python has nothing to say in a step."""
        watched = any(
            not isinstance(callback, EpochReport | StopEarly) for _, callback in self.callbacks_
        )
        # A loss of somebody else may count its calls, say, which a replay would not do.
        known = all(
            type(part).__module__.startswith("sklip.losses.") for part in self.criterion_.modules()
        )
        on_cuda = torch.device(self.device).type == "cuda"
        # Adam's momentum follows the schedule, and a graph could not see that.
        # Nor may a recording wait for other processes.
        together = isinstance(current_processes(), Together)
        unfit = watched or not known or self._draws_numbers() or together
        unfit = unfit or os.environ.get("SKLIP_CUDA_GRAPHS") == "0"
        if unfit or not on_cuda or self.solver != "muon" or n_steps < _FEWEST_STEPS:
            return None
        return CudaRecorder(self.device)

    def _make_schedule(self, n_steps: int, as_tensors: bool) -> Callable[[], None]:
        rates = [self.lr * group.get("share", 1.0) for group in self.optimizer_.param_groups]
        for group, rate in zip(self.optimizer_.param_groups, rates, strict=True):
            group["lr"] = torch.full((), rate, device=self.device) if as_tensors else rate
        if self.schedule == "constant" or n_steps < 2:
            return _no_step
        return OneCycle(self.optimizer_, rates, n_steps)

    def get_split_datasets(
        self, X: Samples, y: None = None, **fit_params: Any
    ) -> tuple[Samples, Samples | None]:
        """Return the data and the validation data given to `train`."""
        return X, self._validation

    def check_data(self, X: Any, y: Any = None) -> None:
        """Nothing: estimators have checked the samples."""

    def get_iterator(self, dataset: Samples, training: bool = False) -> Epoch:
        """Return an object whose iterator yields one epoch's batches."""
        batch_size = self.batch_size if training else INFERENCE_ROWS
        return Epoch(dataset, batch_size, self._generator if training else None)

    def get_dataset(self, X: Any, y: Any = None) -> Samples:
        """Return what callbacks predict for: samples, or a batch of inputs."""
        if isinstance(X, Samples):
            return X
        inputs = torch.as_tensor(X).to(self.device)
        codes = torch.zeros(len(inputs), dtype=torch.long, device=self.device)
        dtype = next(self.module_.parameters()).dtype
        return Samples(inputs, codes if y is None else torch.as_tensor(y), None, dtype)

    def infer(self, x: Tensor, **fit_params: Any) -> Tensor:
        """Return the logits of a batch that lies on the device already."""
        logits: Tensor = self.module_(x, **fit_params)
        return logits

    def _infer_in_training(self, x: Tensor) -> Tensor:
        if not self.mixed_precision:
            return self.infer(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.infer(x).float()

    def train_step(self, batch: Batch, **fit_params: Any) -> dict[str, Tensor]:
        """Gradients and a step of the optimiser."""
        if not self.module_.training:
            self.module_.train()
        X, y = batch
        for change in self.augmentation:
            X = change(X, self._generator)
        loss, logits = self._take_step(X, y, batch.sample_weight)
        self._step_schedule()
        return {"loss": loss, "y_pred": logits}

    def _gradients(self, X: Tensor, y: Tensor, sample_weight: Tensor | None) -> tuple[Tensor, ...]:
        for group in self.optimizer_.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        with self.draws if self._may_draw else contextlib.nullcontext():
            logits = self._processes.logits(self._infer_in_training, X)
            if self._column_weights:
                logits.retain_grad()
            loss = self.criterion_(logits, y, sample_weight)
        loss.backward()
        self._processes.add_up_(self.module_.parameters())
        for weights in self._column_weights:
            assert self.column_scales is not None, "as there are weights"
            penalize_(weights, self.column_scales, logits, sample_weight)
        return loss.detach(), logits.detach()

    def _plain_step(self, X: Tensor, y: Tensor, sample_weight: Tensor | None) -> tuple[Tensor, ...]:
        outputs = self._gradients(X, y, sample_weight)
        self.notify(
            "on_grad_computed",
            named_parameters=self.module_.named_parameters(),
            batch=Batch.of(X, y, sample_weight),
            training=True,
        )
        self.optimizer_.step()
        return outputs

    def _finish_turn(self) -> None:
        """Use what the last steps gathered: it must not wait for a next epoch that may never come."""
        if isinstance(self.optimizer_, StiefelMuon):
            self.optimizer_.finish()

    def validation_step(self, batch: Batch, **fit_params: Any) -> dict[str, Tensor]:
        """Logits and loss without gradients."""
        self.module_.eval()
        X, y = batch
        with torch.no_grad():
            logits = self.infer(X, **fit_params)
            loss = self.criterion_(logits, y, batch.sample_weight)
        return {"loss": loss, "y_pred": logits}

    def run_single_epoch(
        self,
        iterator: Epoch | None,
        training: bool,
        prefix: str,
        step_fn: Callable[..., dict[str, Tensor]],
        **fit_params: Any,
    ) -> None:
        """One pass over the data; the epoch's means are read from the device at its end."""
        if iterator is None:
            return
        start = time.perf_counter()
        with_metrics = self.report or not training
        sums: Tensor | None = None
        batches: Iterable[Batch] = iterator
        if self.report:
            batches = Bar(iterator, desc=prefix, leave=False, delay=2.0, disable=None)
        for batch in batches:
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch, **fit_params)
            self.history.record_batch(prefix + "_batch_size", len(batch[0]))
            self.notify("on_batch_end", batch=batch, training=training, **step)
            part = batch_sums(step["loss"], step["y_pred"], batch, with_metrics)
            sums = part if sums is None else sums + part
        if training:
            self._finish_turn()
            self._processes.align_(self.module_)
        assert sums is not None, "validated data has at least one row"
        # What stops training must be the same number in all processes.
        total, *means = self._processes.from_first(sums).tolist()
        means = [mean / total for mean in means]
        if not math.isfinite(means[0]):
            raise ValueError(
                f"Training produced a non-finite loss in epoch {len(self.history)} with "
                f"learning_rate={self.lr!r}. Lower learning_rate, or scale X if it contains large "
                "values."
            )
        names = ["loss", "accuracy", "normalized_margin"]
        for name, mean in zip(names, means, strict=False):
            self.history.record(f"{prefix}_{name}", mean)
        # As skorch has it, for its Checkpoint.
        name = f"{prefix}_loss"
        least = min((row[name] for row in self.history[:-1] if name in row), default=math.inf)
        self.history.record(f"{name}_best", means[0] < least)
        self.history.record(f"{prefix}_batch_count", len(iterator))
        earlier = 0.0 if training else self.history[-1]["seconds"]
        self.history.record("seconds", earlier + time.perf_counter() - start)


def _no_step() -> None:
    """Leave the learning rate as it is."""
