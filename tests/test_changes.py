"""All that may change, in whatever decides: units, fixed columns and edits, one in the other."""

import itertools

import numpy as np
import pandas as pd
import pytest
from imblearn.over_sampling import RandomOverSampler
from imblearn.pipeline import Pipeline as ResamplingPipeline
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, TunedThresholdClassifierCV
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)

from sklip import (
    CertifiedAccuracyDisplay,
    LipschitzClassifier,
    average_certified_radius_scorer,
    categorical_edit_lengths,
    certificates,
    certified_accuracy_scorer,
    certified_ranges,
    nearest_rival,
    predict_or_reject,
    predict_with_radii,
    register_wrapper,
)
from sklip.certification.wrappers import _KINDS

# Three columns of numbers in units of their own.
SPREAD = np.array([2e3, 1.0, 0.05])
NUMBERS = ["income", "age", "rate"]
CATEGORIES = ["city", "job"]
VALUES = {"city": ["Lyon", "Oslo", "Rome"], "job": ["cook", "judge"]}


class BestOf(ClassifierMixin, BaseEstimator):
    def __init__(self, estimator):
        self.estimator = estimator

    def fit(self, X, y):
        self.best_ = clone(self.estimator).fit(X, y)
        self.classes_ = self.best_.classes_
        return self

    def predict(self, X):
        return self.best_.predict(X)


@pytest.fixture(scope="module", autouse=True)
def known_wrapper():
    register_wrapper(BestOf)(lambda wrapper: wrapper.best_)
    yield
    del _KINDS[BestOf]


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    n = 120
    Z = rng.normal(size=(n, 3))
    frame = pd.DataFrame(Z * SPREAD, columns=NUMBERS)
    for name, values in VALUES.items():
        frame[name] = rng.choice(values, n)
    score = Z @ [2.0, 1.5, -1.5] + 0.4 * (frame["city"] == "Oslo")
    return frame[["city", "income", "age", "job", "rate"]], np.where(score > 0.2, "yes", "no")


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 60, "eps": 0.8, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


def prepared(scaler=None, encoder=None):
    encoder = encoder or OneHotEncoder(sparse_output=False)
    return make_column_transformer((scaler or StandardScaler(), NUMBERS), (encoder, CATEGORIES))


def piped(*later, scaler=None, encoder=None, **parameters):
    return make_pipeline(prepared(scaler, encoder), *later, quick(**parameters))


def members():
    """Members whose chains differ in all that a chain has."""
    return [
        ("a", piped()),
        ("b", piped(PCA(4), scaler=MinMaxScaler((-2, 2), clip=True), random_state=1)),
        (
            "c",
            piped(
                encoder=OrdinalEncoder(),
                scaler=make_pipeline(RobustScaler(), StandardScaler()),
                class_weight={0: 2.0, 1: 1.0},
            ),
        ),
    ]


MAKE = {
    "pipeline": piped,
    "scaled behind a projection": lambda: piped(PCA(4), StandardScaler()),
    "bent": lambda: piped(
        PCA(4), scaler=make_pipeline(QuantileTransformer(n_quantiles=6), StandardScaler())
    ),
    "search": lambda: GridSearchCV(piped(), {"lipschitzclassifier__tau": [3.0]}, cv=2),
    "frozen": lambda: FrozenEstimator(piped()),
    "threshold": lambda: FixedThresholdClassifier(piped(), threshold=0.6, pos_label="yes"),
    "tuned": lambda: TunedThresholdClassifierCV(
        piped(), cv=2, scoring="balanced_accuracy", response_method="decision_function"
    ),
    "temperature": lambda: CalibratedClassifierCV(piped(), method="temperature", ensemble=False, cv=2),
    "soft": lambda: VotingClassifier(members(), voting="soft"),
    "majority": lambda: VotingClassifier(members(), voting="hard", weights=[1.0, 2.0, 1.5]),
    "resampled": lambda: ResamplingPipeline(
        [("more", RandomOverSampler(random_state=0)), ("prepare", prepared()), ("fit", quick())]
    ),
    "registered": lambda: BestOf(piped()),
}
_FITTED = {}


