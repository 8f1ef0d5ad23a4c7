"""Certify images, and look at the nearest images that get another answer.

    python examples/images.py            # scikit-learn's digits, 8 x 8 pixels
    python examples/images.py --mnist    # MNIST, 28 x 28 pixels, from fetch_openml

A convolutional network is trained on images with pixels from 0 (white) to 1 (black). For each test
image a radius is proven inside which no image gets another label; `counterfactual` finds one that does,
not much farther away. Prints a table, and draws pairs of images and the share that stays right.
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import fetch_openml, load_digits
from sklearn.model_selection import train_test_split

from sklip import (
    CertificateDisplay,
    CertifiedAccuracyDisplay,
    LipschitzClassifier,
    counterfactual,
)

SHOWN = 8


def images_of(mnist: bool) -> tuple[np.ndarray, ...]:
    """Return images to train on and to test on, and their labels."""
    if mnist:
        X, y = fetch_openml("mnist_784", version=1, as_frame=False, return_X_y=True)
        images = (X / 255).astype(np.float32).reshape(-1, 28, 28)
        return images[:20_000], images[60_000:60_500], y[:20_000], y[60_000:60_500]
    X, y = load_digits(return_X_y=True)
    return tuple(train_test_split((X / 16).reshape(-1, 8, 8), y, random_state=0))


def main() -> None:
    """Fit, certify, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="images.png", help="where the picture goes")
    parser.add_argument("--mnist", action="store_true", help="MNIST in the place of the digits")
    arguments = parser.parse_args()

    X, X_test, y, y_test = images_of(arguments.mnist)
    parameters = {"max_epochs": 2} if arguments.mnist else {"conv_channels": (16, 32), "max_epochs": 20}
    clf = LipschitzClassifier(random_state=0, **parameters).fit(X, y)
    labels, radii = clf.predict_with_radii(X_test)
    found = counterfactual(clf, X_test)

    print(f"{len(X_test)} images never seen: {np.mean(labels == y_test):.1%} right")
    print(f"{'eps':>5s}  {'proven right':>12s}  {'right as far as found':>21s}")
    for eps in (0.0, 0.5, 1.0, 1.5):
        proven, not_broken = (
            np.mean((labels == y_test) & (lengths > eps)) for lengths in (radii, found.distances)
        )
        print(f"{eps:5.1f}  {proven:12.1%}  {not_broken:21.1%}")
    print("\nlabel  answer  proven within  next answer  found at")
    rows = zip(y_test, labels, radii, found.labels, found.distances, strict=True)
    for label, answer, radius, other, distance in list(rows)[:SHOWN]:
        radius = np.floor(100 * radius) / 100  # what is printed is proven as well
        print(f"{label!s:>5s}  {answer!s:>6s}  {radius:13.2f}  {other!s:>11s}  {distance:8.2f}")
    print(f"\nmedian of distance / radius: {np.median(found.distances / radii):.2f}")

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(15, 4.5), width_ratios=(2.3, 1), layout="constrained"
    )
    CertificateDisplay.from_estimator(clf, X_test[:SHOWN], ax=left)
    left.set_title("Label and proven radius above, the nearest other answer found below")
    CertifiedAccuracyDisplay.from_estimator(
        clf, X_test, y_test, distances=found.distances, name="test images", ax=right
    )
    right.set_title("The best attack lies between the lines")
    figure.savefig(arguments.output, dpi=100)
    print(f"picture: {arguments.output}")


if __name__ == "__main__":
    main()
