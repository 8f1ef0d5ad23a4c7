"""Labels are those of the exact function of the stored weights, whichever precision finds them."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from sklip import CertifiedNetwork, LipschitzClassifier, layers
from sklip.certified.decisions import Decisions, with_winners
from sklip.certified.direct_sums import direct_forward

pytestmark = pytest.mark.usefixtures("seeded_torch")

N_FEATURES, N_ROWS = 6, 1000


def linear_network():
    return nn.Sequential(nn.Linear(N_FEATURES, 3))


def sorting_network():
    return nn.Sequential(
        nn.Linear(N_FEATURES, 8),
        layers.GroupSort2(),
        nn.Linear(8, 6),
        layers.GroupSort2(),
        nn.Linear(6, 3),
    )


def binary_network():
    return nn.Sequential(nn.Linear(N_FEATURES, 4), layers.GroupSort2(), nn.Linear(4, 1))


NETWORKS = [linear_network, sorting_network, binary_network]


def exact_logits(network, row):
    """The function of the stored weights in fractions."""
    values = [Fraction(float(value)) for value in row]
    for layer in network:
        if isinstance(layer, layers.GroupSort2):
            pairs = zip(values[::2], values[1::2], strict=True)
            values = [value for pair in pairs for value in sorted(pair)]
            continue
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        values = [
            sum(Fraction(w) * value for w, value in zip(line, values, strict=True)) + Fraction(b)
            for line, b in zip(weight, bias, strict=True)
        ]
    return values


def exact_margins(network, row):
    """The exact class, and its margins over the others."""
    logits = exact_logits(network, row)
    if len(logits) == 1:
        return int(logits[0] > 0), [abs(logits[0])]
    code = max(range(len(logits)), key=lambda j: logits[j])
    return code, [logits[code] - logit for j, logit in enumerate(logits) if j != code]


def rows_between_classes(certified, rng, distance):
    """Rows of length about 1e4, at most `distance` times it from another class, by bisection."""
    rows = 1e4 * rng.normal(size=(8 * N_ROWS, N_FEATURES))
    one, other = rows[::2], rows[1::2]
    codes = certified.predict(one)
    differ = codes != certified.predict(other)
    one, other, codes = (values[differ][:N_ROWS] for values in (one, other, codes))
    for _ in range(60):
        middle = (one + other) / 2
        same = (certified.predict(middle) == codes)[:, None]
        closer = np.linalg.norm(one - other, axis=1, keepdims=True) > distance * 1e4
        one, other = np.where(same & closer, middle, one), np.where(~same & closer, middle, other)
    assert len(one) == N_ROWS
    return one


def downhill(network, rows, codes):
    """Unit vectors along which the smallest margin falls fastest."""
    x = torch.from_numpy(rows).requires_grad_()
    logits = network.double()(x)
    if logits.shape[1] == 1:
        margins = torch.where(torch.from_numpy(codes)[:, None] > 0, logits, -logits)
    else:
        own = logits.gather(1, torch.from_numpy(codes)[:, None])
        margins = (own - logits).scatter(1, torch.from_numpy(codes)[:, None], torch.inf)
    margins.min(dim=1).values.sum().backward()
    network.float()
    return -(x.grad / x.grad.norm(dim=1, keepdim=True)).numpy()


@pytest.mark.parametrize("build", NETWORKS)
def test_the_class_is_that_of_the_exact_function_where_float32_is_wrong(build):
    network = build()
    certified = CertifiedNetwork.prove(network, (N_FEATURES,))
    rows = rows_between_classes(certified, np.random.default_rng(0), 1e-9)
    codes = certified.predict(rows)
    for row, code in zip(rows, codes, strict=True):
        exact, margins = exact_margins(network, row)
        # Far above what float64 loses here, and far below what float32 does.
        assert min(margins) < 1e-9 * 1e5
        if min(margins) > 1e-10:
            assert code == exact
    single = direct_forward(network, torch.from_numpy(rows).float(), certified.arithmetic)[0]
    wrong = (single[:, 0] > 0).int() if single.shape[1] == 1 else single.argmax(dim=1)
    assert (wrong.numpy() != codes).mean() > 0.1


@pytest.mark.parametrize("distance", [1e-2, 1e-6, 1e-10])
@pytest.mark.parametrize("build", NETWORKS)
def test_nothing_flips_just_inside_the_radius(build, distance):
    network = build()
    certified = CertifiedNetwork.prove(network, (N_FEATURES,))
    rows = rows_between_classes(certified, np.random.default_rng(0), distance)
    codes, radii = certified.predict_with_radii(rows)
    assert (radii > 0).mean() > 0.9
    moved = rows + downhill(network, rows, codes) * (radii * (1 - 1e-9))[:, None]
    # The sum is rounded: where it ends outside, it says nothing.
    squares = ((moved - rows) ** 2).sum(axis=1)
    inside = squares * (1 + 2.0**-48) < radii**2
    assert inside.mean() > 0.4
    np.testing.assert_array_equal(certified.predict(moved)[inside], codes[inside])
    for row, code in zip(moved[inside], codes[inside], strict=True):
        assert exact_margins(network, row)[0] == code


def test_radii_of_a_linear_network_are_tight():
    network = linear_network()
    certified = CertifiedNetwork.prove(network, (N_FEATURES,))
    rows = rows_between_classes(certified, np.random.default_rng(0), 1e-3)
    codes, radii = certified.predict_with_radii(rows)
    moved = rows + downhill(network, rows, codes) * (radii * 1.011)[:, None]
    # The steepest class need not be the nearest one.
    assert (certified.predict(moved) != codes).mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("distance", [1e-2, 1e-6, 1e-10, 1e-14])
def test_a_row_gets_the_same_class_in_any_company(distance):
    certified = CertifiedNetwork.prove(sorting_network(), (N_FEATURES,))
    rng = np.random.default_rng(0)
    rows = rows_between_classes(certified, rng, distance)
    together = certified.predict(rows)
    np.testing.assert_array_equal(certified.predict_with_radii(rows)[0], together)
    np.testing.assert_array_equal(certified.logits(rows).argmax(axis=1), together)
    order = rng.permutation(N_ROWS)
    for size in (1, 7, 64):
        parts = [certified.predict(rows[some]) for some in np.split(order, range(size, N_ROWS, size))]
        np.testing.assert_array_equal(np.concatenate(parts), together[order])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ties_certify_nothing(dtype):
    network = linear_network()
    with torch.no_grad():
        network[0].weight[1].copy_(network[0].weight[0])
        network[0].bias[1].copy_(network[0].bias[0])
        network[0].bias[2] = -1e6
    codes, radii = CertifiedNetwork.prove(network, (N_FEATURES,), dtype).predict_with_radii(
        np.random.default_rng(0).normal(size=(50, N_FEATURES))
    )
    assert (radii == 0).all()
    assert set(codes) <= {0, 1}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_certify_nothing(value):
    rows = np.zeros((3, N_FEATURES))
    rows[1, 2] = value
    certified = CertifiedNetwork.prove(sorting_network(), (N_FEATURES,))
    radii = certified.radii(rows)
    np.testing.assert_array_equal(radii > 0, [True, False, True])


def test_an_empty_network_is_the_identity():
    certified = CertifiedNetwork.prove(nn.Sequential(), (3,))
    codes, radii = certified.predict_with_radii([[1.0, 2.0, 3.0]])
    assert codes == 2
    np.testing.assert_allclose(radii, 0.5**0.5, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_that_overflow_get_the_same_class_in_any_company(dtype):
    rng = np.random.default_rng(0)
    network = nn.Sequential(nn.Linear(7, 3))
    with torch.no_grad():
        network[0].weight.mul_(30)
    certified = CertifiedNetwork.prove(network, (7,), dtype)
    rows = rng.uniform(-1, 1, size=(200, 7)) * 1.5e308
    together = certified.predict(rows)
    assert not np.isfinite(certified.logits(rows)).all()
    np.testing.assert_array_equal([certified.predict(row[None])[0] for row in rows], together)
    assert (certified.radii(rows) == 0).all()


def test_rows_that_are_no_real_numbers_are_refused():
    certified = CertifiedNetwork.prove(linear_network(), (N_FEATURES,))
    with pytest.raises(TypeError, match="X must hold real numbers, got complex128"):
        certified.predict(np.zeros((1, N_FEATURES), dtype=complex))


def test_digits_that_float32_does_not_hold_decide():
    network = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(2))
    certified = CertifiedNetwork.prove(network, (2,))
    rows = np.array([[1.0, 1.0 + 1e-12], [1.0 + 1e-12, 1.0]])
    codes, radii = certified.predict_with_radii(rows)
    np.testing.assert_array_equal(codes, [1, 0])
    np.testing.assert_allclose(radii, 1e-12 / 2**0.5, rtol=1e-2)
    assert (radii < 1e-12 / 2**0.5).all()
    # Whole numbers beyond float32's, too.
    np.testing.assert_array_equal(certified.predict(np.array([[2**24, 2**24 + 1]])), [1])


def test_rows_on_which_float32_overflows_are_certified_in_float64():
    network = nn.Sequential(nn.Linear(4, 4), layers.GroupSort2(), nn.Linear(4, 2))
    rows = 1e30 * np.random.default_rng(0).normal(size=(20, 4))
    single = CertifiedNetwork.prove(network, (4,))
    codes, radii = single.predict_with_radii(rows)
    expected_codes, expected = single.in_float64().predict_with_radii(rows)
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_array_equal(radii, expected)
    assert np.median(radii) > 1e28


def test_radii_lose_no_more_than_a_hundredth_to_float32():
    """Rows far from the origin: their rounding in float32 is about as large as their margins."""
    rng = np.random.default_rng(0)
    certified = CertifiedNetwork.prove(sorting_network(), (N_FEATURES,))
    rows = 1e4 + rng.normal(size=(500, N_FEATURES)) * 10.0 ** rng.uniform(-3, 4, size=(500, 1))
    rows = np.concatenate([rows, rows_between_classes(certified, rng, 1e-4)])
    radii, wide = certified.radii(rows), certified.in_float64().radii(rows)
    assert (wide > 0).all()
    assert (radii >= 0.99 * wide).all()
    assert (radii <= wide * (1 + 1e-3)).all()
    # Some were found in float32, which loses some of it.
    assert 0.05 < (radii < wide * (1 - 1e-6)).mean() < 0.95


# -- scores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["abc", "ab"])
def test_scores_of_an_estimator_agree_with_its_labels(labels):
    rng = np.random.default_rng(0)
    X = 1e4 * rng.normal(size=(300, N_FEATURES))
    y = np.array(list(labels))[X[:, : len(labels)].argmax(axis=1)]
    clf = LipschitzClassifier(
        hidden_layer_sizes=(8,), dtype="float32", max_epochs=20, random_state=0
    ).fit(X, y)
    rows = rows_between_classes(clf.certified_network_, rng, 1e-10)
    predicted, scores, probabilities = (
        method(rows) for method in (clf.predict, clf.decision_function, clf.predict_proba)
    )
    single = direct_forward(
        clf.to_torch(), torch.from_numpy(rows).float(), clf.certified_network_.arithmetic
    )[0].numpy()
    if len(labels) == 2:
        positions = (scores > 0).astype(int)
        assert ((single[:, 0] > 0) != (scores > 0)).any()
    else:
        positions = scores.argmax(axis=1)
        assert (single.argmax(axis=1) != positions).any()
    np.testing.assert_array_equal(clf.classes_[positions], predicted)
    np.testing.assert_array_equal(clf.classes_[probabilities.argmax(axis=1)], predicted)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert scores.dtype == probabilities.dtype == np.float32
    np.testing.assert_allclose(scores, single if len(labels) > 2 else single[:, 0], atol=1e-6 * 1e5)


def test_probabilities_of_huge_rows_are_numbers():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 4))
    clf = LipschitzClassifier(hidden_layer_sizes=(4,), dtype="float32", max_epochs=2, random_state=0)
    clf.fit(X, X[:, :3].argmax(axis=1))
    rows = rng.uniform(-1, 1, size=(50, 4)) * 3e38
    np.testing.assert_array_equal(clf.predict_proba(rows).argmax(axis=1), clf.predict(rows))
    assert np.median(clf.certificates_(rows)) > 1e37


def decisions_of(logits):
    logits = np.array(logits, dtype=np.float64)
    return Decisions(logits, np.zeros_like(logits), np.ones(len(logits)))


def test_rounded_logits_keep_the_order_of_the_first():
    tie = 1 + 1e-12
    logits = [
        *([tie, 1.0, 0.5], [1.0, tie, tie - 1e-13], [-tie, -1.0, -tie], [1e-60, 2e-60, 0.0]),
        *([-1e-60, -2e-60, -1.0], [1e300, 2e300, 0.0], [-1e300, -2e300, -3e300], [3.0, 2.0, 1.0]),
        *([3.4028234e38, 3.4028235e38, 0.0], [0.0, 0.0, 0.0]),
    ]
    decided = decisions_of(logits)
    rounded = decided.logits_in("float32")
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(rounded.argmax(axis=1), decided.codes)
    assert np.isfinite(rounded).all()
    np.testing.assert_array_equal(rounded[7], [3.0, 2.0, 1.0])
    np.testing.assert_array_equal(rounded[1], np.float32([1.0, 1 + 2.0**-23, 1.0]))


def test_a_single_rounded_logit_keeps_its_sign():
    rounded = decisions_of([[1e-60], [-1e-60], [0.0], [2.0], [1e300]]).logits_in("float32")
    np.testing.assert_array_equal(rounded[:, 0] > 0, [True, False, False, True, True])
    assert np.isfinite(rounded).all()


def test_scores_that_are_not_finite_are_left_alone():
    scores = np.array([[np.nan, 1.0], [np.inf, np.inf]])
    np.testing.assert_array_equal(with_winners(scores.copy(), np.array([1, 1])), scores)


# -- lengths on the way ------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_measured_lengths_are_upper_bounds_and_close(scale, dtype):
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), layers.GroupSort2(), nn.Flatten(), nn.Linear(256, 3))
    ).to(dtype)
    with torch.no_grad():
        network[0].bias.zero_()
    name = str(dtype).removeprefix("torch.")
    precision = CertifiedNetwork.prove(network, (1, 8, 8), name).precisions[0]
    assert precision.measured == ({0, 3} if name == "float32" else {0})
    x = scale * torch.randn(300, 1, 8, 8, dtype=dtype)
    _, lengths = direct_forward(network, x, precision.arithmetic, {0, 3})
    assert not lengths[:, 1:3].any()
    inputs = {0: x, 3: network[:3](x).detach()}
    for layer, values in inputs.items():
        exact = np.linalg.norm(values.flatten(1).double().numpy(), axis=1)
        found = lengths[:, layer].numpy()
        # The forward pass sums in another order.
        assert (found >= exact * (1 - 1e-6)).all()
        assert (found <= exact * (1 + 1e-4) + 256 * torch.finfo(dtype).tiny ** 0.5).all()


@pytest.mark.parametrize("make", [linear_network, sorting_network], ids=lambda make: make.__name__)
def test_errors_of_any_class_bound_those_of_all_its_differences(make):
    network = make().float().requires_grad_(False)
    certified = CertifiedNetwork.prove(network, (N_FEATURES,), "float32")
    rows = 100 * np.random.default_rng(0).normal(size=(100, N_FEATURES)).astype(np.float32)
    decided = certified.decisions(rows)
    worst = 0.0
    for code in range(3):
        assert decided.pairs_of(code).tolist() == [code] * 100
        errors = decided.errors_of(code)
        for row, logits, bound in zip(rows, decided.logits, errors, strict=True):
            exact = exact_logits(network, row)
            for other in range(3):
                difference = Fraction(float(logits[code])) - Fraction(float(logits[other]))
                error = abs(difference - (exact[code] - exact[other]))
                assert error <= Fraction(float(bound[other]))
                worst = max(worst, float(error) / max(float(bound[other]), 1e-300))
    # Bounds of thousands of sums are kept by a few units, and no better.
    assert worst > 1e-3


def test_a_single_logit_has_one_error_and_one_bound_for_both_classes():
    certified = CertifiedNetwork.prove(binary_network(), (N_FEATURES,), "float32")
    decided = certified.decisions(np.random.default_rng(0).normal(size=(20, N_FEATURES)))
    for code in (None, 0, 1):
        assert not decided.pairs_of(code).any()
        np.testing.assert_array_equal(decided.errors_of(code), decided.errors)
        budget = certified.budget(decided, code=code)
        np.testing.assert_array_equal(
            budget.radii(decided.logits), certified.budget(decided).radii(decided.logits)
        )


def test_few_rows_are_decided_at_once_where_classes_are_many(monkeypatch):
    monkeypatch.setattr("sklip.rows.VALUES_AT_ONCE", 3 * 16 * 4)
    certified = CertifiedNetwork.prove(nn.Linear(2, 4), (2,))
    parts = certified._decided(np.ones((10, 2)), 1.0)
    assert [len(part.logits) for part in parts] == [3, 3, 3, 1]
