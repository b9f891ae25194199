"""The four scripts on a folder that mixes good images with more than 300 odd and bad ones, links, pipes and names."""
import csv
import io
import json
import shutil
import sys
from pathlib import Path

import odd_pictures
import pytest
from helpers import TINY, classify, draw_folder, read_rows, rows_of, run, run_script, split, untrained
from PIL import Image

import mean_std
from common import settings
from common.data import images
from common.data.folders import list_images
from common.data.images import BadImage, open_image
from common.runtime.console import printable
from common.runtime.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='other systems refuse some of the names')
FAST = ('--img-size', 32, '--batch-size', 8, '--epochs', 1, '--warmup', 0, '--pretrained', 'false',
        '--num-workers', 1, '--model-kwargs', TINY)


def readable(path, at_least=None):
    try:
        return open_image(path, at_least).mode == 'RGB'
    except BadImage:
        return False


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """(the folder in which all four scripts have been run, {script: its output})."""
    folder, printed = tmp_path_factory.mktemp('odd'), {}
    draw_folder(folder / 'data1', {'a': 12, 'b': 12, '=2+5|$c$ <i>': 12})
    odd_pictures.draw(folder / 'data1' / 'a' / 'odd')
    for script, arguments in (('mean_std.py', ()), ('makedata.py', ()), ('makedata.py', ('--near-duplicates', 'false')),
                              ('train.py', FAST),  # the last split has pictures of which the beginning alone is good
                              ('test.py', ('--test-dir', 'data1', '--num-workers', 1))):
        result = run_script(script, *arguments, cwd=folder)
        expected = 3 if script == 'test.py' else 0
        assert result.returncode == expected and 'Traceback' not in result.stderr, result.stderr
        printed[script] = result.stdout
    return folder, printed


@pytest.fixture(scope='module')
def files(project):
    """{path: whether it is a readable picture} of all files of data1 that are named like one."""
    return {path: readable(path) for path in map(Path, list_images(project[0] / 'data1'))}


@pytest.mark.slow
def test_which_of_them_are_pictures(files):
    odd = {path.name: good for path, good in files.items() if 'odd' in path.parts}
    assert len(odd) > 300 and {'inside.png', 'link.png', 'pipe.png'} < odd.keys()
    assert not {'.hidden.png', '._x.png', 'Thumbs.db', 'notes.txt'} & odd.keys()
    good = {'link.png', 'inside.png', *odd_pictures.good_pictures()}
    bad = {'pipe.png', 'loop.png', 'nowhere.png', 'endless.png', *odd_pictures.bad_pictures()}
    assert [name for name in good if not odd[name]] == [] == [name for name in bad if odd[name]]
    assert sum('mutant' in name for name in odd) == 6 * odd_pictures.MUTANTS


@pytest.mark.slow
def test_mean_std_counts_them(project, files):
    found = json.loads((project[0] / 'mean_std.json').read_text(encoding='utf-8'))
    assert found['images'] == sum(files.values()) and len(found['left_out']) == len(files) - found['images']


@pytest.mark.slow
def test_makedata_takes_every_readable_one(project, files):
    entries = rows_of(project[0] / 'data')
    taken = {project[0] / entry['source'] for entry in entries}
    assert {path for path, good in files.items() if good} <= taken <= files.keys()
    assert project[1]['makedata.py'].count('left out: data1') == len(files) - len(taken)
    assert all((project[0] / 'data' / entry['file']).is_file() for entry in entries)


@pytest.mark.slow
def test_training_leaves_out_just_the_unreadable_ones(project):
    bad = [path for path in map(Path, list_images(project[0] / 'data')) if not readable(path, 64)]
    lines = (project[0] / 'checkpoints' / 'volo_d1' / 'bad_images.txt').read_text(encoding='utf-8').splitlines()
    names = [line.partition(': not a readable image')[0] for line in lines]
    assert sorted(names) == sorted(printable(path.relative_to(project[0]).as_posix()) for path in bad) and len(bad) > 20
    assert f'{len(bad)} files are left out' in project[1]['train.py']


@pytest.mark.slow
def test_every_file_is_predicted_once_or_has_its_error(project, files):
    folder = project[0] / 'predictions'
    rows = read_rows(folder)
    paths = [(project[0] / 'data1' / row['path']) for row in rows]
    assert paths == list(files)
    assert [not row['error'] for row in rows] == [readable(path, 64) for path in paths]
    assert all(bool(row['class']) != bool(row['error']) for row in rows)
    Image.open(folder / 'predictions.png').load()


