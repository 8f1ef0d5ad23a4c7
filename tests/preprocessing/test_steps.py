"""Constants of steps side by side and one after another, against the matrices of affine maps."""

import math

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import VarianceThreshold
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion, make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    StandardScaler,
)

from sklip.certified import Arithmetic
from sklip.certified.arithmetic import FLOOR
from sklip.certified.gains import Gains
from sklip.preprocessing.steps import described_step, transformer_bound

# Columns of different spread: scalers multiply them by factors from 0.1 to 10.
TABLE = np.random.default_rng(0).normal(size=(40, 6)) * [0.1, 1.0, 10.0, 0.2, 2.0, 5.0] + 3.0


def matrix_of(transformer):
    """Matrix of an affine transformer: differences of its values at the mean of the table."""
    middle = TABLE.mean(axis=0)
    return (transformer.transform(middle + np.eye(6)) - transformer.transform(middle[None])).T


def columns(*parts, **parameters):
    return ColumnTransformer([(str(i), *part) for i, part in enumerate(parts)], **parameters)


STANDARD, MIN_MAX = StandardScaler(), MinMaxScaler((0, 7))
TIGHT = {
    "disjoint": columns((STANDARD, [0, 1]), (MIN_MAX, [3, 2])),
    "slice and mask": columns((STANDARD, slice(1, 3)), (MIN_MAX, np.arange(6) % 4 == 0)),
    "one column, from the end": columns((STANDARD, [-1]), remainder=MIN_MAX),
    "callable": columns((STANDARD, lambda X: [4, 5]), remainder="passthrough"),
    "dropped": columns((STANDARD, [2, 4]), ("drop", [0]), remainder="drop"),
    "overlapping": columns((STANDARD, [0, 1]), (MIN_MAX, [1, 2]), ("passthrough", [1])),
    "twice the same column": columns(("passthrough", [0, 0]), (STANDARD, [0])),
    "weighted": columns((STANDARD, [0]), (MIN_MAX, [1]), transformer_weights={"0": 1e-3, "1": -7.0}),
    "nested": columns(
        (columns((STANDARD, [0]), (MIN_MAX, [2])), [5, 3, 0]),
        (make_pipeline(STANDARD, MIN_MAX), [1, 2]),
    ),
    "union": make_union(STANDARD, MIN_MAX, "passthrough"),
    "weighted union": FeatureUnion(
        [("a", STANDARD), ("b", "drop"), ("c", MIN_MAX)], transformer_weights={"a": 0.5, "c": 3.0}
    ),
    "after a scaler": make_pipeline(MIN_MAX, columns((STANDARD, [0, 1]), (MIN_MAX, [2, 3]))),
    "before a scaler": make_pipeline(make_union(STANDARD, MIN_MAX), StandardScaler()),
    "selected": make_pipeline(STANDARD, VarianceThreshold(), columns(("passthrough", [1, 1, 2]))),
    "imputed": make_pipeline(SimpleImputer(add_indicator=True), STANDARD),
    "frozen": make_pipeline(FrozenEstimator(clone(STANDARD).fit(TABLE)), MIN_MAX),
    "rotated and put together again": make_pipeline(
        PCA(6), columns(("passthrough", [0, 1, 2]), (columns(("passthrough", [0])), [3]))
    ),
    "union with a rotation": make_union(STANDARD, PCA(3)),
    "scaled after a rotation": make_pipeline(PCA(4), STANDARD),
    "weighted rotation": FeatureUnion([("a", PCA(2))], transformer_weights={"a": 2.5}),
    "rotated parts": columns(
        (PCA(2, whiten=True), [0, 1, 2]), (make_pipeline(STANDARD, PCA(1)), [3, 4])
    ),
    "union after a rotation": make_pipeline(PCA(3), make_union(STANDARD, "passthrough")),
}


# Clipped behind a rotation: of a map that is not linear, only the length of what it makes is known.
CLIPPED = MinMaxScaler((0, 7), clip=True)
LOOSE = {
    "union of a clipped rotation": make_union(STANDARD, make_pipeline(PCA(3), CLIPPED)),
    "rotated after a clipped rotation": make_pipeline(PCA(4), CLIPPED, PCA(2)),
    "columns after a clipped rotation": make_pipeline(
        PCA(4), CLIPPED, columns((STANDARD, [0, 1]), ("passthrough", [1, 3]))
    ),
    "rotated after a clipped union": make_pipeline(make_union(STANDARD, CLIPPED), PCA(3)),
}


