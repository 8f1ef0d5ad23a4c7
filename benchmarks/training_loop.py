"""Time of a whole fit: sklip against skorch's NeuralNetClassifier on the same network.

Both train the same Lipschitz network on the same rows with the same loss, optimiser, batch size and
number of epochs, interleaved in one process; skorch uses its default Dataset and DataLoader. sklip's
time includes the checks of X and y, export and the proof of the bounds. Prints medians, and the ratio.

    python benchmarks/training_loop.py --repeats 5
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback

from sklip import LipschitzClassifier
from sklip.layers import project_gradients_, retract_
from sklip.losses import TauCrossEntropyLoss
from sklip.networks import lipschitz_mlp, tutorial_cnn

CASES: dict[str, tuple[Callable[..., torch.nn.Module], tuple[int, ...], int, int]] = {
    "digits, dense 128-128": (lipschitz_mlp, (64,), 1_797, 20),
    "MNIST size, dense 128-128": (lipschitz_mlp, (784,), 20_000, 3),
    "MNIST size, tutorial network": (tutorial_cnn, (1, 28, 28), 60_000, 1),
}


class KeepOrthogonal(Callback):  # type: ignore[misc]
    """What sklip's loop does around the optimiser's step."""

    def on_grad_computed(self, net: NeuralNetClassifier, **kwargs: object) -> None:
        """Project the gradients."""
        project_gradients_(net.module_)

    def on_batch_end(self, net: NeuralNetClassifier, **kwargs: object) -> None:
        """Retract the weights."""
        retract_(net.module_)


def fit_sklip(case: str, X: np.ndarray, y: np.ndarray, device: str) -> None:
    """Fit a LipschitzClassifier."""
    architecture, _, _, epochs = CASES[case]
    LipschitzClassifier(
        architecture=architecture,
        max_epochs=epochs,
        learning_rate_schedule="constant",
        dtype="float32",
        device=device,
        random_state=0,
    ).fit(X, y)


def fit_skorch(case: str, X: np.ndarray, y: np.ndarray, device: str) -> None:
    """Fit skorch's classifier with its default loop."""
    architecture, shape, _, epochs = CASES[case]
    NeuralNetClassifier(
        architecture(shape, 10),
        criterion=TauCrossEntropyLoss(3.0),
        optimizer=torch.optim.Adam,
        optimizer__fused=True,
        lr=2e-3,
        batch_size=256,
        max_epochs=epochs,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=[KeepOrthogonal()],
        device=device,
        verbose=0,
    ).fit(X, y)


def main() -> None:
    """Run the cases and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    name = platform.processor() or platform.machine()
    if arguments.device != "cpu":
        name = torch.cuda.get_device_name(arguments.device)
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| case | sklip (s) | skorch (s) | sklip / skorch |\n| --- | --- | --- | --- |")
    for case, (_, shape, n_rows, _) in CASES.items():
        rng = np.random.default_rng(0)
        X = rng.random((n_rows, *shape), dtype=np.float32)
        y = rng.integers(0, 10, n_rows)
        seconds: dict[str, list[float]] = {"sklip": [], "skorch": []}
        for repeat in range(arguments.repeats + 1):
            for loop, fit in (("sklip", fit_sklip), ("skorch", fit_skorch)):
                start = time.perf_counter()
                fit(case, X, y, arguments.device)
                if repeat:  # the first round warms up
                    seconds[loop].append(time.perf_counter() - start)
        ratio = statistics.median(
            a / b for a, b in zip(seconds["sklip"], seconds["skorch"], strict=True)
        )
        medians = {loop: statistics.median(values) for loop, values in seconds.items()}
        print(
            f"| {case} | {medians['sklip']:.2f} | {medians['skorch']:.2f} | {ratio:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
