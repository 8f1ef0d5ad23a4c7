"""LipschitzClassifierCV beside separate fits of its candidates, in one run.

    python benchmarks/path.py wine digits mnist [--repeats 3] [--folds 3]
    python benchmarks/path.py iris wine breast_cancer noise --splits 5

Eight values of tau on three folds, with the fit of the winner on all rows: LipschitzClassifierCV, and
GridSearchCV with `most_robust`, which knows nothing of one candidate when it trains another. In turns,
after a first round where there are several; median seconds. README.md has those of both cores and, by
OMP_NUM_THREADS=1, of one thread. MNIST are its first 10,000 images: of those, none is a test image;
"noise" is 300 rows of 50 columns, of which 4 matter. With --splits: the winners of both for other
folds, and for another seed, and by how much any score of a candidate differs.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from interleaved import median_seconds
from sklearn.datasets import fetch_openml, load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from sklip import LipschitzClassifier, LipschitzClassifierCV, certified_accuracy_scorer, most_robust

N_TAUS, N_FOLDS = 8, 3
SCORES = ("accuracy", "certified")
TABLES = {"iris": load_iris, "wine": load_wine, "breast_cancer": load_breast_cancer}


def data_of(name: str) -> tuple[Any, Any]:
    """Return X and y."""
    if name in TABLES:
        X, y = TABLES[name](return_X_y=True)
        return StandardScaler().fit_transform(X), y
    if name == "noise":
        X = np.random.default_rng(0).normal(size=(300, 50))
        return X, (X[:, 0] * X[:, 1] + X[:, 2] * X[:, 3] > 0).astype(int)
    if name == "digits":
        X, y = load_digits(return_X_y=True)
        return X / 16, y
    X, y = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False)
    return (X[:10_000] / 255).astype(np.float32).reshape(-1, 1, 28, 28), y[:10_000]


def folds_of(y: Any, seed: int) -> list[Any]:
    """Return rows to train on and rows to score, for each fold."""
    splitter = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(y)), y))


def searches(X: Any, folds: list[Any], seed: int) -> tuple[LipschitzClassifierCV, GridSearchCV]:
    """Return the path and the search with separate fits."""
    clf = LipschitzClassifier(random_state=seed)
    spread = np.sqrt(X.reshape(len(X), -1).var(axis=0).sum())
    search = GridSearchCV(
        clf,
        {"tau": list(np.geomspace(1, 300, N_TAUS) / spread)},
        scoring={"accuracy": "accuracy", "certified": certified_accuracy_scorer()},
        refit=most_robust(),
        cv=folds,
    )
    return LipschitzClassifierCV(clf, taus=N_TAUS, cv=folds), search


def at_the_winner(results: dict[str, Any], best: int) -> str:
    """Return the winner's place and scores."""
    return f"{best}: " + " ".join(f"{results[f'mean_test_{score}'][best]:.3f}" for score in SCORES)


def winners(name: str, n_splits: int) -> None:
    """Print the winners of both, with two seeds, for other and other folds."""
    X, y = data_of(name)
    print(f"{name}: winner: accuracy, certified")
    n_equal, apart = 0, 0.0
    for split in range(n_splits):
        found = []
        for seed in (0, 1):
            path, search = searches(X, folds_of(y, split), seed)
            path.fit(X, y)
            found.append(f"path {at_the_winner(path.scores_, path.best_index_)}")
            search.fit(X, y)
            found.append(f"separate {at_the_winner(search.cv_results_, search.best_index_)}")
            n_equal += path.best_index_ == search.best_index_
            for score in SCORES:
                key = f"mean_test_{score}"
                apart = max(apart, np.abs(path.scores_[key] - search.cv_results_[key]).max())
        print(f"  split {split}:", " | ".join(found), flush=True)
    print(f"  the same winner in {n_equal} of {2 * n_splits}, scores differ by at most {apart:.4f}")


def compare(name: str, repeats: int, n_folds: int) -> None:
    """Print seconds, winners and scores of both."""
    X, y = data_of(name)
    path, search = searches(X, folds_of(y, 0)[:n_folds], 0)
    fits = {"path": lambda: path.fit(X, y), "separate": lambda: search.fit(X, y)}
    cpu = dict.fromkeys(fits, 0.0)

    def timed(each: str) -> None:
        start = time.process_time()
        fits[each]()
        cpu[each] = time.process_time() - start

    runs = {each: lambda each=each: timed(each) for each in fits}
    seconds = median_seconds(runs, repeats, warm_up=repeats > 1)
    print(f"{name}, {n_folds} of {N_FOLDS} folds")
    print(f"  seconds: path {seconds['path']:.2f}, separate {seconds['separate']:.2f}", end="")
    print(f", ratio {seconds['path'] / seconds['separate']:.3f}", end="")
    print(f" (of processor seconds {cpu['path'] / cpu['separate']:.3f})")
    for each, results in (("path", path.scores_), ("separate", search.cv_results_)):
        best = path.best_index_ if each == "path" else search.best_index_
        print(f"  {each}: tau = {results['param_tau'][best]:.3g}, candidate {best}")
        for score in SCORES:
            values = results[f"mean_test_{score}"]
            print(f"    {score:>9}", *(f"{value:.4f}" for value in values))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", choices=(*TABLES, "noise", "digits", "mnist"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folds", type=int, default=N_FOLDS)
    parser.add_argument("--splits", type=int, default=0, help="compare winners on so many splits")
    arguments = parser.parse_args()
    for one in arguments.data:
        if arguments.splits:
            winners(one, arguments.splits)
        else:
            compare(one, arguments.repeats, arguments.folds)
