"""Rules of transformers that bend columns: against differences on a fine grid, and under attack."""

import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from scipy import sparse as scipy_sparse
from scipy import stats
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    KBinsDiscretizer,
    OneHotEncoder,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
)

from sklip import LipschitzClassifier, certificates, predict_with_radii
from sklip.certified import Arithmetic, Gains
from sklip.preprocessing import transformer_bound
from sklip.preprocessing.rules import described_transformer
from sklip.preprocessing.steps import described_steps, flat_steps

# Tables have columns that count far more than others.
pytestmark = pytest.mark.filterwarnings("ignore:The steps enlarge a change of column")


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 10, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


# Columns of different units and shapes, without repeated values.
TABLE = np.random.default_rng(0).lognormal(size=(500, 3)) * [0.01, 1.0, 1e4] - [0.0, 2.0, 7e3]
WIDE = 1e3 * TABLE  # so wide that even outermost quantiles lie far apart


def fine_grid(quantiles):
    """Points between and around the quantiles of a column, ever closer to each of them."""
    gaps = np.diff(quantiles)
    inside = [quantiles[:-1] + share * gaps for share in np.linspace(0, 1, 21)]
    near = [
        quantiles + side * step for side in (-1, 1) for step in gaps.min() * np.geomspace(1e-3, 1, 7)
    ]
    ends = [quantiles[0] - np.geomspace(1e-9, 1, 30), quantiles[-1] + np.geomspace(1e-9, 1, 30)]
    edges = [quantiles[[0, -1]] + side * np.linspace(0.5e-7, 2e-7, 31)[:, None] for side in (-1, 1)]
    return np.unique(np.concatenate([np.ravel(each) for each in (*inside, *near, *ends, *edges)]))


@pytest.mark.parametrize("n_quantiles", [2, 10, 100])
def test_factors_of_uniform_quantiles_are_the_steepest_slopes(n_quantiles):
    transformer = QuantileTransformer(n_quantiles=n_quantiles, subsample=None).fit(TABLE)
    bound = described_transformer(transformer)
    for column in range(3):
        grid = fine_grid(transformer.quantiles_[:, column])
        rows = np.repeat(TABLE[:1], len(grid), axis=0)
        rows[:, column] = grid
        values = transformer.transform(rows)[:, column]
        slopes = np.diff(values) / np.diff(grid)
        # Both values have errors of some units.
        apart = np.diff(grid) > 1e-8 * np.ptp(grid)
        assert slopes[apart].max() <= bound.factors[column] * (1 + 1e-6)
        assert slopes[apart].max() >= bound.factors[column] * (1 - 1e-6)
        exact = max(
            (Fraction(float(high)) - Fraction(float(low))) / (Fraction(float(b)) - Fraction(float(a)))
            for low, high, a, b in zip(
                transformer.references_[:-1],
                transformer.references_[1:],
                transformer.quantiles_[:-1, column],
                transformer.quantiles_[1:, column],
                strict=True,
            )
        )
        assert exact <= Fraction(float(bound.factors[column])) <= exact * (1 + Fraction(1, 10**12))
    assert transformer_bound(transformer) == pytest.approx(bound.factors.max(), rel=1e-12)


@pytest.mark.parametrize("n_quantiles", [2, 10, 60])
def test_factors_of_normal_quantiles_are_the_steepest_slopes(n_quantiles):
    transformer = QuantileTransformer(
        n_quantiles=n_quantiles, output_distribution="normal", subsample=None
    ).fit(WIDE)
    bound = described_transformer(transformer)
    for column in range(3):
        quantiles = transformer.quantiles_[:, column]
        gaps = np.diff(quantiles)
        # The bend is sharpest where the outermost pieces are cut.
        cut = np.concatenate(
            [
                quantiles[0] + gaps[0] * (n_quantiles - 1) * 1e-7 * np.linspace(0, 3, 2001),
                quantiles[-1] - gaps[-1] * (n_quantiles - 1) * 1e-7 * np.linspace(0, 3, 2001),
            ]
        )
        grid = np.unique(np.concatenate([fine_grid(quantiles), cut]))
        rows = np.repeat(WIDE[:1], len(grid), axis=0)
        rows[:, column] = grid
        values = transformer.transform(rows)[:, column]
        apart = np.diff(grid) > 1e-11 * np.ptp(grid)
        slopes = (np.diff(values) / np.diff(grid))[apart]
        # Probabilities near 1 are known to 1e-16 only, a share of a part of 1e-7 in each step.
        assert slopes.max() <= bound.factors[column] * (1 + 1e-3)
        assert slopes.max() >= bound.factors[column] * (1 - 5e-2)
        # No jump: no step beyond what the slope allows, and rounding near 1.
        assert (np.diff(values) <= bound.factors[column] * np.diff(grid) + 1e-8).all()


