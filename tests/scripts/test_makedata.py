"""makedata.py: a split that is stratified, repeatable, and never costs anyone a file."""
import json
import shutil
from collections import Counter

import numpy as np
import pytest
from filelock import FileLock
from helpers import draw_folder, entries, files_below, sides, split
from PIL import Image, PngImagePlugin

from common.data import images
from common.data.datasets import open_split
from common.runtime.errors import UserError


def test_stratified_copies_and_manifest(tmp_path, source):
    before = files_below(source)
    result = split()
    assert result.returncode == 0, result.stderr
    found = files_below(tmp_path / 'data')
    assert Counter(name.rpartition('/')[0] for name in found) == {
        'train/a': 14, 'val/a': 6, 'train/b': 7, 'val/b': 3, '': 2}
    for entry in entries(tmp_path):
        assert found[entry['file']] == (tmp_path / entry['source']).read_bytes()
        assert entry['file'].startswith(f'{entry["side"]}/{entry["class"]}/') and len(entry['sha256']) == 64
    assert files_below(source) == before
    assert 'a         14      6' in result.stdout and 'all       21      9' in result.stdout


def test_the_same_again_and_another_seed(tmp_path, source):
    split()
    first = files_below(tmp_path / 'data')
    split()
    assert files_below(tmp_path / 'data') == first
    split('--seed', 7)
    assert files_below(tmp_path / 'data') != first


def test_new_pictures_do_not_move_the_old_ones(tmp_path, source):
    split()
    before = sides(tmp_path)
    draw_folder(tmp_path / 'more', {'a': 10}, seed=5)
    for path in (tmp_path / 'more' / 'a').iterdir():
        shutil.copy(path, source / 'a' / f'new_{path.name}')
    split()
    after = sides(tmp_path)
    assert before.items() < after.items() and Counter(after.values()) == {'train': 28, 'val': 12}


def test_identical_files_stay_on_one_side_and_wrong_labels_are_named(tmp_path, source):
    for number in range(12):
        shutil.copy(source / 'a' / '000.png', source / 'a' / f'copy{number}.png')
    shutil.copy(source / 'a' / '001.png', source / 'b' / 'same.png')
    result = split()
    by_hash = {}
    for entry in entries(tmp_path):
        by_hash.setdefault(entry['sha256'], set()).add(entry['side'])
    assert all(len(side) == 1 for side in by_hash.values())
    assert 'same image in 2 classes' in result.stdout and 'b/same.png' in result.stdout
    assert '\ngroups with images of several classes: 1\n' in result.stdout


def test_formats_letter_case_nested_and_hidden(tmp_path, source):
    image = Image.new('RGB', (10, 10), 'red')
    (source / 'a' / 'deep').mkdir()
    names = ['x.JPG', 'x.jpeg', 'x.webp', 'x.BMP', 'x.tif', 'x.gif', 'x.ppm', 'deep/x.Png']
    for number, name in enumerate(names):
        image.putpixel((0, 0), (number, 0, 0))
        image.save(source / 'a' / name)
    for name in ('notes.txt', '.hidden.png'):
        shutil.copy(source / 'a' / '000.png', source / 'a' / name)
    (source / '.git').mkdir()
    result = split()
    assert result.returncode == 0
    found = [entry['source'] for entry in entries(tmp_path)]
    assert '1 .txt' in result.stdout and len(found) == 38
    assert all(any(f.endswith(f'/{name}') for f in found) for name in names)


def test_large_pictures_are_shrunk_small_ones_copied(tmp_path, source):
    Image.new('RGB', (400, 100), 'red').save(source / 'a' / 'wide.jpg')
    Image.new('RGB', (100, 300), 'blue').save(source / 'a' / 'tall.bmp')
    before = files_below(source)
    assert split('--max-side', 50).returncode == 0
    found = {entry['source'].split('/')[-1]: tmp_path / 'data' / entry['file'] for entry in entries(tmp_path)}
    assert Image.open(found['wide.jpg']).size == (50, 13)
    assert found['tall.bmp'].name == 'tall.bmp.shrunk.png' and Image.open(found['tall.bmp']).size == (17, 50)
    assert found['000.png'].read_bytes() in before.values() and files_below(source) == before


