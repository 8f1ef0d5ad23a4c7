"""Tables: seconds, accuracy and certified accuracy beside scikit-learn's classifiers.

    python benchmarks/tables.py seconds                   # of a fit, a search, scikit-learn's checks
    python benchmarks/tables.py accuracy [--data FOLDER]  # 5 folds, 3 seeds
    python benchmarks/tables.py categories --data FOLDER  # beside published certificates

FOLDER holds adult.npz, bank.npz, mammal.npz and credit.npz: mixed tables of the UCI repository in the
split of Horvath et al. (2022), with X_train, y_train, X_test, y_test, `categorical` (positions of
columns that hold categories, as codes); and spambase.npz with X, y. Numbers are divided by their
standard deviation in training, so radii are in standard deviations.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import median_seconds
from sklearn.compose import ColumnTransformer
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_iris,
    load_wine,
    make_blobs,
    make_circles,
    make_classification,
    make_hastie_10_2,
    make_moons,
)
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from sklip import LipschitzClassifier, predict_with_radii

RADII = (0.0, 0.25, 0.5, 1.0)
# Horvath et al. (2022), DRS, table 3: balanced certified accuracy in percent at RADII; the second four
# with any one category edited.
PUBLISHED = {
    "adult": (77.5, 73.9, 68.1, 48.7, 66.0, 61.7, 53.9, 34.3),
    "credit": (74.1, 70.3, 67.3, 57.1, 52.7, 47.7, 41.7, 37.1),
}
# Chosen on rows held out of the training rows (adult), and by cross-validation of these (credit), once
# for numbers that change and once for a category that is edited too: weights of numbers and categories,
# and the classifier's settings.
SETTINGS = {
    ("adult", "numbers"): (0.25, 1.0, {"eps": 1.0, "tau": 2.0}),
    ("adult", "edits"): (1.0, 0.1, {"eps": 2.0, "tau": 2.0}),
    ("credit", "numbers"): (0.05, 1.0, {"eps": 1.0, "tau": 2.0}),
    ("credit", "edits"): (0.2, 0.05, {"eps": 1.0, "tau": 10.0}),
}
PEERS: dict[str, Callable[[int], Any]] = {
    "LogisticRegression": lambda seed: LogisticRegression(max_iter=2000),
    "MLPClassifier": lambda seed: MLPClassifier(random_state=seed),
    "HistGradientBoosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
}

Table = tuple[np.ndarray, np.ndarray, np.ndarray]


def numeric(X: np.ndarray, y: np.ndarray) -> Table:
    """Return a table without categories."""
    return X, y, np.arange(0)


def small_tables() -> dict[str, Table]:
    """Tables whose fits are timed."""
    loaders = {
        "iris": load_iris,
        "wine": load_wine,
        "breast_cancer": load_breast_cancer,
        "digits": load_digits,
    }
    tables = {name: numeric(*load(return_X_y=True)) for name, load in loaders.items()}
    tables["600 x 8, as Pima"] = numeric(
        *make_classification(
            600, 8, n_informative=4, n_redundant=2, flip_y=0.2, class_sep=0.8, random_state=0
        )
    )
    return tables


def noisy(n_rows: int, n_columns: int, n_informative: int, n_classes: int = 2, seed: int = 0) -> Table:
    """A table whose other columns don't matter."""
    X, y = make_classification(
        n_rows,
        n_columns,
        n_informative=n_informative,
        n_redundant=0,
        n_classes=n_classes,
        flip_y=0.05,
        random_state=seed,
    )
    return numeric(X, y)


def all_tables(folder: Path | None) -> dict[str, Table]:
    """Those of scikit-learn, generated ones with and without noise, and those of a folder."""
    tables = small_tables()
    tables["300 x 20, 3 matter"] = noisy(300, 20, 3, seed=1)
    tables["300 x 50, 4 matter"] = noisy(300, 50, 4, seed=2)
    tables["200 x 100, 5 matter"] = noisy(200, 100, 5, seed=3)
    tables["1000 x 90, 10 matter, 3 classes"] = noisy(1000, 90, 10, 3, seed=4)
    moons, y = make_moons(500, noise=0.25, random_state=0)
    noise = np.random.default_rng(0).normal(size=(len(y), 10))
    tables["moons and 10 columns of noise"] = numeric(np.hstack([moons, noise]), y)
    tables["circles"] = numeric(*make_circles(400, noise=0.15, factor=0.5, random_state=0))
    tables["blobs"] = numeric(*make_blobs(600, 6, centers=5, cluster_std=3.5, random_state=0))
    X, y = make_hastie_10_2(1500, random_state=0)
    tables["hastie, 1500 x 10"] = numeric(X, (y > 0).astype(int))
    if folder is None:
        return tables
    for name in ("credit", "mammal", "bank", "adult"):
        X, y, categorical = loaded(folder, name)[0]
        rows = np.random.default_rng(0).permutation(len(X))[:5000]
        tables[f"{name}, {len(rows)} rows"] = X[rows], y[rows], categorical
    with np.load(folder / "spambase.npz") as stored:
        tables["spambase"] = numeric(stored["X"], stored["y"])
    return tables