@pytest.mark.parametrize("output", ["uniform", "normal"])
def test_what_is_computed_lies_within_the_bound_on_rounding(output):
    """Against the piecewise linear function in fractions; SciPy's quantile of that in float64."""
    transformer = QuantileTransformer(n_quantiles=30, output_distribution=output, subsample=None).fit(
        WIDE
    )
    rng = np.random.default_rng(1)
    rows = np.vstack([WIDE[:100], rng.choice(WIDE.ravel(), size=(100, 3))])
    for dtype in ("float64", "float32"):
        given = rows.astype(dtype)
        error = described_transformer(transformer).rounding(Arithmetic(dtype))
        computed = transformer.transform(given.copy()).astype(float)
        for row, found in zip(given, computed, strict=True):
            exact = [
                exact_quantile(float(value), transformer, column) for column, value in enumerate(row)
            ]
            if output == "normal":
                tail = 1e-7 - np.spacing(1)
                exact = [float(stats.norm.ppf(min(max(float(each), tail), 1 - tail))) for each in exact]
            # SciPy itself is right to some units near the ends.
            gap = math.dist([float(each) for each in exact], found)
            assert gap <= error.offset + error.slope * np.linalg.norm(row) + 1e-8 * (output == "normal")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_short_rows_of_large_values_are_charged_as_well(dtype):
    """Near 0 a row is short, and its values are near 1: their own rounding is what counts."""
    transformer = QuantileTransformer(n_quantiles=7).fit(np.linspace(-1, 0, 50)[:, None])
    rows = -np.random.default_rng(0).uniform(1e-4, 1e-3, size=(200, 1)).astype(dtype)
    error = described_transformer(transformer).rounding(Arithmetic(dtype))
    found = transformer.transform(rows.copy())[:, 0].astype(float)
    exact = [exact_quantile(float(value), transformer, 0) for value in rows[:, 0]]
    gaps = [
        float(abs(Fraction(each) - value)) for each, value in zip(found.tolist(), exact, strict=True)
    ]
    assert max(gaps) > 0.1 * np.finfo(dtype).eps
    assert max(gaps) <= error.offset + error.slope * 1e-4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_charge_covers_operations_that_are_all_rounded_as_badly_as_they_may_be(dtype):
    """Two interpolations as NumPy writes them, each result moved up by a unit of itself."""
    transformer = QuantileTransformer(n_quantiles=2).fit(np.linspace(-1, 0, 50)[:, None])
    arithmetic = Arithmetic(dtype)
    error, up = described_transformer(transformer).rounding(arithmetic), 1 + Fraction(arithmetic.unit)
    for value in (Fraction(-1, 10**9), Fraction(-1, 3)):
        slope = (1 * up) / (1 / up) * up
        interpolated = (slope * ((value + 1) * up) * up + 0) * up
        computed = (interpolated + interpolated) * up / 2 * up
        charge = Fraction(error.offset) + Fraction(error.slope) * -value
        assert computed - (value + 1) <= charge


