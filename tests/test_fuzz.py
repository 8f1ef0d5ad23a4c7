r"""Whatever is passed in: a classifier whose radii hold in exact arithmetic, or an error that says why.

A few hundred cases, the same each time; ``pytest tests/test_fuzz.py --hypothesis-profile=long`` draws
thousands of others.
"""

import contextlib
import copy
import datetime
import decimal
import enum
import io
import itertools
import pickle
import tempfile
import warnings
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import skops.io as skops
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklip import (
    LipschitzClassifier,
    LipschitzClassifierCV,
    average_certified_radius_scorer,
    certificates,
    certified_accuracy_scorer,
    certified_ranges,
    counterfactual,
    nearest_rival,
    predict_or_reject,
    predict_with_radii,
)
from sklip.certified import CertifiedNetwork, load_network, save_network
from sklip.layers import Center, GroupSort2

# Heard by `quiet`.
pytestmark = pytest.mark.filterwarnings("ignore")
REFUSALS = (ValueError, TypeError)


def cases(n_examples):
    """So many, the same each time; with the profile "long" its own number, drawn anew."""
    long = settings.get_profile("long")
    if settings.default.max_examples == long.max_examples:
        return long
    return settings(max_examples=n_examples, derandomize=True, deadline=None)


# -- what X is made of -------------------------------------------------------------------------


def _mixed(rng, shape):
    return rng.normal(size=shape) * 10.0 ** rng.integers(-300, 300, size=shape)


def _with_one(value):
    def values(rng, shape):
        X = rng.normal(size=shape)
        X.flat[: X.size // 3 : 4] = value
        return X

    return values


VALUES = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "pixels": lambda rng, shape: rng.integers(0, 256, shape).astype(float),
    "binary": lambda rng, shape: rng.integers(0, 2, shape).astype(float),
    "constant": lambda rng, shape: np.full(shape, 0.1),
    "zero": lambda rng, shape: np.zeros(shape),
    "subnormal": lambda rng, shape: 1e-310 * rng.normal(size=shape),
    "tiny": lambda rng, shape: 1e-200 * rng.normal(size=shape),
    "far": lambda rng, shape: 1e15 + rng.normal(size=shape),
    "whole numbers above 2 ** 53": lambda rng, shape: 2.0**60 + 2.0**12 * rng.integers(0, 9, shape),
    "large for float32": lambda rng, shape: 1e38 * rng.normal(size=shape),
    "large": lambda rng, shape: 1e150 * rng.normal(size=shape),
    "largest": lambda rng, shape: 1.7e308 * rng.choice([-1, 1], shape),
    "mixed": _mixed,
    "NaN": _with_one(np.nan),
    "infinite": _with_one(np.inf),
}
TYPES = [*"?bBhHiIqQefdgFDGOUS", "M8[s]", "m8[s]", "V8", "T"]


def _memmap(X):
    # Closed by the array.
    file = tempfile.TemporaryFile()  # noqa: SIM115
    mapped = np.memmap(file, X.dtype, "w+", shape=X.shape)
    mapped[...] = X
    return mapped


def _misaligned(X):
    moved = np.empty(X.nbytes + 1, np.uint8)[1:].view(X.dtype).reshape(X.shape)
    moved[...] = X
    return moved


def _readonly(X):
    X.flags.writeable = False
    return X


def _masked(X):
    return np.ma.array(X, mask=np.eye(*X.shape, dtype=bool) if X.ndim == 2 else False)


LAYOUTS = {
    "C": lambda X: X,
    "F": np.asfortranarray,
    "reversed": lambda X: X[::-1, ::-1].copy()[::-1, ::-1],
    "every second": lambda X: np.repeat(np.repeat(X, 2, 0), 2, 1)[::2, ::2],
    "one row repeated": lambda X: np.broadcast_to(X[:1], X.shape),
    "read-only": _readonly,
    "big-endian": lambda X: X.astype(X.dtype.newbyteorder(">")),
    "memmap": _memmap,
    "misaligned": _misaligned,
    "matrix": np.asmatrix,
    "mask of nothing": np.ma.array,
    "masked": _masked,
    "one value": lambda X: X[0, 0],
    "0-d": lambda X: X[:1, :1].reshape(()),
    "1-d": lambda X: X[:, 0],
    "no rows": lambda X: X[:0],
    "no columns": lambda X: X[:, :0],
    "one row": lambda X: X[:1],
    "3-d": lambda X: X[:, :, None],
    "images": lambda X: np.repeat(X[:, None, :], 2, 1),
    "images of channels": lambda X: X[:, :, None, None] + np.zeros((2, 3), X.dtype),
    "channels last": lambda X: np.repeat(X[:, None, None, :1], 5, 1),
    "5-d": lambda X: X[:, :, None, None, None],
}


def _as_tensor(dtype, **options):
    return lambda X: torch.tensor(X.tolist()).to(dtype).requires_grad_(**options)


def _frame(dtype, **options):
    return lambda X: pd.DataFrame(X, **options).astype(dtype)


def _named(names):
    return lambda X: pd.DataFrame(X, columns=list(itertools.islice(itertools.cycle(names), X.shape[1])))


def _mixed_frame(X):
    frame = pd.DataFrame(X, columns=[f"c{i}" for i in range(X.shape[1])])
    kinds = ["float32", "Float64", "object", "string", "category", "Int64", "boolean", "complex128"]
    for name, kind in zip(frame.columns, kinds, strict=False):
        with contextlib.suppress(Exception):
            frame[name] = frame[name].round().astype(kind)
    return frame


def _polars(dtype):
    return lambda X: pl.DataFrame(X, schema=[f"c{i}" for i in range(X.shape[1])]).cast(
        dtype, strict=False
    )


