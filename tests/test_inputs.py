"""How X, labels and weights come in."""

import enum
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklip import LipschitzClassifier, certificates, counterfactual
from sklip.inputs import (
    as_labels,
    as_rows,
    cast_rows,
    check_input_shape,
    check_sample_weight,
    encode_labels,
    inferred_input_shape,
)
from sklip.rows import as_numpy

# -- input_shape -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 28, 28), [3, 8, 9], np.array([2, 4, 5])])
def test_input_shape_is_three_python_integers(shape):
    checked = check_input_shape(shape)
    assert checked == tuple(int(side) for side in shape)
    assert all(type(side) is int for side in checked)


def test_no_input_shape_is_none():
    assert check_input_shape(None) is None


@pytest.mark.parametrize(
    "shape",
    [(28, 28), (1, 1, 28, 28), (), (0, 28, 28), (1, -28, 28), (1.0, 28, 28), (True, 28, 28), "abc"],
)
def test_input_shape_must_be_three_positive_integers(shape):
    with pytest.raises(ValueError, match=r"^input_shape must be three positive integers"):
        check_input_shape(shape)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 8), None),
        ((5,), None),
        ((5, 2, 2, 2, 2), None),
        ((5, 8, 9), (1, 8, 9)),
        ((5, 1, 8, 9), (1, 8, 9)),
        ((5, 3, 32, 32), (3, 32, 32)),
        # The last axis looks like channels, but the first looks so as well.
        ((5, 1, 28, 3), (1, 28, 3)),
        ((5, 3, 4, 3), (3, 4, 3)),
    ],
)
def test_shape_of_images_is_inferred_and_that_of_tables_is_not(shape, expected):
    assert inferred_input_shape(np.zeros(shape), None) == expected
    assert inferred_input_shape(torch.zeros(shape), None) == expected


def test_what_has_no_shape_is_left_to_scikit_learn():
    assert inferred_input_shape([[1.0, 2.0]], None) is None


@pytest.mark.parametrize("shape", [(5, 28, 28, 1), (5, 32, 32, 3), (5, 9, 2, 4)])
def test_images_with_the_channels_last_are_refused_unless_their_shape_is_given(shape):
    given = (shape[3], shape[1], shape[2])
    # The remedy stands in the message.
    with pytest.raises(ValueError, match=r"channels last.*input_shape=") as error:
        inferred_input_shape(np.zeros(shape), None)
    assert str(given) in str(error.value)
    assert inferred_input_shape(np.zeros(shape), given) == given


def test_a_given_input_shape_is_taken_as_it_is():
    for shape in [(5, 12), (5, 3, 4), (5, 3, 2, 2), (5, 2, 2, 3)]:
        assert inferred_input_shape(np.zeros(shape), (3, 2, 2)) == (3, 2, 2)


# -- as_rows -----------------------------------------------------------------------------------


def test_images_become_rows_in_channels_first_order():
    images = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    rows = as_rows(images, (3, 4, 5), "Name")
    for n in range(2):
        flat = [images[n, c, h, w] for c in range(3) for h in range(4) for w in range(5)]
        assert rows[n].tolist() == flat


def test_explicit_input_shape_transposes_channels_last_as_by_hand():
    images = np.arange(2 * 4 * 5 * 3).reshape(2, 4, 5, 3)
    rows = as_rows(images, (3, 4, 5), "Name")
    for n in range(2):
        flat = [images[n, h, w, c] for c in range(3) for h in range(4) for w in range(5)]
        assert rows[n].tolist() == flat
    by_hand = as_rows(np.moveaxis(images, 3, 1), (3, 4, 5), "Name")
    assert rows.tolist() == by_hand.tolist()


def test_a_cube_is_read_with_the_channels_first():
    # Both orders fit; only the one that needs no transposition is ever assumed.
    images = np.arange(27).reshape(1, 3, 3, 3)
    assert as_rows(images, (3, 3, 3), "Name").tolist() == [list(range(27))]


def test_images_without_a_channel_axis_have_one_channel():
    images = np.arange(2 * 4 * 5).reshape(2, 4, 5)
    expected = images.reshape(2, 20).tolist()
    assert as_rows(images, (1, 4, 5), "Name").tolist() == expected
    assert as_rows(images[:, None], (1, 4, 5), "Name").tolist() == expected
    assert as_rows(images[..., None], (1, 4, 5), "Name").tolist() == expected


