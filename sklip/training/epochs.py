"""One pass over the data: its batches, what is summed up on the way, and the memory it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sklip.losses.reductions import normalized_margins
from sklip.training.data import Batch, Samples

__all__ = ["Epoch", "batch_sums", "keep_freed_memory"]

# Just below the size from which glibc maps every block anew.
_LARGEST_KEPT_BLOCK = 2**25 - 2**16


@dataclass(frozen=True)
class Epoch:
    """What skorch calls an iterator: a fresh pass over the data at each ``iter``."""

    data: Samples
    batch_size: int
    generator: torch.Generator | None

    def __iter__(self) -> Iterator[Batch]:
        return self.data.batches(self.batch_size, self.generator)

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)


def batch_sums(loss: Tensor, logits: Tensor, batch: Batch, with_metrics: bool) -> Tensor:
    """(weight, weight * loss[, weight * right, weight * margin]), without leaving the device."""
    weight = batch.sample_weight
    total = torch.full_like(loss, len(logits)) if weight is None else weight.sum()
    if not with_metrics:
        return torch.stack((total, total * loss))
    margins = normalized_margins(logits, batch[1])
    right = (margins > 0).to(loss.dtype)
    margins = margins.clamp(min=0)
    if weight is not None:
        right, margins = right * weight, margins * weight
    return torch.stack((total, total * loss, right.sum(), margins.sum()))


def keep_freed_memory() -> None:
    """Have the allocator keep the memory of a step for the next one.

    glibc gives freed memory back to the system once twice the largest block lies free that it has seen
    freed, and takes it anew page by page: a million page faults in the first 15,000 MNIST images, a
    third of the time. Having seen a block of 32 MB, it keeps up to 64 MB.
    """
    torch.empty(_LARGEST_KEPT_BLOCK, dtype=torch.uint8)
