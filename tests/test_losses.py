"""Losses against plain loops in float64 that follow the formulas of the docstrings."""

import math

import numpy as np
import pytest
import torch

from sklip.losses import (
    BinaryHingeLoss,
    BinaryHKRLoss,
    BinaryKRLoss,
    BinaryTauCrossEntropyLoss,
    CategoricalHingeLoss,
    CertifiedRadiusLoss,
    MulticlassHingeLoss,
    MulticlassHKRLoss,
    MulticlassKRLoss,
    MulticlassLogSumExpHKRLoss,
    MulticlassSoftHKRLoss,
    TauCrossEntropyLoss,
)

# -- oracles: lists of floats in, a float out ------------------------------------------------


def mean(values, weights):
    """Weighted mean; a mean over nothing counts 0."""
    total = sum(weights)
    return sum(w * v for v, w in zip(values, weights, strict=True)) / total if total else 0.0


def kr_of(scores, inside, weights):
    means = []
    for wanted in (True, False):
        rows = [i for i in range(len(scores)) if inside[i] is wanted]
        means.append(mean([scores[i] for i in rows], [weights[i] for i in rows]))
    return means[0] - means[1]


def hkr_of(kr, hinge, alpha):
    return hinge if alpha == math.inf else alpha * hinge - kr


def multiclass_kr(f, y, w):
    n_classes = len(f[0])
    terms = [kr_of([row[c] for row in f], [label == c for label in y], w) for c in range(n_classes)]
    return sum(terms) / n_classes


def multiclass_hinge(f, y, w, margin):
    losses = []
    for row, label in zip(f, y, strict=True):
        total = 0.0
        for c, score in enumerate(row):
            if c == label:
                total += (len(row) - 1) * max(0.0, margin / 2 - score)
            else:
                total += max(0.0, margin / 2 + score)
        losses.append(total / len(row))
    return mean(losses, w)


def cross_entropy(f, y, w, tau, offset=0.0, annealing=0.0):
    losses = []
    for row, label in zip(f, y, strict=True):
        moved = [score - offset * (c == label) for c, score in enumerate(row)]
        top = max(tau * score for score in moved)
        log_sum = top + math.log(sum(math.exp(tau * score - top) for score in moved))
        log_p = tau * moved[label] - log_sum
        losses.append((1 - math.exp(log_p)) ** annealing * -log_p / tau)
    return mean(losses, w)


def with_radius(plain, margins, w, weight, radius):
    return plain - weight * mean([min(max(margin, 0.0), radius) for margin in margins], w)


def true_margins(f, y):
    for row, label in zip(f, y, strict=True):
        yield (row[label] - max(s for c, s in enumerate(row) if c != label)) / math.sqrt(2)


def categorical_hinge(f, y, w, margin):
    losses = []
    for row, label in zip(f, y, strict=True):
        rival = max(score for c, score in enumerate(row) if c != label)
        losses.append(max(0.0, margin - (row[label] - rival)))
    return mean(losses, w)


def log_sum_exp_hkr(f, y, w, margin, alpha, penalty):
    krs, hinges = [], []
    for row, label in zip(f, y, strict=True):
        others = [score for c, score in enumerate(row) if c != label]
        if len(others) == 1:
            soft = others[0]
        else:
            t = math.log(len(others)) / (penalty * margin / 2)
            top = max(others)
            soft = top + math.log(sum(math.exp(t * (score - top)) for score in others)) / t
        krs.append(row[label] - soft)
        hinges.append(max(0.0, margin / 2 - row[label]) + max(0.0, margin / 2 + soft))
    return hkr_of(mean(krs, w), mean(hinges, w), alpha)


def soft_hkr(f, y, w, margin, alpha, temperature):
    krs, hinges = [], []
    for row, label in zip(f, y, strict=True):
        top = max(score for c, score in enumerate(row) if c != label)
        powers = [math.exp(temperature * (score - top)) for score in row]
        total = sum(power for c, power in enumerate(powers) if c != label)
        kr = hinge = 0.0
        for c, score in enumerate(row):
            share, sign = (1.0, 1.0) if c == label else (powers[c] / total, -1.0)
            kr += share * sign * score
            hinge += share * max(0.0, margin / 2 - sign * score)
        krs.append(kr)
        hinges.append(hinge)
    return hkr_of(mean(krs, w), mean(hinges, w), alpha)


