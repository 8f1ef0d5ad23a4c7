"""Displays: what they compute, what they store, what they draw."""

import functools
import inspect
import itertools
import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklip import (
    CertificateDisplay,
    CertifiedAccuracyDisplay,
    LipschitzClassifier,
    ParetoDisplay,
    TradeoffDisplay,
    certificates,
    certified_ranges,
    counterfactual,
)
from sklip.plots.words import inner_ends
from sklip.scoring import average_certified_radius_scorer, certified_accuracy_scorer

# Behind a StandardScaler, a pixel that is rarely used limits the radii of digits.
pytestmark = pytest.mark.filterwarnings("ignore:The steps enlarge a change of column")


@pytest.fixture(autouse=True)
def _no_figures_are_left():
    plt.close("all")
    yield
    plt.close("all")


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (16,), "max_epochs": 5, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


@functools.cache
def fitted(**parameters):
    """A classifier of the first digits, fitted once."""
    X, y = load_digits(return_X_y=True)
    return quick(**parameters).fit(X[:200], y[:200])


@functools.cache
def of_flowers():
    X, y = load_iris(return_X_y=True, as_frame=True)
    return make_pipeline(StandardScaler(), quick(hidden_layer_sizes=(4,), max_epochs=60)).fit(X, y)


def certified_accuracy_display(ax=None, **kwargs):
    return CertifiedAccuracyDisplay.from_predictions(
        [0, 1, 1], [0, 1, 0], [0.5, 1.0, 2.0], name="a", ax=ax, **kwargs
    )


def attacked_display(ax=None, **kwargs):
    return CertifiedAccuracyDisplay.from_predictions(
        [0, 1, 1], [0, 1, 0], [0.5, 1.0, 2.0], distances=[0.7, np.inf, 2.5], ax=ax, **kwargs
    )


def cv_results(**columns):
    return {
        "param_tau": np.array([10.0, 1.0, 100.0]),
        "params": [{"tau": 10.0}, {"tau": 1.0}, {"tau": 100.0}],
        "mean_test_accuracy": np.array([0.9, 0.8, 0.95]),
        "mean_test_certified": np.array([0.5, 0.7, 0.1]),
        "std_test_accuracy": np.array([0.01, 0.02, 0.03]),
        "std_test_certified": np.array([0.03, 0.02, 0.01]),
        **columns,
    }


SCORING = {f"at {eps}": certified_accuracy_scorer(eps) for eps in (1.0, 0.0, 0.5)}
FOLDS = {
    "test_at 0.0": np.array([0.9, 1.0]),
    "test_at 0.5": np.array([0.5, 0.7]),
    "test_at 1.0": np.array([0.0, 0.2]),
}


def cross_validated_display(ax=None, **kwargs):
    return CertifiedAccuracyDisplay.from_cv_results(FOLDS, SCORING, ax=ax, **kwargs)


def tradeoff_display(ax=None, **kwargs):
    return TradeoffDisplay.from_cv_results(cv_results(), "tau", ax=ax, **kwargs)


def pareto_display(ax=None, **kwargs):
    return ParetoDisplay.from_cv_results(cv_results(), ax=ax, **kwargs)


def images_display(ax=None, **kwargs):
    X = load_digits().data[:3]
    return CertificateDisplay.from_estimator(fitted(), X, image_shape=(8, 8), ax=ax, **kwargs)


def row_display(ax=None, **kwargs):
    X = load_iris(as_frame=True).data.iloc[[70]]
    return CertificateDisplay.from_estimator(of_flowers(), X, scale="std", ax=ax, **kwargs)


# -- the contract of all displays ------------------------------------------------------------------

CURVES = [
    certified_accuracy_display,
    attacked_display,
    cross_validated_display,
    tradeoff_display,
    pareto_display,
]
ALL = [*CURVES, images_display, row_display]


def artists_of(ax):
    return [*ax.get_lines(), *ax.images, *ax.patches]


@pytest.mark.parametrize("make", ALL)
def test_display_draws_on_axes_of_its_own(make):
    display = make()
    assert isinstance(display.ax_, Axes)
    assert isinstance(display.figure_, Figure)
    assert display.ax_.figure is display.figure_
    assert len(plt.get_fignums()) == 1
    assert artists_of(display.ax_)
    assert display.ax_.get_xlabel()
    assert display.ax_.get_ylabel() or [text.get_text() for text in display.ax_.get_yticklabels()]
    # It can be drawn again, elsewhere.
    first = display.figure_
    assert display.plot() is display
    assert display.figure_ is not first
    assert len(plt.get_fignums()) == 2