@pytest.mark.parametrize("name", [*TIGHT, *LOOSE])
def test_bound_is_never_below_the_norm_and_equal_where_all_steps_are_linear(name):
    transformer = clone({**TIGHT, **LOOSE}[name]).fit(TABLE)
    norm, bound = np.linalg.norm(matrix_of(transformer), 2), transformer_bound(transformer)
    # The matrix is made of differences of numbers up to 100.
    assert bound >= norm - 1e-12
    if name in TIGHT:
        assert bound <= norm * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("fixed", [[], [0], [1, 2], [0, 3, 5]], ids=str)
@pytest.mark.parametrize("name", [*TIGHT, *LOOSE])
def test_fixed_columns_leave_the_norm_of_the_others(name, fixed):
    transformer = clone({**TIGHT, **LOOSE}[name]).fit(TABLE)
    held = np.isin(np.arange(6), fixed)
    gains = Gains.at_start(6, held)
    steps = [step for _, step in transformer.steps] if hasattr(transformer, "steps") else [transformer]
    for step in steps:
        step = step.estimator if isinstance(step, FrozenEstimator) else step
        _, gains = described_step(step, gains)
    moving = matrix_of(transformer) * ~held
    norm, lengths = np.linalg.norm(moving, 2), np.linalg.norm(moving, axis=0)
    assert gains.bound >= norm - 1e-12
    assert (gains.of_columns >= lengths - 1e-12).all()
    assert (gains.of_columns[held] == 0).all()
    if name in TIGHT:
        assert gains.bound <= norm * (1 + 1e-9) + 1e-12
        # Column by column, too.
        np.testing.assert_allclose(gains.of_columns, lengths, rtol=1e-9, atol=1e-12)
        assert gains.moves is not None
        assert not moving[~gains.moves].any()


@pytest.mark.parametrize("fixed", [[], [0], [1, 2]], ids=str)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("rotation", [PCA(3), PCA(6), PCA(3, whiten=True), TruncatedSVD(2)], ids=str)
def test_scalers_on_either_side_are_folded_into_a_matrix(rotation, clip, fixed):
    held = np.isin(np.arange(6), fixed)
    gains, rows, matrix, product = Gains.at_start(6, held), TABLE, np.eye(6), 1.0
    for step in (MinMaxScaler((0, 7), clip=clip), clone(rotation), StandardScaler()):
        rows = step.fit_transform(rows)
        known, gains = described_step(step, gains)
        product *= known.constant
        if hasattr(step, "components_"):
            whitening = np.sqrt(step.explained_variance_) if getattr(step, "whiten", False) else 1.0
            matrix = (step.components_.T / whitening).T @ matrix
        else:
            factors = 1 / step.scale_ if isinstance(step, StandardScaler) else step.scale_
            matrix = matrix * factors[:, None]
        norm = np.linalg.norm(matrix[:, ~held], 2)
        assert norm * (1 - 1e-14) <= gains.bound <= norm * (1 + 1e-9)
        assert (gains.of_columns[held] == 0).all()
    assert gains.bound < 0.9 * product


def test_root_of_the_sum_of_squares_for_a_union_and_the_largest_for_disjoint_columns():
    """In numbers: scales of 1/2 and 1/3."""
    table = np.array([[0.0, 0.0], [2.0, 3.0]])
    union = make_union(MinMaxScaler(), MinMaxScaler((0, 2))).fit(table)
    assert transformer_bound(union) == pytest.approx(math.sqrt(0.25 + 1.0), rel=1e-12)
    apart = columns((MinMaxScaler(), [0]), (MinMaxScaler(), [1])).fit(table)
    assert transformer_bound(apart) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [*TIGHT, *LOOSE])
