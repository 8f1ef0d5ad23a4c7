r"""One model trained by several processes, each on its part of every batch.

Note [Joint batches]
--------------------
All processes have all the data, and draw the same batches in the same order. Of a batch each
computes the logits of its own rows only. All logits are then gathered, so that every process
computes the loss of the whole batch, and its gradient by all logits, as one process alone would: a
loss that couples rows, such as the Kantorovich-Rubinstein term with its means over classes, needs no
exception. What is left is a sum over rows,

.. math:: \frac{\partial L}{\partial W} = \sum_r \sum_{i \in r}
    \Bigl( \frac{\partial f(x_i)}{\partial W} \Bigr)^T \frac{\partial L}{\partial f(x_i)} ,

of which each process r computes its own part, and the parts are added up. So the weights are those
of one process, up to the order of that sum, for every loss and any number of processes. Networks in
which one row acts on another (batch normalisation in training), or that draw numbers for each row
(dropout), are refused. DistributedDataParallel would average the gradients of separate losses
instead, which is another model where weights or classes are spread unevenly among processes, or one
of them has fewer rows.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from sklip.rows import row_pieces

__all__ = ["Alone", "Together", "current_processes", "data_parallel", "fingerprint"]

# Rows act on each other, or the numbers that are drawn depend on how many rows there are.
_NOT_BY_ROW = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)


class Alone:
    """A process that trains by itself."""

    def check_network(self, module: nn.Module) -> None:
        """Refuse nothing."""

    def check_agreement(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Ask nobody."""

    def from_first(self, value: Any) -> Any:
        """Return the value."""
        return value

    def align_(self, module: nn.Module) -> None:
        """Leave the network."""

    def logits(self, infer: Callable[[Tensor], Tensor], X: Tensor) -> Tensor:
        """Return the logits of a batch."""
        return infer(X)

    def add_up_(self, parameters: Iterable[Tensor]) -> None:
        """Leave the gradients, which are those of all rows."""


