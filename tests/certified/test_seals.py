"""Seals of stored states tell all values apart, and nothing that storing may change."""

import numpy as np
import pytest

from sklip.certified.seals import opened, seal_of, sealed

ZEROS = np.zeros(4)
VALUES = [
    *(None, True, 1, 1.0, "1", b"1", 0.0, -0.0, np.nan, "", [], {}),
    # Of what is no plain value, the type.
    *(1j, set()),
    *([1, 2], [[1], 2], [1, [2]], [[1, 2]], [12], ["1", "2"], ["12"], {1: 2}, {"1": 2}, {2: 1}),
    # The same bytes in other types and shapes, and the same numbers in other bytes.
    *(ZEROS, ZEROS.reshape(2, 2), ZEROS.reshape(1, 4), ZEROS.astype(np.int64), np.zeros(8, np.float32)),
    *(ZEROS.astype(np.float32), ZEROS.astype(object), ZEROS.reshape(2, 2).astype(object), -ZEROS),
    *(ZEROS[:3], ZEROS[0], ZEROS.tolist(), np.arange(4), np.arange(4).astype(object)),
]


def test_no_two_states_have_one_seal():
    states = [{"a": value} for value in VALUES]
    states += [{}, {"b": 1}, {"a": 1, "b": 1}, {"a": {"b": 1}}, {"a": [{"b": 1}]}]
    assert len({seal_of(state) for state in states}) == len(states)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1: 0, "1": 0}, {"1": 0, 1: 0}),
        ({"a": np.arange(4.0)}, {"a": np.arange(4.0).astype(">f8")}),
        ({"a": np.arange(6.0).reshape(2, 3)}, {"a": np.asfortranarray(np.arange(6.0).reshape(2, 3))}),
        ({"a": np.arange(4.0)}, {"a": np.arange(8.0)[:4]}),
        ({"a": [1, 2]}, {"a": (1, 2)}),
    ],
    ids=["order", "order of kinds", "order of bytes", "order in memory", "view", "tuple"],
)
def test_what_storing_may_change_is_no_part_of_a_seal(one, other):
    assert seal_of(one) == seal_of(other)
    assert opened({**sealed(one), **other}, "state").keys() == one.keys()