@pytest.mark.parametrize(
    ("shape", "input_shape", "message"),
    [
        (
            (2, 4, 4),
            (1, 5, 5),
            r"images of shape \(1, 4, 4\).*Name is expecting images of shape \(1, 5, 5\)",
        ),
        ((2, 3, 5, 4), (3, 4, 5), r"images of shape \(3, 5, 4\).*\(3, 4, 5\)"),
        ((2, 5, 4, 3), (3, 4, 5), r"images of shape \(5, 4, 3\).*\(3, 4, 5\)"),
        ((2, 4, 5, 2), (3, 4, 5), r"images of shape \(4, 5, 2\).*\(3, 4, 5\)"),
        ((2, 4, 5), (3, 4, 5), r"images of shape \(1, 4, 5\).*\(3, 4, 5\)"),
        ((2, 4, 5), (20,), r"images of shape \(1, 4, 5\).*Name is expecting flat rows"),
        ((2, 1, 4, 5), (20,), r"images of shape \(1, 4, 5\).*flat rows"),
    ],
)
def test_images_of_another_shape_are_refused(shape, input_shape, message):
    with pytest.raises(ValueError, match=message):
        as_rows(np.zeros(shape), input_shape, "Name")


def test_everything_else_is_left_to_scikit_learn():
    table = np.zeros((2, 3))
    frame = pd.DataFrame(table)
    for X in (table, frame, table.tolist(), "text", None, np.zeros((2, 2, 2, 2, 2))):
        assert as_rows(X, (3,), "Name") is X
    images = np.zeros((2, 2, 2))
    assert as_rows(images, None, "Name") is images


@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 3), (4, 1, 2, 3)])
def test_tensors_count_as_arrays(shape):
    tensor = torch.arange(24.0).reshape(shape).requires_grad_()
    input_shape = (6,) if len(shape) == 2 else (1, 2, 3)
    rows = as_rows(tensor, input_shape, "Name")
    assert isinstance(rows, np.ndarray)
    assert rows.tolist() == np.arange(24.0).reshape(4, 6).tolist()


def test_inputs_are_not_written_to():
    images = np.arange(24.0).reshape(2, 3, 2, 2)
    images.flags.writeable = False
    rows = as_rows(images, (3, 2, 2), "Name")
    cast_rows(rows, "float32")
    assert images.tolist() == np.arange(24.0).reshape(2, 3, 2, 2).tolist()


# -- cast_rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("given", [np.uint8, np.int64, np.float32, np.float64, bool])
def test_rows_are_cast_to_the_precision_of_the_network(given, dtype):
    rows = np.array([[0, 1], [1, 100]]).astype(given)
    cast = cast_rows(rows, dtype)
    assert cast.dtype == dtype
    assert cast.tolist() == rows.astype(float).tolist()
    if rows.dtype == dtype:
        assert cast is rows


# The largest float32, half its spacing above which the cast rounds up to infinity.
_LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("value", [1e39, -1e39, _LARGEST + 2.0**103])
def test_a_value_too_large_for_the_precision_is_refused(value):
    with pytest.raises(ValueError, match=r"infinity or a value too large for dtype\('float32'\)"):
        cast_rows(np.array([[0.0, value]]), "float32")
    assert cast_rows(np.array([[0.0, value]]), "float64")[0, 1] == value


def test_the_largest_value_is_not_too_large():
    assert cast_rows(np.array([[_LARGEST]]), "float32")[0, 0] == np.float32(_LARGEST)


# -- lists of images, one image, types that NumPy lacks ----------------------------------------

GRAY = np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("container", [list, tuple])
@pytest.mark.parametrize(
    "make",
    [np.array, torch.from_numpy, Image.fromarray, np.ndarray.tolist],
    ids=lambda make: make.__name__,
)
def test_a_list_of_images_is_the_array_of_them(make, container):
    np.testing.assert_array_equal(as_numpy(container(make(image) for image in GRAY)), GRAY)


def test_images_of_pillow_have_their_channels_last_and_those_of_arrays_are_taken_as_they_are():
    first = np.moveaxis(COLOURS, 3, 1)
    np.testing.assert_array_equal(as_numpy([Image.fromarray(image) for image in COLOURS]), first)
    np.testing.assert_array_equal(as_numpy(list(first)), first)
    np.testing.assert_array_equal(as_numpy(list(COLOURS)), COLOURS)


