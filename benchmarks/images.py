"""What images of several sizes cost: steps and their parts, memory, the proof, predictions.

Default networks on random images of 3 channels in uint8, each size in a process of its own. Steps are
of 256 images, in turns with those of an unconstrained twin, which has the same shapes and strides, free
weights and ReLU for GroupSort; "network" is forward and backward, "turns" all that the optimiser does.
Products are in bfloat16 where a fit would have them so, of the twin as well.
Medians of processor seconds on as many threads as torch has, which are seconds on one thread.

    OMP_NUM_THREADS=1 python benchmarks/images.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from memory import anonymous_bytes, peak_during
from torch import nn

from sklip import LipschitzClassifier, lipschitz_bound
from sklip.layers import GroupSort2, to_torch
from sklip.losses import TauCrossEntropyLoss
from sklip.networks import lipschitz_cnn
from sklip.training import StiefelMuon
from sklip.training.epochs import keep_freed_memory
from sklip.training.mixed_precision import mixed_precision_pays

BATCH = 256


def twin_of(network: nn.Module) -> nn.Module:
    """Return free layers of the same shapes, with ReLU for GroupSort."""
    layers = (nn.ReLU() if isinstance(layer, GroupSort2) else layer for layer in to_torch(network))
    return nn.Sequential(*layers).requires_grad_()


def milliseconds(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median processor time of functions that are called in turns, after a first round."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(record[1:]) for name, record in times.items()}


def steps_of(side: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a step's parts, of which four at a time are measured: one has all turns."""
    torch.manual_seed(0)
    X, y = torch.rand(BATCH, 3, side, side), torch.randint(0, 10, (BATCH,))
    network, criterion = lipschitz_cnn((3, side, side), 10), TauCrossEntropyLoss(3.0)
    twin = twin_of(network)
    muon, adam = StiefelMuon(network), torch.optim.Adam(twin.parameters(), lr=2e-3, fused=True)

    mixed = mixed_precision_pays(network, "cpu")

    def gradients(module: nn.Module, mixed: bool = mixed) -> None:
        module.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = module(X)
        criterion(logits.float(), y).backward()

    def turns() -> None:
        # A step takes up the gradients that there are; the next finds the same ones.
        for _ in range(4):
            muon.step()

    def twin_steps() -> None:
        for _ in range(4):
            gradients(twin)
            adam.step()

    parts = {
        "network": lambda: gradients(network),
        "in float32": lambda: gradients(network, mixed=False),
        "turns": turns,
        "twin": twin_steps,
    }
    found = milliseconds(parts, repeats)
    return {name: found[name] / (4 if name in ("turns", "twin") else 1) for name in parts}


def print_row(side: int, n_rows: int, repeats: int) -> None:
    """Print what images of one size cost."""
    keep_freed_memory()
    step = steps_of(side, repeats)
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (n_rows, 3, side, side), np.uint8), np.arange(n_rows) % 10
    before = anonymous_bytes()
    clf = LipschitzClassifier(max_epochs=1, random_state=0, device="cpu")
    peak_of_fit = peak_during(lambda: clf.fit(X, y))[0] - before
    before = anonymous_bytes()
    peak_of_radii = peak_during(lambda: clf.certificates_(X))[0] - before
    network, rows = clf.to_torch(), torch.from_numpy(X[:1000] / np.float32(255))
    calls: dict[str, Callable[[], object]] = {
        "own forward": lambda: [network(part) for part in rows.split(128)],
        "predict": lambda: clf.predict(X[:1000]),
        "certificates_": lambda: clf.certificates_(X[:1000]),
        "proof": lambda: lipschitz_bound(network, input_shape=(3, side, side)),
    }
    with torch.no_grad():
        found = milliseconds(calls, max(1, repeats // 4))
    both = step["network"] + step["turns"]
    numbers = [
        *(f"{value:.0f}" for value in (both, *step.values())),
        f"{both / step['twin']:.2f}",
        f"{X.nbytes / 1e6:.0f}",
        *(f"{peak / 1e6:.0f}" for peak in (peak_of_fit, peak_of_radii)),
        *(f"{found[name]:.0f}" for name in ("own forward", "predict", "certificates_")),
        f"{found['proof'] / 1e3:.1f}",
    ]
    parameters = sum(value.numel() for value in network.parameters())
    print(f"| {side} x {side} | {parameters:,} | " + " | ".join(numbers) + " |", flush=True)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 96])
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args()
    columns = [
        *("images", "weights", "step, ms", "network", "in float32", "turns", "twin", "step / twin"),
        *("X, MB", "fit beyond X, MB", "radii beyond X, MB", "a thousand rows, ms: own forward"),
        *("predict", "certificates_", "proof, s"),
    ]
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns), flush=True)
    for side in arguments.sides:
        process = multiprocessing.get_context("spawn").Process(
            target=print_row, args=(side, arguments.rows, arguments.repeats)
        )
        process.start()
        process.join()


if __name__ == "__main__":
    main()
