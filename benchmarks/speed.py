"""What the constraint, skorch and scikit-learn cost: steps, fits, predictions, side by side.

All that is compared runs in one process, in turns (A B A B), after a warm-up; printed are medians and
ratios of medians of one run. The unconstrained twin of a network has the same shapes and strides, free
weights, ReLU in place of GroupSort and max pooling in place of L2 pooling.

    python benchmarks/speed.py --json results.json            # everything, on the CPU
    python benchmarks/speed.py --device cuda --parts step fit  # on a GPU
    pip install --no-deps deel-torchlip==1.0.5                 # adds the rows of deel-torchlip
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from sklip import LipschitzClassifier
from sklip.layers import keep_orthogonal
from sklip.losses import TauCrossEntropyLoss
from sklip.networks import lipschitz_cnn, lipschitz_mlp, tutorial_cnn
from sklip.training import TensorData

SHAPE = (1, 28, 28)
BATCH = 256


def tutorial_twin() -> nn.Module:
    """Unconstrained network of the tutorial's shapes."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, 10, bias=False)),
    )


def default_twin() -> nn.Module:
    """Unconstrained network of the default shapes."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 256), nn.ReLU()),
        *(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)),
    )


def deel_tutorial() -> nn.Module | None:
    """deel-torchlip's network of the tutorial, if that package is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from deel import torchlip
    except ImportError:
        return None
    return torchlip.Sequential(
        *(torchlip.SpectralConv2d(1, 16, 3, padding="same"), torchlip.GroupSort2()),
        *(torchlip.ScaledL2NormPool2d(2), torchlip.SpectralConv2d(16, 32, 3, padding="same")),
        *(torchlip.GroupSort2(), torchlip.ScaledL2NormPool2d(2), nn.Flatten()),
        *(torchlip.SpectralLinear(1568, 64), torchlip.GroupSort2()),
        torchlip.SpectralLinear(64, 10, bias=False),
    )


def timed(functions: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Return the median seconds of each function, run in turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(record) for name, record in times.items()}