@pytest.mark.parametrize(
    "rows",
    [[[1.0, 2.0], [3.0, 4.0]], [np.ones(2), np.ones(2)], [1, 2], [], ["a"], [[1.0, [2.0]]], [None]],
    ids=str,
)
def test_any_other_list_is_left_to_scikit_learn(rows):
    assert as_numpy(rows) is rows


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([GRAY[0], GRAY[1, :3]], r"images of one shape, got .* shapes \(3, 5\), \(4, 5\); resize"),
        ([Image.fromarray(GRAY[0]), Image.fromarray(COLOURS[0])], r"shapes \(3, 4, 5\), \(4, 5\)"),
        ([Image.fromarray(COLOURS[0]).convert("P")], r"mode 'P'.*palette.*convert\('RGB'\)"),
        (Image.fromarray(GRAY[0]), r"Expected a list of images, got one image.*pass \[image\]"),
    ],
)
def test_lists_that_are_no_array_of_images_say_why(images, message):
    with pytest.raises(ValueError, match=message):
        as_numpy(images)


@pytest.mark.parametrize(
    ("shape", "input_shape"),
    [((4, 5), (1, 4, 5)), ((3, 4, 5), (3, 4, 5)), ((4, 5, 3), (3, 4, 5))],
)
def test_one_image_is_told_from_many(shape, input_shape):
    with pytest.raises(ValueError, match=r"^Expected images of shape .*got one image.*X\[np.newaxis\]"):
        as_rows(np.zeros(shape), input_shape, "Name")
    # The remedy works, and what else has two or three axes is no image.
    assert as_rows(np.zeros(shape)[np.newaxis], input_shape, "Name").shape == (1, math.prod(shape))


@pytest.mark.parametrize(
    ("shape", "input_shape"), [((1, 5), (1, 1, 5)), ((1, 4, 5), (1, 4, 5)), ((4, 20), (1, 4, 5))]
)
def test_rows_and_gray_images_are_not_taken_for_one_image(shape, input_shape):
    assert as_rows(np.zeros(shape), input_shape, "Name").shape[1] == math.prod(input_shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_floats_that_numpy_lacks_keep_their_values(dtype):
    values = (torch.arange(-8.0, 8.0) / 4).to(dtype)
    assert as_numpy(values).dtype == np.float32
    # Each is a multiple of 1/4 below 4: the types hold it.
    assert as_numpy(values).tolist() == (np.arange(-8.0, 8.0) / 4).tolist()


def test_tensors_are_read_whatever_follows_them_and_however_they_lie():
    tensor = torch.arange(6.0, requires_grad=True).reshape(3, 2)
    np.testing.assert_array_equal(as_numpy(list(tensor)), [[0, 1], [2, 3], [4, 5]])
    complex_numbers = torch.tensor([1 + 2j])
    assert as_numpy(complex_numbers.conj()).tolist() == [1 - 2j]
    assert as_numpy(complex_numbers.conj().imag).tolist() == [-2]  # a view that negates


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(2).to_sparse(),
        lambda: torch.empty(2, 2, device="meta"),
    ],
    ids=["sparse", "without values"],
)
def test_tensors_that_are_no_array_are_refused(make):
    with pytest.raises(TypeError, match=r"^a tensor must be dense and hold its values"):
        as_numpy(make())


def test_masked_values_are_refused_and_a_mask_of_nothing_is_none():
    table = np.ma.masked_array(np.ones((2, 3)), mask=False)
    assert as_rows(table, None, "Name") is table
    table[0, 1] = np.ma.masked
    with pytest.raises(ValueError, match=r"^Input X has masked values.*X.filled"):
        as_rows(table, None, "Name")


