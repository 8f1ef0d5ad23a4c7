"""Certificates of classifiers that vote, under attack in raw units."""

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from sklip import LipschitzClassifier, certificates, nearest_rival, predict_with_radii

# Tables have columns that count far more than others.
pytestmark = pytest.mark.filterwarnings("ignore:The steps enlarge a change of column")


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_epochs": 10, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


def table(n_classes, n_samples=250):
    X, y = load_digits(return_X_y=True)
    X = X[:n_samples, 2:40] + np.random.default_rng(0).normal(size=(n_samples, 38))
    return X, np.array([f"class {label % n_classes}" for label in y[:n_samples]])


def voters(dtypes=("float32", "float64", "float32"), **parameters):
    return [
        ("plain", quick(dtype=dtypes[0], **parameters)),
        ("scaled", make_pipeline(StandardScaler(), quick(dtype=dtypes[1], tau=10.0, **parameters))),
        (
            "twice",
            make_pipeline(
                MinMaxScaler(), StandardScaler(), quick(dtype=dtypes[2], random_state=1, **parameters)
            ),
        ),
    ]


def steepest_steps(estimator, X, labels, rivals):
    """Toward the rivals along the gradient of what the vote weighs, by differences."""
    classes = estimator.classes_
    own, other = np.searchsorted(classes, labels), np.searchsorted(classes, rivals)
    members = estimator.estimators_
    weights = np.ones(len(members)) if estimator.weights is None else np.asarray(estimator.weights)
    rows = np.arange(len(X))

    def lead(Z):
        means = np.average([member.predict_proba(Z) for member in members], axis=0, weights=weights)
        return means[rows, own] - means[rows, other]

    steps = np.zeros(X.shape)
    for column in range(X.shape[1]):
        moved = X.copy()
        moved[:, column] += 1e-2
        steps[:, column] = -(lead(moved) - lead(X))
    return steps


