r"""Training data as a value, and batches as slices of whole tensors.

The whole data set is one tensor, on the device if it fits, and a batch is a slice of it: skorch's
default of one indexing call a sample and a collate function costs eight times more. The tensor keeps
the type that it came with, may be a file mapped into memory, and is never copied as a whole in memory;
a batch is converted when it is drawn.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklip.rows import as_tensor, is_mapped, row_pieces
from sklip.training.devices import fits_on

__all__ = ["Batch", "Moments", "Samples", "TrainingData"]


@dataclass(frozen=True)
class Moments:
    """Weighted mean and spread of rows, of which further rows can be added.

    Parameters
    ----------
    weight : float
        Sum of the weights.
    mean : ndarray of shape (n_features,)
    squares : ndarray of shape (n_features,)
        Weighted sum of squared distances from the mean.

    References
    ----------
    Chan, Golub, LeVeque (1979), Updating formulae and a pairwise algorithm for computing sample
    variances.
    """

    weight: float
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    def __add__(self, other: Moments) -> Moments:
        weight = self.weight + other.weight
        if other.weight == 0 or self.weight == 0:
            return self if other.weight == 0 else other
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.weight / weight)
        between = np.square(apart) * (self.weight * (other.weight / weight))
        return Moments(weight, mean, self.squares + other.squares + between)

    @property
    def deviations(self) -> NDArray[np.float64]:
        """Standard deviations."""
        deviations: NDArray[np.float64] = np.sqrt(self.squares / self.weight)
        return deviations


@dataclass(frozen=True)
class TrainingData:
    """What was read and checked: rows, targets and weights, and what they say of the network.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n_features) or (n_rows, *input_shape)
        Of any type, images in whatever order of memory; it may be a file mapped into memory.
    targets : ndarray of shape (n_rows,)
        Class codes, or numbers.
    sample_weight : ndarray of shape (n_rows,), or None
        At least 0; None: all one.
    classes : ndarray, or None
        Labels that the codes stand for.
    input_shape : tuple of int
        Shape in which the network sees a row.
    dtype : str
        Precision of the network.
    """

    rows: NDArray[Any]
    targets: NDArray[Any]
    sample_weight: NDArray[np.float64] | None
    classes: NDArray[Any] | None
    input_shape: tuple[int, ...]
    dtype: str

    @functools.cached_property
    def moments(self) -> Moments:
        """Weighted mean and spread of the rows; those of weight 0 don't count."""
        n_features, start = math.prod(self.rows.shape[1:]), 0
        total = Moments(0.0, np.zeros(n_features), np.zeros(n_features))
        with np.errstate(over="ignore", invalid="ignore"):
            for piece in row_pieces(self.rows):
                weight = np.ones(len(piece))
                if self.sample_weight is not None:
                    weight = self.sample_weight[start : start + len(piece)]
                start += len(piece)
                if weight.any():
                    # Less a row that counts, so that a column that never changes has exactly no spread.
                    first = piece[weight.argmax()].astype(np.float64)
                    values = np.where(weight[:, None] > 0, piece - first, 0.0)
                    mean = weight @ values / weight.sum()
                    squares = weight @ np.square(values - mean)
                    total += Moments(float(weight.sum()), first + mean, squares)
        return total

    def samples(self, device: str) -> Samples:
        """Return the rows of positive weight, on a device if they fit; inputs are not copied there."""
        X, dtype, weight = as_tensor(self.rows).view(-1, *self.input_shape), self.dtype, None
        if self.sample_weight is not None:
            # Only ratios count, and the largest weight must not be lost to the network's precision.
            weight = (self.sample_weight / self.sample_weight.max()).astype(dtype)
            # The reciprocal of a subnormal number may be infinite.
            weight[weight < np.finfo(dtype).tiny] = 0
        resident = fits_on(device, X)
        samples = Samples(
            X.to(device) if resident else X,
            torch.from_numpy(self.targets).to(device),
            None if weight is None else torch.from_numpy(weight).to(device),
            getattr(torch, dtype),
            ahead=not resident or is_mapped(self.rows),
        )
        if weight is None or (weight > 0).all():
            return samples
        # A row of weight zero is no row: it must not take a place in a batch.
        return samples.subset(torch.from_numpy(np.flatnonzero(weight > 0)))