def training_step(
    network: nn.Module, X: torch.Tensor, y: torch.Tensor, *, orthogonal: bool
) -> Callable[[], None]:
    """One step of a raw loop: forward, backward, Adam."""
    network.to(X.device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, fused=True)
    if orthogonal:
        keep_orthogonal(optimizer, network)
    criterion = TauCrossEntropyLoss(3.0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion(network(X), y).backward()
        optimizer.step()

    return step


def measure_steps(arguments: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of a training step, batch 256."""
    torch.manual_seed(0)
    device = arguments.device
    X = torch.rand(BATCH, *SHAPE, device=device)
    y = torch.randint(0, 10, (BATCH,), device=device)
    steps = {
        "tutorial network: sklip": training_step(tutorial_cnn(SHAPE, 10), X, y, orthogonal=True),
        "tutorial network: twin": training_step(tutorial_twin(), X, y, orthogonal=False),
    }
    deel = deel_tutorial()
    if deel is not None:
        steps["tutorial network: deel-torchlip"] = training_step(deel, X, y, orthogonal=False)
    steps["default network: sklip"] = training_step(lipschitz_cnn(SHAPE, 10), X, y, orthogonal=True)
    steps["default network: twin"] = training_step(default_twin(), X, y, orthogonal=False)
    return {name: 1e3 * s for name, s in timed(steps, arguments.steps, device).items()}


def raw_fit(
    build: Callable[[], nn.Module], X: np.ndarray, y: np.ndarray, epochs: int, device: str
) -> None:
    """Train as the estimator does, with nothing around the loop."""
    network = build().to(device).train()
    data = TensorData(
        torch.from_numpy(X).to(device), torch.from_numpy(y).to(device), None, torch.float32
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, fused=True)
    keep_orthogonal(optimizer, network)
    criterion, generator = TauCrossEntropyLoss(3.0), torch.Generator().manual_seed(0)
    n_steps = epochs * -(-len(X) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=n_steps + 1)
    for _ in range(epochs):
        total = torch.zeros((), device=device)
        for batch, labels in data.batches(BATCH, generator):
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(network(batch), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        total.item()


def measure_fits(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of whole fits against a raw loop over the same network."""
    rng, device = np.random.default_rng(0), arguments.device
    n_rows = arguments.rows
    X, y = rng.random((n_rows, *SHAPE), dtype=np.float32), rng.integers(0, 10, n_rows)
    digits, labels = load_digits(return_X_y=True)
    digits = (digits / 16).astype(np.float32)
    image = {"input_shape": SHAPE, "max_epochs": 1, "device": device, "random_state": 0}
    table = {"max_epochs": 20, "dtype": "float32", "device": device, "random_state": 0}
    fits = {
        f"default network, {n_rows} rows, 1 epoch: fit": lambda: LipschitzClassifier(**image).fit(X, y),
        f"default network, {n_rows} rows, 1 epoch: raw loop": lambda: raw_fit(
            lambda: lipschitz_cnn(SHAPE, 10), X, y, 1, device
        ),
        f"default network, {n_rows // 10} rows, 1 epoch: fit": lambda: LipschitzClassifier(**image).fit(
            X[: n_rows // 10], y[: n_rows // 10]
        ),
    }
    seconds = timed(fits, arguments.fits, device)
    small = {
        "digits, 20 epochs, early_stopping: fit": lambda: LipschitzClassifier(
            early_stopping=True, n_iter_no_change=100, **table
        ).fit(digits, labels),
        "digits, 20 epochs: fit": lambda: LipschitzClassifier(**table).fit(digits, labels),
        "digits, 20 epochs: raw loop": lambda: raw_fit(
            lambda: lipschitz_mlp((64,), 10), digits, labels, 20, device
        ),
    }
    return {**seconds, **timed(small, 3 * arguments.fits, device)}


def measure_inference(arguments: argparse.Namespace) -> dict[str, float]:
    """Milliseconds a thousand rows: predict and certificates_ against the exported network."""
    rng, device = np.random.default_rng(0), arguments.device
    X, y = rng.random((2_048, *SHAPE), dtype=np.float32), rng.integers(0, 10, 2_048)
    milliseconds = {}
    for name, architecture in (("tutorial", tutorial_cnn), ("default", "auto")):
        clf = LipschitzClassifier(
            architecture=architecture, max_epochs=1, device=device, random_state=0
        ).fit(X, y)
        network, rows = clf.to_torch(), torch.from_numpy(X).to(device)

        @torch.no_grad()
        def own_forward(network: nn.Module = network, rows: torch.Tensor = rows) -> list[torch.Tensor]:
            """The exported network as torch runs it, in batches that fit the cache."""
            return [network(part) for part in rows.split(128)]

        functions = {
            f"{name} network: exported, torch's own forward": own_forward,
            f"{name} network: predict": lambda clf=clf: clf.predict(X),
            f"{name} network: certificates_": lambda clf=clf: clf.certificates_(X),
        }
        for key, seconds in timed(functions, arguments.steps, device).items():
            milliseconds[key] = 1e3 * seconds * 1_000 / len(X)
    return milliseconds


PARTS: dict[str, tuple[str, Callable[[argparse.Namespace], dict[str, float]]]] = {
    "step": ("ms a training step, batch 256", measure_steps),
    "fit": ("seconds a fit", measure_fits),
    "inference": ("ms a thousand rows", measure_inference),
}
# Numerator, denominator.
RATIOS = [
    ("tutorial network: sklip", "tutorial network: twin"),
    ("tutorial network: sklip", "tutorial network: deel-torchlip"),
    ("default network: sklip", "default network: twin"),
    ("default network: sklip", "tutorial network: deel-torchlip"),
    ("digits, 20 epochs: fit", "digits, 20 epochs: raw loop"),
    ("digits, 20 epochs, early_stopping: fit", "digits, 20 epochs: raw loop"),
    *(
        (f"{name} network: {what}", f"{name} network: {other}")
        for name in ("tutorial", "default")
        for what, other in (
            ("predict", "exported, torch's own forward"),
            ("certificates_", "predict"),
        )
    ),
]


def main() -> None:
    """Measure the parts and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=30, help="repeats of steps and predictions")
    parser.add_argument("--fits", type=int, default=3, help="repeats of fits")
    parser.add_argument("--rows", type=int, default=60_000, help="rows of the large fits")
    parser.add_argument("--json", help="file to write the figures to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = platform.processor() or platform.machine()
    if arguments.device != "cpu":
        machine = torch.cuda.get_device_name(arguments.device)
    machine += f", {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(machine, "\n")
    figures: dict[str, float] = {}
    for part in arguments.parts:
        unit, measure = PARTS[part]
        measured = measure(arguments)
        figures |= measured
        print(f"| {part} | {unit} |\n| --- | --- |")
        print("\n".join(f"| {name} | {value:.3g} |" for name, value in measured.items()), "\n")
    rows = arguments.rows
    fit, raw, few = (
        f"default network, {n} rows, 1 epoch: {what}"
        for n, what in ((rows, "fit"), (rows, "raw loop"), (rows // 10, "fit"))
    )
    ratios = {
        f"{a} / {b}": figures[a] / figures[b] for a, b in [*RATIOS, (fit, raw)] if {a, b} <= {*figures}
    }
    if {fit, few} <= {*figures}:
        ratios[f"seconds a row, {rows} rows / {rows // 10} rows"] = figures[fit] / figures[few] / 10
    print("| ratio | value |\n| --- | --- |")
    print("\n".join(f"| {name} | {value:.2f} |" for name, value in ratios.items()))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"machine": machine, "figures": figures, "ratios": ratios}, file, indent=1)


if __name__ == "__main__":
    main()