CONTAINERS = {
    "list": lambda X: X.tolist(),
    "tuple": lambda X: tuple(map(tuple, X.tolist())),
    "list of arrays": list,
    "list of tensors": lambda X: list(torch.tensor(X.tolist(), requires_grad=True)),
    "list of lists of tensors": lambda X: [list(row) for row in torch.tensor(X.tolist())],
    "list of words": lambda X: [[str(v) for v in row] for row in X.tolist()],
    "list of words beside numbers": lambda X: [["a", *row[1:]] for row in X.tolist()],
    "list with None": lambda X: [[None, *row[1:]] for row in X.tolist()],
    "list with integers beyond all types": lambda X: [[10**400, *row[1:]] for row in X.tolist()],
    "list with large integers": lambda X: [[2**70, *row[1:]] for row in X.tolist()],
    "list of fractions": lambda X: [[Fraction(1, 3) for _ in row] for row in X.tolist()],
    "list of decimals": lambda X: [[decimal.Decimal("0.1") for _ in row] for row in X.tolist()],
    "list of dates": lambda X: [[datetime.date(2020, 1, 1)] for _ in X],
    "ragged": lambda X: [row[: 1 + i % 2] for i, row in enumerate(X.tolist())],
    "deep ragged": lambda X: [[row, row[:1]] for row in X.tolist()],
    "array of lists": lambda X: np.array([*X.tolist(), None], dtype=object)[:-1],
    "records": lambda X: np.rec.fromarrays(list(X.T)),
    "dict": lambda X: dict(enumerate(X.T)),
    "None": lambda X: None,
    "word": lambda X: "X",
    "generator": lambda X: (row for row in X),
    "set": lambda X: {1.0, 2.0},
    "number": lambda X: 1.5,
    "function": lambda X: len,
    "DataFrame": pd.DataFrame,
    "DataFrame float32": _frame("float32"),
    "DataFrame Float64": _frame("Float64"),
    "DataFrame Float64 with NA": lambda X: pd.DataFrame(X).astype("Float64").mask(X > 0),
    "DataFrame object": _frame(object),
    "DataFrame string": _frame("string"),
    "DataFrame category": _frame("category"),
    "DataFrame sparse": _frame(pd.SparseDtype("float64", 0.0)),
    "DataFrame sparse bool": lambda X: pd.DataFrame(X > 0).astype(pd.SparseDtype(bool, False)),
    "DataFrame boolean": lambda X: pd.DataFrame(X > 0).astype("boolean"),
    "DataFrame Int8": lambda X: pd.DataFrame(X.clip(-9, 9).round()).astype("Int8"),
    "DataFrame complex": _frame("complex128"),
    "DataFrame dates": lambda X: pd.DataFrame(X.clip(0, 9)).apply(pd.to_datetime),
    "DataFrame timedeltas": lambda X: pd.DataFrame(X.clip(0, 9)).apply(pd.to_timedelta),
    "DataFrame periods": lambda X: pd.DataFrame({"a": pd.period_range("2020", periods=len(X))}),
    "DataFrame of several types": _mixed_frame,
    "DataFrame of equal names": _named(["a"]),
    "DataFrame of words and numbers for names": _named(["a", 1]),
    "DataFrame of numbers for names": _named([3, 1, 2, 9, 7]),
    "DataFrame of names": _named(["b", "a", "c", "d", "e"]),
    "DataFrame of levels": lambda X: pd.concat({"a": pd.DataFrame(X)}, axis=1),
    "DataFrame of an odd index": lambda X: pd.DataFrame(X, index=[7] * len(X)),
    "Series": lambda X: pd.Series(X[:, 0]),
    "polars": _polars(pl.Float64),
    "polars Float32": _polars(pl.Float32),
    "polars Int8": lambda X: _polars(pl.Int8)(X.clip(-9, 9).round()),
    "polars with null": lambda X: _polars(pl.Int8)(X.clip(0, 1000)),
    "polars Boolean": lambda X: _polars(pl.Boolean)(X > 0),
    "polars String": _polars(pl.String),
    "polars Decimal": lambda X: _polars(pl.Decimal(20, 5))(X.clip(-9, 9)),
    "polars Date": lambda X: _polars(pl.Date)(X.clip(0, 9)),
    "polars Datetime": lambda X: _polars(pl.Datetime)(X.clip(0, 9)),
    "polars Categorical": lambda X: pl.DataFrame({"a": ["a"] * len(X)}).cast(pl.Categorical),
    "polars List": lambda X: pl.DataFrame({"a": X.tolist()}),
    "polars Null": lambda X: pl.DataFrame({"a": [None] * len(X)}),
    "polars Object": lambda X: pl.DataFrame({"a": pl.Series([object()] * len(X), dtype=pl.Object)}),
    "LazyFrame": lambda X: _polars(pl.Float64)(X).lazy(),
    "polars Series": lambda X: pl.Series(X[:, 0]),
    "tensor": _as_tensor(torch.float64, requires_grad=False),
    "tensor that requires gradients": _as_tensor(torch.float64, requires_grad=True),
    "tensor float32": _as_tensor(torch.float32, requires_grad=False),
    "tensor float16": _as_tensor(torch.float16, requires_grad=False),
    "tensor bfloat16": _as_tensor(torch.bfloat16, requires_grad=True),
    "tensor float8": _as_tensor(torch.float8_e5m2, requires_grad=False),
    "tensor int16": _as_tensor(torch.int16, requires_grad=False),
    "tensor uint32": _as_tensor(torch.uint32, requires_grad=False),
    "tensor bool": _as_tensor(torch.bool, requires_grad=False),
    "tensor complex": _as_tensor(torch.complex64, requires_grad=False),
    "tensor conjugated": lambda X: torch.tensor(X.tolist()).to(torch.complex64).conj(),
    "tensor negated": lambda X: torch.tensor(X.tolist()).to(torch.complex64).conj().imag,
    "tensor transposed": lambda X: torch.tensor(X.T.tolist()).T,
    "tensor expanded": lambda X: torch.tensor(X[:1].tolist()).expand(*X.shape),
    "tensor sparse": lambda X: torch.tensor(X.tolist()).to_sparse(),
    "tensor sparse rows": lambda X: torch.tensor(X.tolist()).to_sparse_csr(),
    "tensor of no data": lambda X: torch.empty(X.shape, device="meta"),
    "tensor nested": lambda X: torch.nested.nested_tensor([torch.ones(len(X)), torch.ones(2)]),
    "tensor quantized": lambda X: torch.quantize_per_tensor(
        torch.tensor(X.tolist()).float().clip(-1, 1), 0.1, 0, torch.qint8
    ),
    "Parameter": lambda X: nn.Parameter(torch.tensor(X.tolist())),
    **{
        f"{kind}_{home}": lambda X, kind=kind, home=home: getattr(scipy.sparse, f"{kind}_{home}")(X)
        for kind in ("csr", "csc", "coo", "bsr", "dia", "dok", "lil")
        for home in ("matrix", "array")
    },
}
if hasattr(pd, "ArrowDtype"):
    with contextlib.suppress(ImportError):
        import pyarrow

        CONTAINERS |= {
            "DataFrame double[pyarrow]": _frame("double[pyarrow]"),
            "DataFrame float[pyarrow]": _frame("float[pyarrow]"),
            "DataFrame bool[pyarrow]": lambda X: pd.DataFrame(X > 0).astype("bool[pyarrow]"),
            "DataFrame string[pyarrow]": _frame("string[pyarrow]"),
            "DataFrame decimal": lambda X: pd.DataFrame(X.clip(-9, 9).round()).astype(
                pd.ArrowDtype(pyarrow.decimal128(9, 2))
            ),
            "arrow table": lambda X: pyarrow.table(
                pd.DataFrame(X, columns=list("abcde")[: X.shape[1]])
            ),
        }