class Together(Alone):
    """One of the processes of a group, which train one model. See Note [Joint batches].

    Parameters
    ----------
    group : torch.distributed.ProcessGroup
    """

    def __init__(self, group: distributed.ProcessGroup) -> None:
        self._group = group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self._first = distributed.get_global_rank(group, 0)

    def check_network(self, module: nn.Module) -> None:
        """Refuse layers whose outputs depend on which rows a process has."""
        for name, layer in module.named_modules():
            if isinstance(layer, _NOT_BY_ROW):
                raise TypeError(
                    f"data_parallel can't train {type(layer).__name__} (layer {name!r}): its outputs "
                    "would depend on how rows are shared among processes. Take a network without it, "
                    "or fit in one process."
                )

    def check_agreement(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Raise ValueError, in every process, unless all processes have the same facts."""
        mine = dict(facts())
        everyones: list[Any] = [None] * self.size
        distributed.all_gather_object(everyones, mine, group=self._group)
        differ = [name for name in mine if any(each.get(name) != mine[name] for each in everyones)]
        if differ:
            raise ValueError(
                "All processes of data_parallel must fit the same model to the same data, got "
                f"different {', '.join(differ)}; give every process the same X, y, sample_weight and "
                "parameters."
            )

    def from_first(self, value: Any) -> Any:
        """Return the value that the first process has: a tensor, or anything that can be pickled."""
        if isinstance(value, Tensor):
            distributed.broadcast(value, self._first, group=self._group)
            return value
        values = [value]
        distributed.broadcast_object_list(values, self._first, group=self._group)
        return values[0]

    def align_(self, module: nn.Module) -> None:
        """Fill a network with what the first process has: rounding may differ between machines."""
        for value in module.state_dict().values():
            self.from_first(value.data)

    def logits(self, infer: Callable[[Tensor], Tensor], X: Tensor) -> Tensor:
        """Return the logits of a batch, of which this process computes its share."""
        start, stop = (len(X) * rank // self.size for rank in (self.rank, self.rank + 1))
        # Of a batch with fewer rows than processes some have none; they compute one that nobody takes.
        own = infer(X[start:stop] if start < stop else X[:1])
        joint: Tensor = _Gathered.apply(own, start, stop, len(X), self._group)  # type: ignore[no-untyped-call]
        return joint

    def add_up_(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients by their sums over all processes."""
        gradients = [each.grad for each in parameters if each.grad is not None]
        if not gradients:
            return
        total = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(total, group=self._group)
        parts = total.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


class _Gathered(torch.autograd.Function):
    """The logits of all processes' rows, of which this one knows how it came by its own.

    Their shape is (n_samples, n_outputs), or (n_networks, n_samples, n_outputs).
    """

    @staticmethod
    def forward(
        ctx: Any, own: Tensor, start: int, stop: int, n_rows: int, group: distributed.ProcessGroup
    ) -> Tensor:
        ctx.place, ctx.shape = (start, stop), own.shape
        joint = own.new_zeros(*own.shape[:-2], n_rows, own.shape[-1])
        joint[..., start:stop, :] = own[..., : stop - start, :]
        # The others have zeros here, so that the sum is exact.
        distributed.all_reduce(joint, group=group)
        return joint

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (start, stop) = gradients, ctx.place
        own = gradient.new_zeros(ctx.shape)
        own[..., : stop - start, :] = gradient[..., start:stop, :]
        return own, None, None, None, None


_ALONE = Alone()
# A group belongs to the thread that said so: another one's fits must not take part in it.
_of_thread = threading.local()


def current_processes() -> Alone:
    """Return the processes that train together in this thread: this one alone, unless somebody said."""
    found: Alone = getattr(_of_thread, "processes", _ALONE)
    return found


@contextmanager
def data_parallel(group: distributed.ProcessGroup | None = None) -> Iterator[None]:
    """Fits inside are made by all processes of a group, and give each the model that one would get.

    Every process enters with the same X, y, weights and parameters, and calls the same ``fit`` or
    ``partial_fit``; it computes its share of each batch. The loss is that of the whole batch, so all
    processes hold the same weights, and those are the weights of a fit in one process, up to the
    order of sums. The first process draws the seed, and decides where rounding could decide: when to
    stop early, and whether columns are weighted. Predictions, certificates and scores are each
    process's own.

    Outside of the context, and in other threads, fits know nothing of process groups.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, default=None
        None: the default group, which must have been initialised. With the backend "gloo" networks
        may lie on the CPU; for "nccl" each process names its GPU by the estimator's `device`, which
        may differ from process to process, and by ``torch.cuda.set_device``.

    Raises
    ------
    RuntimeError
        If there is no process group.
    ValueError
        On entering, if this process is not in the group; in ``fit``, if data or parameters differ.
    TypeError
        In ``fit``, for networks with batch normalisation or dropout.

    Notes
    -----
    Every process reads all of X. A process that fails alone leaves the others waiting until the group's
    timeout; ``torchrun`` ends them. Callbacks run in every process, and must not stop training in one
    only. What is made once in a step, above all the turn of the orthogonal layers, is made by all:
    large networks gain, and small ones lose what the processes have to say to each other.

    In float64 the weights are those of one process to 1e-13 or so. In float32 training enlarges
    rounding: they differed by up to 1e-2 after twelve steps (``benchmarks/README.md``). Either way
    each model is proven as it is.

    Examples
    --------
    Every process runs this; ``torchrun --nproc-per-node 2 script.py`` starts two on one machine.

    >>> import tempfile
    >>> import numpy as np
    >>> from torch import distributed
    >>> from sklip import LipschitzClassifier
    >>> from sklip.training import data_parallel
    >>> X, y = np.random.default_rng(0).random((40, 2)), np.arange(40) % 2
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     # Below torchrun its first argument is enough.
    ...     distributed.init_process_group(
    ...         "gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1
    ...     )
    ...     with data_parallel():
    ...         clf = LipschitzClassifier(max_epochs=2, random_state=0).fit(X, y)
    ...     distributed.destroy_process_group()
    >>> clf.predict(X).shape
    (40,)
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise RuntimeError(
            "data_parallel needs a process group; call torch.distributed.init_process_group first, in "
            "a script that torchrun starts, say."
        )
    group = distributed.group.WORLD if group is None else group
    assert group is not None, "as one is initialised"
    if distributed.get_rank(group) < 0:
        raise ValueError("data_parallel must be entered by the processes of `group` only.")
    before = current_processes()
    _of_thread.processes = Together(group)
    try:
        yield
    finally:
        _of_thread.processes = before


def fingerprint(array: NDArray[Any] | None) -> str:
    """Return a digest of an array's type, shape and values."""
    if array is None:
        return "None"
    digest = hashlib.blake2b(f"{array.dtype} {array.shape}".encode(), digest_size=16)
    for piece in row_pieces(array):
        digest.update(piece.data)
    return digest.hexdigest()
