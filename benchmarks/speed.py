"""What the constraint, skorch and scikit-learn cost: steps, fits, predictions, side by side.

All that is compared runs in one process, in turns (A B, B A), after a warm-up; printed are medians and
ratios of medians of one run. All multiply in float32, fits as well. Steps are timed four at a time, in
which the default solver turns once; on a GPU as one CUDA graph, but for deel-torchlip, which reads
values back from the device. The unconstrained twin of a network has the same shapes and strides, free
weights, ReLU for GroupSort and max pooling for L2 pooling.

    python benchmarks/speed.py --json results.json            # everything, on the CPU
    python benchmarks/speed.py --device cuda --parts step fit  # on a GPU
    pip install --no-deps deel-torchlip==1.0.5                 # adds the rows of deel-torchlip
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from interleaved import Timed, median_seconds
from memory import peak_during
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn

from sklip import LipschitzClassifier
from sklip.layers import Sequential, SpectralLinear, keep_orthogonal
from sklip.losses import TauCrossEntropyLoss
from sklip.networks import lipschitz_cnn, lipschitz_mlp, tutorial_cnn
from sklip.training import StiefelMuon
from sklip.training.cuda_graphs import CudaRecorder
from sklip.training.data import Samples
from sklip.training.epochs import keep_freed_memory

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
        *(nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 256), nn.ReLU()),
        *(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)),
    )


def one_layer(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """Hardly anything to compute."""
    return Sequential(SpectralLinear(*input_shape, n_outputs))


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


Figures = dict[str, float]


def optimizer_of(network: nn.Module, solver: str) -> torch.optim.Optimizer:
    """Return the optimiser that sklip's solver of that name is, or plain Adam for "free"."""
    if solver == "muon":
        return StiefelMuon(network)
    on_cuda = next(network.parameters()).is_cuda
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, fused=True, capturable=on_cuda)
    if solver == "adam":
        keep_orthogonal(optimizer, network)
    return optimizer


def four_steps(network: nn.Module, X: torch.Tensor, y: torch.Tensor, solver: str) -> Timed:
    """Four steps of a raw loop: forward, backward, optimiser."""
    network.to(X.device).train()
    optimizer, criterion = optimizer_of(network, solver), TauCrossEntropyLoss(3.0)

    def steps() -> tuple[torch.Tensor, ...]:
        for _ in range(4):
            optimizer.zero_grad(set_to_none=True)
            criterion(network(X), y).backward()
            optimizer.step()
        return ()

    if not X.is_cuda or solver == "deel-torchlip":
        return steps
    recorder = CudaRecorder(str(X.device))
    for _ in range(2):
        recorder.warm_up(steps)
    return recorder.record(steps)[0]


def measure_steps(arguments: argparse.Namespace) -> Figures:
    """Milliseconds of a training step, batch 256."""
    torch.manual_seed(0)
    device = arguments.device
    X = torch.rand(BATCH, *SHAPE, device=device)
    y = torch.randint(0, 10, (BATCH,), device=device)
    networks = {"tutorial": (tutorial_cnn, tutorial_twin), "default": (lipschitz_cnn, default_twin)}
    steps = {}
    for name, (build, twin) in networks.items():
        for solver in ("muon", "adam"):
            steps[f"{name} network: {solver}"] = four_steps(build(SHAPE, 10), X, y, solver)
        steps[f"{name} network: twin"] = four_steps(twin(), X, y, "free")
    deel = deel_tutorial()
    if deel is not None:
        steps["tutorial network: deel-torchlip"] = four_steps(deel, X, y, "deel-torchlip")
    # As in a fit: without it, most of what is measured is how the system hands out memory.
    keep_freed_memory()
    return {name: 1e3 * s / 4 for name, s in median_seconds(steps, arguments.steps).items()}


def raw_fit(
    network: nn.Module, X: np.ndarray, y: np.ndarray, epochs: int, device: str, solver: str = "muon"
) -> None:
    """Train as the estimator does, with nothing around the loop."""
    network.to(device).train()
    data = Samples(torch.from_numpy(X).to(device), torch.from_numpy(y).to(device), None, torch.float32)
    optimizer = optimizer_of(network, solver)
    criterion, generator = TauCrossEntropyLoss(3.0), torch.Generator().manual_seed(0)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rates, total_steps=epochs * -(-len(X) // BATCH) + 1, cycle_momentum=False
    )
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