def test_a_classifier_takes_lists_of_images_and_certifies_them():
    y = np.arange(6) % 2
    pictures = [Image.fromarray(image) for image in COLOURS]
    quick = {"max_epochs": 2, "conv_channels": (4,), "hidden_layer_sizes": (8,), "random_state": 0}
    clf = LipschitzClassifier(**quick).fit(pictures, y)
    assert clf.input_shape_ == (3, 4, 5)
    by_array = LipschitzClassifier(**quick).fit(np.moveaxis(COLOURS, 3, 1), y)
    radii = certificates(by_array, np.moveaxis(COLOURS, 3, 1))
    np.testing.assert_array_equal(certificates(clf, pictures), radii)
    np.testing.assert_array_equal(clf.certified_network_.radii([*np.moveaxis(COLOURS, 3, 1)]), radii)
    with pytest.raises(ValueError, match="got one image"):
        certificates(clf, COLOURS[0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_mapped_file_with_the_channels_last_is_read_by_its_input_shape(tmp_path, dtype):
    images = np.memmap(tmp_path / "images", dtype, "w+", shape=COLOURS.shape)
    images[:] = COLOURS
    quick = {"max_epochs": 2, "conv_channels": (4,), "hidden_layer_sizes": (8,), "random_state": 0}
    y = np.arange(6) % 2
    with pytest.raises(ValueError, match=r"channels last; pass input_shape=\(3, 4, 5\)"):
        LipschitzClassifier(**quick).fit(images, y)
    clf = LipschitzClassifier(input_shape=(3, 4, 5), **quick).fit(images, y)
    by_array = LipschitzClassifier(**quick).fit(np.moveaxis(COLOURS, 3, 1), y)
    np.testing.assert_array_equal(
        clf.certificates_(images), by_array.certificates_(np.moveaxis(COLOURS, 3, 1))
    )


# -- labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classes",
    [
        np.array([-3, 0, 7]),
        np.array([0.5, 1.5]),
        np.array(["axolotl", "cat", "dog"]),
        np.array(["axolotl", "cat"], dtype=object),
        np.array([False, True]),
        np.array([4]),
    ],
    ids=str,
)
def test_labels_become_indices_of_their_classes(classes):
    labels = np.random.default_rng(0).choice(classes, 20)
    codes = encode_labels(labels, classes, None)
    assert [classes[code] for code in codes] == labels.tolist()
    again = encode_labels(labels, classes, classes[::-1].tolist())
    assert again.tolist() == codes.tolist()


@pytest.mark.parametrize(
    ("labels", "classes", "unseen"),
    [
        ([1, 9, 0], [0, 1], "[9]"),
        ([-1, 1, -1], [0, 1], "[-1]"),
        ([1, 2, 3], [1, 3], "[2]"),
        (["cow", "cat"], ["cat", "dog"], "['cow']"),
        (["a", "z"], ["cat", "dog"], "['a', 'z']"),
    ],
)
def test_labels_of_no_class_are_refused_by_name(labels, classes, unseen):
    with pytest.raises(ValueError, match=r"^y contains labels that are not in classes=") as error:
        encode_labels(np.array(labels), np.array(classes), None)
    assert str(error.value).endswith(f": {unseen}.")
    assert str(classes) in str(error.value)


@pytest.mark.parametrize("repeated", [[0], [0, 1, 2], [0, 2]])
def test_classes_must_stay_those_of_the_first_call(repeated):
    with pytest.raises(ValueError, match=r"first call to partial_fit, \[0, 1\], got "):
        encode_labels(np.array([0]), np.array([0, 1]), repeated)


class Letter(str, enum.Enum):  # noqa: UP042
    A, B = "a", "b"


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([None, "a", "b"], "NaN or None, which is no label; leave these rows out"),
        ([math.nan, "a"], "NaN or None"),
        (pd.Series(["a", pd.NA, "b"], dtype=object), "NaN or None"),
        (np.array([0, np.float32(math.nan)], dtype=object), "NaN or None"),
        (pd.Series(["a", None], dtype="string"), "NaN or None"),
        (pd.Series([1, None], dtype="Int64"), "NaN or None"),
        (pd.Series(["a", None], dtype="category"), "NaN or None"),
        (np.array(["2020-01-01", "NaT"], "M8[D]"), "NaN or None"),
        ([np.timedelta64(1, "D"), np.timedelta64("NaT", "D")], "NaN or None"),
        (pd.Series([pd.Timestamp("2020-01-01"), pd.NaT]), "NaN or None"),
        (pd.Categorical(["a", 1]), "labels of one kind, got int, str"),
        (np.ma.masked_equal([0, 1], 1), "masked values, which would count; leave these rows out"),
        (np.array(["NaT", "2020-01-01"], dtype="datetime64[D]"), "NaN or None"),
        (np.array([math.nan, 1]), "NaN or None"),
        (pd.Series([1, "1"], dtype="category"), "labels of one kind, got int, str"),
        ([2**53 + 1, 2.0**53], "y has 9007199254740993, which becomes 9007199254740992.0 beside"),
        ([np.int64(2**53 + 1), np.float64(1)], "becomes 9007199254740992.0 beside the other labels"),
        ([-1, 2**63 + 1], "y has 9223372036854775809, which becomes 9.2"),
        (["a", "a\0"], r"y has 'a\\x00', which becomes 'a' beside the other labels; pass"),
        ([Letter.A, Letter.B], "'a'>, which becomes 'L' beside the other labels"),
        ([1, "a"], r"labels of one kind, got int, str; pass \[str\(label\) for label in y\]"),
        (np.array(["a", b"a"], dtype=object), "labels of one kind, got bytes, str"),
        (
            np.array([0, 1], dtype=object),
            r"^Unknown label type: .*numbers of type object.*pass np.asarray\(y.tolist\(\)\)",
        ),
    ],
)
def test_labels_that_are_missing_or_mixed_say_so(y, message):
    with pytest.raises(ValueError, match=message):
        as_labels(y)