class Batch(tuple[Tensor, Tensor]):
    """The pair (X, y) that skorch's callbacks expect, carrying the samples' weights beside it."""

    sample_weight: Tensor | None

    @classmethod
    def of(cls, X: Tensor, y: Tensor, sample_weight: Tensor | None) -> Batch:
        """Return the pair with its weights."""
        batch = cls((X, y))
        batch.sample_weight = sample_weight
        return batch


@dataclass(frozen=True)
class Samples:
    """Samples: inputs of any type, and on the training device targets and weights (None: all one).

    Parameters
    ----------
    X : Tensor of shape (n_rows, ...)
    y : Tensor of shape (n_samples,)
    sample_weight : Tensor of shape (n_samples,), or None
    dtype : torch.dtype
        Of the inputs in a batch.
    members : Tensor of shape (n_samples,), default=None
        Row of X of each sample, beside y; None: all rows in order.
    ahead : bool, default=False
        Whether to draw each batch while the one before is in use, for inputs that have to be fetched.
    """

    X: Tensor
    y: Tensor
    sample_weight: Tensor | None
    dtype: torch.dtype
    members: Tensor | None = None
    ahead: bool = False

    def __len__(self) -> int:
        return len(self.y)

    def subset(self, members: Tensor) -> Samples:
        """Return some of the samples; inputs are not copied."""
        members = members.to(self.y.device)
        return Samples(
            self.X,
            self.y[members],
            None if self.sample_weight is None else self.sample_weight[members],
            self.dtype,
            members if self.members is None else self.members[members],
            self.ahead,
        )

    def rows(self) -> NDArray[Any]:
        """Return the inputs as flat rows in the caller's own type."""
        X = self.X if self.members is None else self.X[self.members.to(self.X.device)]
        rows: NDArray[Any] = X.reshape(len(X), -1).cpu().numpy()
        return rows

    def batches(self, batch_size: int, generator: torch.Generator | None) -> Iterator[Batch]:
        """Yield batches, in random order if a generator is given."""
        n_samples = len(self)
        draws: Iterator[slice | Tensor]
        if generator is None or n_samples <= batch_size:
            # One full batch keeps its order: equal sums, whatever the generator's state.
            starts = range(0, n_samples, batch_size)
            draws = (slice(start, start + batch_size) for start in starts)
        else:
            order = torch.randperm(n_samples, generator=generator).to(self.y.device)
            draws = iter(order.split(batch_size))
        return _one_ahead(self._batch, draws) if self.ahead else map(self._batch, draws)

    def _batch(self, draw: slice | Tensor) -> Batch:
        rows = draw if self.members is None else self.members[draw]
        if isinstance(rows, Tensor):
            rows = rows.to(self.X.device)
        # Gathered in the caller's type, then converted: that reads the least. Always a copy, since a
        # layer that works in place must not reach the caller's X.
        X = self.X[rows].to(self.y.device, self.dtype, copy=isinstance(rows, slice)).contiguous()
        weight = None if self.sample_weight is None else self.sample_weight[draw]
        return Batch.of(X, self.y[draw], weight)


def _one_ahead(
    make: Callable[[slice | Tensor], Batch], draws: Iterator[slice | Tensor]
) -> Iterator[Batch]:
    """Yield ``make(draw)`` for each draw, made by another thread while the one before is in use."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        pending = [reader.submit(make, draw) for draw in itertools.islice(draws, 2)]
        while pending:
            batch = pending.pop(0).result()
            yield batch
            pending += [reader.submit(make, draw) for draw in itertools.islice(draws, 1)]
