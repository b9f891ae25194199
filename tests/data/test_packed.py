"""common/data/packed.py and threads.py: what a million pictures need."""
import pickle

import pytest

from common.data.folders import Rows, Samples
from common.runtime import machine as threads
from common.runtime.machine import map_in_threads

PATHS = ['data/a/000.png', 'data/a/种.png', 'data/b/\udcff.png', '']


def test_samples_are_a_sequence():
    plain = list(zip(PATHS, (0, 0, 1, 1), strict=True))
    samples = Samples(iter(plain))
    assert list(samples) == plain
    assert (len(samples), samples[-1], samples[1:3]) == (4, plain[-1], plain[1:3])
    assert samples.targets.tolist() == [0, 0, 1, 1] and type(samples[0][1]) is int
    with pytest.raises(IndexError):
        samples[4]
    assert list(pickle.loads(pickle.dumps(samples))) == plain and not Samples([])


def test_rows_are_found_by_path():
    rows = pickle.loads(pickle.dumps(Rows(iter(PATHS), [0, 3, 6, 9])))
    assert [rows.get(path) for path in PATHS] == [0, 3, 6, 9]
    assert [rows.get(path) for path in ('data/a', 'x')] == [None] * 2 and Rows([]).get('x', 7) == 7
    assert [Rows(PATHS).get(path) for path in PATHS] == [0, 1, 2, 3]


def test_results_come_in_order_and_few_calls_wait(monkeypatch):
    monkeypatch.setattr(threads, 'AT_A_TIME', 5)
    called = []

    def double(number, other):
        called.append(number)
        return 2 * number + other

    results = map_in_threads(double, range(100), range(100), desc='')
    assert next(results) == 0 and len(called) <= 5
    assert [0, *results] == [3 * number for number in range(100)]


def test_an_error_in_a_thread_ends_the_work(monkeypatch):
    monkeypatch.setattr(threads, 'AT_A_TIME', 5)
    called = []
    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(lambda number: called.append(number) or 1 / (number - 7), range(100), desc=''))
    assert len(called) <= 10
