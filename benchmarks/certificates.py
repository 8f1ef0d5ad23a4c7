"""What the certificates of sklip's defaults cost on MNIST: tightness, rounding, time.

Trains the default network (tau = 3) in float32, loads the same weights in float64 too, and prints the
proven bounds beside an estimate from below, the time to prove them, the share of the radius that
rounding takes (as predict sums, and as it would be without blocks), and the time of certificates_
against predict.

    python benchmarks/certificates.py --epochs 10
"""

from __future__ import annotations

import argparse
import copy
from unittest import mock

import numpy as np
import torch
from interleaved import median_seconds
from sklearn.datasets import fetch_openml

from sklip import LipschitzClassifier, lipschitz_bound, rounding
from sklip.estimates import lipschitz_estimate
from sklip.inference import flat_chain
from sklip.proofs import rounding_charges
from sklip.radii import certified_radii, row_lengths_upper


def rounding_losses(clf: LipschitzClassifier, X: np.ndarray, block: int) -> np.ndarray:
    """Return the share of each radius that rounding would take if sums had blocks of that length."""
    convolution_block = max(block, rounding.CONVOLUTION_BLOCK)
    with mock.patch.multiple(rounding, BLOCK=block, CONVOLUTION_BLOCK=convolution_block):
        charges = rounding_charges(clf.network_, len(clf.classes_), clf.dtype_, clf.input_shape_)
    logits = clf.decision_function(X)
    charged = certified_radii(
        logits,
        clf.margin_bounds_ + charges.slopes,
        [(charges.offsets, 2.0), (charges.slopes, 2 * row_lengths_upper(X))],
    )
    return 1 - charged / np.maximum(certified_radii(logits, clf.margin_bounds_), 1e-300)


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
    print("| quantity | value |\n| --- | --- |")
    print(f"| accuracy | {clf.score(X_test, y_test):.4f} |")
    print(f"| mean radius | {clf.certificates_(X_test).mean():.4f} |")
    print(f"| proven bound of the network | {clf.lipschitz_bound_:.7f} |")
    images = torch.from_numpy(X_test[:1000]).view(-1, *clf.input_shape_)
    estimate = lipschitz_estimate(clf.network_, images)
    print(f"| largest gradient at 1000 test images, from below | {estimate:.7f} |")
    body = [lipschitz_bound(layer) for layer in flat_chain(clf.to_torch())[:-1]]
    print(f"| bound of the body | {np.prod(body):.7f} |")
    proof = median_seconds({"proof": lambda: lipschitz_bound(clf.network_)}, repeats=3)["proof"]
    print(f"| seconds to prove it | {proof:.2f} |")
    print(f"| median loss to rounding, float32 | {np.median(clf.rounding_loss_(X_test)):.2e} |")
    for name, block in (("blocks as in predict", rounding.BLOCK), ("plain sums, one block", 2**62)):
        loss = np.median(rounding_losses(clf, X_test, block))
        print(f"| the same from the formula, {name} | {loss:.2e} |")
    state = clf.__getstate__()
    wide = copy.deepcopy(clf)
    for name in ("net_", "network_"):
        state[name] = {key: value.astype(np.float64) for key, value in state[name].items()}
    wide.__setstate__({**state, "dtype_": "float64"})
    wide._certify(wide.network_)
    print(f"| median loss to rounding, float64 | {np.median(wide.rounding_loss_(X_test)):.2e} |")
    part = X_test[:2000]
    seconds = median_seconds(
        {
            "predict": lambda: clf.predict(part),
            "certificates_": lambda: clf.certificates_(part),
            "predict in float64": lambda: wide.predict(part),
        },
        repeats=7,
    )
    predict = seconds["predict"]
    print(f"| predict, ms a thousand rows, float32 | {predict * 500:.0f} |")
    print(f"| certificates_ / predict | {seconds['certificates_'] / predict:.2f} |")
    print(f"| predict in float64 / in float32 | {seconds['predict in float64'] / predict:.2f} |")


if __name__ == "__main__":
    main()
