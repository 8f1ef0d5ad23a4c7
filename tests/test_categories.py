"""Certificates that hold under edits of categories, against all edits written out one by one."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
    TargetEncoder,
)

from sklip import (
    CertifiedAccuracyDisplay,
    LipschitzClassifier,
    average_certified_radius_scorer,
    categorical_edit_lengths,
    certificates,
    certified_accuracy_scorer,
    predict_with_radii,
)
from sklip.preprocessing import edits
from sklip.preprocessing.tables import table_of

NUMBERS = ["age", "visits"]
CATEGORIES = ["city", "job", "level", "team"]


def quick(**parameters):
    # Of several batches, for which columns have no weights: edits are to matter.
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 100, "eps": 1.0, "batch_size": 30}
    return LipschitzClassifier(**{"random_state": 0, **defaults, **parameters})


def one_hot(**parameters):
    return OneHotEncoder(sparse_output=False, **parameters)


def parted(*parts, **parameters):
    return ColumnTransformer([(str(i), *part) for i, part in enumerate(parts)], **parameters)


@pytest.fixture(scope="module")
def table():
    """Words, pandas' categories, integers and missing words, of which some are rare; 80 rows."""
    rng = np.random.default_rng(0)
    n = 80
    frame = pd.DataFrame(
        {
            "city": rng.choice(["Lyon", "Oslo", "Rome"], n),
            "age": rng.choice([20.0, 60.0], n) + rng.normal(0, 5, n),
            "job": pd.Categorical(rng.choice(["cook", "judge", "nurse", "tailor"], n)),
            "visits": rng.integers(0, 30, n),
            "level": rng.integers(1, 4, n),
            "team": pd.Series(rng.choice(["a", "b", "c", "d"], n, p=[0.5, 0.4, 0.06, 0.04])),
        }
    )
    frame.loc[::9, "team"] = np.nan
    # Numbers say most of it, or no row would keep its label under edits.
    score = frame["age"] + frame["visits"] + 9 * (frame["city"] == "Oslo")
    return frame, np.where(score > 58, "yes", "no")


# By name, by position, by a mask, by a slice, by a function; with what each does to categories.
PREPARE = {
    "by name": lambda: parted(
        (StandardScaler(), NUMBERS), (one_hot(handle_unknown="ignore"), CATEGORIES)
    ),
    "by position": lambda: parted((StandardScaler(), [1, 3]), (one_hot(), [0, 2, 4, 5])),
    "by mask": lambda: parted(
        (StandardScaler(), [False, True, False, True, False, False]),
        (OrdinalEncoder(encoded_missing_value=-1), [True, False, True, False, True, True]),
    ),
    "by slice": lambda: parted(
        (one_hot(drop="first"), slice(0, 1)),
        (MinMaxScaler(), slice(1, 2)),
        (one_hot(drop="if_binary"), slice(2, 3)),
        ("passthrough", slice(3, 4)),
        (OrdinalEncoder(encoded_missing_value=9), slice(4, 6)),
    ),
    "by function": lambda: parted(
        (StandardScaler(), lambda X: NUMBERS),
        (one_hot(), make_column_selector(dtype_exclude=np.number)),
        (one_hot(), ["level"]),
    ),
    "remainder": lambda: parted((one_hot(), CATEGORIES), remainder=StandardScaler()),
    "imputed": lambda: parted(
        (StandardScaler(), NUMBERS),
        (make_pipeline(SimpleImputer(strategy="most_frequent"), one_hot()), CATEGORIES),
    ),
    "told what was missing": lambda: parted(
        (StandardScaler(), NUMBERS),
        (
            make_pipeline(
                SimpleImputer(strategy="constant", fill_value="none", add_indicator=True), one_hot()
            ),
            ["city", "team"],
        ),
        (one_hot(), ["job", "level"]),
    ),
    "infrequent": lambda: parted(
        (StandardScaler(), NUMBERS),
        (one_hot(min_frequency=12, handle_unknown="infrequent_if_exist"), ["city", "team"]),
        (one_hot(max_categories=2), ["job", "level"]),
    ),
    "infrequent in order": lambda: parted(
        (StandardScaler(), NUMBERS),
        (OrdinalEncoder(min_frequency=20, encoded_missing_value=-1), ["city", "team"]),
        (OrdinalEncoder(max_categories=2), ["job", "level"]),
    ),
    "targets": lambda: parted((StandardScaler(), NUMBERS), (TargetEncoder(), CATEGORIES)),
    "twice": lambda: parted(
        (StandardScaler(), NUMBERS), (one_hot(), CATEGORIES), (OrdinalEncoder(), ["city", "level"])
    ),
    "nested": lambda: parted(
        (StandardScaler(), NUMBERS),
        (
            parted(
                (one_hot(), [0]),
                (make_union(one_hot(), OrdinalEncoder(encoded_missing_value=7)), [1, 2, 3]),
            ),
            CATEGORIES,
        ),
    ),
    "side by side": lambda: make_union(
        parted((StandardScaler(), NUMBERS)), parted((one_hot(), CATEGORIES))
    ),
    "weighted": lambda: parted(
        (StandardScaler(), NUMBERS), (one_hot(), CATEGORIES), transformer_weights={"1": 0.5}
    ),
}
LATER = {"scaled": (StandardScaler(),), "rotated": (PCA(6),)}


