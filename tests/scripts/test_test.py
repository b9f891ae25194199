"""test.py put to work: lists, rows for a program, sorting, watching; killed and started again."""
import collections
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, draw_folder, files_below, read_rows, untrained

import test
from common import settings
from common.runtime.errors import UserError

ENV = {**os.environ, 'PYTHONUTF8': '1', 'OMP_NUM_THREADS': '1'}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """photos/a and photos/b with six pictures each, beside x.pth."""
    monkeypatch.chdir(tmp_path)
    untrained('x.pth')
    return draw_folder(tmp_path / 'photos', {'a': 6, 'b': 6})


def predict(*arguments):
    return test.main(settings.read(test, ['--checkpoint', 'x.pth', '--num-workers', '0', *map(str, arguments)]))


def piped(text, *arguments):
    return subprocess.run([sys.executable, ROOT / 'test.py', '--checkpoint', 'x.pth', '--num-workers', '1', *arguments],
                          env=ENV, input=text, capture_output=True, text=True, encoding='utf-8')


def test_a_list_comes_in_and_rows_go_out(photos):
    """Standard output has a JSON object a line and nothing else, with the names as they were given."""
    names = [f'photos/a/00{number}.png' for number in range(5)]
    done = piped('\n'.join([*names, '', 'gone.png', str(photos / 'b' / '000.png')]), '--test-dir', '-', '--print',
                 'jsonl', '--batch-size', '2')
    assert done.returncode == 3, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row['path'] for row in rows] == [*names, 'gone.png', str(photos / 'b' / '000.png')]
    assert [bool(row['error']) for row in rows] == [False] * 5 + [True, False] and rows == read_rows('predictions')
    assert 'CHECKPOINT' in done.stderr and '6 pictures named, 1 unreadable' in done.stderr
    Path(os.fsdecode(b'photos/\xff.png')).write_bytes((photos / 'a' / '000.png').read_bytes())
    done = subprocess.run([sys.executable, ROOT / 'test.py', '--checkpoint', 'x.pth', '--test-dir', '-'], env=ENV,
                          input=b'photos/\xff.png\r\nphotos/\0.png\nphotos\n', capture_output=True)
    assert done.returncode == 3 and not done.stderr, done.stderr
    assert [(os.fsencode(row['path']), bool(row['error'])) for row in read_rows('predictions')] == [
        (b'photos/\xff.png', False), (b'photos/\0.png', True), (b'photos', True)]
    empty = piped('\n', '--test-dir', '-')
    assert empty.returncode == 2 and 'no files are listed on standard input' in empty.stderr


def test_exit_codes(photos):
    assert predict('--test-dir', 'photos/a') is None
    (photos / 'a' / 'bad.jpg').write_text('no picture')
    with pytest.raises(SystemExit) as left:
        predict('--test-dir', 'photos/a')
    assert left.value.code == 3


@pytest.mark.parametrize('arguments, words', [
    (('--print', 'xml'), "PRINT = 'xml': choose 'text', 'jsonl', None"), (('--tta-below', 2), 'TTA_BELOW = 2'),
    (('--use-gpu', 'mps'), "USE_GPU = 'mps': choose True, False, 'auto'"),
    (('--unsure-below', -1), 'UNSURE_BELOW = -1'), (('--watch', '--test-dir', 'x.pth'), "TEST_DIR = 'x.pth' is no fol"),
    (('--watch', '--test-dir', '-'), "TEST_DIR = '-' is no folder"),
    (('--watch', '--explain', '--test-dir', 'photos'), 'EXPLAIN does not go with WATCH'),
    (('--watch', '--test-dir', 'photos', '--output-dir', 'photos/out'), "OUTPUT_DIR = 'photos/out' lies in TEST_DIR")])
def test_mistakes_end_in_one_line(photos, arguments, words):
    """Before anything is read."""
    with pytest.raises(UserError, match=words) as error:
        test.with_defaults(settings.read(test, list(map(str, arguments))))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('arguments, words', [
    (('--sort-to', 'photos/sorted'), 'lies in TEST_DIR'), (('--checkpoint', 'x.pth,gone.pth'), 'gone.pth: no such f')])
def test_mistakes_that_are_found_later(photos, arguments, words):
    with pytest.raises(UserError, match=words):
        predict('--test-dir', 'photos', *arguments)


