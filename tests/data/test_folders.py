"""common/data/folders.py: which files count, in which order, and lists of a million of them; work in threads."""
import os
import pickle
import unicodedata
from collections import Counter

import pytest
from helpers import draw_folder

from common.data.datasets import ImageFolder, open_split
from common.data.folders import (
    SHARDS_TABLE,
    Files,
    Rows,
    Samples,
    class_folders,
    find_in_class_folders,
    find_split,
    open_store,
    refuse_class_names,
    side_folder,
)
from common.data.images import FORMATS
from common.data.listing import describe_left_out, ending_of, is_image, is_seen, list_images
from common.runtime import machine as threads
from common.runtime.errors import UserError
from common.runtime.machine import map_in_threads

PATHS = ['data/a/000.png', 'data/a/种.png', 'data/b/\udcff.png', '']


def test_which_files_count():
    assert all(map(is_image, ('a.jpg', 'A.JPG', 'b.Jpeg', 'x.png', 'x.webp', 'x.tiff', 'x.bmp', 'x.gif',
                              'x.heic', 'x.HEIF', 'x.avif')))
    assert not any(map(is_image, ('.a.jpg', 'a.txt', 'a', 'a.eps', 'a.pdf', 'Thumbs.db', '.DS_Store')))


def test_endings_fit_formats():
    assert (ending_of('JPEG'), ending_of('PNG'), ending_of('TIFF')) == ('.jpeg', '.png', '.tiff')
    assert all(is_image(f'x{ending_of(kind)}') for kind in FORMATS)


def test_what_is_left_out_is_counted_and_named(tmp_path):
    """What programs leave behind is neither a class nor an image; a class may begin with underscores."""
    folder = draw_folder(tmp_path / 'data1', {'a': 2, '__background__': 3, 'a/__raw__': 1, 'a/@eaDir': 1,
                                              'a/deep/.thumbnails': 2})
    programs = ['@eaDir', '__MACOSX', '$RECYCLE.BIN', 'lost+found', 'System Volume Information', '.AppleDouble']
    draw_folder(folder, dict.fromkeys(programs, 1))
    for name in ('a/notes', 'a/IMG_1', 'a/x.TXT', 'a/Thumbs.db', 'a/._000.png', 'a/.hidden.png', 'beside.png', 'x.py'):
        (folder / name).write_bytes(b'')
    expected = {'without an ending': 2, '.txt': 1, 'Thumbs.db': 1, 'hidden files': 2,
                'images beside the class folders': 1, **{f'{name}/': 1 for name in programs}, '@eaDir/': 2,
                '.thumbnails/': 1}
    found = find_in_class_folders(str(folder))
    assert found.classes == ['__background__', 'a'] and Counter(found.samples.targets.tolist()) == {0: 3, 1: 3}
    assert found.left_out == expected
    files = Files(folder)
    assert files.samples({'__background__': 0, 'a': 1}) == found.samples and files.left_out == expected
    assert len(list(files.paths())) == 7  # with the one beside
    assert files.left_out['@eaDir/'] == 2 and files.left_out['.py'] == 1
    assert all(is_seen(os.path.relpath(path, folder)) for path, _ in found.samples)
    assert not any(map(is_seen, ('a/@eaDir/x.png', '.a/x.png', 'a/.x.png', 'a/x')))


def test_what_is_left_out_is_one_line():
    left_out = Counter({'without an ending': 30, **{f'.{number:03}': 1 for number in range(40)}, '.mp4': 5})
    text = describe_left_out(left_out)
    assert text.startswith('30 without an ending, 5 .mp4, 1 .000, ') and ', 34 others; an image needs an end' in text
    assert '\n' not in describe_left_out(Counter({'.a\nb': 1}))


def test_an_empty_class_says_what_was_left_out(tmp_path):
    draw_folder(tmp_path, {'a': 1})
    (tmp_path / 'b').mkdir()
    for number in range(3):
        (tmp_path / 'b' / f'IMG_{number}').write_bytes(b'')
    with pytest.raises(UserError, match='in b: add some or remove the class .left out: 3 without an ending; an image'):
        find_in_class_folders(tmp_path)


def test_a_class_on_a_disk_that_is_absent_is_not_forgotten(tmp_path):
    draw_folder(tmp_path, {'a': 1, 'b': 1})
    for name in ('.#lock', 'x.png'):  # of an editor; of a single image
        (tmp_path / name).symlink_to('nowhere')
    assert find_in_class_folders(tmp_path).classes == ['a', 'b']
    (tmp_path / 'c').symlink_to('/mnt/absent/c')
    with pytest.raises(UserError, match='/c: a link to nowhere: mount its disk, or remove the link'):
        find_in_class_folders(tmp_path)


@pytest.mark.parametrize('file', ['split.json', 'best.pth', 'last.pth', 'predictions.jsonl'])
def test_results_of_the_scripts_are_no_images(tmp_path, file):
    """But in a folder that is named itself, everything counts."""
    draw_folder(tmp_path, {'a': 2, 'b': 1, 'checkpoints/volo_d1': 3, 'a/out': 4})
    for folder in ('checkpoints/volo_d1', 'a/out'):
        (tmp_path / folder / file).write_text('')
    found = find_in_class_folders(tmp_path)
    assert found.classes == ['a', 'b'] and len(found.samples) == 3
    assert found.left_out == {'checkpoints/ (results of these scripts)': 1, 'out/ (results of these scripts)': 1}
    assert len(list(list_images(tmp_path / 'a' / 'out'))) == 4 and len(list(list_images(tmp_path))) == 3