def test_what_is_flushed_before_the_steepest_piece_is_charged():
    """A value below the smallest normal number, taken for 0, has crossed half of the quantiles."""
    transformer = QuantileTransformer(n_quantiles=3).fit(np.array([[0.0], [1e-39], [1.0]]))
    arithmetic = Arithmetic("float32")
    error, value = described_transformer(transformer).rounding(arithmetic), arithmetic.smallest
    lost = exact_quantile(value, transformer, 0) - exact_quantile(0.0, transformer, 0)
    assert lost >= Fraction(1, 2)
    assert error.offset + error.slope * value >= lost


def exact_quantile(value, transformer, column):
    quantiles = [Fraction(float(each)) for each in transformer.quantiles_[:, column]]
    references = [Fraction(float(each)) for each in transformer.references_]
    value = Fraction(value)
    if value <= quantiles[0]:
        return references[0]
    for a, b, low, high in zip(quantiles, quantiles[1:], references, references[1:], strict=False):
        if value <= b:
            return low + (value - a) / (b - a) * (high - low)
    return references[-1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("output", ["uniform", "normal"])
def test_no_step_within_the_radius_flips_behind_quantiles(output, n_classes, dtype):
    X, y = load_digits(return_X_y=True)
    X = X[:300, 2:30] * 100 + np.random.default_rng(0).normal(size=(300, 28)) * 40
    X, y = X.astype(dtype), y[:300] % n_classes
    transformer = QuantileTransformer(
        n_quantiles=12, output_distribution=output, subsample=None, random_state=0
    )
    pipeline = make_pipeline(transformer, quick(hidden_layer_sizes=(), dtype="float64")).fit(X, y)
    labels, radii = predict_with_radii(pipeline, X)
    if output == "uniform":
        assert (radii > 0).mean() > 0.9
    elif dtype == "float64":
        # The slope at the ends, a million times that in the middle, is what counts.
        assert (radii > 0).mean() > 0.5
    logits = pipeline.decision_function(X)
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=X.shape) for _ in range(5)]
    directions += [X[rng.permutation(len(X))] - X + rng.normal(size=X.shape) for _ in range(20)]
    for direction in directions:
        step = direction / np.linalg.norm(direction, axis=1)[:, None]
        for share in (0.3, 1 - 1e-9):
            moved = (X + share * radii[:, None] * step).astype(dtype)
            near = np.linalg.norm(moved.astype(float) - X, axis=1) < radii
            assert (pipeline.predict(moved) == labels)[near].all()
    assert len(logits) == len(X)


def test_a_radius_behind_evenly_spread_quantiles_is_reached():
    """All pieces are equally steep, and nothing is given away."""
    X = np.linspace(0, 3, 31)[:, None]
    pipeline = make_pipeline(
        QuantileTransformer(n_quantiles=7), quick(hidden_layer_sizes=(), dtype="float64")
    ).fit(X, (X[:, 0] > 1.3).astype(int))
    low, high = 0.0, 3.0
    (first,) = pipeline.predict([[low]])
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if pipeline.predict([[middle]])[0] == first else (low, middle)
    assert 0.1 < low < 2.9
    np.testing.assert_allclose(certificates(pipeline, X), np.abs(X[:, 0] - low), atol=1e-9)


# -- what is refused -----------------------------------------------------------------------------


def test_repeated_quantiles_are_refused_and_their_columns_named():
    repeated = pd.DataFrame(TABLE, columns=["a", "b", "c"]).round({"b": 0})
    for output in ("uniform", "normal"):
        transformer = QuantileTransformer(n_quantiles=50, output_distribution=output).fit(repeated)
        with pytest.raises(TypeError, match=r"^QuantileTransformer jumps .* columns \['b'\].*fixed"):
            transformer_bound(transformer)
    numbered = QuantileTransformer(n_quantiles=50).fit(repeated.to_numpy())
    with pytest.raises(TypeError, match=r"in the columns \[1\]"):
        transformer_bound(numbered)