def test_the_charge_covers_the_rounding_of_steps_side_by_side(name, dtype):
    """float32 transformers on float32 rows against the same stored numbers in float64."""
    transformer = clone({**TIGHT, **LOOSE}[name]).fit(TABLE)
    rows = (TABLE * [1, 1e3, 1, 1e-3, 1, 1] + [0, 0, 1e3, 0, 0, -1e2]).astype(dtype)
    steps = [step for _, step in transformer.steps] if hasattr(transformer, "steps") else [transformer]
    for step in steps:
        step = step.estimator if isinstance(step, FrozenEstimator) else step
        known, _ = described_step(step, Gains.at_start(rows.shape[1]))
        exact = step.transform(rows.astype(np.float64))
        errors = np.linalg.norm(step.transform(rows) - exact, axis=1)
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        own = known.error_in(Arithmetic(np.dtype(dtype).name))
        charge = own.slope * lengths + own.offset
        assert (errors <= charge).all()
        # A charge of thousands of units would cover anything.
        assert (charge <= 1e4 * np.finfo(dtype).eps * (1 + known.constant) * (lengths + 100)).all()
        at_zero = step.transform(np.zeros((1, rows.shape[1])))
        assert np.linalg.norm(at_zero) <= known.at_zero * (1 + 1e-9) + 1e-12
        rows = exact.astype(dtype)


@pytest.mark.parametrize(
    "transformer",
    [
        columns((Normalizer(), [0, 1]), (STANDARD, [2])),
        make_union(STANDARD, Normalizer()),
        make_pipeline(STANDARD, make_column_transformer((make_pipeline(Normalizer()), [0, 1]))),
    ],
    ids=str,
)
def test_a_part_without_a_rule_is_refused_by_name(transformer):
    with pytest.raises(TypeError, match=r"^Normalizer has no Lipschitz bound.*fixed_columns"):
        transformer_bound(transformer.fit(TABLE))


class LouderColumns(ColumnTransformer):
    def transform(self, X):
        return 10 * super().transform(X)


class LouderUnion(FeatureUnion):
    def transform(self, X):
        return 10 * super().transform(X)


@pytest.mark.parametrize(
    "transformer", [LouderColumns([("a", STANDARD, [0])]), LouderUnion([("a", STANDARD)])]
)
def test_subclasses_are_refused_by_name(transformer):
    with pytest.raises(TypeError, match=rf"^{type(transformer).__name__} has no Lipschitz bound"):
        transformer_bound(transformer.fit(TABLE))


@pytest.mark.parametrize("transformer", [columns((STANDARD, [0])), make_union(STANDARD)])
def test_a_replaced_transform_is_refused(transformer):
    transformer = clone(transformer).fit(TABLE)
    transformer.transform = lambda X: 1e6 * X
    with pytest.raises(TypeError, match="has a replaced transform"):
        transformer_bound(transformer)


@pytest.mark.parametrize("transformer", [columns((STANDARD, [0])), make_union(STANDARD)])
def test_transformers_that_are_not_fitted_have_no_bound(transformer):
    with pytest.raises(NotFittedError):
        transformer_bound(clone(transformer))


def test_a_weight_that_is_no_number_is_refused():
    transformer = columns((STANDARD, [0]), transformer_weights={"0": math.nan}).fit(TABLE)
    with pytest.raises(ValueError, match="finite and at least 0"):
        transformer_bound(transformer)


def test_a_bare_function_transformer_passes_as_a_part_only_without_a_function():
    assert transformer_bound(columns(("passthrough", [0, 1])).fit(TABLE)) == pytest.approx(1, rel=1e-12)
    with pytest.raises(TypeError, match="FunctionTransformer"):
        transformer_bound(columns((FunctionTransformer(np.exp), [0, 1])).fit(TABLE))


@pytest.mark.parametrize("missing_values", [-1, 0])
def test_an_imputer_of_a_number_is_refused(missing_values):
    imputer = SimpleImputer(missing_values=missing_values).fit(TABLE)
    with pytest.raises(TypeError, match=r"^SimpleImputer with missing_values=.*NaN"):
        transformer_bound(imputer)


@pytest.mark.filterwarnings("ignore:Skipping features")
@pytest.mark.parametrize("keep_empty_features", [False, True])
@pytest.mark.parametrize("add_indicator", [False, True])
def test_an_imputer_copies_the_columns_it_keeps(keep_empty_features, add_indicator):
    """A column without any value is dropped or filled; scikit-learn warns of it."""
    table = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, 5.0]])
    imputer = SimpleImputer(keep_empty_features=keep_empty_features, add_indicator=add_indicator)
    imputer.fit(table)
    step, gains = described_step(imputer, Gains.at_start(3))
    matrix = (imputer.transform(np.eye(3)) - imputer.transform(np.zeros((1, 3)))).T
    moving = np.zeros_like(matrix)
    moving[np.arange(len(matrix)), step.sources] = step.factors
    np.testing.assert_array_equal(moving, matrix)
    assert gains.bound == 1
    # No row of which all values stand for missing ones is longer, but for what stands in empty columns.
    filled = imputer.transform(np.full((1, 3), np.nan))
    assert step.at_zero == pytest.approx(np.linalg.norm(filled), rel=1e-8)
    assert step.at_zero >= np.linalg.norm(filled)