# -- what y is made of -------------------------------------------------------------------------


class Colour(enum.Enum):
    RED, GREEN, BLUE = range(3)


NAMES = ["axolotl", "cat", "dog"]
LABELS = {
    "int64": [0, 1, 2],
    "negative": [-7, 0, 3],
    "uint8": np.array([0, 7, 255], np.uint8),
    "uint64": np.array([1, 2**63, 2**64 - 1], np.uint64),
    "int64 at its ends": [-(2**63), 0, 2**63 - 1],
    "beyond all types": [0, 1, 10**30],
    "bool": [False, True, True],
    "float": [0.0, 1.0, 2.0],
    "float16": np.array([0, 1, 2], np.float16),
    "longdouble": np.array([0, 1, 2], np.longdouble),
    "fractional": [0.5, 1.5, 2.5],
    "zeros": [-0.0, 0.0, 1.0],
    "NaN": [np.nan, 1.0, 2.0],
    "infinite": [np.inf, 1.0, 2.0],
    "complex": [1j, 1 + 0j, 2.0],
    "words": NAMES,
    "words of many lengths": ["", "a" * 300, "b"],
    "words of all kinds": ["ß", "\U0001f98e", "a\x00b"],
    "half a word": ["\ud800", "a", "b"],
    "bytes": [b"a", b"b", b"c"],
    "words and None": ["a", None, "b"],
    "words and numbers": ["a", 1, 2],
    "numbers and bools": [0, True, 2],
    "booleans as words": ["True", "False", "True"],
    "fractions": [Fraction(1), Fraction(2), Fraction(3)],
    "decimals": [decimal.Decimal(1), decimal.Decimal(2), decimal.Decimal(3)],
    "members": list(Colour),
    "tuples": [(0, 1), (1, 0), (1, 1)],
    "sets": [frozenset({0}), frozenset({1}), frozenset()],
    "dates": [datetime.date(2020, 1, day) for day in (1, 2, 3)],
    "datetime64": np.array(["2020-01-01", "2021-01-01", "2022-01-01"], "M8[D]"),
    "timedelta64": np.array([1, 2, 3], "m8[D]"),
    "NaT": np.array(["2020-01-01", "NaT", "2022-01-01"], "M8[D]"),
    "one class": [1, 1, 1],
    "one word": ["a", "a", "a"],
    "void": np.array([b"a", b"b", b"c"], "V1"),
    "objects": [object(), object(), object()],
    "lists": [[0], [1], [2]],
}
if hasattr(np.dtypes, "StringDType"):  # of NumPy 2
    LABELS["StringDType"] = np.array(NAMES, np.dtypes.StringDType())


def _objects(y):
    made = np.empty(len(y), dtype=object)
    made[:] = list(y)
    return made


def _series(dtype):
    return lambda y: pd.Series(list(y)).astype(dtype)


TARGETS = {
    "array": np.asarray,
    "list": list,
    "tuple": tuple,
    "list of numpy": lambda y: list(np.asarray(y)),
    "objects": _objects,
    "column": lambda y: np.asarray(y).reshape(-1, 1),
    "row": lambda y: np.asarray(y).reshape(1, -1),
    "two columns": lambda y: np.stack([np.asarray(y)] * 2, axis=1),
    "indicators": lambda y: np.eye(3, dtype=int)[np.arange(len(y)) % 3],
    "reversed": lambda y: np.asarray(y)[::-1].copy()[::-1],
    "broadcast": lambda y: np.broadcast_to(np.asarray(y)[:1], (len(y),)),
    "read-only": lambda y: _readonly(np.array(y)),
    "big-endian": lambda y: np.asarray(y).astype(np.asarray(y).dtype.newbyteorder(">")),
    "masked": lambda y: np.ma.array(y, mask=np.arange(len(y)) == 1),
    "mask of nothing": np.ma.array,
    "memmap": lambda y: _memmap(np.asarray(y)),
    "Series": lambda y: pd.Series(list(y)),
    "Series of an odd index": lambda y: pd.Series(list(y), index=[3] * len(y)),
    "Series Int64": _series("Int64"),
    "Series boolean": _series("boolean"),
    "Series string": _series("string"),
    "Series object": _series(object),
    "Series category": _series("category"),
    "Series sparse": lambda y: pd.Series(pd.arrays.SparseArray(list(y))),
    "Categorical": lambda y: pd.Categorical(list(y)),
    "Categorical of other order": lambda y: pd.Categorical(
        list(y), categories=list(dict.fromkeys(list(y)))[::-1]
    ),
    "Index": lambda y: pd.Index(list(y)),
    "DataFrame": lambda y: pd.DataFrame({"y": list(y)}),
    "polars": lambda y: pl.Series("y", list(y)),
    "polars Categorical": lambda y: pl.Series("y", list(y)).cast(pl.String).cast(pl.Categorical),
    "polars Enum": lambda y: pl.Series("y", list(y)).cast(pl.Enum(["cat", "axolotl", "dog"])),
    "polars frame": lambda y: pl.DataFrame({"y": list(y)}),
    "tensor": lambda y: torch.tensor(list(y)),
    "tensor float": lambda y: torch.tensor(list(y)).to(torch.bfloat16).requires_grad_(),
    "sparse": lambda y: scipy.sparse.csr_array(np.asarray(y).reshape(-1, 1)),
    "too short": lambda y: np.asarray(y)[:-1],
    "too long": lambda y: np.repeat(np.asarray(y), 2),
    "empty": lambda y: [],
    "scalar": lambda y: y[0],
    "None": lambda y: None,
    "word": lambda y: "y",
    "dict": lambda y: dict(enumerate(y)),
    "generator": iter,
}
with contextlib.suppress(ImportError):
    import pyarrow

    TARGETS |= {
        "Series string[pyarrow]": _series("string[pyarrow]"),
        "Series int64[pyarrow]": _series("int64[pyarrow]"),
        "Series dictionary": lambda y: pd.Series(
            pyarrow.array(list(y)).dictionary_encode().to_pandas()
        ),
        "arrow": lambda y: pyarrow.array(list(y)),
        "arrow chunks": lambda y: pyarrow.chunked_array([list(y)]),
    }

