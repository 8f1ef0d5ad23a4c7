"""What is computed of X takes the memory of a piece of it, and images are read where they lie."""

import gc
import tracemalloc

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback

from sklip import (
    LipschitzClassifier,
    average_certified_radius_scorer,
    certificates,
    certified_accuracy_scorer,
    certified_ranges,
    nearest_rival,
    predict_or_reject,
    predict_with_radii,
    rows,
)
from sklip.metrics import (
    average_certified_radius_score,
    average_normalized_margin_score,
    certified_accuracy_score,
    normalized_margins,
)

N_ROWS = 50_000
A_PIECE = 350_000  # bytes; one number of each row takes 400,000


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    # Of two classes, as pieces then are few: a row takes the least memory.
    return rng.normal(size=(N_ROWS, 4)).astype(np.float32), rng.integers(0, 2, N_ROWS)


@pytest.fixture(scope="module")
def models(table):
    X, y = table[0][:600], table[1][:600]
    clf = LipschitzClassifier(hidden_layer_sizes=(), max_epochs=2, dtype="float32", random_state=0)
    return clf.fit(X, y), make_pipeline(StandardScaler(), clf).fit(X, y)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(rows, "VALUES_AT_ONCE", 2**14)


@pytest.fixture
def few_pieces(monkeypatch):
    monkeypatch.setattr(rows, "VALUES_AT_ONCE", 2**15)  # still 49: steps cost time a piece


def beyond_the_result(function, *arrays):
    """Peak of what NumPy allocates while a function runs, less what it returns."""
    function(*(array[:100] for array in arrays))  # whatever is made once
    gc.collect()
    tracemalloc.start()
    try:
        result = function(*arrays)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    arrays = result if isinstance(result, tuple) else (result,)
    return peak - sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


OF_A_CLASSIFIER = [
    *("predict", "predict_proba", "predict_log_proba", "decision_function"),
    *("certificates_", "predict_with_radii", "rounding_loss"),
]


@pytest.mark.parametrize("method", OF_A_CLASSIFIER)
def test_a_classifier_makes_nothing_of_all_rows_but_its_answer(table, models, small_pieces, method):
    call = getattr(models[0], method)
    # Labels are there beside the radii.
    kept = 8 * N_ROWS if method == "certificates_" else 0
    assert beyond_the_result(call, table[0]) < kept + A_PIECE


# Numbers of each row that are there at the same time, beside the answer.
OF_A_PIPELINE = {
    "certificates": (0, lambda model, X, y: certificates(model, X)),
    "predict_with_radii": (0, lambda model, X, y: predict_with_radii(model, X)),
    "certified_ranges": (0, lambda model, X, y: certified_ranges(model, X)),
    "nearest_rival": (0, lambda model, X, y: nearest_rival(model, X)),
    "predict_or_reject": (2, lambda model, X, y: predict_or_reject(model, X, 0.1, reject_label=-1)),
    "certified accuracy": (2.3, lambda model, X, y: certified_accuracy_scorer(0.1)(model, X, y)),
    "mean radius": (2.8, lambda model, X, y: average_certified_radius_scorer()(model, X, y)),
}


@pytest.mark.parametrize("name", OF_A_PIPELINE)
def test_behind_steps_little_more_than_the_answer_is_there(table, models, few_pieces, name):
    kept, call = OF_A_PIPELINE[name]
    beyond = beyond_the_result(lambda X, y: call(models[1], X, y), *table)
    assert beyond < 8 * kept * N_ROWS + A_PIECE


OF_METRICS = {
    "certified accuracy": (1.2, certified_accuracy_score, {"eps": 0.1}),
    "mean radius": (1.6, average_certified_radius_score, {}),
    "margins": (0, lambda y, labels, radii, scores, **_: normalized_margins(scores), {}),
    "mean margin": (
        *(1.5, lambda y, labels, radii, scores, **of: average_normalized_margin_score(y, scores, **of)),
        {"classes": [0, 1, 2]},
    ),
}


@pytest.mark.parametrize("name", OF_METRICS)
def test_metrics_keep_few_numbers_of_each_row(table, models, small_pieces, name):
    kept, metric, arguments = OF_METRICS[name]
    (clf, _), (X, y) = models, table
    given = [y, *clf.predict_with_radii(X)]
    if "margin" in name:
        given.append(np.random.default_rng(0).normal(size=(N_ROWS, 3)))

    def call(weight, *given):
        return metric(*given, sample_weight=weight, **arguments)

    assert beyond_the_result(call, np.ones(N_ROWS), *given) < 8 * kept * N_ROWS + A_PIECE


def test_answers_do_not_depend_on_the_size_of_pieces(table, models, monkeypatch):
    X = table[0][:600]
    clf, pipeline = models
    calls = [
        *(lambda name=name: getattr(clf, name)(X) for name in OF_A_CLASSIFIER),
        *(lambda of=of: of[1](pipeline, X, table[1][:600]) for of in OF_A_PIPELINE.values()),
    ]
    whole = [call() for call in calls]
    monkeypatch.setattr(rows, "VALUES_AT_ONCE", 2**12)
    for before, call in zip(whole, calls, strict=True):
        np.testing.assert_allclose(call(), before, rtol=1e-6)


class Seen(Callback):
    """Keeps the tensor that batches are drawn from."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        Seen.inputs = X.X


IN_MEMORY = {
    "channels first": lambda images: images,
    "channels last": lambda images: np.ascontiguousarray(images.transpose(0, 2, 3, 1)),
    "a view of channels last": lambda images: np.ascontiguousarray(
        images.transpose(0, 2, 3, 1)
    ).transpose(0, 3, 1, 2),
    "columns first": lambda images: np.ascontiguousarray(images.transpose(0, 1, 3, 2)).transpose(
        0, 1, 3, 2
    ),
}


@pytest.mark.parametrize("stored", IN_MEMORY.values(), ids=IN_MEMORY)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_images_are_never_copied_as_a_whole_whatever_their_order(stored, dtype):
    images = np.random.default_rng(0).integers(0, 255, (40, 3, 8, 8)).astype(dtype)
    y = np.arange(40) % 2
    clf = LipschitzClassifier(
        input_shape=(3, 8, 8), conv_channels=(2,), hidden_layer_sizes=(4,), max_epochs=2
    )
    clf.set_params(batch_size=16, random_state=0, callbacks=[Seen()])
    expected = clf.fit(images, y).certificates_(images)
    X = stored(images)
    clf.fit(X, y)
    assert Seen.inputs.data_ptr() == X.ctypes.data
    assert np.shares_memory(clf.network_rows(X), X)
    np.testing.assert_array_equal(clf.certificates_(X), expected)
