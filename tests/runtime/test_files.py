"""common/runtime/files.py: files that are whole or not there, moved with patience, written by one run at a time."""
import csv
import errno
import json
import os
import sys
import time

import pytest

from common.runtime import files
from common.runtime.errors import UserError
from common.runtime.files import (
    drop_link,
    harmless,
    locked,
    move,
    no_link,
    replacing,
    replacing_folder,
    restore,
    scratch_folder,
    sync_below,
    writable_folder,
    write_csv,
    write_json,
    write_text,
)


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


def test_a_table_has_the_columns_of_all_its_rows(tmp_path):
    """A resumed run may be older than a column, and its last.pth may have columns that nobody knows."""
    write_csv(tmp_path / 'x.csv', [{'epoch': 1, '=\udc80': 7}, {'epoch': 2, 'pflop': 0.5}])
    assert (tmp_path / 'x.csv').read_text('utf-8-sig').splitlines() == [
        '"epoch","\'=\\udc80","pflop"', '1,7,""', '2,"",0.5']


@pytest.fixture
def synced(monkeypatch):
    """The names of what is synced, and the moves, in order; the file system cannot be synced as a whole."""
    events = []
    real_sync = files.sync
    real_move = os.replace

    def sync(path, drive=True):
        events.append(os.path.basename(path))
        real_sync(path, drive)

    def replace(source, target):
        events.append('move')
        real_move(source, target)

    monkeypatch.setattr(files, 'sync', sync)
    monkeypatch.setattr(os, 'replace', replace)
    monkeypatch.setattr(files, 'sync_file_system', lambda path: False)
    return events


def test_a_file_is_on_the_disk_before_it_is_moved(tmp_path, synced):
    write_text(tmp_path / 'x', 'new')
    assert synced == ['.x.tmp', 'move', tmp_path.name]


def test_a_folder_is_on_the_disk_before_it_is_moved_and_the_old_one_goes(tmp_path, synced, monkeypatch):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'old').write_text('old')
    there = []
    real = files.sync

    def sync(path, drive=True):
        if path == tmp_path:
            there.extend(sorted(os.listdir(tmp_path)))
        else:
            assert (tmp_path / 'data' / 'old').exists()
        real(path, drive)

    monkeypatch.setattr(files, 'sync', sync)
    with replacing_folder(tmp_path / 'data') as new:
        (new / 'deep').mkdir()
        (new / 'deep' / 'x').write_text('x')
    assert synced[:2] == ['x', 'deep'] and synced[-1] == tmp_path.name
    assert there == ['.data.old', 'data'] and os.listdir(tmp_path) == ['data']


def test_everything_below_a_folder_is_synced(tmp_path, synced, monkeypatch):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    for name in ('a/1', 'a/b/2', '3'):
        (tmp_path / name).write_text('')
    sync_below(tmp_path)
    assert {'1', '2', '3', 'a', 'b', tmp_path.name} == set(synced)
    synced.clear()
    monkeypatch.setattr(files, 'sync_file_system', lambda path: True)
    sync_below(tmp_path)
    assert not synced


@pytest.mark.skipif(os.name != 'posix', reason='Windows syncs no folder')
@pytest.mark.parametrize('code, is_lost', [(errno.EIO, True), (errno.ENOSPC, True), (errno.EINVAL, False)])
def test_a_sync_that_loses_something_is_an_error(tmp_path, monkeypatch, code, is_lost):
    """One that the file system does not have is none."""
    def fsync(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, 'fsync', fsync)
    if not is_lost:
        write_text(tmp_path / 'x', 'new')
        return
    with pytest.raises(UserError, match='x cannot be written'):
        write_text(tmp_path / 'x', 'new')
    assert not os.listdir(tmp_path)


def link_to(path, victim):
    try:
        path.symlink_to(victim)
    except OSError:
        pytest.skip('Windows lets only some users make links')


@pytest.fixture
def victim(tmp_path):
    """A file of somebody's in another folder, which must not change."""
    file = tmp_path / 'victim' / 'file'
    file.parent.mkdir()
    file.write_text('precious')
    yield file
    assert file.read_text() == 'precious' and os.listdir(file.parent) == ['file']


def test_no_link_beside_a_file_or_folder_is_followed(tmp_path, victim):
    link_to(tmp_path / '.x.tmp', victim)
    write_text(tmp_path / 'x', 'new')
    assert (tmp_path / 'x').read_text() == 'new'
    for name in ('new', 'old'):
        link_to(tmp_path / f'.data.{name}', victim.parent)
    assert not restore(tmp_path / 'data')
    with replacing_folder(tmp_path / 'data') as new:
        (new / 'x').write_text('x')
    with replacing_folder(tmp_path / 'data') as new:
        (new / 'x').write_text('y')
    assert (tmp_path / 'data' / 'x').read_text() == 'y'
    assert sorted(os.listdir(tmp_path)) == ['data', 'victim', 'x']


def test_the_file_aside_is_there_before_anybody_can_put_a_link_in_its_place(tmp_path):
    with replacing(tmp_path / 'x') as aside:
        assert aside.is_file() and not aside.is_symlink()


@pytest.mark.parametrize('is_hard', [False, True])
def test_a_file_that_grows_is_no_link(tmp_path, victim, is_hard):
    file = tmp_path / 'lines'
    if is_hard:
        os.link(victim, file)
    else:
        link_to(file, victim)
        if not hasattr(os, 'O_NOFOLLOW'):
            pytest.skip('Windows follows links')
    with pytest.raises(OSError), open(file, 'a', opener=no_link) as out:
        out.write('more')
    drop_link(file)
    for _ in range(2):
        with open(file, 'a', opener=no_link) as out:
            out.write('more')
        drop_link(file)
    assert file.read_text() == 'moremore'


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='this system has no named pipes')
def test_a_file_that_grows_is_no_pipe(tmp_path):
    """Nobody may ever read from it; and who does is not to get what belongs into a table."""
    os.mkfifo(tmp_path / 'lines')
    for with_reader in (False, True):
        reader = os.open(tmp_path / 'lines', os.O_RDONLY | os.O_NONBLOCK) if with_reader else None
        with pytest.raises(OSError), open(tmp_path / 'lines', 'a', opener=no_link):
            pass
        if with_reader:
            os.close(reader)


def test_a_scratch_folder_is_empty_whatever_a_killed_run_left(tmp_path, victim):
    folder = tmp_path / 'scratch'
    link_to(folder, victim.parent)
    for _ in range(2):
        with scratch_folder(folder):
            assert not os.listdir(folder)
            (folder / 'half').write_text('half')
        assert not folder.exists()
        folder.mkdir()
        (folder / 'left').write_text('left')