def binary_cross_entropy(f, y, w, tau, offset=0.0, annealing=0.0):
    losses = []
    for score, label in zip(f, y, strict=True):
        signed = (score if label else -score) - offset
        each = math.log1p(math.exp(-abs(tau * signed))) + max(0.0, -tau * signed)
        losses.append((1 - math.exp(-each)) ** annealing * each / tau)
    return mean(losses, w)


def binary_kr(f, y, w):
    return kr_of(f, [label == 1 for label in y], w)


def binary_hinge(f, y, w, margin):
    losses = [
        max(0.0, margin / 2 - (score if label else -score)) for score, label in zip(f, y, strict=True)
    ]
    return mean(losses, w)


# -- the losses under test, each with its oracle and the size of its values --------------------

# The margin is exact in float32, in which Soft HKR's running mean starts.
MARGIN, TAU, PENALTY = 0.625, 3.0, 1.5


def multiclass_losses():
    yield "tau", TauCrossEntropyLoss(TAU), lambda f, y, w: cross_entropy(f, y, w, TAU), 0.0
    yield (
        "offset",
        TauCrossEntropyLoss(TAU, 0.5),
        lambda f, y, w: cross_entropy(f, y, w, TAU, 0.5),
        1.0,
    )
    yield (
        "annealed",
        TauCrossEntropyLoss(TAU, 0.5, 5.0),
        lambda f, y, w: cross_entropy(f, y, w, TAU, 0.5, 5.0),
        5.0,
    )
    yield (
        "radius",
        CertifiedRadiusLoss(TauCrossEntropyLoss(TAU), 0.5, 0.7),
        lambda f, y, w: with_radius(cross_entropy(f, y, w, TAU), true_margins(f, y), w, 0.5, 0.7),
        0.5,
    )
    yield "kr", MulticlassKRLoss(), lambda f, y, w: -multiclass_kr(f, y, w), 0.0
    yield "hinge", MulticlassHingeLoss(MARGIN), lambda f, y, w: multiclass_hinge(f, y, w, MARGIN), 1.0
    yield (
        "categorical_hinge",
        CategoricalHingeLoss(MARGIN),
        lambda f, y, w: categorical_hinge(f, y, w, MARGIN),
        1.0,
    )
    for alpha in (0.0, 7.0, math.inf):
        yield (
            f"hkr_{alpha}",
            MulticlassHKRLoss(MARGIN, alpha),
            lambda f, y, w, alpha=alpha: hkr_of(
                multiclass_kr(f, y, w), multiclass_hinge(f, y, w, MARGIN), alpha
            ),
            alpha,
        )
        yield (
            f"log_sum_exp_{alpha}",
            MulticlassLogSumExpHKRLoss(MARGIN, alpha, PENALTY),
            lambda f, y, w, alpha=alpha: log_sum_exp_hkr(f, y, w, MARGIN, alpha, PENALTY),
            alpha,
        )
        # In evaluation mode the running mean is still min_margin, so T is T_0.
        yield (
            f"soft_{alpha}",
            MulticlassSoftHKRLoss(MARGIN, alpha, temperature=2.0).eval(),
            lambda f, y, w, alpha=alpha: soft_hkr(f, y, w, MARGIN, alpha, 2.0),
            alpha,
        )


