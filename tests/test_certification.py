"""Certificates of whole estimators, in the units of their own input."""

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, KernelPCA, TruncatedSVD
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from torch import nn

from sklip import (
    CertifiedNetwork,
    LipschitzClassifier,
    certificates,
    certified_ranges,
    layers,
    predict_with_radii,
)

# Behind a StandardScaler, a pixel that is rarely used limits the radii of digits.
pytestmark = pytest.mark.filterwarnings("ignore:The steps enlarge a change of column")

# -- certificates ------------------------------------------------------------------------------


def exact_radius(logits, bounds):
    """The smallest quotient of a margin and its bound, as a Fraction."""
    logits = [Fraction(float(value)) for value in logits]
    top = logits.index(max(logits))
    rivals = [j for j in range(len(logits)) if j != top]
    return min((logits[top] - logits[j]) / Fraction(float(bounds[top][j])) for j in rivals)


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (16,), "max_epochs": 5, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


@pytest.fixture(scope="module")
def fitted(few_digits):
    return quick().fit(*few_digits)


def test_certificates_of_a_classifier_are_its_own(fitted, few_digits):
    radii = certificates(fitted, few_digits[0])
    assert radii.tolist() == fitted.certificates_(few_digits[0]).tolist()
    bounds = fitted.certified_network_.margin_bounds
    expected = [exact_radius(row, bounds) for row in fitted.decision_function(few_digits[0])]
    assert all(Fraction(r) <= e for r, e in zip(radii.tolist(), expected, strict=True))
    assert radii.max() > 0


@pytest.mark.parametrize("function", [certificates, certified_ranges, predict_with_radii])
@pytest.mark.parametrize("X", [np.array(1.0), {"a": [1.0]}, None], ids=str)
def test_what_has_no_rows_is_refused(fitted, function, X):
    with pytest.raises(ValueError, match="Expected 2D array, got scalar array instead"):
        function(fitted, X)


def standard_constant(scaler):
    return 1 / min(Fraction(value) for value in scaler.scale_.tolist())


def min_max_constant(scaler):
    return max(Fraction(value) for value in scaler.scale_.tolist())


def largest_product(standard, min_max):
    """Column by column: less than the product of the largest factors."""
    return max(
        Fraction(up) / Fraction(down)
        for up, down in zip(min_max.scale_.tolist(), standard.scale_.tolist(), strict=True)
    )


PREPROCESSING = {
    "standard": (lambda: StandardScaler(), standard_constant),
    "standard_without_std": (lambda: StandardScaler(with_std=False), lambda s: Fraction(1)),
    "standard_without_mean": (
        lambda: StandardScaler(with_mean=False),
        standard_constant,
    ),
    "min_max": (lambda: MinMaxScaler((-3, 2)), min_max_constant),
    "min_max_clipped": (lambda: MinMaxScaler(clip=True), min_max_constant),
    "passthrough": (lambda: "passthrough", lambda s: Fraction(1)),
    "none": (lambda: None, lambda s: Fraction(1)),
    "nested": (
        lambda: Pipeline([("a", StandardScaler()), ("b", "passthrough"), ("c", MinMaxScaler())]),
        lambda s: largest_product(s["a"], s["c"]),
    ),
    "nested_twice": (
        lambda: make_pipeline(make_pipeline(MinMaxScaler((0, 7)), "passthrough"), None),
        lambda s: min_max_constant(s[0][0]),
    ),
}


@pytest.fixture(scope="module")
def pipelines(few_digits):
    return {
        name: Pipeline([("prepare", make()), ("classify", square())]).fit(*few_digits)
        for name, (make, _) in PREPROCESSING.items()
    }


def square(**parameters):
    """A first layer that is orthogonal and square: folding a scaler into it gains nothing.

    Several batches, for which columns have no weights.
    """
    return quick(hidden_layer_sizes=(64,), batch_size=100, **parameters)


def check_quotient(radii, inner, constant):
    """The exact quotient within 1e-9, as the bounds of the steps are.

    Or within 1e-11, the charge for the scaler's rounding: some units of 1e-16 on rows of length 100.
    """
    for radius, numerator in zip(radii.tolist(), inner.tolist(), strict=True):
        exact = Fraction(numerator) / constant
        lowest = min(exact * (1 - Fraction(1, 10**9)), exact - Fraction(1, 10**11))
        assert lowest <= Fraction(radius) <= exact * (1 + Fraction(1, 10**9))


