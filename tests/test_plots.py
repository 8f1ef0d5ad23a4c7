"""Displays: what they compute, what they store, what they draw."""

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklip import CertifiedAccuracyDisplay, LipschitzClassifier, TradeoffDisplay, certificates
from sklip.scoring import certified_accuracy_scorer

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


def certified_accuracy_display():
    return CertifiedAccuracyDisplay.from_predictions([0, 1, 1], [0, 1, 0], [0.5, 1.0, 2.0], name="a")


def cv_results(**columns):
    return {
        "param_tau": np.array([10.0, 1.0, 100.0]),
        "mean_test_accuracy": np.array([0.9, 0.8, 0.95]),
        "mean_test_certified": np.array([0.5, 0.7, 0.1]),
        **columns,
    }


def tradeoff_display():
    return TradeoffDisplay.from_cv_results(cv_results(), "tau")


# -- the contract of both displays -----------------------------------------------------------------

DISPLAYS = pytest.mark.parametrize("make", [certified_accuracy_display, tradeoff_display])


@DISPLAYS
def test_display_computes_without_drawing_and_draws_on_request(make):
    display = make()
    assert plt.get_fignums() == []
    assert not hasattr(display, "ax_")
    assert display.plot() is display
    assert isinstance(display.ax_, Axes)
    assert isinstance(display.figure_, Figure)
    assert display.ax_.figure is display.figure_
    assert len(plt.get_fignums()) == 1
    lines = display.ax_.get_lines()
    assert lines
    assert lines == getattr(display, "lines_", None) or lines == [display.line_]
    assert display.ax_.get_xlabel()
    assert display.ax_.get_ylabel()
    display.figure_.canvas.draw()


@DISPLAYS
def test_display_draws_on_the_axes_it_is_given_and_opens_no_figure(make):
    figure, (left, right) = plt.subplots(1, 2)
    display = make().plot(ax=right)
    assert display.ax_ is right
    assert display.figure_ is figure
    assert plt.get_fignums() == [figure.number]
    assert not left.get_lines()
    # Two displays share axes.
    n_lines = len(right.get_lines())
    make().plot(ax=right)
    assert len(right.get_lines()) == 2 * n_lines


@DISPLAYS
def test_display_passes_keywords_to_every_line(make):
    display = make().plot(color="red", linestyle=":", marker="x")
    for line in display.ax_.get_lines():
        assert (line.get_color(), line.get_linestyle(), line.get_marker()) == ("red", ":", "x")


@DISPLAYS
def test_display_can_be_drawn_twice(make):
    display = make()
    first = display.plot().figure_
    second = display.plot().figure_
    assert first is not second
    assert len(plt.get_fignums()) == 2


@DISPLAYS
def test_display_shows_every_point(make):
    display = make().plot()
    (left, right), (bottom, top) = display.ax_.get_xlim(), display.ax_.get_ylim()
    for line in display.ax_.get_lines():
        x, y = line.get_data()
        assert left <= min(x)
        assert max(x) <= right
        assert bottom <= min(y)
        assert max(y) <= top


@DISPLAYS
def test_display_without_matplotlib_names_the_extra(make, monkeypatch):
    display = make()
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"scikit-lipschitz\[plot\]"):
        display.plot()


def test_importing_sklip_does_not_import_matplotlib():
    code = (
        "import sys, sklip, sklip.plots; "
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'matplotlib']; "
        "sklip.CertifiedAccuracyDisplay.from_predictions([0], [0], [1.0]); "
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


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


def legend_of(display):
    legend = display.ax_.get_legend()
    return None if legend is None else [text.get_text() for text in legend.get_texts()]


def test_name_of_the_curve_is_its_legend():
    nameless = CertifiedAccuracyDisplay.from_predictions([0], [0], [1.0])
    assert legend_of(nameless.plot()) is None
    assert legend_of(nameless.plot(name="later")) == ["later"]
    assert legend_of(nameless.plot(label="label")) == ["label"]
    display = certified_accuracy_display()
    assert legend_of(display.plot()) == ["a"]
    assert legend_of(display.plot(name="b")) == ["b"]
    assert legend_of(display.plot(name="b", label="c")) == ["c"]


# -- trade-off --------------------------------------------------------------------------------


def test_tradeoff_is_sorted_by_the_parameter():
    display = TradeoffDisplay.from_cv_results(cv_results(), "tau").plot()
    assert display.param_values.tolist() == [1.0, 10.0, 100.0]
    assert display.accuracy.tolist() == [0.8, 0.9, 0.95]
    assert display.robustness.tolist() == [0.7, 0.5, 0.1]
    accuracy, robustness = display.lines_
    assert accuracy.get_xdata().tolist() == robustness.get_xdata().tolist() == [1.0, 10.0, 100.0]
    assert accuracy.get_ydata().tolist() == [0.8, 0.9, 0.95]
    assert robustness.get_ydata().tolist() == [0.7, 0.5, 0.1]
    assert display.ax_.get_xscale() == "log"
    assert display.ax_.get_xlabel() == "tau"
    assert legend_of(display) == ["accuracy", "certified"]


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
    display = TradeoffDisplay.from_cv_results(results, "tau").plot()
    assert display.ax_.get_ylim()[1] >= 2.5


@pytest.mark.parametrize("missing", ["param_tau", "mean_test_accuracy", "mean_test_certified"])
def test_tradeoff_names_the_column_that_is_missing(missing):
    results = cv_results()
    del results[missing]
    with pytest.raises(ValueError, match=rf"cv_results must contain .*\['{missing}'\]"):
        TradeoffDisplay.from_cv_results(results, "tau")


def test_tradeoff_draws_a_real_search(few_digits):
    search = GridSearchCV(
        quick(),
        {"tau": [10.0, 1.0]},
        cv=2,
        scoring={"accuracy": "accuracy", "certified": certified_accuracy_scorer(0.05)},
        refit="certified",
    ).fit(*few_digits)
    display = TradeoffDisplay.from_cv_results(search.cv_results_, "tau").plot()
    assert display.param_values.tolist() == [1.0, 10.0]
    assert display.accuracy.tolist() == search.cv_results_["mean_test_accuracy"][::-1].tolist()
    assert display.robustness.tolist() == search.cv_results_["mean_test_certified"][::-1].tolist()