def test_what_is_printed(photos, capsys):
    predict('--test-dir', 'photos/a')
    assert '000.png → ' in capsys.readouterr().out
    predict('--test-dir', 'photos/a', '--print', 'none')
    assert '000.png' not in capsys.readouterr().out


def test_several_checkpoints_and_views(photos, capsys):
    """The scores are of what is written down; both kinds of mean say which views there are."""
    untrained('y.pth', seed=1, settings={'FLIP': 0.5})
    rows = {}
    for options in ((), ('--checkpoint', 'y.pth,x.pth'), ('--checkpoint', 'y.pth,x.pth', '--average-weights'),
                    ('--checkpoint', 'y.pth'), ('--checkpoint', 'y.pth', '--tta', '--tta-below', 1)):
        predict('--test-dir', 'photos', '--output-dir', 'out', *options)
        rows[options] = tuple(row['confidence'] for row in read_rows('out'))
        right = sum(row['class'] == row['path'][0] for row in read_rows('out'))
        assert f'ACC1 {100 * right / 12:.2f} %' in capsys.readouterr().out
    assert len(set(rows.values())) == 5
    predict('--test-dir', 'photos', '--checkpoint', 'y.pth', '--tta')
    assert '1 more views of pictures below 90%' in capsys.readouterr().out


def test_an_old_run_leaves_nothing_behind(photos):
    """A failed one leaves all of it."""
    predict('--test-dir', 'photos')
    before = files_below(Path('predictions'))
    assert {'report.txt', 'report.json', 'suspects.csv', 'confusion.png', 'calibration.png'} < before.keys()
    with pytest.raises(UserError):
        predict('--test-dir', 'gone')
    assert files_below(Path('predictions')) == before
    predict('--test-dir', 'photos/a')
    assert files_below(Path('predictions')).keys() == {
        'predictions.csv', 'predictions.jsonl', 'predictions.png', 'report.html'} and len(read_rows('predictions')) == 6


def test_pictures_are_sorted(photos):
    """Copies by the answers of the table, of readable ones; a second run finds its copies."""
    (photos / 'b' / 'bad.png').write_text('no picture')
    for _ in range(2):
        with pytest.raises(SystemExit):
            predict('--test-dir', 'photos', '--sort-to', 'sorted', '--unsure-below', 0.6, '--unknown-below', 0.45)
        rows = [row for row in read_rows('predictions') if not row['error']]
        expected = {}
        for row in rows:
            unsure = row['class'] != 'unknown' and row['confidence'] < 0.6
            expected[f'{"unsure" if unsure else row["class"]}/{row["path"]}'] = (photos / row['path']).read_bytes()
        assert files_below(Path('sorted')) == expected
    assert len({name.split('/')[0] for name in expected}) > 1


def test_tables_grow_while_pictures_are_named(photos, monkeypatch):
    """What is named before an error stays."""
    counts = []
    real = test.record

    def record(*arguments):
        counts.append(len(read_rows('predictions')) if Path('predictions/predictions.jsonl').exists() else 0)
        if len(counts) == 3:
            raise UserError('the disk is full')
        return real(*arguments)
    monkeypatch.setattr(test, 'record', record)
    with pytest.raises(UserError, match='the disk is full'):
        predict('--test-dir', 'photos', '--batch-size', 5)
    assert counts == [0, 5, 10] and len(read_rows('predictions')) == 10


class Watcher:
    """test.py --watch inbox in a process of its own."""

    def __init__(self, *arguments):
        with open('log.txt', 'a') as log:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / 'test.py', '--checkpoint', 'x.pth', '--test-dir', 'inbox', '--sort-to',
                 'sorted', '--unsure-below', '0', '--watch', '--num-workers', '1', '--batch-size', '8', *arguments],
                env=ENV, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def wait_for(self, condition, seconds=120):
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, Path('log.txt').read_text()
            time.sleep(0.05)

    def end(self, signum):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signum)
        return self.process.wait(60)


def named():
    """The rows that are there, of a table that is being written."""
    path = Path('predictions/predictions.jsonl')
    lines = path.read_bytes().split(b'\n')[:-1] if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b'}')]