@pytest.mark.parametrize("name", PREPROCESSING)
def test_a_pipeline_divides_the_radius_by_the_constant_of_its_steps(pipelines, few_digits, name):
    pipeline, X = pipelines[name], few_digits[0]
    step = pipeline["prepare"]
    Z = X if step in (None, "passthrough") else step.transform(X)
    inner = pipeline["classify"].certificates_(Z)
    assert inner.max() > 0
    check_quotient(certificates(pipeline, X), inner, PREPROCESSING[name][1](step))


def test_a_pipeline_of_the_classifier_alone_gives_its_radii(fitted, few_digits):
    X = few_digits[0]
    expected = fitted.certificates_(X)
    check_quotient(certificates(Pipeline([("classify", fitted)]), X), expected, Fraction(1))
    nested = Pipeline([("outer", Pipeline([("classify", fitted)]))])
    check_quotient(certificates(nested, X), expected, Fraction(1))


def test_constants_of_several_scalers_multiply(few_digits):
    X, y = few_digits
    first, second = MinMaxScaler().fit(X), StandardScaler()
    second.fit(first.transform(X))
    pipeline = make_pipeline(first, second, square()).fit(X, y)
    inner = pipeline[-1].certificates_(pipeline[:-1].transform(X))
    check_quotient(certificates(pipeline, X), inner, largest_product(second, first))


@pytest.mark.parametrize("with_pipeline", [False, True])
@pytest.mark.parametrize("kind", [GridSearchCV, RandomizedSearchCV])
def test_certificates_of_a_search_are_those_of_its_best_estimator(few_digits, kind, with_pipeline):
    X, y = few_digits
    estimator = Pipeline([("scale", StandardScaler()), ("classify", quick())])
    grid = {"classify__tau": [1.0, 10.0]} if with_pipeline else {"tau": [1.0, 10.0]}
    estimator = estimator if with_pipeline else quick()
    extra = {"n_iter": 2} if kind is RandomizedSearchCV else {}
    search = kind(estimator, grid, cv=2, **extra).fit(X, y)
    expected = certificates(search.best_estimator_, X)
    assert expected.max() > 0
    assert certificates(search, X).tolist() == expected.tolist()
    inside = Pipeline(
        [
            ("scale", StandardScaler()),
            ("search", kind(square(), {"tau": [1.0]}, cv=2, **({"n_iter": 1} if extra else {}))),
        ]
    ).fit(X, y)
    scaler, search = inside["scale"], inside["search"]
    inner = search.best_estimator_.certificates_(scaler.transform(X))
    check_quotient(certificates(inside, X), inner, standard_constant(scaler))


# -- labels and radii in one pass ------------------------------------------------------------------

CALIBRATION = {"method": "temperature", "ensemble": False, "cv": 2}
KINDS = {
    "classifier": lambda: quick(),
    "pipeline": lambda: make_pipeline(StandardScaler(), quick()),
    "search": lambda: GridSearchCV(quick(), {"tau": [1.0, 10.0]}, cv=2),
    "search of a pipeline": lambda: GridSearchCV(make_pipeline(StandardScaler(), quick()), {}, cv=2),
    "calibrated": lambda: CalibratedClassifierCV(quick(), **CALIBRATION),
    "calibrated in a pipeline": lambda: make_pipeline(
        StandardScaler(), CalibratedClassifierCV(quick(), **CALIBRATION)
    ),
    "frozen": lambda: FrozenEstimator(quick()),
}


LABELS = {"two": [3, 5], "ten": [*range(10, 20)], "words": ["no", "yes"]}
COMBINED = [(kind, labels) for kind in KINDS for labels in LABELS]


@pytest.mark.parametrize("fixed", [(), range(20, 64)], ids=["free", "some fixed"])
@pytest.mark.parametrize(("kind", "labels"), COMBINED)
def test_labels_and_radii_are_those_of_predict_and_certificates(few_digits, kind, labels, fixed):
    classes = np.array(LABELS[labels])
    X, y = few_digits[0], classes[few_digits[1] % len(classes)]
    estimator = KINDS[kind]()
    # A frozen estimator keeps the model that it is given.
    fitted = getattr(estimator, "estimator", estimator) if kind == "frozen" else estimator
    fitted.fit(X, y)
    labels, radii = predict_with_radii(estimator, X, fixed_columns=fixed)
    expected = estimator.predict(X)
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == expected.dtype
    np.testing.assert_array_equal(radii, certificates(estimator, X, fixed_columns=fixed))
    assert radii.dtype == np.float64
    assert radii.max() > 0