def fitted(table, prepare, *later, **parameters):
    X, y = table
    return Pipeline(
        [
            ("prepare", prepare),
            *((str(step), step) for step in later),
            ("classify", quick(**parameters)),
        ]
    ).fit(X, y)


@pytest.fixture(scope="module")
def pipelines(table):
    @functools.cache
    def made(name):
        return fitted(table, PREPARE.get(name, PREPARE["by name"])(), *LATER.get(name, ()))

    return made


def edits_of(row, columns, n_edits, values):
    """All rows that differ from one in at most n_edits of some columns, it itself first."""
    yield row
    for number in range(1, n_edits + 1):
        for names in itertools.combinations(columns, number):
            for others in itertools.product(*(values[name] for name in names)):
                yield {**row, **dict(zip(names, others, strict=True))}


def frame_of(rows, X):
    return pd.DataFrame(rows).astype({name: X[name].dtype for name in ["age", "visits", "level"]})


def known_values(X, columns):
    return {name: [*X[name].astype(object).drop_duplicates()] for name in columns}


def least_radii(estimator, X, rows, columns, n_edits, more=()):
    """The least radius over all edits, each evaluated with its categories held fixed."""
    values = known_values(X, columns)
    for name in more:
        values[name] += more[name]
    edits = [[*edits_of(X.iloc[row].to_dict(), columns, n_edits, values)] for row in rows]
    edited = frame_of(itertools.chain(*edits), X)
    labels, reached = predict_with_radii(estimator, edited, fixed_columns=CATEGORIES)
    ends = np.cumsum([len(part) for part in edits])[:-1]
    parts = zip(np.split(labels, ends), np.split(reached, ends), strict=True)
    return np.array([radii.min() if (found == found[0]).all() else 0.0 for found, radii in parts])


