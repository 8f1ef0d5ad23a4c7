"""Tune the trade-off between accuracy and robustness on the digits that scikit-learn ships.

GridSearchCV over tau in a Pipeline, scored by accuracy and by certified accuracy; the search keeps
the most robust model that is nearly as accurate as the best. Prints the table, saves the picture.
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sklip import (
    CertifiedAccuracyDisplay,
    LipschitzClassifier,
    TradeoffDisplay,
    certificates,
    certified_accuracy_scorer,
    counterfactual,
    most_robust,
)

TAUS = [0.3, 1.0, 2.0, 4.0, 10.0]
# L2, in the units of X below, where a pixel goes from 0 (white) to 1 (black).
EPS = 1.0


def main() -> None:
    """Search, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="tradeoff.png", help="where the picture goes")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--n-jobs", type=int, default=None)
    arguments = parser.parse_args()

    X, y = load_digits(return_X_y=True)
    X = X / 16  # one scale for all pixels: a distance then counts each pixel alike
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=0)
    pipeline = Pipeline(
        [
            ("center", StandardScaler(with_std=False)),
            ("clf", LipschitzClassifier(max_epochs=arguments.epochs, random_state=0)),
        ]
    )
    search = GridSearchCV(
        pipeline,
        {"clf__tau": TAUS},
        scoring={"accuracy": "accuracy", "certified": certified_accuracy_scorer(eps=EPS)},
        refit=most_robust(accuracy_loss=0.02),
        cv=3,
        n_jobs=arguments.n_jobs,
    )
    search.fit(X_train, y_train)

    print(f"3-fold cross-validation on {len(X_train)} digits, pixels from 0 to 1")
    print(f"{'tau':>6s}  {'accuracy':>8s}  {f'certified at {EPS}':>16s}")
    results = search.cv_results_
    for index, tau in enumerate(TAUS):
        chosen = "  <- chosen" if index == search.best_index_ else ""
        accuracy, certified = (
            results[f"mean_test_{name}"][index] for name in ("accuracy", "certified")
        )
        print(f"{tau:6.1f}  {accuracy:8.3f}  {certified:16.3f}{chosen}")

    radii = certificates(search, X_test)
    certified = certified_accuracy_scorer(eps=EPS)(search, X_test, y_test)
    print(f"\nchosen model on {len(X_test)} digits never seen:")
    print(f"accuracy {search.best_estimator_.score(X_test, y_test):.3f}, certified {certified:.3f}")
    print(f"first digit: predicted {search.predict(X_test[:1])[0]}, radius {radii[0]:.2f}")

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    TradeoffDisplay.from_estimator(search, ax=left)
    left.set(title=f"Cross-validation on {len(X_train)} digits", ylim=(0, 1.05))
    CertifiedAccuracyDisplay.from_estimator(
        search,
        X_test,
        y_test,
        distances=counterfactual(search, X_test).distances,
        name=f"tau = {search.best_params_['clf__tau']}",
        ax=right,
    )
    right.set_title(f"Chosen model on {len(X_test)} digits never seen")
    figure.savefig(arguments.output, dpi=120)
    print(f"picture: {arguments.output}")


if __name__ == "__main__":
    main()
