"""Counterfactuals: rows with another label, never inside a radius, and hardly farther than need be."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    QuantileTransformer,
    StandardScaler,
)

from sklip import LipschitzClassifier, certificates, counterfactual


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 20, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


def scaled(**parameters):
    return make_pipeline(StandardScaler(), quick(**parameters))


@pytest.fixture(scope="module")
def cancer():
    """A DataFrame of ten columns in units of their own, and two classes of words."""
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    return X.iloc[:200, :10], np.where(y[:200] == 1, "benign", "malignant")


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


def check(estimator, X, found, units, fixed=(), **changes):
    """What is promised of counterfactuals, computed without sklip but for the certificates."""
    assert type(found.X) is type(X)
    assert found.X.shape == X.shape
    assert (found.labels == estimator.predict(found.X)).all()
    at, other = np.asarray(X, dtype=np.float64), np.asarray(found.X, dtype=np.float64)
    differences = ((other - at).reshape(len(at), -1) / units).astype(np.longdouble)
    assert (np.delete(other - at, np.setdiff1d(range(at.shape[1]), fixed), axis=1) == 0).all()
    distances = np.sqrt((differences**2).sum(axis=1))
    known = np.isfinite(found.distances)
    assert ((found.labels != estimator.predict(X)) == known).all()
    assert (distances[known] <= found.distances[known]).all()
    # sklip rounds lengths up by 2 ** -20.
    assert found.distances[known] == pytest.approx(distances[known].astype(float), rel=2**-19)
    assert (distances[~known] == 0).all()
    radii = certificates(estimator, X, **changes)
    assert (distances[known] >= radii[known]).all()
    assert (radii > 0).mean() > 0.9
    return found.distances / radii


KINDS = {
    "scaler": lambda: scaled(),
    "projection": lambda: make_pipeline(StandardScaler(), PCA(4), StandardScaler(), quick()),
    "clipping": lambda: make_pipeline(MinMaxScaler(clip=True), PCA(6), quick()),
    "threshold": lambda: FixedThresholdClassifier(scaled(), threshold=0.8),
    "temperature": lambda: CalibratedClassifierCV(scaled(), method="temperature", ensemble=False, cv=2),
    "soft vote": lambda: VotingClassifier(
        [("one", scaled()), ("two", scaled(tau=10.0, random_state=1))], voting="soft"
    ),
    "votes": lambda: VotingClassifier(
        [("one", scaled()), ("two", scaled(random_state=1)), ("three", scaled(tau=10.0))]
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fixed", [[], ["mean area", "mean texture"]])
def test_every_row_gets_another_label_and_none_inside_its_radius(cancer, kind, fixed):
    X, y = cancer
    estimator, units = KINDS[kind]().fit(X, y), X.std()
    changes = {"scale": units, "fixed_columns": fixed}
    found = counterfactual(estimator, X, **changes)
    ratios = check(
        estimator, X, found, units.to_numpy(), [X.columns.get_loc(name) for name in fixed], **changes
    )
    assert np.isfinite(ratios).mean() > 0.98
    # Most of the gap is the certificate's share, where a scaler makes directions differ in length.
    # So it is in votes where columns are held fixed on which the members rely.
    in_fixed_votes = bool(fixed) and kind in ("soft vote", "votes")
    assert np.median(ratios) < (7 if kind == "projection" else 3.5 if in_fixed_votes else 2.5)
    assert found.X.index.equals(X.index)
    assert found.X.columns.equals(X.columns)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden_layer_sizes", [(), (8,)])
def test_radii_and_distances_meet_at_the_boundary(iris, dtype, hidden_layer_sizes):
    X, y = iris[0].astype(dtype), iris[1]
    clf = quick(hidden_layer_sizes=hidden_layer_sizes, dtype=dtype).fit(X, y)
    found = counterfactual(clf, X)
    assert found.X.dtype == dtype
    ratios = check(clf, X, found, 1.0)
    if hidden_layer_sizes:
        assert np.median(ratios) < 1.5
        return
    # The exact distance of each row from the nearest of the planes between its class and others.
    layer = clf.to_torch()[-1].double()
    weight, logits = layer.weight.detach().numpy(), clf.decision_function(X).astype(np.float64)
    codes = logits.argmax(axis=1)
    slopes = np.linalg.norm(weight[codes][:, None] - weight[None], axis=2)
    margins = logits.max(axis=1, keepdims=True) - logits
    with np.errstate(invalid="ignore"):
        exact = np.nanmin(margins / slopes, axis=1)
    # The bracket of the last step is 0.03 / 2 ** 8 wide.
    assert found.distances == pytest.approx(exact, rel=2e-3, abs=1e-5)


class Times(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_counterfactuals_are_as_near_as_those_of_a_known_attack(digits):
    X, y = digits[0][:150].copy(), digits[1][:150]
    clf = quick(hidden_layer_sizes=(32,), max_epochs=60).fit(*digits)
    found = counterfactual(clf, X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports from places of SciPy that will move
        import foolbox
    # Sharper scores, without which the attack's cross-entropy pulls to all classes at once.
    network = torch.nn.Sequential(clf.to_torch(), Times(10)).eval()
    model = foolbox.PyTorchModel(network, bounds=(-10, 10), device="cpu")
    labels = torch.from_numpy(clf.predict(X))
    criterion = foolbox.criteria.Misclassification(labels)
    _, others, success = foolbox.attacks.DDNAttack(steps=50)(
        model, torch.from_numpy(X), criterion, epsilons=None
    )
    attacked = np.linalg.norm(others.numpy() - X, axis=1)[success.numpy()]
    assert len(attacked) > 140
    assert np.median(found.distances) < 1.02 * np.median(attacked)
    assert (found.labels != y).mean() > 0.9


@pytest.mark.parametrize("layout", ["gray", "channels first", "channels last", "flat"])
def test_images_keep_their_layout(few_digits, layout):
    images = (few_digits[0].reshape(-1, 8, 8) / 16).astype(np.float32)[:60]
    y, parameters = few_digits[1][:60], {"conv_channels": (4,), "max_epochs": 5}
    if layout == "channels first":
        X = np.stack([images, images[:, ::-1]], axis=1)
    elif layout == "channels last":
        X, parameters["input_shape"] = np.stack([images, images[:, ::-1]], axis=3), (2, 8, 8)
    elif layout == "flat":
        X, parameters["input_shape"] = images.reshape(60, -1), (1, 8, 8)
    else:
        X = images
    clf = quick(**parameters).fit(X, y)
    found = counterfactual(clf, X)
    assert found.X.dtype == np.float32
    ratios = check(clf, X, found, 1.0)
    assert np.isfinite(ratios).all()
    # A gradient in the wrong order of pixels would lead nowhere near.
    assert np.median(ratios) < 2


def test_a_target_is_reached_and_is_where_a_row_already_is(iris):
    X, y = iris
    clf = quick(hidden_layer_sizes=(16,), max_epochs=60).fit(X, y)
    nearest = counterfactual(clf, X).distances
    labels = clf.predict(X)
    for target in clf.classes_:
        found = counterfactual(clf, X, target)
        assert (found.labels == target).all()
        assert (clf.predict(found.X) == target).all()
        there = labels == target
        assert (found.distances[there] == 0).all()
        assert (found.X[there] == X[there]).all()
        # A chosen class is no nearer than the nearest, but for the last digits of both searches.
        assert (found.distances[~there] > 0.9 * nearest[~there]).all()
        assert (found.distances[~there] >= certificates(clf, X)[~there]).all()
    each = np.roll(clf.classes_, 1)[np.searchsorted(clf.classes_, labels)]
    assert (counterfactual(clf, X, each).labels == each).all()
    with pytest.raises(ValueError, match=r"target must be one of the classes \[0, 1, 2\], got \{7\}"):
        counterfactual(clf, X, 7)
    with pytest.raises(ValueError, match=r"one for each of 150 rows, got shape \(3,\)"):
        counterfactual(clf, X, [0, 1, 2])


def test_where_there_is_none_the_row_stays_and_the_distance_is_infinite(cancer):
    X, y = cancer
    never = FixedThresholdClassifier(scaled(), threshold=-1.0).fit(X, y)
    found = counterfactual(never, X, scale="std")
    assert np.isinf(found.distances).all()
    assert found.X.equals(X)
    assert (found.labels == never.predict(X)).all()


def test_a_flat_stretch_is_crossed_towards_another_row(iris):
    # Beyond the quantiles of training a column moves nothing, so that there is no gradient.
    X, y = iris
    pipeline = make_pipeline(QuantileTransformer(n_quantiles=3), quick(max_epochs=60)).fit(X, y)
    far = np.where(np.median(X, axis=0) > X, X - 100, X + 100)
    rows = np.vstack([far[:1], far[-1:], X])
    found = counterfactual(pipeline, rows)
    assert np.isfinite(found.distances).all()
    assert (pipeline.predict(found.X) != pipeline.predict(rows)).all()


def test_missing_values_stay_missing(iris):
    X, y = iris[0].copy(), iris[1]
    X[::7, 2] = np.nan
    pipeline = make_pipeline(SimpleImputer(), StandardScaler(), quick()).fit(X, y)
    found = counterfactual(pipeline, X)
    assert (np.isnan(found.X) == np.isnan(X)).all()
    assert np.isfinite(found.distances).all()
    assert (found.labels != pipeline.predict(X)).all()
    moved = np.nan_to_num(found.X - X)
    assert found.distances == pytest.approx(np.linalg.norm(moved, axis=1), rel=2**-19)


def test_sparse_columns_of_pandas_are_read_as_dense_ones():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(40, 3)), columns=["a", "b", "c"])
    clf = quick().fit(X, X["a"] > 0)
    sparse = X.assign(a=pd.arrays.SparseArray(X["a"]))
    with pytest.warns(UserWarning, match="sparse columns found"):  # by scikit-learn, of X itself
        found = counterfactual(clf, sparse, fixed_columns=["a"])
    dense = counterfactual(clf, X, fixed_columns=["a"])
    assert found.X.equals(dense.X)
    np.testing.assert_array_equal(found.distances, dense.distances)


def test_words_stay_and_integers_become_numbers():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "city": rng.choice(["Oslo", "Rome"], 80),
            "age": rng.integers(20, 70, 80),
            "size": rng.normal(size=80).astype(np.float32),
            "income": pd.array(rng.normal(size=80), dtype="Float64"),
            "any": rng.normal(size=80).astype(object),
        }
    )
    numbers = ["age", "size", "income", "any"]
    prepare = make_column_transformer(
        (OneHotEncoder(sparse_output=False), ["city"]), (StandardScaler(), numbers)
    )
    model = make_pipeline(prepare, quick()).fit(X, X["age"] > 45)
    with pytest.raises(TypeError, match=r"[Oo]ne.?[Hh]ot"):
        counterfactual(model, X)
    kept = X.copy()
    found = counterfactual(model, X[X.columns[::-1]], fixed_columns=["city"], scale="std")
    assert X.equals(kept)
    assert list(found.X.columns) == list(X.columns[::-1])
    assert (found.X["city"] == X["city"]).all()
    assert found.X.dtypes[numbers].astype(str).tolist() == ["float64", "float32", "Float64", "object"]
    assert (model.predict(found.X) != model.predict(X)).all()
    radii = certificates(model, X, fixed_columns=["city"], scale="std")
    assert (found.distances >= radii).all()
    assert np.isfinite(found.distances).all()


def test_sparse_rows_and_lists_and_steps_that_overwrite(iris):
    X, y = iris
    rows = sparse.csr_array(X)
    pipeline = make_pipeline(MaxAbsScaler(), TruncatedSVD(3, random_state=0), quick()).fit(rows, y)
    found = counterfactual(pipeline, rows)
    assert type(found.X) is sparse.csr_array
    assert (pipeline.predict(found.X) != pipeline.predict(rows)).all()
    assert (found.distances >= certificates(pipeline, rows)).all()
    overwriting = make_pipeline(StandardScaler(copy=False), quick()).fit(X.copy(), y)
    given = X.copy()
    of_array = counterfactual(overwriting, given)
    assert (given == X).all()
    of_list = counterfactual(clone(overwriting).fit(X.copy(), y), X.tolist())
    assert of_list.distances == pytest.approx(of_array.distances)
    of_tensor = counterfactual(quick().fit(X, y), torch.from_numpy(X))
    assert isinstance(of_tensor.X, np.ndarray)


def test_what_cannot_be_asked_is_refused(iris, few_digits):
    X, y = iris
    with pytest.raises(NotFittedError):
        counterfactual(quick(), X)
    with pytest.raises(TypeError, match="gives no certificates"):
        counterfactual(LogisticRegression(max_iter=500).fit(X, y), X)
    images = few_digits[0].reshape(-1, 8, 8)[:40]
    clf = quick(conv_channels=(4,), max_epochs=1).fit(images, few_digits[1][:40])
    with pytest.raises(ValueError, match="scale needs X of flat rows"):
        counterfactual(clf, images, scale=np.ones(64))
    fitted = quick(max_epochs=1).fit(X, y)
    with pytest.raises(ValueError, match="Expected 2D array"):
        counterfactual(fitted, X[0])
    with pytest.raises(ValueError, match="minimum of 1 is required"):
        counterfactual(fitted, X[:0])
    with pytest.raises(ValueError, match="fixed_columns must be"):
        counterfactual(fitted, X, fixed_columns=[9])
    behind_a_step = scaled(max_epochs=1).fit(X, y)
    for columns in ([0], [0, 1, 2, 3, 0]):
        for function in (certificates, counterfactual):
            with pytest.raises(ValueError, match="features"):
                function(behind_a_step, X[:, columns])
    for function in (certificates, counterfactual):
        with pytest.raises(ValueError, match="Complex data not supported"):
            function(behind_a_step, X.astype(complex))


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_switched_off_change_nothing(iris, without_gradients):
    X, y = iris
    outside = quick(max_epochs=2).fit(X, y)
    with without_gradients():
        inside = quick(max_epochs=2).fit(X, y)
        np.testing.assert_array_equal(inside.certificates_(X), outside.certificates_(X))
        found = counterfactual(inside, X[:5]).distances
    np.testing.assert_array_equal(found, counterfactual(outside, X[:5]).distances)


@pytest.mark.parametrize("behind_a_step", [False, True])
def test_numbers_that_overflow_are_no_warnings_and_radii_remain_below(iris, behind_a_step):
    X, y = iris
    clf = (scaled if behind_a_step else quick)(max_epochs=1).fit(X, y)
    rows = X[::30] * 10.0 ** np.array([-300, 0, 150, 300])
    for scale in (None, [1e300] * 4, [1e-200] * 4):
        found, radii = counterfactual(clf, rows, scale=scale), certificates(clf, rows, scale=scale)
        np.testing.assert_array_equal(found.labels, clf.predict(found.X))
        assert (found.distances >= radii).all()
