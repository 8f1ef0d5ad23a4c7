"""The four runs of the deel-lip tutorial on MNIST, beside the tutorial's own numbers.

Run it with

    python examples/mnist_tradeoff.py                      # the tutorial's network and training
    python examples/mnist_tradeoff.py --settings default   # sklip's defaults for images
    python examples/mnist_tradeoff.py --epochs 2 --train-size 10000   # a short look

MNIST comes from fetch_openml (downloaded at the first run). Pixels are divided by 255, so a
certificate is an L2 distance between images with pixels from 0 to 1.

Columns: "certificate" is the mean certificate as the tutorial computes it, margin / sqrt(2) with the
network taken as 1-Lipschitz, a wrong prediction counting 0; "proven" is the mean of sklip's own
certificates_, with constants proven from the finished weights.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from sklearn.datasets import fetch_openml

from sklip import LipschitzClassifier, average_certified_radius_score, certified_accuracy_score
from sklip.metrics import normalized_margins
from sklip.networks import tutorial_cnn

# Each run with the tutorial's validation accuracy and mean certificate after 10 epochs.
RUNS = {
    "tau=100": ({"tau": 100.0}, 0.9771, 0.0616),
    "tau=3": ({"tau": 3.0}, 0.9639, 0.8490),
    "hkr 0.01/1000": ({"loss": "hkr", "min_margin": 0.01, "alpha": 1000.0}, 0.9767, 0.0609),
    "hkr 0.2/50": ({"loss": "hkr", "min_margin": 0.2, "alpha": 50.0}, 0.9619, 0.7699),
}

SETTINGS = {
    "tutorial": {
        "architecture": tutorial_cnn,
        "solver": "adam",
        "learning_rate": 1e-4,
        "learning_rate_schedule": "constant",
    },
    "default": {},
}


def load_mnist(train_size: int) -> tuple[np.ndarray, ...]:
    """Return the usual split: the first 60,000 images to train on, the last 10,000 to test on."""
    X, y = fetch_openml("mnist_784", version=1, as_frame=False, return_X_y=True)
    X = (X / 255).astype(np.float32)
    return X[:train_size], X[60_000:], y[:train_size], y[60_000:]


def main() -> None:
    """Train the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", choices=SETTINGS, default="tutorial")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-size", type=int, default=60_000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()

    X_train, X_test, y_train, y_test = load_mnist(arguments.train_size)
    print(f"{len(X_train)} training images, {arguments.epochs} epochs, {arguments.settings} settings")
    print(
        f"{'':14s} |{'deel-lip tutorial':^22s} |{'sklip':^60s}\n"
        f"{'run':14s} | accuracy  certificate | accuracy  certificate  proven  "
        "certified at 0.5  bound   seconds"
    )
    for name in arguments.runs:
        parameters, reference_accuracy, reference_certificate = RUNS[name]
        clf = LipschitzClassifier(
            **parameters,
            **SETTINGS[arguments.settings],
            input_shape=(1, 28, 28),
            max_epochs=arguments.epochs,
            device=arguments.device,
            verbose=int(arguments.verbose),
            random_state=arguments.seed,
        )
        start = time.perf_counter()
        clf.fit(X_train, y_train)
        seconds = time.perf_counter() - start
        predicted = clf.predict(X_test)
        like_for_like = normalized_margins(clf.decision_function(X_test))
        radii = clf.certificates_(X_test)
        print(
            f"{name:14s} | {reference_accuracy:8.4f}  {reference_certificate:11.4f} "
            f"| {np.mean(predicted == y_test):8.4f}"
            f"  {average_certified_radius_score(y_test, predicted, like_for_like):11.4f}"
            f"  {average_certified_radius_score(y_test, predicted, radii):6.4f}"
            f"  {certified_accuracy_score(y_test, predicted, radii, eps=0.5):16.4f}"
            f"  {clf.lipschitz_bound_:6.4f}  {seconds:7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
