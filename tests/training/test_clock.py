"""common/training/clock.py, and how durations read."""
import time

import pytest

from common.runtime.console import format_duration
from common.training.plan import Plan
from common.training.schedule import Clock

SMALL, LARGE = (32, 32), (64, 64)


@pytest.fixture
def plan():
    return Plan(100, [(0.5, SMALL), (1., LARGE)], updates_per_epoch=10, validate_every=2, validation=3.)


def test_the_first_update_of_a_size_is_not_typical(plan):
    clock = Clock()
    clock.add(SMALL, 9.)
    assert clock.seconds_left(plan, 1) is None and not clock.ready
    for seconds in (2., 2.):
        clock.add(SMALL, seconds)
    assert clock.ready and clock.update_seconds(SMALL) == 2 and clock.count(SMALL) == 3 and clock.count(LARGE) == 0


def test_a_size_that_was_not_measured_follows_the_nearest_by_its_pixels():
    clock = Clock()
    for size, seconds in ((SMALL, 1.), (SMALL, 1.), (LARGE, 6.), (LARGE, 6.)):
        clock.add(size, seconds)
    assert clock.update_seconds((128, 64)) == 12 and clock.update_seconds((16, 32)) == 0.5


def test_recent_updates_count_more():
    clock = Clock()
    for seconds in [1.] * 100 + [3.] * 100:
        clock.add(SMALL, seconds)
    assert 2.6 < clock.update_seconds(SMALL) < 3
    clock.restart()
    assert clock.count(SMALL) == 0


def test_what_is_left(plan):
    """50 small updates of 1 s, 50 large ones of 4, five validations of 12 or 7 s; the run ends with one."""
    clock = Clock()
    clock.add(SMALL, 1.)
    clock.add(SMALL, 1.)
    assert clock.seconds_left(plan, 0) == pytest.approx(250 + 5 * 12)
    clock.add_validation((64, 64), 7.)
    assert clock.seconds_left(plan, 0) == pytest.approx(250 + 5 * 7)
    assert clock.seconds_left(plan, 50) == pytest.approx(200 + 2.5 * 7)
    assert clock.seconds_left(plan, 100) == 0
    plan.updates = 104
    assert clock.seconds_left(plan, 104 - 40) == pytest.approx(40 * 4 + 2 * 7 + 7)
    assert clock.updates_in(40 * 4 + 2 * 7 + 7, plan, 60) == 40


def test_what_a_validation_takes_besides_the_images_does_not_grow_with_them(plan):
    """3 s of the 5 are for images, which take 12 s when they are larger; the other 2 s stay."""
    clock = Clock()
    clock.add(SMALL, 1.)
    clock.add(SMALL, 1.)
    clock.add_validation(SMALL, 5.)
    assert clock.pace(plan, 0)[1] == pytest.approx(12 + 2)


def test_the_time_before_an_interruption_counts():
    clock = Clock(elapsed=100.)
    time.sleep(0.01)
    assert 100 < clock.elapsed < 130


def test_format_duration():
    assert [format_duration(s) for s in (None, 9.6, 75, 3725)] == ['?', '10 s', '1 min 15 s', '1 h 02 min']