@pytest.mark.skipif(not hasattr(os, 'killpg'), reason='signals of POSIX')
def test_a_folder_is_watched(photos):
    """Each picture is named and sorted once, however often the watcher is killed; half-written ones when they are
    whole; and a bad one stays out until it has had a minute.
    """
    inbox, source = Path('inbox'), sorted(Path('photos').rglob('*.png'))
    inbox.mkdir()
    (inbox / 'bad.jpg').write_text('no picture')
    watcher = Watcher()
    for number, path in enumerate(source):
        content = path.read_bytes()
        name = inbox / f'{number}.png'
        name.write_bytes(content[:len(content) // 2])
        if number % 4 == 3:
            watcher.wait_for(lambda number=number: len(named()) >= number - 3)
            watcher.end(signal.SIGKILL)
            watcher = Watcher()
        name.write_bytes(content)
    watcher.wait_for(lambda: len(named()) == 12)
    assert watcher.end(signal.SIGINT) == 0, Path('log.txt').read_text()
    rows = read_rows('predictions')
    assert sorted(row['path'] for row in rows) == sorted(f'{number}.png' for number in range(12))
    copies = files_below(Path('sorted'))
    assert copies == {f'{row["class"]}/{row["path"]}': (inbox / row['path']).read_bytes() for row in rows}
    with open('predictions/predictions.csv', encoding='utf-8-sig', newline='') as file:
        assert [row['path'] for row in csv.DictReader(file)] == [row['path'] for row in rows]
    assert 'Traceback' not in Path('log.txt').read_text() and 'leaving after this batch' in Path('log.txt').read_text()


def test_one_run_watches_with_a_folder(photos):
    Path('inbox').mkdir()
    watcher = Watcher()
    watcher.wait_for(lambda: 'watching inbox' in Path('log.txt').read_text())
    second = Watcher('--output-dir', 'predictions')
    try:
        assert second.process.wait(120) == 2
    finally:
        second.end(signal.SIGKILL)
    assert 'another run watches with it' in Path('log.txt').read_text()
    assert watcher.end(signal.SIGTERM) == 0


@pytest.mark.slow
def test_ten_thousand_arrivals(photos):
    """Half-written, bad and changing pictures among them; six kills; memory stays flat."""
    inbox, kinds = Path('inbox'), collections.Counter()
    inbox.mkdir()
    source = [path.read_bytes() for path in sorted(Path('photos').rglob('*.png'))]
    watcher, sizes = Watcher('--batch-size', '32', '--print', 'none'), []
    for number in range(10_000):
        content, folder = source[number % 12] + str(number).encode(), inbox / str(number % 7)
        folder.mkdir(exist_ok=True)
        path = folder / f'{number}.png'
        kind = 'bad' if number % 100 == 50 else 'slow' if number % 10 == 5 else 'whole'
        kinds[kind] += 1
        if kind == 'slow':
            path.write_bytes(content[:len(content) // 2])
            time.sleep(0.01)
        path.write_bytes(b'no picture' if kind == 'bad' else content)
        if number % 1500 == 1499:
            watcher.wait_for(lambda number=number: len(named()) > number // 2, 600)
            sizes.append(memory(watcher.process.pid))
            watcher.end(signal.SIGKILL)
            watcher = Watcher('--batch-size', '32', '--print', 'none')
    watcher.wait_for(lambda: len(named()) == 10_000, 900)
    sizes.append(memory(watcher.process.pid))
    assert watcher.end(signal.SIGINT) == 3 and kinds == {'bad': 100, 'slow': 1000, 'whole': 8900}
    rows = read_rows('predictions')
    assert len({row['path'] for row in rows}) == 10_000 == len(rows)
    good = [row for row in rows if not row['error']]
    assert len(good) == 9900
    copies = files_below(Path('sorted'))
    assert copies == {f'{row["class"]}/{row["path"]}': (inbox / row['path']).read_bytes() for row in good}
    print(f'memory of the watcher, MiB: {sizes}')
    assert max(sizes) < 1.5 * min(sizes)
    shutil.rmtree('sorted')


def memory(pid):
    """MiB of a process."""
    line = next(line for line in Path(f'/proc/{pid}/status').read_text().splitlines() if line.startswith('VmRSS'))
    return int(line.split()[1]) // 1024
