r"""A training step as CUDA graphs: recorded once, and replayed without Python's share of the work.

A step of a small network is some hundreds of kernels of a few microseconds each, and to launch them
from Python takes longer than to run them. A graph launches them all at once. It reads and writes fixed
places in memory, so a batch is copied to where the recorded one lay, and whatever changes from step to
step (rates, the age of Adam's means) has to be a tensor.

What escapes a recording is silently left out of every replay. So the first replay is compared with a
plain step on the same batch, from the same weights; where they differ, graphs are not used.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from sklip.training.muon import StiefelMuon

__all__ = ["CudaRecorder", "GraphedStep", "Recorder"]

# Two turns' worth: in the first steps libraries choose their kernels and the optimiser makes its state.
_WARM_UP_STEPS = 8
# Shares by which a replay may differ from a plain step. Two plain steps differ as well, since kernels
# add in any order and round products to TF32, which orthogonalising enlarges in some directions of a
# move; a step on another batch differs by about all of it.
_OF_A_VALUE, _OF_A_MOVE = 0.05, 0.3

Outputs = tuple[Tensor, ...]

# To begin recording waits for the device, which another thread's recording does not allow.
_ONE_AT_A_TIME = threading.Lock()


class Recorder(Protocol):
    """How functions are recorded."""

    def warm_up(self, function: Callable[[], Outputs]) -> Outputs:
        """Run a function in the way in which it will be recorded."""

    def record(self, function: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """Return what replays a function, and the outputs that each replay writes; run nothing."""


class CudaRecorder:
    """Records CUDA graphs.

    Parameters
    ----------
    device : str
        The CUDA device that the functions compute on.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._stream = _side_stream(self._device)

    def warm_up(self, function: Callable[[], Outputs]) -> Outputs:
        """Run a function on a stream beside the default one, as recording will."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                outputs = function()
            current.wait_stream(self._stream)
        return outputs

    def record(self, function: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """Return what replays the function's kernels, and the outputs that each replay writes."""
        # The outer stream is what a failure returns from: torch.cuda.graph would not return itself.
        with _ONE_AT_A_TIME, torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            graph = torch.cuda.CUDAGraph()
            # Of this thread alone: another one may be fetching the next batch.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                outputs = function()
        return functools.partial(_replay, graph, function), outputs