@pytest.mark.parametrize("voting", ["soft", "hard"])
@pytest.mark.parametrize("weights", [None, (1, 3, 2), (0.7, 0.0, np.float32(0.4))], ids=str)
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("hidden", [(), (8,)], ids=["linear", "deep"])
def test_no_step_within_the_radius_of_a_vote_flips(n_classes, weights, voting, hidden):
    X, y = table(n_classes)
    estimator = VotingClassifier(voters(hidden_layer_sizes=hidden), voting=voting, weights=weights).fit(
        X, y
    )
    labels, radii = predict_with_radii(estimator, X)
    np.testing.assert_array_equal(labels, estimator.predict(X))
    # Three votes of four classes may all differ.
    assert (radii > 0).mean() > 0.8
    rivals = nearest_rival(estimator, X)
    assert (rivals != labels).all()
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=X.shape) for _ in range(5)]
    directions += [X[rng.permutation(len(X))] - X for _ in range(10)]
    directions += [steepest_steps(estimator, X, labels, rivals)]
    flipped = np.zeros(len(X), dtype=bool)
    for direction in directions:
        lengths = np.maximum(np.linalg.norm(direction, axis=1), 1e-300)
        unit = direction / lengths[:, None]
        for share in (0.5, 1 - 1e-9):
            assert (estimator.predict(X + unit * share * radii[:, None]) == labels).all()
        flipped |= estimator.predict(X + unit * 4 * radii[:, None]) != labels
    # Some way beyond there is another class: the radii are not merely small.
    assert flipped.mean() > 0.3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_a_vote_of_equal_members_has_the_radius_of_one(n_classes, dtype, voting):
    X, y = table(n_classes)
    members = [(name, quick(dtype=dtype)) for name in "abc"]
    estimator = VotingClassifier(members, voting=voting).fit(X, y)
    radii, one = certificates(estimator, X), certificates(estimator.estimators_[0], X)
    assert (radii <= one).all()
    # A probability moves by at least some tenth of a logit where it counts; three are averaged.
    np.testing.assert_allclose(radii, one, rtol=1e-6, atol=2e4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(
        nearest_rival(estimator, X), estimator.classes_[nearest_rival(estimator.estimators_[0], X)]
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weights", [None, [1.0, 4.0]])
def test_the_radius_of_a_mean_in_one_dimension_reaches_the_boundary(weights, dtype):
    """Every member's steepest way is the same there, and nothing is given away."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 1))
    y = (X[:, 0] > 0.1).astype(int)
    members = [
        ("a", quick(hidden_layer_sizes=(), dtype=dtype)),
        ("b", make_pipeline(StandardScaler(), quick(hidden_layer_sizes=(), tau=20.0, dtype=dtype))),
    ]
    estimator = VotingClassifier(members, voting="soft", weights=weights).fit(X, y)
    low, high = -3.0, 3.0
    (first,) = estimator.predict([[low]])
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if estimator.predict([[middle]])[0] == first else (low, middle)
    radii, distances = certificates(estimator, X), np.abs(X[:, 0] - low)
    allowed = 1e4 * np.finfo(dtype).eps
    assert (radii <= distances + allowed / 10).all()
    assert (radii >= distances * (1 - 1e-5) - allowed).all()


@pytest.mark.parametrize(("size", "tau"), [(1e4, 3.0), (1.0, 1e-4)], ids=["logits", "probabilities"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_mean_pays_for_float32_in_the_neighbourhood(n_classes, size, tau):
    """What float32 loses of logits, where each member alone asks float64; and of flat probabilities."""
    rng = np.random.default_rng(0)
    X = size * rng.normal(size=(300, 4))
    y = X[:, :n_classes].argmax(axis=1)
    model = quick(hidden_layer_sizes=(), dtype="float32", tau=tau)
    shifted = make_pipeline(StandardScaler(with_std=False), model)
    estimator = VotingClassifier([("a", model), ("b", shifted)], voting="soft").fit(X, y)
    weight = estimator.estimators_[0].to_torch()[-1].weight.double().numpy()
    weight = np.vstack([0 * weight, weight]) if n_classes == 2 else weight
    # Members that disagree by a logit or two, so that the mean decides where each of them is certain.
    gradient = weight[1] - weight[0]
    scaler = estimator.estimators_[1][0]
    scaler.mean_ = 2 * gradient / (gradient @ gradient)
    estimator.estimators_[1].steps[1] = ("model", estimator.estimators_[0])
    one, other = size * rng.normal(size=(2, 3000, 4))
    labels = estimator.predict(one)
    apart = estimator.predict(other) != labels
    one, other, labels = one[apart], other[apart], labels[apart]
    closest = 10 ** rng.uniform(-4, 1, size=(len(one), 1))
    for _ in range(40):
        middle = (one + other) / 2
        same = (estimator.predict(middle) == labels)[:, None]
        further = np.linalg.norm(one - other, axis=1, keepdims=True) > closest
        one, other = np.where(same & further, middle, one), np.where(~same & further, middle, other)
    found, radii = predict_with_radii(estimator, one)
    certain = radii > 0
    assert 0.02 < certain.mean() < 0.98
    assert (found == labels)[certain].all()
    rivals = nearest_rival(estimator, one)
    away = np.where(rivals == labels, (labels + 1) % n_classes, rivals)
    for toward in (weight[away] - weight[labels], other - one, rng.normal(size=one.shape)):
        step = toward * ((1 - 1e-6) * radii / np.linalg.norm(toward, axis=1))[:, None]
        assert (estimator.predict(one + step) == labels)[certain].all()


def test_many_rows_are_cut_into_pieces(monkeypatch):
    X, y = table(3)
    estimator = make_pipeline(StandardScaler(), VotingClassifier(voters(), voting="soft")).fit(X, y)
    whole = certificates(estimator, X)
    monkeypatch.setattr("sklip.certification.voting._VALUES_AT_ONCE", 200)
    np.testing.assert_array_equal(certificates(estimator, X), whole)


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_a_step_before_a_vote_is_a_step_before_each_member(voting):
    X, y = table(3)
    inside = VotingClassifier([("a", quick()), ("b", quick(random_state=1))], voting=voting)
    around = make_pipeline(StandardScaler(), inside).fit(X, y)
    members = [(name, make_pipeline(StandardScaler(), model)) for name, model in (inside.estimators)]
    expected = certificates(VotingClassifier(members, voting=voting).fit(X, y), X)
    assert expected.max() > 0
    np.testing.assert_array_equal(certificates(around, X), expected)


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_fixed_columns_reach_each_member_even_if_they_can_be_read_but_once(voting):
    X, y = table(3)
    estimator = VotingClassifier(voters(), voting=voting).fit(X, y)
    expected = certificates(estimator, X, fixed_columns=range(30))
    radii = certificates(estimator, X, fixed_columns=(column for column in range(30)))
    np.testing.assert_array_equal(radii, expected)
    assert (radii >= certificates(estimator, X)).all()
    assert np.median(radii) > 1.05 * np.median(certificates(estimator, X))


def test_a_member_that_is_dropped_takes_its_weight_along():
    X, y = table(3)
    members = [("a", quick()), ("b", "drop"), ("c", quick(random_state=1))]
    dropped = VotingClassifier(members, voting="soft", weights=[1, 100, 2]).fit(X, y)
    kept = VotingClassifier([members[0], members[2]], voting="soft", weights=[1, 2]).fit(X, y)
    np.testing.assert_array_equal(certificates(dropped, X), certificates(kept, X))


def test_a_majority_outlasts_a_member_that_changes_its_mind():
    """Of three equal votes two stay, whatever the third does: the second largest radius."""
    X, y = table(2)
    estimator = VotingClassifier(voters()).fit(X, y)
    members = [predict_with_radii(member, X) for member in estimator.estimators_]
    votes, radii = (np.stack(each, axis=1) for each in zip(*members, strict=True))
    agreed = (votes == votes[:, :1]).all(axis=1)
    assert 0.2 < agreed.mean() < 1
    expected = np.where(
        agreed,
        np.sort(radii, axis=1)[:, 1],
        # The smaller one of the two that agree; the vote of the third counts for the others.
        np.where(votes == np.round(votes.mean(axis=1))[:, None], radii, np.inf).min(axis=1),
    )
    np.testing.assert_array_equal(certificates(estimator, X), expected)


def test_a_majority_of_thresholds_and_temperatures_is_certified():
    X, y = table(2)
    members = [
        ("threshold", FixedThresholdClassifier(quick(), threshold=0.4, pos_label=1)),
        ("temperature", CalibratedClassifierCV(quick(), method="temperature", ensemble=False, cv=2)),
        ("search", GridSearchCV(quick(), {"tau": [1.0, 5.0]}, cv=2)),
    ]
    estimator = VotingClassifier(members).fit(X, y)
    labels, radii = predict_with_radii(estimator, X)
    np.testing.assert_array_equal(labels, estimator.predict(X))
    assert (radii > 0).mean() > 0.9
    rng = np.random.default_rng(0)
    for _ in range(10):
        step = X[rng.permutation(len(X))] - X + 1e-6 * rng.normal(size=X.shape)
        step *= ((1 - 1e-9) * radii / np.linalg.norm(step, axis=1))[:, None]
        assert (estimator.predict(X + step) == labels).all()


def test_a_tie_of_votes_has_radius_0():
    X, y = table(2)
    estimator = VotingClassifier([("a", quick()), ("b", quick(random_state=5, max_epochs=1))])
    estimator.fit(X, y)
    one, other = (member.predict(X) for member in estimator.estimators_)
    assert (one != other).any()
    assert (certificates(estimator, X)[one != other] == 0).all()
    labels, _ = predict_with_radii(estimator, X)
    np.testing.assert_array_equal(labels, estimator.predict(X))
    assert (nearest_rival(estimator, X) != labels).all()


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_members_without_certificates_are_refused_by_name(voting):
    X, y = table(2)
    members = [("a", quick(max_epochs=1)), ("b", LogisticRegression(max_iter=1000))]
    estimator = VotingClassifier(members, voting=voting).fit(X / 16, y)
    with pytest.raises(TypeError, match=r"^LogisticRegression gives no certificates"):
        certificates(estimator, X / 16)


def test_probabilities_that_are_no_plain_softmax_are_refused():
    X, y = table(2)
    calibrated = CalibratedClassifierCV(quick(), method="temperature", ensemble=False, cv=2)
    for member in (calibrated, VotingClassifier([("b", quick(max_epochs=1))], voting="soft")):
        estimator = VotingClassifier([("a", member)], voting="soft").fit(X, y)
        with pytest.raises(TypeError, match="gives no certificates"):
            certificates(estimator, X)


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_weights_at_the_ends_of_their_range_are_taken(voting):
    X, y = table(2)
    members = [("a", quick(max_epochs=1)), ("b", quick(max_epochs=1, random_state=1))]
    estimator = VotingClassifier(members, voting=voting, weights=[1e-9, 1e9]).fit(X, y)
    labels, radii = predict_with_radii(estimator, X)
    np.testing.assert_array_equal(labels, estimator.predict(X))
    expected = certificates(estimator.estimators_[1], X)
    np.testing.assert_allclose(radii, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "weights",
    [
        [1, -0.5],
        [1e-12, 1.0],
        [0.9e-9, 1.0],
        [1.0, 1.1e9],
        [1.0, np.inf],
        [np.nan, 1.0],
        [0, 0],
    ],
)
def test_weights_that_are_negative_or_extreme_are_refused(weights):
    X, y = table(2)
    members = [("a", quick(max_epochs=1)), ("b", quick(max_epochs=1))]
    estimator = VotingClassifier(members, voting="soft", weights=weights).fit(X, y)
    with pytest.raises(TypeError, match="unless its weights"):
        certificates(estimator, X)


@pytest.mark.parametrize("tau", [0.0, np.nan, 1e30])
def test_factors_of_logits_out_of_range_are_refused(tau):
    X, y = table(2)
    estimator = VotingClassifier([("a", quick(max_epochs=1))], voting="soft").fit(X, y)
    estimator.estimators_[0].tau_ = tau
    with pytest.raises(TypeError, match="tau_ must lie between"):
        certificates(estimator, X)


def test_a_vote_that_is_not_fitted_is_refused_as_such():
    with pytest.raises(NotFittedError):
        certificates(VotingClassifier([("a", quick())]), table(2)[0])