@pytest.mark.slow
@pytest.mark.parametrize("n_edits", [1, 2])
@pytest.mark.parametrize("name", [*PREPARE, *LATER])
def test_radii_are_the_least_over_all_edits(pipelines, table, name, n_edits):
    X, pipeline = table[0], pipelines(name)
    labels, radii = predict_with_radii(pipeline, X, categorical_edits=n_edits)
    # Some of both kinds, where there are any.
    rows = [*np.flatnonzero(radii == 0)[:8:n_edits], *np.flatnonzero(radii)[: 16 // n_edits]]
    # Somebody may write what the imputer does.
    more = {"team": ["none"]} if name == "told what was missing" else {}
    expected = least_radii(pipeline, X, rows, CATEGORIES, n_edits, more)
    # Sums in float64 have another order in another batch.
    np.testing.assert_allclose(radii[rows], expected, rtol=1e-9)
    assert radii[rows].max() > 0 or n_edits == 2
    np.testing.assert_array_equal(labels, pipeline.predict(X))
    np.testing.assert_array_equal(radii, certificates(pipeline, X, categorical_edits=n_edits))


def test_more_edits_leave_smaller_radii_and_no_edit_those_with_categories_held(pipelines, table):
    X, pipeline = table[0], pipelines("infrequent")
    radii = [certificates(pipeline, X, categorical_edits=number) for number in (0, 1, 2, 4, 99)]
    np.testing.assert_array_equal(radii[0], certificates(pipeline, X, fixed_columns=CATEGORIES))
    for fewer, more in itertools.pairwise(radii):
        assert (more <= fewer).all()
    assert (radii[2] < radii[1]).any()
    assert (radii[1] < radii[0]).any()
    np.testing.assert_array_equal(radii[3], radii[4])


@pytest.mark.parametrize("n_edits", [1, 2])
def test_columns_that_may_be_edited_can_be_chosen(pipelines, table, n_edits):
    X, pipeline = table[0], pipelines("weighted")
    radii = certificates(
        pipeline, X, categorical_edits=n_edits, categorical_columns=["team", 0, "city"]
    )
    rows = np.flatnonzero(radii)[:10]
    np.testing.assert_allclose(
        radii[rows], least_radii(pipeline, X, rows, ["city", "team"], n_edits), rtol=1e-9
    )
    held = certificates(pipeline, X, categorical_edits=n_edits, fixed_columns=["job", 4])
    np.testing.assert_array_equal(held, radii)
    assert len(rows) == 10
    assert (radii > certificates(pipeline, X, categorical_edits=n_edits)).any()
    none = certificates(pipeline, X, categorical_edits=n_edits, fixed_columns=CATEGORIES)
    np.testing.assert_array_equal(none, certificates(pipeline, X, categorical_edits=0))


@pytest.mark.slow
def test_edits_are_evaluated_in_pieces(pipelines, table, monkeypatch):
    X, pipeline = table[0], pipelines("by name")
    expected = {number: certificates(pipeline, X, categorical_edits=number) for number in (1, 2)}
    longest, transform = [], StandardScaler.transform
    for n_values, n_rows in ((1, 1), (15 * 7, 5), (15 * 200, 80)):
        monkeypatch.setattr(edits, "_VALUES_AT_ONCE", n_values)
        rows = np.argsort(-expected[2])[:n_rows]
        for number, radii in expected.items():
            few = certificates(pipeline, X.iloc[rows], categorical_edits=number)
            np.testing.assert_allclose(few, radii[rows], rtol=1e-9)
    monkeypatch.setattr(
        StandardScaler, "transform", lambda self, X: (longest.append(len(X)), transform(self, X))[1]
    )
    monkeypatch.setattr(edits, "_VALUES_AT_ONCE", 14 * 90)
    certificates(pipeline, X, categorical_edits=2)
    assert len(longest) > 2
    assert 80 <= max(longest) <= 90


def test_values_that_an_encoder_does_not_tell_apart_are_evaluated_once(table, monkeypatch):
    X, y = table
    prepare = parted((StandardScaler(), NUMBERS), (one_hot(max_categories=2), ["job"]))
    pipeline = make_pipeline(prepare, quick(eps=0.0, tau=1.0)).fit(X, y)
    evaluated, transform = [], StandardScaler.transform
    monkeypatch.setattr(
        StandardScaler, "transform", lambda self, X: (evaluated.append(len(X)), transform(self, X))[1]
    )
    certificates(pipeline, X, categorical_edits=1)
    # Four jobs, of which three are one.
    assert evaluated == [80, 80]


# -- attacks -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("n_edits", [1, 2])
@pytest.mark.parametrize("hidden", [(), (8,)], ids=["linear", "network"])
def test_no_edit_with_a_move_inside_the_radius_flips_a_label(table, hidden, n_edits):
    X, y = table
    X = X.astype({"visits": float})
    pipeline = fitted((X, y), PREPARE["weighted"](), hidden_layer_sizes=hidden)
    labels, radii = predict_with_radii(pipeline, X, categorical_edits=n_edits)
    rows, values, rng = (
        np.flatnonzero(radii)[:12],
        known_values(X, CATEGORIES),
        np.random.default_rng(0),
    )
    flipped = dict.fromkeys(rows, False)
    assert len(rows) > 5
    for row in rows:
        edited = frame_of(edits_of(X.iloc[row].to_dict(), CATEGORIES, n_edits, values), X)
        scores = pipeline.decision_function(edited)
        steps = [1e-4 * X[name].std() for name in NUMBERS]
        gradients = np.stack(
            [
                (pipeline.decision_function(edited.assign(**{name: edited[name] + step})) - scores)
                / step
                for name, step in zip(NUMBERS, steps, strict=True)
            ],
            axis=1,
        )
        towards = -np.sign(scores)[:, None] * gradients
        for directions in (towards, rng.normal(size=towards.shape)):
            directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
            for share in (0.5, 1 - 1e-9):
                moved = edited.copy()
                moved[NUMBERS] += share * radii[row] * directions
                assert (pipeline.predict(moved) == labels[row]).all()
            moved = edited.copy()
            moved[NUMBERS] += (1 + 1e-4) * radii[row] * directions
            flipped[row] |= (pipeline.predict(moved) != labels[row]).any()
    if hidden == ():
        # The steps scale columns apart and the classifier is linear: nothing is given away.
        assert all(flipped.values())


# -- containers and types ------------------------------------------------------------------------


@pytest.mark.parametrize("n_edits", [1, 2])
@pytest.mark.parametrize(
    "convert",
    [
        lambda X: X[["team", "level", "visits", "job", "age", "city"]].assign(more=1e30),
        lambda X: X.astype({"city": "category", "job": str, "level": float, "team": object}),
        lambda X: X.astype({"level": "Int64", "visits": np.int8}).set_index("age", drop=False),
        # As of a table of its own, in which not all of them occur.
        lambda X: X.assign(job=X["job"].cat.remove_unused_categories()),
    ],
    ids=["other order", "other types", "more types", "fewer categories"],
)
def test_tables_of_any_types_have_the_same_radii(pipelines, table, convert, n_edits):
    pipeline, X = pipelines("by name"), table[0]
    X = X[X["job"].isin(["cook", "judge"])]
    expected = certificates(pipeline, X, categorical_edits=n_edits)
    assert expected.max() > 0
    before = convert(X)
    converted = before.copy()
    radii = certificates(pipeline, converted, categorical_edits=n_edits)
    np.testing.assert_allclose(radii, expected, rtol=1e-9)
    pd.testing.assert_frame_equal(converted, before)


@pytest.mark.parametrize("container", [np.asarray, np.ndarray.tolist])
def test_arrays_and_lists_of_objects_have_the_radii_of_tables(table, container):
    X, y = table
    objects = X.to_numpy(dtype=object)
    pipeline = fitted((objects, y), PREPARE["by position"]())
    radii = certificates(pipeline, container(objects), categorical_edits=1)
    frame = fitted((X, y), PREPARE["by position"]())
    np.testing.assert_allclose(radii, certificates(frame, X, categorical_edits=1), rtol=1e-9)
    assert radii.max() > 0


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int8"])
def test_arrays_of_codes_have_radii(table, dtype):
    """Integers are widened where the encoder knows what they can't hold."""
    X, y = table
    codes = X.apply(lambda column: column if column.name in NUMBERS else pd.factorize(column)[0])
    codes = codes.to_numpy(dtype=np.float64)
    codes[codes == -1] = np.nan
    pipeline = fitted((codes, y), PREPARE["by position"]())
    whole = codes[~np.isnan(codes).any(axis=1)]
    whole = whole if dtype.startswith("float") else np.rint(whole)
    converted = whole.astype(dtype)
    radii = certificates(pipeline, converted, categorical_edits=2)
    expected = certificates(pipeline, whole, categorical_edits=2)
    if dtype == "float32":
        # Whose rounding is charged.
        assert (radii <= expected * (1 + 1e-6)).all()
        np.testing.assert_allclose(radii, expected, rtol=1e-3, atol=1e-3)
    else:
        np.testing.assert_allclose(radii, expected, rtol=1e-9)
    assert expected.max() > 0
    np.testing.assert_array_equal(converted, whole.astype(dtype))


def test_words_of_a_fixed_length_are_widened(table):
    X, y = table
    words = X.astype({"team": object}).fillna("none").round(1).astype(str).to_numpy(dtype="U6")
    pipeline = fitted((words, y), PREPARE["by position"]())
    rows = words[X["job"] == "cook"]
    short = rows.astype("U4")
    assert (short == rows).all()
    radii = certificates(pipeline, short, categorical_edits=1)
    np.testing.assert_array_equal(radii, certificates(pipeline, rows, categorical_edits=1))
    assert radii.max() > 0


def test_an_array_that_can_not_hold_what_the_encoder_knows_is_refused():
    rng = np.random.default_rng(0)
    X = np.stack([rng.normal(size=60), rng.choice([0.5, 0.1], 60)], axis=1)
    pipeline = fitted((X, X[:, 0] > 0), parted((StandardScaler(), [0]), (one_hot(), [1])))
    narrow = X[X[:, 1] == 0.5].astype(np.float32)
    with pytest.raises(TypeError, match=r"column 1 knows, \[0.1, 0.5\], got float32; convert X"):
        certificates(pipeline, narrow, categorical_edits=1)
    assert certificates(pipeline, narrow.astype(float), categorical_edits=1).shape == (len(narrow),)


@pytest.mark.parametrize("dtype", ["str", "object", "category", "int16", "float32", "Int64", "boolean"])
def test_a_column_keeps_its_type(dtype):
    values = ["a", "b"] if dtype in ("str", "object", "category") else [0, 1]
    frame = pd.DataFrame({"x": pd.Series(values, dtype=dtype), "y": [0.5, 1.5]})
    frame_table = table_of(frame, None)
    frame_table.allow(0, values[::-1])
    edited = frame_table.edited(np.array([1, 1, 0]), {0: np.array([1, 0, 1])})
    assert edited.dtypes.tolist() == frame.dtypes.tolist()
    assert edited["x"].tolist() == [values[0], values[1], values[0]]
    assert edited["y"].tolist() == [1.5, 1.5, 0.5]


# -- values --------------------------------------------------------------------------------------


def test_what_several_encoders_know_is_known_unless_one_refuses_it():
    rng = np.random.default_rng(0)
    X = np.stack([rng.normal(size=90), rng.integers(0, 3, 90)], axis=1)
    y = X[:, 0] + X[:, 1] > 1
    some = {"categories": [[0, 1]], "handle_unknown": "ignore"}
    both = fitted((X, y), parted((StandardScaler(), [0]), (one_hot(), [1]), (one_hot(**some), [1])))
    few = fitted(
        (X[X[:, 1] < 2], y[X[:, 1] < 2]),
        parted((StandardScaler(), [0]), (one_hot(), [1]), (one_hot(categories=[[0, 1, 2]]), [1])),
    )
    for pipeline, codes in ((both, [0, 1, 2]), (few, [0, 1])):
        rows = X[np.isin(X[:, 1], codes)]
        tried = []
        for code in codes:
            edited = rows.copy()
            edited[:, 1] = code
            tried.append(predict_with_radii(pipeline, edited, fixed_columns=[1]))
        same = (np.array([labels for labels, _ in tried]) == pipeline.predict(rows)).all(axis=0)
        expected = np.where(same, np.min([radii for _, radii in tried], axis=0), 0.0)
        radii = certificates(pipeline, rows, categorical_edits=1)
        np.testing.assert_allclose(radii, expected, rtol=1e-9)
        assert radii.max() > 0


@pytest.mark.parametrize("handle_unknown", ["error", "ignore"])
def test_unknown_values_are_named_with_their_column(table, handle_unknown):
    X, y = table
    prepare = parted(
        (StandardScaler(), NUMBERS), (one_hot(handle_unknown=handle_unknown), ["city", "job"])
    )
    pipeline = fitted((X, y), prepare)
    strange = X.assign(city=X["city"].where(X.index != 7, "Paris"))
    with pytest.raises(ValueError, match=r"'city' must hold.*\['Lyon', 'Oslo', 'Rome'\].*got 'Paris'"):
        certificates(pipeline, strange, categorical_edits=1)
    lacking = X.assign(city=X["city"].where(X.index != 7, np.nan))
    with pytest.raises(ValueError, match=r"'city' must hold.*got nan; give the encoder all categories"):
        certificates(pipeline, lacking, categorical_edits=1)
    if handle_unknown == "ignore":
        assert certificates(pipeline, strange, categorical_edits=1, fixed_columns=["city"]).max() > 0


def test_what_is_marked_missing_by_a_word_is_a_value(table):
    X, y = table
    X = X.assign(team=X["team"].fillna("?"))
    imputer = SimpleImputer(missing_values="?", strategy="most_frequent")
    prepare = parted((StandardScaler(), NUMBERS), (make_pipeline(imputer, one_hot()), ["team"]))
    pipeline = fitted((X, y), prepare)
    radii = certificates(pipeline, X, categorical_edits=1)
    rows = np.flatnonzero(radii)[:10]
    np.testing.assert_allclose(radii[rows], least_radii(pipeline, X, rows, ["team"], 1), rtol=1e-9)
    assert len(rows) == 10


def test_a_missing_number_is_one_value_however_often_it_is_made():
    """NaN does not equal itself: as 2 it has the same place among the categories."""
    rng = np.random.default_rng(0)
    X = np.stack([rng.normal(size=60), rng.choice([0.0, 1.0, np.nan], 60)], axis=1)
    y = X[:, 0] + (X[:, 1] == 1) > 0.5
    prepare, radii = parted((StandardScaler(), [0]), (one_hot(), [1])), []
    for rows in (X, np.nan_to_num(X, nan=2.0)):
        pipeline = fitted((rows, y), clone(prepare), max_epochs=20)
        radii.append(certificates(pipeline, rows, categorical_edits=1))
    np.testing.assert_allclose(radii[0], radii[1], rtol=1e-9)
    assert radii[0].max() > 0


# -- other estimators, scorers, displays ---------------------------------------------------------


@pytest.fixture(scope="module")
def folded(table):
    """Without what is so rare that a fold may lack it."""
    X, y = table
    return X.assign(team=X["team"].replace("d", "c")), y


def test_searches_and_frozen_estimators_take_edits(folded):
    X, y = folded
    pipeline = Pipeline([("prepare", PREPARE["weighted"]()), ("classify", quick())])
    settings = {"categorical_edits": 1, "categorical_columns": ["city", "team"]}
    scoring = {
        "certified": certified_accuracy_scorer(eps=0.5, **settings),
        "radius": average_certified_radius_scorer(**settings),
    }
    search = GridSearchCV(
        pipeline,
        {"classify__tau": [3.0]},
        scoring=scoring,
        refit="certified",
        cv=2,
        error_score="raise",
    ).fit(X, y)
    best = search.best_estimator_
    labels, radii = predict_with_radii(best, X, **settings)
    assert radii.max() > 0
    for other in (search, FrozenEstimator(best)):
        np.testing.assert_array_equal(certificates(other, X, **settings), radii)
        assert categorical_edit_lengths(other) == categorical_edit_lengths(best)
    right = labels == y
    assert scoring["certified"](search, X, y) == (right & (radii > 0.5)).mean()
    assert scoring["radius"](search, X, y) == pytest.approx((right * radii).mean())
    display = CertifiedAccuracyDisplay.from_estimator(best, X, y, **settings)
    assert display.certified_accuracy[0] == (right & (radii > 0)).mean()


def test_a_temperature_is_charged_under_edits_as_well(folded):
    X, y = folded
    pipeline = Pipeline([("prepare", PREPARE["weighted"]()), ("classify", quick())])
    estimator = CalibratedClassifierCV(pipeline, method="temperature", ensemble=False, cv=2).fit(X, y)
    labels, radii = predict_with_radii(estimator, X, categorical_edits=1)
    np.testing.assert_array_equal(labels, estimator.predict(X))
    rows = np.flatnonzero(radii)[:6]
    np.testing.assert_allclose(radii[rows], least_radii(estimator, X, rows, CATEGORIES, 1), rtol=1e-9)
    assert len(rows) == 6


# -- lengths of edits ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PREPARE, *LATER])
def test_lengths_are_the_largest_distance_that_an_edit_makes(pipelines, table, name):
    X, pipeline = table[0], pipelines(name)
    lengths, values = categorical_edit_lengths(pipeline), known_values(X, CATEGORIES)
    if name == "told what was missing":
        values["team"].append("none")
    assert list(lengths) == CATEGORIES
    for column, length in lengths.items():
        rows = frame_of(edits_of(X.iloc[20].to_dict(), [column], 1, values), X)
        seen = pipeline[:-1].transform(rows)
        longest = max(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2))
        assert longest <= length * (1 + 1e-12)
        if name != "rotated":
            assert length <= longest * (1 + 1e-9)
    assert categorical_edit_lengths(pipeline[:-1]) == lengths


def test_rows_with_larger_radii_than_an_edit_is_long_keep_their_labels(table):
    """In the network's units, with weights that make edits short."""
    X, y = table
    prepare = parted(
        (StandardScaler(), NUMBERS), (one_hot(), CATEGORIES), transformer_weights={"1": 0.25}
    )
    pipeline = fitted((X, y), prepare)
    lengths = categorical_edit_lengths(pipeline)
    np.testing.assert_allclose(list(lengths.values()), 0.25 * np.sqrt(2))
    inner = pipeline[-1].certificates_(pipeline[:-1].transform(X))
    certain = inner > max(lengths.values())
    assert certain.any()
    assert (certificates(pipeline, X, categorical_edits=1)[certain] > 0).all()


def test_lengths_of_an_array_go_by_position_and_leave_mixed_columns_out(table):
    codes = np.stack([np.arange(12.0), np.arange(12) % 3, np.arange(12) % 4], axis=1)
    union = FeatureUnion(
        [("a", parted((one_hot(), [1, 2]))), ("b", parted((StandardScaler(), [0, 2])))],
        transformer_weights={"a": 3},
    ).fit(codes)
    lengths = categorical_edit_lengths(union)
    assert list(lengths) == [1]
    assert lengths[1] == pytest.approx(3 * np.sqrt(2))
    assert categorical_edit_lengths(StandardScaler().fit(codes)) == {}
    alone = LipschitzClassifier(max_epochs=1, random_state=0).fit(codes, codes[:, 0] > 0)
    assert categorical_edit_lengths(alone) == {}


# -- what can't be certified ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"categorical_edits": -1},
            "categorical_edits must be None or an integer of at least 0, got -1",
        ),
        ({"categorical_edits": True}, "categorical_edits must be None or an integer.*got True"),
        ({"categorical_edits": 1.0}, "categorical_edits must be None or an integer.*got 1.0"),
        ({"categorical_columns": ["city"]}, "categorical_columns needs categorical_edits"),
        ({"categorical_edits": 1, "categorical_columns": "city"}, "must be an iterable.*got 'city'"),
        (
            {"categorical_edits": 1, "categorical_columns": ["town"]},
            "categorical_columns must be names of columns seen at fit.*got 'town'",
        ),
        (
            {"categorical_edits": 1, "categorical_columns": [6]},
            "categorical_columns must be positions.*below 6, got 6",
        ),
        (
            {"categorical_edits": 1, "categorical_columns": ["age"]},
            "categorical_columns must be.*encoder reads, got 'age', which is read by StandardScaler",
        ),
        (
            {"categorical_edits": 0, "categorical_columns": [3]},
            "categorical_columns must be.*encoder reads, got 'visits'",
        ),
        (
            {"categorical_edits": 1, "categorical_columns": ["job"], "fixed_columns": ["job"]},
            "'job' is named in categorical_columns and in fixed_columns",
        ),
        ({"categorical_edits": 1, "fixed_columns": ["town"]}, "fixed_columns must be names"),
        ({"categorical_edits": 1, "fixed_columns": NUMBERS}, "needs a column of numbers"),
    ],
)
def test_settings_that_make_no_sense_are_refused(pipelines, table, settings, message):
    with pytest.raises(ValueError, match=message):
        certificates(pipelines("by name"), table[0], **settings)