@pytest.mark.parametrize("make", ALL)
def test_display_draws_on_the_axes_it_is_given_and_opens_no_figure(make):
    figure, (left, right) = plt.subplots(1, 2)
    size = figure.get_size_inches().tolist()
    display = make(ax=right)
    assert display.ax_ is right
    assert display.figure_ is figure
    assert figure.get_size_inches().tolist() == size
    assert plt.get_fignums() == [figure.number]
    assert not artists_of(left)
    # Two displays share axes.
    n_artists = len(artists_of(right))
    make(ax=right)
    assert len(artists_of(right)) == 2 * n_artists


@pytest.mark.parametrize("make", ALL)
def test_display_stores_what_it_is_made_of(make):
    display = make()
    parameters = list(inspect.signature(type(display).__init__).parameters)[1:]
    again = type(display)(**{name: getattr(display, name) for name in parameters})
    assert not hasattr(again, "ax_")
    again.plot()
    drawn, redrawn = (
        [line.get_xydata().tolist() for line in each.ax_.get_lines()] for each in (display, again)
    )
    assert drawn == redrawn


@pytest.mark.parametrize("make", CURVES)
def test_display_passes_keywords_to_its_lines(make):
    display = make(color="red", marker="x", linewidth=3)
    for line in display.ax_.get_lines():
        assert (line.get_color(), line.get_marker(), line.get_linewidth()) == ("red", "x", 3)


def test_certificates_pass_keywords_to_images_and_bars():
    assert {image.get_cmap().name for image in images_display(cmap="viridis").ax_.images} == {"viridis"}
    heights = [bar.get_height() for bar in row_display(height=0.2).ax_.patches]
    assert heights == pytest.approx([0.2] * 4)


@pytest.mark.parametrize("make", ALL)
def test_display_shows_every_point_and_no_words_overlap(make):
    display = make()
    display.figure_.canvas.draw()
    (left, right), (bottom, top) = display.ax_.get_xlim(), display.ax_.get_ylim()
    for line in display.ax_.get_lines():
        x, y = line.get_data()
        assert left <= min(x, default=left)
        assert max(x, default=right) <= right
        assert bottom <= min(y, default=bottom)
        assert max(y, default=top) <= top
    axis = display.ax_
    words = [*axis.texts, axis.xaxis.label, axis.yaxis.label, axis.title]
    # Of ticks those that are seen.
    words += [text for text in axis.get_xticklabels() if left <= text.get_position()[0] <= right]
    words += [text for text in axis.get_yticklabels() if bottom <= text.get_position()[1] <= top]
    legend = axis.get_legend()
    if legend is not None and legend.get_bbox_to_anchor().y0 < axis.bbox.y0:
        words.append(legend)
    boxes = [each.get_window_extent() for each in words if getattr(each, "get_text", lambda: "-")()]
    for box, other in itertools.combinations(boxes, 2):
        assert not box.overlaps(other)
    for box in boxes:
        assert display.figure_.bbox.padded(1).contains(box.x0, box.y0)
        assert display.figure_.bbox.padded(1).contains(box.x1, box.y1)


@pytest.mark.parametrize("make", ALL)
def test_display_without_matplotlib_names_the_extra(make, monkeypatch):
    display = make()
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"scikit-lipschitz\[plot\]"):
        display.plot()


@pytest.mark.parametrize("display", [CertifiedAccuracyDisplay, CertificateDisplay])
def test_displays_of_estimators_refuse_regressors_and_what_is_not_fitted(few_digits, display):
    X, y = few_digits
    y_if_needed = (y,) if display is CertifiedAccuracyDisplay else ()
    regressor = make_pipeline(StandardScaler(), Ridge()).fit(X, y)
    with pytest.raises(ValueError, match=r"Expected 'estimator' to be a classifier. Got Pipeline"):
        display.from_estimator(regressor, X, *y_if_needed)
    with pytest.raises(NotFittedError):
        display.from_estimator(quick(), X, *y_if_needed)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("display", [TradeoffDisplay, ParetoDisplay])
def test_displays_of_searches_refuse_what_is_not_fitted(display):
    with pytest.raises(ValueError, match=r"Expected 'search' to be a fitted search.*Got GridSearchCV"):
        display.from_estimator(GridSearchCV(quick(), {"tau": [1.0]}))


# -- certified accuracy ------------------------------------------------------------------------------


def loop_curve(eps, y_true, y_pred, radii, weights):
    return [
        sum(w * (t == p and r > e) for t, p, r, w in zip(y_true, y_pred, radii, weights, strict=True))
        / sum(weights)
        for e in eps
    ]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("infinite", [False, True])
