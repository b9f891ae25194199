"""common/data/folders.py: which files count, in which order, and lists of a million of them; work in threads."""
import os
import pickle

import pytest
from helpers import draw_folder

from common.data.datasets import ImageFolder
from common.data.folders import Rows, Samples, class_folders, is_image, list_images, refuse_class_names
from common.runtime import machine as threads
from common.runtime.errors import UserError
from common.runtime.machine import map_in_threads

PATHS = ['data/a/000.png', 'data/a/种.png', 'data/b/\udcff.png', '']


def test_which_files_count():
    assert all(map(is_image, ('a.jpg', 'A.JPG', 'b.Jpeg', 'x.png', 'x.webp', 'x.tiff', 'x.bmp', 'x.gif')))
    assert not any(map(is_image, ('.a.jpg', 'a.txt', 'a', 'a.eps', 'a.pdf', 'Thumbs.db', '.DS_Store')))


def test_a_name_that_is_too_long_is_that_of_no_folder():
    with pytest.raises(UserError, match='no such folder'):
        class_folders(300 * 'n')


def test_listing_is_sorted_and_recursive(tmp_path):
    draw_folder(tmp_path, {'b': 2, 'a/deep': 1})
    assert [os.path.relpath(path, tmp_path) for path in list_images(tmp_path)] == [
        'a/deep/000.png', 'b/000.png', 'b/001.png']


def test_hidden_folders_and_loops_are_not_entered(tmp_path):
    draw_folder(tmp_path, {'a': 1, 'a/.thumbnails': 1, 'a/__MACOSX': 1, 'elsewhere': 2})
    (tmp_path / 'a' / 'more').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'a' / 'again').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'a' / 'round').symlink_to(tmp_path / 'a')
    expected = ['000.png', 'again/000.png', 'again/001.png']
    assert [os.path.relpath(path, tmp_path / 'a') for path in list_images(tmp_path / 'a')] == expected
    found = ImageFolder(tmp_path / 'a' / '..', classes=['a', 'elsewhere'])
    assert found.targets.tolist() == [0, 0, 0, 1, 1]


def test_a_class_is_the_name_of_a_folder_on_this_system(monkeypatch):
    refuse_class_names(['a', 'x\\y'] if os.sep == '/' else ['a'], 'table')
    monkeypatch.setattr('common.data.folders.os.sep', '\\')
    for name in ('x\\y', 'x/y', '.x', 'x\ny'):
        with pytest.raises(UserError, match='rename it'):
            refuse_class_names([name], 'table')


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