def loaded(folder: Path, name: str) -> tuple[Table, tuple[np.ndarray, np.ndarray] | None]:
    """Return the training rows of a mixed table, and its test rows if it has any."""
    with np.load(folder / f"{name}.npz", allow_pickle=True) as stored:
        arrays = {key: stored[key] for key in stored.files}
    table = arrays["X_train"].astype(float), arrays["y_train"], arrays["categorical"].astype(int)
    if "X_test" not in arrays:
        return table, None
    return table, (arrays["X_test"].astype(float), arrays["y_test"])


def prepared(table: Table, classifier: Any, numbers: float = 1.0, categories: float = 1.0) -> Pipeline:
    """Return a pipeline of a scaler, an encoder and a classifier; weights may favour either."""
    X, _, categorical = table
    if len(categorical) == 0:
        return make_pipeline(StandardScaler(), classifier)
    others = np.setdiff1d(np.arange(X.shape[1]), categorical)
    encoder = OneHotEncoder(
        categories=[np.unique(X[:, column]) for column in categorical], sparse_output=False
    )
    columns = ColumnTransformer(
        [("numbers", StandardScaler(), others), ("categories", encoder, categorical)],
        transformer_weights={"numbers": numbers, "categories": categories},
    )
    return make_pipeline(columns, classifier)