@pytest.mark.parametrize('arguments', [('--max-side', 50), ('--near-duplicates', 'true')])
def test_a_truncated_image_is_left_out_where_pixels_are_read(tmp_path, source, arguments):
    Image.effect_noise((200, 200), 50).save(source / 'a' / 'cut.jpg')
    (source / 'a' / 'cut.jpg').write_bytes((source / 'a' / 'cut.jpg').read_bytes()[:3000])
    result = split(*arguments)
    assert result.returncode == 0 and 'left out: data1/a/cut.jpg' in result.stdout and len(entries(tmp_path)) == 30


def test_a_depth_that_no_file_states_is_asked_for_while_shrinking(tmp_path, source):
    images._has_warned[0] = 0
    for number in range(4):
        Image.fromarray(np.full((99, 99), 4000 + number, np.uint16)).save(source / 'a' / f'deep{number}.png')
    result = split('--max-side', 50)
    assert result.returncode == 0 and result.stdout.count('almost black') == 1 and 'data1/a/deep' in result.stdout


def test_a_class_that_lost_its_training_pictures_is_drawn_anew(tmp_path, source):
    split()
    for entry in entries(tmp_path):
        if entry['class'] == 'b' and entry['side'] == 'train':
            (tmp_path / entry['source']).unlink()
    split()
    assert {entry['side'] for entry in entries(tmp_path) if entry['class'] == 'b'} == {'train', 'val'}


def test_small_classes_and_imbalance_are_said(tmp_path, source):
    draw_folder(source, {'one': 1, 'two': 2}, seed=3)
    result = split()
    assert result.returncode == 0
    counts = Counter((entry['class'], entry['side']) for entry in entries(tmp_path))
    assert counts['one', 'train'] == 1 and counts['two', 'train'] == counts['two', 'val'] == 1
    assert 'one has no image in val' in result.stdout and '20.0 times as many' in result.stdout
    assert (tmp_path / 'data' / 'val' / 'one').is_dir()


@pytest.mark.parametrize('content', [{}, {'photo.jpg': 'mine'}, {'split.json': '{"made_by": "someone"}'},
                                     {'split.json': 'not json'}, {'split.json': '[' * 100_000}])
def test_a_folder_of_others_is_left_alone(tmp_path, source, content):
    (tmp_path / 'data').mkdir()
    for name, text in content.items():
        (tmp_path / 'data' / name).write_text(text)
    before = files_below(tmp_path / 'data')
    result = split()
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and 'was not touched' in result.stderr
    assert files_below(tmp_path / 'data') == before


def test_a_file_that_someone_put_into_the_split_is_not_lost(tmp_path, source):
    """What file managers leave in every folder may go."""
    split()
    for name in ('.DS_Store', 'a/@eaDir/000.png/SYNOPHOTO_THUMB_M.jpg', 'a/._000.png'):
        (tmp_path / 'data' / 'train' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'data' / 'train' / name).write_text('')
    assert split().returncode == 0 and not list((tmp_path / 'data' / 'train').rglob('[.@]*'))
    (tmp_path / 'data' / 'train' / 'a' / 'mine.jpg').write_text('precious')
    result = split()
    assert result.returncode == 2 and 'mine.jpg' in result.stderr
    assert (tmp_path / 'data' / 'train' / 'a' / 'mine.jpg').exists()


def test_shrunken_images_lose_texts_that_their_format_cannot_hold(tmp_path, source):
    image = Image.open(next((source / 'a').iterdir()))
    image.convert('P').save(source / 'a' / 'long.jpg', 'GIF', comment=bytes(70_000))
    texts = PngImagePlugin.PngInfo()
    texts.add_text('comment', 'text')
    image.save(source / 'a' / 'text.jpg', 'PNG', pnginfo=texts, icc_profile=b'odd')
    assert split('--max-side', 16).returncode == 0
    found = {row['source']: row['file'] for row in entries(tmp_path)}
    for name in ('long', 'text'):
        shrunken = Image.open(tmp_path / 'data' / found[f'data1/a/{name}.jpg'])
        assert shrunken.format == 'JPEG' and max(shrunken.size) == 16 and 'comment' not in shrunken.info


def test_unreadable_files_are_left_out_by_name_and_empty_classes_refused(tmp_path, source):
    (source / 'a' / 'text.jpg').write_text('no picture')
    (source / 'a' / 'nowhere.png').symlink_to('gone')
    lines = [line for line in split().stdout.splitlines() if line.startswith('left out: ')]
    assert len(entries(tmp_path)) == 30 and lines == [
        'left out: data1/a/nowhere.png: not a readable image (No such file or directory)',
        'left out: data1/a/text.jpg: not a readable image (the content is no image, or of a kind that Pillow cannot '
        'read)']
    (source / 'c').mkdir()
    result = split()
    assert result.returncode == 2 and 'no images in c' in result.stderr


