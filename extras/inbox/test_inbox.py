"""WATCH and SORT_TO of test.py: a folder that fills up, a run that is killed and started again, copies by class."""
import collections
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT, draw_folder, files_below, read_rows, untrained

import test
from common import settings
from common.evaluation.predictor import Prediction
from common.evaluation.report import table_row
from common.reporting.tables import Tables
from common.runtime.errors import UserError
from common.runtime.files import sole_writer, writable_folder
from extras.inbox import Inbox

ENV = {**os.environ, 'PYTHONUTF8': '1', 'OMP_NUM_THREADS': '1'}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """photos/a and photos/b with six images each, beside x.pth."""
    monkeypatch.chdir(tmp_path)
    untrained('x.pth')
    return draw_folder(tmp_path / 'photos', {'a': 6, 'b': 6})


def predict(*arguments):
    return test.main(settings.read(test, ['--checkpoint', 'x.pth', '--num-workers', '0', *map(str, arguments)]))


@pytest.mark.parametrize('arguments, words', [
    (('--unsure-below', -1), 'UNSURE_BELOW = -1'), (('--watch', '--test-dir', 'x.pth'), "TEST_DIR = 'x.pth' is no fol"),
    (('--watch', '--test-dir', '-'), "TEST_DIR = '-' is no folder"),
    (('--watch', '--explain', '--test-dir', 'photos'), 'EXPLAIN does not go with WATCH'),
    (('--watch', '--test-dir', 'photos', '--output-dir', 'photos/out'), "OUTPUT_DIR = 'photos/out' lies in TEST_DIR"),
    (('--sort-to', 'photos/sorted', '--test-dir', 'photos'), "SORT_TO = 'photos/sorted' lies in TEST_DIR")])
def test_mistakes_end_in_one_line(photos, arguments, words):
    with pytest.raises(UserError, match=words) as error:
        predict(*arguments)
    assert '\n' not in str(error.value) and not Path('photos/out').exists()


def test_images_are_sorted(photos):
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


def test_a_row_is_written_when_its_copy_has_its_name(photos, monkeypatch):
    """A run that is killed then leaves no row whose image is not sorted."""
    copies = []
    real = Tables.append

    def append(tables, rows):
        copies.append(len(files_below(Path('sorted'))))
        real(tables, rows)

    monkeypatch.setattr(Tables, 'append', append)
    predict('--test-dir', 'photos', '--sort-to', 'sorted', '--batch-size', 4)
    assert copies == [4, 8, 12]


def test_the_files_of_a_list_are_sorted_by_their_names_alone(photos, monkeypatch):
    """A list may name files above this folder, which must not lead out of SORT_TO."""
    content = f'photos/../photos/a/000.png\n{photos}/b/001.png\n'.encode()
    monkeypatch.setattr(sys, 'stdin', SimpleNamespace(buffer=io.BytesIO(content)))
    predict('--test-dir', '-', '--sort-to', 'deep/sorted', '--unsure-below', 0)
    assert {path.name for path in Path('deep').rglob('*.png')} == {'000.png', '001.png'}
    assert all(len(path.split('/')) == 2 for path in files_below(Path('deep/sorted')))


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


def written():
    """The rows that are there, of a table that is being written."""
    path = Path('predictions/predictions.jsonl')
    lines = path.read_bytes().split(b'\n')[:-1] if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b'}')]


@pytest.mark.skipif(not hasattr(os, 'killpg'), reason='signals of POSIX')
def test_a_folder_is_watched(photos):
    """Each image is classified and sorted once, however often the watcher is killed; half-written ones when they are
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
            watcher.wait_for(lambda number=number: len(written()) >= number - 3)
            watcher.end(signal.SIGKILL)
            watcher = Watcher()
        name.write_bytes(content)
    watcher.wait_for(lambda: len(written()) == 12)
    assert watcher.end(signal.SIGINT) == 0, Path('log.txt').read_text()
    rows = read_rows('predictions')
    assert sorted(row['path'] for row in rows) == sorted(f'{number}.png' for number in range(12))
    copies = files_below(Path('sorted'))
    assert copies == {f'{row["class"]}/{row["path"]}': (inbox / row['path']).read_bytes() for row in rows}
    with open('predictions/predictions.csv', encoding='utf-8-sig', newline='') as file:
        assert [row['path'] for row in csv.DictReader(file)] == [row['path'] for row in rows]
    assert 'Traceback' not in Path('log.txt').read_text() and 'leaving after this batch' in Path('log.txt').read_text()


def test_one_run_writes_to_a_folder(photos):
    with sole_writer(writable_folder('predictions', ''), ''), pytest.raises(
            UserError, match="^OUTPUT_DIR = 'predictions': another run is writing there"):
        predict('--test-dir', 'photos', '--watch')


@pytest.mark.slow
def test_ten_thousand_arrivals(photos):
    """Half-written, bad and changing images among them; six kills; memory stays flat."""
    inbox, kinds = Path('inbox'), collections.Counter()
    inbox.mkdir()
    source = [path.read_bytes() for path in sorted(Path('photos').rglob('*.png'))]
    watcher, sizes = Watcher('--batch-size', '32', '--print', 'none'), []
    for number in range(10_000):
        content, folder = source[number % 12] + str(number).encode(), inbox / str(number % 7)
        folder.mkdir(exist_ok=True)
        path = folder / f'{number}.png'
        kind = 'whole'
        if number % 100 == 50:
            kind = 'bad'
        elif number % 10 == 5:
            kind = 'slow'
        kinds[kind] += 1
        if kind == 'slow':
            path.write_bytes(content[:len(content) // 2])
            time.sleep(0.01)
        path.write_bytes(b'no picture' if kind == 'bad' else content)
        if number % 1500 == 1499:
            watcher.wait_for(lambda number=number: len(written()) > number // 2, 600)
            sizes.append(memory(watcher.process.pid))
            watcher.end(signal.SIGKILL)
            watcher = Watcher('--batch-size', '32', '--print', 'none')
    watcher.wait_for(lambda: len(written()) == 10_000, 900)
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


def test_rows_that_are_not_of_the_folder_are_passed_over(photos, monkeypatch):
    """Those of a list of files, or of someone else's table."""
    tables = Tables(writable_folder('predictions', 'OUTPUT_DIR'))
    names = ['a/000.png', str(photos / 'a' / '001.png'), '../x.png', '']
    tables.append([table_row(Prediction(name, error='bad'), name, (1, 2)) for name in names])

    def stop(folder, done):
        raise UserError(repr(done))

    monkeypatch.setattr('extras.inbox.Arrivals', stop)
    with pytest.raises(UserError) as found:
        Inbox('photos', 'predictions').watch(None, None, 0, None)
    assert str(found.value) == repr({str(Path('photos', 'a', '000.png')): (1, 2)})