def test_accents_that_are_stored_in_two_ways_are_one(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))
    draw_folder(tmp_path, {decomposed: 2, 'tea': 1})
    assert class_folders(tmp_path) == {composed: decomposed, 'tea': 'tea'}
    found = ImageFolder(tmp_path, classes=['tea', composed])
    assert found.targets.tolist() == [0, 1, 1] and decomposed in found.samples[1][0]
    try:
        draw_folder(tmp_path, {composed: 2})
    except FileExistsError:
        pytest.skip('this file system takes both for one name')
    with pytest.raises(UserError, match='two folders are called café, .*: put the images of both into one'):
        find_in_class_folders(tmp_path)


@pytest.mark.parametrize('folders, sides', [
    (['train/a', 'train/b', 'val/a', 'val/b'], ['train', 'val']),
    (['TRAIN/a', 'Valid/a', 'test/a'], ['TRAIN', 'Valid', 'test']),
    (['training/a', 'validation/a', 'testing/b'], ['training', 'validation', 'testing']),
    (['train/a', 'train/b', 'test'], ['train', 'test']),                # the images of test have no classes
    (['train/a', 'val/a', 'annotations'], ['train', 'val']),
    (['train/train/a', 'Val/Val/a', 'test/a'], ['train/train', 'Val/Val', 'test']),  # as some archives have it
    (['train', 'bus'], []), (['train', 'val', 'test'], []),             # classes
    (['train/red', 'train/blue', 'bus/red'], []), (['train/1', 'val/2'], []), (['train/a', 'train', 'val/a'], []),
    (['val/a', 'test/a'], []), (['train/a', 'train/b'], [])])
def test_a_set_that_is_split_already_is_told_from_classes(tmp_path, folders, sides):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / 'x.png').write_bytes(b'')
    assert list(find_split(tmp_path).values()) == sides
    if not sides:
        assert len(find_in_class_folders(tmp_path).classes) == len({folder.split('/')[0] for folder in folders})
        return
    with pytest.raises(UserError, match='is split already, into ' + ', '.join(sides)) as error:
        find_in_class_folders(tmp_path)
    train = f'python makedata.py --source-dir {tmp_path / sides[0]} splits {sides[0]}'
    takes_it = f'python train.py --data-dir {tmp_path} takes it'
    tests = f'python test.py --test-dir {tmp_path / sides[-1]} tests'
    assert train in str(error.value) and ((takes_it if sides[1] != 'test' else tests) in str(error.value))


@pytest.mark.parametrize('folders, advice', [
    (['Training', 'Testing'], 'run python makedata.py --source-dir {}/Training, and train.py on what it writes'),
    (['val'], 'run makedata.py first, or set DATA_DIR')])
def test_without_val_makedata_is_named(tmp_path, folders, advice):
    for name in folders:
        draw_folder(tmp_path / name, {'a': 1, 'b': 1})
    with pytest.raises(UserError, match=f'{tmp_path}/train and {tmp_path}/val are needed: {advice.format(tmp_path)}'):
        open_split(tmp_path)


@pytest.mark.parametrize('files, example', [
    (['seg_train/seg_train/a/1', 'seg_train/seg_train/b/1', 'seg_test/seg_test/a/1'], 'seg_train/seg_train'),
    (['first/a/1', 'first/b/1', 'second/a/1', 'second/b/1'], 'first'),
    (['a/1', 'b/1'], None), (['a/a/1', 'b/b/1'], None),              # an archive for each class
    (['a/1', 'a/x/2', 'a/y/2', 'b/x/1', 'b/y/1'], None), (['a/plant1/1', 'a/plant2/1', 'b/plant3/1'], None)])
def test_folders_that_hold_the_classes_are_no_classes(tmp_path, capsys, files, example):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f'{file}.png').write_bytes(b'')
    for root in (tmp_path, f'{tmp_path}/'):
        find_in_class_folders(root)
        out = capsys.readouterr().out
        assert bool(out) == bool(example)
        assert not example or (out.startswith('warning: ') and out.endswith(f'such as {tmp_path / example}\n'))


def test_of_two_folders_for_a_side_it_is_the_one_of_makedata(tmp_path):
    for names in (('validation', 'val'), ('val', 'valid')):
        for name in names:
            (tmp_path / name).mkdir(exist_ok=True)
        assert side_folder(tmp_path, 'val') == tmp_path / 'val'
    assert side_folder(tmp_path / 'gone', 'train') == tmp_path / 'gone' / 'train'


@pytest.mark.parametrize('content', ['name,date\n', 'file,class\n', '', '\xff'])
def test_a_table_of_ones_own_makes_no_shards(tmp_path, content):
    draw_folder(tmp_path, {'a': 2})
    (tmp_path / SHARDS_TABLE).write_text(content, encoding='latin-1')
    assert len(list(open_store(tmp_path).paths())) == 2


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