@pytest.fixture(scope="module")
def fitted(table):
    def of(name):
        if name not in _FITTED:
            made = MAKE[name]()
            if isinstance(made, FrozenEstimator):
                made = FrozenEstimator(made.estimator.fit(*table))
            _FITTED[name] = made.fit(*table)
        return _FITTED[name]

    return of


def edits(X, columns, n_edits):
    """X as it is, and with each choice of at most so many other categories."""
    for number in range(n_edits + 1):
        for names in itertools.combinations(columns, number):
            for values in itertools.product(*(VALUES[name] for name in names)):
                yield X.assign(**dict(zip(names, values, strict=True)))


def moved(X, steps):
    return X.assign(**{name: X[name] + steps[:, i] for i, name in enumerate(NUMBERS)})


SETTINGS = {
    "held": {"fixed_columns": CATEGORIES},
    "in deviations": {"fixed_columns": CATEGORIES, "scale": "std"},
    "one edit": {"categorical_edits": 1, "scale": dict(zip(NUMBERS, SPREAD, strict=True))},
    "two edits": {"categorical_edits": 2, "scale": "std", "fixed_columns": ["age"]},
    "chosen edits": {
        "categorical_edits": 2,
        "categorical_columns": ["city"],
        "scale": dict(zip(NUMBERS, SPREAD, strict=True)),
    },
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The steps enlarge a change of column")
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", MAKE)
def test_no_allowed_change_inside_the_radius_changes_the_class(fitted, table, name, settings):
    X, estimator = table[0], fitted(name)
    if name == "bent" and settings.get("scale") == "std":
        # No step but a bend knows the columns.
        settings = {**settings, "scale": dict(zip(NUMBERS, SPREAD, strict=True))}
    labels, radii = predict_with_radii(estimator, X, **settings)
    np.testing.assert_array_equal(labels, estimator.predict(X))
    np.testing.assert_array_equal(radii, certificates(estimator, X, **settings))
    assert (radii > 0).mean() > (0.1 if settings.get("categorical_edits") else 0.9)
    units = np.ones(3)
    if settings.get("scale") == "std":
        units = X[NUMBERS].to_numpy().std(axis=0)
        if name == "resampled":
            resampled, _ = RandomOverSampler(random_state=0).fit_resample(*table)
            units = resampled[NUMBERS].to_numpy().std(axis=0)
    elif "scale" in settings:
        units = SPREAD
    free = np.array([column not in settings.get("fixed_columns", ()) for column in NUMBERS])
    columns = settings.get("categorical_columns", CATEGORIES)
    rows, rng, beyond = np.flatnonzero(radii), np.random.default_rng(0), 0
    radii, X, labels = radii[rows], X.iloc[rows], labels[rows]
    # In the direction in which the score rises, by differences, and in any others.
    directions = rng.normal(size=(12, len(X), 3))
    slopes = np.array([2.0, 1.5, -1.5]) * units / SPREAD
    directions[:4] = np.array([1, -1, 0.9, -0.9])[:, None, None] * slopes
    directions *= free
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    edited = pd.concat(edits(X, columns, settings.get("categorical_edits", 0)), ignore_index=True)
    n_edits = len(edited) // len(X)
    for direction, length in itertools.product(directions, (1 - 1e-7, 20)):
        steps = direction * (length * np.minimum(radii, 1e6))[:, None] * units
        found = estimator.predict(moved(edited, np.tile(steps, (n_edits, 1))))
        changed = found != np.tile(labels, n_edits)
        if length < 1:
            assert not changed.any()
        beyond += changed.sum()
    assert beyond > 0


@pytest.mark.parametrize("name", ["threshold", "soft", "majority", "temperature", "registered"])
def test_radii_under_edits_are_the_least_of_all_edits_each_held_fixed(fitted, table, name):
    X, estimator = table[0], fitted(name)
    settings = {"scale": "std", "fixed_columns": ["age"]}
    labels, radii = predict_with_radii(estimator, X, **settings, categorical_edits=1)
    rivals = nearest_rival(estimator, X, **settings, categorical_edits=1)
    settings["fixed_columns"] = ["age", *CATEGORIES]
    found = [predict_with_radii(estimator, each, **settings) for each in edits(X, CATEGORIES, 1)]
    least = np.min([np.where(others == labels, each, 0.0) for others, each in found], axis=0)
    np.testing.assert_allclose(radii, least, rtol=1e-9)
    assert (rivals != labels).all()
    kept = predict_or_reject(
        estimator, X, 0.1, reject_label="?", scale="std", fixed_columns=["age"], categorical_edits=1
    )
    np.testing.assert_array_equal(kept, np.where(radii > 0.1, labels, "?"))


def test_a_rival_under_edits_is_the_class_of_the_edit_that_has_another():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"number": rng.normal(size=90), "kind": rng.choice(["a", "b", "c"], 90)})
    y = X["kind"].to_numpy(dtype=object)
    prepare = make_column_transformer((StandardScaler(), ["number"]), (OneHotEncoder(), ["kind"]))
    estimator = make_pipeline(prepare, quick(eps=0.0, tau=10.0, max_epochs=300)).fit(X, y)
    assert estimator.score(X, y) == 1
    assert (certificates(estimator, X, categorical_edits=1) == 0).all()
    rivals = nearest_rival(estimator, X, categorical_edits=1)
    assert (rivals != y).all()
    without_c = X["kind"] != "c"
    # "c" can't be had where no edit is one.
    prepare = make_column_transformer(
        (StandardScaler(), ["number"]), (OneHotEncoder(categories=[["a", "b"]]), ["kind"])
    )
    estimator = make_pipeline(prepare, quick(eps=0.0, tau=10.0, max_epochs=300)).fit(
        X[without_c], y[without_c]
    )
    rivals = nearest_rival(estimator, X[without_c], categorical_edits=1)
    np.testing.assert_array_equal(rivals, np.where(y[without_c] == "a", "b", "a"))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_scorers_and_displays_measure_as_certificates_do(fitted, table, settings):
    (X, y), estimator = table, fitted("soft")
    labels, radii = predict_with_radii(estimator, X, **settings)
    eps = float(np.median(radii[radii > 0]))
    score = certified_accuracy_scorer(eps=eps, **settings)(estimator, X, y)
    assert score == pytest.approx(np.mean((labels == y) & (radii > eps)))
    score = average_certified_radius_scorer(**settings)(estimator, X, y)
    assert score == pytest.approx(np.mean(np.where(labels == y, radii, 0.0)))
    display = CertifiedAccuracyDisplay.from_estimator(estimator, X, y, **settings)
    assert display.eps[-1] == pytest.approx(1.02 * radii.max())


