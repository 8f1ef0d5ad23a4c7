r"""Random changes of training images, a batch at a time on the device.

Each is a callable ``(images, generator) -> images`` on a tensor of shape (n, channels, height, width);
for each row it draws a change of its own from `generator`, a CPU generator. Augmentation changes what a
network is trained on, never what its certificates mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["RandomFlip", "RandomShift"]


@dataclass(frozen=True)
class RandomShift:
    """Moves each image by up to `pixels` along both axes, zeros coming in; also called random crop.

    Parameters
    ----------
    pixels : int
        Largest shift, at least 1.

    Examples
    --------
    >>> import torch
    >>> from sklip.training import RandomShift
    >>> images = torch.ones(2, 1, 8, 8)
    >>> RandomShift(2)(images, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 8, 8])
    """

    pixels: int

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, Integral) or self.pixels < 1:
            raise ValueError(f"pixels must be an integer of at least 1, got {self.pixels!r}.")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the shifted images."""
        n_rows, _, height, width = images.shape
        padded = functional.pad(images, (self.pixels,) * 4)
        draws = torch.randint(2 * self.pixels + 1, (2, n_rows, 1), generator=generator)
        tops, lefts = draws.to(images.device).squeeze(-1)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        # Whole windows are several times as fast to gather as single pixels.
        return windows[torch.arange(n_rows, device=images.device), :, tops, lefts]


@dataclass(frozen=True)
class RandomFlip:
    """Mirrors each image left to right with probability one half.

    Examples
    --------
    >>> import torch
    >>> from sklip.training import RandomFlip
    >>> RandomFlip()(torch.ones(2, 1, 8, 8), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images, some of them mirrored."""
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)