def test_certified_accuracy_curve_is_the_share_at_every_eps(weighted, infinite):
    rng = np.random.default_rng(0)
    y_true, y_pred = rng.choice(["a", "b"], (2, 50))
    radii = rng.uniform(0, 3, 50)
    radii[:3] = 0
    if infinite:
        radii[3:6] = np.inf
    weights = rng.uniform(0, 2, 50) if weighted else None
    display = CertifiedAccuracyDisplay.from_predictions(
        y_true, y_pred, radii, sample_weight=weights, name="curve"
    )
    expected = loop_curve(
        display.eps, y_true, y_pred, radii, np.ones(50) if weights is None else weights
    )
    # Sums over 50 samples of shares below 1.
    rounding = 4 * 50 * np.finfo(float).eps
    assert display.certified_accuracy == pytest.approx(expected, rel=0, abs=rounding)
    assert display.name == "curve"
    assert display.eps[0] == 0
    assert (np.diff(display.eps) > 0).all()
    # The last budget is past every finite radius: what is left there is left for ever.
    assert np.isfinite(display.eps).all()
    assert display.eps[-1] > radii[np.isfinite(radii)].max()
    if not infinite:
        assert display.certified_accuracy[-1] == 0


@pytest.mark.parametrize("radii", [[0.0, 0.0], [np.inf, np.inf], [0.0, np.inf]])
def test_curve_without_a_finite_positive_radius_still_has_an_axis(radii):
    display = CertifiedAccuracyDisplay.from_predictions([0, 1], [0, 1], radii)
    assert display.eps[-1] > 0
    assert (display.certified_accuracy == np.mean(np.isinf(radii))).all()
    display.plot()


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_curve_of_what_are_no_radii_is_an_error(bad):
    with pytest.raises(ValueError, match="radii must be at least 0 and not NaN"):
        CertifiedAccuracyDisplay.from_predictions([0, 1], [0, 1], [1.0, bad])


@pytest.mark.parametrize("make", [quick, lambda: make_pipeline(StandardScaler(), quick())])
def test_curve_of_an_estimator_is_that_of_its_predictions(few_digits, make):
    X, y = few_digits
    estimator = make().fit(X, y)
    weights = np.random.default_rng(0).uniform(0, 2, len(X))
    _, ax = plt.subplots()
    display = CertifiedAccuracyDisplay.from_estimator(
        estimator, X, y, sample_weight=weights, ax=ax, color="red"
    )
    assert display.ax_ is ax
    assert display.line_.get_color() == "red"
    expected = loop_curve(display.eps, y, estimator.predict(X), certificates(estimator, X), weights)
    assert display.certified_accuracy == pytest.approx(
        expected, rel=0, abs=4 * 200 * np.finfo(float).eps
    )
    assert display.line_.get_xdata().tolist() == display.eps.tolist()
    assert display.line_.get_ydata().tolist() == display.certified_accuracy.tolist()
    assert display.name == type(estimator).__name__
    named = CertifiedAccuracyDisplay.from_estimator(estimator, X, y, name="mine")
    assert legend_of(named) == ["mine"]


@pytest.mark.parametrize(
    "make",
    [lambda: quick(max_epochs=30), lambda: make_pipeline(StandardScaler(), quick(max_epochs=30))],
)
def test_curve_of_an_estimator_holds_the_fixed_columns(few_digits, make):
    X, y = few_digits
    estimator, fixed = make().fit(X, y), list(range(20, 64))
    free = CertifiedAccuracyDisplay.from_estimator(estimator, X, y)
    held = CertifiedAccuracyDisplay.from_estimator(estimator, X, y, fixed_columns=fixed)
    labels, radii = estimator.predict(X), certificates(estimator, X, fixed_columns=fixed)
    expected = loop_curve(held.eps, y, labels, radii, np.ones(len(X)))
    assert held.certified_accuracy == pytest.approx(expected, rel=0, abs=4 * 200 * np.finfo(float).eps)
    before = certificates(estimator, X)
    assert (radii >= before).all()
    assert np.median(radii) > 1.05 * np.median(before)
    assert held.eps[-1] > free.eps[-1]
    at_held = loop_curve(held.eps, y, labels, before, np.ones(len(X)))
    assert (held.certified_accuracy >= np.array(at_held) - 1e-12).all()
    assert (held.certified_accuracy > np.array(at_held) + 0.01).any()


BUDGETS = [0.0, 0.5, 0.75, 1.0]


