"""common/runtime/files.py: files that are whole or not there, moved with patience, written by one run at a time."""
import csv
import errno
import json
import os
import sys
import time

import pytest

from common.runtime.errors import UserError
from common.runtime.files import harmless, locked, move, replacing, writable_folder, write_csv, write_json


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match="OUTPUT_DIR = .*file/x' cannot be written"):
        writable_folder(tmp_path / 'file' / 'x', 'OUTPUT_DIR')


def test_a_file_is_whole_or_the_old_one(tmp_path):
    (tmp_path / 'x').write_text('old')
    with pytest.raises(UserError, match='x cannot be written'), replacing(tmp_path / 'x') as aside:
        aside.write_text('half')
        raise OSError('disk full')
    assert (tmp_path / 'x').read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def held(monkeypatch):
    """A function that makes the next `count` moves fail as where a virus scanner has the file; returns the pauses."""
    def hold(count):
        pauses, left, real = [], iter(range(count)), os.replace

        def replace(source, target):
            if next(left, None) is not None:
                raise PermissionError(errno.EACCES, 'used by another process', str(target))
            real(source, target)

        monkeypatch.setattr(os, 'replace', replace)
        monkeypatch.setattr(time, 'sleep', pauses.append)
        return pauses
    return hold


def write(path):
    with replacing(path) as aside:
        aside.write_text('new')


def rename(path):
    path.with_name('source').write_text('new')
    move(path.with_name('source'), path)


@pytest.mark.parametrize('action', [write, rename])
def test_a_file_that_is_held_for_a_moment_is_replaced(tmp_path, held, action):
    (tmp_path / 'x').write_text('old')
    pauses = held(3)
    action(tmp_path / 'x')
    assert [path.read_text() for path in tmp_path.iterdir()] == ['new']
    assert len(pauses) == 3 and pauses == sorted(set(pauses))


@pytest.mark.parametrize('action', [write, rename])
def test_a_file_that_stays_held_is_named_after_some_seconds(tmp_path, held, action):
    (tmp_path / 'x').write_text('old')
    pauses = held(1000)
    with pytest.raises(UserError, match=r'x cannot be written \(.*used by another process.*: close programs') as error:
        action(tmp_path / 'x')
    assert '\n' not in str(error.value) and (tmp_path / 'x').read_text() == 'old' and 3 < sum(pauses) < 15


@pytest.mark.parametrize('action', [write, rename])
def test_other_errors_are_not_waited_for(tmp_path, held, action):
    (tmp_path / 'x').mkdir()
    pauses = held(0)
    with pytest.raises(UserError, match='x cannot be written'):
        action(tmp_path / 'x')
    assert not pauses


def test_a_lock_refuses_others_and_ends(tmp_path):
    with locked(tmp_path / 'lock'), pytest.raises(UserError, match='^busy$'), locked(tmp_path / 'lock', 'busy'):
        pass
    with locked(tmp_path / 'lock', 'busy'):
        pass


@pytest.mark.skipif(sys.platform == 'win32', reason='permissions of POSIX')
def test_a_lock_file_that_may_not_be_written_to_is_a_lock(tmp_path, monkeypatch, capsys):
    """Such as another user's, of whom root is one here: what may be opened for reading alone is."""
    file = tmp_path / 'lock'
    file.touch()
    real = os.open
    readable = [True]

    def another_users(path, flags, *mode, **options):
        if os.fspath(path) == str(file) and (flags & os.O_ACCMODE != os.O_RDONLY or not readable[0]):
            raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        return real(path, flags, *mode, **options)

    def refused():
        with pytest.raises(UserError, match='^busy$'), locked(file, 'busy'):
            pass

    with locked(file), monkeypatch.context() as patch:
        patch.setattr(os, 'open', another_users)
        refused()
    monkeypatch.setattr(os, 'open', another_users)
    with locked(file, 'busy'):
        refused()
    with locked(file):
        pass
    readable[0] = False
    with pytest.raises(UserError, match='lock is the lock of another user and cannot be opened'), locked(file):
        pass
    assert not capsys.readouterr().out


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has locks on every file system')
@pytest.mark.parametrize('code', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize('content', [None, '', '999999\nanother machine\n'])
def test_without_locks_there_is_a_warning_and_no_run_is_locked_out(tmp_path, monkeypatch, capsys, code, content):
    """What a run that was killed left behind included."""
    import fcntl

    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, 'flock', flock)
    file = tmp_path / 'lock'
    if content is not None:
        file.write_text(content)
    with locked(file, 'busy'), locked(file, 'busy'):
        pass
    assert capsys.readouterr().out.count(f'{os.strerror(code)}): let no second run write there') == 2


def test_what_a_spreadsheet_would_run_is_text(tmp_path):
    write_csv(tmp_path / 'x.csv', [{'name': '=1+1', 'value': -1}, {'name': 'a\x1b[0m', 'value': 2}])
    rows = list(csv.reader((tmp_path / 'x.csv').read_text(encoding='utf-8-sig').splitlines()))
    assert rows == [['name', 'value'], ["'=1+1", '-1'], ['a\\x1b[0m', '2']]


@pytest.mark.parametrize('text, cell', [
    ('＝1+1', "'＝1+1"), ('＋1', "'＋1"), ('－1', "'－1"), ('＠x', "'＠x"),
    (' =1', " '=1"), ('"=1', '"\'=1'), ('-x', "'-x"),
    ('a;=1+1', "a;'=1+1"), ('a; "＝1', 'a; "\'＝1'), ('a;;@x;b', "a;;'@x;b"), ('a;\t+1', "a;\\t'+1"),
    ('a=1', 'a=1'), ('a;b', 'a;b'), ('a-1;b+2', 'a-1;b+2'), ('', ''), (-1, -1), (None, None)])
def test_a_formula_gets_an_apostrophe_where_a_cell_may_begin(text, cell):
    assert harmless(text) == cell


def test_json_keeps_texts_and_shows_no_invisible_character(tmp_path):
    value = {'a\x1b[2J\x9b2J\x7f': ['ü ↔ 图', '\u202e\U000e0041\udce9\n"\\'], 'b': [1.5, None]}
    write_json(tmp_path / 'x.json', value)
    text = (tmp_path / 'x.json').read_text(encoding='utf-8')
    assert json.loads(text) == value
    assert all(character.isprintable() or character == '\n' for character in text) and 'ü ↔ 图' in text


def test_a_table_has_the_columns_of_its_last_row(tmp_path):
    """A resumed run may be older than a column."""
    write_csv(tmp_path / 'x.csv', [{'epoch': 1}, {'epoch': 2, 'pflop': 0.5}])
    assert (tmp_path / 'x.csv').read_text('utf-8-sig').splitlines() == ['"epoch","pflop"', '1,""', '2,0.5']
