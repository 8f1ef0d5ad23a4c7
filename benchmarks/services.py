"""ONNX files beside the estimators that they were written from, and attacks inside their radii.

For MNIST and for pipelines on tables: whether labels agree, whether a radius of the file is larger than
that of `certificates`, and by how much it is smaller in the median; an attack on the file itself, at
0.999 of its own radii; milliseconds of the processor for a thousand rows of both, on one thread each,
taking turns.

The attack goes to the sphere around a row along the gradient of each margin, found by torch, and
follows the gradient from there twice more; what counts is the label that onnxruntime gives. Beyond the
radius the same directions find the other classes, which shows that the attack is one.

    OMP_NUM_THREADS=1 python benchmarks/services.py
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
from sklearn.datasets import fetch_openml, load_breast_cancer, load_digits
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sklip import LipschitzClassifier, predict_with_radii, to_onnx

# Rows given to onnxruntime at once: gathered patches take memory.
BATCH = 200
MULTIPLES = (1.02, 1.1, 1.25, 1.5, 2.0, 3.0)
TRIES = 10_000


def session_of(estimator: Any, scale: Any) -> onnxruntime.InferenceSession:
    """Write the file and open it on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        to_onnx(estimator, path, scale=scale)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        print(f"  file: {os.path.getsize(path) / 1e6:.1f} MB")
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def answers(session: onnxruntime.InferenceSession, X: np.ndarray) -> list[np.ndarray]:
    """Labels, probabilities and radii of rows of any type."""
    parts = [session.run(None, {"X": X[i : i + BATCH]}) for i in range(0, len(X), BATCH)]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def logits_of(estimator: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The differentiable function from raw rows to logits, two columns at least."""
    steps = list(estimator[:-1]) if isinstance(estimator, Pipeline) else []
    clf = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    network = clf.to_torch().double()

    def forward(x: torch.Tensor) -> torch.Tensor:
        for step in steps:
            if isinstance(step, PCA):
                x = (x - torch.from_numpy(step.mean_)) @ torch.from_numpy(step.components_).T
            else:
                x = (x - torch.from_numpy(step.mean_)) / (
                    1.0 if step.scale_ is None else torch.from_numpy(step.scale_)
                )
        logits = network(x.view(len(x), *clf.input_shape_))
        return torch.cat((-logits, logits), 1) / 2 if logits.shape[1] == 1 else logits

    return forward


def attacked(
    estimator: Any,
    X: np.ndarray,
    radii: np.ndarray,
    scale: np.ndarray,
    rival: int,
    noise: np.random.Generator,
) -> np.ndarray:
    """Return directions of length 1, in units of the scale, towards the rival-th class from the top."""
    forward, rows = logits_of(estimator), torch.from_numpy(X)
    with torch.no_grad():
        order = forward(rows).argsort(1, descending=True)
    first, other = order[:, :1], order[:, rival : rival + 1]
    directions = torch.from_numpy(1e-3 * noise.normal(size=X.shape))
    units, lengths = torch.from_numpy(scale), torch.from_numpy(radii)[:, None]
    for _ in range(3):
        moved = (rows + lengths * directions * units).requires_grad_()
        logits = forward(moved)
        margins = logits.gather(1, first) - logits.gather(1, other)
        (gradient,) = torch.autograd.grad(margins.sum(), moved)
        directions = -gradient * units
        directions = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return directions.numpy()


def attack(estimator: Any, session: Any, X: np.ndarray, scale: np.ndarray) -> None:
    """Print how many tries inside the radii changed the label, and how far beyond they do."""
    labels, probabilities, radii = answers(session, X)
    noise, tries, violations = np.random.default_rng(0), 0, 0
    nearest = np.full(len(X), np.inf)
    n_rivals = probabilities.shape[1] - 1
    while tries < TRIES:
        rival = 1 + (tries // len(X)) % n_rivals
        directions = attacked(estimator, X, radii, scale, rival, noise)
        moved = X + 0.999 * radii[:, None] * directions * scale
        inside = np.linalg.norm((moved - X) / scale, axis=1) < radii
        violations += int(((answers(session, moved)[0] != labels) & inside).sum())
        tries += int(inside.sum())
        for multiple in reversed(MULTIPLES):
            far = answers(session, X + multiple * radii[:, None] * directions * scale)[0]
            nearest = np.where(far != labels, np.minimum(nearest, multiple), nearest)
    share = np.mean(nearest < np.inf)
    print(
        f"  attack: {violations} violations in {tries} tries at 0.999 of the radius; {share:.1%} "
        f"of the labels change within 3 radii, in the median at {np.median(nearest)}, the first at "
        f"{nearest.min()}"
    )


def measure(name: str, estimator: Any, X: np.ndarray, scale: Any = None) -> None:
    """Print everything about one estimator."""
    print(name)
    session = session_of(estimator, scale)
    wide = np.asarray(X, dtype=np.float64)
    labels, _, radii = answers(session, wide)
    expected, certified = predict_with_radii(estimator, X, scale=scale)
    positive = certified > 0
    loss = 1 - radii[positive] / certified[positive]
    print(
        f"  {len(X)} rows: {(labels != expected).sum()} labels differ, {(radii > certified).sum()} "
        f"radii are larger; smaller by {np.median(loss):.2g} in the median, {loss.max():.2g} at most; "
        f"median radius {np.median(radii):.4f}"
    )
    seconds: dict[str, list[float]] = {"sklip": [], "onnxruntime": [], "one row of onnxruntime": []}
    for _ in range(7):
        start = time.process_time()
        predict_with_radii(estimator, X, scale=scale)
        seconds["sklip"].append((time.process_time() - start) / len(X) * 1000)
        start = time.process_time()
        answers(session, wide)
        seconds["onnxruntime"].append((time.process_time() - start) / len(X) * 1000)
        start = time.process_time()
        for row in wide[:50]:
            session.run(None, {"X": row[None]})
        seconds["one row of onnxruntime"].append((time.process_time() - start) / 50)
    times = {key: 1000 * float(np.min(values)) for key, values in seconds.items()}
    print(
        f"  ms for 1,000 rows: sklip {times['sklip']:.0f}, onnxruntime {times['onnxruntime']:.0f}; "
        f"one row alone by onnxruntime {times['one row of onnxruntime']:.2f} ms"
    )
    attack(estimator, session, wide, np.ones(X.shape[1]) if scale is None else X.std(axis=0))


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train-size", type=int, default=20_000, help="images of MNIST to train on")
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    X, y = load_breast_cancer(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), LipschitzClassifier(random_state=0)).fit(X, y)
    measure("breast_cancer behind StandardScaler, in standard deviations", pipeline, X, "std")
    X, y = load_digits(return_X_y=True)
    steps = (StandardScaler(with_std=False), PCA(40), LipschitzClassifier(random_state=0))
    measure("digits behind PCA", make_pipeline(*steps).fit(X / 16, y), X / 16)

    X, y = fetch_openml("mnist_784", version=1, as_frame=False, return_X_y=True)
    X, y = (X / 255).astype(np.float32), y.astype(int)
    for dtype in ("float32", "float64"):
        size = arguments.train_size if dtype == "float32" else arguments.train_size // 4
        clf = LipschitzClassifier(
            input_shape=(1, 28, 28), max_epochs=arguments.epochs, dtype=dtype, random_state=0
        ).fit(X[:size], y[:size])
        measure(f"MNIST, default network in {dtype}, {size} images", clf, X[60_000:61_000])


if __name__ == "__main__":
    main()