WEIGHTS = {
    "None": lambda rng, n: None,
    "ones": lambda rng, n: np.ones(n),
    "whole": lambda rng, n: rng.integers(1, 4, n),
    "some zero": lambda rng, n: rng.integers(0, 3, n).astype(float),
    "all zero": lambda rng, n: np.zeros(n),
    "first only": lambda rng, n: (np.arange(n) == 0).astype(float),
    "negative": lambda rng, n: rng.normal(size=n),
    "negative zeros": lambda rng, n: -np.zeros(n),
    "NaN": lambda rng, n: np.full(n, np.nan),
    "one infinite": lambda rng, n: np.where(np.arange(n) == 1, np.inf, 1.0),
    "largest": lambda rng, n: np.full(n, 1.7e308),
    "tiny": lambda rng, n: np.full(n, 5e-324),
    "mixed": lambda rng, n: 10.0 ** rng.integers(-300, 300, n),
    "float16": lambda rng, n: rng.random(n).astype(np.float16),
    "longdouble": lambda rng, n: np.full(n, np.longdouble("1e4000")),
    "bool": lambda rng, n: rng.random(n) < 0.7,
    "complex": lambda rng, n: np.ones(n) * 1j,
    "objects": lambda rng, n: np.ones(n, dtype=object),
    "words": lambda rng, n: ["1"] * n,
    "other words": lambda rng, n: ["a"] * n,
    "dates": lambda rng, n: np.ones(n, "M8[s]"),
    "list": lambda rng, n: [1] * n,
    "list with None": lambda rng, n: [None] + [1] * (n - 1),
    "beyond all types": lambda rng, n: [10**400] * n,
    "column": lambda rng, n: np.ones((n, 1)),
    "too short": lambda rng, n: np.ones(max(n - 1, 0)),
    "empty": lambda rng, n: [],
    "scalar": lambda rng, n: 2.0,
    "word": lambda rng, n: "balanced",
    "Series": lambda rng, n: pd.Series(rng.random(n), index=[5] * n),
    "Series Float64": lambda rng, n: pd.Series(rng.random(n)).astype("Float64"),
    "Series with NA": lambda rng, n: pd.Series([pd.NA] * n, dtype="Float64"),
    "polars": lambda rng, n: pl.Series(rng.random(n)),
    "tensor": lambda rng, n: torch.ones(n, requires_grad=True),
    "sparse": lambda rng, n: scipy.sparse.csr_array(np.ones((n, 1))),
    "read-only, reversed": lambda rng, n: _readonly(rng.random(n)[::-1]),
    "masked": lambda rng, n: np.ma.array(np.ones(n), mask=np.arange(n) == 0),
    "dict": lambda rng, n: {0: 1.0},
}

# -- parameters --------------------------------------------------------------------------------


def _linear(input_shape, n_outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), n_outputs))


def _of_no_module(input_shape, n_outputs):
    return len


def _of_too_many_outputs(input_shape, n_outputs):
    return _linear(input_shape, n_outputs + 1)


def _of_wrong_inputs(input_shape, n_outputs):
    return nn.Linear(99, n_outputs)


def _that_fails(input_shape, n_outputs):
    raise ValueError("no network")


def _without_weights(input_shape, n_outputs):
    return nn.Identity()


NUMBERS = [
    *(0, 1, 2, -1, 0.5, 1.0, 3.0, 1e-300, 1e300, 5e-324, 10**400, -0.0, np.inf, -np.inf, np.nan),
    *(True, None, "auto", "a", [1.0], np.float32(0.5), np.int8(2), np.array(2.0), np.array([2])),
    *(Fraction(1, 2), decimal.Decimal("0.5"), 1j, torch.tensor(2.0), np.longdouble(2), np.bool_(True)),
]
PARAMETERS = {
    "loss": [
        *("tau_cross_entropy", "logit_annealing", "hkr", "lse_hkr", "", None, 3),
        *(nn.CrossEntropyLoss(), nn.Identity(), nn.CrossEntropyLoss, np.str_("hkr")),
    ],
    "tau": NUMBERS,
    "eps": NUMBERS,
    "min_margin": NUMBERS,
    "alpha": NUMBERS,
    "architecture": [
        *("auto", "mlp", "cnn", "a", None, 3),
        *(
            _linear,
            _of_no_module,
            _of_too_many_outputs,
            _of_wrong_inputs,
            _that_fails,
            _without_weights,
        ),
    ],
    "input_shape": [
        *(None, (1, 1, 3), [3, 1, 1], (1, 2, 3), (3, 1), (3,), 3, "abc", (1, 1, 3.0), ()),
        *(
            (1, 1, -3),
            (1, 1, 0),
            (True, 1, 3),
            np.array([1, 1, 3]),
            (1, 1, 10**30),
            (None, 1, 3),
            [[1]],
        ),
    ],
    "conv_channels": [
        *("auto", (4,), (4, 2), [], (3,), (0,), (-2,), (4.0,), 4, "a", None, np.array([4])),
        *(("4",), [[4]]),
    ],
    "hidden_layer_sizes": [
        *("auto", (4,), (4, 2), (), (3,), (0,), (-2,), (4.0,), 4, "a", None),
        *(np.array([4]), ("4",), [[4]], (True,), {4: 1}, torch.tensor([4]), np.array(4)),
    ],
    "max_epochs": [1, 2, np.int64(1), 0, -1, 1.0, "auto", "a", None, True, np.inf, np.array(1)],
    "batch_size": [1, 2, 10**30, np.int8(3), 0, -1, 2.0, "auto", "a", None, True, np.inf],
    "solver": ["muon", "adam", "sgd", None, 3],
    "learning_rate": [1e-3, 0.1, 10.0, 1e-300, *NUMBERS],
    "learning_rate_schedule": ["one_cycle", "constant", "cosine", None, 3],
    "augmentation": [None, [], (), len, [len], "a", [3], lambda images, generator: images],
    "early_stopping": [True, False, 1, 0, None, "a", np.True_],
    "validation_fraction": [0.1, 0.3, 0.5, 0.99, 1e-9, *NUMBERS],
    "n_iter_no_change": [1, 2, *NUMBERS],
    "class_weight": [
        *(None, "balanced", {0: 1.0}, {0: 1.0, 1: 2.0, 2: 3.0}, {0: 0.0}, {0: -1.0}),
        *({0: np.nan}, {0: np.inf}, {0: 1e308, 1: 1e308}, {9: 1.0}, {"cat": 2.0}, {0: "a"}, {0: None}),
        *({}, "a", [1, 2, 3], 3, {None: 1.0}, {0: 0.0, 1: 0.0, 2: 0.0}, {True: 2.0}, {(0, 1): 1.0}),
    ],
    "warm_start": [True, False, 1, None, "a"],
    "device": [
        *("auto", "cpu", torch.device("cpu"), "cuda", "cuda:99", "meta", "xla", "a", "", None, 0),
        *(torch.device("meta"), "cpu:0", "cpu:7", "mps", "vulkan"),
    ],
    "dtype": ["auto", "float32", "float64", "float16", np.float32, torch.float32, None, np.dtype("f4")],
    "callbacks": [None, [], (), [None], [3], "a", [("a", None)], [("a", 3)], [len], [object], {"a": 1}],
    "verbose": [0, False, -1, "a", None, 0.5],
    "random_state": [
        *(0, 1, None, 2**32 - 1, 2**32, -1, 0.5, "a", True, np.int64(3)),
        *(np.random.RandomState(0), np.random.default_rng(0)),
    ],
}
SMALL = {"hidden_layer_sizes": (4,), "conv_channels": (2,), "max_epochs": 1, "random_state": 0}