def test_too_many_evaluations_are_refused(pipelines, table, monkeypatch):
    X, pipeline = table[0], pipelines("by name")
    # Of 3, 4, 3 and 5 values: 2 + 3 + 2 + 4 single edits, 6 + 4 + 8 + 6 + 12 + 8 double ones.
    for number, count in ((1, 11), (2, 55)):
        monkeypatch.setattr(edits, "_MOST_EVALUATIONS", 80 * (1 + count))
        certificates(pipeline, X, categorical_edits=number)
        monkeypatch.setattr(edits, "_MOST_EVALUATIONS", 80 * (1 + count) - 1)
        with pytest.raises(
            ValueError,
            match=f"at most {80 * (1 + count) - 1} evaluations, got 80 rows with {count} edits",
        ):
            certificates(pipeline, X, categorical_edits=number)


@pytest.mark.parametrize(
    ("also", "reader"),
    [
        (("passthrough", ["level"]), "OneHotEncoder and the network read it"),
        ((StandardScaler(), ["level"]), "OneHotEncoder and StandardScaler read it"),
        ((MissingIndicator(features="all"), ["level"]), "OneHotEncoder and MissingIndicator read it"),
    ],
    ids=["network", "scaler", "indicator"],
)
def test_a_column_that_is_a_category_and_a_number_is_refused_by_name(table, also, reader):
    X, y = table
    prepare = parted((StandardScaler(), NUMBERS), (one_hot(), ["city", "level"]), also)
    pipeline = fitted((X, y), prepare)
    with pytest.raises(ValueError, match=f"'level' must be read by encoders only.*{reader}"):
        certificates(pipeline, X, categorical_edits=1)
    assert certificates(pipeline, X, categorical_edits=1, fixed_columns=["level"]).shape == (80,)


