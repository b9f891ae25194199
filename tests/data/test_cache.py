"""common/data/cache.py: a cache changes the speed of training and nothing else."""
import json
import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import draw_folder, run_script
from PIL import Image

from common.data import cache
from common.data.cache import Pictures, choose_cache
from common.data.transforms import Transform, least_side
from common.runtime.errors import UserError

SIZE = (8, 12)


def shrink(image):
    return image.resize(SIZE[::-1])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = draw_folder(tmp_path / 'pictures', {'a': 3, 'b': 3})
    (folder / 'a' / 'bad.jpg').write_text('no picture')
    return folder


def paths_of(folder):
    return sorted(map(str, folder.rglob('*.*')))


def pixels(pictures, paths):
    return [np.asarray(pictures(path)) for path in paths if 'bad' not in path]


@pytest.mark.parametrize('where', ['ram', 'disk', None])
def test_pictures_are_what_they_would_be_without_a_cache(folder, where):
    paths = paths_of(folder)
    pictures = Pictures(shrink, SIZE, 24)
    plain = pixels(pictures, paths)
    bad = pictures.keep(paths, where)
    assert list(bad) == [str(folder / 'a' / 'bad.jpg')] and 'not a readable image' in bad[paths[3]]
    np.testing.assert_array_equal(pixels(pictures, paths), plain)
    if where == 'disk':  # a worker that is started afresh opens the file again
        again = pickle.loads(pickle.dumps(pictures))
        assert isinstance(again.array, np.memmap) and len(pickle.dumps(pictures)) < 2000
        np.testing.assert_array_equal(pixels(again, paths), plain)


def read_again(folder, monkeypatch):
    """(names of the files that a later run decodes, its pictures, its bad files)."""
    opened = []
    with monkeypatch.context() as patch:
        patch.setattr(cache, 'open_image', lambda path, at_least: opened.append(path) or original(path, at_least))
        pictures = Pictures(shrink, SIZE, 24)
        bad = pictures.keep(paths_of(folder), 'disk')
        found = pixels(pictures, paths_of(folder))
    return sorted(os.path.basename(path) for path in opened), found, bad


original = cache.open_image


def test_on_disk_only_what_changed_is_read_again(folder, monkeypatch):
    assert len(read_again(folder, monkeypatch)[0]) == 8
    opened, found, bad = read_again(folder, monkeypatch)
    assert opened == ['bad.jpg'] and len(found) == 6 and len(bad) == 1
    Image.new('RGB', (20, 24), (1, 2, 3)).save(folder / 'a' / '001.png')
    draw_folder(folder / 'c', {'new': 1}, seed=4)
    (folder / 'b' / '000.png').unlink()
    opened, found, bad = read_again(folder, monkeypatch)
    assert opened == ['000.png', '001.png', 'bad.jpg'] and len(bad) == 1
    plain = Pictures(shrink, SIZE, 24)
    np.testing.assert_array_equal(found, pixels(plain, paths_of(folder)))