@dataclass
class Case:
    """Data and parameters, by the names of what they are made of."""

    seed: int
    n_rows: int
    n_columns: int
    n_classes: int
    values: str
    dtype: str
    layout: str
    container: str
    labels: str
    target: str
    weight: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)
        self.codes = np.arange(self.n_rows) % self.n_classes

    def X(self):
        values = VALUES[self.values](self.rng, (self.n_rows, self.n_columns))
        with np.errstate(all="ignore"):
            # So that there is something to learn, where the numbers are not too large for it.
            values = values + self.codes[:, None] * np.abs(values[:1]) * 3
        if self.container != "array":
            return CONTAINERS[self.container](values)
        return LAYOUTS[self.layout](_cast(values, self.dtype))

    def y(self):
        labels = LABELS[self.labels]
        return TARGETS[self.target]([labels[code] for code in self.codes])

    def sample_weight(self):
        return WEIGHTS[self.weight](self.rng, self.n_rows)

    def made(self):
        """X, y and weights; None where the libraries themselves can't make them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return self.X(), self.y(), self.sample_weight()
            except Exception:
                return None

    def classifier(self):
        return LipschitzClassifier(**{**SMALL, **copy.deepcopy(self.parameters)})


def _cast(values, dtype):
    with np.errstate(all="ignore"):
        if dtype in "UST":
            kind = np.dtypes.StringDType() if dtype == "T" else dtype
            return values.astype("U").astype(kind)
        if dtype in ("M8[s]", "m8[s]", "V8"):
            return values.astype(np.int64).astype(np.int64).view(dtype)
        return values.astype(dtype)


USUAL = {
    "n_rows": 9,
    "n_columns": 3,
    "n_classes": 3,
    "values": "normal",
    "dtype": "d",
    "layout": "C",
    "container": "array",
    "labels": "int64",
    "target": "array",
    "weight": "None",
}
ODD = {
    "n_rows": [1, 2, 3, 4, 20],
    "n_columns": [1, 2, 5],
    "n_classes": [1, 2],
    "values": [*VALUES],
    "dtype": TYPES,
    "layout": [*LAYOUTS],
    "container": [*CONTAINERS],
    "labels": [*LABELS],
    "target": [*TARGETS],
    "weight": [*WEIGHTS],
}


@st.composite
def drawn_cases(draw, odd=tuple(ODD)):
    """Cases with a few odd things each, since all at once would always be refused."""
    names = draw(st.lists(st.sampled_from(odd), max_size=3, unique=True))
    chosen = {name: draw(st.sampled_from(ODD[name])) for name in names}
    parameters = draw(st.lists(st.sampled_from(sorted(PARAMETERS)), max_size=2, unique=True))
    return Case(
        seed=draw(st.integers(0, 2**32 - 1)),
        parameters={name: draw(st.sampled_from(PARAMETERS[name])) for name in parameters},
        **{**USUAL, **chosen},
    )


# -- the oracle --------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet():
    """Nothing of NumPy's own is heard, and no more than a few warnings at all."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        # scikit-learn's own, from its check of values that are not finite, and of labels.
        warnings.filterwarnings("ignore", "invalid value encountered in (reduce|cast)", RuntimeWarning)
        try:
            yield
        finally:
            words = [f"{each.category.__name__}: {each.message}" for each in heard]
            leaked = [word for word in words if word.startswith("RuntimeWarning")]
            assert not leaked, leaked
            assert len(set(words)) <= 3, words


def answer(function, *arguments, **named):
    """What it returns; None where it refuses, with words."""
    try:
        with quiet():
            return function(*arguments, **named)
    except REFUSALS as error:
        refusal = error
    assert str(refusal).strip(), repr(refusal)
    return None


def exact(values):
    """Numbers as fractions."""
    array = np.asarray(values)
    made = np.empty(array.shape, dtype=object)
    made.flat = [Fraction(*v.as_integer_ratio()) if array.dtype.kind == "f" else Fraction(int(v))
                 for v in array.ravel()]  # fmt: skip
    return made


