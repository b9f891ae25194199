"""common/training/clock.py, and how durations read."""
import pytest

from common.runtime.console import format_duration
from common.training.clock import Clock


def test_clock():
    clock = Clock(updates=10, epochs=4, rest=5)
    assert clock.left(0, 1) is None
    for seconds in (9, 2, 2):  # the first step is not typical
        clock.add(seconds)
    assert clock.epoch_seconds() == 30 and clock.left(0, 0) == 120 and clock.left(3, 9) == pytest.approx(12)
    clock.rest_seconds = 4
    assert clock.left(2, 0) == 48 and clock.left(4, 0) == 0


def test_format_duration():
    assert [format_duration(s) for s in (None, 9.6, 75, 3725)] == ['?', '10 s', '1 min 15 s', '1 h 02 min']
