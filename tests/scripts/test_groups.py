"""makedata.py: what belongs together, a third part, and classes from a table."""
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from helpers import draw_folder, entries, scene, sides, split
from PIL import Image

import makedata


def test_near_duplicates_stay_on_one_side_and_are_left_alone_on_request(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('a', 'b'):
        (tmp_path / 'data1' / name).mkdir(parents=True)
    for number in range(24):
        picture = scene(number)
        picture.save(tmp_path / 'data1' / 'ab'[number % 2] / f'{number}.png')
        picture.resize((180, 150)).save(tmp_path / 'data1' / 'ab'[number % 2] / f'{number}.jpg')
    result = split('--near-duplicates', 'auto')
    assert '48 pictures belong to 24 groups' in result.stdout
    sides_of = {}
    for entry in entries(tmp_path):
        sides_of.setdefault(Path(entry['file']).stem, set()).add(entry['side'])
    assert all(len(side) == 1 for side in sides_of.values())
    (tmp_path / 'data').rename(tmp_path / 'data before')
    assert 'groups' not in split('--near-duplicates', 'false').stdout
    monkeypatch.setattr(makedata, '_MOST_COMPARED', 47)
    result = split('--near-duplicates', 'auto')
    assert 'NEAR_DUPLICATES = True' in result.stdout and 'groups' not in result.stdout


def test_a_truncated_picture_is_left_out_where_pictures_are_compared(tmp_path, source):
    Image.effect_noise((200, 200), 50).save(source / 'a' / 'cut.jpg')
    (source / 'a' / 'cut.jpg').write_bytes((source / 'a' / 'cut.jpg').read_bytes()[:3000])
    assert 'left out: data1/a/cut.jpg' in split('--near-duplicates', 'true').stdout and len(entries(tmp_path)) == 30


@pytest.mark.parametrize('group', ['folder', r'plant(\d+)', r'^[^/]+/plant\d+'])
def test_groups_of_the_user(tmp_path, source, group):
    draw_folder(source, {'c': 10}, seed=4)  # alone, each of them
    for number, path in enumerate(sorted(source.glob('[ab]/*.png'))):  # five plants with the same numbers in each class
        plant = path.parent / f'plant{number % 5}'
        plant.mkdir(exist_ok=True)
        path.rename(plant / path.name)
    result = split('--group', group)
    assert result.returncode == 0, result.stderr
    sides_of = {}
    assert Counter(entry['side'] for entry in entries(tmp_path) if entry['class'] == 'c') == {'train': 7, 'val': 3}
    for entry in entries(tmp_path):
        if entry['class'] == 'c':
            continue
        plant = Path(entry['source']).parts[1:3] if group != r'plant(\d+)' else Path(entry['source']).parts[2]
        sides_of.setdefault(plant, set()).add(entry['side'])
    assert len(sides_of) == (5 if group == r'plant(\d+)' else 10)
    assert all(len(side) == 1 for side in sides_of.values()) and {'train'} in sides_of.values()
    assert {'val'} in sides_of.values()


def test_another_group_draws_all_anew(tmp_path, source):
    """Else groups that had pictures on both sides would go to train, and leave val too small."""
    draw_folder(source, {'c': 40}, seed=4)
    for number, path in enumerate(sorted((source / 'c').iterdir())):  # five plants, and twenty pictures that are single
        path.rename(path.with_name(f'plant{number % 5} {path.name}' if number < 20 else path.name))
    split()
    split('--group', r'plant\d')
    assert Counter(entry['side'] for entry in entries(tmp_path) if entry['class'] == 'c') == {'train': 28, 'val': 12}


def test_a_test_part(tmp_path, source):
    result = split('--test-ratio', 0.2)
    counts = Counter((entry['class'], entry['side']) for entry in entries(tmp_path))
    assert counts == {('a', 'train'): 10, ('a', 'val'): 6, ('a', 'test'): 4,
                      ('b', 'train'): 5, ('b', 'val'): 3, ('b', 'test'): 2}
    assert 'train    val   test' in result.stdout
    before = {key: side for key, side in sides(tmp_path).items() if side == 'val'}
    split()
    assert before.items() <= sides(tmp_path).items()  # the same val without it


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
    ('picture,label\nx.png,a', 'line 2: a row needs a file and a class'), ('file,class\nx.png,', 'line 2'),
    ('file,class\n../x.png,a', 'below SOURCE_DIR'), ('file,class\n/x.png,a', 'below SOURCE_DIR'),
    ('file,class\nx.png,a\nx.png,b', 'line 3: x.png was there before'), ('file,class', 'no pictures in it'),
    ('file,class\nx.png,a/b', 'cannot be the name of a folder'), ('file,class\nx.png,..', 'cannot be the name'),
    ('file,class\nnone.png,a', 'no pictures in a'), ('文件'.encode('gbk'), 'not in UTF-8'), (None, 'No such file')])
def test_tables_with_mistakes(tmp_path, source, text, words):
    if text is not None:
        Path('labels.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
    result = split('--source-dir', 'data1/a', '--labels', 'labels.csv')
    assert result.returncode == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_split_of_an_earlier_version_keeps_its_sides(tmp_path, source):
    """There split.json had the list of files."""
    split()
    before, place = sides(tmp_path), tmp_path / 'data' / 'split.json'
    manifest = json.loads(place.read_text())
    manifest['files'] = entries(tmp_path)
    for name in ('TEST_RATIO', 'NEAR_DUPLICATES', 'GROUP', 'LABELS', 'SHARDS'):
        del manifest['settings'][name]
    place.write_text(json.dumps(manifest))
    (tmp_path / 'data' / 'split.csv').unlink()
    draw_folder(tmp_path / 'more', {'a': 10}, seed=5)
    for path in (tmp_path / 'more' / 'a').iterdir():
        shutil.copy(path, source / 'a' / f'new_{path.name}')
    assert split().returncode == 0
    assert before.items() < sides(tmp_path).items()
