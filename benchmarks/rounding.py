"""What rounding costs: radii lost, rows that float64 decides, time.

Trains networks in float32, and prints for held-out rows the share of the radius that rounding takes
(median, 90 % quantile, largest), certified accuracies beside those of the same weights in float64, the
share of rows that are evaluated in float64 too, for labels and for radii, the times of labels and of
radii, those of labels over the network's own forward pass. CIFAR-10 is read from an archive of its
training images, of which the last 2,000 are held out.

    python benchmarks/rounding.py tables mnist
    python benchmarks/rounding.py cifar10 --archive cifar10_train.npz
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from cifar10 import load_cifar10
from interleaved import median_seconds
from sklearn.datasets import fetch_openml, load_breast_cancer, load_digits, load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sklip import CertifiedNetwork, LipschitzClassifier, certified_accuracy_score
from sklip.certified import decisions

TABLES = {"digits": load_digits, "breast_cancer": load_breast_cancer, "wine": load_wine}
MNIST = {
    "tau=3": {"tau": 3.0},
    "tau=10": {"tau": 10.0},
    "tau=100": {"tau": 100.0},
    "hkr 0.01/1000": {"loss": "hkr", "min_margin": 0.01, "alpha": 1000.0},
}
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def models(part: str, archive: str | None) -> Iterator[tuple[str, dict[str, Any], Split, list[float]]]:
    """Yield names, parameters, data and radii at which certified accuracy is asked for."""
    if part == "tables":
        for name, load in TABLES.items():
            X, y = load(return_X_y=True)
            X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
            scaler = StandardScaler().fit(X_train)
            data = scaler.transform(X_train), y_train, scaler.transform(X_test), y_test
            yield name, {"dtype": "float32"}, data, [0.1, 0.5, 1.0]
    elif part == "mnist":
        X, y = fetch_openml("mnist_784", version=1, as_frame=False, return_X_y=True)
        X, y = (X[:60_000] / 255).astype(np.float32).reshape(-1, 1, 28, 28), y[:60_000].astype(int)
        data = X[:55_000], y[:55_000], X[55_000:], y[55_000:]
        for name, parameters in MNIST.items():
            yield f"MNIST {name}", {"max_epochs": 10, **parameters}, data, [0.5, 1.0, 1.58]
    else:
        X_train, y_train, X_test, y_test = load_cifar10(archive, 2000)
        data = X_train, y_train, X_test, y_test
        radii = [36 / 255, 72 / 255, 108 / 255]
        for tau in (3.0, 10.0):
            yield f"CIFAR-10 tau={tau:g}", {"max_epochs": 10, "tau": tau}, data, radii
        doubled = X_train[:10_000], y_train[:10_000], X_test, y_test
        doubled = [part.repeat(2, 2).repeat(2, 3) if part.ndim == 4 else part for part in doubled]
        yield "CIFAR-10 as 64 x 64", {"max_epochs": 3}, doubled, [2 * radius for radius in radii]


def share_in_float64(network: CertifiedNetwork, X: np.ndarray) -> tuple[float, float]:
    """Return the shares of rows that are evaluated in float64 for labels and for radii."""
    forward, shares = decisions.direct_forward, []
    for method in (network.predict, network.radii):
        rows = []

        def counted(module: Any, x: Any, arithmetic: Any, *rest: Any, rows: list[int] = rows) -> Any:
            rows.append(len(x) if arithmetic.dtype == "float64" else 0)
            return forward(module, x, arithmetic, *rest)

        decisions.direct_forward = counted
        try:
            method(X)
        finally:
            decisions.direct_forward = forward
        shares.append(sum(rows) / len(X))
    return shares[0], shares[1]


def measured(clf: LipschitzClassifier, X: np.ndarray, y: np.ndarray, radii: list[float]) -> list[str]:
    """Return the cells of a row of the table."""
    network, rows = clf.certified_network_, clf.network_rows(X)
    losses = network.rounding_loss(rows)
    certified = []
    for each in (network, network.in_float64()):
        codes, found = each.predict_with_radii(rows)
        scores = [certified_accuracy_score(y, clf.classes_[codes], found, eps=eps) for eps in radii]
        certified.append(" / ".join(f"{score:.4f}" for score in scores))
    own = clf.to_torch()
    inputs = torch.as_tensor(rows).to(next(own.parameters())).reshape(-1, *network.input_shape)
    timed = {
        "own": lambda: [own(part) for part in inputs.split(128)],
        "predict": lambda: clf.predict(X),
        "radii": lambda: clf.certificates_(X),
    }
    with torch.inference_mode():
        seconds = median_seconds(timed, repeats=7)
    return [
        f"{clf.score(X, y):.4f}",
        *(f"{value:.2%}" for value in (*np.quantile(losses, [0.5, 0.9]), losses.max())),
        *(" / ".join(f"{radius:.3g}" for radius in radii), *certified),
        *(f"{share:.2%}" for share in share_in_float64(network, rows)),
        f"{seconds['predict'] / len(X) * 1e6:.0f}",
        f"{seconds['predict'] / seconds['own']:.2f}",
        f"{seconds['radii'] / seconds['predict']:.2f}",
    ]


def main() -> None:
    """Train, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="+", choices=("tables", "mnist", "cifar10"))
    parser.add_argument("--archive", help="file of CIFAR-10's training images")
    arguments = parser.parse_args()
    columns = [
        *("model", "accuracy", "lost, median", "90 %", "most", "certified at", "float32", "float64"),
        *("in float64 for labels", "for radii", "predict, us a row", "predict / own forward"),
        "certificates_ / predict",
    ]
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for part in arguments.parts:
        for name, parameters, (X_train, y_train, X, y), radii in models(part, arguments.archive):
            clf = LipschitzClassifier(random_state=0, **parameters).fit(X_train, y_train)
            print("| " + " | ".join([name, *measured(clf, X, y, radii)]) + " |", flush=True)


if __name__ == "__main__":
    main()