def test_a_softmax_that_ties_gives_the_labels_of_predict(few_digits):
    """Rows of radius 0: of equal probabilities the first wins, whatever the logits are."""
    X, y = few_digits
    estimator = CalibratedClassifierCV(quick(), **CALIBRATION).fit(X, y)
    estimator.calibrated_classifiers_[0].calibrators[0].beta_ = 1e-30
    labels, radii = predict_with_radii(estimator, X)
    np.testing.assert_array_equal(labels, estimator.predict(X))
    inner = estimator.calibrated_classifiers_[0].estimator
    assert (labels != inner.predict(X)).any()
    assert not radii.any()
    # Beside rows that are certain.
    X = np.vstack([X, 1e28 * X[:20]])
    labels, radii = predict_with_radii(estimator, X)
    np.testing.assert_array_equal(labels, estimator.predict(X))
    assert not radii[:-20].any()
    assert radii[-20:].any()


def test_predict_is_asked_only_where_more_than_a_network_decides_and_is_not_certain(
    few_digits, monkeypatch
):
    X, y = few_digits
    network = make_pipeline(StandardScaler(), quick()).fit(X, y)
    calibrated = CalibratedClassifierCV(quick(), **CALIBRATION).fit(X, y)
    far, certain = 1e200 * X, X[certificates(calibrated, X) > 0]
    assert (certificates(network, far) == 0).all()
    expected = calibrated.predict(certain)
    for kind in (Pipeline, CalibratedClassifierCV):
        monkeypatch.setattr(kind, "predict", lambda self, X: pytest.fail("predict was asked"))
    assert len(predict_with_radii(network, far)[0]) == len(X)
    np.testing.assert_array_equal(predict_with_radii(calibrated, certain)[0], expected)


# -- certificates under attack -------------------------------------------------------------------


def two_sided_data(n_classes, seed=0):
    """Rows whose every column has mean 0 and a standard deviation and a maximum of exactly 4."""
    rng = np.random.default_rng(seed)
    half = 4.0 * rng.choice([-1.0, 1.0], size=(60, 5))
    X = np.vstack([half, -half])
    return X, np.arange(len(X)) % n_classes


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("equal_scales", [True, False])
@pytest.mark.parametrize(
    "scaler",
    [StandardScaler(), MinMaxScaler(), make_pipeline(MinMaxScaler((-5, 5)), StandardScaler())],
    ids=["standard", "min_max", "both"],
)
def test_the_worst_step_in_raw_units_flips_just_beyond_the_radius(scaler, equal_scales, n_classes):
    X, y = two_sided_data(n_classes)
    if not equal_scales:
        X = X * [0.01, 1.0, 3.0, 50.0, 1000.0]
    pipeline = make_pipeline(
        clone(scaler), quick(hidden_layer_sizes=(), architecture="mlp", max_epochs=20, solver="adam")
    ).fit(X, y)
    rng = np.random.default_rng(1)
    rows = X[:40] + 0.1 * rng.normal(size=(40, 5)) * X.std(axis=0)
    radii = certificates(pipeline, rows)
    # The map from raw rows to logits is affine; its matrix is read off from the model.
    weight = pipeline[-1].to_torch()[-1].weight.detach().numpy()
    center = X.mean(axis=0)
    step = np.diag(X.std(axis=0))
    factors = pipeline[:-1].transform(center + step) - pipeline[:-1].transform([center])
    gradient = weight * (factors.diagonal() / X.std(axis=0))
    codes = np.searchsorted(pipeline.classes_, pipeline.predict(rows))
    assert (radii > 1e-3 * X.std(axis=0).min()).all()
    flipped = np.zeros(len(rows), dtype=bool)
    for other in range(n_classes):
        if n_classes == 2:
            direction = np.where(codes[:, None] == 1, -gradient, gradient)
            rivals = codes == other
        else:
            direction = gradient[other] - gradient[codes]
            rivals = codes != other
        norms = np.linalg.norm(direction[rivals], axis=1, keepdims=True)
        unit = direction[rivals] / norms
        inside = rows[rivals] + (1 - 1e-9) * radii[rivals, None] * unit
        assert (pipeline.predict(inside) == pipeline.predict(rows[rivals])).all()
        beyond = rows[rivals] + (1 + 1e-6) * radii[rivals, None] * unit
        flipped[rivals] |= pipeline.predict(beyond) != pipeline.predict(rows[rivals])
    if equal_scales:
        # Then the steps before the classifier scale all directions alike, and nothing is given away.
        assert flipped.all()


