"""Peak memory of fit and predict on a file of images larger than that.

X is an np.memmap of uint8 images in a sparse file, which takes no room on disk; most images are black,
as only memory is of interest. Prints the peak of anonymous memory (RssAnon of /proc/self/status: pages
of the file don't count) while fitting, predicting and certifying.

    python benchmarks/memory.py --gigabytes 4
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sklip import LipschitzClassifier

SIDE = 64


def anonymous_bytes() -> int:
    """Anonymous memory of this process."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])


def peak_during(function: Callable[[], object]) -> tuple[int, float]:
    """Peak of anonymous memory while a function runs, and its seconds."""
    peak, done = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak.append(anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return max(peak), seconds


def main() -> None:
    """Fit and predict on the file, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--architecture", choices=["mlp", "cnn"], default="mlp")
    parser.add_argument("--batch-size", type=int, default=4096)
    arguments = parser.parse_args()
    n_rows = int(arguments.gigabytes * 1e9 / SIDE**2)
    with tempfile.TemporaryDirectory() as folder:
        X = np.memmap(Path(folder) / "images", np.uint8, "w+", shape=(n_rows, 1, SIDE, SIDE))
        X[: min(n_rows, 100_000), 0, 0, :8] = np.random.default_rng(0).integers(
            0, 256, (min(n_rows, 100_000), 8)
        )
        y = (np.arange(n_rows) % 3).astype(np.int64)
        clf = LipschitzClassifier(
            architecture=arguments.architecture,
            hidden_layer_sizes=(16,),
            conv_channels=(2, 4),
            max_epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            random_state=0,
        )
        print(
            f"{n_rows} images of {SIDE} x {SIDE}, {X.nbytes / 1e9:.1f} GB, {arguments.architecture}\n"
        )
        print(f"before: {anonymous_bytes() / 1e9:.2f} GB\n")
        print("| call | peak of anonymous memory (GB) | seconds |\n| --- | --- | --- |")
        calls: dict[str, Callable[[], object]] = {
            "fit": lambda: clf.fit(X, y),
            "predict": lambda: clf.predict(X),
            "certificates_": lambda: clf.certificates_(X),
        }
        for name, call in calls.items():
            peak, seconds = peak_during(call)
            print(f"| {name} | {peak / 1e9:.2f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