class FirstStep(Callback):  # type: ignore[misc]
    """Notes when the first step is done."""

    moments: ClassVar[list[float]] = []

    def on_batch_end(self, net: NeuralNetClassifier, **kwargs: object) -> None:
        """Note the time, once."""
        if not self.moments:
            self.moments.append(time.perf_counter())


def skorch_fit(network: nn.Module, X: np.ndarray, y: np.ndarray, epochs: int, device: str) -> None:
    """Fit skorch's own classifier with its default iterators."""
    NeuralNetClassifier(
        network,
        criterion=TauCrossEntropyLoss(3.0),
        optimizer=lambda params, lr: StiefelMuon(network),
        batch_size=BATCH,
        max_epochs=epochs,
        iterator_train__shuffle=True,
        train_split=None,
        device=device,
        verbose=0,
    ).fit(X, y)


def measure_fits(arguments: argparse.Namespace) -> Figures:
    """Seconds of whole fits, everything included, peak memory, and seconds to the first step."""
    rng, device, n_rows, epochs = (
        np.random.default_rng(0),
        arguments.device,
        arguments.rows,
        arguments.epochs,
    )
    X, y = rng.random((n_rows, *SHAPE), dtype=np.float32), rng.integers(0, 10, n_rows)
    digits, labels = load_digits(return_X_y=True)
    digits = (digits / 16).astype(np.float32)

    def fit(n: int = n_rows, **parameters: Any) -> None:
        parameters = {"input_shape": SHAPE, "max_epochs": epochs, "dtype": "float32", **parameters}
        LipschitzClassifier(device=device, random_state=0, **parameters).fit(X[:n], y[:n])

    case = f"{n_rows} rows, {epochs} epochs"
    large = {
        f"tutorial network, {case}: fit": lambda: fit(architecture=tutorial_cnn),
        f"tutorial network, {case}: raw loop": lambda: raw_fit(
            tutorial_cnn(SHAPE, 10), X, y, epochs, device
        ),
        f"tutorial network, {case}: skorch": lambda: skorch_fit(
            tutorial_cnn(SHAPE, 10), X, y, epochs, device
        ),
        f"tutorial network, {case}: twin, raw loop": lambda: raw_fit(
            tutorial_twin(), X, y, epochs, device, "free"
        ),
        f"default network, {case}: fit": fit,
        f"default network, {case}: raw loop": lambda: raw_fit(
            lipschitz_cnn(SHAPE, 10), X, y, epochs, device
        ),
        f"default network, {case}: twin, raw loop": lambda: raw_fit(
            default_twin(), X, y, epochs, device, "free"
        ),
        f"default network, {case}, a tenth of the rows: fit": lambda: fit(n_rows // 10),
    }
    deel = deel_tutorial()
    if deel is not None:
        large[f"tutorial network, {case}: deel-torchlip, raw loop"] = lambda: raw_fit(
            deel_tutorial() or deel, X, y, epochs, device, "free"
        )
    large = {name: run for name, run in large.items() if name.split()[0] in arguments.networks}
    common: dict[str, Any] = {"dtype": "float32", "device": device, "random_state": 0}
    table = {"max_epochs": 20, **common}
    small = {
        "digits, 20 epochs, early_stopping: fit": lambda: LipschitzClassifier(
            early_stopping=True, n_iter_no_change=100, **table
        ).fit(digits, labels),
        "digits, 20 epochs: fit": lambda: LipschitzClassifier(**table).fit(digits, labels),
        "digits, 20 epochs: raw loop": lambda: raw_fit(
            lipschitz_mlp((64,), 10), digits, labels, 20, device
        ),
        "digits, 20 epochs: skorch": lambda: skorch_fit(
            lipschitz_mlp((64,), 10), digits, labels, 20, device
        ),
    }
    # What fit costs beside the network's own work: in each step, seen where there is hardly any such
    # work, and once, for the export and the proof.
    narrow = np.ascontiguousarray(X.reshape(n_rows, -1)[:, :4])
    steps = epochs * -(-n_rows // BATCH)
    added = {
        "one layer: fit": lambda: LipschitzClassifier(
            architecture=one_layer, max_epochs=epochs, **common
        ).fit(narrow, y),
        "one layer: raw loop": lambda: raw_fit(one_layer((4,), 10), narrow, y, epochs, device),
        "tutorial network, one batch, one epoch: fit": lambda: fit(
            BATCH, architecture=tutorial_cnn, max_epochs=1
        ),
        "default network, one batch, one epoch: fit": lambda: fit(BATCH, max_epochs=1),
    }
    if arguments.peak:
        return {"bytes": peak_during(large[arguments.peak])[0]}
    figures = median_seconds(large, arguments.fits)
    figures |= median_seconds({**small, **added}, 5 * arguments.fits)
    a_step = (figures.pop("one layer: fit") - figures.pop("one layer: raw loop")) / steps
    figures["microseconds that fit adds to a step"] = 1e6 * a_step
    for name in large:
        # In a process of its own: memory once taken is seldom given back.
        command = [sys.executable, *sys.argv, "--parts", "fit", "--peak", name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        figures[f"{name}, MB at peak"] = float(output.split()[-1]) / 1e6
    start = time.perf_counter()
    FirstStep.moments.clear()
    fit(max_epochs=1, callbacks=[FirstStep()])
    figures[f"default network, {n_rows} rows: to the first step"] = FirstStep.moments[0] - start
    return figures


def measure_inference(arguments: argparse.Namespace) -> Figures:
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
        for key, seconds in median_seconds(functions, arguments.steps).items():
            milliseconds[key] = 1e3 * seconds * 1_000 / len(X)
    return milliseconds


PARTS: dict[str, tuple[str, Callable[[argparse.Namespace], Figures]]] = {
    "step": ("ms a training step, batch 256", measure_steps),
    "fit": ("seconds a fit; MB", measure_fits),
    "inference": ("ms a thousand rows", measure_inference),
}


def ratios(figures: Figures, case: str, tenth: str) -> Figures:
    """Ratios of figures of one run."""
    pairs = [
        *(
            (f"{name} network: {solver}", f"{name} network: twin")
            for solver in ("muon", "adam")
            for name in ("tutorial", "default")
        ),
        *(
            (f"{name} network: muon", "tutorial network: deel-torchlip")
            for name in ("tutorial", "default")
        ),
        ("digits, 20 epochs: fit", "digits, 20 epochs: raw loop"),
        ("digits, 20 epochs, early_stopping: fit", "digits, 20 epochs: raw loop"),
        ("digits, 20 epochs: fit", "digits, 20 epochs: skorch"),
        *(
            (f"{name} network, {case}: fit", f"{name} network, {case}: {other}")
            for name in ("tutorial", "default")
            for other in ("raw loop", "skorch", "twin, raw loop", "deel-torchlip, raw loop")
        ),
        *(
            (f"{name} network: {what}", f"{name} network: {other}")
            for name in ("tutorial", "default")
            for what, other in (
                ("predict", "exported, torch's own forward"),
                ("certificates_", "predict"),
            )
        ),
    ]
    found = {f"{a} / {b}": figures[a] / figures[b] for a, b in pairs if {a, b} <= {*figures}}
    if tenth in figures:
        found["seconds a row, all rows / a tenth"] = (
            figures[f"default network, {case}: fit"] / figures[tenth] / 10
        )
    return found


def main() -> None:
    """Measure the parts and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=30, help="repeats of steps and predictions")
    parser.add_argument("--fits", type=int, default=3, help="repeats of fits")
    parser.add_argument("--rows", type=int, default=60_000, help="rows of the large fits")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of the large fits")
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=("tutorial", "default"),
        default=["tutorial", "default"],
        help="networks of the large fits",
    )
    parser.add_argument("--peak", help="print the bytes at the peak of this one fit instead")
    parser.add_argument("--json", help="file to write the figures to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(measure_fits(arguments)["bytes"])
        return
    machine = platform.processor() or platform.machine()
    if arguments.device != "cpu":
        machine = torch.cuda.get_device_name(arguments.device)
    machine += f", {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(machine, "\n")
    figures: Figures = {}
    for part in arguments.parts:
        unit, measure = PARTS[part]
        measured = measure(arguments)
        figures |= measured
        print(f"| {part} | {unit} |\n| --- | --- |")
        print("\n".join(f"| {name} | {value:.3g} |" for name, value in measured.items()), "\n")
    case = f"{arguments.rows} rows, {arguments.epochs} epochs"
    found = ratios(figures, case, f"default network, {case}, a tenth of the rows: fit")
    print("| ratio | value |\n| --- | --- |")
    print("\n".join(f"| {name} | {value:.2f} |" for name, value in found.items()))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"machine": machine, "figures": figures, "ratios": found}, file, indent=1)


if __name__ == "__main__":
    main()