# -- worst directions in raw units ----------------------------------------------------------------


def parted(*parts, **parameters):
    return ColumnTransformer([(str(i), *part) for i, part in enumerate(parts)], **parameters)


# Steps that leave columns apart are folded into a linear classifier: nothing at all is given away.
APART = [
    [StandardScaler()],
    [RobustScaler(), MinMaxScaler((-1, 1))],
    [MaxAbsScaler()],
    [VarianceThreshold(), SelectKBest(k=30), StandardScaler()],
    [parted((StandardScaler(), slice(0, 30)), (MinMaxScaler(), [35, 32]), remainder="passthrough")],
    [
        parted(
            (make_pipeline(SimpleImputer(), RobustScaler()), slice(8, 60)), transformer_weights={"0": 9}
        )
    ],
    [SimpleImputer(add_indicator=True), StandardScaler(), parted((MinMaxScaler(), [40, 2, 21]))],
]
MIXED = [
    [VarianceThreshold(), PCA(20)],
    [StandardScaler(with_std=False), PCA(20, whiten=True)],
    [MaxAbsScaler(), TruncatedSVD(20)],
    [parted((StandardScaler(), slice(0, 40)), (MinMaxScaler(), slice(20, 64)))],
    [make_union(StandardScaler(), PCA(10), "passthrough"), StandardScaler()],
    [PCA(20), make_union(MinMaxScaler(), StandardScaler())],
    [FeatureUnion([("a", MinMaxScaler()), ("b", PCA(3))], transformer_weights={"a": 0.1, "b": -3})],
]