def test_steep_ends_of_normal_quantiles_are_refused_for_they_jump():
    """1e-7 from its end a value is put on it, from wherever it has come to."""
    X = np.linspace(0, 1e-3, 50)[:, None]
    transformer = QuantileTransformer(n_quantiles=50, output_distribution="normal").fit(X)
    edge = transformer.quantiles_[0, 0] + 1e-7
    below, above = transformer.transform(np.array([[edge - 1e-12], [edge + 1e-12]])).ravel()
    assert above - below > 0.3
    with pytest.raises(
        TypeError, match=r"^QuantileTransformer with output_distribution='normal' jumps"
    ):
        transformer_bound(transformer)
    assert transformer_bound(transformer.set_params(output_distribution="uniform")) == pytest.approx(
        1e3
    )


@pytest.mark.parametrize("output", ["uniform", "normal"])
def test_a_single_quantile_is_refused(output):
    transformer = QuantileTransformer(n_quantiles=1, output_distribution=output).fit(TABLE)
    with pytest.raises(TypeError, match="jumps"):
        transformer_bound(transformer)


def test_sparse_rows_are_refused_before_quantiles():
    """Zeros that are not stored stay 0, wherever 0 lies among the quantiles."""
    X = np.abs(TABLE) + 1
    transformer = QuantileTransformer(n_quantiles=20).fit(X)
    pipeline = make_pipeline(transformer, TruncatedSVD(2), quick()).fit(X, np.arange(500) % 2)
    assert certificates(pipeline, X).max() > 0
    for sparse in (
        scipy_sparse.csr_array(X),
        pd.DataFrame(X).astype(pd.SparseDtype("float64", 0.0)),
    ):
        with pytest.raises(TypeError, match="no Lipschitz bound on sparse rows"):
            certificates(pipeline, sparse)


def test_steps_that_may_give_sparse_rows_are_refused_before_quantiles():
    words = np.random.default_rng(0).integers(0, 40, size=500).astype(str)
    X = pd.DataFrame(np.abs(TABLE) + 1, columns=["a", "b", "c"]).assign(word=words)
    prepare = make_column_transformer(
        ("passthrough", ["a", "b", "c"]), (OneHotEncoder(), ["word"]), sparse_threshold=1.0
    )
    pipeline = make_pipeline(prepare, QuantileTransformer(n_quantiles=2))
    sparse = pipeline.fit(X).transform(X)
    assert hasattr(sparse, "tocsr")
    last = TruncatedSVD(5), quick(max_epochs=1)
    pipeline = make_pipeline(*[step for _, step in pipeline.steps], *last)
    pipeline.fit(X, np.arange(500) % 2)
    with pytest.raises(TypeError, match="no Lipschitz bound on sparse rows"):
        certificates(pipeline, X, fixed_columns=["word"])


def test_power_transformers_are_refused_and_their_columns_named():
    X = pd.DataFrame(np.abs(TABLE) + 1, columns=["a", "b", "c"]).assign(still=3.0)
    transformer = PowerTransformer().fit(X)
    assert transformer.lambdas_[3] == 1
    with pytest.raises(TypeError, match=r"^PowerTransformer .*in the columns \['a', 'b', 'c'\]"):
        transformer_bound(transformer)
    box = PowerTransformer(method="box-cox").fit(X[["a"]])
    with pytest.raises(TypeError, match=r"^PowerTransformer .*in the columns \['a'\]"):
        transformer_bound(box)


@pytest.mark.parametrize("standardize", [False, True])
def test_a_power_of_1_leaves_values_as_they_are(standardize):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 2)) * [3.0, 0.1]
    transformer = PowerTransformer(standardize=standardize).fit(X)
    transformer.lambdas_ = np.ones(2)
    if standardize:
        transformer._scaler.fit(X)
    scales = X.std(axis=0) if standardize else np.ones(2)
    bound = described_transformer(transformer)
    assert transformer_bound(transformer) == pytest.approx((1 / scales).max(), rel=1e-9)
    np.testing.assert_allclose(bound.factors, 1 / scales, rtol=1e-9)
    expected = (X - X.mean(axis=0)) / scales if standardize else X
    error = bound.rounding(Arithmetic("float64"))
    gaps = np.linalg.norm(transformer.transform(X) - expected, axis=1)
    assert (gaps <= error.offset + error.slope * np.linalg.norm(X, axis=1)).all()
    assert error.offset < 1e-9


