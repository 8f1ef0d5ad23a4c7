"""How near counterfactuals come to their radii, and how they compare with foolbox's attacks.

    python benchmarks/counterfactuals.py           # tables of scikit-learn's
    python benchmarks/counterfactuals.py --mnist   # 1,000 test images; attacks on 250 of them

Tables: defaults behind a StandardScaler, radii in standard deviations (of digits, pixels from 0 to 1
and no scaler); test rows of one split. MNIST: the default network after two epochs. Prints Markdown.
Every distance is checked against its radius.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from sklearn.datasets import fetch_openml, load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklip import LipschitzClassifier, counterfactual, predict_with_radii


def report(name: str, estimator: object, X: np.ndarray, **changes: object) -> None:
    """Print a row."""
    labels, radii = predict_with_radii(estimator, X, **changes)
    start = time.perf_counter()
    found = counterfactual(estimator, X, **changes)
    seconds = time.perf_counter() - start
    known = np.isfinite(found.distances)
    assert (found.distances >= radii).all()
    assert (known == (found.labels != labels)).all()
    ratios = found.distances[known & (radii > 0)] / radii[known & (radii > 0)]
    print(
        f"| {name} | {len(X)} | {known.mean():.1%} | {np.median(radii):.4f} "
        f"| {np.median(found.distances):.4f} | {np.median(ratios):.3f} | {ratios.max():.2f} "
        f"| {seconds:.1f} |",
        flush=True,
    )


class Sharpened(torch.nn.Module):
    """Logits times 10: without, a cross-entropy pulls towards all classes at once."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return 10 * self.network(x)


def attack(clf: LipschitzClassifier, X: np.ndarray) -> None:
    """Print what foolbox's attacks find."""
    import foolbox

    labels, radii = clf.predict_with_radii(X)
    codes = torch.from_numpy(np.searchsorted(clf.classes_, labels))
    model = foolbox.PyTorchModel(Sharpened(clf.to_torch()).eval(), bounds=(-1, 2), device="cpu")
    for name, method in (
        ("DeepFool", foolbox.attacks.L2DeepFoolAttack(steps=50)),
        ("DDN, 100 steps", foolbox.attacks.DDNAttack(steps=100)),
        ("FMN, 100 steps", foolbox.attacks.L2FMNAttack(steps=100)),
        ("CW, 6 x 150 steps", foolbox.attacks.L2CarliniWagnerAttack(6, steps=150, stepsize=0.02)),
    ):
        start = time.perf_counter()
        images = torch.from_numpy(X)[:, None]
        criterion = foolbox.criteria.Misclassification(codes)
        _, others, _ = method(model, images, criterion, epsilons=None)
        seconds = time.perf_counter() - start
        distances = (others - images).double().flatten(1).norm(dim=1).numpy()
        distances[clf.predict(others.numpy()) == labels] = np.inf
        print(
            f"| {name} | {len(X)} | {np.isfinite(distances).mean():.1%} | {np.median(radii):.4f} "
            f"| {np.median(distances):.4f} | {np.median(distances / radii):.3f} "
            f"| {np.max(distances / radii):.2f} | {seconds:.1f} |",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", action="store_true")
    arguments = parser.parse_args()
    print("| data | rows | found | radius | distance | ratio | largest | seconds |")
    print("| --- " * 8 + "|")
    if arguments.mnist:
        X, y = fetch_openml("mnist_784", version=1, as_frame=False, return_X_y=True)
        X = (X / 255).astype(np.float32).reshape(-1, 28, 28)
        clf = LipschitzClassifier(max_epochs=2, random_state=0).fit(X[:60_000], y[:60_000])
        report("MNIST", clf, X[60_000:61_000])
        report("MNIST, the first 250", clf, X[60_000:60_250])
        attack(clf, X[60_000:60_250])
        return
    for load in (load_breast_cancer, load_wine, load_iris):
        X, X_test, y, _ = train_test_split(*load(return_X_y=True), random_state=0)
        model = make_pipeline(StandardScaler(), LipschitzClassifier(random_state=0)).fit(X, y)
        report(load.__name__.removeprefix("load_"), model, X_test, scale="std")
    X, X_test, y, _ = train_test_split(*load_digits(return_X_y=True), random_state=0)
    report("digits", LipschitzClassifier(random_state=0).fit(X / 16, y), X_test / 16)


if __name__ == "__main__":
    main()
