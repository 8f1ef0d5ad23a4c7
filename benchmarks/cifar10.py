"""CIFAR-10's training images from an archive of JPEG files; see benchmarks/README.md."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

__all__ = ["load_cifar10"]


def load_cifar10(path: str, n_held_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images and classes, and those of the last images, held out.

    Parameters
    ----------
    path : str
        An .npz file with `jpeg` (all files, one after another), `lengths` (bytes of each) and `y`.
    n_held_out : int

    Returns
    -------
    X_train, y_train, X_held_out, y_held_out : ndarray
        Images of shape (n, 3, 32, 32) in float32, from 0 to 1.
    """
    with np.load(path) as archive:
        jpeg, lengths, y = archive["jpeg"], archive["lengths"], archive["y"]
    ends = lengths.cumsum(dtype=np.int64)
    files = (jpeg[end - n : end].tobytes() for end, n in zip(ends, lengths, strict=True))
    X = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    X = X.transpose(0, 3, 1, 2).astype(np.float32) / 255
    return X[:-n_held_out], y[:-n_held_out], X[-n_held_out:], y[-n_held_out:]
