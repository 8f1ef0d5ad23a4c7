"""Labels, radii and trained weights of many small models, stored and compared bit for bit.

A refactoring must change none of them. `store` fits small models and pipelines that between them use
the classifier's parameters, its layers and every kind of step, and writes to an npz file what came out:
labels, radii, weights and the proven bound. `compare` prints a Markdown table of two such files. They
can be compared if they come from one machine, with the same versions of torch, NumPy and scikit-learn.

    python benchmarks/snapshot.py store FILE
    python benchmarks/snapshot.py compare OLD NEW

The sklip that is used is the one that Python finds: set PYTHONPATH to store that of another checkout.
Its path is printed, and stored.
"""

from __future__ import annotations

import argparse
import functools
import pickle
import platform
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy
import sklearn
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_iris,
    load_wine,
    make_classification,
)
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    RobustScaler,
    StandardScaler,
)
from threadpoolctl import threadpool_limits
from torch import nn

import sklip
from sklip import LipschitzClassifier, certificates, layers, networks

try:
    from sklip.augmentation import RandomShift
except ImportError:
    from sklip.training import RandomShift

Snapshot = dict[str, NDArray[Any]]
Fit = Callable[..., Any]

PARTS = ("labels", "radii", "weights", "bound", "error")


def plain_fit(estimator: Any, X: Any, y: Any, **parameters: Any) -> Any:
    """Fit as usual."""
    return estimator.fit(X, y, **parameters)


@dataclass(frozen=True)
class Case:
    """One model: what is fitted to the first `n_fit` rows, and certified on all of them."""

    name: str
    estimator: Any
    X: Any
    y: Any
    n_fit: int = 240
    fixed: Collection[str | int] = ()
    fit_params: Mapping[str, Any] = field(default_factory=dict)
    fit: Fit = plain_fit

    def fitted(self) -> Any:
        """Return the fitted estimator."""
        return self.fit(self.estimator, self.X[: self.n_fit], self.y[: self.n_fit], **self.fit_params)


# -- data ------------------------------------------------------------------------------------------


def in_random_order(X: Any, y: Any, n_rows: int) -> tuple[Any, Any]:
    """Return some rows: scikit-learn's are sorted by class."""
    order = np.random.default_rng(0).permutation(len(X))[:n_rows]
    return X[order], y[order]


@functools.cache
def digits() -> tuple[Any, Any]:
    """Flat rows of 64 pixels from 0 to 1, ten classes."""
    X, y = load_digits(return_X_y=True)
    return in_random_order(X / 16, y, 360)


@functools.cache
def images() -> tuple[Any, Any]:
    """The digits as images, channels first."""
    X, y = digits()
    return X.reshape(-1, 1, 8, 8), y


@functools.cache
def iris() -> tuple[Any, Any]:
    """Four columns in centimetres, three classes."""
    return in_random_order(*load_iris(return_X_y=True), 150)


@functools.cache
def wine() -> tuple[Any, Any]:
    """Thirteen columns of very different scales, three classes."""
    return in_random_order(*load_wine(return_X_y=True), 178)


@functools.cache
def cancer() -> tuple[Any, Any]:
    """Thirty columns of very different scales, two classes."""
    return in_random_order(*load_breast_cancer(return_X_y=True), 360)


@functools.cache
def blobs(n_classes: int = 3) -> tuple[Any, Any]:
    """Eight columns of noise and information."""
    return make_classification(360, 8, n_informative=5, n_classes=n_classes, random_state=0)


@functools.cache
def mixed() -> tuple[pd.DataFrame, Any]:
    """Numbers, missing ones among them, and a category."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "city": rng.choice(["Lyon", "Oslo", "Rome"], 360),
            "age": rng.uniform(20, 70, 360),
            "visits": rng.integers(0, 30, 360),
            "income": rng.lognormal(3, 1, 360),
        }
    )
    late = table["age"] + table["visits"] + 20 * (table["city"] == "Oslo") > 65
    table.loc[rng.random(360) < 0.1, "income"] = np.nan
    return table, np.where(late, "yes", "no")


def with_gaps(X: NDArray[Any]) -> NDArray[Any]:
    """Return X with some values missing, in about a fifth of the rows."""
    rng = np.random.default_rng(0)
    X = X.copy()
    gaps = rng.choice(len(X), len(X) // 5)
    X[gaps, rng.integers(X.shape[1], size=len(gaps))] = np.nan
    return X


# -- models ----------------------------------------------------------------------------------------


def quick(**parameters: Any) -> LipschitzClassifier:
    """Return a small classifier, trained in four batches an epoch."""
    defaults = {
        "hidden_layer_sizes": (16,),
        "max_epochs": 8,
        "batch_size": 64,
        "device": "cpu",
        "random_state": 0,
    }
    return LipschitzClassifier(**{**defaults, **parameters})


def custom(make: Callable[[tuple[int, ...], int], nn.Module], **parameters: Any) -> LipschitzClassifier:
    """Return a classifier with a network of its own."""
    return quick(architecture=make, hidden_layer_sizes="auto", **{"max_epochs": 4, **parameters})


def plain_linear(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """Dense layers without any constraint."""
    return nn.Sequential(
        nn.Linear(input_shape[0], 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, n_outputs)
    )


def plain_conv(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """Convolutions without any constraint: a stride, groups and a dilation."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, n_outputs),
    )


