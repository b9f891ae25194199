"""test.py put to work: lists, rows for a program, exit codes, what stays after an error."""
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT, draw_folder, files_below, read_rows, untrained

import test
from common import settings
from common.reporting.tables import Tables
from common.runtime.errors import UserError
from common.runtime.files import sole_writer, writable_folder

ENV = {**os.environ, 'PYTHONUTF8': '1', 'OMP_NUM_THREADS': '1'}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """photos/a and photos/b with six images each, beside x.pth."""
    monkeypatch.chdir(tmp_path)
    untrained('x.pth')
    return draw_folder(tmp_path / 'photos', {'a': 6, 'b': 6})


def predict(*arguments):
    return test.main(settings.read(test, ['--checkpoint', 'x.pth', '--num-workers', '0', *map(str, arguments)]))


def list_files(monkeypatch, content):
    """Put file names on standard input."""
    monkeypatch.setattr(sys, 'stdin', SimpleNamespace(buffer=io.BytesIO(content)))


def test_a_list_comes_in_and_rows_go_out(photos):
    """Standard output has a JSON object a line and nothing else, with the names as they were given."""
    names = [f'photos/a/00{number}.png' for number in range(5)]
    done = subprocess.run(
        [sys.executable, ROOT / 'test.py', '--checkpoint', 'x.pth', '--num-workers', '1', '--test-dir', '-', '--print',
         'jsonl', '--batch-size', '2'],
        env=ENV, input='\n'.join([*names, '', 'gone.png', str(photos / 'b' / '000.png')]), capture_output=True,
        text=True, encoding='utf-8')
    assert done.returncode == 3, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row['path'] for row in rows] == [*names, 'gone.png', str(photos / 'b' / '000.png')]
    assert [bool(row['error']) for row in rows] == [False] * 5 + [True, False] and rows == read_rows('predictions')
    assert 'CHECKPOINT' in done.stderr and '6 images classified, 0 not recognised, 1 unreadable' in done.stderr


def test_a_list_may_have_any_bytes(photos, monkeypatch):
    Path(os.fsdecode(b'photos/\xff.png')).write_bytes((photos / 'a' / '000.png').read_bytes())
    list_files(monkeypatch, b'photos/\xff.png\r\nphotos/\0.png\nphotos\n')
    with pytest.raises(SystemExit):
        predict('--test-dir', '-')
    assert [(os.fsencode(row['path']), bool(row['error'])) for row in read_rows('predictions')] == [
        (b'photos/\xff.png', False), (b'photos/\0.png', True), (b'photos', True)]


def test_an_empty_list_is_a_mistake(photos, monkeypatch):
    list_files(monkeypatch, b'\n')
    with pytest.raises(UserError, match='no files are listed on standard input'):
        predict('--test-dir', '-')


def test_exit_codes(photos):
    assert predict('--test-dir', 'photos/a') is None
    (photos / 'a' / 'bad.jpg').write_text('no picture')
    with pytest.raises(SystemExit) as left:
        predict('--test-dir', 'photos/a')
    assert left.value.code == 3


@pytest.mark.parametrize('arguments, words', [
    (('--print', 'xml'), "PRINT = 'xml': choose 'text', 'jsonl', None"),
    (('--use-gpu', 'mps'), "USE_GPU = 'mps': choose True, False, 'auto'"),
    (('--use-amp', 'often'), "USE_AMP = 'often': choose True, False, 'auto'"),
    (('--unknown-below', 2), 'UNKNOWN_BELOW = 2')])
def test_mistakes_end_in_one_line(arguments, words):
    """Before anything is read."""
    with pytest.raises(UserError, match=words) as error:
        test.validate_settings(settings.read(test, list(map(str, arguments))))
    assert '\n' not in str(error.value)


def test_several_checkpoints_are_divided_by_commas(photos):
    def checkpoints(text):
        return test.resolved(settings.read(test, ['--checkpoint', text, '--test-dir', 'photos'])).CHECKPOINT

    assert checkpoints('x.pth') == ('x.pth',) and checkpoints('x.pth,y.pth') == ('x.pth', 'y.pth')
    Path('x.pth').rename('x,y.pth')
    assert checkpoints('x,y.pth') == ('x,y.pth',)
    with pytest.raises(UserError, match='gone.pth: no such file'):
        predict('--test-dir', 'photos', '--checkpoint', 'gone.pth,other.pth')


def test_without_a_test_dir_it_is_data_if_that_was_learnt_from(photos):
    untrained('x.pth', settings={'DATA_DIR': os.path.abspath('data')})
    for side in ('val', 'test'):
        shutil.copytree('photos', f'data/{side}/a')
        predict('--checkpoint', 'x.pth')
        assert f'<title>Predictions for data/{side}' in Path('predictions/report.html').read_text()
    untrained('x.pth', settings={'DATA_DIR': 'mine'})
    with pytest.raises(UserError, match='TEST_DIR = None is data/test or data/val, but x.pth was trained on mine: set'):
        predict('--checkpoint', 'x.pth')