def test_eps_are_the_points_of_the_curve():
    display = CertifiedAccuracyDisplay.from_predictions(
        [0, 1, 1, 1], [0, 1, 1, 0], [0.5, 0.8, 2.0, 3.0], eps=BUDGETS
    )
    assert display.eps.tolist() == BUDGETS
    # A radius of 0.5 is not above 0.5; the last sample is wrong.
    assert display.certified_accuracy.tolist() == [0.75, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    ("eps", "message"),
    [
        ([0.0, 1.0, 0.5], r"eps must be ascending, got \[0.0, 1.0, 0.5\]"),
        ([0.0, 0.0], "eps must be ascending"),
        ([-0.1, 1.0], "eps must be finite and at least 0"),
        ([0.0, np.inf], "eps must be finite and at least 0"),
        ([0.0, np.nan], "eps must be finite and at least 0"),
        (0.5, r"eps must be a sequence of budgets, got shape \(\)"),
        ([], r"eps must be a sequence of budgets, got shape \(0,\)"),
    ],
)
def test_eps_out_of_order_or_range_are_refused(eps, message):
    with pytest.raises(ValueError, match=message):
        CertifiedAccuracyDisplay.from_predictions([0, 1], [0, 1], [1.0, 1.0], eps=eps)
    assert plt.get_fignums() == []


def test_accuracy_under_attack_is_the_share_that_is_not_broken_yet():
    display = CertifiedAccuracyDisplay.from_predictions(
        [0, 1, 1, 1], [0, 1, 1, 0], [0.5, 0.8, 2.0, 3.0], eps=BUDGETS, distances=[0.6, 1.0, np.inf, 3.0]
    )
    assert display.attacked_accuracy.tolist() == [0.75, 0.75, 0.5, 0.25]
    assert display.attack_line_.get_ydata().tolist() == display.attacked_accuracy.tolist()
    assert legend_of(display) == ["certified", "under attack"]


def test_curves_with_counterfactuals_enclose_what_the_best_attack_would_leave(few_digits):
    X, y = few_digits
    distances = counterfactual(fitted(), X).distances
    display = CertifiedAccuracyDisplay.from_estimator(fitted(), X, y, distances=distances)
    assert (display.attacked_accuracy >= display.certified_accuracy).all()
    assert display.eps[-1] > distances.max()
    other = CertifiedAccuracyDisplay.from_estimator(
        fitted(tau=10.0), X, y, name="tau = 10", ax=display.ax_
    )
    # Curves share the axes, which end where the longest does.
    assert len(display.ax_.get_lines()) == 3
    assert display.ax_.get_xlim()[1] >= max(display.eps[-1], other.eps[-1])
    assert legend_of(other) == [
        "LipschitzClassifier, certified",
        "LipschitzClassifier, under attack",
        "tau = 10",
    ]


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        ([0.4, 1.0], "distances must be at least the radii.* got 0.4 for the radius 0.5 of sample 0"),
        ([np.nan, 1.0], "distances must not be NaN"),
        ([1.0], r"distances must hold one number for each radius, got shape \(1,\) for \(2,\)"),
    ],
)
def test_distances_that_are_none_of_an_attack_are_refused(distances, message):
    with pytest.raises(ValueError, match=message):
        CertifiedAccuracyDisplay.from_predictions([0, 1], [0, 1], [0.5, 0.9], distances=distances)


@pytest.mark.parametrize(
    ("scale", "unit"),
    [(None, "units of X"), ("std", "standard deviations"), (np.ones(64), "units of scale")],
)
def test_the_axis_says_the_unit(few_digits, scale, unit):
    X, y = few_digits
    parameters = {"fixed_columns": np.flatnonzero(X.std(axis=0) == 0).tolist(), "scale": scale}
    display = CertifiedAccuracyDisplay.from_estimator(fitted(), X, y, **parameters)
    assert unit in display.ax_.get_xlabel()


def test_a_band_shows_one_standard_deviation_over_folds():
    display = cross_validated_display(name="mine")
    assert display.eps.tolist() == [0.0, 0.5, 1.0]
    assert display.certified_accuracy == pytest.approx([0.95, 0.6, 0.1])
    assert display.std == pytest.approx([0.05, 0.1, 0.1])
    assert legend_of(display) == ["mine (mean over folds ± 1 std)"]
    edges = display.band_.get_paths()[0].vertices
    assert edges[:, 1].max() == pytest.approx(1.0)
    assert edges[:, 1].min() == pytest.approx(0.0)