def test_pipelines_without_encoders_are_refused(few_digits):
    X, y = few_digits
    clf = quick(max_epochs=1).fit(X, y)
    scaled = make_pipeline(StandardScaler(), quick(max_epochs=1)).fit(X, y)
    parts = make_pipeline(parted((StandardScaler(), [10, 11])), quick(max_epochs=1)).fit(X, y)
    # What an imputer has filled before is no column of the table.
    encoded = parted((StandardScaler(), [10, 11]), (one_hot(handle_unknown="ignore"), [12]))
    behind = make_pipeline(SimpleImputer(), encoded, quick(max_epochs=1)).fit(X, y)
    for estimator in (clf, scaled, parts, behind):
        with pytest.raises(
            ValueError, match=r"needs columns that an encoder .* reads, and there are none"
        ):
            certificates(estimator, X, categorical_edits=1)


def double(values):
    return 2 * np.asarray(values, dtype=float)


def test_other_parts_on_categories_are_refused_unless_held_fixed(table):
    X, y = table
    prepare = parted(
        (StandardScaler(), NUMBERS), (one_hot(), ["city"]), (FunctionTransformer(double), ["level"])
    )
    pipeline = fitted((X, y), prepare)
    with pytest.raises(TypeError, match="FunctionTransformer has no Lipschitz bound"):
        certificates(pipeline, X, categorical_edits=1)
    assert certificates(pipeline, X, categorical_edits=1, fixed_columns=["level"]).max() > 0
    with pytest.raises(TypeError, match=r"OneHotEncoder has no Lipschitz bound.*set categorical_edits"):
        certificates(pipeline, X, fixed_columns=["level"])