@pytest.mark.slow
def test_no_name_becomes_a_command(project):
    with open(project[0] / 'predictions' / 'predictions.csv', encoding='utf-8-sig', newline='') as file:
        rows = list(csv.DictReader(file))
    assert sum(row['path'].startswith("'=2+5") for row in rows) == 12
    classes = [{'class': row['class']} for row in rows_of(project[0] / 'data')]
    assert not any(cell[:1] in tuple('=+-@\t\r') for row in rows + classes for cell in row.values() if cell)
    assert all(cell.isprintable() for row in rows for cell in row.values())
    for text in project[1].values():
        assert all(character.isprintable() or character in '\n\t' for character in text)
    assert '\\x1b[2J' in project[1]['test.py'] and 'new\\nline.png' in project[1]['test.py']


def test_programs_that_pillow_would_run_stay_out(tmp_path):
    """An EPS file is a program, which Pillow gives to Ghostscript, whatever the file's name."""
    eps = io.BytesIO()
    Image.new('RGB', (9, 9)).save(eps, 'EPS')
    fields = (((3, 60), b'\1\0'), ((3, 65), b'\1'), ((3, 20), b'\0\x20'), ((3, 30), b'\0\x20'), ((3, 120), b'\1'),
              ((8, 10), eps.getvalue()))  # of IPTC, which wraps a picture of any format
    iptc = b''.join(b'\x1c' + bytes(tag) + len(data).to_bytes(2, 'big') + data for tag, data in fields)
    for content in (eps.getvalue(), iptc):
        (tmp_path / 'x.jpg').write_bytes(content)
        with pytest.raises(BadImage, match='no image, or of a kind that Pillow cannot read'):
            open_image(tmp_path / 'x.jpg')


def test_heic_is_read_where_the_plug_in_is(tmp_path):
    pytest.importorskip('pillow_heif')
    Image.new('RGB', (32, 32), 'red').save(tmp_path / 'x.heic')
    image = open_image(tmp_path / 'x.heic')
    assert image.size == (32, 32) and image.getpixel((9, 9))[0] > 200


def test_every_script_says_what_a_phones_images_need(tmp_path, monkeypatch, capsys):
    """A class of HEIC files alone, and one of a JPEG's name."""
    advice = 'not a readable image (HEIF needs another package: python -m pip install pillow-heif)'
    heic = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(100)
    monkeypatch.setattr(images, 'FORMATS', [name for name in images.FORMATS if name != 'HEIF'])
    monkeypatch.chdir(tmp_path)
    for folder in ('data1', 'data/train', 'data/val'):
        draw_folder(tmp_path / folder, {'a': 6, 'b': 6})
        (tmp_path / folder / 'phone').mkdir()
        (tmp_path / folder / 'phone' / 'IMG_1.HEIC').write_bytes(heic)
        (tmp_path / folder / 'a' / 'renamed.jpg').write_bytes(heic)

    mean_std.main(settings.read(mean_std, ['--num-workers', '0']))
    out = capsys.readouterr().out
    assert f'left out: data1/phone/IMG_1.HEIC: {advice}' in out and f'left out: data1/a/renamed.jpg: {advice}' in out
    done = split('--target-dir', 'new')
    assert done.returncode == 2 and done.stderr == (
        f'data1: no images in phone: add some or remove the class (data1/phone/IMG_1.HEIC: {advice})')
    assert f'left out: data1/a/renamed.jpg: {advice}' in done.stdout
    with pytest.raises(UserError) as error:
        run(epochs=1)
    assert str(error.value) == ('data/train/phone: none of its files is a readable image '
                                f'(data/train/phone/IMG_1.HEIC: {advice})')
    untrained('x.pth')
    assert classify('--checkpoint', 'x.pth', '--test-dir', 'data1').returncode == 3
    errors = {row['path']: row['error'] for row in read_rows('predictions') if row['error']}
    assert errors == {name: f'data1/{name}: {advice}' for name in ('a/renamed.jpg', 'phone/IMG_1.HEIC')}

    shutil.rmtree('data1/a')
    shutil.rmtree('data1/b')
    with pytest.raises(UserError, match=r'none of its 1 files is a readable image \(.* install pillow-heif\)'):
        mean_std.main(settings.read(mean_std, ['--num-workers', '0']))