@pytest.mark.parametrize(
    "y",
    [
        ["a", np.str_("b")],
        np.array(["a", "b"], dtype=object),
        np.array([1.5]),
        np.ma.array([0, 1]),
        pd.Series(["a", "b"], dtype="category"),
        np.array(["2020-01-01"], "M8[D]"),
        pd.Series(["a", "b"], dtype="string"),
        [True, 1, 0],
        [2**53, 2**53 + 1],
        [1, np.float32(2)],
        pd.DataFrame({"a": [0, 1], 1: ["x", "y"]}),
        [],
        [[1], [0]],
        None,
        "a",
    ],
    ids=str,
)
def test_other_labels_are_left_to_scikit_learn(y):
    assert as_labels(y) is y


@pytest.mark.parametrize(
    ("y", "dtype"),
    [
        (pd.Series([2**60, 2**60 + 1], dtype="Int64"), "int64"),
        (pd.array([0, 1], dtype="UInt8"), "int64"),
        (pd.Series([True, False], dtype="boolean"), "bool"),
        (pd.Series([True, False], dtype="category"), "bool"),
        (pd.Categorical([1, 2], categories=[2, 3, 1]), "int64"),
    ],
    ids=str,
)
def test_numbers_of_pandas_keep_their_values(y, dtype):
    held = as_labels(y)
    assert held.tolist() == y.tolist()
    assert held.dtype == dtype


# -- weights -----------------------------------------------------------------------------------


def test_no_weights_are_none():
    assert check_sample_weight(None, 3) is None


@pytest.mark.parametrize(
    "weights", [[1, 0, 2], (1.0, 0.0, 2.0), np.array([1, 0, 2], np.float32), pd.Series([1, 0, 2])]
)
def test_weights_become_floats(weights):
    checked = check_sample_weight(weights, 3)
    assert checked.dtype == np.float64
    assert checked.tolist() == [1.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 1.0], r"sample_weight.shape == \(2,\), expected \(3,\)"),
        ([[1.0], [1.0], [1.0]], r"sample_weight must be 1D, got shape \(3, 1\)"),
        ([1.0, -1e-9, 1.0], r"Negative values in data passed to `sample_weight`"),
        ([0.0, 0.0, 0.0], r"at least one non-zero"),
        ([1.0, math.nan, 1.0], "sample_weight contains NaN"),
        ([1.0, math.inf, 1.0], "sample_weight contains infinity"),
        ([1e308, 1e308, 1e308], "sum that is finite and no subnormal number, got inf; divide it by"),
        ([5e-324, 0.0, 0.0], "sum that is finite and no subnormal number, got 5e-324"),
        (["a", "b", "c"], "could not convert string to float"),
        ([10**400, 1, 1], "^sample_weight has an integer that is too large"),
        ([np.longdouble("1e4000")] * 3, "sample_weight contains infinity"),
    ],
)
def test_weights_must_be_one_a_sample_and_not_all_zero(weights, message):
    with pytest.raises(ValueError, match=message):
        check_sample_weight(weights, 3)


def test_integers_beyond_float64_are_refused():
    X, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    huge = np.array([[0, 10**400, 1]] * 20, dtype=object)
    clf = LipschitzClassifier(hidden_layer_sizes=(4,), max_epochs=1)
    pipeline = make_pipeline(StandardScaler(), clone(clf)).fit(X, y)
    fitted, passing = clone(clf).fit(X, y), make_pipeline("passthrough", clone(clf)).fit(X, y)
    for refused in (
        lambda: clf.fit(huge, y),
        lambda: fitted.predict(huge),
        lambda: fitted.partial_fit(huge, y),
        lambda: certificates(passing, huge),
    ):
        with pytest.raises(ValueError, match=r"^X has an integer that is too large for float64"):
            refused()
    for values in (huge, huge.tolist()):
        for fixed in ((), [1]):
            with pytest.raises(ValueError, match=r"^column 1 of X has an integer that is too large"):
                certificates(pipeline, values, fixed_columns=fixed)
        with pytest.raises(TypeError, match="column 1 of X must hold numbers to be moved"):
            counterfactual(pipeline, values)
