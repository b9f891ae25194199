"""Copies in a folder for each answer: whole or not there, never in place of another file."""
import os
from pathlib import Path

import pytest

from common.data.folders import SHARDS_TABLE
from common.evaluation.predictor import Prediction
from common.runtime.errors import UserError
from extras.inbox import sorting
from extras.inbox.sorting import Sorter, copy_aside, put_copy


@pytest.fixture(autouse=True)
def inbox(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('inbox/deep').mkdir(parents=True)
    for name in ('1.jpg', 'deep/2.jpg'):
        Path('inbox', name).write_text(name)


def sorter(classes=('a', 'b'), unsure_below=0.5, folder='sorted'):
    return Sorter(folder, 'inbox', classes, unsure_below)


def found():
    return sorted(path.as_posix() for path in Path('sorted').rglob('*') if path.is_file())


def test_each_answer_has_its_folder():
    with sorter() as there:
        there.copy(Prediction('inbox/1.jpg', 'a', confidence=0.5), '1.jpg')
        there.copy(Prediction('inbox/deep/2.jpg', 'a', confidence=0.49), 'deep/2.jpg')
        there.copy(Prediction('inbox/1.jpg', 'unknown', confidence=0.3, is_unknown=True), '1.jpg')
    assert found() == ['sorted/a/1.jpg', 'sorted/unknown/1.jpg', 'sorted/unsure/deep/2.jpg']
    assert Path('sorted/unsure/deep/2.jpg').read_text() == 'deep/2.jpg' == Path('inbox/deep/2.jpg').read_text()


def test_an_image_that_went_away_is_a_warning(capsys):
    with sorter() as there:
        there.copy(Prediction('inbox/3.jpg', 'a', confidence=1.), '3.jpg')
    assert 'warning: inbox/3.jpg is gone' in capsys.readouterr().out and found() == []


@pytest.fixture(params=['with hard links', 'without'])
def links(request, monkeypatch):
    def refuse(*names):
        raise PermissionError
    if request.param == 'without':
        monkeypatch.setattr(os, 'link', refuse)


def test_nothing_is_overwritten(links):
    """Another file by that name makes the copy get a number; the same content is taken for the copy."""
    Path('a').mkdir()
    target, aside = Path('a/1.jpg'), Path('a/.copying')
    for content, name in (('x', '1.jpg'), ('y', '1 (2).jpg'), ('x', '1.jpg'), ('z', '1 (3).jpg'), ('y', '1 (2).jpg')):
        Path('source').write_text(content)
        os.utime('source', (1000, 1000))
        assert copy_aside('source', aside) and put_copy(aside, target) == Path('a', name)
        aside.unlink(missing_ok=True)
    assert {path.name: path.read_text() for path in Path('a').iterdir()} == {
        '1.jpg': 'x', '1 (2).jpg': 'y', '1 (3).jpg': 'z'}
    assert all(path.stat().st_mtime == 1000 for path in Path('a').iterdir())


def test_a_folder_in_the_way_is_no_copy(links):
    Path('a/1.jpg').mkdir(parents=True)
    assert put_copy(Path('inbox/1.jpg'), Path('a/1.jpg')) == Path('a/1 (2).jpg')


def test_a_copy_is_whole_or_not_there(monkeypatch):
    """A disk that fills up leaves nothing by the picture's name."""
    def half(source, target, length):
        target.write(b'hal')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(sorting.shutil, 'copyfileobj', half)
    with sorter() as there, pytest.raises(UserError, match='sorted/a/1.jpg cannot be written .No space left'):
        there.copy(Prediction('inbox/1.jpg', 'a', confidence=1.), '1.jpg')
    assert found() == []


def test_what_a_killed_copy_left_is_replaced():
    Path('sorted').mkdir()
    Path('sorted/.copying').write_text('half of another picture')
    with sorter() as there:
        there.copy(Prediction('inbox/1.jpg', 'a', confidence=1.), '1.jpg')
    assert found() == ['sorted/a/1.jpg'] and Path('sorted/a/1.jpg').read_text() == '1.jpg'


@pytest.mark.parametrize('options, words', [
    ({'folder': 'inbox/sorted'}, "SORT_TO = 'inbox/sorted' lies in TEST_DIR"),
    ({'folder': 'inbox'}, "SORT_TO = 'inbox' lies in TEST_DIR"),
    ({'classes': ('a', '../b')}, 'the class .*b. cannot be the name of a folder'),
    ({'classes': ('a', 'C:')}, "the class 'C:' cannot be the name of a folder"),
    ({'classes': ('a', '')}, "the class '' cannot be the name of a folder")])
def test_mistakes(options, words):
    with pytest.raises(UserError, match=words):
        sorter(**options)


def test_a_class_may_be_called_unsure_or_unknown():
    with sorter(classes=('Unsure', 'unknown')) as there:
        there.copy(Prediction('inbox/1.jpg', 'unknown', confidence=0.9), '1.jpg')
        there.copy(Prediction('inbox/1.jpg', 'unknown', confidence=0.4), '1.jpg')
        there.copy(Prediction('inbox/1.jpg', 'unknown (no class)', confidence=0.4, is_unknown=True), '1.jpg')
    assert found() == ['sorted/unknown (no class)/1.jpg', 'sorted/unknown/1.jpg', 'sorted/unsure (no class)/1.jpg']


def test_one_run_at_a_time_sorts_into_a_folder():
    with sorter() as first:
        with pytest.raises(UserError, match='another run sorts into it'), sorter():
            pass
        with sorter(folder='elsewhere'):
            pass
    with sorter():
        assert first.lock


def test_shards_have_no_files_to_copy():
    Path('inbox', SHARDS_TABLE).write_text('file,class')
    sorter()  # a table of one's own
    Path('inbox', SHARDS_TABLE).write_text('file,class,bytes')
    with pytest.raises(UserError, match='SORT_TO needs files, and the images of TEST_DIR lie in shards'):
        sorter()


@pytest.mark.parametrize('name', ['../1.jpg', '/etc/1.jpg', 'a/../../1.jpg', ''])
def test_a_name_that_leads_out_of_the_folder_is_refused(name):
    with sorter() as there, pytest.raises(UserError, match='leads out of this folder'):
        there.copy(Prediction('inbox/1.jpg', 'a', confidence=1.), name)
    assert found() == []


def test_a_copy_is_on_the_disk_before_it_has_its_name(monkeypatch):
    events = []
    monkeypatch.setattr(sorting, 'sync_below', lambda folder: events.append((sorted(os.listdir(folder)), found())))
    monkeypatch.setattr(sorting, 'sync', lambda folder: events.append((folder.name, found())))
    with sorter() as there:
        there.copy(Prediction('inbox/1.jpg', 'a', confidence=1.), '1.jpg')
        there.copy(Prediction('inbox/deep/2.jpg', 'a', confidence=1.), '2.jpg')
        there.finish()
        copies = ['sorted/a/1.jpg', 'sorted/a/2.jpg']
        assert events == [(['0', '1'], ['sorted/.copying/0', 'sorted/.copying/1']), ('a', copies)]


def test_a_kill_between_the_steps_leaves_no_empty_file(monkeypatch):
    """Without hard links a copy is moved; no file holds its name before."""
    def refuse(*names):
        raise PermissionError

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'link', refuse)
    for name in ('rename', 'replace'):
        monkeypatch.setattr(os, name, killed)
    with pytest.raises(KeyboardInterrupt), sorter() as there:
        there.copy(Prediction('inbox/1.jpg', 'a', confidence=1.), '1.jpg')
        there.finish()
    assert found() == []


def test_a_link_in_place_of_the_copy_aside_is_not_followed():
    Path('sorted').mkdir()
    Path('victim').write_text('precious')
    try:
        Path('sorted/.copying').symlink_to(Path('victim').absolute())
    except OSError:
        pytest.skip('Windows lets only some users make links')
    with sorter() as there:
        there.copy(Prediction('inbox/1.jpg', 'a', confidence=1.), '1.jpg')
    assert found() == ['sorted/a/1.jpg'] and Path('victim').read_text() == 'precious'
