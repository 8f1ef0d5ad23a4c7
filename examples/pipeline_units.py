"""In which units is a radius? The same wines, the same proof, three answers.

A classifier behind a StandardScaler sees standardised columns, and its own radius is in units of these:
about wines as they are measured it says nothing. `certificates` brings it back through the Pipeline: in
units of the table, where the column with the smallest numbers limits all, in standard deviations, or in
units that you choose. Beside each is the distance of a wine that gets another label.
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklip import (
    CertificateDisplay,
    CertifiedAccuracyDisplay,
    LipschitzClassifier,
    certificates,
    certified_accuracy_scorer,
    counterfactual,
)


def main() -> None:
    """Fit, certify in several units, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="pipeline_units.png", help="where the picture goes")
    arguments = parser.parse_args()

    X, y = load_wine(return_X_y=True, as_frame=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    pipeline = make_pipeline(StandardScaler(), LipschitzClassifier(random_state=0))
    pipeline.fit(X_train, y_train)
    accuracy = pipeline.score(X_test, y_test)
    print(f"{len(X_test)} wines never seen, {X.shape[1]} columns: {accuracy:.1%} right\n")

    # What a laboratory can tell apart: 1 % of a typical value of each column.
    percent = X_train.mean() / 100
    units = {
        "the table's own units": np.ones(X.shape[1]),
        "standard deviations": "std",
        "percent of the mean": percent,
    }
    print(f"{'radius in':24s}{'median radius':>14s}{'another label at':>18s}{'ratio':>8s}")
    for name, scale in units.items():
        radii = certificates(pipeline, X_test, scale=scale)
        found = counterfactual(pipeline, X_test, scale=scale)
        ratio = np.median(found.distances / radii)
        print(f"{name:24s}{np.median(radii):14.4f}{np.median(found.distances):18.4f}{ratio:8.2f}")
    scorer = certified_accuracy_scorer(eps=0.5, scale="std")
    share = scorer(pipeline, X_test, y_test)
    print(f"\nright whatever a change by half a standard deviation does: {share:.1%}")

    wine = X_test.iloc[[0]]
    other = counterfactual(pipeline, wine, scale="std")
    changed = pd.DataFrame(
        {
            "this wine": wine.iloc[0],
            f"found, class {other.labels[0]}": other.X.iloc[0],
            "change in std": (other.X.iloc[0] - wine.iloc[0]) / X_train.std(ddof=0),
        }
    )
    print(
        f"\nwine {wine.index[0]}, class {pipeline.predict(wine)[0]}, and the nearest of another class:"
    )
    print(changed.round(2).to_string())

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(14, 7.5), width_ratios=(1, 1.2), layout="constrained"
    )
    distances = counterfactual(pipeline, X_test, scale="std").distances
    CertifiedAccuracyDisplay.from_estimator(
        pipeline, X_test, y_test, scale="std", distances=distances, name="wines", ax=left
    )
    CertificateDisplay.from_estimator(pipeline, wine, scale="std", ax=right)
    figure.savefig(arguments.output, dpi=100)
    print(f"\npicture: {arguments.output}")


if __name__ == "__main__":
    main()