def test_a_band_is_read_from_a_search_and_from_cross_validate(few_digits):
    X, y = few_digits
    scoring = {"accuracy": "accuracy", **{f"at_{e}": certified_accuracy_scorer(e) for e in (0.1, 0.0)}}
    search = GridSearchCV(
        quick(max_epochs=20), {"tau": [3.0, 10.0]}, cv=2, scoring=scoring, refit="at_0.1"
    ).fit(X, y)
    results = search.cv_results_
    with pytest.raises(ValueError, match="index must say which of 2 candidates"):
        CertifiedAccuracyDisplay.from_cv_results(results, scoring)
    with pytest.raises(ValueError, match="index must be below 2, got 2"):
        CertifiedAccuracyDisplay.from_cv_results(results, scoring, index=2)
    display = CertifiedAccuracyDisplay.from_cv_results(results, scoring, index=1)
    names = ("at_0.0", "at_0.1")
    assert display.certified_accuracy == pytest.approx(
        [results[f"mean_test_{name}"][1] for name in names]
    )
    assert display.std == pytest.approx([results[f"std_test_{name}"][1] for name in names])
    folds = cross_validate(quick(max_epochs=20, tau=10.0), X, y, cv=2, scoring=scoring)
    same = CertifiedAccuracyDisplay.from_cv_results(folds, scoring)
    assert same.certified_accuracy == pytest.approx(display.certified_accuracy)
    with pytest.raises(ValueError, match=r"scores of 'at_0.0' on each fold, none found"):
        CertifiedAccuracyDisplay.from_cv_results({}, scoring)


@pytest.mark.parametrize(
    ("scoring", "message"),
    [
        ("accuracy", "scoring must be a dict of scorers by name, got 'accuracy'"),
        (
            {"accuracy": "accuracy", "a": certified_accuracy_scorer(0.5)},
            r"two or more different eps, got \[0.5\]",
        ),
        ({"a": certified_accuracy_scorer(0.5), "b": certified_accuracy_scorer(0.5)}, "different eps"),
        (
            {"a": certified_accuracy_scorer(0.5), "b": certified_accuracy_scorer(1.0, scale="std")},
            r"all eps in one unit, got \['standard deviations', 'units of X'\]",
        ),
    ],
)
def test_scorers_that_make_no_curve_are_refused(scoring, message):
    with pytest.raises(ValueError, match=message):
        CertifiedAccuracyDisplay.from_cv_results(FOLDS, scoring)


def legend_of(display):
    legend = display.ax_.get_legend()
    return None if legend is None else [text.get_text() for text in legend.get_texts()]


def test_name_of_the_curve_is_its_legend():
    nameless = CertifiedAccuracyDisplay.from_predictions([0], [0], [1.0])
    assert legend_of(nameless) is None
    assert legend_of(nameless.plot(name="later")) == ["later"]
    assert legend_of(nameless.plot(label="label")) == ["label"]
    display = certified_accuracy_display()
    assert legend_of(display) == ["a"]
    assert legend_of(display.plot(name="b")) == ["b"]
    assert legend_of(display.plot(name="b", label="c")) == ["c"]


# -- trade-off --------------------------------------------------------------------------------


def test_tradeoff_is_sorted_by_the_parameter():
    display = TradeoffDisplay.from_cv_results(cv_results(), "tau", chosen=0)
    assert display.param_values.tolist() == [1.0, 10.0, 100.0]
    assert display.accuracy.tolist() == [0.8, 0.9, 0.95]
    assert display.robustness.tolist() == [0.7, 0.5, 0.1]
    assert display.accuracy_std.tolist() == [0.02, 0.01, 0.03]
    assert display.robustness_std.tolist() == [0.02, 0.03, 0.01]
    accuracy, robustness = display.lines_
    assert accuracy.get_xdata().tolist() == robustness.get_xdata().tolist() == [1.0, 10.0, 100.0]
    assert accuracy.get_ydata().tolist() == [0.8, 0.9, 0.95]
    assert robustness.get_ydata().tolist() == [0.7, 0.5, 0.1]
    assert display.ax_.get_xscale() == "log"
    assert display.ax_.get_xlabel() == "tau"
    # The first of the search is the second by tau.
    assert display.chosen == 1
    assert set(display.chosen_.get_xdata()) == {10.0}
    assert legend_of(display) == ["accuracy", "certified", "chosen: tau = 10"]