def exact_logits(network, rows, input_shape):
    """What the plain network gives in exact arithmetic; zeros beside a single logit."""
    values = exact(rows).reshape(len(rows), *input_shape)
    for layer in network:
        if isinstance(layer, Center):
            values = values - exact(layer.center.numpy())
        elif isinstance(layer, GroupSort2):
            pairs = values.reshape(len(values), -1, 2, *values.shape[2:])
            sorted_pairs = np.stack([pairs.min(axis=2), pairs.max(axis=2)], axis=2)
            values = sorted_pairs.reshape(values.shape)
        elif isinstance(layer, nn.Flatten):
            values = values.reshape(len(values), -1)
        else:
            assert isinstance(layer, nn.Linear | nn.Conv2d), layer
            # Of a unit vector it computes single weights, without rounding.
            units = torch.eye(values[0].size, dtype=layer.weight.dtype).view(-1, *values.shape[1:])
            with torch.no_grad():
                bias, zero = layer(0 * units[:1]), copy.deepcopy(layer)
                zero.bias = None
                matrix = zero(units)
            values = values.reshape(len(values), -1) @ exact(matrix.flatten(1).numpy())
            values = values.reshape(len(values), *bias.shape[1:]) + exact(bias.numpy())
    return np.hstack([0 * values, values]) if values.shape[1] == 1 else values


def steepest(network, rows, codes):
    """Unit vectors along which the margin of the predicted class falls; zeros where it has none."""
    points = torch.from_numpy(np.array(rows, dtype=np.float64)).requires_grad_()
    logits = copy.deepcopy(network).double()(points)
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    own = nn.functional.one_hot(torch.from_numpy(codes), logits.shape[1]).bool()
    rivals = logits.masked_fill(own, -torch.inf).max(dim=1).values
    (rivals - logits[own]).sum().backward()
    gradients = np.nan_to_num(points.grad.numpy(), nan=0, posinf=0, neginf=0)
    lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
    return np.divide(gradients, lengths, out=np.zeros_like(gradients), where=lengths > 0)


def moved_inside(rows, radii, directions, largest):
    """Rows of float64, as far along the directions as is inside the radii, in exact arithmetic."""
    found, places = [], []
    for place, (row, radius, direction) in enumerate(zip(rows, radii, directions, strict=True)):
        before = exact(row)
        length = min(radius, 1e6 * (1 + np.abs(row.astype(float)).max()))
        for share in (1 - 2.0**-45, 1 - 2.0**-30, 1 - 2.0**-10, 0.5):
            with np.errstate(all="ignore"):
                moved = row.astype(float) + share * length * direction
            if not (np.abs(moved) < largest).all():
                continue
            squared = ((exact(moved) - before) ** 2).sum()
            if np.isinf(radius) or squared < Fraction(float(radius)) ** 2:
                found.append(moved)
                places.append(place)
                break
    return np.array(found).reshape(-1, rows.shape[1]), np.array(places, dtype=int)


def check_certificates(clf, X, rng):
    """Labels, probabilities and radii agree with each other, and with exact arithmetic."""
    with quiet():
        labels, radii = clf.predict_with_radii(X)
        same_labels, rows = clf.predict(X), clf.network_rows(X)
        rows = rows.reshape(len(rows), -1)
        scores, probabilities = clf.decision_function(X), clf.predict_proba(X)
        logarithms, losses = clf.predict_log_proba(X), clf.rounding_loss(X)
        network = clf.to_torch()
    assert radii.shape == labels.shape == (len(rows),)
    assert radii.dtype == np.float64
    assert not np.isnan(radii).any()
    assert (radii >= 0).all()
    np.testing.assert_array_equal(labels, same_labels)
    assert np.isin(labels, clf.classes_).all()
    codes = np.searchsorted(clf.classes_, labels)
    certain = radii > 0
    for values in (scores, probabilities, logarithms):
        assert np.isfinite(values[certain]).all() or values is logarithms
        predicted = (values > 0) + 0 if values.ndim == 1 else values.argmax(axis=1)
        np.testing.assert_array_equal(predicted[certain], codes[certain])
    sums = probabilities[certain].sum(axis=1, dtype=float)
    np.testing.assert_allclose(sums, 1, rtol=1e-5)
    assert ((losses >= 0) & (losses <= 1)).all()
    # As they were given, if that is finer than what the network takes.
    if isinstance(X, np.ndarray) and X.dtype.kind == "f" and X.shape == rows.shape:
        rows = np.asarray(X)
    chosen = np.flatnonzero(certain)[:4]
    rows, radii, labels, codes = rows[chosen], radii[chosen], labels[chosen], codes[chosen]
    shape = clf.input_shape_
    if len(rows) == 0:
        return
    assert (exact_logits(network, rows, shape).argmax(axis=1) == codes).all()
    largest = float(np.finfo(clf.dtype_).max) / 2
    for directions in (
        steepest(network, rows.reshape(-1, *shape), codes).reshape(rows.shape),
        rng.normal(size=rows.shape) / np.sqrt(rows.shape[1]),
        np.eye(1, rows.shape[1]) * rng.choice([-1, 1], (len(rows), 1)),
    ):
        lengths = np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-300)
        moved, places = moved_inside(rows, radii, directions / lengths, largest)
        if len(moved):
            assert (exact_logits(network, moved, shape).argmax(axis=1) == codes[places]).all()
            np.testing.assert_array_equal(clf.predict(moved), labels[places])


def as_array(y):
    """Labels as NumPy has them."""
    return y.detach().float().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)


def bytes_of(X):
    return X.tobytes() if isinstance(X, np.ndarray) and not X.dtype.hasobject else None


# -- claims ------------------------------------------------------------------------------------


@cases(30)
@given(drawn_cases())
def test_a_fit_on_anything_is_right_or_refused(case):
    made = case.made()
    if made is None:
        return
    X, y, weight = made
    before, clf = bytes_of(X), case.classifier()
    fitted = answer(clf.fit, X, y, sample_weight=weight)
    assert bytes_of(X) == before
    if fitted is None:
        with pytest.raises(NotFittedError):
            clf.predict(np.ones((1, 3)))
        return
    np.testing.assert_array_equal(clf.classes_, np.unique(as_array(y)))
    check_certificates(clf, X, case.rng)
    with quiet():
        loaded = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(loaded.certificates_(X), clf.certificates_(X))