@pytest.mark.parametrize('arguments, words', [
    (['--val-ratio', 1.5], 'VAL_RATIO'), (['--test-ratio', 0.7], 'TEST_RATIO'), (['--group', '('], 'GROUP'),
    (['--near-duplicates', 'some'], 'NEAR_DUPLICATES'), (['--max-side', 2], 'MAX_SIDE'),
    (['--target-dir', 'data1/x'], 'must lie apart'),
    (['--target-dir', '..'], 'TARGET_DIR'), (['--source-dir', 'nowhere'], 'no such folder')])
def test_mistakes(tmp_path, source, arguments, words):
    result = split(*arguments)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and words in result.stderr


def test_an_interrupted_exchange_is_completed(tmp_path, source):
    """Killed between moving the old split away and the new one in, the next run still knows the old one."""
    split()
    before = sides(tmp_path)
    (tmp_path / 'data').rename(tmp_path / '.data.old')
    assert split().returncode == 0
    assert sides(tmp_path) == before and not (tmp_path / '.data.old').exists()


def test_links_take_no_room_and_shrunken_pictures_are_copies(tmp_path, source):
    Image.new('RGB', (400, 100), 'red').save(source / 'a' / 'wide.jpg')
    result = split('--link', '--max-side', 50)
    assert result.returncode == 0 and 'no hard links' not in result.stdout
    for entry in entries(tmp_path):
        same = (tmp_path / 'data' / entry['file']).samefile(tmp_path / entry['source'])
        assert same == ('wide' not in entry['file'])
    before = files_below(source)
    assert split().returncode == 0 and files_below(source) == before  # the links went, the pictures did not
    assert not any((tmp_path / 'data' / entry['file']).samefile(tmp_path / entry['source'])
                   for entry in entries(tmp_path))


def test_where_links_cannot_be_made_pictures_are_copied(tmp_path, source, monkeypatch):
    def refuse(*paths):
        raise OSError('Invalid cross-device link')

    monkeypatch.setattr('os.link', refuse)
    result = split('--link')
    assert result.returncode == 0 and 'no hard links' in result.stdout and len(entries(tmp_path)) == 30


def test_a_full_disk_leaves_the_old_split(tmp_path, source, monkeypatch):
    split()
    before = files_below(tmp_path / 'data')
    draw_folder(source, {'c': 4}, seed=9)

    def full(path, content):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('pathlib.Path.write_bytes', full)
    result = split()
    assert result.returncode == 2 and '(No space left on device)' in result.stderr
    assert 'free some space' in result.stderr
    assert files_below(tmp_path / 'data') == before
    assert [path.name for path in tmp_path.glob('.data*')] == ['.data.lock']


def test_a_manifest_cannot_lead_out_of_the_folder(tmp_path, source):
    split()
    listing = tmp_path / 'data' / 'split.csv'
    listing.write_text(listing.read_text().replace(',val,', ',../../elsewhere,'))
    before = files_below(tmp_path)
    result = split()
    assert result.returncode == 2 and 'or changed since' in result.stderr and files_below(tmp_path) == before


def test_classes_that_look_alike_are_warned_of(tmp_path, source):
    draw_folder(source, {'a ': 3}, seed=2)
    assert 'warning: a and a  are different classes here' in split().stdout


def test_what_is_left_out_is_said_in_one_line(tmp_path, source):
    draw_folder(source, {'__background__': 4, 'a/@eaDir': 2, '__MACOSX': 1}, seed=3)
    for name in ('IMG_1', 'IMG_2', 'notes.txt'):
        (source / 'a' / name).write_text('')
    result = split()
    lines = [line for line in result.stdout.splitlines() if line.startswith('left out')]
    assert result.returncode == 0 and Counter(entry['class'] for entry in entries(tmp_path)) == {
        'a': 20, 'b': 10, '__background__': 4}
    assert len(lines) == 1 and {'2 without an ending', '1 .txt', '1 __MACOSX/'} < {
        part.removeprefix('left out: ') for part in lines[0].partition(';')[0].split(', ')} and '1 @eaDir/' in lines[0]