@pytest.mark.parametrize(
    ("convert", "error", "message"),
    [
        (lambda X: X.drop(columns="city"), ValueError, r"columns are missing: \['city'\]"),
        (lambda X: X.iloc[:0], ValueError, r"Found array with 0 sample\(s\)"),
        (lambda X: pd.concat([X, X[["city"]]], axis=1), ValueError, "different names"),
        (lambda X: X["age"], ValueError, "Expected 2D array"),
        (lambda X: X.to_numpy(dtype=object)[:, :4], ValueError, "6 columns seen at fit, got 4"),
        (lambda X: sparse.csr_array((80, 6)), TypeError, "needs dense X"),
    ],
)
def test_what_is_no_such_table_is_refused(pipelines, table, convert, error, message):
    with pytest.raises(error, match=message):
        certificates(pipelines("by name"), convert(table[0]), categorical_edits=1)


def test_an_encoder_without_outputs_moves_nothing():
    """Of two categories one is dropped, and the other is infrequent as well."""
    X = pd.DataFrame({"x": np.arange(20.0), "k": ["a"] * 10 + ["b"] * 10})
    encoder = OneHotEncoder(drop="first", min_frequency=15, sparse_output=False)
    steps = ColumnTransformer([("x", StandardScaler(), ["x"]), ("k", encoder, ["k"])])
    assert steps.fit_transform(X).shape == (20, 1)
    assert categorical_edit_lengths(steps) == {"k": 0.0}