def test_error_bars_are_a_standard_deviation_to_both_sides():
    display = tradeoff_display()
    bars = [each for each in display.ax_.collections if isinstance(each, LineCollection)]
    ends = [segment.tolist() for each in bars for segment in each.get_segments()]
    assert len(ends) == 6
    assert ends[0] == pytest.approx(np.array([[1.0, 0.78], [1.0, 0.82]]))
    assert "std" in display.ax_.get_ylabel()
    bare = {key: value for key, value in cv_results().items() if not key.startswith("std")}
    display = TradeoffDisplay.from_cv_results(bare, "tau")
    assert not [each for each in display.ax_.collections if isinstance(each, LineCollection)]
    assert "std" not in display.ax_.get_ylabel()


def test_points_that_another_beats_are_hollow():
    results = cv_results(mean_test_accuracy=np.array([0.79, 0.8, 0.95]))
    display = TradeoffDisplay.from_cv_results(results, "tau")
    hollow = [
        point
        for each in display.ax_.collections
        if isinstance(each, PathCollection)
        for point in each.get_offsets().tolist()
    ]
    assert hollow == [[10.0, 0.79], [10.0, 0.5]]
    assert "hollow: beaten by another in both" in legend_of(display)


@pytest.mark.parametrize(
    ("values", "scale"),
    [([0.0, 0.1, 1.0], "symlog"), ([0.1, 0.2, 1.0], "log"), ([0.0, 0.0, 0.0], "linear")],
)
def test_the_axis_shows_zero(values, scale):
    display = TradeoffDisplay.from_cv_results(cv_results(param_tau=values), "tau")
    display.figure_.canvas.draw()
    assert display.ax_.get_xscale() == scale
    shown = [text.get_text() for text in display.ax_.get_xticklabels()]
    assert shown == [f"{value:g}" for value in sorted(set(values))]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([2.355320, 0.461637, 12.017077], ["0.462", "2.36", "12"]),
        ([1000.0, 2000.0, 138.491], ["138", "1000", "2000"]),
        ([1.001, 1.002, 3.0], ["1.001", "1.002", "3"]),
        ([1.0, 1.0 + 1e-9, 3.0], ["1", "1", "3"]),
    ],
)
def test_ticks_have_as_many_digits_as_tell_candidates_apart(values, shown):
    display = TradeoffDisplay.from_cv_results(cv_results(param_tau=values), "tau", chosen=1)
    assert [text.get_text() for text in display.ax_.get_xticklabels()] == shown
    word = shown[sorted(values).index(values[1])]
    assert legend_of(display)[-1] == f"chosen: tau = {word}"


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        (certified_accuracy_scorer(0.25), "certified accuracy at eps = 0.25 (units of X)"),
        (
            certified_accuracy_scorer(1.0, scale="std"),
            "certified accuracy at eps = 1 (standard deviations)",
        ),
        (average_certified_radius_scorer(), "mean certified radius (units of X)"),
        ("accuracy", "certified"),
    ],
)
def test_the_score_is_named_with_its_eps(scorer, words):
    scoring = {"accuracy": "accuracy", "certified": scorer}
    display = TradeoffDisplay.from_cv_results(cv_results(), "tau", scoring=scoring)
    assert legend_of(display)[:2] == ["accuracy", words]
    assert ParetoDisplay.from_cv_results(cv_results(), scoring=scoring).ax_.get_ylabel() == words