@pytest.mark.parametrize("fixed", [(), tuple(range(20, 64, 3))], ids=["free", "some fixed"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("steps", [*APART, *MIXED], ids=str)
def test_a_step_along_the_worst_direction_in_raw_units_does_not_flip(steps, n_classes, dtype, fixed):
    """Of a linear classifier behind affine steps: its weights pulled back, fixed columns cut out."""
    X, y = load_digits(return_X_y=True)
    X, y = X[:300], y[:300] % n_classes
    model = LipschitzClassifier(
        hidden_layer_sizes=(), max_epochs=30, learning_rate=0.02, dtype=dtype, random_state=0
    )
    pipeline = make_pipeline(*(clone(step) for step in steps), model).fit(X, y)
    radii, labels = certificates(pipeline, X, fixed_columns=fixed), pipeline.predict(X)
    wide = pipeline[-1].to_torch().double()

    def logits(rows):
        transformed = torch.from_numpy(np.asarray(pipeline[:-1].transform(rows), dtype=np.float64))
        scores = wide(transformed).numpy()
        return np.hstack([-scores, scores]) / 2 if n_classes == 2 else scores

    middle = X.mean(axis=0)
    gradients = (logits(middle + np.eye(64)) - logits(middle[None])).T
    gradients[:, list(fixed)] = 0
    scores, codes = logits(X), np.searchsorted(pipeline.classes_, labels)
    rows, flipped, nearest = np.arange(len(X)), np.zeros(len(X), dtype=bool), np.full(len(X), np.inf)
    for other in range(n_classes):
        toward = gradients[other] - gradients[codes]
        lengths = np.linalg.norm(toward, axis=1)
        unit = toward / np.maximum(lengths, 1e-300)[:, None]
        for share in (0.5, 1 - 1e-9):
            moved = X + unit * radii[:, None] * share
            assert (pipeline.predict(moved) == labels).all()
        beyond = X + unit * radii[:, None] * 1.001
        flipped |= pipeline.predict(beyond) != labels
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (scores[rows, codes] - scores[:, other]) / lengths
        nearest = np.minimum(nearest, np.where(codes == other, np.inf, distance))
    # float32 scores may give another class at a distance of nothing.
    assert (radii <= np.maximum(nearest, 0) * (1 + 1e-9)).all()
    assert (radii > 0).mean() > 0.9
    if steps in APART and dtype == "float64":
        assert flipped.mean() > 0.95
        assert (radii >= nearest * (1 - 1e-6)).all()


def test_random_steps_inside_the_radius_never_flip_a_trained_network(pipelines, few_digits):
    X = few_digits[0][:40]
    rng = np.random.default_rng(0)
    for pipeline in pipelines.values():
        radii, labels = certificates(pipeline, X), pipeline.predict(X)
        for _ in range(5):
            steps = rng.normal(size=X.shape)
            steps *= (1 - 1e-9) * (radii / np.linalg.norm(steps, axis=1))[:, None]
            assert (pipeline.predict(X + steps) == labels).all()


def test_a_scaler_switched_after_its_fit_gives_no_radius_of_the_old_map():
    X, y = two_sided_data(2)
    pipeline = make_pipeline(StandardScaler(), quick(hidden_layer_sizes=())).fit(X, y)
    pipeline[0].set_params(with_std=False)
    # Now transform only shifts: the pipeline's radius is that of the classifier.
    inner = pipeline[1].certificates_(X - X.mean(axis=0))
    radii = certificates(pipeline, X)
    assert (radii > 0).mean() > 0.9
    # The shift is exact up to rounding; a factor of 4 is what must not slip in.
    assert (radii <= inner * (1 + 1e-6)).all()


def test_rounding_of_the_input_to_the_networks_precision_breaks_no_radius():
    # Seconds since 1970: float32 holds them to 128 s only.
    rng = np.random.default_rng(0)
    X = 1.7e9 + 1e3 * rng.normal(size=(200, 1))
    y = (X[:, 0] > 1.7e9).astype(int)
    clf = quick(dtype="float32", hidden_layer_sizes=(), max_epochs=50).fit(X, y)
    boundary = 1.7e9 + np.linspace(-3000, 3000, 601)[:, None]
    radii, labels = certificates(clf, boundary), clf.predict(boundary)
    for side in (-1, 1):
        for share in (0.25, 0.5, 0.75, 0.99):
            moved = boundary + side * share * radii[:, None]
            near = np.abs(moved - boundary)[:, 0] < radii
            assert near.any()
            assert (clf.predict(moved)[near] == labels[near]).all()


class ScaledArchitecture:
    """A picklable architecture whose constant is no weight."""

    scale = 1.0

    def __call__(self, input_shape, n_outputs):
        return nn.Sequential(nn.Linear(*input_shape, n_outputs), layers.Scale(self.scale))


def test_a_copy_whose_architecture_has_changed_gives_no_radius_of_the_old_bound(
    few_digits, monkeypatch
):
    X, y = few_digits
    clf = quick(architecture=ScaledArchitecture()).fit(X, y)
    before = clf.decision_function(X)
    # What predicts is built from the stored layers; only training goes on with the new architecture.
    monkeypatch.setattr(ScaledArchitecture, "scale", 10.0)
    copied = copy.deepcopy(clf)
    np.testing.assert_array_equal(copied.decision_function(X), before)
    radii = certificates(copied, X)
    check_against_a_new_proof(copied, X, radii)
    np.testing.assert_array_equal(radii, certificates(clf, X))
    copied.partial_fit(X, y)
    assert copied.to_torch()[-1].k == 10
    assert np.abs(copied.decision_function(X)).max() > 5 * np.abs(before).max()
    check_against_a_new_proof(copied, X, certificates(copied, X))


def check_against_a_new_proof(clf, X, radii):
    bounds = CertifiedNetwork.prove(clf.to_torch(), (64,), clf.dtype_).margin_bounds
    exact = [exact_radius(row, bounds) for row in clf.decision_function(X)]
    assert all(Fraction(r) <= e for r, e in zip(radii.tolist(), exact, strict=True))
    assert radii.max() > 0


# -- what certificates refuses -------------------------------------------------------------------


class MyScaler(StandardScaler):
    def transform(self, X, copy=None):
        return 10 * super().transform(X, copy)


class MyPipeline(Pipeline):
    def predict(self, X, **params):
        return super().predict(-np.asarray(X), **params)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("step", "name"),
    [
        (KernelPCA(5), "KernelPCA"),
        (Normalizer(), "Normalizer"),
        (PolynomialFeatures(1), "PolynomialFeatures"),
        (FunctionTransformer(lambda X: 10 * X), "FunctionTransformer"),
        (MyScaler(), "MyScaler"),
        (MyPipeline([("scale", StandardScaler())]), "MyPipeline"),
    ],
)
def test_a_step_without_a_bound_is_refused_by_name(few_digits, step, name, nested):
    X, y = few_digits
    step = make_pipeline(StandardScaler(), step) if nested else step
    pipeline = make_pipeline(step, quick(max_epochs=1)).fit(X, y)
    with pytest.raises(TypeError, match=rf"^{name} has no Lipschitz bound.*register_transformer"):
        certificates(pipeline, X)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MyPipeline([("classify", quick(max_epochs=1))]),
        lambda: BaggingClassifier(quick(max_epochs=1), 2),
        lambda: CalibratedClassifierCV(quick(max_epochs=1), cv=2),
        lambda: LogisticRegression(max_iter=1000),
        lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        lambda: make_pipeline(StandardScaler(), BaggingClassifier(quick(max_epochs=1), 2)),
        lambda: GridSearchCV(MyPipeline([("classify", quick(max_epochs=1))]), {}, cv=2),
    ],
    ids=[
        "pipeline_subclass",
        "bagging",
        "calibrated",
        "logistic",
        "in_pipeline",
        "bagging_in_pipeline",
        "in_search",
    ],
)
def test_an_estimator_without_certificates_is_refused_by_name(few_digits, make):
    estimator = make().fit(*few_digits)
    last = getattr(estimator, "best_estimator_", estimator)
    last = last[-1] if type(last) is Pipeline else last
    with pytest.raises(TypeError, match=rf"^{type(last).__name__} gives no certificates"):
        certificates(estimator, few_digits[0])


