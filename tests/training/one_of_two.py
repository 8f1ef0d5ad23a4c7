"""One of two processes that fit together: ``one_of_two.py RANK FOLDER``. Not a test by itself."""

import pickle
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import distributed, nn

from sklip import LipschitzClassifier
from sklip.training import RandomShift, data_parallel

N_ROWS = 131
QUICK = {"max_epochs": 4, "hidden_layer_sizes": (8,), "dtype": "float64", "batch_size": 26}
# 131 rows are five batches of 26, of two shares of 13, and one of a single row.
MODELS = {
    "weights of rows": QUICK | {"class_weight": {0: 3.0, 1: 0.25}, "solver": "adam"},
    "a loss that couples rows": QUICK | {"loss": "hkr", "batch_size": 25},
    "two classes": QUICK | {"loss": "logit_annealing", "eps": 0.1},
    "early stopping": QUICK | {"early_stopping": True, "n_iter_no_change": 1, "max_epochs": 30},
    "images": QUICK | {"input_shape": (1, 8, 8), "augmentation": RandomShift(1), "conv_channels": (4,)},
    "columns with weights": QUICK | {"max_epochs": 30, "batch_size": "auto"},
}


def data(name):
    """Digits, two classes of them, or of few columns that matter most."""
    X, y = load_digits(return_X_y=True)
    X, y, weight = X[:N_ROWS] / 16, y[:N_ROWS], None
    if name == "weights of rows":
        weight = np.random.default_rng(0).random(N_ROWS) ** 4
        weight[::7] = 0
    if name == "two classes":
        y = y > 4
    if name == "columns with weights":
        X = np.random.default_rng(0).normal(size=(N_ROWS, 40))
        y = X[:, 0] + X[:, 1] > 0
    return X, y, weight


def fitted(name, seed=0):
    """What a fit leaves."""
    X, y, weight = data(name)
    clf = LipschitzClassifier(random_state=seed, **MODELS[name]).fit(X, y, sample_weight=weight)
    if name == "two classes":
        clf.partial_fit(X[:50], y[:50])
    return state_of(clf, X)


def state_of(clf, X):
    return {
        "weights": [value.detach().numpy() for value in clf.to_torch().state_dict().values()],
        "losses": [row["train_loss"] for row in clf.history_],
        "columns": getattr(clf, "column_weights_", None),
        "radii": clf.certificates_(X),
    }


def with_layer(layer):
    return lambda input_shape, n_outputs: nn.Sequential(layer, nn.Linear(*input_shape, n_outputs))


def error_of(make, X, y):
    try:
        make().fit(X, y)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def main(rank, folder):
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    X, y, _ = data("early stopping")
    results = {}
    with data_parallel():
        for name in MODELS:
            results[name] = fitted(name)
        # None: each process draws a seed of its own, and the first one's counts.
        np.random.seed(rank + 1)
        results["drawn seed"] = fitted("early stopping", seed=None)
        quick = LipschitzClassifier(**QUICK)
        results["errors"] = {
            "y": error_of(lambda: quick, X, (y + rank) % 10),
            "X": error_of(lambda: quick, X + rank, y),
            "tau": error_of(lambda: LipschitzClassifier(tau=1.0 + rank, **QUICK), X, y),
            "dropout": error_of(
                lambda: LipschitzClassifier(architecture=with_layer(nn.Dropout(0.5))), X, y
            ),
        }
    # A group that nobody named is nobody's: these fits are of different data, and of one process only.
    results["outside"] = fitted("early stopping", seed=rank) if rank == 0 else None
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(results))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), sys.argv[2])
