"""Peak memory of fit and predict on a file of images larger than that.

X is an np.memmap of images in a sparse file, which takes no room on disk; most images are black,
as only memory is of interest. Prints the peak of anonymous memory (RssAnon of /proc/self/status: pages
of the file don't count) while fitting, predicting and certifying.

    python benchmarks/memory.py --gigabytes 4
    python benchmarks/memory.py --gigabytes 4 --channels-last
    python benchmarks/memory.py --gigabytes 4 --dtype float32 --architecture cnn
    python benchmarks/memory.py --rows 10000000
    python benchmarks/memory.py --times 200

With `--rows`, X is a table of so many rows of 4 columns in float32, and the peak is that beyond X and
beyond what is returned. With `--times`, small fits and all that is done with fitted estimators are done
so often in this process, and what they leave behind is counted: memory, objects, open files, threads,
processes, temporary files.
"""

from __future__ import annotations

import argparse
import gc
import io
import multiprocessing
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import joblib
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklip import (
    CertifiedAccuracyDisplay,
    LipschitzClassifier,
    LipschitzClassifierCV,
    certificates,
    certified_accuracy_scorer,
    certified_ranges,
    counterfactual,
    nearest_rival,
    predict_with_radii,
    to_onnx,
)

SIDE = 64


def anonymous_bytes() -> int:
    """Anonymous memory of this process."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])


def peak_during(function: Callable[[], object]) -> tuple[int, float, object]:
    """Peak of anonymous memory while a function runs, its seconds, and what it returns."""
    peak, done = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak.append(anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return max(peak), seconds, result


def calls_on_rows(n_rows: int) -> tuple[int, dict[str, Callable[[], object]]]:
    """Return the bytes of a table, and everything that is asked of it."""
    rng = np.random.default_rng(0)
    X, y = np.empty((n_rows, 4), np.float32), rng.integers(0, 3, n_rows)
    for start in range(0, n_rows, 500_000):
        X[start : start + 500_000] = rng.normal(size=X[start : start + 500_000].shape)
    clf = LipschitzClassifier(max_epochs=3, random_state=0).fit(X[:600], y[:600])
    pipeline = make_pipeline(StandardScaler(), clf).fit(X[:600], y[:600])
    clf = LipschitzClassifier(max_epochs=3, random_state=0).fit(X[:600], y[:600])
    scorer = certified_accuracy_scorer(eps=0.1)
    return X.nbytes, {
        "predict": lambda: clf.predict(X),
        "predict_proba": lambda: clf.predict_proba(X),
        "decision_function": lambda: clf.decision_function(X),
        "certificates_": lambda: clf.certificates_(X),
        "predict_with_radii": lambda: clf.predict_with_radii(X),
        "certified_score": lambda: clf.certified_score(X, y, eps=0.1),
        "certificates(pipeline, X)": lambda: certificates(pipeline, X),
        "predict_with_radii(pipeline, X)": lambda: predict_with_radii(pipeline, X),
        "nearest_rival(pipeline, X)": lambda: nearest_rival(pipeline, X),
        "certified_accuracy_scorer, pipeline": lambda: scorer(pipeline, X, y),
        "certified_ranges(pipeline, X)": lambda: certified_ranges(pipeline, X),
    }


def print_call(n_rows: int, name: str) -> None:
    """Print the row of a table that is about one call."""
    _, calls = calls_on_rows(n_rows)
    before = anonymous_bytes()
    peak, seconds, result = peak_during(calls[name])
    arrays = result if isinstance(result, tuple) else (result,)
    returned = sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
    beyond = (peak - before - returned) / 1e6
    print(f"| {name} | {beyond:.0f} | {returned / 1e6:.0f} | {seconds:.0f} |", flush=True)


def on_rows(n_rows: int) -> None:
    """Ask everything of a table, and print a Markdown table."""
    n_bytes, calls = calls_on_rows(n_rows)
    print(f"{n_rows} rows, {n_bytes / 1e6:.0f} MB\n", flush=True)
    print("| call | beyond X and the result (MB) | result (MB) | seconds |", flush=True)
    print("| --- | --- | --- | --- |", flush=True)
    for name in calls:
        # In a process of its own: what one call has freed would serve the next.
        process = multiprocessing.get_context("spawn").Process(target=print_call, args=(n_rows, name))
        process.start()
        process.join()


def resident_bytes() -> int:
    """Resident memory of this process, and of what it reads of files."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def left_behind() -> dict[str, int]:
    """Return how many of everything that a call could leave behind there are."""
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]
    return {
        "tensors": sum(issubclass(kind, torch.Tensor) for kind in kinds),
        "modules": sum(issubclass(kind, torch.nn.Module) for kind in kinds),
        "objects": len(kinds),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "children": sum(
            len(file.read_text().split()) for file in Path("/proc/self/task").glob("*/children")
        ),
        "temporary files": len(os.listdir(tempfile.gettempdir())),
    }