def test_parts_that_read_fixed_columns_only_may_be_anything():
    table = np.column_stack([TABLE[:, :2], np.arange(40) % 3])
    transformer = columns((STANDARD, [0, 1]), (OneHotEncoder(sparse_output=False), [2])).fit(table)
    with pytest.raises(TypeError, match="OneHotEncoder"):
        transformer_bound(transformer)
    step, gains = described_step(transformer, Gains.at_start(3, np.array([False, False, True])))
    scale = transformer.named_transformers_["0"].scale_
    assert gains.bound == pytest.approx(1 / scale.min(), rel=1e-12)
    assert gains.moves.tolist() == [True, True, False, False, False]
    assert step.reads.tolist() == [0, 1]


def test_steps_behind_what_a_nested_part_made_of_fixed_columns_are_refused():
    """Its length has no bound, so the rounding of the next step has none."""
    inner = columns((STANDARD, [0]), (OneHotEncoder(sparse_output=False), [1]))
    outer = columns((make_pipeline(inner, PCA(2)), [0, 1]))
    table = np.column_stack([TABLE[:, 0], np.arange(40) % 3])
    outer.fit(table)
    with pytest.raises(TypeError, match="move the steps on fixed columns"):
        described_step(outer, Gains.at_start(2, np.array([False, True])))


def test_factors_that_underflow_do_not_read_as_fixed():
    tiny = FeatureUnion([("a", "passthrough")], transformer_weights={"a": 1e-300})
    twice = make_pipeline(tiny, clone(tiny))
    assert transformer_bound(twice.fit(TABLE)) >= FLOOR


def test_a_part_that_overwrites_what_its_neighbour_reads_is_refused():
    for transformer in (
        make_union(StandardScaler(copy=False), MinMaxScaler()),
        columns((make_pipeline(MinMaxScaler(copy=False)), slice(0, 3)), (STANDARD, slice(0, 3))),
    ):
        with pytest.raises(TypeError, match="with copy=False overwrites"):
            transformer_bound(transformer.fit(TABLE.copy()))


def test_a_weight_of_zero_holds_nothing_fixed():
    """Its values are zeros of either sign."""
    union = FeatureUnion([("a", "passthrough")], transformer_weights={"a": 0.0}).fit(TABLE)
    _, gains = described_step(union, Gains.at_start(6))
    assert gains.moves.all()
    assert FLOOR <= gains.bound < 1e-270


@pytest.mark.parametrize(
    ("transformer", "method"),
    [
        (columns(("passthrough", [0])), "transform"),
        (columns(("passthrough", [0])), "_transform"),
        (columns((STANDARD, [0])), "transform"),
        (make_union(PCA(2)), "transform"),
        (make_union(PCA(2)), "_transform"),
    ],
    ids=str,
)
def test_replaced_methods_of_parts_are_refused(transformer, method):
    transformer = clone(transformer).fit(TABLE)
    parts = getattr(transformer, "transformers_", None) or transformer.transformer_list
    assert hasattr(parts[0][1], method)
    setattr(parts[0][1], method, lambda X: 1e6 * X)
    with pytest.raises(TypeError, match=f"has a replaced {method}"):
        transformer_bound(transformer)


def test_a_union_that_drops_its_first_part_works_after_a_rotation():
    union = FeatureUnion([("a", "drop"), ("b", MinMaxScaler())])
    pipeline = make_pipeline(PCA(3), union).fit(TABLE)
    assert transformer_bound(pipeline) >= np.linalg.norm(matrix_of(pipeline), 2)


def test_the_indicator_of_missing_values_counts_in_the_length_at_zero():
    table = TABLE.copy()
    table[0, :2] = np.nan
    imputer = SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=True).fit(table)
    step, _ = described_step(imputer, Gains.at_start(6))
    assert np.linalg.norm(imputer.transform(np.where(np.isnan(table), np.nan, 0.0)[:1])) <= step.at_zero