def test_a_grid_over_two_parameters_is_drawn_in_the_plane_only():
    results = cv_results(param_eps=np.array([0.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match=r"one parameter, got \['tau', 'eps'\].*ParetoDisplay"):
        TradeoffDisplay.from_cv_results(results, "tau")
    same = cv_results(param_eps=np.array([1.0, 1.0, 1.0]))
    assert TradeoffDisplay.from_cv_results(same, "tau").param_values.tolist() == [1.0, 10.0, 100.0]


@pytest.mark.parametrize(
    "values",
    [["a", "b", "c"], np.ma.array([1.0, 2.0, 3.0], mask=[True, False, False]), [1.0, 2.0, np.inf]],
)
def test_parameters_that_are_no_numbers_are_refused(values):
    with pytest.raises(ValueError, match=r"tau must (have a number for each candidate|be finite)"):
        TradeoffDisplay.from_cv_results(cv_results(param_tau=values), "tau")


def test_tradeoff_takes_other_names_and_parameters_of_pipelines():
    results = {
        "param_scale__classify__tau": np.ma.array([10, 1], dtype=object),
        "mean_test_top": [0.9, 0.8],
        "mean_test_radius": [0.1, 0.3],
    }
    display = TradeoffDisplay.from_cv_results(
        results, "scale__classify__tau", accuracy="top", robustness="radius"
    )
    assert display.param_name == "tau"
    assert display.robustness_name == "radius"
    assert display.param_values.tolist() == [1.0, 10.0]
    assert display.robustness.tolist() == [0.3, 0.1]


def test_tradeoff_shows_radii_above_one():
    # A mean certified radius is a length: 1.02 is no limit to it.
    results = cv_results(mean_test_certified=np.array([1.5, 2.5, 0.5]))
    assert TradeoffDisplay.from_cv_results(results, "tau").ax_.get_ylim()[1] >= 2.5


@pytest.mark.parametrize("missing", ["param_tau", "mean_test_accuracy", "mean_test_certified"])
def test_tradeoff_names_the_column_that_is_missing(missing):
    results = cv_results()
    del results[missing]
    with pytest.raises(ValueError, match=rf"cv_results must contain .*\['{missing}'\]"):
        TradeoffDisplay.from_cv_results(results, "tau")


def test_displays_draw_a_real_search(few_digits):
    search = GridSearchCV(
        quick(),
        {"tau": [10.0, 1.0]},
        cv=2,
        scoring={"accuracy": "accuracy", "certified": certified_accuracy_scorer(0.05)},
        refit="certified",
    ).fit(*few_digits)
    results = search.cv_results_
    display = TradeoffDisplay.from_estimator(search)
    assert display.param_values.tolist() == [1.0, 10.0]
    assert display.accuracy.tolist() == results["mean_test_accuracy"][::-1].tolist()
    assert display.robustness.tolist() == results["mean_test_certified"][::-1].tolist()
    assert display.param_values[display.chosen] == search.best_params_["tau"]
    assert display.robustness_name == "certified accuracy at eps = 0.05 (units of X)"
    plane = ParetoDisplay.from_estimator(search)
    assert plane.accuracy.tolist() == results["mean_test_accuracy"].tolist()
    assert plane.chosen == search.best_index_
    chosen = plane.chosen_.get_xydata()[0].tolist()
    assert chosen == [
        results[f"mean_test_{name}"][search.best_index_] for name in ("accuracy", "certified")
    ]


# -- the plane of both scores -------------------------------------------------------------------


def test_the_front_is_what_no_other_beats():
    rng = np.random.default_rng(0)
    accuracy, robustness = rng.integers(0, 5, (2, 30)) / 4
    accuracy[3], robustness[7] = np.nan, np.nan
    front = ParetoDisplay(accuracy=accuracy, robustness=robustness).front

    def beats(i, j):
        no_worse = accuracy[i] >= accuracy[j] and robustness[i] >= robustness[j]
        return no_worse and (accuracy[i] > accuracy[j] or robustness[i] > robustness[j])

    expected = [not any(beats(i, j) for i in range(30)) for j in range(30)]
    expected[3] = expected[7] = False
    assert front.tolist() == expected


def test_the_front_is_joined_in_order_and_named():
    results = cv_results(mean_test_accuracy=np.array([0.79, 0.8, 0.95]))
    display = ParetoDisplay.from_cv_results(results, name="mine")
    assert display.line_.get_xydata().tolist() == [[0.8, 0.7], [0.95, 0.1]]
    assert display.points_.get_xydata().tolist() == [[0.79, 0.5]]
    assert legend_of(display) == ["mine: Pareto front", "beaten by another"]
    assert [text.get_text() for text in display.ax_.texts] == ["tau = 1", "tau = 100"]


def test_candidates_of_the_plane_have_as_many_digits_as_tell_them_apart():
    params = [
        {"tau": 2.355320, "alpha": 0.5, "warm_start": True},
        {"tau": 2.355320, "alpha": 1, "warm_start": False},
        {"tau": 2.361987, "alpha": 0.5, "solver": "adam", "warm_start": True},
    ]
    results = {"mean_test_accuracy": [0.8, 0.9, 0.95], "mean_test_certified": [0.7, 0.5, 0.1]}
    display = ParetoDisplay.from_cv_results({**results, "params": params})
    assert display.candidate_names == [
        "tau = 2.355, alpha = 0.5, warm_start = True",
        "tau = 2.355, alpha = 1, warm_start = False",
        "tau = 2.362, alpha = 0.5, warm_start = True, solver = adam",
    ]


# -- rows with what is proven of them -----------------------------------------------------------


def words_in(display):
    return [text.get_text() for text in display.ax_.texts]


@pytest.mark.parametrize("layout", ["flat", "gray", "colours"])
def test_images_stand_above_their_counterexamples(few_digits, layout):
    X, y = few_digits
    if layout == "flat":
        rows, shape, clf = X, (8, 8), fitted()
    else:
        rows, shape = X.reshape(-1, 8, 8), None
        if layout == "colours":
            rows = np.stack([rows, rows[:, ::-1], rows[:, :, ::-1]], axis=1)
        clf = quick(conv_channels=(4,)).fit(rows, y)
    display = CertificateDisplay.from_estimator(clf, rows[:5], image_shape=shape)
    labels, radii = clf.predict_with_radii(rows[:5])
    assert display.labels.tolist() == labels.tolist()
    assert display.radii.tolist() == radii.tolist()
    assert display.rows == pytest.approx(rows[:5].reshape(5, -1))
    others = display.others.reshape(rows[:5].shape)
    assert display.other_labels.tolist() == clf.predict(others).tolist()
    distances = np.linalg.norm(display.others - display.rows, axis=1)
    assert (radii <= distances).all()
    assert len(display.ax_.images) == 10
    words = words_in(display)
    assert len(words) == 10
    for place in range(5):
        label, proven = words[2 * place].split("\nproven: ")
        other, at = words[2 * place + 1].split("\nat ")
        assert (label, other) == (str(labels[place]), str(display.other_labels[place]))
        # No more is said to be proven than is.
        assert radii[place] - 0.01 <= float(proven) <= radii[place]
        assert distances[place] <= float(at) <= distances[place] + 0.02


def test_images_without_counterexamples_say_so(few_digits):
    X, y = few_digits
    never = FixedThresholdClassifier(quick(), threshold=-1.0).fit(X, y > 4)
    display = CertificateDisplay.from_estimator(never, X[:2], image_shape=(8, 8))
    assert np.isinf(display.distances).all()
    assert words_in(display)[1::2] == ["none found"] * 2


def test_a_row_shows_how_far_each_column_may_move():
    X, scale = load_iris(as_frame=True).data, np.array([1.0, 2.0, 0.5, 1.0])
    row = X.iloc[[110]]
    display = CertificateDisplay.from_estimator(
        of_flowers(), row, scale=scale, fixed_columns=["petal width (cm)"]
    )
    ranges = certified_ranges(of_flowers(), row, fixed_columns=["petal width (cm)"]).to_numpy()[0, :3]
    assert display.ranges.tolist() == ranges.tolist()
    assert display.column_names == list(X.columns[:3])
    assert display.rows[0].tolist() == row.to_numpy()[0, :3].tolist()
    bars = sorted(display.ax_.patches, key=lambda bar: -bar.get_y())
    assert [bar.get_x() for bar in bars] == pytest.approx(-ranges / scale[:3])
    assert [bar.get_width() for bar in bars] == pytest.approx(2 * ranges / scale[:3])
    moves = (display.others[0] - display.rows[0]) / scale[:3]
    assert display.ax_.get_lines()[1].get_xdata() == pytest.approx(moves)
    assert np.linalg.norm(moves) == pytest.approx(display.distances[0], rel=1e-5)
    for word in words_in(display):
        assert re.fullmatch(r"[-\d.e]+( \([-\d.e]+ to [-\d.e]+\))?", word)


def test_the_ends_of_ranges_are_rounded_to_lie_inside():
    rng = np.random.default_rng(0)
    for value, reach in zip(rng.normal(size=200), 10.0 ** rng.uniform(-6, 3, 200), strict=True):
        low, high = inner_ends(value, reach)
        # Of 16 digits, the last may be lost in the printing.
        slack = 1e-12 * (abs(value) + reach)
        assert value - reach - slack <= float(low)
        assert float(high) <= value + reach + slack
        assert float(low) == pytest.approx(value - reach, rel=1.1e-3)
        assert float(high) == pytest.approx(value + reach, rel=1.1e-3)


def test_certificates_of_what_is_no_picture_are_refused(few_digits):
    X, _ = few_digits
    with pytest.raises(
        ValueError, match=r"one row of a table, X\[:1\] say, got 3 rows. Pass image_shape"
    ):
        CertificateDisplay.from_estimator(fitted(), X[:3])
    with pytest.raises(ValueError, match="at most 12 images, got 13 rows"):
        CertificateDisplay.from_estimator(fitted(), X[:13], image_shape=(8, 8))
    with pytest.raises(ValueError, match=r"image_shape must be .* of 64, got \(8, 9\)"):
        CertificateDisplay.from_estimator(fitted(), X[:1], image_shape=(8, 9))
    with pytest.raises(ValueError, match="1 or 3 channels to be drawn, got 4"):
        CertificateDisplay.from_estimator(fitted(), X[:1], image_shape=(4, 4, 4))
    assert plt.get_fignums() == []
