"""A file answers as the estimator does, and its radius holds for what onnxruntime computes."""

import builtins
import json

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler
from torch import nn

from sklip import LipschitzClassifier, certificates, layers, to_onnx

SCALED = {"scale": "std"}
SIZE = "lipschitzclassifier__hidden_layer_sizes"
# As without a scale, but that no column is warned of.
RAW = {"scale": np.ones(13)}


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 20, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


def tables():
    X, y = load_wine(return_X_y=True)
    return X, y, np.array(["red", "white", "rosé"], dtype=object)[y]


X, y, words = tables()
BINARY = load_breast_cancer(return_X_y=True)
GAPS = X.copy()
# The last of these columns is not read.
GAPS[np.random.default_rng(0).random(X.shape) < [0.1, 0.1, 0, 0, 0.1, 0.1, *[0] * 7]] = np.nan


def prepared():
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    return make_column_transformer((numbers, [0, 1, 4]), (StandardScaler(), [7, 12, 2]))


MODELS = {
    "network": lambda: (quick().fit(X, y), X, {}),
    "search": lambda: (
        GridSearchCV(make_pipeline(StandardScaler(), quick()), {SIZE: [(4,)]}, cv=2).fit(X, y),
        X,
        SCALED,
    ),
    "words": lambda: (make_pipeline(StandardScaler(), quick()).fit(X, words), X, SCALED),
    "binary": lambda: (make_pipeline(StandardScaler(), quick()).fit(*BINARY), BINARY[0], SCALED),
    "binary truth values": lambda: (quick(dtype="float32").fit(X, y == 1), X, {}),
    "missing values": lambda: (make_pipeline(prepared(), quick()).fit(GAPS, y), GAPS, RAW),
    "projection": lambda: (
        make_pipeline(StandardScaler(), PCA(5, whiten=True), StandardScaler(), quick()).fit(X, y),
        X,
        RAW,
    ),
    "fixed columns": lambda: (
        make_pipeline(StandardScaler(), quick()).fit(X, y),
        X,
        {"fixed_columns": [0, 3], "scale": np.linspace(1, 5, 13)},
    ),
    "linear": lambda: (quick(hidden_layer_sizes=()).fit(X, y), X, {}),
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def model(request, tmp_path_factory):
    estimator, rows, units = request.param()
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    to_onnx(estimator, path, **units)
    return estimator, rows, units, path


@pytest.mark.parametrize("optimised", [True, False])
def test_a_file_answers_as_the_estimator_does(model, optimised, run):
    estimator, rows, units, path = model
    found = run(path, rows, optimised=optimised)
    np.testing.assert_array_equal(found["label"], estimator.predict(rows))
    in_float32 = found["label"].dtype == bool
    rtol = 1e-5 if in_float32 else 1e-9
    np.testing.assert_allclose(found["probabilities"], estimator.predict_proba(rows), rtol, 1e-12)
    radii = certificates(estimator, rows, **units)
    assert (found["radius"] <= radii).all()
    np.testing.assert_allclose(found["radius"], radii, 0.0211 if in_float32 else 1e-7, 1e-7)
    assert (found["radius"] > 0).any()


def test_a_row_gets_the_same_answer_in_any_company(model, run):
    _, rows, _, path = model
    together, alone = run(path, rows[:7]), [run(path, row[None]) for row in rows[:7]]
    np.testing.assert_array_equal(together["label"], [each["label"][0] for each in alone])
    radii = [each["radius"][0] for each in alone]
    np.testing.assert_allclose(together["radius"], radii, rtol=1e-9)


def test_the_radius_of_a_linear_classifier_is_its_distance(tmp_path, run):
    """Behind a scaler, to the hyperplane between two classes: in extended precision."""
    rows, labels = BINARY
    pipeline = make_pipeline(StandardScaler(), quick(hidden_layer_sizes=())).fit(rows, labels)
    to_onnx(pipeline, tmp_path / "linear.onnx", scale="std")
    found = run(tmp_path / "linear.onnx", rows)["radius"]
    scaler, clf = pipeline[0], pipeline[1]
    center, linear = clf.to_torch()
    wide = np.longdouble
    weight = linear.weight.numpy().astype(wide)[0]
    standardised = (rows.astype(wide) - scaler.mean_) / scaler.scale_.astype(wide)
    logits = (standardised - center.center.numpy()) @ weight + linear.bias.numpy().astype(wide)
    distances = np.abs(logits) / np.sqrt(np.square(weight * np.sqrt(scaler.var_) / scaler.scale_).sum())
    assert (found <= distances).all()
    np.testing.assert_allclose(found, distances.astype(float), rtol=1e-6)


@pytest.mark.parametrize("name", ["network", "projection", "binary", "missing values"])
def test_no_step_inside_the_radius_changes_the_label(name, tmp_path, opened):
    """Along the gradients of all margins, estimated from the file itself, at 0.999 of the radius."""
    estimator, rows, units = MODELS[name]()
    to_onnx(estimator, tmp_path / "model.onnx", **units)
    answers = opened(tmp_path / "model.onnx")
    scale = rows.std(axis=0) if units is SCALED else np.ones(rows.shape[1])
    found = answers(rows)
    certified = np.flatnonzero(found["radius"] > 0)[:40]
    rng = np.random.default_rng(0)
    neighbours, expected, distances = [], [], []
    for i in certified:
        steps = np.concatenate([np.eye(len(scale)), -np.eye(len(scale))]) * 1e-3 * found["radius"][i]
        nearby = answers(rows[i] + steps * scale)["probabilities"]
        logs = np.log(np.maximum(nearby, 1e-300))
        margins = logs[:, [np.argmax(found["probabilities"][i])]] - logs
        slopes = margins[: len(scale)] - margins[len(scale) :]
        directions = np.concatenate([-slopes.T, rng.normal(size=(3, len(scale)))])
        lengths = np.linalg.norm(directions, axis=1)
        for direction, length in zip(directions[lengths > 0], lengths[lengths > 0], strict=True):
            for share in (0.999, 3.0):
                moved = share * found["radius"][i] * direction / length * scale
                neighbours.append(rows[i] + moved)
                expected.append(found["label"][i])
                distances.append(share)
    labels, distances = answers(np.array(neighbours))["label"], np.array(distances)
    same = labels == np.array(expected)
    assert same[distances < 1].all()
    assert not same[distances > 1].all(), "the directions must find the other classes"


def test_rows_of_which_nothing_can_be_said_have_radius_0(tmp_path, run):
    estimator = make_pipeline(StandardScaler(), quick()).fit(X, y)
    to_onnx(estimator, tmp_path / "model.onnx", **SCALED)
    rows = np.repeat(X[:1], 6, axis=0)
    rows[0, 3], rows[1, 3], rows[2, 3], rows[3, 3], rows[4] = np.nan, np.inf, -1e200, 1e308, -1e308
    radii = run(tmp_path / "model.onnx", rows)["radius"]
    np.testing.assert_array_equal(radii[:5], 0)
    assert radii[5] > 0


def test_no_limit_is_lost_where_numbers_overflow(tmp_path, run):
    estimator, scale = quick().fit(X, y), [1e-200] * X.shape[1]
    to_onnx(estimator, tmp_path / "model.onnx", scale=scale)
    # At 1e151 the network may overflow, and nothing is certified.
    for factor, any_certified in ((1.0, True), (1e100, True), (1e151, False), (1e153, False)):
        expected = certificates(estimator, X * factor, scale=scale)
        for optimised in (True, False):
            radii = run(tmp_path / "model.onnx", X * factor, optimised=optimised)["radius"]
            assert (radii <= expected).all()
            assert (radii > 0).any() == any_certified


def test_a_row_that_lacks_a_value_has_radius_0_and_the_label_of_the_filled_row(tmp_path, run):
    estimator = make_pipeline(prepared(), quick()).fit(GAPS, y)
    to_onnx(estimator, tmp_path / "model.onnx", **RAW)
    found, lacks = run(tmp_path / "model.onnx", GAPS), np.isnan(GAPS)
    np.testing.assert_array_equal(found["radius"] == 0, lacks[:, [0, 1, 4]].any(axis=1))
    np.testing.assert_array_equal(found["label"], estimator.predict(GAPS))
    to_onnx(estimator, tmp_path / "fixed.onnx", fixed_columns=[0, 1], **RAW)
    radii = run(tmp_path / "fixed.onnx", GAPS)["radius"]
    np.testing.assert_array_equal(radii == 0, lacks[:, 4])
    expected = certificates(estimator, GAPS, fixed_columns=[0, 1], **RAW)
    assert (radii <= expected).all()
    np.testing.assert_allclose(radii, expected, rtol=1e-6)


def test_ties_and_constant_networks(tmp_path, run):
    def constant(input_shape, n_outputs):
        head = nn.Linear(input_shape[0], n_outputs)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head.requires_grad_(False)

    def network(input_shape, n_outputs):
        return nn.Sequential(layers.SpectralLinear(input_shape[0], 4), constant((4,), n_outputs))

    for labels in (y, y == 1):
        clf = quick(architecture=network, max_epochs=1).fit(X, labels)
        to_onnx(clf, tmp_path / "tie.onnx")
        found = run(tmp_path / "tie.onnx", X)
        np.testing.assert_array_equal(found["label"], clf.predict(X))
        np.testing.assert_array_equal(found["radius"], 0)


def test_images_are_rows_with_the_channels_first(few_digits, tmp_path, run):
    rows, labels = few_digits
    images = np.stack([rows.reshape(-1, 8, 8) / 16, rows.reshape(-1, 8, 8)[:, ::-1] / 16], axis=1)
    clf = quick(conv_channels=(4, 8), hidden_layer_sizes=(16,), max_epochs=4).fit(images, labels)
    to_onnx(clf, tmp_path / "images.onnx")
    found = run(tmp_path / "images.onnx", images.reshape(len(images), -1))
    np.testing.assert_array_equal(found["label"], clf.predict(images))
    radii = clf.certificates_(images)
    assert (found["radius"] <= radii).all()
    np.testing.assert_allclose(found["radius"], radii, rtol=0.0211)


def test_a_file_says_what_it_is(tmp_path):
    table = pd.DataFrame(X[:, :3], columns=["alcohol", "acid", "ash"])
    pipeline = make_pipeline(StandardScaler(), quick()).fit(table, words)
    to_onnx(pipeline, tmp_path / "wine.onnx", scale={"alcohol": 1, "acid": 2.0, "ash": 0.1})
    session = onnxruntime.InferenceSession(tmp_path / "wine.onnx", providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["columns"]) == ["alcohol", "acid", "ash"]
    assert json.loads(about["classes"]) == ["red", "rosé", "white"]
    assert json.loads(about["scale"]) == [1, 2, 0.1]
    assert "sum_c ((x'_c - x_c) / scale_c)^2 < r^2" in about["promise"]
    model = onnx.load(tmp_path / "wine.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    # Nothing is computed in another precision.
    kinds = {each.data_type for each in model.graph.initializer}
    assert kinds <= {onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64, onnx.TensorProto.STRING, 9}


@pytest.mark.parametrize("labels", [y + 0.5, y * 10**12, y.astype(np.uint8), words.astype("U5")])
def test_labels_of_every_kind(labels, tmp_path, run):
    clf = quick(max_epochs=1).fit(X, labels * 2 if labels.dtype == float else labels)
    to_onnx(clf, tmp_path / "labels.onnx")
    np.testing.assert_array_equal(run(tmp_path / "labels.onnx", X)["label"], clf.predict(X))


# -- bad input ---------------------------------------------------------------------------------


def test_what_is_not_fitted_says_so(tmp_path):
    for estimator in (quick(), make_pipeline(StandardScaler(), quick())):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            to_onnx(estimator, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_decides_otherwise_is_refused(tmp_path):
    threshold = FixedThresholdClassifier(quick(), threshold=0.7).fit(X, y == 1)
    with pytest.raises(TypeError, match="FixedThresholdClassifier decides by more than the logits"):
        to_onnx(threshold, tmp_path / "model.onnx")

    class Contrary(LipschitzClassifier):
        def predict(self, X):
            return super().predict(X)[::-1]

    with pytest.raises(TypeError, match="Contrary has another predict"):
        to_onnx(Contrary(max_epochs=1).fit(X, y), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_steps_and_layers_without_operators_are_refused(tmp_path):
    bent = make_pipeline(QuantileTransformer(n_quantiles=4), quick(max_epochs=1)).fit(X, y)
    with pytest.raises(
        TypeError, match="QuantileTransformer has no form in ONNX here; leave the step out"
    ):
        to_onnx(bent, tmp_path / "model.onnx", **RAW)

    def architecture(input_shape, n_outputs):
        return nn.Sequential(
            layers.SpectralLinear(13, 4), nn.Tanh(), layers.SpectralLinear(4, n_outputs)
        )

    with pytest.raises(TypeError, match="Tanh has no form in ONNX whose rounding is known; train with"):
        to_onnx(quick(architecture=architecture, max_epochs=1).fit(X, y), tmp_path / "model.onnx")
    clf = quick(max_epochs=1).fit(X, y)
    with pytest.raises(ValueError, match="scale must be positive and finite, got -1"):
        to_onnx(clf, tmp_path / "model.onnx", scale=[-1] * 13)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_leaves_what_was_there(tmp_path):
    clf = quick(max_epochs=1).fit(X, y)
    with pytest.raises(FileNotFoundError, match=r"path can't be written .*; give a file in a folder"):
        to_onnx(clf, tmp_path / "missing" / "model.onnx")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="path can't be written"):
        to_onnx(clf, tmp_path / "folder")
    assert [each.name for each in tmp_path.rglob("*")] == ["folder"]
    (tmp_path / "model.onnx").write_bytes(b"before")
    clf.certified_network_.network[1].weight.data *= 2
    with pytest.raises(RuntimeError, match="changed after its proof"):
        to_onnx(clf, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"before"


def test_a_column_that_limits_all_radii_is_warned_of(tmp_path):
    columns = [f"column {i}" for i in range(13)]
    table = pd.DataFrame(X * np.array([1e-5, *[1] * 12]), columns=columns)
    pipeline = make_pipeline(StandardScaler(), quick(max_epochs=1)).fit(table, y)
    with pytest.warns(UserWarning, match="enlarge a change of column 'column 0'") as caught:
        to_onnx(pipeline, tmp_path / "model.onnx")
    assert caught[0].filename == __file__


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    clf, imports = quick(max_epochs=1).fit(X, y), builtins.__import__

    def without(name, *arguments):
        if name.startswith("onnx"):
            raise ImportError(name)
        return imports(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"scikit-lipschitz\[onnx\]"):
        to_onnx(clf, tmp_path / "model.onnx")