def activated(make: Callable[[], nn.Module], input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """Orthogonal dense layers with an activation between them."""
    first = layers.SpectralLinear(input_shape[0], 16)
    middle = layers.SpectralLinear(16, 12)
    return nn.Sequential(first, make(), middle, make(), layers.SpectralLinear(12, n_outputs))


def pooled(make: Callable[[], nn.Module], input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """A spectral and an orthogonal convolution, each with a pool."""
    return nn.Sequential(
        layers.SpectralConv2d(input_shape[0], 8, 3),
        layers.GroupSort2(),
        make(),
        layers.OrthogonalConv2d(8, 8, 3),
        layers.GroupSort2(),
        make(),
        nn.Flatten(),
        layers.SpectralLinear(32, n_outputs),
    )


def circular(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """Convolutions around the border, with and without a stride, of constants other than 1."""
    return layers.Sequential(
        layers.OrthogonalConv2d(input_shape[0], 4, 2, 2, padding_mode="circular", k=2.0),
        layers.GroupSort2(),
        layers.SpectralConv2d(4, 6, 3, padding_mode="circular", bias=False, k=0.5),
        layers.GroupSort(3),
        nn.Flatten(),
        layers.SpectralLinear(96, n_outputs, k=3.0),
        k=1.5,
    )


def scaled_chain(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """Chains in a chain, each with a constant."""
    inner = layers.Sequential(layers.SpectralLinear(16, 12, k=0.3), layers.GroupSort(4), k=4.0)
    return layers.Sequential(
        layers.SpectralLinear(input_shape[0], 16, k=7.0),
        layers.FullSort(),
        layers.Scale(0.5),
        inner,
        layers.SpectralLinear(12, n_outputs, bias=False),
        k=2.0,
    )


def dense_residual(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """Ways around dense layers, one in the other, in a chain of constant 1."""
    inner = layers.Residual(layers.SpectralLinear(16, 16), layers.GroupSort2())
    return layers.Sequential(
        layers.SpectralLinear(input_shape[0], 16),
        layers.Residual(layers.SpectralLinear(16, 16), layers.GroupSort2(), inner, layers.Scale(0.5)),
        layers.GroupSort2(),
        layers.SpectralLinear(16, n_outputs),
    )


def conv_residual(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """A way around convolutions, in torch's chain: of a constant above 1."""
    return nn.Sequential(
        layers.OrthogonalConv2d(input_shape[0], 8, 3, 2),
        layers.GroupSort2(),
        layers.Residual(layers.OrthogonalConv2d(8, 8, 3), nn.ReLU(), layers.SpectralConv2d(8, 8, 3)),
        layers.GroupSort2(),
        nn.Flatten(),
        layers.SpectralLinear(128, n_outputs),
    )


def with_dropout(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """Dropout and an activation in place."""
    return nn.Sequential(
        nn.Linear(input_shape[0], 16),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Identity(),
        nn.Linear(16, n_outputs),
    )


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "LeakyReLU": functools.partial(nn.LeakyReLU, 0.2),
    "Tanh": nn.Tanh,
    "Sigmoid": nn.Sigmoid,
    "Softplus": nn.Softplus,
    "GroupSort2": layers.GroupSort2,
    "GroupSort(4)": functools.partial(layers.GroupSort, 4),
    "FullSort": layers.FullSort,
}

POOLS: dict[str, Callable[[], nn.Module]] = {
    "MaxPool2d": functools.partial(nn.MaxPool2d, 2),
    "AvgPool2d": functools.partial(nn.AvgPool2d, 2),
    "ScaledL2NormPool2d": functools.partial(layers.ScaledL2NormPool2d, 2),
    "ScaledAvgPool2d": functools.partial(layers.ScaledAvgPool2d, 2),
}


# -- cases -----------------------------------------------------------------------------------------


def classifier_cases() -> Iterator[Case]:
    """Yield the classifier's own networks, precisions and inputs."""
    X, y = digits()
    pictures, _ = images()
    yield Case("dense, ten classes", quick(), X, y)
    yield Case("dense, defaults", quick(hidden_layer_sizes="auto", max_epochs=2), X, y)
    yield Case("dense, three classes", quick(), *iris(), 100)
    yield Case("dense, two classes", quick(), *blobs(2))
    yield Case("dense, float32", quick(dtype="float32"), X, y)
    yield Case("dense, float32, two classes", quick(dtype="float32"), *blobs(2))
    yield Case("linear", quick(hidden_layer_sizes=()), *iris(), 100)
    yield Case("no features lost", quick(hidden_layer_sizes=(64, 32)), X, y)
    long = np.vstack([blobs(2)[0][:300], blobs(2)[0][300:] * 10.0 ** np.arange(-30, 30)[:, None]])
    yield Case("very long and very short rows", quick(dtype="float32"), long, blobs(2)[1])
    far = blobs(3)[0] * 0.1 + 100
    yield Case("dense, float32, far from 0", quick(dtype="float32"), far, blobs(3)[1])
    yield Case("dense, other scales", quick(), *wine(), 120)
    yield Case("cnn", quick(hidden_layer_sizes="auto", max_epochs=2), pictures, y)
    yield Case("cnn, two classes", quick(conv_channels=(4, 8), max_epochs=4), pictures, y % 2)
    yield Case("cnn, float64", quick(conv_channels=(4, 8), max_epochs=4, dtype="float64"), pictures, y)
    small = quick(conv_channels=(4, 8), max_epochs=4)
    yield Case("uint8 images", small, (pictures * 16).astype(np.uint8), y)
    yield Case("float32 images without channels", small, pictures[:, 0].astype(np.float32), y)
    flat = quick(conv_channels=(4, 8), max_epochs=4, input_shape=(1, 8, 8))
    yield Case("flat rows as images", flat, X, y)
    last = np.concatenate([pictures, pictures[:, :, ::-1]], axis=1).transpose(0, 2, 3, 1)
    channels = quick(conv_channels=(4, 8), max_epochs=4, input_shape=(2, 8, 8))
    yield Case("channels last", channels, last, y)
    yield Case("dense on images", quick(architecture="mlp"), pictures, y)
    yield Case("tensor", quick(), torch.from_numpy(X), y)
    frame = pd.DataFrame(iris()[0], columns=["a", "b", "c", "d"])
    yield Case("DataFrame", quick(), frame, iris()[1], 100)
    yield Case("DataFrame, fixed column", quick(), frame, iris()[1], 100, fixed=["b", "d"])
    yield Case("fixed columns", quick(), *blobs(), fixed=(0, 3))
    yield Case("fixed columns, linear", quick(hidden_layer_sizes=()), *blobs(), fixed=(0, 3))
    yield Case("fixed columns, features lost", quick(), X, y, fixed=range(0, 64, 2))
    yield Case("fixed columns, float32", quick(dtype="float32"), *blobs(2), fixed=(1, 2, 7))
    yield Case("string labels", quick(), iris()[0], load_iris().target_names[iris()[1]], 100)
    yield Case("boolean labels", quick(), blobs(2)[0], blobs(2)[1] == 1)


def network_cases() -> Iterator[Case]:
    """Yield networks that the caller builds."""
    table, pictures = blobs(), images()
    yield Case("plain Linear", custom(plain_linear, max_epochs=8), *table)
    yield Case("plain Linear, float32", custom(plain_linear, dtype="float32"), *blobs(2))
    yield Case("plain Conv2d", custom(plain_conv), *pictures)
    yield Case("Dropout", custom(with_dropout, max_epochs=8), *table)
    for name, make in ACTIVATIONS.items():
        yield Case(name, custom(functools.partial(activated, make), max_epochs=8), *table)
    for name in ("Tanh", "Softplus"):
        make = functools.partial(activated, ACTIVATIONS[name])
        yield Case(f"{name}, float32", custom(make, dtype="float32"), *table)
    for name, make in POOLS.items():
        yield Case(name, custom(functools.partial(pooled, make)), *pictures)
    yield Case("circular", custom(circular), *pictures)
    yield Case("scaled chain", custom(scaled_chain, max_epochs=8), *table)
    yield Case("dense residual", custom(dense_residual, max_epochs=8), *table)
    yield Case("convolutional residual", custom(conv_residual), *pictures)
    yield Case("tutorial_cnn", custom(networks.tutorial_cnn), *pictures)
    cnn = functools.partial(networks.lipschitz_cnn, conv_channels=(4, 4, 8), hidden_layer_sizes=(16, 8))
    yield Case("lipschitz_cnn", custom(cnn), *pictures)
    mlp = functools.partial(networks.lipschitz_mlp, hidden_layer_sizes=(16, 8))
    yield Case("lipschitz_mlp on images", custom(mlp), *pictures)


def training_cases() -> Iterator[Case]:
    """Yield losses, solvers and the other settings of training."""
    X, y = digits()
    pictures, _ = images()
    for loss in ("hkr", "lse_hkr", "logit_annealing"):
        yield Case(f"{loss}", quick(loss=loss), X, y)
        yield Case(f"{loss}, two classes", quick(loss=loss), *blobs(2))
    yield Case("hkr, hinge alone", quick(loss="hkr", alpha=np.inf, min_margin=0.5), X, y)
    yield Case("eps", quick(eps=0.3, tau=10.0), X, y)
    yield Case("eps, logit_annealing", quick(loss="logit_annealing", eps=0.3), X, y)
    yield Case("muon, one batch", quick(solver="muon", batch_size=256), X, y)
    yield Case("muon, several batches", quick(solver="muon", batch_size=64), X, y)
    yield Case("muon, batches of unequal size", quick(solver="muon", batch_size=100), X, y)
    yield Case("one batch of few rows", quick(batch_size=256, max_epochs=100), X, y)
    yield Case("one batch, two classes", quick(batch_size=256), *blobs(2))
    yield Case("adam, several batches", quick(solver="adam", learning_rate=0.02), X, y)
    yield Case("adam, float32", quick(solver="adam", learning_rate=0.02, dtype="float32"), X, y)
    adam = {"solver": "adam", "learning_rate": 0.01, "max_epochs": 3}
    yield Case("adam, cnn", quick(conv_channels=(4, 8), **adam), pictures, y)
    yield Case("adam, tutorial_cnn", custom(networks.tutorial_cnn, **adam), pictures, y)
    yield Case("adam, residual", custom(dense_residual, **adam), *blobs())
    yield Case("adam, plain Linear", custom(plain_linear, **adam), *blobs())
    constant = quick(learning_rate_schedule="constant", learning_rate=0.01, batch_size=100)
    yield Case("constant rate", constant, X, y)
    yield Case("auto epochs", quick(max_epochs="auto"), *iris(), 100)
    stopping = quick(early_stopping=True, n_iter_no_change=2, validation_fraction=0.2, max_epochs=30)
    yield Case("early stopping", stopping, *iris(), 100)
    one_batch = quick(early_stopping=True, batch_size=256, learning_rate=0.02)
    yield Case("early stopping, adam", one_batch, X, y)
    weight = np.random.default_rng(0).integers(0, 3, 240).astype(float)
    weighted = {"sample_weight": weight}
    yield Case("sample_weight", quick(), X, y, fit_params=weighted)
    yield Case("sample_weight, one batch", quick(batch_size=256), X, y, fit_params=weighted)
    yield Case("class_weight balanced", quick(class_weight="balanced"), X, y**2 // 10)
    both = quick(class_weight={0: 1.0, 1: 5.0})
    yield Case("class_weight and sample_weight", both, *blobs(2), fit_params=weighted)
    yield Case("partial_fit twice", quick(), X, y, fit=partly_twice)
    yield Case("partial_fit twice, adam", quick(solver="adam"), *blobs(2), fit=partly_twice)
    yield Case("fit, then partial_fit", quick(), X, y, fit=fitted_then_partly)
    yield Case("warm_start", quick(warm_start=True, max_epochs=3), X, y, fit=fitted_twice)
    yield Case("pickled", quick(), X, y, fit=pickled)
    shifted = quick(conv_channels=(4, 8), max_epochs=3, augmentation=RandomShift(1))
    yield Case("augmentation", shifted, pictures, y)


def partly_twice(estimator: Any, X: Any, y: Any) -> Any:
    """Return the estimator after two calls of partial_fit on parts of the rows."""
    half = len(X) // 2
    estimator.partial_fit(X[:half], y[:half], classes=np.unique(y))
    return estimator.partial_fit(X[half:], y[half:])


def fitted_then_partly(estimator: Any, X: Any, y: Any) -> Any:
    """Return the estimator after fit and partial_fit."""
    return estimator.fit(X, y).partial_fit(X[::2], y[::2])


def fitted_twice(estimator: Any, X: Any, y: Any) -> Any:
    """Return the estimator after two fits."""
    return estimator.fit(X, y).fit(X, y)


def pickled(estimator: Any, X: Any, y: Any) -> Any:
    """Return the fitted estimator as it comes back from pickle."""
    return pickle.loads(pickle.dumps(estimator.fit(X, y)))


def pipeline_cases() -> Iterator[Case]:
    """Yield pipelines of steps, known by name, on tables."""
    X, y = cancer()
    chains: dict[str, list[Any]] = {
        "StandardScaler": [StandardScaler()],
        "StandardScaler without mean": [StandardScaler(with_mean=False)],
        "MinMaxScaler": [MinMaxScaler((-1, 1))],
        "MinMaxScaler, clip": [MinMaxScaler(clip=True)],
        "MaxAbsScaler": [MaxAbsScaler()],
        "RobustScaler": [RobustScaler()],
        "PCA": [PCA(5, random_state=0)],
        "PCA, whiten": [PCA(5, whiten=True, random_state=0)],
        "TruncatedSVD": [TruncatedSVD(5, random_state=0)],
        "VarianceThreshold": [VarianceThreshold(0.01), StandardScaler()],
        "SelectKBest": [SelectKBest(k=8), StandardScaler()],
        "passthrough": ["passthrough"],
        "nested": [Pipeline([("a", MinMaxScaler()), ("b", "passthrough"), ("c", StandardScaler())])],
        "nested twice": [make_pipeline(make_pipeline(MinMaxScaler((0, 7)), None), RobustScaler())],
        "StandardScaler, PCA": [StandardScaler(), PCA(5, random_state=0)],
        "StandardScaler, PCA, whiten": [StandardScaler(), PCA(5, whiten=True, random_state=0)],
        "PCA, StandardScaler": [PCA(5, random_state=0), StandardScaler()],
        "StandardScaler, MinMaxScaler": [StandardScaler(), MinMaxScaler()],
        "FrozenEstimator step": [FrozenEstimator(StandardScaler().fit(X))],
        "FeatureUnion": [
            FeatureUnion(
                [("a", MinMaxScaler()), ("b", PCA(3, random_state=0)), ("c", "drop")],
                transformer_weights={"a": 0.5, "b": 0.01},
            )
        ],
        "FeatureUnion with passthrough": [
            StandardScaler(),
            FeatureUnion([("a", "passthrough"), ("b", RobustScaler())]),
        ],
        "PCA, FeatureUnion": [
            PCA(5, random_state=0),
            FeatureUnion([("a", MinMaxScaler()), ("b", StandardScaler())]),
        ],
        "ColumnTransformer, disjoint": [
            ColumnTransformer(
                [("a", StandardScaler(), slice(0, 10)), ("b", MinMaxScaler(), [12, 20, 15])],
            )
        ],
        "ColumnTransformer, remainder": [
            ColumnTransformer([("a", StandardScaler(), slice(0, 25))], remainder="passthrough"),
            StandardScaler(),
        ],
        "ColumnTransformer, overlapping": [
            ColumnTransformer(
                [("a", StandardScaler(), slice(0, 20)), ("b", RobustScaler(), slice(10, 30))]
            )
        ],
        "ColumnTransformer, weights": [
            ColumnTransformer(
                [
                    ("a", make_pipeline(StandardScaler(), PCA(4, random_state=0)), slice(0, 20)),
                    ("b", MinMaxScaler(), slice(20, 30)),
                ],
                transformer_weights={"a": 0.3, "b": 2.0},
            )
        ],
        "PCA, ColumnTransformer": [
            PCA(6, random_state=0),
            ColumnTransformer([("a", StandardScaler(), [0, 1, 2]), ("b", MinMaxScaler(), [2, 3])]),
        ],
    }
    for name, steps in chains.items():
        yield Case(f"pipeline: {name}", make_pipeline(*steps, quick()), X, y)
    some_fixed = [column for column in range(30) if column % 4]
    for name in ("StandardScaler", "StandardScaler, PCA", "FeatureUnion", "ColumnTransformer, weights"):
        steps = chains[name]
        yield Case(f"fixed columns: {name}", make_pipeline(*steps, quick()), X, y, fixed=some_fixed)
        single = make_pipeline(*steps, quick(dtype="float32"))
        yield Case(f"float32 X and network: {name}", single, X.astype(np.float32), y)
        yield Case(f"float32 X: {name}", make_pipeline(*steps, quick()), X.astype(np.float32), y)
    gaps = with_gaps(X)
    imputer = make_pipeline(SimpleImputer(), StandardScaler(), quick())
    yield Case("pipeline: SimpleImputer", imputer, gaps, y)
    yield Case("fixed columns: SimpleImputer", imputer, gaps, y, fixed=some_fixed)
    told = make_pipeline(SimpleImputer(add_indicator=True, strategy="median"), RobustScaler(), quick())
    yield Case("pipeline: SimpleImputer, indicator", told, gaps, y)
    yield Case("pipeline: ten classes", make_pipeline(MinMaxScaler(), quick()), *digits())
    sparse_rows = sparse.csr_array(digits()[0])
    svd = make_pipeline(MaxAbsScaler(), TruncatedSVD(10, random_state=0), quick())
    yield Case("pipeline: sparse rows", svd, sparse_rows, digits()[1])
    cnn = quick(input_shape=(1, 8, 8), conv_channels=(4, 8), max_epochs=3)
    yield Case("pipeline: StandardScaler, cnn", make_pipeline(StandardScaler(), cnn), *digits())
    pooling = custom(functools.partial(pooled, POOLS["MaxPool2d"]), input_shape=(1, 8, 8))
    yield Case("pipeline: MinMaxScaler, MaxPool2d", make_pipeline(MinMaxScaler(), pooling), *digits())
    plain = custom(plain_linear)
    yield Case("pipeline: StandardScaler, plain Linear", make_pipeline(StandardScaler(), plain), X, y)
    residual = custom(dense_residual)
    yield Case("pipeline: StandardScaler, residual", make_pipeline(StandardScaler(), residual), X, y)
    frame = pd.DataFrame(iris()[0], columns=["a", "b", "c", "d"])
    yield Case("pipeline: DataFrame", make_pipeline(StandardScaler(), quick()), frame, iris()[1], 100)


def table_cases() -> Iterator[Case]:
    """Yield tables of numbers and categories."""
    table, y = mixed()
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    codes = OneHotEncoder(sparse_output=False, handle_unknown="ignore")
    parts = [("numbers", numbers, ["age", "visits", "income"]), ("codes", codes, ["city"])]
    encoded = make_pipeline(ColumnTransformer(parts), quick())
    yield Case("OneHotEncoder on a fixed column", encoded, table, y, fixed=["city"])
    yield Case("two fixed columns", encoded, table, y, fixed=["city", "income"])
    yield Case("a fixed column by position", encoded, table, y, fixed=[0])
    single = make_pipeline(ColumnTransformer(parts), quick(dtype="float32"))
    yield Case("OneHotEncoder, float32 network", single, table, y, fixed=["city"])
    weights = {"numbers": 0.5, "codes": 3.0}
    floats = table.astype({"city": "category"}).assign(
        city=lambda t: t["city"].cat.codes.astype(float), visits=lambda t: t["visits"].astype(float)
    )
    weighted = ColumnTransformer(parts, transformer_weights=weights)
    yield Case("OneHotEncoder, weights", make_pipeline(weighted, quick()), floats, y, fixed=["city"])
    overlapping = [*parts, ("again", MinMaxScaler(), ["age", "visits"])]
    union = make_pipeline(ColumnTransformer(overlapping), PCA(4, random_state=0), quick())
    yield Case("OneHotEncoder, overlapping, PCA", union, table, y, fixed=["city"])


def wrapper_cases() -> Iterator[Case]:
    """Yield calibrations, searches and frozen estimators."""
    X, y = digits()
    calibrate = {"method": "temperature", "ensemble": False, "cv": 2}
    yield Case("temperature, ten classes", CalibratedClassifierCV(quick(), **calibrate), X, y)
    yield Case("temperature, two classes", CalibratedClassifierCV(quick(), **calibrate), *blobs(2))
    single = quick(dtype="float32")
    yield Case("temperature, float32", CalibratedClassifierCV(single, **calibrate), X, y)
    inner = CalibratedClassifierCV(make_pipeline(StandardScaler(), quick()), **calibrate)
    yield Case("temperature of a pipeline", inner, *cancer())
    outer = make_pipeline(StandardScaler(), CalibratedClassifierCV(quick(), **calibrate))
    yield Case("temperature in a pipeline", outer, *wine(), 120)
    pipeline = make_pipeline(StandardScaler(), quick(max_epochs=4))
    search = GridSearchCV(pipeline, {"lipschitzclassifier__tau": [1.0, 10.0]}, cv=2)
    yield Case("GridSearchCV", search, *wine(), 120)
    inside = make_pipeline(MinMaxScaler(), GridSearchCV(quick(), {"tau": [1.0, 10.0]}, cv=2))
    yield Case("GridSearchCV in a pipeline", inside, *wine(), 120)
    yield Case("FrozenEstimator", quick(), X, y, fit=frozen)
    yield Case("FrozenEstimator in a pipeline", quick(), *wine(), 120, fit=frozen_in_a_pipeline)
    yield Case("temperature of a FrozenEstimator", quick(), X, y, fit=frozen_with_temperature)


def frozen(estimator: Any, X: Any, y: Any) -> Any:
    """Return the fitted estimator, frozen."""
    return FrozenEstimator(estimator.fit(X, y))


def frozen_in_a_pipeline(estimator: Any, X: Any, y: Any) -> Any:
    """Return a pipeline that ends in the fitted estimator."""
    scaler = StandardScaler().fit(X)
    return make_pipeline(scaler, frozen(estimator, scaler.transform(X), y)).fit(X, y)


def frozen_with_temperature(estimator: Any, X: Any, y: Any) -> Any:
    """Return the fitted estimator with a temperature found on other rows."""
    return CalibratedClassifierCV(frozen(estimator, X[:120], y[:120]), method="temperature").fit(
        X[120:], y[120:]
    )


def all_cases() -> Iterator[Case]:
    """Yield all cases."""
    yield from classifier_cases()
    yield from network_cases()
    yield from training_cases()
    yield from pipeline_cases()
    yield from table_cases()
    yield from wrapper_cases()


# -- storing ---------------------------------------------------------------------------------------


def inner_classifier(estimator: Any) -> LipschitzClassifier | None:
    """Return the LipschitzClassifier that an estimator predicts with."""
    if isinstance(estimator, LipschitzClassifier):
        return estimator
    if isinstance(estimator, Pipeline):
        return inner_classifier(estimator[-1])
    for name in ("best_estimator_", "estimator"):
        if hasattr(estimator, name) and not isinstance(estimator, CalibratedClassifierCV):
            return inner_classifier(getattr(estimator, name))
    if isinstance(estimator, CalibratedClassifierCV):
        return inner_classifier(estimator.calibrated_classifiers_[0].estimator)
    return None


def as_plain(labels: Any) -> NDArray[Any]:
    """Return labels in an array that needs no pickle."""
    labels = np.asarray(labels)
    return labels if labels.dtype.kind in "biufU" else labels.astype(str)


def taken(case: Case) -> Snapshot:
    """Fit one case and return what is compared; an error takes the place of what it kept back."""
    nothing = np.zeros(0)
    found: Snapshot = dict.fromkeys(PARTS, nothing)
    found["error"] = np.array("")
    try:
        estimator = case.fitted()
        found["labels"] = as_plain(estimator.predict(case.X))
        clf = inner_classifier(estimator)
        if clf is not None:
            weights = [values.detach().flatten().double() for values in clf.to_torch().parameters()]
            found["weights"] = torch.cat([torch.zeros(0, dtype=torch.float64), *weights]).numpy()
            found["bound"] = np.array([clf.lipschitz_bound_], dtype=np.float64)
        radii = certificates(estimator, case.X, fixed_columns=case.fixed)
        found["radii"] = np.asarray(radii, dtype=np.float64)
    except Exception as error:  # one case that fails is a finding, and must not hide the others
        found["error"] = np.array(f"{type(error).__name__}: {error}")
    return found


def environment() -> dict[str, str]:
    """Return all that decides about bits, and where sklip comes from."""
    return {
        "sklip": str(sklip.__file__),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        **{module.__name__: module.__version__ for module in (torch, np, scipy, sklearn, pd)},
    }


def store(path: str) -> None:
    """Fit every case, print a line for each, and store what came out."""
    arrays = {f"environment|{name}": np.array(value) for name, value in environment().items()}
    print(f"sklip from {sklip.__file__}", flush=True)
    names, failed, start = set(), 0, time.perf_counter()
    for case in all_cases():
        if case.name in names:
            raise ValueError(f"two cases are called {case.name!r}")
        names.add(case.name)
        before = time.perf_counter()
        found = taken(case)
        seconds = time.perf_counter() - before
        arrays.update({f"case|{case.name}|{part}": values for part, values in found.items()})
        message = str(found["error"])
        if message:
            failed += 1
            print(f"{case.name}: {message}", flush=True)
            continue
        radii = found["radii"]
        accuracy = np.mean(found["labels"] == as_plain(case.y))
        print(
            f"{case.name}: {len(radii)} rows, accuracy {accuracy:.2f}, "
            f"{np.mean(radii > 0):.2f} certified, median radius {np.median(radii):.3g}, "
            f"{found['weights'].size} weights, bound {found['bound'][0]:.6g}, {seconds:.1f} s",
            flush=True,
        )
    np.savez(path, **arrays)
    print(f"{len(names)} cases, {failed} failed, {time.perf_counter() - start:.0f} s")


# -- comparing -------------------------------------------------------------------------------------


def read(path: str) -> tuple[dict[str, str], dict[str, Snapshot]]:
    """Return what `store` wrote: environment and cases."""
    settings: dict[str, str] = {}
    cases: dict[str, Snapshot] = {}
    with np.load(path, allow_pickle=False) as stored:
        for key in stored.files:
            kind, name = key.split("|", 1)
            if kind == "environment":
                settings[name] = str(stored[key])
            else:
                name, part = name.rsplit("|", 1)
                cases.setdefault(name, {})[part] = stored[key]
    return settings, cases


def same_bits(old: NDArray[Any], new: NDArray[Any]) -> bool:
    """Whether two arrays agree to the last bit, signs of zeros included."""
    return old.dtype == new.dtype and old.shape == new.shape and old.tobytes() == new.tobytes()


def described_weights(old: NDArray[np.float64], new: NDArray[np.float64]) -> str:
    """Say whether weights are equal bit for bit, and how far off they are if not."""
    if old.size == 0 and new.size == 0:
        return "none"
    if same_bits(old, new):
        return "yes"
    if old.shape != new.shape:
        return f"no: {old.size} before, {new.size} now"
    return f"no: {np.sum(old != new)} of {old.size} differ, by up to {np.abs(new - old).max():.1e}"


def described_labels(old: NDArray[Any], new: NDArray[Any]) -> str:
    """Say whether labels are equal, and how many are not."""
    if old.shape != new.shape:
        return f"no: {old.size} before, {new.size} now"
    changed = int(np.sum(old != new))
    return "yes" if changed == 0 else f"no: {changed} differ"


def described_radii(old: NDArray[np.float64], new: NDArray[np.float64]) -> str:
    """Say how many radii are smaller and larger, and by which share of themselves at most."""
    if same_bits(old, new):
        return "equal"
    if old.shape != new.shape:
        return f"{old.size} before, {new.size} now"
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.where(old == new, 0.0, new / old - 1)
    smaller, larger = old > new, new > old
    parts = []
    if smaller.any():
        parts.append(f"{smaller.sum()} smaller, by up to {-change[smaller].min():.1e}")
    if larger.any():
        parts.append(f"{larger.sum()} larger, by up to {change[larger].max():.1e}")
    unordered = int(np.sum(np.isnan(old) != np.isnan(new)))
    if unordered:
        parts.append(f"{unordered} nan in one")
    for title, gone in (("became 0", (new == 0) & (old != 0)), ("were 0", (old == 0) & (new != 0))):
        if gone.any():
            parts.append(f"{gone.sum()} {title}")
    return "; ".join(parts) or "equal but for signs of zero or nan"


def described_bound(old: NDArray[np.float64], new: NDArray[np.float64]) -> str:
    """Say whether the proven bound is the same, and how far it has moved if not."""
    if same_bits(old, new):
        return "yes" if old.size else "none"
    if old.shape != new.shape:
        return "no: missing in one"
    return f"no: {new[0] / old[0] - 1:+.1e}"


def compare(old_path: str, new_path: str) -> None:
    """Print a row of Markdown for each case, and how many are the same throughout."""
    (old_settings, old), (new_settings, new) = read(old_path), read(new_path)
    print(f"old: {old_path}, sklip from {old_settings['sklip']}")
    print(f"new: {new_path}, sklip from {new_settings['sklip']}\n")
    for name in old_settings:
        if name != "sklip" and old_settings[name] != new_settings.get(name):
            print(f"Other {name}: {old_settings[name]} before, {new_settings.get(name)} now\n")
    print("| case | rows | weights equal bit for bit | bound equal | labels equal | radii |")
    print("| --- | --- | --- | --- | --- | --- |")
    equal, names = 0, list(dict.fromkeys([*old, *new]))
    for name in names:
        if name not in old or name not in new:
            print(f"| {name} | only in {'new' if name in new else 'old'} | | | | |")
            continue
        before, after = old[name], new[name]
        errors = [str(part["error"]).replace("|", "/").replace("\n", " ") for part in (before, after)]
        if any(errors):
            said = [error or "none" for error in errors]
            print(f"| {name} | error before: {said[0]}; now: {said[1]} | | | | |")
            continue
        cells = [
            described_weights(before["weights"], after["weights"]),
            described_bound(before["bound"], after["bound"]),
            described_labels(before["labels"], after["labels"]),
            described_radii(before["radii"], after["radii"]),
        ]
        equal += all(cell in ("yes", "none", "equal") for cell in cells)
        print(f"| {name} | {before['radii'].size} | {' | '.join(cells)} |")
    print(f"\n{len(names)} cases, {equal} fully equal")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    storing = commands.add_parser("store", help="fit all cases and store what came out")
    storing.add_argument("file")
    comparing = commands.add_parser("compare", help="print a table of two stored files")
    comparing.add_argument("old")
    comparing.add_argument("new")
    arguments = parser.parse_args()
    if arguments.command == "compare":
        compare(arguments.old, arguments.new)
        return
    # One thread: how a sum is split over threads decides about its last bits.
    torch.set_num_threads(1)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store(arguments.file)


if __name__ == "__main__":
    main()