def test_what_is_printed(photos, capsys):
    predict('--test-dir', 'photos/a')
    assert '000.png → ' in capsys.readouterr().out
    predict('--test-dir', 'photos/a', '--print', 'none')
    assert '000.png' not in capsys.readouterr().out


def test_the_scores_are_of_what_is_written_down(photos, capsys):
    """With one checkpoint, several, and the mean of their weights."""
    untrained('y.pth', seed=1)
    rows = []
    for options in ((), ('--checkpoint', 'y.pth'), ('--checkpoint', 'y.pth,x.pth'),
                    ('--checkpoint', 'y.pth,x.pth', '--average-weights')):
        predict('--test-dir', 'photos', '--output-dir', 'out', *options)
        rows.append(tuple(row['confidence'] for row in read_rows('out')))
        right = sum(row['class'] == row['path'][0] for row in read_rows('out'))
        assert f'ACC1 {100 * right / 12:.2f} %' in capsys.readouterr().out
    assert len(set(rows)) == 4


@pytest.mark.parametrize('options', [(), ('--average-weights',)])
def test_each_network_says_what_it_has_learnt_from(photos, capsys, options):
    for name, folder in (('x.pth', 'elsewhere'), ('y.pth', 'photos'), ('z.pth', 'photos')):
        untrained(name, settings={'DATA_DIR': folder}, source='photos' if name == 'z.pth' else None)
    shutil.copy('z.pth', 'again.pth')
    predict('--test-dir', 'photos', '--checkpoint', 'x.pth,y.pth', *options)
    assert 'learnt' not in capsys.readouterr().out
    predict('--test-dir', 'photos', '--checkpoint', 'x.pth,y.pth,z.pth,again.pth', *options)
    assert capsys.readouterr().out.count('\nThe network has learnt from most of these images') == 1


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
        '.lock', 'predictions.csv', 'predictions.jsonl', 'predictions.png', 'report.html'}
    assert len(read_rows('predictions')) == 6


def test_one_run_writes_to_a_folder(photos):
    with sole_writer(writable_folder('predictions', ''), ''), pytest.raises(
            UserError, match="^OUTPUT_DIR = 'predictions': another run is writing there; choose another folder$"):
        predict('--test-dir', 'photos')
    assert files_below(Path('predictions')).keys() == {'.lock'}


def test_results_below_the_images_are_not_classified(photos, capsys):
    for _ in range(2):
        predict('--test-dir', 'photos', '--output-dir', 'photos/out')
        assert len(read_rows('photos/out')) == 12
    assert 'left out: 1 out/ (results of these scripts)' in capsys.readouterr().out
    with pytest.raises(UserError, match="OUTPUT_DIR = 'photos' is also TEST_DIR"):
        predict('--test-dir', 'photos/', '--output-dir', 'photos')
    assert len(list(photos.glob('*'))) == 3


def test_a_table_of_ones_own_among_the_images(photos, capsys):
    (photos / 'pictures.csv').write_text('name,date\n')
    predict('--test-dir', 'photos')
    assert len(read_rows('predictions')) == 12 and 'left out: 1 .csv' in capsys.readouterr().out


def test_a_whole_split_and_classes_that_are_called_like_its_sides(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    untrained('x.pth', classes=('train', 'val'))
    for number, side in enumerate(('train', 'val')):
        draw_folder(tmp_path / 'data' / side, {'train': 3, 'val': 2}, seed=number)
    predict('--test-dir', 'data')
    report = json.loads(Path('predictions/report.json').read_text())
    assert {row['class']: row['pictures'] for row in report['per_class']} == {'train': 6, 'val': 4}
    assert 'data is split already' in capsys.readouterr().out
    predict('--test-dir', 'data/val')
    report = json.loads(Path('predictions/report.json').read_text())
    assert {row['class']: row['pictures'] for row in report['per_class']} == {'train': 3, 'val': 2}
    assert 'split already' not in capsys.readouterr().out


def test_a_class_may_be_called_unknown(photos, capsys):
    untrained('x.pth', classes=('a', 'unknown', 'b'))
    predict('--test-dir', 'photos')
    assert '12 images classified, 0 not recognised' in capsys.readouterr().out
    predict('--test-dir', 'photos', '--unknown-below', 1)
    out = capsys.readouterr().out
    assert '0 images classified, 12 not recognised' in out and "below UNKNOWN_BELOW are 'unknown (no class)'" in out
    assert {row['class'] for row in read_rows('predictions')} == {'unknown (no class)'}


def test_tables_grow_while_images_are_classified(photos, monkeypatch):
    """What is classified before an error stays."""
    counts = []
    real = Tables.append

    def append(tables, rows):
        counts.append(len(read_rows('predictions')) if tables.lines.exists() else 0)
        if len(counts) == 3:
            raise UserError('the disk is full')
        real(tables, rows)

    monkeypatch.setattr(Tables, 'append', append)
    with pytest.raises(UserError, match='the disk is full'):
        predict('--test-dir', 'photos', '--batch-size', 5)
    assert counts == [0, 5, 10] and len(read_rows('predictions')) == 10
