"""Which images of a folder that fills up are to be read."""
import os
import shutil
from pathlib import Path

import pytest

from extras.inbox.arrivals import HOPELESS, SETTLED, Arrivals


class Clock:
    now = 0.

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def inbox(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('inbox/deep').mkdir(parents=True)
    return Path('inbox')


@pytest.fixture
def arrivals(inbox, clock):
    return Arrivals('inbox', {}, clock)


def write(name, content, time=1000):
    Path(name).write_text(content)
    os.utime(name, (time, time))


def ready(arrivals, clock, later=0., readable=True):
    """What is ready after so many seconds, and taken."""
    clock.now += later
    paths = arrivals.ready()
    for path in paths:
        arrivals.take(path, readable)
    return paths


def test_an_image_comes_once_when_it_has_settled(arrivals, clock):
    write('inbox/1.jpg', 'half')
    write('inbox/deep/2.jpg', 'whole')
    write('inbox/notes.txt', 'x')
    assert ready(arrivals, clock) == []
    write('inbox/1.jpg', 'half and half')
    assert ready(arrivals, clock, SETTLED / 2) == []
    assert ready(arrivals, clock, SETTLED / 2) == ['inbox/deep/2.jpg']
    assert ready(arrivals, clock, SETTLED / 2) == ['inbox/1.jpg']
    assert ready(arrivals, clock, SETTLED) == []


def test_the_same_name_and_size_later_is_another_image(arrivals, clock):
    write('inbox/1.jpg', 'a', time=1000)
    ready(arrivals, clock)
    assert ready(arrivals, clock, SETTLED) == ['inbox/1.jpg']
    write('inbox/1.jpg', 'b', time=1001)
    assert ready(arrivals, clock) == []
    assert ready(arrivals, clock, SETTLED) == ['inbox/1.jpg']


def test_an_unreadable_one_is_tried_a_second_time(arrivals, clock):
    """A copy that was held up may still be completed; then it counts as new."""
    write('inbox/1.jpg', 'hal')
    ready(arrivals, clock)
    assert ready(arrivals, clock, SETTLED, readable=False) == ['inbox/1.jpg']
    assert 'inbox/1.jpg' not in arrivals.done and ready(arrivals, clock, HOPELESS - SETTLED - 1) == []
    assert ready(arrivals, clock, 1, readable=False) == ['inbox/1.jpg'] and 'inbox/1.jpg' in arrivals.done
    assert ready(arrivals, clock, HOPELESS) == []
    write('inbox/1.jpg', 'half')
    ready(arrivals, clock)
    assert ready(arrivals, clock, SETTLED, readable=False) == ['inbox/1.jpg']
    assert ready(arrivals, clock, SETTLED) == []  # it, too, gets its second chance
    write('inbox/1.jpg', 'whole')  # and need not wait for that once it has changed
    assert ready(arrivals, clock) == [] and ready(arrivals, clock, SETTLED, readable=False) == ['inbox/1.jpg']
    assert ready(arrivals, clock, SETTLED) == [] and ready(arrivals, clock, HOPELESS) == ['inbox/1.jpg']


def test_one_that_changed_while_it_was_read_is_not_done(arrivals, clock):
    write('inbox/1.jpg', 'a')
    arrivals.ready()
    clock.now += SETTLED
    assert arrivals.ready() == ['inbox/1.jpg']
    write('inbox/1.jpg', 'ab')
    assert arrivals.take('inbox/1.jpg', True) is None and not arrivals.done
    ready(arrivals, clock)
    assert ready(arrivals, clock, SETTLED) == ['inbox/1.jpg'] and arrivals.done['inbox/1.jpg'][0] == 2


def test_what_is_done_stays_done(inbox, arrivals, clock):
    write('inbox/1.jpg', 'a')
    write('inbox/2.jpg', 'a')
    ready(arrivals, clock)
    ready(arrivals, clock, SETTLED)
    again = Arrivals('inbox', arrivals.done, clock)
    write('inbox/2.jpg', 'ab')
    ready(again, clock)
    assert ready(again, clock, SETTLED) == ['inbox/2.jpg']


def test_a_folder_that_goes_away_is_waited_for(arrivals, clock, capsys):
    shutil.move('inbox', 'away')
    assert ready(arrivals, clock) == [] == ready(arrivals, clock)
    assert capsys.readouterr().out.count('waiting for it') == 1
    shutil.move('away', 'inbox')
    write('inbox/1.jpg', 'a')
    ready(arrivals, clock)
    assert ready(arrivals, clock, SETTLED) == ['inbox/1.jpg']
    shutil.rmtree('inbox')
    assert ready(arrivals, clock) == [] and 'waiting for it' in capsys.readouterr().out


def test_an_image_that_goes_away_before_it_is_read_is_forgotten(arrivals, clock):
    write('inbox/1.jpg', 'a')
    ready(arrivals, clock)
    clock.now += SETTLED
    assert arrivals.ready() == ['inbox/1.jpg']
    os.unlink('inbox/1.jpg')
    assert arrivals.take('inbox/1.jpg', False) is None and ready(arrivals, clock) == [] and not arrivals.since
