"""What is proven along a chain of maps is not below the recurrence in fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest

from sklip.certified.arithmetic import Affine, Arithmetic
from sklip.certified.maps import Course, MapBound, composed, longest_input

FLOAT32 = Arithmetic("float32")
# What roundings of bounds may add to them.
SLACK = Fraction(1, 2**38)


def random_chain(rng, n_maps):
    """Maps with random constants, errors and values at 0."""

    def drawn():
        constant, at_zero, offset, slope = (float(value) for value in rng.uniform(0.5, 1.5, size=4))
        return MapBound(constant, lambda arithmetic: Affine(offset, slope * 1e-7), at_zero)

    return [drawn() for _ in range(n_maps)]


def exact_course(chain, start):
    """Values and errors, as offset and slope, by the recurrence of Note [Rounding along a chain]."""
    value, error = (Fraction(0), Fraction(1)), (Fraction(start.offset), Fraction(start.slope))
    values, errors = [value], [error]
    for bound in chain:
        own = bound.rounding(FLOAT32)
        constant, c, d = map(Fraction, (bound.constant, own.slope, own.offset))
        error = (
            constant * error[0] + c * (value[0] + error[0]) + d,
            constant * error[1] + c * (value[1] + error[1]),
        )
        value = (constant * value[0] + Fraction(bound.at_zero), constant * value[1])
        values.append(value)
        errors.append(error)
    return values, errors


def assert_a_little_above(found, exact):
    for number, least in zip((found.offset, found.slope), exact, strict=True):
        assert least <= Fraction(number) <= least * (1 + SLACK)


@pytest.mark.parametrize("seed", range(20))
def test_bounds_along_a_chain_are_the_exact_ones_or_a_little_above(seed):
    rng = np.random.default_rng(seed)
    chain, start = random_chain(rng, 12), Affine(*map(float, rng.uniform(size=2)))
    course = Course(chain, FLOAT32, start)
    for found, exact in zip((course.values, course.errors), exact_course(chain, start), strict=True):
        for each, one in zip(found, exact, strict=True):
            assert_a_little_above(each, one)
    together = composed(chain)
    values, errors = exact_course(chain, Affine())
    assert_a_little_above(Affine(together.at_zero, together.constant), values[-1])
    assert_a_little_above(together.rounding(FLOAT32), errors[-1])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_nothing_overflows_up_to_the_longest_input_and_no_shorter_one_would_do(seed, size):
    rng = np.random.default_rng(seed)
    chain = random_chain(rng, 4)
    # The last map sums up more than it gives: its rounding is large for its constant.
    own = Affine(*(float(value) * size * 2.0**-24 for value in rng.uniform(1, 2, size=2)))
    chain.append(MapBound(1.0, lambda arithmetic: own))
    course = Course(chain, FLOAT32)
    longest = longest_input(course, FLOAT32)
    # Values whose squares are numbers of float32, sixteen times over.
    room = math.sqrt(np.finfo(np.float32).max) / 4

    def at(affine, length):
        return affine.offset + affine.slope * length

    peaks = [at(each, longest) for each in course.lengths]
    for bound, length in zip(chain, course.lengths[:-1], strict=True):
        peaks.append(at(bound.error_in(FLOAT32), at(length, longest)) / FLOAT32.unit)
    assert max(peaks) == pytest.approx(room, rel=1e-9) or longest == room / 2
    assert max(peaks) <= room * (1 + 1e-9)


def test_no_input_is_short_enough_where_a_value_at_zero_overflows():
    huge = MapBound(1.0, lambda arithmetic: Affine(), at_zero=1e30)
    assert longest_input(Course([huge], FLOAT32), FLOAT32) == 0.0


def test_a_value_at_zero_leaves_the_room_to_what_grows_slowly():
    room = math.sqrt(np.finfo(np.float32).max) / 4
    near = MapBound(0.5, lambda arithmetic: Affine(), at_zero=0.9 * room)
    longest = longest_input(Course([near], FLOAT32), FLOAT32)
    assert longest == pytest.approx(0.1 * room / 0.5, rel=1e-6)