@pytest.fixture(scope="module")
def fitted():
    """A classifier of three columns, one of three channels of pixels, and one that knows names."""
    rng, y = np.random.default_rng(0), np.arange(30) % 3
    X = rng.normal(size=(30, 3)) + y[:, None]
    return {
        "table": LipschitzClassifier(**{**SMALL, "max_epochs": 20}).fit(X, y),
        "float32": LipschitzClassifier(**{**SMALL, "dtype": "float32"}).fit(X, y),
        "two classes": LipschitzClassifier(**SMALL).fit(X, y > 0),
        "images": LipschitzClassifier(**SMALL).fit(np.repeat(X[:, None], 2, 1), y),
        "names": LipschitzClassifier(**SMALL).fit(pd.DataFrame(X, columns=list("bac")), y),
        "pipeline": make_pipeline(StandardScaler(), LipschitzClassifier(**SMALL)).fit(X, y),
    }


@cases(40)
@given(drawn_cases(), st.sampled_from(["table", "float32", "two classes", "images", "names"]))
def test_predictions_for_anything_are_right_or_refused(fitted, case, kind):
    made, clf = case.made(), fitted[kind]
    if made is None:
        return
    X, before = made[0], bytes_of(made[0])
    answers = answer(clf.predict_with_radii, X)
    if answers is None:
        # Nor does anything else take it.
        assert answer(clf.predict, X) is None
        assert answer(certificates, clf, X) is None
    else:
        check_certificates(clf, X, case.rng)
        with quiet():
            labels, radii = predict_with_radii(clf, X)
        np.testing.assert_array_equal(labels, answers[0])
        np.testing.assert_array_equal(radii, answers[1])
    assert bytes_of(X) == before


OTHERS = {
    "scale": [
        *(None, "std", "max", 1.0, [1.0, 2.0, 3.0], [1, 2], [0, 1, 1], [-1, 1, 1], {0: 1.0}, {}, ()),
        *({0: 1.0, 1: 1.0, 2: 1e-300}, [np.nan] * 3, [np.inf] * 3, [1e300] * 3, [5e-324] * 3),
        *([10**400] * 3, {"a": 1, "b": 2, "c": 3}, pd.Series([1, 2, 3]), pl.Series([1, 2, 3]), len),
        *(pd.Series([1.0, 2, 3], index=list("abc")), torch.ones(3), np.ones((3, 1)), ["a", 1, 1]),
        *([None] * 3, [True] * 3, [1j] * 3, np.ones(3, np.float16), [Fraction(1)] * 3),
        *([decimal.Decimal(1)] * 3,),
    ],
    "fixed_columns": [
        *((), [0], [0, 1, 2], [-1], [3], [0, 0], "a", ["a"], ["b", "c"], 0, None, [0.0], [True]),
        *([None], [[0]], np.array([1]), range(2), {0}, np.array([True, False, True]), [np.nan]),
        *(pd.Index(["a"]), torch.tensor([0]), iter([0]), [slice(1)], [10**30]),
    ],
    "categorical_edits": [None, None, None, 0, 1, -1, 1.0, True, "a", np.int64(0), 10**30, np.nan, [1]],
    "categorical_columns": [None, None, None, [], [0], ["a"], "a", 0, [9], [None]],
}
BUDGETS = [0, 0.0, 0.5, 1, 1e300, 5e-324, -1, -0.0, np.nan, np.inf, "a", None, [0.5], np.array(0.5)]
BUDGETS += [np.array([0.5]), np.float16(0.5), True, 1j, Fraction(1, 2), decimal.Decimal(1), 10**400]
BUDGETS += [torch.tensor(0.5), np.longdouble(0.5)]
TARGET_LABELS = [
    None,
    0,
    1,
    2,
    3,
    -1,
    0.0,
    0.5,
    True,
    "a",
    np.nan,
    [0],
    [0] * 9,
    [0, 1, 2] * 3,
    [5] * 9,
]
TARGET_LABELS += [
    np.int8(1),
    np.array(1),
    np.zeros((9, 1)),
    [None] * 9,
    ["a"] * 9,
    [[0]] * 9,
    1j,
    10**30,
]
TARGET_LABELS += [pd.Series([0] * 9), pl.Series([0] * 9), torch.zeros(9), pd.NA, object(), [5] * 9, 1j]
some_of_others = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from(values) for name, values in OTHERS.items()}
)


@cases(30)
@given(
    drawn_cases(),
    st.sampled_from(["table", "float32", "two classes", "images", "names", "pipeline"]),
    some_of_others,
    st.sampled_from(BUDGETS),
    st.sampled_from(TARGET_LABELS),
)
def test_functions_of_a_fitted_classifier_answer_or_refuse(fitted, case, kind, others, eps, label):
    made, clf = case.made(), fitted[kind]
    if made is None:
        return
    X, y, weight = made
    before = bytes_of(X)
    fixed = {"fixed_columns": others["fixed_columns"]} if "fixed_columns" in others else {}
    changes = fixed | ({"scale": others["scale"]} if "scale" in others else {})
    radii = answer(certificates, clf, X, **others)
    if radii is not None:
        assert (radii >= 0).all()
        with quiet():
            rivals = nearest_rival(clf, X, **others)
        assert np.isin(rivals, clf.classes_).all()
    rejected = answer(predict_or_reject, clf, X, eps=eps, reject_label=label, **others)
    if rejected is not None:
        assert len(rejected) == len(radii)
    ranges = answer(certified_ranges, clf, X, **fixed)
    if ranges is not None:
        assert not (np.asarray(ranges) < 0).any()
    found = answer(counterfactual, clf, X, target=label, **changes)
    if found is not None:
        with quiet():
            labels = clf.predict(found.X)
        np.testing.assert_array_equal(found.labels, labels)
        limits = answer(certificates, clf, X, **changes)
        reached = np.isfinite(found.distances) & (found.distances > 0)
        assert limits is None or (found.distances >= limits)[reached].all()
    score_of = getattr(clf, "certified_score", certified_accuracy_scorer())
    for score in (
        answer(score_of, X, y, eps, weight) if kind != "pipeline" else None,
        answer(lambda: certified_accuracy_scorer(eps, **others)(clf, X, y, sample_weight=weight)),
    ):
        assert score is None or 0 <= score <= 1
    mean = answer(lambda: average_certified_radius_scorer(**others)(clf, X, y, sample_weight=weight))
    assert mean is None or mean >= 0
    assert bytes_of(X) == before


