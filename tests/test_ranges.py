"""How far single columns may move alone: exact for linear classifiers, never too far for others."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.ensemble import VotingClassifier
from sklearn.feature_selection import SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, OneHotEncoder, StandardScaler

from sklip import LipschitzClassifier, certificates, certified_ranges

pytestmark = pytest.mark.filterwarnings("ignore:The steps enlarge a change of column")

SPREAD = np.array([0.01, 1.0, 30.0, 2000.0, 5.0])


def table(n_classes=3, n_rows=150):
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(n_rows, 5)) @ (np.eye(5) + 0.3 * rng.normal(size=(5, 5)))
    return Z * SPREAD + [0, 1, 100, 0, -3], (Z @ rng.normal(size=(5, n_classes))).argmax(axis=1)


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 10, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


STEPS = {
    "nothing": [],
    "scaler": [StandardScaler()],
    "projection between scalers": [StandardScaler(), PCA(3), StandardScaler()],
    "union, projected": [make_union(MaxAbsScaler(), StandardScaler()), PCA(4)],
}
CLIPPED = {
    "clipped before": [MinMaxScaler(clip=True), PCA(3)],
    "clipped behind": [StandardScaler(), PCA(3), MinMaxScaler(clip=True)],
}


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", STEPS)
def test_ranges_of_a_linear_classifier_are_the_exact_distances(name, n_classes):
    X, y = table(n_classes)
    pipeline = make_pipeline(*map(clone, STEPS[name]), quick(hidden_layer_sizes=())).fit(X, y)
    ranges = certified_ranges(pipeline, X)
    assert ranges.shape == X.shape
    middle = X.mean(axis=0)
    scores = pipeline.decision_function(X).reshape(len(X), -1)
    ahead = pipeline.decision_function(middle + np.diag(SPREAD)).reshape(5, -1)
    gradients = ((ahead - pipeline.decision_function(middle[None]).reshape(1, -1)) / SPREAD[:, None]).T
    if n_classes == 2:
        scores, gradients = np.hstack([-scores, scores]) / 2, np.vstack([-gradients, gradients]) / 2
    rows, top = np.arange(len(X)), scores.argmax(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = (scores.max(axis=1)[:, None] - scores)[:, :, None] / np.abs(
            gradients[top][:, None] - gradients
        )
    distances[rows, top] = np.inf
    # Differences over a step of a standard deviation keep 10 digits.
    np.testing.assert_allclose(ranges, distances.min(axis=1), rtol=1e-6)
    assert (ranges <= distances.min(axis=1) * (1 + 1e-9)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [(), (8,), (8, 8)], ids=len)
@pytest.mark.parametrize("name", [*STEPS, *CLIPPED])
def test_no_step_of_one_column_inside_its_range_changes_the_class(name, hidden, dtype):
    X, y = table()
    steps = {**STEPS, **CLIPPED}[name]
    model = quick(hidden_layer_sizes=hidden, dtype=dtype)
    pipeline = make_pipeline(*map(clone, steps), model).fit(X, y)
    ranges, labels = certified_ranges(pipeline, X), pipeline.predict(X)
    assert (ranges > 0).mean() > 0.9
    assert (ranges >= 0.999 * certificates(pipeline, X)[:, None]).all()
    found_beyond = 0
    for column in range(5):
        for share in np.append(np.linspace(-1, 1, 21) * (1 - 1e-9), [-100, 100]):
            moved = X.copy()
            moved[:, column] += share * np.minimum(ranges[:, column], 1e8 * SPREAD[column])
            changed = pipeline.predict(moved) != labels
            if abs(share) < 1:
                assert not changed.any()
            found_beyond += changed.sum()
    # The steps find other classes where they may.
    assert found_beyond > 0


def test_ranges_are_of_one_unit_each_whatever_the_others_are():
    X, y = table()
    X = X / SPREAD
    pipeline = make_pipeline(StandardScaler(), quick()).fit(X, y)
    stretch = 2.0 ** np.array([-10, 0, 5, 10, -5])
    stretched = make_pipeline(StandardScaler().fit(X * stretch), pipeline[-1])
    ranges, wide = certified_ranges(pipeline, X), certified_ranges(stretched, X * stretch)
    # What rounding takes of a row is in proportion to its longest columns, as for the joint radius.
    np.testing.assert_allclose(wide, ranges * stretch, rtol=1e-5)


def test_the_smallest_range_in_units_of_the_scale_is_near_the_joint_radius():
    """At most the root of the number of columns, where each counts alike."""
    X, y = table()
    pipeline = make_pipeline(StandardScaler(), quick(hidden_layer_sizes=())).fit(X, y)
    radii = certificates(pipeline, X, scale="std")
    smallest = (certified_ranges(pipeline, X) / X.std(axis=0)).min(axis=1)
    assert (smallest >= radii * (1 - 1e-9)).all()
    assert (smallest <= radii * 5**0.5 * 1.001).all()


# -- frames, fixed columns, columns that are not read ------------------------------------------------


@pytest.fixture(scope="module")
def frame():
    X, y = table(2)
    X = pd.DataFrame(X, columns=list("abcde"), index=[f"row {i}" for i in range(len(X))])
    X.insert(0, "city", np.where(np.arange(len(X)) % 3, "Oslo", "Rome"))
    return X, y


@pytest.fixture(scope="module")
def pipeline(frame):
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    prepare = ColumnTransformer(
        [("n", numbers, list("abce")), ("c", OneHotEncoder(sparse_output=False), ["city"])]
    )
    return make_pipeline(prepare, quick()).fit(*frame)


def test_a_frame_gives_a_frame_with_its_rows_and_columns(frame, pipeline):
    X, _ = frame
    ranges = certified_ranges(pipeline, X, fixed_columns=["city"])
    assert ranges.index.equals(X.index)
    assert ranges.columns.equals(X.columns)
    assert ranges["city"].isna().all()
    assert np.isinf(ranges["d"]).all()
    assert (ranges[list("abce")] > 0).to_numpy().mean() > 0.9
    assert np.isfinite(ranges[list("abce")].to_numpy()).all()
    limits = (ranges / X.drop(columns="city").std())[list("abce")].idxmin(axis=1)
    assert set(limits) <= set("abce")
    mixed = X[[*"eadcb", "city"]].assign(more=1.0)
    other = certified_ranges(pipeline, mixed, fixed_columns=["city"])
    pd.testing.assert_frame_equal(other[X.columns], ranges)
    assert np.isinf(other["more"]).all()
    without = certified_ranges(pipeline, X.drop(columns="d"), fixed_columns=["city"])
    pd.testing.assert_frame_equal(without, ranges.drop(columns="d"))


def test_a_frame_whose_columns_had_no_names_keeps_its_labels():
    X, y = table(2)
    pipeline = make_pipeline(StandardScaler(), quick()).fit(X, y)
    frame = pd.DataFrame(X, index=np.arange(len(X)) + 7)
    expected = pd.DataFrame(certified_ranges(pipeline, X), index=frame.index, columns=frame.columns)
    pd.testing.assert_frame_equal(certified_ranges(pipeline, frame), expected)


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_a_column_that_one_member_of_a_vote_alone_reads_is_not_free(voting):
    X, y = table(2)
    some = make_pipeline(ColumnTransformer([("some", StandardScaler(), [0, 1, 2])]), quick())
    members = [("some", some), ("all", make_pipeline(StandardScaler(), quick(random_state=1)))]
    vote = VotingClassifier(members, voting=voting, weights=[1.0, 3.0]).fit(X, y)
    ranges, labels = certified_ranges(vote, X), vote.predict(X)
    assert np.isfinite(ranges).all()
    for column in (3, 4):
        assert (ranges[:, column] > 0).mean() > 0.9
        moved = X.copy()
        moved[:, column] += 30 * ranges[:, column]
        assert (vote.predict(moved) != labels).any()


def test_steps_without_a_rule_need_their_columns_fixed(frame, pipeline):
    with pytest.raises(TypeError, match="OneHotEncoder has no Lipschitz bound"):
        certified_ranges(pipeline, frame[0])
    with pytest.raises(ValueError, match="got 'town'"):
        certified_ranges(pipeline, frame[0], fixed_columns=["town"])


def test_rows_that_lack_values_have_no_ranges_where_anything_is_read(frame, pipeline):
    X, _ = frame
    lacking = X.copy()
    lacking.iloc[:5, 1] = np.nan
    ranges = certified_ranges(pipeline, lacking, fixed_columns=["city"])
    assert (ranges.iloc[:5][list("abce")] == 0).to_numpy().all()
    assert (ranges.iloc[5:]["a"] > 0).any()


def test_columns_that_are_not_selected_are_free():
    X, y = table()
    pipeline = make_pipeline(StandardScaler(), SelectKBest(k=3), quick()).fit(X, y)
    kept = pipeline[1].get_support()
    ranges = certified_ranges(pipeline, X)
    assert np.isinf(ranges[:, ~kept]).all()
    assert np.isfinite(ranges[:, kept]).all()
    moved, labels = X.copy(), pipeline.predict(X)
    moved[:, ~kept] = 1e100
    assert (pipeline.predict(moved) == labels).all()


def test_sparse_rows_and_calibrated_classifiers_have_ranges():
    X, y = table()
    X = X / SPREAD
    pipeline = make_pipeline(MaxAbsScaler(), TruncatedSVD(4), quick()).fit(X, y)
    ranges = certified_ranges(pipeline, X)
    np.testing.assert_allclose(
        certified_ranges(pipeline, sparse.csr_array(X)), ranges, rtol=1e-6, atol=1e-12
    )
    calibrated = CalibratedClassifierCV(FrozenEstimator(pipeline), method="temperature", ensemble=False)
    of_calibrated = certified_ranges(calibrated.fit(X, y), X)
    assert (of_calibrated <= ranges * (1 + 1e-9)).all()
    np.testing.assert_allclose(of_calibrated, ranges, rtol=1e-4, atol=1e-9)


def test_a_convolution_bounds_all_pixels_alike(few_digits):
    X, y = few_digits
    clf = quick(input_shape=(1, 8, 8), conv_channels=(4,), max_epochs=1).fit(X, y)
    ranges, radii = certified_ranges(clf, X[:20]), certificates(clf, X[:20])
    np.testing.assert_allclose(ranges, np.repeat(radii[:, None], 64, axis=1), rtol=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weight", [0.0, 1e-30, 1e-12, 1e-3])
def test_ranges_are_at_least_the_joint_radius(weight, dtype):
    """Also beside a column that hardly counts, whose unit is so large that its rounding costs all."""
    X, y = table()
    X = (X / SPREAD).astype(dtype)
    parts = [("a", StandardScaler(), [0, 1, 2, 3]), ("b", StandardScaler(), [4])]
    steps = ColumnTransformer(parts, transformer_weights={"b": weight})
    pipeline = make_pipeline(steps, quick()).fit(X, y)
    radii = certificates(pipeline, X)
    assert (radii > 0).mean() > 0.9
    assert (certified_ranges(pipeline, X) >= radii[:, None]).all()