@pytest.mark.parametrize("response", ["predict_proba", "decision_function"])
@pytest.mark.parametrize("scale", [None, SPREAD, np.array([1.0, 30.0, 0.5])], ids=str)
@pytest.mark.filterwarnings("ignore:The steps enlarge a change of column")
def test_a_linear_score_reaches_its_threshold_at_the_radius(table, response, scale):
    X, y = table[0][NUMBERS].to_numpy(), table[1]
    inner = make_pipeline(StandardScaler(), PCA(2), quick(hidden_layer_sizes=(), dtype="float64"))
    threshold = {"predict_proba": 0.7, "decision_function": 0.3}[response]
    estimator = FixedThresholdClassifier(inner, threshold=threshold, response_method=response)
    estimator.set_params(pos_label="yes").fit(X, y)
    inner = estimator.estimator_
    level = threshold
    if response == "predict_proba":
        level = np.log(threshold / (1 - threshold)) / inner[-1].tau_
    scores, zero = inner.decision_function(X) - level, inner.decision_function(np.zeros((1, 3)))
    gradient = (inner.decision_function(np.diag(SPREAD)) - zero) / SPREAD
    units = np.ones(3) if scale is None else scale
    np.testing.assert_allclose(
        certificates(estimator, X, scale=scale),
        np.abs(scores) / np.linalg.norm(gradient * units),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        certified_ranges(estimator, X), np.abs(scores)[:, None] / np.abs(gradient), rtol=1e-5
    )