def _replay(graph: torch.cuda.CUDAGraph, _: Callable[[], Outputs]) -> None:
    """Replay a graph of a function, which is kept alive with all that the graph reads."""
    graph.replay()


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all fits: libraries keep memory for each stream that they have worked on."""
    return torch.cuda.Stream(device)


class GraphedStep:
    """A training step that is recorded after a few steps, and replayed from then on.

    It computes what the steps themselves would: the first replay is compared with a plain step. A batch
    of another shape than the first, such as the last of an epoch, takes a plain step. So do all where
    the comparison fails, or where recording does, because a loss or a layer reads values back from the
    device, say; a warning tells why, and no step is lost.

    Parameters
    ----------
    gradients : callable
        Function ``(X, y, sample_weight or None) -> (loss, logits)`` that computes the gradients.
    optimizer : StiefelMuon
        Its rates have to be tensors on the device.
    recorder : Recorder
    """

    def __init__(
        self,
        gradients: Callable[[Tensor, Tensor, Tensor | None], Outputs],
        optimizer: StiefelMuon,
        recorder: Recorder,
    ) -> None:
        self._gradients = gradients
        self._optimizer = optimizer
        self._recorder: Recorder | None = recorder
        self._waiting = _WARM_UP_STEPS
        self._shape: torch.Size | None = None
        self._inputs: list[Tensor | None] = []
        self._outputs: Outputs = ()

    def __call__(self, X: Tensor, y: Tensor, sample_weight: Tensor | None) -> Outputs:
        """Take a step; the outputs hold until the next one."""
        batch = (X, y, sample_weight)
        self._shape = self._shape or X.shape
        if self._recorder is None or X.shape != self._shape:
            return self._plain_step(*batch)
        if self._waiting:
            self._waiting -= 1
            return self._recorder.warm_up(lambda: self._plain_step(*batch))
        if not self._outputs:
            try:
                self._record(self._recorder, batch)
            except RuntimeError as error:
                self._recorder = None
                while isinstance(error.__context__, RuntimeError):  # where it began
                    error = error.__context__
                warnings.warn(
                    f"Training runs without CUDA graphs, several times slower: {error}", stacklevel=2
                )
                return self._plain_step(*batch)
        for place, value in zip(self._inputs, batch, strict=True):
            if place is not None and value is not None:
                place.copy_(value)
        self._replay_step()
        if self._optimizer.count():
            self._replay_turn()
        return self._outputs

    def _plain_step(self, X: Tensor, y: Tensor, sample_weight: Tensor | None) -> Outputs:
        outputs = self._gradients(X, y, sample_weight)
        self._optimizer.step()
        return outputs

    def _record(self, recorder: Recorder, batch: tuple[Tensor, Tensor, Tensor | None]) -> None:
        X, y = batch[0].clone(), batch[1].clone()
        sample_weight = None if batch[2] is None else batch[2].clone()

        def step() -> Outputs:
            outputs = self._gradients(X, y, sample_weight)
            self._optimizer.advance()
            return outputs

        def turn() -> Outputs:
            self._optimizer.turn(self._optimizer.every)
            return ()

        # Of a graph without a kernel torch warns.
        turns = bool(self._optimizer.large_matrices())
        replay_turn = recorder.record(turn)[0] if turns else _nothing
        replay_step, outputs = recorder.record(step)

        def replayed_step() -> Outputs:
            replay_step()
            return outputs

        def replayed_turn() -> Outputs:
            replay_turn()
            return ()

        before = self._state()
        # Another batch than the recorded one, so that what has not been read anew shows.
        X.copy_(X.roll(1, 0))
        try:
            self._compare("step", replayed_step, step)
            if turns:
                self._compare("turn", replayed_turn, turn)
        finally:
            _restore(before)
        self._replay_turn, self._replay_step = replay_turn, replay_step
        self._inputs, self._outputs = [X, y, sample_weight], outputs

    def _state(self) -> list[tuple[str, Tensor, Tensor]]:
        """Return name, tensor and present value of all that a step changes."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        moments = [pair for p in parameters for pair in self._optimizer.state[p].items()]
        named = [*(("weights", p.detach()) for p in parameters), *moments]
        return [(name, tensor, tensor.clone()) for name, tensor in named]

    def _compare(
        self, what: str, replayed: Callable[[], Outputs], plain: Callable[[], Outputs]
    ) -> None:
        """Do something in both ways from the same state, and raise an error where they differ."""
        before = self._state()
        replay_outputs = [output.clone() for output in replayed()]
        after_replay = self._state()
        _restore(before)
        plain_outputs = plain()
        differing = {
            name
            for (name, now, old), (_, _, seen) in zip(before, after_replay, strict=True)
            if not _close(seen, now, now - old if name == "weights" else None)
        }
        for name, seen, now in zip(("loss", "logits"), replay_outputs, plain_outputs, strict=False):
            if not _close(seen, now):
                differing.add(name)
        if differing:
            names = ", ".join(sorted(differing))
            raise RuntimeError(f"the first replay of a {what} differs from a plain one in {names}")


def _nothing() -> None:
    """Replay what does nothing."""


def _restore(state: list[tuple[str, Tensor, Tensor]]) -> None:
    """Bring tensors back to the values they had; a graph finds them where it was recorded."""
    for _, tensor, value in state:
        tensor.copy_(value)


def _close(seen: Tensor, expected: Tensor, move: Tensor | None = None) -> bool:
    """Whether two values are equal up to rounding, of themselves or of the move that led there."""
    size = expected.norm()
    if move is None:
        bound = _OF_A_VALUE * size
    else:
        bound = _OF_A_MOVE * move.norm() + 16 * torch.finfo(expected.dtype).eps * size
    # False where anything is not a number.
    return bool((seen - expected).norm() <= bound)
