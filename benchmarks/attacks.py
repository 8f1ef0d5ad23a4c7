"""Attacks against certificates: no adversarial example may lie inside its radius.

L2 attacks of foolbox (DeepFool, DDN, Carlini-Wagner, projected gradient descent) and the four attacks
of AutoAttack from torchattacks, each on every row. What they find counts only if the estimator's own
`predict` agrees; it is then pulled back along the line to its row until the class only just changes,
and its distance, rounded down, is compared with the radius. Prints a Markdown table: examples found,
how many lie inside their radius, the smallest quotient distance / radius, and the median one of each
attack.

torchattacks asks for an old requests, and for torchvision without a use for it; hence --no-deps:

    pip install -e ".[benchmark]" && pip install --no-deps torchattacks==3.5.1
    python benchmarks/attacks.py digits
    python benchmarks/attacks.py mnist
    python benchmarks/attacks.py mnist-cnn
    python benchmarks/attacks.py cifar10-cnn --archive cifar10_train.npz
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import foolbox
import numpy as np
import torch
import torchattacks
from cifar10 import load_cifar10
from sklearn.datasets import fetch_openml, load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sklip import LipschitzClassifier, predict_with_radii

# Pixels lie in [0, 1], but the certificates promise more: attacks may leave that range.
LOWEST, HIGHEST = -2.0, 3.0
MODELS = {
    "tau=1": {"tau": 1.0},
    "tau=3": {"tau": 3.0},
    "tau=10": {"tau": 10.0},
    "tau=100": {"tau": 100.0},
    "hkr 0.2/50": {"loss": "hkr", "min_margin": 0.2, "alpha": 50.0},
}
ATTACKS = ("DeepFool", "DDN", "CW", "PGD", "APGD-CE", "APGD-T", "FAB-T", "Square")


class Part(NamedTuple):
    """Which models are attacked."""

    models: tuple[str, ...]
    scalers: tuple[str, ...]
    precisions: tuple[str, ...]
    parameters: dict[str, object]


DENSE = ("tau=1", "tau=10", "tau=100", "hkr 0.2/50")
BOTH = ("none", "StandardScaler"), ("float32", "float64")
IMAGES = {"max_epochs": 2, "input_shape": (1, 28, 28)}
COLOURS = {"input_shape": (3, 32, 32)}
PARTS = {
    "digits": Part(DENSE, *BOTH, {}),
    "mnist": Part(DENSE, *BOTH, {"max_epochs": 3}),
    "mnist-cnn": Part(("tau=10",), ("none",), ("float32",), IMAGES),
    "cifar10-cnn": Part(("tau=3",), ("none",), ("float32",), COLOURS),
}


class Raw(torch.nn.Module):
    """The network behind its scaler, as a function of flat rows in raw units."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        scaler, clf = pipeline.named_steps["scale"], pipeline[-1]
        self.network, self.shape = clf.to_torch(), clf.input_shape_
        self.dtype = getattr(torch, clf.dtype_)
        scaled = isinstance(scaler, StandardScaler)
        self.mean = torch.as_tensor(scaler.mean_ if scaled else 0.0, dtype=self.dtype)
        self.scale = torch.as_tensor(scaler.scale_ if scaled else 1.0, dtype=self.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.network(((x.to(self.dtype) - self.mean) / self.scale).view(-1, *self.shape))


class InUnitBox(torch.nn.Module):
    """The same function of images in [0, 1], where torchattacks keeps them."""

    def __init__(self, raw: Raw) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        # torchattacks works in float32 throughout.
        return self.raw(LOWEST + (HIGHEST - LOWEST) * images.flatten(1).double()).float()


def from_foolbox(raw: Raw, attack: foolbox.Attack) -> Callable[..., np.ndarray]:
    """Return an attack as a function of rows, labels and a budget (or None)."""
    model = foolbox.PyTorchModel(raw.eval(), bounds=(LOWEST, HIGHEST), device="cpu")

    def run(X: np.ndarray, labels: np.ndarray, eps: float | None = None) -> np.ndarray:
        start = torch.from_numpy(X).to(raw.dtype)
        return attack(model, start, torch.from_numpy(labels), epsilons=eps)[0].double().numpy()

    return run


def from_torchattacks(raw: Raw, name: str, steps: int, queries: int) -> Callable[..., np.ndarray]:
    """Return one of AutoAttack's attacks as a function of rows, labels and a budget."""
    model = InUnitBox(raw).eval()

    def run(X: np.ndarray, labels: np.ndarray, eps: float) -> np.ndarray:
        common = {"norm": "L2", "eps": eps / (HIGHEST - LOWEST), "seed": 0}
        attack = {
            "APGD-CE": lambda: torchattacks.APGD(model, steps=steps, **common),
            "APGD-T": lambda: torchattacks.APGDT(model, steps=steps, **common),
            "FAB-T": lambda: torchattacks.FAB(model, steps=steps, multi_targeted=True, **common),
            "Square": lambda: torchattacks.Square(model, n_queries=queries, **common),
        }[name]()
        shape = raw.shape if len(raw.shape) == 3 else (1, int(X.shape[1] ** 0.5), -1)
        images = (torch.from_numpy(X) - LOWEST) / (HIGHEST - LOWEST)
        found = attack(images.float().view(-1, *shape), torch.from_numpy(labels))
        return LOWEST + (HIGHEST - LOWEST) * found.flatten(1).double().detach().numpy()

    return run


def pull_back(
    predict: Callable[[np.ndarray], np.ndarray], X: np.ndarray, found: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Halve the way between each row and its example while the class stays another one."""
    if not len(X):  # an attack that found none
        return found
    inner, outer = X, found
    for _ in range(30):
        middle = (inner + outer) / 2
        flipped = (predict(middle) != labels)[:, None]
        inner, outer = np.where(flipped, inner, middle), np.where(flipped, middle, outer)
    return outer


def distances_lower(X: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Return L2 distances, rounded down."""
    # Each difference, square and partial sum, and the root: fewer roundings than this many.
    return np.linalg.norm(moved - X, axis=1) * (1 - (X.shape[1] + 8) * 2.0**-53)


def candidates(
    name: str,
    raw: Raw,
    X: np.ndarray,
    labels: np.ndarray,
    known: np.ndarray,
    arguments: argparse.Namespace,
) -> np.ndarray:
    """Return what an attack found, one point a row; `known` has the distances found before it.

    DeepFool, DDN and Carlini-Wagner minimise the distance. The others take a budget: the rows are dealt
    into four groups by the known distance, and the budget of a group is 1.5 times its largest.
    """
    steps = arguments.steps
    free = {
        "DeepFool": foolbox.attacks.L2DeepFoolAttack(steps=steps),
        "DDN": foolbox.attacks.DDNAttack(steps=steps),
        "CW": foolbox.attacks.L2CarliniWagnerAttack(steps=steps, binary_search_steps=6),
    }
    if name in free:
        return from_foolbox(raw, free[name])(X, labels)
    if name == "PGD":
        attack = from_foolbox(raw, foolbox.attacks.L2PGD(steps=steps))
    else:
        attack = from_torchattacks(raw, name, steps, arguments.queries)
    found = X.copy()
    for group in np.array_split(known.argsort(), 4):
        budget = 1.5 * known[group][np.isfinite(known[group])].max(initial=1e-3)
        found[group] = attack(X[group], labels[group], float(budget))
    return found


def attack_pipeline(
    pipeline: Pipeline, X: np.ndarray, arguments: argparse.Namespace
) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    """Return the radii, quotients distance / radius by attack, and the number of violations."""
    labels, radii = predict_with_radii(pipeline, X)
    codes = np.searchsorted(pipeline.classes_, labels)
    raw, known = Raw(pipeline), np.full(len(X), np.inf)
    ratios, violations = {}, 0
    for name in ATTACKS:
        found = candidates(name, raw, X, codes, known, arguments)
        rows = np.flatnonzero(pipeline.predict(found) != labels)
        outer = pull_back(pipeline.predict, X[rows], found[rows], labels[rows])
        distances = distances_lower(X[rows], outer)
        known[rows] = np.minimum(known[rows], distances)
        violations += int((distances < radii[rows]).sum())
        ratios[name] = distances / np.maximum(radii[rows], 1e-300)
    return radii, ratios, violations


def load(data: str, n_rows: int, archive: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return training rows, their labels, and test rows: pixels in [0, 1], exact in float32."""
    if data == "digits":
        X, y = load_digits(return_X_y=True)
        X_train, X_test, y_train, _ = train_test_split(X / 16, y, random_state=0)
    elif data == "cifar10-cnn":
        X_train, y_train, X_test, _ = load_cifar10(archive, 2000)
        X_train, X_test = (X.reshape(len(X), -1).astype(np.float64) for X in (X_train, X_test))
    else:
        X, y = fetch_openml("mnist_784", version=1, as_frame=False, return_X_y=True)
        X = (X / 255).astype(np.float32).astype(np.float64)
        X_train, X_test, y_train = X[:60_000], X[60_000:], y[:60_000]
    return X_train, y_train.astype(int), X_test[:n_rows]


def main() -> None:
    """Attack every model of a part and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rows", type=int, default=1000, help="test rows, at most")
    parser.add_argument("--steps", type=int, default=100, help="steps of each attack")
    parser.add_argument("--queries", type=int, default=1000, help="queries of the square attack")
    parser.add_argument("--archive", help="file of CIFAR-10's training images")
    arguments = parser.parse_args()
    part = PARTS[arguments.part]
    X_train, y_train, X_test = load(arguments.part, arguments.rows, arguments.archive)
    start = time.perf_counter()
    print(f"{arguments.part}, {len(X_test)} test rows; medians of distance / radius by attack\n")
    columns = ["model", "scaler", "precision", "median radius", "examples", "violations", "smallest"]
    columns += ATTACKS
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for name, scaler, dtype in itertools.product(part.models, part.scalers, part.precisions):
        scale = "passthrough" if scaler == "none" else StandardScaler()
        clf = LipschitzClassifier(dtype=dtype, random_state=0, **part.parameters, **MODELS[name])
        pipeline = Pipeline([("scale", scale), ("clf", clf)]).fit(X_train, y_train)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            radii, ratios, violations = attack_pipeline(pipeline, X_test, arguments)
        found = np.concatenate(list(ratios.values()))
        cells = [name, scaler, dtype, f"{np.median(radii):.3g}", str(len(found)), str(violations)]
        cells.append(f"{found.min(initial=np.inf):.5f}")
        cells += [f"{np.median(r):.3g}" if len(r) else "-" for r in ratios.values()]
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} seconds")


if __name__ == "__main__":
    main()
