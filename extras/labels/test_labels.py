"""LABELS: classes and groups from a table, and one line for a table with a mistake."""
import os
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from fuzzing import (
    STRANGE,
    as_csv,
    cases,
    check_line,
    confined,
    not_waited_for,
    odd_text,
    put_strange,
    spoiled_file,
)
from helpers import entries, split
from PIL import Image

from common.data.datasets import open_split
from common.data.folders import find_in_class_folders
from common.runtime.errors import UserError
from extras.labels import read_labels


def test_labels_from_a_table(tmp_path, source):
    flat = tmp_path / 'flat'
    (flat / 'deep').mkdir(parents=True)
    lines = ['file,class,group']
    for number, path in enumerate(sorted(source.rglob('*.png'))):
        path.rename(flat / ('deep' if number % 2 else '') / f'{number}.png')
        lines.append(f'{"deep/" * (number % 2)}{number}.png,kind {number % 3},{number // 5}')
    Path('labels.csv').write_text('\n'.join(lines), encoding='utf-8-sig')
    result = split('--source-dir', 'flat', '--labels', 'labels.csv', '--val-ratio', 0.4)
    assert result.returncode == 0, result.stderr
    found = entries(tmp_path)
    assert len(found) == 30 and Counter(entry['class'] for entry in found) == {f'kind {n}': 10 for n in range(3)}
    for entry in found:
        number = int(Path(entry['source']).stem)
        assert entry['class'] == f'kind {number % 3}' and (tmp_path / 'data' / entry['file']).is_file()
    by_group = {int(Path(entry['source']).stem) // 5: set() for entry in found}
    for entry in found:
        by_group[int(Path(entry['source']).stem) // 5].add(entry['side'])
    assert all(len(side) == 1 for side in by_group.values())


@pytest.mark.parametrize('text, words', [
    ('picture,label\nx.png,a', 'is "picture,label"'), ('file,class\nx.png,', 'no images in it'),
    ('file,class\n../x.png,a', 'below SOURCE_DIR'), ('file,class\na\\..\\..\\x.png,a', 'below SOURCE_DIR'),
    ('file,class\nx.png,C:', 'cannot be the name of a folder'), ('file,class\n/x.png,a', 'below SOURCE_DIR'),
    ('file,class\nx.png,a\nx.png,b', 'line 3: x.png was there before'), ('file,class', 'no images in it'),
    ('file,class\nx.png,a/b', 'cannot be the name of a folder'), ('file,class\nx.png,..', 'cannot be the name'),
    ('file,class\ndata1/a/000.png,a', 'would be data1/a/data1/a/000.png: give their paths below SOURCE_DIR'),
    ('file,class\n000.png,a\nnone.png,b', 'no images in b'),
    ('file,class\n"../x\ny.png",a', '../x\\ny.png must be a path'), ('file,class\n"x\ny",a', 'x\\ny: give their paths'),
    ('file,class\n"x\ny",a\n"x\ny",b', 'line 5: x\\ny was there before'),
    ('文件'.encode('gbk'), 'not in UTF-8'), (None, 'No such file')])
def test_tables_with_mistakes(tmp_path, source, text, words):
    if text is not None:
        Path('labels.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
    result = split('--source-dir', 'data1/a', '--labels', 'labels.csv')
    assert result.returncode == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1


def test_the_group_of_a_folder_and_that_of_the_table_hold_together(tmp_path, source):
    """A folder below SOURCE_DIR is one below the class, which is no folder here."""
    (source / 'a').rename(source / 'plant')
    files = sorted((source / 'plant').glob('*.png')) + sorted((source / 'b').glob('*.png'))
    lines = [f'{path.relative_to(source).as_posix()},kind {number % 2}' for number, path in enumerate(files)]
    Path('labels.csv').write_text('\n'.join(['file,class', *lines]))
    result = split('--labels', 'labels.csv', '--group', 'folder')
    assert result.returncode == 0, result.stderr
    sides_of = {}
    for entry in entries(tmp_path):
        sides_of.setdefault(Path(entry['source']).parent.name, set()).add(entry['side'])
    assert all(len(side) == 1 for side in sides_of.values()) and len(sides_of) == 2


@pytest.mark.parametrize('options', [(), ('--max-side', 16), ('--link',)])
def test_a_file_that_is_listed_counts_whatever_its_name(tmp_path, source, options):
    """Its copy has a name that every later script takes for that of an image."""
    names = ['IMG_1', '.hidden.png', 'deep/IMG_2', '__raw__/3.png', '@eaDir/4.png', '.trash/5', 'photo.dat',
             'photo.png.dat', 'wrong.jpg', 'long ' + 250 * 'n']
    files = sorted(source.rglob('*.png'))[:len(names)]
    lines = ['file,class']
    for number, (path, name) in enumerate(zip(files, names, strict=True)):
        target = tmp_path / 'flat' / name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
        lines.append(f'{name},kind {number % 2}')
    shutil.copy(tmp_path / 'flat' / 'IMG_1', tmp_path / 'flat' / 'notes')
    (tmp_path / 'flat' / 'notes').write_text('no image')
    lines.append('notes,kind 0')
    Path('labels.csv').write_text('\n'.join(lines))
    result = split('--source-dir', 'flat', '--labels', 'labels.csv', *options)
    assert result.returncode == 0, result.stderr
    assert 'left out: flat/notes: not a readable image' in result.stdout and len(entries(tmp_path)) == len(names)
    found = open_split('data')
    taken = {Path(path).relative_to('data').as_posix() for dataset in (found.train, found.val)
             for path, _ in dataset.samples}
    assert taken == {entry['file'] for entry in entries(tmp_path)} and len(taken) == len(names)
    assert len(find_in_class_folders('data/train').samples) == len(found.train)
    by_source = {entry['source']: Path(entry['file']).name for entry in entries(tmp_path)}
    assert by_source['flat/__raw__/3.png'] == '3.png' and by_source['flat/wrong.jpg'] == 'wrong.jpg'
    assert by_source['flat/IMG_1'] == ('IMG_1.shrunk.png' if '--max-side' in options else 'IMG_1.png')
    for entry in entries(tmp_path):
        assert Image.open(tmp_path / 'data' / entry['file']).size == ((16, 13) if '--max-side' in options else (24, 20))


def test_no_copy_takes_the_place_of_another(tmp_path, source):
    """Six files without an ending, beside others that have the names which their copies would get."""
    lines = ['file,class']
    for number, path in enumerate(sorted(source.rglob('*.png'))[:18]):
        name = f'b/{number}.png' if number >= 12 else f'a/{number // 2}{".png" * (number % 2)}'
        target = tmp_path / 'flat' / name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
        lines.append(f'{name},{name[0]}')
    Path('labels.csv').write_text('\n'.join(lines))
    assert split('--source-dir', 'flat', '--labels', 'labels.csv').returncode == 0
    files = [entry['file'] for entry in entries(tmp_path)]
    assert len(set(files)) == 18 and all((tmp_path / 'data' / file).is_file() for file in files)


def test_images_that_the_table_does_not_list_are_counted(tmp_path, source):
    names = [path.relative_to(source).as_posix() for path in sorted(source.rglob('*.png'))]
    rows = [f'{name},{name[0]}' for name in names[::2]]
    Path('labels.csv').write_text('\n'.join(['file,class', *rows]))
    result = split('--labels', 'labels.csv')
    assert result.returncode == 0 and 'left out: 15 images that LABELS does not list\n' in result.stdout


def test_images_without_a_class_are_left_out(tmp_path, source):
    names = [path.relative_to(source).as_posix() for path in sorted(source.rglob('*.png'))]
    rows = [f'{name},{name[0] if number else ""}' for number, name in enumerate(names)]
    Path('labels.csv').write_text('\n'.join(['file,class', *rows]))
    result = split('--labels', 'labels.csv')
    assert result.returncode == 0 and 'left out: 1 images without a class in LABELS\n' in result.stdout
    assert len(entries(tmp_path)) == len(names) - 1


def test_a_class_is_one_however_it_is_written(tmp_path, source):
    """With spaces, accents stored in either way, semicolons and the backslashes of Windows."""
    spellings = ['café', 'café ', unicodedata.normalize('NFD', 'café'), '\u00a0café']
    lines = ['FILE; Class']
    for number, path in enumerate(sorted(source.rglob('*.png'))):
        name = str(path.relative_to(source)).replace('/', '\\')
        lines.append(f'{name}; {spellings[number % 4] if number % 3 else "tea"}')
    Path('labels.csv').write_text('\n'.join(lines), encoding='utf-16')
    result = split('--labels', 'labels.csv')
    assert result.returncode == 0, result.stderr
    assert Counter(entry['class'] for entry in entries(tmp_path)) == {'café': 20, 'tea': 10}
    assert 'warning' not in result.stdout and 'left out' not in result.stdout


TABLE = [['file', 'class', 'group'], ['a.png', 'x', '1'], ['deep/b.png', 'y', ''], ['c.png', 'x', '1']]


@cases(100)
def test_fuzz_a_table(tmp_path_factory, random):
    """Images below the folder, or one line."""
    folder = tmp_path_factory.getbasetemp() / 'fuzz'
    (folder / 'deep').mkdir(parents=True, exist_ok=True)
    for name, *_ in TABLE[1:]:
        (folder / name).touch()
    table = folder / 'labels.csv'
    table.write_bytes(spoiled_file(random, TABLE, as_csv, odd_text))
    with confined(folder):
        try:
            found = read_labels(str(table), str(folder))
        except UserError as error:
            check_line(error)
        else:
            assert len(found.samples) == len(found.groups) > 0
            assert all(os.path.abspath(path).startswith(f'{folder}{os.sep}') for path, _ in found.samples)


@pytest.mark.parametrize('what', STRANGE)
def test_what_is_no_table_is_not_waited_for(tmp_path, what):
    put_strange(tmp_path / 'labels.csv', what)
    with not_waited_for(), confined(tmp_path), pytest.raises(UserError, match='cannot be read: .') as error:
        read_labels(str(tmp_path / 'labels.csv'), str(tmp_path))
    check_line(error.value)
