"""Attacks by foolbox against certificates: no adversarial example may lie inside its radius.

L2 projected gradient descent, DeepFool, DDN and Carlini-Wagner on scikit-learn's digits, for several
losses in float32 and float64, through a Pipeline's scaler in raw units too. Every adversarial example
found is predicted again by sklip in the units of X and compared with the radius of its row. Prints the
number of violations, and the median ratio of attack distance to radius.

    pip install foolbox
    python benchmarks/attacks.py --rows 200
"""

from __future__ import annotations

import argparse
import warnings

import foolbox
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sklip import LipschitzClassifier, certificates

MODELS = {
    "tau=1": {"tau": 1.0},
    "tau=10": {"tau": 10.0},
    "tau=100": {"tau": 100.0},
    "hkr 0.2/50": {"loss": "hkr"},
    "cnn, tau=3": {"tau": 3.0, "input_shape": (1, 8, 8)},
}


class FromRaw(torch.nn.Module):
    """The network behind its scaler, as a function of raw rows, in float64."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        scaler, clf = pipeline.named_steps["scale"], pipeline[-1]
        self.network = clf.to_torch().double()
        self.shape = clf.input_shape_
        identity = scaler in (None, "passthrough")
        self.mean = torch.zeros(1) if identity else torch.from_numpy(scaler.mean_)
        self.scale = torch.ones(1) if identity else torch.from_numpy(scaler.scale_)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of rows in raw units."""
        return self.network(((x - self.mean) / self.scale).view(-1, *self.shape))


def attacks(steps: int) -> dict[str, foolbox.Attack]:
    """Return the attacks by name."""
    return {
        "PGD": foolbox.attacks.L2PGD(steps=steps),
        "DeepFool": foolbox.attacks.L2DeepFoolAttack(steps=steps),
        "DDN": foolbox.attacks.DDNAttack(steps=steps),
        "CW": foolbox.attacks.L2CarliniWagnerAttack(steps=steps, binary_search_steps=4),
    }


def main() -> None:
    """Attack every model and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, _ = train_test_split(X / 16, y, random_state=0)
    X_test = X_test[: arguments.rows]
    print("| model | scaler | precision | examples found | violations | median distance / radius |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, parameters in MODELS.items():
        for scaler in ("passthrough", StandardScaler()):
            for dtype in ("float32", "float64"):
                clf = LipschitzClassifier(dtype=dtype, random_state=0, max_epochs=60, **parameters)
                pipeline = Pipeline([("scale", scaler), ("clf", clf)]).fit(X_train, y_train)
                radii, predicted = certificates(pipeline, X_test), pipeline.predict(X_test)
                model = foolbox.PyTorchModel(FromRaw(pipeline).eval(), bounds=(-100, 100), device="cpu")
                start = torch.from_numpy(X_test)
                labels = torch.from_numpy(predicted)
                ratios, violations = [], 0
                for attack in attacks(arguments.steps).values():
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        factors = (1.01, 2.0) if isinstance(attack, foolbox.attacks.L2PGD) else (None,)
                        for factor in factors:
                            eps = None if factor is None else float(np.median(radii)) * factor
                            _, found, _ = attack(model, start, labels, epsilons=eps)
                            moved = found.detach().numpy()
                            flipped = pipeline.predict(moved) != predicted
                            distances = np.linalg.norm(moved - X_test, axis=1)
                            violations += int((flipped & (distances < radii)).sum())
                            ratios += list(distances[flipped] / np.maximum(radii[flipped], 1e-300))
                scaled = "none" if scaler == "passthrough" else "StandardScaler"
                print(
                    f"| {name} | {scaled} | {dtype} | {len(ratios)} | {violations} | "
                    f"{np.median(ratios):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
