"""makedata.py: what belongs together, and a third part."""
from collections import Counter
from pathlib import Path

import pytest
from helpers import draw_folder, entries, scene, sides, split

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
    assert '\n48 of 48 images are nearly like others, as frames of a video are: if more' in result.stdout
    assert '48 images belong to 24 groups' in result.stdout and 'several classes' not in result.stdout
    sides_of = {}
    for entry in entries(tmp_path):
        sides_of.setdefault(Path(entry['file']).stem, set()).add(entry['side'])
    assert all(len(side) == 1 for side in sides_of.values())
    (tmp_path / 'data').rename(tmp_path / 'data before')
    assert 'groups' not in split('--near-duplicates', 'false').stdout
    monkeypatch.setattr(makedata, '_MOST_COMPARED', 47)
    result = split('--near-duplicates', 'auto')
    assert 'NEAR_DUPLICATES = True to do so, and GROUP if' in result.stdout and 'groups' not in result.stdout


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


def test_names_of_frames_are_told(tmp_path, source):
    """Unless the user has said what belongs together, or the images are single photographs."""
    words = 'belong together, set GROUP, here --group '
    assert words not in split().stdout
    for path in sorted(source.glob('*/*.png')):
        number = int(path.stem)
        path.rename(path.with_name(f'{number % 5}_{number}.png'))
    assert f"{words}'^(.+)_\\d+\\.'\n" in split().stdout
    result = split('--group', r'^(.+)_\d+\.')
    assert '30 images belong to 10 groups' in result.stdout and words not in result.stdout


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