@pytest.mark.parametrize("last", ["passthrough", None])
def test_a_pipeline_that_ends_in_no_classifier_is_refused(few_digits, last):
    pipeline = Pipeline([("scale", StandardScaler()), ("last", last)]).fit(few_digits[0])
    with pytest.raises(TypeError, match="gives no certificates"):
        certificates(pipeline, few_digits[0])


@pytest.mark.parametrize(
    "estimator",
    [
        quick(),
        make_pipeline(quick()),
        make_pipeline(StandardScaler(), quick()),
        make_pipeline("passthrough", quick()),
        GridSearchCV(quick(), {"tau": [1.0]}),
        GridSearchCV(make_pipeline(StandardScaler(), quick()), {}),
        GridSearchCV(quick(), {"tau": [1.0]}, refit=False),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_unfitted_estimators_are_refused_as_such(few_digits, estimator):
    with pytest.raises(NotFittedError):
        certificates(estimator, few_digits[0])


def test_an_unfitted_scaler_before_a_fitted_classifier_is_refused_as_such(few_digits, fitted):
    with pytest.raises(NotFittedError):
        certificates(Pipeline([("scale", StandardScaler()), ("classify", fitted)]), few_digits[0])


def test_a_search_without_refit_is_told_to_refit(few_digits):
    search = GridSearchCV(quick(max_epochs=1), {"tau": [1.0]}, cv=2, refit=False).fit(*few_digits)
    with pytest.raises(TypeError, match=r"^GridSearchCV needs refit=True"):
        certificates(search, few_digits[0])


# -- fixed columns of a classifier itself ---------------------------------------------------------


def test_fixed_columns_of_a_classifier_itself_are_folded_into_its_first_layer(few_digits):
    X, y = few_digits
    clf = quick(hidden_layer_sizes=()).fit(X, y)
    radii, held = certificates(clf, X), certificates(clf, X, fixed_columns=range(20, 64))
    assert (held >= radii).all()
    assert np.median(held) > 1.1 * np.median(radii)
    weight = clf.to_torch()[-1].weight.detach().numpy()[:, :20]
    scores, rows = clf.decision_function(X), np.arange(len(X))
    top = scores.argmax(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = (scores.max(axis=1)[:, None] - scores) / np.linalg.norm(
            weight[top][:, None] - weight, axis=2
        )
    exact[rows, top] = np.inf
    np.testing.assert_allclose(held, exact.min(axis=1), rtol=1e-6)


def test_fixed_columns_of_images_are_refused(few_digits):
    images = few_digits[0].reshape(-1, 8, 8)
    clf = quick(architecture="mlp", max_epochs=1).fit(images, few_digits[1])
    with pytest.raises(ValueError, match="needs X of flat rows"):
        certificates(clf, images, fixed_columns=[0])


@pytest.mark.parametrize("fixed", [None, 3, b"ab"])
def test_fixed_columns_must_be_an_iterable_of_columns(fitted, few_digits, fixed):
    with pytest.raises(ValueError, match="must be an iterable of columns"):
        certificates(fitted, few_digits[0], fixed_columns=fixed)


# -- calibration by one temperature ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("outer", [False, True], ids=["around the pipeline", "in the pipeline"])
def test_one_temperature_keeps_the_radius(few_digits, n_classes, dtype, outer):
    X, y = few_digits[0], few_digits[1] % n_classes
    model = quick(dtype=dtype, max_epochs=20)
    calibrate = {"method": "temperature", "ensemble": False, "cv": 2}
    if outer:
        estimator = make_pipeline(StandardScaler(), CalibratedClassifierCV(model, **calibrate))
    else:
        estimator = CalibratedClassifierCV(make_pipeline(StandardScaler(), model), **calibrate)
    estimator.fit(X, y)
    inner = estimator[-1] if outer else estimator
    inner = inner.calibrated_classifiers_[0].estimator
    plain = make_pipeline(estimator[0], inner) if outer else inner
    radii, uncalibrated = certificates(estimator, X), certificates(plain, X)
    assert (radii <= uncalibrated).all()
    # Some units of rounding more.
    unit = np.finfo(dtype).eps
    assert (radii >= uncalibrated - 1e4 * unit).all()
    assert (estimator.predict(X) == plain.predict(X)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("inverse", [1e-30, 1e-14, 1e-7, 1e-5, 1.0, 1e5, 1e12])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_temperature_that_makes_probabilities_tie_costs_its_radius(n_classes, inverse, dtype):
    """A softmax of differences below the unit roundoff is the same for all classes."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2))
    y = (X[:, 0] > 0).astype(int) + (n_classes == 3) * (X[:, 1] > 0.5)
    model = quick(hidden_layer_sizes=(), max_epochs=50, dtype=dtype).fit(X, y)
    estimator = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(X, y)
    scaling = estimator.calibrated_classifiers_[0].calibrators[0]
    scaling.beta_ = np.asarray(scaling.beta_).dtype.type(inverse)
    radii, labels = certificates(estimator, X), estimator.predict(X)
    for _ in range(50):
        steps = rng.normal(size=X.shape)
        steps *= (rng.choice([0.9, 0.99, 1 - 1e-9]) * radii / np.linalg.norm(steps, axis=1))[:, None]
        assert (estimator.predict(X + steps) == labels).all()
    ties = 32 * np.finfo(dtype).eps / inverse
    if ties > 100:
        assert (radii == 0).all()
    elif ties < 1e-6:
        assert (radii > 0).mean() > 0.9


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_temperature_pays_for_float32_in_the_neighbourhood(n_classes):
    """The softmax decides by logits in float32, where the classifier alone asks float64."""
    rng = np.random.default_rng(0)
    X = 1e4 * rng.normal(size=(300, 4))
    y = X[:, :n_classes].argmax(axis=1)
    model = quick(dtype="float32", max_epochs=20).fit(X, y)
    estimator = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(X, y)
    one, other = 1e4 * rng.normal(size=(2, 2000, 4))
    labels = model.predict(one)
    for _ in range(30):
        middle = (one + other) / 2
        same = (model.predict(middle) == labels)[:, None]
        # Rows as far from another class as a few errors of float32.
        closer = np.linalg.norm(one - other, axis=1, keepdims=True) > 0.05
        one, other = np.where(same & closer, middle, one), np.where(~same & closer, middle, other)
    plain, radii = model.certificates_(one), certificates(estimator, one)
    labels = estimator.predict(one)
    assert 0.05 < (radii == 0).mean() < 0.95
    network, certain = model.certified_network_, radii > 0
    others = network.margin_bounds > 0
    slope = network.precisions[0].from_length.slope[others].min() / network.margin_bounds.max()
    charge = slope * np.linalg.norm(one, axis=1)
    assert (plain - radii >= 0.9 * charge)[certain].all()
    step = other - one
    step *= ((1 - 1e-6) * radii / np.linalg.norm(step, axis=1))[:, None]
    assert (estimator.predict(one + step) == labels)[certain].all()


@pytest.mark.parametrize(
    "parameters",
    [
        {"method": "sigmoid", "ensemble": False},
        {"method": "isotonic", "ensemble": False},
        {"method": "temperature", "ensemble": True},
    ],
    ids=str,
)
def test_other_calibrations_are_refused(few_digits, parameters):
    estimator = CalibratedClassifierCV(quick(max_epochs=1), cv=2, **parameters).fit(*few_digits)
    with pytest.raises(
        TypeError, match=r"^CalibratedClassifierCV gives no certificates.*ensemble=False"
    ):
        certificates(estimator, few_digits[0])


def test_a_calibration_of_a_calibration_is_refused(few_digits):
    calibrate = {"method": "temperature", "ensemble": False, "cv": 2}
    estimator = CalibratedClassifierCV(quick(max_epochs=1), **calibrate)
    estimator = CalibratedClassifierCV(estimator, **calibrate).fit(*few_digits)
    with pytest.raises(TypeError, match=r"^CalibratedClassifierCV gives no certificates"):
        certificates(estimator, few_digits[0])


def test_a_frozen_classifier_gives_its_own_certificates(fitted, few_digits):
    np.testing.assert_array_equal(
        certificates(FrozenEstimator(fitted), few_digits[0]), certificates(fitted, few_digits[0])
    )


def test_an_inverse_temperature_that_overflows_is_refused(few_digits):
    X, y = few_digits
    calibrate = {"method": "temperature", "ensemble": False, "cv": 2}
    estimator = CalibratedClassifierCV(quick(max_epochs=1), **calibrate).fit(X, y)
    estimator.calibrated_classifiers_[0].calibrators[0].beta_ = np.float32(1e31)
    with pytest.raises(TypeError, match="inverse temperature lies between 0 and 1e12"):
        certificates(estimator, X)


# -- what computes otherwise than its class says ---------------------------------------------------


class OtherPredictions(LipschitzClassifier):
    def predict(self, X):
        return super().predict(-np.asarray(X))


class OtherScores(LipschitzClassifier):
    def decision_function(self, X):
        return -super().decision_function(X)


class OtherSearch(GridSearchCV):
    def predict(self, X):
        return super().predict(-np.asarray(X))


class Wrapper:
    """Delegates whatever it is asked to a search, but predicts otherwise."""

    def __init__(self, search):
        self.search = search

    def __getattr__(self, name):
        return getattr(self.search, name)

    def predict(self, X):
        return self.search.predict(-np.asarray(X))


@pytest.mark.parametrize("kind", [OtherPredictions, OtherScores])
def test_subclasses_that_predict_otherwise_give_no_certificates(few_digits, kind):
    clf = kind(hidden_layer_sizes=(), max_epochs=1, random_state=0).fit(*few_digits)
    for attempt in (clf.certificates_, lambda X: certificates(make_pipeline(clf), X)):
        with pytest.raises(TypeError, match=f"{kind.__name__} has another"):
            attempt(few_digits[0])


def test_searches_that_predict_otherwise_give_no_certificates(few_digits):
    other = OtherSearch(quick(max_epochs=1), {}, cv=2).fit(*few_digits)
    wrapped = Wrapper(GridSearchCV(quick(max_epochs=1), {}, cv=2).fit(*few_digits))
    for estimator in (other, wrapped):
        with pytest.raises(TypeError, match="gives no certificates"):
            certificates(estimator, few_digits[0])


@pytest.mark.parametrize("name", ["predict", "decision_function"])
def test_replaced_methods_give_no_certificates(few_digits, name):
    clf = quick(max_epochs=1).fit(*few_digits)
    pipeline = make_pipeline(StandardScaler(), quick(max_epochs=1)).fit(*few_digits)
    for estimator, message in ((clf, "has another"), (pipeline, "has a replaced")):
        setattr(estimator, name, lambda X: X)
        with pytest.raises(TypeError, match=f"{message} {name}"):
            certificates(estimator, few_digits[0])


@pytest.mark.parametrize("name", ["predict_with_radii", "network_rows"])
def test_replaced_ways_to_a_radius_give_no_certificates(few_digits, name):
    clf = quick(max_epochs=1).fit(*few_digits)
    setattr(clf, name, lambda X: X)
    for attempt in (certificates, predict_with_radii):
        with pytest.raises(TypeError, match=f"has another {name}"):
            attempt(clf, few_digits[0])
        with pytest.raises(TypeError, match=f"has another {name}"):
            attempt(make_pipeline(clf), few_digits[0])


def test_a_scaler_before_a_strided_circular_convolution_is_certified():
    def architecture(input_shape, n_outputs):
        circular = nn.Conv2d(1, 2, (1, 3), (1, 2), (0, 1), padding_mode="circular")
        return nn.Sequential(nn.Linear(8, 8), circular, nn.Flatten(), nn.Linear(8, n_outputs))

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 8)), np.arange(60) % 3
    model = LipschitzClassifier(input_shape=(1, 1, 8), architecture=architecture, max_epochs=2)
    assert certificates(make_pipeline(StandardScaler(), model).fit(X, y), X).shape == (60,)