def test_without_a_cache_only_what_changed_is_checked_again(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(cache, 'open_image', lambda path, at_least: opened.append(path) or original(path, at_least))

    def check():
        opened.clear()
        return Pictures(shrink, SIZE, 24).keep(paths_of(folder), None), len(opened)

    (first, many), (second, none) = check(), check()
    assert many == 7 and none == 1 and first == second and len(first) == 1  # the bad one is tried again
    (folder / 'a' / '001.png').write_bytes(b'cut')
    assert check()[1] == 2 and len(check()[0]) == 2
    [file] = cache.FOLDER.glob('*.checked')
    for content in ('', '[]', '{"x": 1}', file.read_text()[:50]):
        file.write_text(content)
        assert len(check()[0]) == 2 and check()[1] == 2
    (folder / 'a' / 'bad.jpg').unlink()
    Image.new('RGB', (9, 9)).save(folder / 'a' / 'bad.jpg')
    assert len(check()[0]) == 1


def test_a_damaged_cache_is_made_anew(folder, monkeypatch):
    read_again(folder, monkeypatch)
    [file] = cache.FOLDER.glob('*.pictures')
    whole = file.read_bytes()
    for content in (b'', b'hello', whole[:-1], whole[100:], whole + b'x'):
        file.write_bytes(content)
        opened, found, _ = read_again(folder, monkeypatch)
        assert len(opened) == 8 and len(found) == 6 and file.read_bytes() == whole


def test_another_size_or_kind_is_another_cache(folder):
    for size, kind in (((8, 12), ''), ((12, 8), ''), ((8, 12), 'bicubic')):
        Pictures(lambda image, size=size: image.resize(size[::-1]), size, 24).keep(paths_of(folder), 'disk', kind)
    assert len(list(cache.FOLDER.glob('*.pictures'))) == 3


def test_room_is_checked_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(cache, 'free_memory', lambda: 1000 * 96 * 3)
    monkeypatch.setattr(cache.multiprocessing, 'get_start_method', lambda: 'fork')
    assert choose_cache('auto', 250, SIZE, 2) == 'ram' and choose_cache('auto', 251, SIZE, 2) is None
    assert choose_cache('ram', 800, SIZE, 2) == 'ram' and choose_cache(None, 10 ** 9, SIZE, 2) is None
    with pytest.raises(UserError, match="CACHE = 'ram' needs .* choose 'disk' or a smaller"):
        choose_cache('ram', 1000, SIZE, 2)
    monkeypatch.setattr(cache.multiprocessing, 'get_start_method', lambda: 'spawn')
    assert choose_cache('auto', 10, SIZE, 2) is None and choose_cache('auto', 10, SIZE, 0) == 'ram'
    with pytest.raises(UserError, match='would need a copy'):
        choose_cache('ram', 10, SIZE, 2)


def test_a_disk_that_is_too_full_is_said_and_a_cache_that_is_there_is_used(folder, monkeypatch):
    pictures = Pictures(shrink, SIZE, 24)
    pictures.keep(paths_of(folder), 'disk')
    monkeypatch.setattr(cache.shutil, 'disk_usage', lambda path: SimpleNamespace(free=100))
    assert Pictures(shrink, SIZE, 24).keep(paths_of(folder), 'disk')
    with pytest.raises(UserError, match="CACHE = 'disk' needs .* choose None or a smaller"):
        Pictures(shrink, SIZE, 24).keep(paths_of(folder), 'disk', 'another kind')


def test_a_link_to_nowhere_is_a_bad_picture(folder):
    (folder / 'b' / 'gone.png').symlink_to('nowhere.png')
    for where in ('ram', 'disk', None):
        bad = Pictures(shrink, SIZE, 24).keep(paths_of(folder), where)
        assert sorted(map(os.path.basename, bad)) == ['bad.jpg', 'gone.png']


def test_what_a_crop_leaves_was_decoded_large_enough():
    def side(crop, training=False):
        return least_side(Transform([32, 48], [0.5] * 3, [0.2] * 3, crop=crop), training)

    assert side(0.25) == 2 * 48 * 4 and side(0.25, training=True) == side(None) == side(1.15) == 2 * 48


def test_training_is_the_same_with_and_without(tmp_path):
    """Every number of the log, also with a crop, and a picture that cannot be read."""
    folder = draw_folder(tmp_path / 'pictures', {'a': 12, 'b': 12}, suffix='.jpg')
    (folder / 'a' / 'bad.jpg').write_bytes((folder / 'a' / '000.jpg').read_bytes()[:500])
    assert run_script('makedata.py', '--source-dir', folder, cwd=tmp_path).returncode == 0
    logs = []
    for where in ('none', 'ram', 'disk'):
        done = run_script(
            'train.py', '--cache', where, '--img-size', 32, '--crop', 0.9, '--batch-size', 8, '--epochs', 2,
            '--warmup-epochs', 0, '--pretrained', 'false', '--num-workers', 1, '--normalisation', 'weights',
            '--mean', '0.5,0.5,0.5', '--std', '0.2,0.2,0.2', '--model-kwargs',
            "{'layers': (1, 1, 1, 1), 'embed_dims': (24, 48), 'num_heads': (2, 4), 'stem_hidden_dim': 16}",
            cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        assert ('left out' in done.stdout) == any('bad' in path.name for path in (tmp_path / 'data').rglob('*'))
        rows = json.loads((tmp_path / 'checkpoints' / 'volo_d1' / 'result.json').read_text())['last']
        logs.append({key: rows[key] for key in ('train_loss', 'raw_loss', 'ema_loss', 'grad_norm')})
    assert logs[0] == logs[1] == logs[2]
