"""Parameters that are set, and weights that are zero: what a fit takes up, keeps or refuses."""

import numpy as np
import pytest
import torch

from sklip import LipschitzClassifier
from sklip.certified import Arithmetic, CertifiedNetwork
from sklip.certified.seals import opened, sealed
from sklip.layers import Center, GroupSort2, Sequential, SpectralLinear


def quick(**parameters):
    defaults = {"hidden_layer_sizes": (16,), "max_epochs": 5, "random_state": 0}
    return LipschitzClassifier(**{**defaults, **parameters})


@pytest.mark.parametrize("tau", [30.0, -1.0])
def test_probabilities_are_those_of_the_fitted_tau(tau, few_digits):
    X, y = few_digits
    clf = quick(tau=2.0).fit(X, y)
    expected = clf.predict_proba(X)
    np.testing.assert_array_equal(clf.set_params(tau=tau).predict_proba(X), expected)
    assert clf.tau_ == 2.0


def test_rows_of_weight_zero_choose_no_widths_and_no_batches(digits):
    X, y = digits
    weight = np.zeros(len(X))
    weight[:900] = 1.0
    clf = LipschitzClassifier(max_epochs=1).fit(X, y, weight)
    assert len(X) > 1024
    assert clf.net_.module_[1].out_features == 128
    assert clf.net_.batch_size == 900


CHANGES = {
    "hidden_layer_sizes": {"hidden_layer_sizes": (8,)},
    "architecture": {"architecture": "cnn", "input_shape": (1, 8, 8)},
    "dtype": {"dtype": "float32"},
    "input_shape": {"input_shape": (1, 8, 8)},
}


@pytest.mark.parametrize(("name", "changes"), CHANGES.items(), ids=CHANGES)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_another_network_is_refused_while_training_goes_on(name, changes, method, few_digits):
    X, y = few_digits
    clf = quick(warm_start=True).fit(X, y)
    before = clf.predict_proba(X)
    with pytest.raises(ValueError, match=f"{name}.*can't change while training goes on"):
        getattr(clf.set_params(**changes), method)(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def weights(clf):
    return torch.cat([value.detach().flatten() for value in clf.to_torch().parameters()]).numpy()


def test_partial_fit_takes_up_a_changed_learning_rate(few_digits):
    X, y = few_digits
    models = [quick(solver="muon", learning_rate=0.01).fit(X, y) for _ in range(2)]
    start = weights(models[0])
    steps = []
    for model, rate in zip(models, (0.01, 1e-6), strict=True):
        moved = weights(model.set_params(learning_rate=rate).partial_fit(X, y)) - start
        steps.append(np.abs(moved).max())
    assert steps[1] < 1e-3 * steps[0]


def test_partial_fit_takes_up_a_changed_tau(few_digits):
    X, y = few_digits
    clf = quick(tau=2.0).fit(X, y)
    clf.set_params(tau=20.0).partial_fit(X, y)
    assert clf.net_.criterion_.tau == 20.0
    assert clf.tau_ == 20.0


def test_partial_fit_keeps_the_momentum_while_nothing_changes(few_digits):
    X, y = few_digits
    clf = quick().fit(X, y)
    net = clf.net_
    assert clf.partial_fit(X, y).net_ is net
    assert clf.set_params(tau=20.0).partial_fit(X, y).net_ is not net


def with_center(value, first):
    def architecture(input_shape, n_outputs):
        center = Center(input_shape[0])
        center.center.fill_(value)
        layers = [center, SpectralLinear(input_shape[0], input_shape[0])]
        head = SpectralLinear(input_shape[0], n_outputs)
        return Sequential(*(layers if first else reversed(layers)), GroupSort2(), head)

    return architecture


@pytest.mark.parametrize(("value", "first"), [(1.5, True), (1.5, False), (0.0, False)])
def test_a_center_that_a_user_filled_or_put_elsewhere_stays(value, first, few_digits):
    X, y = few_digits
    clf = quick(architecture=with_center(value, first)).fit(X, y)
    (center,) = (layer for layer in clf.to_torch() if isinstance(layer, Center))
    np.testing.assert_array_equal(center.center.numpy(), value)


def test_a_first_center_of_zeros_is_filled_with_the_mean(few_digits):
    X, y = few_digits
    clf = quick(architecture=with_center(0.0, True)).fit(X, y)
    np.testing.assert_allclose(clf.to_torch()[0].center.numpy(), X.mean(axis=0))


def test_a_stored_model_is_proven_for_the_blocks_it_was_stored_with(few_digits):
    X, y = few_digits
    clf = quick(dtype="float32", hidden_layer_sizes=(128,)).fit(X, y)
    state = opened(clf.__getstate__(), "model")
    assert not {"rounding", "margin_bounds", "lipschitz_bound"} & set(state["certified_network_"])
    state["certified_network_"]["block"] = 256
    loaded = quick()
    loaded.__setstate__(sealed(state))
    network = loaded.certified_network_
    assert network.arithmetic == Arithmetic("float32", 256, 288)
    expected = CertifiedNetwork(clf.to_torch(), clf.input_shape_, network.arithmetic)
    loaded, anew, before = (
        each.precisions[0].from_length.slope for each in (network, expected, clf.certified_network_)
    )
    np.testing.assert_array_equal(loaded, anew)
    assert loaded.max() > before.max()


def test_nothing_proven_lies_beside_the_certified_network(few_digits):
    clf = quick().fit(*few_digits)
    fitted = {name for name in vars(clf) if name.endswith("_") and not name.startswith("_")}
    assert fitted == {
        *("certified_network_", "classes_", "device_", "dtype_", "history_", "input_shape_"),
        *("lipschitz_bound_", "n_features_in_", "n_iter_", "net_", "solver_", "tau_"),
        *("column_weights_", "feature_std_"),
    }
    assert "rounding_slopes_" not in clf._repr_html_()


def test_methods_do_not_end_in_an_underscore_but_for_certificates():
    methods = {name for name in dir(LipschitzClassifier) if name.endswith("_") and name[0] != "_"}
    assert methods <= {"certificates_"} | {
        name for name in LipschitzClassifier.__annotations__ if name.endswith("_")
    }


def test_a_training_that_fails_leaves_the_model_as_it_was(few_digits):
    X, y = few_digits
    clf = quick(warm_start=True).fit(X, y)
    before = {name: value for name, value in vars(clf).items() if name.endswith("_")}
    expected = clf.predict_proba(X)
    with pytest.raises(ValueError, match="non-finite"):
        clf.set_params(learning_rate=1e300, solver="adam").fit(X, y)
    assert {name: value for name, value in vars(clf).items() if name.endswith("_")} == before
    np.testing.assert_array_equal(clf.predict_proba(X), expected)


def test_reading_sets_nothing_but_what_scikit_learn_sets(few_digits):
    X, y = few_digits
    clf = quick()
    data = clf._read(X, y, None, None, goes_on=False)
    assert {name for name in vars(clf) if name.endswith("_")} == {"n_features_in_"}
    assert data.rows.shape == X.shape
    assert data.input_shape == (64,)
    np.testing.assert_array_equal(data.classes[data.targets], y)
