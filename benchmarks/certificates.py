"""What the certificates of sklip's defaults cost on MNIST: tightness and time.

Trains the default network (tau = 3) in float32, proves the same weights for float64 too, and prints
the proven bounds beside an estimate from below, the time to prove them, and the time of certificates_
and of a scorer against predict. What rounding costs is measured by rounding.py.

    python benchmarks/certificates.py --epochs 10
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from interleaved import median_seconds
from sklearn.datasets import fetch_openml

from sklip import (
    CertifiedNetwork,
    LipschitzClassifier,
    certified_accuracy_scorer,
    lipschitz_bound,
    lipschitz_estimate,
)
from sklip.certified.direct_sums import flat_chain


def main() -> None:
    """Train, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-size", type=int, default=60_000)
    arguments = parser.parse_args()
    X, y = fetch_openml("mnist_784", version=1, as_frame=False, return_X_y=True)
    X = (X / 255).astype(np.float32)
    X_test, y_test = X[60_000:], y[60_000:]
    clf = LipschitzClassifier(input_shape=(1, 28, 28), max_epochs=arguments.epochs, random_state=0).fit(
        X[: arguments.train_size], y[: arguments.train_size]
    )
    certified, plain = clf.certified_network_, clf.to_torch()
    print("| quantity | value |\n| --- | --- |")
    print(f"| accuracy | {clf.score(X_test, y_test):.4f} |")
    print(f"| mean radius | {clf.certificates_(X_test).mean():.4f} |")
    print(f"| proven bound of the network | {clf.lipschitz_bound_:.7f} |")
    images = torch.from_numpy(X_test[:1000]).view(-1, *clf.input_shape_)
    estimate = lipschitz_estimate(plain, images)
    print(f"| largest gradient at 1000 test images, from below | {estimate:.7f} |")
    body = [lipschitz_bound(layer) for layer in flat_chain(plain)[:-1]]
    print(f"| bound of the body | {np.prod(body):.7f} |")
    shape = clf.input_shape_
    proofs = {
        "lipschitz_bound": lambda: lipschitz_bound(plain),
        "all that is proven": lambda: CertifiedNetwork(plain, shape, certified.arithmetic),
    }
    for name, value in median_seconds(proofs, repeats=3).items():
        print(f"| seconds to prove it: {name} | {value:.2f} |")
    wide = certified.in_float64()
    part = X_test[:2000]
    scorer = certified_accuracy_scorer(eps=0.5)
    timed = {
        "predict": lambda: clf.predict(part),
        "certificates_": lambda: clf.certificates_(part),
        "predict in float64": lambda: wide.logits(part),
        "predict, 10,000 images": lambda: clf.predict(X_test),
        "certified_accuracy_scorer, 10,000 images": lambda: scorer(clf, X_test, y_test),
    }
    seconds = median_seconds(timed, repeats=7)
    predict, *others = seconds
    print(f"| predict, ms a thousand rows, float32 | {seconds[predict] * 500:.0f} |")
    print(f"| certificates_ / predict | {seconds['certificates_'] / seconds[predict]:.2f} |")
    print(
        f"| predict in float64 / in float32 | {seconds['predict in float64'] / seconds[predict]:.2f} |"
    )
    print(f"| certified_accuracy_scorer / predict | {seconds[others[-1]] / seconds[others[-2]]:.2f} |")


if __name__ == "__main__":
    main()