def splits(X: np.ndarray, y: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows to train and to test on."""
    yield from StratifiedKFold(5, shuffle=True, random_state=seed).split(X, y)


def print_row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def print_head(*cells: str) -> None:
    """Print the head of a Markdown table."""
    print_row(*cells)
    print_row(*("---" for _ in cells))


def seconds(arguments: argparse.Namespace) -> None:
    """Fits beside MLPClassifier's, on four fifths of the rows, in turns; a search; the checks."""
    print_head("table", "LipschitzClassifier", "MLPClassifier", "ratio", "LogisticRegression")
    for name, (X, y, _) in small_tables().items():
        train, _ = next(splits(X, y, 0))
        X_train, y_train = StandardScaler().fit_transform(X[train]), y[train]
        models = {
            "sklip": LipschitzClassifier(random_state=0),
            "mlp": MLPClassifier(random_state=0),
            "linear": LogisticRegression(max_iter=2000),
        }
        times = median_seconds(
            {key: partial(model.fit, X_train, y_train) for key, model in models.items()},
            arguments.repeats,
        )
        ratio = times["sklip"] / times["mlp"]
        print_row(
            name,
            f"{times['sklip']:.3f} s",
            f"{times['mlp']:.3f} s",
            f"{ratio:.2f}",
            f"{times['linear']:.4f} s",
        )
    X, y = load_wine(return_X_y=True)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LipschitzClassifier(random_state=0)),
        {"lipschitzclassifier__tau": [0.5, 1.0, 3.0, 10.0, 30.0]},
    )
    start = time.perf_counter()
    search.fit(X, y)
    print(f"\nGridSearchCV of 5 tau x 5 folds on wine: {time.perf_counter() - start:.1f} s")
    wide = np.random.default_rng(0).normal(size=(500, 5000))
    start = time.perf_counter()
    LipschitzClassifier(random_state=0).fit(wide, wide[:, 0] > 0)
    print(f"A fit of 500 rows of 5,000 columns: {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    check_estimator(LipschitzClassifier())
    print(f"check_estimator: {time.perf_counter() - start:.1f} s")


def accuracy(arguments: argparse.Namespace) -> None:
    """Means over 5 folds and 3 seeds; the same preparation for all."""
    print_head(
        *("table", "LipschitzClassifier", "LogisticRegression", "MLPClassifier"),
        *("less the better of these", "HistGradientBoosting", "mean radius", "certified at 0.5"),
    )
    differences = []
    for name, table in all_tables(arguments.data).items():
        X, y, _ = table
        scores: dict[str, list[float]] = {key: [] for key in ("sklip", *PEERS)}
        radii, certified = [], []
        for seed in range(arguments.seeds):
            for train, test in splits(X, y, seed):
                model = prepared(table, LipschitzClassifier(random_state=seed)).fit(X[train], y[train])
                rows = model[:-1].transform(X[test])
                # In standard deviations: of what stands behind the scaler.
                labels, r = model[-1].predict_with_radii(rows)
                scores["sklip"].append(float(np.mean(labels == y[test])))
                radii.append(float(r.mean()))
                certified.append(float(np.mean((labels == y[test]) & (r > 0.5))))
                for peer, make in PEERS.items():
                    fitted = prepared(table, make(seed)).fit(X[train], y[train])
                    scores[peer].append(fitted.score(X[test], y[test]))
        means = {key: float(np.mean(values)) for key, values in scores.items()}
        best = max(means["LogisticRegression"], means["MLPClassifier"])
        differences.append(100 * (means["sklip"] - best))
        print_row(
            name,
            *(f"{means[key]:.4f}" for key in ("sklip", "LogisticRegression", "MLPClassifier")),
            f"{differences[-1]:+.2f}",
            f"{means['HistGradientBoosting']:.4f}",
            f"{np.mean(radii):.3f}",
            f"{np.mean(certified):.4f}",
        )
    print(f"\nMean difference {np.mean(differences):+.2f} points, worst {min(differences):+.2f}.")


def balanced(right: np.ndarray, y: np.ndarray) -> float:
    """Mean over the classes of the share that is right, in percent."""
    return 100 * float(np.mean([right[y == label].mean() for label in np.unique(y)]))


def certified_shares(
    model: Pipeline, X: np.ndarray, y: np.ndarray, table: Table, edits: int
) -> list[float]:
    """Balanced certified accuracy at RADII, numbers in standard deviations of the training rows."""
    X_train, _, categorical = table
    deviations = X_train.std(axis=0)
    scale = {
        column: deviations[column]
        for column in np.setdiff1d(np.arange(X_train.shape[1]), categorical).tolist()
    }
    labels, radii = predict_with_radii(model, X, scale=scale, categorical_edits=edits)
    # At 0 a radius above 0 is asked for: no edit of a category changes the label.
    return [balanced((labels == y) & (radii > radius), y) for radius in RADII]


def categories(arguments: argparse.Namespace) -> None:
    """Adult on its test rows; credit by cross-validation of its training rows."""
    for name, published in PUBLISHED.items():
        table, test = loaded(arguments.data, name)
        X, y, _ = table
        print(f"\n{name}, balanced certified accuracy in percent\n")
        print_head("what may change", *(f"r = {radius}" for radius in RADII))
        for edits, words in enumerate(("numbers", "edits")):
            of_numbers, of_categories, settings = SETTINGS[name, words]
            parts = [(np.arange(len(X)), None)] if test is not None else []
            if test is None:
                parts = [part for seed in range(3) for part in splits(X, y, seed)]
            shares = []
            for train, held_out in parts:
                clf = LipschitzClassifier(class_weight="balanced", random_state=0, **settings)
                some = X[train], y[train], table[2]
                model = prepared((X, y, table[2]), clf, of_numbers, of_categories).fit(*some[:2])
                rows, labels = (X[held_out], y[held_out]) if test is None else test
                shares.append(certified_shares(model, rows, labels, some, edits))
            title = ("numbers", "numbers and one category")[edits]
            print_row(f"{title}: sklip", *(f"{share:.1f}" for share in np.mean(shares, axis=0)))
            print_row(f"{title}: DRS, published", *published[4 * edits : 4 * edits + 4])


def main() -> None:
    """Print the part that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["seconds", "accuracy", "categories"])
    parser.add_argument("--data", type=Path, help="folder with the mixed tables")
    parser.add_argument("--repeats", type=int, default=5, help="timed fits of each model")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.part == "categories" and arguments.data is None:
        parser.error("categories needs --data")
    warnings.simplefilter("ignore", ConvergenceWarning)
    {"seconds": seconds, "accuracy": accuracy, "categories": categories}[arguments.part](arguments)


if __name__ == "__main__":
    main()
