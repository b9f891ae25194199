"""common/training/clock.py, and how durations read."""
import pytest
from helpers import prepare

from common.runtime.console import format_duration
from common.training.clock import Clock


def test_clock():
    clock = Clock(updates=10, epochs=4, validation=5)
    assert clock.seconds_left(0, 1) is None
    for seconds in (9, 2, 2):  # the first update is not typical
        clock.add(seconds)
    assert clock.epoch_seconds() == 30
    assert clock.seconds_left(0, 0) == 120 and clock.seconds_left(3, 9) == pytest.approx(12)
    clock.validation_seconds = 4
    assert clock.seconds_left(2, 0) == 48 and clock.seconds_left(4, 0) == 0


def test_format_duration():
    assert [format_duration(s) for s in (None, 9.6, 75, 3725)] == ['?', '10 s', '1 min 15 s', '1 h 02 min']


def test_the_forecast_comes_once_and_names_what_shortens_a_long_run(data, capsys):
    cfg = prepare(epochs=3, img_size='64,32')
    clock = Clock(updates=10, epochs=3, validation=5)
    for updates, seconds in enumerate((30, 600, 600), 1):
        clock.add(seconds)
        clock.forecast(cfg, 0, updates, 0.4703)
    out = capsys.readouterr().out
    assert '(0.47 PFLOP for the whole run)' in out
    assert out.count('forecast') == 1 and '7 h' in out
    assert out.endswith('; shorter with fewer EPOCHS (now 3), with IMG_SIZE = (32, 16) (about a quarter of it), or on '
                        'a machine with a GPU\n')
