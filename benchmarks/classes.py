"""Thousands of classes: processor seconds and peak memory of a fit, and of labels with radii.

    python benchmarks/classes.py 1000 3000 10000

Two rows of each class in 32 columns, two epochs, one hidden layer of 64. Set OMP_NUM_THREADS=1. The
peak is that of the process so far, so give numbers in rising order.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from sklip import LipschitzClassifier


def measure(n_classes: int) -> None:
    """Print a row of a table."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(n_classes), 2)
    X = rng.normal(size=(n_classes, 32))[y] + 0.01 * rng.normal(size=(len(y), 32))
    clf = LipschitzClassifier(hidden_layer_sizes=(64,), max_epochs=2, random_state=0)
    start = time.process_time()
    clf.fit(X.astype(np.float32), y)
    fitted = time.process_time()
    clf.predict_with_radii(X.astype(np.float32))
    predicted = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"| {n_classes} | {fitted - start:.1f} | {predicted - fitted:.1f} | {peak:.1f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("classes", nargs="+", type=int)
    print(
        "| classes | fit (s) | predict_with_radii (s) | peak (GB) |",
        "| --- | --- | --- | --- |",
        sep="\n",
    )
    for each in parser.parse_args().classes:
        measure(each)