@pytest.mark.parametrize("name", MAKE)
def test_no_step_of_one_column_inside_its_range_changes_the_class(fitted, table, name):
    X, estimator = table[0], fitted(name)
    ranges, labels, beyond = certified_ranges(estimator, X, fixed_columns=CATEGORIES), None, 0
    assert list(ranges.columns) == list(X.columns)
    assert ranges[CATEGORIES].isna().all(axis=None)
    labels = estimator.predict(X)
    of_numbers = ranges[NUMBERS].to_numpy()
    assert (of_numbers > 0).mean() > 0.9
    radii = certificates(
        estimator, X, fixed_columns=CATEGORIES, scale=dict(zip(NUMBERS, SPREAD, strict=True))
    )
    # What moves alone moves no less far than all together, up to rounding.
    assert (of_numbers / SPREAD >= 0.99 * radii[:, None] - 1e-6).all()
    for column in range(3):
        for share in (-1 + 1e-7, -0.5, 0.5, 1 - 1e-7, -30, 30):
            steps = np.zeros((len(X), 3))
            steps[:, column] = share * np.minimum(of_numbers[:, column], 1e6 * SPREAD[column])
            changed = estimator.predict(moved(X, steps)) != labels
            if abs(share) < 1:
                assert not changed.any()
            beyond += changed.sum()
    assert beyond > 0


def test_deviations_of_a_vote_are_those_of_the_first_member_that_knows():
    """Members that weigh classes differently have seen different spreads: one unit holds for all."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 3)) * SPREAD
    y = (X[:, 0] > 0).astype(int)
    X[y == 1, 1] *= 3
    weighted = quick(class_weight={0: 1.0, 1: 20.0})
    vote = VotingClassifier([("a", weighted), ("b", quick())], voting="soft").fit(X, y)
    first, second = (member.feature_std_ for member in vote.estimators_)
    assert (first[1] / second[1]) > 1.2
    np.testing.assert_array_equal(
        certificates(vote, X, scale="std"), certificates(vote, X, scale=first)
    )
    clipping = make_pipeline(MinMaxScaler(clip=True), quick())
    vote = VotingClassifier([("a", clipping), ("b", quick())], voting="soft").fit(X, y)
    np.testing.assert_array_equal(
        certificates(vote, X, scale="std"),
        certificates(vote, X, scale=vote.estimators_[1].feature_std_),
    )


def test_members_that_know_other_columns_are_refused_where_columns_are_told_apart(table):
    X, y = table[0][NUMBERS], table[1]
    codes = (y == "yes").astype(int)
    other = make_pipeline(StandardScaler(), quick(max_epochs=1)).fit(X[NUMBERS[::-1]].to_numpy(), codes)
    vote = VotingClassifier(
        [("a", make_pipeline(StandardScaler(), quick(max_epochs=1))), ("b", quick(max_epochs=1))]
    ).fit(X, codes)
    assert certificates(vote, X, fixed_columns=["age"], scale="std").shape == (120,)
    vote.estimators_[1] = other
    message = "^members must be fitted on the same columns, got"
    for settings in ({"fixed_columns": [0]}, {"scale": SPREAD}, {"categorical_edits": 1}):
        with pytest.raises(TypeError, match=message):
            certificates(vote, X, **settings)
    with pytest.raises(TypeError, match=message):
        certified_ranges(vote, X)


def test_a_column_that_one_member_reads_as_a_number_is_no_category_of_a_vote():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=60), rng.integers(0, 3, 60)])
    y = (X.sum(axis=1) > 1).astype(int)
    encoded = make_column_transformer((StandardScaler(), [0]), (OneHotEncoder(), [1]))
    parted = make_pipeline(encoded, quick(max_epochs=1))
    vote = VotingClassifier([("a", parted), ("b", quick(max_epochs=1))], voting="soft").fit(X, y)
    with pytest.raises(ValueError, match=r"column 1 must be read by encoders only"):
        certificates(vote, X, categorical_edits=1)
    with pytest.raises(TypeError, match=r"^VotingClassifier has 2 networks"):
        categorical_edit_lengths(vote)


def test_lengths_of_a_column_that_is_read_twice_and_mixed_add_up():
    """(z, -z) and (z, z) of codes, added by a projection on one axis."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=60).astype(object), rng.choice(["a", "b", "c"], 60)])
    y = (X[:, 0] > 0).astype(int)
    again, turned = OrdinalEncoder(), OrdinalEncoder(categories=[["c", "b", "a"]])
    twice = [
        make_column_transformer((StandardScaler(), [0]), (OrdinalEncoder(), [1]), (other, [1]))
        for other in (again, turned)
    ]
    twice.append(
        make_union(
            make_column_transformer((OrdinalEncoder(), [1])),
            make_column_transformer((turned, [1]), (StandardScaler(), [0])),
        )
    )
    behind = ([PCA(2)], [PCA(2), MinMaxScaler(clip=True)], [MinMaxScaler(clip=True), PCA(2)])
    for prepare, later in itertools.product(twice, behind):
        pipeline = make_pipeline(clone(prepare), *map(clone, later), quick(max_epochs=1)).fit(X, y)
        rows = np.array([[0.0, "a"], [0.0, "b"], [0.0, "c"]], dtype=object)
        reached = pipeline[:-1].transform(rows)
        longest = np.linalg.norm(reached[:, None] - reached, axis=2).max()
        length = categorical_edit_lengths(pipeline)[1]
        assert length >= longest * (1 - 1e-12)
        if len(later) == 1 and prepare is not twice[2]:
            assert length == pytest.approx(longest, rel=1e-12)


