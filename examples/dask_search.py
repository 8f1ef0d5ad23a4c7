"""Search over tau and eps on the workers of a dask cluster; one that dies costs nothing but time.

    pip install -c constraints.txt -e ".[dask]"
    python examples/dask_search.py
    python examples/dask_search.py --scheduler tcp://10.0.0.1:8786

Without a scheduler two processes with two threads each are started on this machine. The search is
scikit-learn's own: joblib sends its fits to the cluster. Prints the table, and which workers made it.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from distributed import Client, LocalCluster, get_worker
from joblib import parallel_config
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split

from sklip import LipschitzClassifier, certificates, certified_accuracy_scorer, most_robust

TAUS, EPSS = [1.0, 3.0, 10.0], [0.0, 0.5]
# L2, in the units of X below, where a pixel goes from 0 (white) to 1 (black).
RADIUS = 0.5


@contextmanager
def workers(scheduler: str | None) -> Iterator[Client]:
    """Give a client of the cluster at an address, or of two processes on this machine."""
    if scheduler:
        with Client(scheduler) as client:
            yield client
        return
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address=":0", silence_logs=logging.ERROR
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def scores(estimator: LipschitzClassifier, X: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return what the search compares; a worker counts that it was here."""
    try:
        worker = get_worker()
    except ValueError:  # the refit, in this process
        pass
    else:
        worker.log_event("scored", worker.address)
    certified = certified_accuracy_scorer(eps=RADIUS)(estimator, X, y)
    return {"accuracy": estimator.score(X, y), "certified": certified}


def main() -> None:
    """Search, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scheduler", help="address of a cluster that runs already")
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()

    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X / 16, y, test_size=0.25, random_state=0)
    # As lists folds travel with each task. An array would lie on the one worker that was sent it, and
    # a search whose only copy of it dies with a worker is over.
    splits = StratifiedKFold(3).split(X_train, y_train)
    folds = [(train.tolist(), test.tolist()) for train, test in splits]
    search = GridSearchCV(
        LipschitzClassifier(max_epochs=arguments.epochs, hidden_layer_sizes=(64,), random_state=0),
        {"tau": TAUS, "eps": EPSS},
        scoring=scores,
        refit=most_robust(accuracy_loss=0.02),
        cv=folds,
        n_jobs=-1,
    )
    with workers(arguments.scheduler) as client:
        start = time.perf_counter()
        # For the same reason X and y are put on all workers, before the first fit.
        with parallel_config("dask", scatter=[X_train, y_train]):
            search.fit(X_train, y_train)
        seconds = time.perf_counter() - start
        made = Counter(address for _, address in client.get_events("scored"))

    print(f"3-fold cross-validation on {len(X_train)} digits, pixels from 0 to 1")
    print(f"{'tau':>6s}  {'eps':>4s}  {'accuracy':>8s}  {f'certified at {RADIUS}':>16s}")
    results = search.cv_results_
    for index, candidate in enumerate(results["params"]):
        chosen = "  <- chosen" if index == search.best_index_ else ""
        accuracy, certified = (
            results[f"mean_test_{name}"][index] for name in ("accuracy", "certified")
        )
        tau, eps = candidate["tau"], candidate["eps"]
        print(f"{tau:6.1f}  {eps:4.1f}  {accuracy:8.3f}  {certified:16.3f}{chosen}")
    shares = " and ".join(str(count) for count in made.values())
    print(f"\n{sum(made.values())} fits in {seconds:.1f} s: {shares} on {len(made)} workers")
    accuracy = search.best_estimator_.score(X_test, y_test)
    radius = np.median(certificates(search, X_test))
    print(f"{len(X_test)} digits never seen: accuracy {accuracy:.3f}, median radius {radius:.2f}")


if __name__ == "__main__":
    main()
