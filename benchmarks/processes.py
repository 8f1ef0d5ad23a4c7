"""One model trained by one process and by two: losses of the epochs, weights, seconds.

Beside it what rounding alone does: one process, each pixel moved by one unit in the last place.

    python benchmarks/processes.py [--rows 5000] [--epochs 3]

MNIST, defaults, on the CPU with one thread a process; the two meet by gloo.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import fetch_openml
from torch import distributed, multiprocessing

from sklip import LipschitzClassifier
from sklip.training import data_parallel

N_NUDGES = 3


def fit(
    data: str, epochs: int, loss: str, dtype: str, nudge: int | None = None
) -> tuple[LipschitzClassifier, float]:
    """Return a classifier of the images in a file, and the seconds that it took.

    With a seed in `nudge` each pixel moves to a number next to it, up or down by chance.
    """
    with np.load(data) as arrays:
        X, y = arrays["X"].astype(dtype), arrays["y"]
    if nudge is not None:
        ends = np.random.default_rng(nudge).choice(np.array([0, 2], dtype), size=X.shape)
        X = np.where(X > 0, np.nextafter(X, ends), X)
    clf = LipschitzClassifier(loss, max_epochs=epochs, dtype=dtype, device="cpu", random_state=0)
    start = time.perf_counter()
    clf.fit(X, y)
    return clf, time.perf_counter() - start


def one_of_two(rank: int, folder: str, task: tuple[str, int, str, str]) -> None:
    """Fit as one of two processes; the first stores the model."""
    torch.set_num_threads(1)
    place = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    with data_parallel():
        clf, seconds = fit(*task)
    if rank == 0:
        torch.save((weights(clf), losses(clf), seconds), Path(folder, "model"))
    distributed.destroy_process_group()


def weights(clf: LipschitzClassifier) -> np.ndarray:
    """Return all weights of the network that predicts."""
    values = clf.to_torch().state_dict().values()
    return np.concatenate([value.double().numpy().ravel() for value in values])


def losses(clf: LipschitzClassifier) -> list[float]:
    """Return the training loss of each epoch."""
    return [row["train_loss"] for row in clf.history_]


def main() -> None:
    """Train both ways, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| loss | precision | loss of each epoch: one | two | weights differ by | by last places "
        "of pixels | seconds: one | two |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    X, y = fetch_openml("mnist_784", version=1, as_frame=False, return_X_y=True)
    settings = itertools.product(("tau_cross_entropy", "hkr"), ("float64", "float32"))
    for loss, dtype in settings:
        with tempfile.TemporaryDirectory() as folder:
            data = str(Path(folder, "data.npz"))
            images = (X[: arguments.rows] / 255).reshape(-1, 28, 28)
            np.savez(data, X=images, y=y[: arguments.rows].astype(int))
            task = (data, arguments.epochs, loss, dtype)
            alone, seconds = fit(*task)
            nudged = [weights(fit(*task, nudge)[0]) for nudge in range(N_NUDGES)]
            multiprocessing.spawn(one_of_two, args=(folder, task), nprocs=2)
            together = torch.load(Path(folder, "model"), weights_only=False)
        curves = (" ".join(f"{x:.6f}" for x in curve) for curve in (losses(alone), together[1]))
        difference = np.abs(weights(alone) - together[0]).max()
        by_rounding = (f"{np.abs(weights(alone) - each).max():.0e}" for each in nudged)
        print(
            f"| {loss} | {dtype} | {' | '.join(curves)} | {difference:.1e} | {', '.join(by_rounding)} "
            f"| {seconds:.1f} | {together[2]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