def binary_losses():
    yield (
        "tau",
        BinaryTauCrossEntropyLoss(TAU),
        lambda f, y, w: binary_cross_entropy(f, y, w, TAU),
        0.0,
    )
    yield (
        "annealed",
        BinaryTauCrossEntropyLoss(TAU, 0.5, 5.0),
        lambda f, y, w: binary_cross_entropy(f, y, w, TAU, 0.5, 5.0),
        5.0,
    )
    yield (
        "radius",
        CertifiedRadiusLoss(BinaryTauCrossEntropyLoss(TAU), 0.5, 0.7),
        lambda f, y, w: with_radius(
            binary_cross_entropy(f, y, w, TAU),
            [score if label else -score for score, label in zip(f, y, strict=True)],
            w,
            0.5,
            0.7,
        ),
        0.5,
    )
    yield "kr", BinaryKRLoss(), lambda f, y, w: -binary_kr(f, y, w), 0.0
    yield "hinge", BinaryHingeLoss(MARGIN), lambda f, y, w: binary_hinge(f, y, w, MARGIN), 1.0
    for alpha in (0.0, 7.0, math.inf):
        yield (
            f"hkr_{alpha}",
            BinaryHKRLoss(MARGIN, alpha),
            lambda f, y, w, alpha=alpha: hkr_of(
                binary_kr(f, y, w), binary_hinge(f, y, w, MARGIN), alpha
            ),
            alpha,
        )


MULTICLASS = [pytest.param(*rest, id=name) for name, *rest in multiclass_losses()]
BINARY = [pytest.param(*rest, id=name) for name, *rest in binary_losses()]

# (targets, number of classes)
MULTICLASS_BATCHES = {
    "all_classes": ([0, 1, 2, 3, 0, 2, 2, 1, 3, 0], 4),
    "missing_classes": ([1, 3, 3, 1, 1], 5),
    "one_sample": ([2], 3),
    "one_class": ([1, 1, 1, 1], 3),
    "two_classes": ([0, 1, 1, 0, 1, 1], 2),
}
BINARY_BATCHES = {
    "both_classes": [0, 1, 1, 0, 1, 1, 0],
    "only_zeros": [0, 0, 0],
    "only_ones": [1, 1, 1],
    "one_sample": [1],
}
WEIGHTS = ["none", "random", "some_zero"]
DTYPES = [torch.float32, torch.float64]