def test_a_set_that_is_split_already_is_refused(tmp_path, source):
    for side in ('train', 'valid', 'test'):
        shutil.copytree(source, tmp_path / 'ds' / side)
    result = split('--source-dir', 'ds')
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith('ds is split already, into train, valid, test: python train.py --data-dir ds takes')
    assert not (tmp_path / 'data').exists()
    (tmp_path / 'ds' / 'train').rename(tmp_path / 'ds' / 'bus')
    assert split('--source-dir', 'ds', '--group', 'folder').returncode == 0


def test_a_val_without_images_says_what_to_do(tmp_path, source):
    for folder in source.iterdir():
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    result = split()
    assert result.returncode == 0 and 'warning: data/val is empty, and train.py needs it: it needs cl' in result.stdout
    assert 'NEAR_DUPLICATES, GROUP and VAL_RATIO' in result.stdout
    with pytest.raises(UserError, match='data/val: no images in it: it needs classes with two images or more .*GROUP'):
        open_split('data')


def test_odd_names_of_classes(tmp_path, source):
    draw_folder(source, {'A': 3, 'x\\y': 3, 'caf\udce9': 3, 'photo.jpg': 3}, seed=2)
    result = split()
    assert result.returncode == 0 and 'A and a are different classes here, but one on Windows' in result.stdout
    assert len(entries(tmp_path)) == 42
    (source / 'line\nbreak').mkdir()
    result = split()
    assert result.returncode == 2 and "the class 'line\\nbreak' has control characters" in result.stderr


def test_a_name_that_is_as_long_as_names_can_be(tmp_path, source):
    Image.new('RGB', (100, 300), 'blue').save(source / 'a' / f'{251 * "n"}.bmp')
    assert split('--max-side', 50).returncode == 0 and len(entries(tmp_path)) == 31


def test_copies_do_not_overwrite_each_other(tmp_path, source):
    """The shrunken copy of x.bmp would have the name that another picture has."""
    Image.new('RGB', (100, 300), 'blue').save(source / 'a' / 'x.bmp')
    Image.new('RGB', (9, 9), 'red').save(source / 'a' / 'x.bmp.shrunk.png')
    assert split('--max-side', 50, '--seed', 2).returncode == 0
    files = [entry['file'] for entry in entries(tmp_path)]
    assert len(files) == len(set(files)) == 32 and all((tmp_path / 'data' / file).is_file() for file in files)


def test_two_at_once_are_refused(tmp_path, source):
    with FileLock(tmp_path / '.data.lock'):
        result = split()
    assert result.returncode == 2 and 'another makedata.py runs' in result.stderr
    assert not (tmp_path / 'data').exists() and split().returncode == 0


@pytest.mark.parametrize('change', [
    lambda manifest, table: manifest.pop('shards'),
    lambda manifest, table: manifest['settings'].pop('TEST_RATIO'),
    lambda manifest, table: manifest.update(settings=[]),
    lambda manifest, table: manifest.update(shards=[{}]),
    lambda manifest, table: table.unlink(),
    lambda manifest, table: table.write_text(table.read_text().replace('sha256', 'md5')),
    lambda manifest, table: table.write_text(table.read_text() + 'train/a/x.png\n'),
    lambda manifest, table: table.write_text(f'{table.read_text()}train/../../x.png,x.png,a,train,99,{"0" * 64}\n')])
def test_a_split_of_another_version_is_left_alone(tmp_path, source, change):
    split()
    place = tmp_path / 'data' / 'split.json'
    manifest = json.loads(place.read_text())
    change(manifest, tmp_path / 'data' / 'split.csv')
    place.write_text(json.dumps(manifest))
    before = files_below(tmp_path / 'data')
    result = split()
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert 'was made by another version of makedata.py' in result.stderr and 'was not touched' in result.stderr
    assert files_below(tmp_path / 'data') == before


def test_two_thousand_classes(tmp_path, source):
    content = (source / 'a' / '000.png').read_bytes()
    for number in range(2000):
        (source / f'class {number}').mkdir()
        (source / f'class {number}' / '0.png').write_bytes(content + str(number).encode())
    result = split()
    assert result.returncode == 0 and len(entries(tmp_path)) == 2030
    found = open_split(tmp_path / 'data')
    assert len(found.classes) == 2002 and len(found.val) == 9
