"""common/runtime/names.py: where a name that stands in a file may lead."""
import os
import unicodedata
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.runtime.names import BadName, find_inside, inside, is_below, is_folder_name

ORDINARY = ['a', 'a/b.png', '.hidden', 'ü', '-', '~', 'x;=1']
ORDINARY_HERE = ['...', 'a/..b', 'a../b', 'ü "x", \udce9', 'a\nb', '\x1b[2J', ' ', 'C:x', 'a\\b']  # but not on Windows
AWAY = ['', '.', '..', '/', '/etc/passwd', '../x', 'a/..', 'a/../b', 'a/./b', './a', 'a//b', 'a/', '//a', 'a\0b',
        '..\0', None, 7, b'a', ['a']]
NO_UNICODE = ['\ud800', 'a/\ud800']
ODD_ON_WINDOWS = ['C:', 'C:/x', 'c:x', 'a/C:', 'a\\b', '..\\x', 'x\\..', 'a.png:stream', 'a.', 'a /b', '...', '.. /x',
                  'con', 'a/NUL.png', 'Com1.tar.gz', 'lpt9 .x', 'aux ', 'a?', 'a*b', 'a\nb']
not_windows = pytest.mark.skipif(os.name == 'nt', reason='Windows has other names')


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(os, 'sep', '\\')


@pytest.mark.parametrize('name', [*ORDINARY, *(pytest.param(name, marks=not_windows) for name in ORDINARY_HERE)])
def test_ordinary_names_are_below(name):
    assert inside('folder', name) == os.path.join('folder', *name.split('/'))
    assert Path(inside(Path('folder'), name)) == Path('folder', name)


@pytest.mark.parametrize('name', [*AWAY, *(pytest.param(name, marks=not_windows) for name in NO_UNICODE)])
def test_names_that_lead_away_are_refused(name):
    with pytest.raises(BadName, match='^folder: .* leads out of this folder, or can be the name of no file'):
        inside('folder', name)
    assert not is_folder_name(name)


@pytest.mark.parametrize('name', ODD_ON_WINDOWS)
def test_what_windows_takes_for_another_file_is_refused_there(windows, name):
    with pytest.raises(BadName):
        inside('folder', name)


@pytest.mark.parametrize('name', [*ORDINARY, 'icon', 'console.png', 'com10', 'a.b/c'])
def test_ordinary_names_are_below_on_windows_too(windows, name):
    assert is_below(name)


@not_windows
def test_a_person_may_write_a_name_in_another_way(tmp_path):
    """But if there is a file by exactly that name, it is meant."""
    composed, decomposed = (unicodedata.normalize(form, 'café.jpg') for form in ('NFC', 'NFD'))
    for name in ('b.jpg', decomposed, ' c.jpg', 'c.jpg', 'x\\y.jpg'):
        (tmp_path / 'a').mkdir(exist_ok=True)
        (tmp_path / 'a' / name).touch()
    for text in ('a/b.jpg', 'a\\b.jpg', ' a/b.jpg\t', './a/b.jpg', 'a//b.jpg', '.\\a\\b.jpg'):
        assert find_inside(tmp_path, text) == 'a/b.jpg', text
    assert find_inside(tmp_path, f'a/{composed}') == f'a/{decomposed}' == find_inside(tmp_path, f'a/{decomposed}')
    assert find_inside(tmp_path / 'a', ' c.jpg') == ' c.jpg' and find_inside(tmp_path / 'a', '  c.jpg') == 'c.jpg'
    assert find_inside(tmp_path / 'a', 'x\\y.jpg') == 'x\\y.jpg'
    assert find_inside(tmp_path, ' gone\\z.jpg') == 'gone/z.jpg'
    for text in ('../b.jpg', 'a\\..\\..\\b.jpg', '/etc/passwd', ' ', 'a\0b', str(tmp_path / 'a' / 'b.jpg')):
        with pytest.raises(BadName):
            find_inside(tmp_path, text)


def test_a_class_is_no_drive_on_any_system():
    assert not is_folder_name('C:') and not is_folder_name('c:x') and not is_folder_name('a/b')
    assert is_folder_name('1:2') and is_folder_name('Black-grass')


@not_windows
@hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.text(st.sampled_from('a./\\:\0\n é'), max_size=8))
def test_no_name_leads_out(name):
    """As Python itself computes where a path leads."""
    if is_below(name):
        there = os.path.normpath(os.path.join('/folder', name))
        assert there == f'/folder/{name}'