@cases(15)
@given(
    st.sampled_from(sorted(LABELS)),
    st.sampled_from(sorted(TARGETS)),
    st.sampled_from([2, 3]),
    st.sampled_from(["array", *CONTAINERS]),
)
def test_labels_of_any_kind_are_learnt(labels, target, n_classes, container):
    case = Case(0, 24, 3, n_classes, "normal", "d", "C", container, labels, target, "None")
    case.parameters = {"max_epochs": 40, "hidden_layer_sizes": (8,)}
    made = case.made()
    if made is None:
        return
    X, y, _ = made
    truth = np.eye(3)[case.codes] * 20
    for rows in (truth, X):
        clf = case.classifier()
        if answer(clf.fit, rows, y) is not None:
            labels = as_array(y).ravel()
            np.testing.assert_array_equal(clf.classes_, np.unique(labels))
            if rows is truth and target != "broadcast":
                assert (clf.predict(rows) == labels).mean() > 0.9


@cases(12)
@given(
    drawn_cases(),
    st.sampled_from(
        [1, 2, 0, -1, 2.0, True, None, "a", [1.0], [3.0, 1.0], [0.0], [np.nan], [], [[1.0]]]
    ),
    st.sampled_from([None, None, [0.0], [0.0, 0.1], [-1.0], [np.inf], 0.1, "a", []]),
    st.sampled_from([2, 2, 2, 3, None, 1, 0, 100, -1, 2.5, "a", [], [([0, 1, 2], [3, 4, 5])], [1]]),
    st.sampled_from([None, None, "accuracy", certified_accuracy_scorer(0.1), "a", 3, len, "roc_auc"]),
    st.sampled_from([0.02, 0, 0.5, 1, -1, np.nan, None, "a"]),
    st.sampled_from(["own", "own", "own", None, 3, "a", LipschitzClassifier]),
)
def test_a_choice_by_cross_validation_is_right_or_refused(case, taus, epss, cv, scoring, loss, inner):
    made = case.made()
    if made is None:
        return
    X, y, weight = made
    estimator = case.classifier() if inner == "own" else inner
    clf = LipschitzClassifierCV(
        estimator, taus=taus, epss=epss, cv=cv, scoring=scoring, accuracy_loss=loss
    )
    if answer(clf.fit, X, y, sample_weight=weight) is None:
        with pytest.raises(NotFittedError):
            clf.predict(np.ones((1, 3)))
        return
    np.testing.assert_array_equal(clf.classes_, np.unique(as_array(y)))
    check_certificates(clf.best_estimator_, X, case.rng)


# -- files -------------------------------------------------------------------------------------


def _written(dump):
    def written(model):
        file = io.BytesIO()
        dump(model, file)
        return file.getvalue()

    return written


def _load_network(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network")
        path.write_bytes(data)
        return load_network(path)


def _dump_network(network):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network")
        save_network(network, path)
        return path.read_bytes()


TRUSTED = ["sklip.estimators.classifier.LipschitzClassifier"]
FILES = {
    "pickle": (pickle.dumps, pickle.loads),
    "joblib": (_written(joblib.dump), lambda data: joblib.load(io.BytesIO(data))),
    "joblib, compressed": (
        _written(lambda model, file: joblib.dump(model, file, compress=3)),
        lambda data: joblib.load(io.BytesIO(data)),
    ),
    "skops": (skops.dumps, lambda data: skops.loads(data, trusted=TRUSTED)),
    "network, pickled": (lambda clf: pickle.dumps(clf.certified_network_), pickle.loads),
    "safetensors": (lambda clf: _dump_network(clf.certified_network_), _load_network),
}
DAMAGE = {
    "cut off": lambda data, place, n: data[:place],
    "flipped bit": lambda data, place, n: (
        data[:place] + bytes([data[place] ^ 1 << n % 8]) + data[place + 1 :]
    ),
    "other byte": lambda data, place, n: data[:place] + bytes([n % 256]) + data[place + 1 :],
    "zeros": lambda data, place, n: (
        data[:place] + bytes(len(data[place : place + n])) + data[place + n :]
    ),
    "hole": lambda data, place, n: data[:place] + data[place + n :],
    "twice": lambda data, place, n: data[: place + n] + data[place:],
    "moved": lambda data, place, n: data[place:] + data[:place],
    "another in front": lambda data, place, n: data[:n] + data,
    "another behind": lambda data, place, n: data + data[:place],
}


MEMORY = Path("/proc/self/statm")


@contextlib.contextmanager
def bounded_memory():
    """No more than 2 GB on top: a damaged number may be the length of what pickle makes room for."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(MEMORY.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def stored(fitted):
    """Each kind of file, and what the model in it says."""
    X = np.random.default_rng(1).normal(size=(9, 3))
    clf = fitted["table"]
    return X, clf, {kind: dump(clf) for kind, (dump, _) in FILES.items()}


@pytest.mark.skipif(not MEMORY.exists(), reason="memory can't be bounded here")
@cases(30)
@given(
    st.sampled_from(sorted(FILES)),
    st.sampled_from(sorted(DAMAGE)),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 300),
)
def test_a_damaged_file_is_an_error_or_the_same_model(stored, kind, damage, share, n):
    X, clf, files = stored
    data = files[kind]
    try:
        # Pickles may name anything that was renamed, and then NumPy warns.
        with warnings.catch_warnings(action="ignore"), bounded_memory():
            loaded = FILES[kind][1](DAMAGE[damage](data, int(share * len(data)), n))
    except REFUSALS:
        return
    except Exception:
        if kind == "safetensors":
            raise
        return
    if not isinstance(loaded, LipschitzClassifier | CertifiedNetwork):
        # A pickle that is cut may end with a part of the model, which is none.
        assert kind not in ("skops", "safetensors")
        return
    network = clf.certified_network_
    if isinstance(loaded, LipschitzClassifier):
        assert str(loaded.get_params()) == str(clf.get_params())
        np.testing.assert_array_equal(loaded.predict(X), clf.predict(X))
        loaded = loaded.certified_network_
    for values, expected in zip(
        loaded.predict_with_radii(X), network.predict_with_radii(X), strict=True
    ):
        np.testing.assert_array_equal(values, expected)
