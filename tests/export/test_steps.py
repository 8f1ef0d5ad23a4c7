"""Every step of a file computes what scikit-learn's computes."""

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)

from sklip.export.graph import Graph
from sklip.export.steps import Rows, add_step
from sklip.preprocessing.steps import flat_steps

rng = np.random.default_rng(0)
X = rng.normal([3.0, -200.0, 0.0, 1e-3, 5.0], [2.0, 50.0, 1.0, 1e-4, 1.0], size=(60, 5))
y = (X[:, 0] > 3).astype(int)
GAPS = np.where(rng.random(X.shape) < 0.2, np.nan, X)
GAPS[:, 2] = X[:, 2]
columns = make_column_transformer(
    (make_pipeline(SimpleImputer(), StandardScaler()), [0]),
    (MinMaxScaler(), [3, 1]),
    ("passthrough", [0, 2]),
    ("drop", [4]),
)
union = FeatureUnion(
    [("pca", PCA(2)), ("all", "passthrough"), ("top", SelectKBest(k=1))],
    transformer_weights={"pca": 0.3, "top": 1 + 2.0**-30},
)
STEPS = {
    "StandardScaler": StandardScaler(),
    "StandardScaler without mean": StandardScaler(with_mean=False),
    "StandardScaler without std": StandardScaler(with_std=False),
    "RobustScaler": RobustScaler(),
    "RobustScaler without centering": RobustScaler(with_centering=False, unit_variance=True),
    "MinMaxScaler": MinMaxScaler((-1, 3)),
    "MinMaxScaler that clips": MinMaxScaler((0.2, 0.4), clip=True),
    "MaxAbsScaler": MaxAbsScaler(),
    "PCA": PCA(3),
    "PCA of one": PCA(1, whiten=True),
    "TruncatedSVD": TruncatedSVD(2, random_state=0),
    "selector": SelectKBest(k=2),
    "columns": columns,
    "remainder": ColumnTransformer([("a", StandardScaler(), [1])], remainder="passthrough"),
    "union": union,
    "chain": make_pipeline(StandardScaler(), columns, PCA(4, whiten=True), RobustScaler()),
}
IMPUTERS = {
    "mean": SimpleImputer(),
    "indicator": SimpleImputer(strategy="median", add_indicator=True),
    "constant": SimpleImputer(strategy="constant", fill_value=-7.0),
    "in columns": make_column_transformer((SimpleImputer(), [1, 0]), remainder=StandardScaler()),
}


def transformed(step, rows, tmp_path, run, **arguments):
    graph = Graph("float64")
    values = Rows(graph.input("X", ["n", rows.shape[1]]), rows.shape[1])
    for each in flat_steps(step):
        values = add_step(graph, each, values)
    graph.output("Y", values.name, np.float64, ["n", values.n_values])
    graph.write(tmp_path / "step.onnx", {})
    return run(tmp_path / "step.onnx", rows, **arguments)["Y"]


@pytest.mark.parametrize("optimised", [True, False])
@pytest.mark.parametrize(
    ("step", "data"),
    [*((step, X) for step in STEPS.values()), *((step, GAPS) for step in IMPUTERS.values())],
    ids=[*STEPS, *IMPUTERS],
)
def test_a_step_computes_what_scikit_learn_computes(step, data, optimised, tmp_path, run):
    step.fit(data[:40], y[:40])
    rows = data[30:] * 1.5
    expected = step.transform(rows)
    found = transformed(step, rows, tmp_path, run, optimised=optimised)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_a_scale_near_one_of_one_column_is_not_optimised_away(tmp_path, run):
    scaler = StandardScaler().fit(X[:, :1])
    scaler.mean_, scaler.scale_ = np.array([1e-50]), np.array([1 + 2.0**-30])
    union = FeatureUnion([("scaler", scaler)])
    found = transformed(union, X[:, :1], tmp_path, run)
    np.testing.assert_array_equal(found, scaler.transform(X[:, :1]))
    assert (found != X[:, :1]).all()


def test_what_was_switched_off_after_fit_stays_off(tmp_path, run):
    scaler = StandardScaler().fit(X).set_params(with_std=False)
    np.testing.assert_array_equal(transformed(scaler, X, tmp_path, run), scaler.transform(X))


def test_columns_by_name_go_by_their_positions_at_fit(tmp_path, run):
    table = pd.DataFrame(X, columns=list("abcde"))
    step = make_column_transformer((StandardScaler(), ["d", "a"]), ("passthrough", ["c"])).fit(table)
    np.testing.assert_array_equal(transformed(step, X, tmp_path, run), step.transform(table))


@pytest.mark.parametrize("step", [QuantileTransformer(n_quantiles=5), Normalizer()])
def test_a_step_without_operators_is_refused_by_name(step, tmp_path, run):
    name = type(step).__name__
    with pytest.raises(TypeError, match=f"{name} has no form in ONNX here; leave the step out .*PCA"):
        transformed(step.fit(X), X, tmp_path, run)
