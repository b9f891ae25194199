"""makedata.py --folds: every picture is in val once, groups stay together, and train.py takes each fold."""
import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from helpers import draw_folder, entries, files_below, run, split

from extras.folds import choose_folds, print_folds


def val_of(tmp_path):
    """{fold: sources in val}, after looking that train has all others."""
    found = defaultdict(lambda: defaultdict(set))
    for entry in entries(tmp_path):
        fold, side, *_ = entry['file'].split('/')
        assert side == entry['side']
        found[fold][side].add(entry['source'])
        assert (tmp_path / 'data' / entry['file']).read_bytes() == (tmp_path / entry['source']).read_bytes()
    sources = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / 'data1').rglob('*.png')}
    assert all(sides['train'] | sides['val'] == sources and not sides['train'] & sides['val']
               for sides in found.values())
    return {fold: sides['val'] for fold, sides in found.items()}


def test_every_picture_is_in_val_once(tmp_path, source):
    result = split('--folds', 5)
    assert result.returncode == 0, result.stderr
    val = val_of(tmp_path)
    assert sorted(val) == [f'fold{number}' for number in range(1, 6)]
    for names in val.values():
        assert Counter(name.split('/')[1] for name in names) == {'a': 4, 'b': 2}
    assert Counter(name for names in val.values() for name in names) == Counter(
        {path.relative_to(tmp_path).as_posix(): 1 for path in source.rglob('*.png')})
    assert not list((tmp_path / 'data').glob('_*')) and 'a           4      4' in result.stdout
    assert 'data/fold1 to data/fold5' in result.stdout


def test_folds_share_their_files(tmp_path, source, monkeypatch):
    """Where there are hard links; elsewhere each has copies."""
    def refuse(*paths):
        raise OSError('Invalid cross-device link')

    split('--folds', 3)
    assert {os.stat(path).st_nlink for path in (tmp_path / 'data').rglob('*.png')} == {3}
    before = files_below(tmp_path / 'data')
    monkeypatch.setattr('os.link', refuse)
    split('--folds', 3)
    assert files_below(tmp_path / 'data') == before
    assert {os.stat(path).st_nlink for path in (tmp_path / 'data').rglob('*.png')} == {1}


def test_another_split_takes_their_place(tmp_path, source):
    split('--folds', 3)
    first = val_of(tmp_path)
    split('--folds', 3)
    assert val_of(tmp_path) == first
    split('--folds', 3, '--seed', 7)
    assert val_of(tmp_path) != first
    assert split().returncode == 0 and {path.name for path in (tmp_path / 'data').iterdir()} == {
        'train', 'val', 'split.csv', 'split.json'}
    once = files_below(tmp_path / 'data')
    split('--folds', 3)
    split()
    assert files_below(tmp_path / 'data') == once  # not what was in val of the last fold


def test_copies_stay_together(tmp_path, source):
    for number in range(12):
        shutil.copy(source / 'a' / f'{number:03}.png', source / 'a' / f'copy{number}.png')
    split('--folds', 4)
    for names in val_of(tmp_path).values():
        contents = {(tmp_path / name).read_bytes() for name in names}
        assert len(contents) < len(names)
        assert all((path.relative_to(tmp_path).as_posix() in names) == (path.read_bytes() in contents)
                   for path in source.rglob('*.png'))


def test_a_fold_is_trained_on(tmp_path, quick, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / 'data1', {'a': 12, 'b': 12})
    split('--folds', 3, '--near-duplicates', 'false')
    run(data_dir='data/fold2', epochs=1)
    assert Path('out/best.pth').exists()


@pytest.mark.parametrize('arguments, words', [
    (['--folds', 1], 'FOLDS = 1: give 2 or more'), (['--folds', 3, '--shards'], 'without SHARDS'),
    (['--folds', 3, '--test-ratio', 0.1], 'with TEST_RATIO = 0'),
    (['--folds', 11], 'FOLDS = 11: b has 10 images')])
def test_mistakes(tmp_path, source, arguments, words):
    result = split(*arguments)
    assert result.returncode == 2 and words in result.stderr and not (tmp_path / 'data').exists()


def test_folds_depend_on_the_seed_alone():
    targets = np.repeat([0, 1], 20)
    groups = np.arange(40) // 2
    first = choose_folds(targets, groups, ['a', 'b'], 5, 1)
    assert (first == choose_folds(targets, groups, ['a', 'b'], 5, 1)).all()
    assert (first != choose_folds(targets, groups, ['a', 'b'], 5, 2)).any()
    assert (first[::2] == first[1::2]).all() and (np.bincount(first[:20]) == 4).all()


def test_a_fold_without_a_class_in_train_is_warned_of(capsys):
    """Corrections can bring it about: a class of one image."""
    print_folds(np.array([0, 0, 1]), np.array([0, 1, 1]), ['a', 'b'], 'data')
    lines = [line for line in capsys.readouterr().out.splitlines() if 'in train, and train.py refuses' in line]
    assert len(lines) == 1 and lines[0].startswith('warning: fold2 has no image of b in train')