def draw_logits(shape, dtype, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def draw_weights(kind, n, dtype):
    if kind == "none":
        return None
    weights = np.random.default_rng(1).uniform(0.5, 2.0, n)
    if kind == "some_zero" and n > 1:
        weights[::2] = 0.0
    return torch.from_numpy(weights).to(dtype)


def tolerance(logits, alpha, dtype):
    """Absolute error of a loss.

    Every chain of operations, over at most 10 samples and 5 classes, is shorter than 64, and no
    intermediate value exceeds (1 + alpha) n_classes (max|f| + margin + log(n_classes) / tau).
    """
    n_classes = logits.shape[1] if logits.ndim == 2 else 2
    size = float(logits.abs().max()) + MARGIN + math.log(n_classes + 1) / TAU
    factor = 1 + (0.0 if alpha == math.inf else alpha)
    return 64 * torch.finfo(dtype).eps * factor * n_classes * size


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("batch", MULTICLASS_BATCHES)
@pytest.mark.parametrize(("loss", "oracle", "alpha"), MULTICLASS)
def test_multiclass_loss_is_its_formula(loss, oracle, alpha, batch, weighting, dtype):
    targets, n_classes = MULTICLASS_BATCHES[batch]
    logits = draw_logits((len(targets), n_classes), dtype)
    weights = draw_weights(weighting, len(targets), dtype)
    got = loss(logits, torch.tensor(targets), weights)
    listed = [1.0] * len(targets) if weights is None else weights.tolist()
    expected = oracle(logits.tolist(), targets, listed)
    assert got.shape == ()
    assert got.dtype == dtype
    assert float(got) == pytest.approx(expected, rel=0, abs=tolerance(logits, alpha, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("batch", BINARY_BATCHES)
@pytest.mark.parametrize(("loss", "oracle", "alpha"), BINARY)
def test_binary_loss_is_its_formula(loss, oracle, alpha, batch, weighting, dtype):
    targets = BINARY_BATCHES[batch]
    logits = draw_logits((len(targets),), dtype)
    weights = draw_weights(weighting, len(targets), dtype)
    got = loss(logits, torch.tensor(targets), weights)
    listed = [1.0] * len(targets) if weights is None else weights.tolist()
    expected = oracle(logits.tolist(), targets, listed)
    assert got.shape == ()
    assert got.dtype == dtype
    assert float(got) == pytest.approx(expected, rel=0, abs=tolerance(logits, alpha, dtype))


@pytest.mark.parametrize(("loss", "oracle", "alpha"), BINARY)
def test_binary_loss_takes_a_column_as_well(loss, oracle, alpha):
    logits = draw_logits((7,), torch.float64)
    targets = torch.tensor(BINARY_BATCHES["both_classes"])
    assert float(loss(logits, targets)) == float(loss(logits.unsqueeze(1), targets))


@pytest.mark.parametrize("shape", [(4, 2), (4, 1, 1), ()])
@pytest.mark.parametrize(("loss", "oracle", "alpha"), BINARY)
def test_binary_loss_refuses_other_shapes(loss, oracle, alpha, shape):
    with pytest.raises(ValueError, match=r"shape \(n,\) or \(n, 1\)"):
        loss(torch.zeros(shape), torch.zeros(shape[:1] or 1, dtype=torch.long))


# -- weights -----------------------------------------------------------------------------------

# Training mode too: what it remembers of a batch must not depend on how rows are counted.
TRAINING_SOFT = pytest.param(
    MulticlassSoftHKRLoss(MARGIN, 7.0, decay=0.5), None, 7.0, id="soft_in_training"
)


@pytest.mark.parametrize(("loss", "oracle", "alpha"), [*MULTICLASS, TRAINING_SOFT])
def test_multiclass_weights_are_repetitions(loss, oracle, alpha):
    targets = torch.tensor([0, 1, 2, 3, 0, 2, 2, 1])
    # One class, 3, has weight zero in full.
    counts = torch.tensor([1, 3, 0, 0, 2, 1, 4, 1])
    logits = draw_logits((8, 5), torch.float64)
    check_repetition(loss, logits, targets, counts, alpha)


@pytest.mark.parametrize("counts", [[1, 3, 0, 2, 1, 0, 2], [2, 0, 0, 1, 0, 0, 3]])
@pytest.mark.parametrize(("loss", "oracle", "alpha"), BINARY)
def test_binary_weights_are_repetitions(loss, oracle, alpha, counts):
    targets = torch.tensor(BINARY_BATCHES["both_classes"])
    logits = draw_logits((7,), torch.float64)
    check_repetition(loss, logits, targets, torch.tensor(counts), alpha)


def check_repetition(loss, logits, targets, counts, alpha):
    if hasattr(loss, "running_mean"):
        loss.running_mean = torch.tensor(MARGIN)
    weighted = loss(logits, targets, counts.double())
    if hasattr(loss, "running_mean"):
        loss.running_mean = torch.tensor(MARGIN)
    repeated = loss(logits.repeat_interleave(counts, 0), targets.repeat_interleave(counts))
    # Twice the error of a loss: one for each side.
    allowed = 2 * tolerance(logits, alpha, torch.float64)
    assert float(weighted) == pytest.approx(float(repeated), rel=0, abs=allowed)


@pytest.mark.parametrize(("loss", "oracle", "alpha"), MULTICLASS)
def test_equal_weights_change_nothing(loss, oracle, alpha):
    logits = draw_logits((5, 4), torch.float64)
    targets = torch.tensor([0, 1, 2, 2, 0])
    plain = float(loss(logits, targets))
    weighted = float(loss(logits, targets, torch.full((5,), 0.3, dtype=torch.float64)))
    assert weighted == pytest.approx(plain, rel=0, abs=2 * tolerance(logits, alpha, torch.float64))


# -- alpha -------------------------------------------------------------------------------------


def test_alpha_infinity_leaves_the_hinge_alone_and_zero_the_kr_term():
    logits, targets = draw_logits((6, 3), torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    hinge, kr = MulticlassHingeLoss(MARGIN), MulticlassKRLoss()
    assert MulticlassHKRLoss(MARGIN, math.inf)(logits, targets) == hinge(logits, targets)
    assert MulticlassHKRLoss(MARGIN, 0.0)(logits, targets) == kr(logits, targets)
    logits, targets = draw_logits((6,), torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
    hinge, kr = BinaryHingeLoss(MARGIN), BinaryKRLoss()
    assert BinaryHKRLoss(MARGIN, math.inf)(logits, targets) == hinge(logits, targets)
    assert BinaryHKRLoss(MARGIN, 0.0)(logits, targets) == kr(logits, targets)


def test_hinge_is_zero_where_every_margin_is_met():
    # +-0.25 are exactly half the margin of 0.5.
    logits = torch.tensor([[0.25, -0.25], [-0.25, 0.25]])
    targets = torch.tensor([0, 1])
    assert float(MulticlassHingeLoss(0.5)(logits, targets)) == 0
    assert float(CategoricalHingeLoss(0.5)(logits, targets)) == 0
    assert float(BinaryHingeLoss(0.5)(logits[:, 1], targets)) == 0
    assert float(BinaryHingeLoss(1.0)(logits[:, 1], targets)) == 0.25


# -- LogSumExp ---------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("equal", [True, False])
def test_soft_maximum_exceeds_the_maximum_by_at_most_penalty_half_margins(penalty, equal):
    logits = draw_logits((1, 6), torch.float64)
    if equal:
        logits = torch.full((1, 6), 0.7, dtype=torch.float64)
    # With alpha = 0 one sample pays g - f_y.
    loss = MulticlassLogSumExpHKRLoss(MARGIN, 0.0, penalty)(logits, torch.tensor([2]))
    soft = float(loss + logits[0, 2])
    hard = float(logits[0, [0, 1, 3, 4, 5]].max())
    rounding = 64 * np.finfo(float).eps * (1 + abs(hard))
    assert hard - rounding <= soft <= hard + penalty * MARGIN / 2 + rounding
    if equal:  # where the bound is attained
        assert soft == pytest.approx(hard + penalty * MARGIN / 2, abs=rounding)


# -- Soft HKR's running mean -------------------------------------------------------------------


def test_soft_hkr_follows_the_size_of_the_logits_in_training_only():
    decay, temperature, expected = 0.75, 2.0, MARGIN
    loss = MulticlassSoftHKRLoss(MARGIN, 7.0, decay=decay, temperature=temperature)
    targets = [0, 1, 2, 1]
    for seed in range(4):
        logits = 5 * draw_logits((4, 3), torch.float64, seed)
        got = float(loss.train()(logits, torch.tensor(targets)))
        sizes = [abs(score) for row in logits.tolist() for score in row]
        expected = decay * expected + (1 - decay) * sum(sizes) / len(sizes)
        # Sums of 12 values and a few more operations for each of at most 4 steps.
        assert float(loss.running_mean) == pytest.approx(expected, rel=64 * np.finfo(float).eps, abs=0)
        hot = temperature * MARGIN / max(expected, MARGIN)
        oracle = soft_hkr(logits.tolist(), targets, [1.0] * 4, MARGIN, 7.0, hot)
        # An error of T moves the loss by up to T max|f| times as much as one of the logits.
        allowed = tolerance(logits, 7.0, torch.float64) * (1 + hot * float(logits.abs().max()))
        assert got == pytest.approx(oracle, rel=0, abs=allowed)
    before = float(loss.running_mean)
    loss.eval()(logits, torch.tensor(targets))
    assert float(loss.running_mean) == before


@pytest.mark.parametrize(("size", "kept"), [(0.0, 0.005), (0.001, 0.005), (1e4, 1000.0)])
def test_the_running_mean_is_kept_within_its_limits(size, kept):
    loss = MulticlassSoftHKRLoss(MARGIN, 7.0, decay=0.0)
    loss(torch.full((4, 3), size, dtype=torch.float64), torch.zeros(4, dtype=torch.long))
    assert float(loss.running_mean) == kept


@pytest.mark.parametrize(("factor", "clipped"), [(1e6, 250.0), (1e-6, 0.005)])
def test_soft_hkr_clips_its_temperature(factor, clipped):
    logits = draw_logits((4, 3), torch.float64)
    targets = [0, 1, 2, 1]
    loss = MulticlassSoftHKRLoss(MARGIN, 7.0, temperature=factor).eval()
    oracle = soft_hkr(logits.tolist(), targets, [1.0] * 4, MARGIN, 7.0, clipped)
    # Beside the loss's own error: the shares' exponents T f have errors of T max|f| eps.
    allowed = tolerance(logits, 7.0, torch.float64) * (1 + clipped * float(logits.abs().max()))
    assert float(loss(logits, torch.tensor(targets))) == pytest.approx(oracle, rel=0, abs=allowed)


def test_no_gradient_passes_through_the_temperature_of_soft_hkr():
    targets = torch.tensor([0, 1, 2, 1])
    logits = (5 * draw_logits((4, 3), torch.float64)).requires_grad_()
    loss = MulticlassSoftHKRLoss(MARGIN, 7.0, decay=0.5).double()
    (moving,) = torch.autograd.grad(loss.train()(logits, targets), logits)
    # The mean just recorded, held fixed, gives the same temperature.
    (fixed,) = torch.autograd.grad(loss.eval()(logits, targets), logits)
    assert torch.equal(moving, fixed)
    assert not loss.running_mean.requires_grad


# -- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", MULTICLASS_BATCHES)
@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize(("loss", "oracle", "alpha"), MULTICLASS)
def test_multiclass_gradient_is_that_of_the_loss(loss, oracle, alpha, weighting, batch):
    # Hinges have kinks, but random logits are not within gradcheck's step of 1e-6 of one.
    targets, n_classes = MULTICLASS_BATCHES[batch]
    logits = draw_logits((len(targets), n_classes), torch.float64).requires_grad_()
    weights = draw_weights(weighting, len(targets), torch.float64)
    assert torch.autograd.gradcheck(lambda f: loss(f, torch.tensor(targets), weights), logits)


@pytest.mark.parametrize("batch", BINARY_BATCHES)
@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize(("loss", "oracle", "alpha"), BINARY)
def test_binary_gradient_is_that_of_the_loss(loss, oracle, alpha, weighting, batch):
    targets = torch.tensor(BINARY_BATCHES[batch])
    logits = draw_logits((len(targets),), torch.float64).requires_grad_()
    weights = draw_weights(weighting, len(targets), torch.float64)
    assert torch.autograd.gradcheck(lambda f: loss(f, targets, weights), logits)


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("loss", "oracle", "alpha"), MULTICLASS)
def test_gradient_is_finite_for_missing_classes_and_large_logits(loss, oracle, alpha, dtype, size):
    logits = (size * draw_logits((3, 5), dtype)).requires_grad_()
    value = loss(logits, torch.tensor([1, 1, 3]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize(("loss", "oracle", "alpha"), BINARY)
def test_binary_gradient_is_finite_for_a_missing_class(loss, oracle, alpha, target, size):
    logits = (size * draw_logits((3,), torch.float32)).requires_grad_()
    value = loss(logits, torch.full((3,), target))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


# -- arguments ---------------------------------------------------------------------------------

POSITIVE = {
    "tau": [TauCrossEntropyLoss, BinaryTauCrossEntropyLoss],
    "min_margin": [
        MulticlassHingeLoss,
        CategoricalHingeLoss,
        BinaryHingeLoss,
        lambda m: MulticlassHKRLoss(m, 1.0),
        lambda m: MulticlassLogSumExpHKRLoss(m, 1.0),
        lambda m: MulticlassSoftHKRLoss(m, 1.0),
        lambda m: BinaryHKRLoss(m, 1.0),
    ],
    "radius": [lambda r: CertifiedRadiusLoss(TauCrossEntropyLoss(1.0), 1.0, r)],
    "penalty": [lambda p: MulticlassLogSumExpHKRLoss(1.0, 1.0, p)],
    "temperature": [lambda t: MulticlassSoftHKRLoss(1.0, 1.0, temperature=t)],
}


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "make"), [(name, make) for name, makers in POSITIVE.items() for make in makers]
)
def test_argument_must_be_positive_and_finite(name, make, value):
    with pytest.raises(ValueError, match=rf"^{name} must be positive and finite, got {value}"):
        make(value)


@pytest.mark.parametrize("value", [-1e-9, -math.inf, math.nan])
@pytest.mark.parametrize(
    "loss", [MulticlassHKRLoss, MulticlassLogSumExpHKRLoss, MulticlassSoftHKRLoss, BinaryHKRLoss]
)
def test_alpha_must_not_be_negative(loss, value):
    with pytest.raises(ValueError, match=rf"^alpha must be at least 0 .*got {value}"):
        loss(1.0, value)


@pytest.mark.parametrize("value", [1.0, -0.1, math.nan])
def test_decay_must_be_a_share(value):
    with pytest.raises(ValueError, match=rf"^decay must be in \[0, 1\), got {value}"):
        MulticlassSoftHKRLoss(1.0, 1.0, decay=value)


@pytest.mark.parametrize("kind", [TauCrossEntropyLoss, BinaryTauCrossEntropyLoss])
@pytest.mark.parametrize(
    ("name", "value"),
    [("offset", v) for v in (-1.0, math.nan, math.inf)]
    + [("annealing", v) for v in (0.5, -1.0, math.nan, math.inf)],
)
def test_offset_and_annealing_are_checked(kind, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*got {value}"):
        kind(1.0, **{name: value})


@pytest.mark.parametrize("n_classes", [2, 5])
def test_offset_of_a_radius_bounds_the_loss_of_every_perturbed_input(n_classes):
    # The orthogonal linear map is the extreme 1-Lipschitz network: the worst direction is known.
    rng = np.random.default_rng(0)
    eps = 0.7
    x = torch.from_numpy(rng.normal(size=(1, n_classes)))
    plain, robust = TauCrossEntropyLoss(TAU), TauCrossEntropyLoss(TAU, math.sqrt(2) * eps)
    target = torch.tensor([0])
    upper = float(robust(x, target))
    steps = torch.from_numpy(rng.normal(size=(500, n_classes)))
    for step in eps * torch.nn.functional.normalize(steps):
        assert float(plain(x + step, target)) <= upper
    worst = torch.zeros(n_classes, dtype=torch.float64)
    worst[0], worst[1:] = -1.0, 1 / (n_classes - 1)
    worst *= eps / worst.norm()
    if n_classes == 2:  # attained
        assert float(plain(x + worst, target)) == pytest.approx(upper, rel=1e-12)


# -- parameters ----------------------------------------------------------------------------------


def test_parameters_of_a_loss_inside_of_another_are_read_unless_only_its_own_are_asked_for():
    inner = TauCrossEntropyLoss(2.0, offset=0.5)
    own = {"loss": inner, "weight": 0.5, "radius": 1.0}
    loss = CertifiedRadiusLoss(**own)
    inside = {f"loss__{name}": value for name, value in inner.get_params().items()}
    assert inside["loss__tau"] == 2.0
    assert loss.get_params() == {**own, **inside}
    assert loss.get_params(deep=False) == own


@pytest.mark.parametrize("wrong", [{"alpha": -1.0}, {"decay": 1.0}, {"min_margin": 0.0}], ids=str)
def test_a_parameter_out_of_range_leaves_a_loss_as_it_was(wrong):
    logits, targets = draw_logits((4, 3), torch.float64), torch.tensor([0, 1, 2, 1])
    loss = MulticlassSoftHKRLoss(MARGIN, 7.0)
    loss(logits, targets)
    parameters, mean = loss.get_params(), float(loss.running_mean)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        loss.set_params(temperature=3.0, **wrong)
    assert loss.get_params() == parameters
    assert float(loss.running_mean) == mean