@pytest.mark.parametrize(
    "bent",
    [
        KBinsDiscretizer(4, encode="ordinal", strategy="uniform", subsample=None),
        PowerTransformer(),
        QuantileTransformer(n_quantiles=100),
    ],
    ids=lambda bent: type(bent).__name__,
)
def test_what_jumps_or_is_too_steep_may_read_columns_that_are_held_fixed(bent):
    X = TABLE.copy()
    X[:, 1] = X[:, 1].round()
    y = (X[:, 0] > np.median(X[:, 0])).astype(int)
    prepare = ColumnTransformer([("bent", bent, [1]), ("rest", StandardScaler(), [0, 2])])
    pipeline = make_pipeline(prepare, quick()).fit(X, y)
    with pytest.raises(TypeError, match=f"^{type(bent).__name__} "):
        certificates(pipeline, X)
    labels, radii = predict_with_radii(pipeline, X, fixed_columns=[1])
    assert (radii > 0).mean() > 0.9
    rng = np.random.default_rng(0)
    for _ in range(20):
        step = rng.normal(size=X.shape) * [1e-3, 0, 1]
        step *= ((1 - 1e-9) * radii / np.linalg.norm(step, axis=1))[:, None]
        assert (pipeline.predict(X + step) == labels).all()


BENT = {
    "before a projection": lambda: make_pipeline(QuantileTransformer(n_quantiles=8), PCA(2)),
    "between projections": lambda: make_pipeline(PCA(3), QuantileTransformer(n_quantiles=8), PCA(2)),
    "beside a scaler": lambda: make_pipeline(
        make_union(QuantileTransformer(n_quantiles=8), StandardScaler()), PCA(4)
    ),
    "of other columns than a scaler": lambda: make_pipeline(
        make_column_transformer(
            (QuantileTransformer(n_quantiles=8), [0, 2]), (StandardScaler(), [1, 3])
        ),
        PCA(3),
    ),
    "twice in different ways": lambda: make_pipeline(
        make_union(QuantileTransformer(n_quantiles=8), QuantileTransformer(n_quantiles=4)), PCA(3)
    ),
}


@pytest.mark.parametrize("name", BENT)
def test_no_change_comes_further_through_bent_columns_and_matrices_than_gains_say(name):
    rng = np.random.default_rng(0)
    spread = np.array([0.1, 1.0, 5.0, 1.0])
    X = (rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4))) * spread
    transformer = BENT[name]().fit(X)
    _, gains = described_steps(list(flat_steps(transformer)), Gains.at_start(4))
    x = X[rng.integers(0, 200, 20000)]
    steps = rng.normal(size=x.shape) * spread * 10.0 ** rng.uniform(-3, 1, (len(x), 1))
    base, shares = transformer.transform(x), []
    for moves in ([True] * 4, *np.eye(4, dtype=bool)):
        moved = np.linalg.norm(transformer.transform(x + steps * moves) - base, axis=1)
        bound = gains.bound if all(moves) else gains.of_columns[np.argmax(moves)]
        shares.append((moved / (bound * np.linalg.norm(steps * moves, axis=1))).max())
    assert max(shares) <= 1 + 1e-9
    # Of some column nothing is given away where each is bent once.
    assert max(shares) > (0.9 if name in ("before a projection", *list(BENT)[3:4]) else 0.1)


def test_a_power_of_1_is_a_linear_map_between_matrices():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 3)) * [1, 10, 100]
    steps = [StandardScaler().fit(X)]
    steps.append(PowerTransformer().fit(steps[0].transform(X)))
    steps[1].lambdas_ = np.ones(3)
    steps.append(PCA(2).fit(steps[1].transform(steps[0].transform(X))))
    _, gains = described_steps(steps, Gains.at_start(3))
    scales = steps[0].scale_ * steps[1]._scaler.scale_
    np.testing.assert_allclose(gains.bound, np.linalg.norm(steps[2].components_ / scales, 2), rtol=1e-9)
    assert gains.linear