def many_times(n_times: int) -> None:
    """Do everything so often, and print a Markdown table of what is there more than after a tenth."""
    matplotlib.use("Agg")
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 3)), np.arange(60) % 3
    few = {"hidden_layer_sizes": (4,), "max_epochs": 2, "random_state": 0}
    new = LipschitzClassifier(**few)
    clf = LipschitzClassifier(**few).fit(X, y)
    pipeline = make_pipeline(StandardScaler(), clf).fit(X, y)
    images = rng.normal(size=(12, 1, 8, 8)).astype(np.float32)

    def joblib_file() -> None:
        file = io.BytesIO()
        joblib.dump(clf, file)
        joblib.load(file)

    def checkpoints() -> None:
        with tempfile.TemporaryDirectory() as folder:
            LipschitzClassifier(**few, checkpoint_dir=folder).fit(X, y)
            LipschitzClassifier(**few, checkpoint_dir=folder).fit(X, y)

    def onnx_file() -> None:
        with tempfile.TemporaryDirectory() as folder:
            to_onnx(pipeline, Path(folder) / "model.onnx")

    def picture() -> None:
        plt.close(CertifiedAccuracyDisplay.from_estimator(clf, X, y).figure_)

    calls: dict[str, Callable[[], object]] = {
        "fit": lambda: LipschitzClassifier(**few).fit(X, y),
        "fit again": lambda: new.fit(X, y),
        "fit, early stopping": lambda: LipschitzClassifier(**few, early_stopping=True).fit(X, y),
        "fit, images": lambda: LipschitzClassifier(**few, conv_channels=(2,)).fit(images, y[:12]),
        "fit, checkpoint_dir": checkpoints,
        "partial_fit": lambda: new.partial_fit(X, y),
        "LipschitzClassifierCV": lambda: LipschitzClassifierCV(new, taus=(1, 3), cv=2).fit(X, y),
        "predict": lambda: clf.predict(X),
        "certificates_": lambda: clf.certificates_(X),
        "certificates(pipeline, X)": lambda: certificates(pipeline, X),
        "pickle": lambda: pickle.loads(pickle.dumps(clf)),
        "joblib": joblib_file,
        "counterfactual": lambda: counterfactual(clf, X[:2]),
        "CertifiedAccuracyDisplay": picture,
        "to_onnx": onnx_file,
    }
    print("| call | resident memory (MB) | " + " | ".join(left_behind()) + " |")
    print("| --- | --- | " + " | ".join("---" for _ in left_behind()) + " |")
    for name, call in calls.items():
        for _ in range(max(1, n_times // 10)):
            call()
        counts, resident = left_behind(), resident_bytes()
        for _ in range(n_times):
            call()
        more = [after - counts[thing] for thing, after in left_behind().items()]
        grown = (resident_bytes() - resident) / 1e6
        print(f"| {name} | {grown:.1f} | " + " | ".join(map(str, more)) + " |", flush=True)


def main() -> None:
    """Fit and predict on the file, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--architecture", choices=["mlp", "cnn"], default="mlp")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--channels-last", action="store_true", help="images of 64 x 16 x 4")
    parser.add_argument("--times", type=int, default=None)
    parser.add_argument("--dtype", choices=["uint8", "float32"], default="uint8")
    arguments = parser.parse_args()
    if arguments.times is not None:
        with tempfile.TemporaryDirectory() as tempfile.tempdir:
            many_times(arguments.times)
        return
    if arguments.rows is not None:
        on_rows(arguments.rows)
        return
    shape = (SIDE, SIDE // 4, 4) if arguments.channels_last else (1, SIDE, SIDE)
    dtype = np.dtype(arguments.dtype)
    n_rows = int(arguments.gigabytes * 1e9 / (SIDE**2 * dtype.itemsize))
    with tempfile.TemporaryDirectory() as folder:
        X = np.memmap(Path(folder) / "images", dtype, "w+", shape=(n_rows, *shape))
        X.reshape(n_rows, -1)[: min(n_rows, 100_000), :8] = np.random.default_rng(0).integers(
            0, 256, (min(n_rows, 100_000), 8)
        )
        y = (np.arange(n_rows) % 3).astype(np.int64)
        clf = LipschitzClassifier(
            architecture=arguments.architecture,
            input_shape=(4, SIDE, SIDE // 4) if arguments.channels_last else None,
            hidden_layer_sizes=(8,),
            conv_channels=(2,),
            max_epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            random_state=0,
        )
        print(
            f"{n_rows} images of {' x '.join(map(str, shape))} in {dtype}, {X.nbytes / 1e9:.1f} GB, "
            f"{arguments.architecture}\n"
        )
        print(f"before: {anonymous_bytes() / 1e9:.2f} GB\n")
        print("| call | peak of anonymous memory (GB) | seconds |\n| --- | --- | --- |")
        calls: dict[str, Callable[[], object]] = {
            "fit": lambda: clf.fit(X, y),
            "predict": lambda: clf.predict(X),
            "certificates_": lambda: clf.certificates_(X),
        }
        for name, call in calls.items():
            peak, seconds, _ = peak_during(call)
            print(f"| {name} | {peak / 1e9:.2f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