def test_positions_that_are_labels_of_other_columns_are_refused():
    """Integers in another order: is 0 the first column, or that which is called 0?"""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(60, 3)) * [1.0, 10.0, 100.0], columns=[2, 0, 1])
    pipeline = make_pipeline(StandardScaler(), quick()).fit(X, X[2] > 0)
    rows, message = X.iloc[:5], "positions at fit, but {} is the label of the column at position"
    with pytest.raises(ValueError, match=message.format(2)):
        certificates(pipeline, rows, scale=X.std())
    with pytest.raises(ValueError, match=message.format(0)):
        certificates(pipeline, rows, fixed_columns=[0])
    with pytest.raises(ValueError, match=message.format(r"(np\.int64\()?0\)?")):
        certificates(pipeline, rows, fixed_columns=np.array([0]))
    with pytest.raises(ValueError, match=message.format(0)):
        certified_ranges(pipeline, rows, fixed_columns=[0])
    in_deviations = certificates(pipeline, rows, scale=X.std(ddof=0).to_numpy())
    np.testing.assert_allclose(certificates(pipeline, rows, scale="std"), in_deviations)
    ordered = X.set_axis([0, 1, 2], axis=1)
    again = certificates(pipeline, ordered.iloc[:5], scale=ordered.std(ddof=0))
    np.testing.assert_array_equal(again, in_deviations)


def test_columns_may_come_from_an_iterator_that_is_read_several_times():
    """Once for the labels of a table whose columns had no names, once for what is held."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    pipeline = make_pipeline(StandardScaler(), quick(max_epochs=5)).fit(X, X[:, 0] > 0)
    held = certificates(pipeline, X, fixed_columns=[1, 2])
    assert (held > certificates(pipeline, X)).all()
    found = certificates(pipeline, pd.DataFrame(X), fixed_columns=iter([1, 2]))
    np.testing.assert_allclose(found, held)


def test_columns_of_one_name_are_refused_of_pipelines_that_know_no_names():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    pipeline = make_pipeline(StandardScaler(), quick()).fit(X, X[:, 0] > 0)
    with pytest.raises(ValueError, match="must have different names"):
        certificates(pipeline, pd.DataFrame(X, columns=["a", "b", "b"]))
