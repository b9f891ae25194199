"""common/data/cache.py: a cache changes the speed of training and nothing else."""
import errno
import gc
import multiprocessing
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import CLOCKS, draw_folder, result, run
from PIL import Image
from torchvision.transforms import PILToTensor, Resize

from common.data import cache
from common.data.cache import ImageCache, choose_cache
from common.data.datasets import ImageFolder
from common.data.folders import Files
from common.data.loaders import start_loader
from common.data.transforms import Transform, least_side
from common.runtime import machine as threads
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


def pixels(images, paths):
    return [np.asarray(images(path)) for path in paths if 'bad' not in path]


@pytest.mark.parametrize('where', ['ram', 'disk', None])
def test_pictures_are_what_they_would_be_without_a_cache(folder, where):
    paths = paths_of(folder)
    images = ImageCache(shrink, SIZE, 24)
    plain = pixels(images, paths)
    bad = images.load(paths, where)
    assert list(bad) == [str(folder / 'a' / 'bad.jpg')] and 'not a readable image' in bad[paths[3]]
    np.testing.assert_array_equal(pixels(images, paths), plain)
    if where == 'disk' or where == 'ram' and sys.platform == 'linux':  # what a spawned worker process does
        again = pickle.loads(pickle.dumps(images))
        assert again.array.shape == images.array.shape and len(pickle.dumps(images)) < 2000
        np.testing.assert_array_equal(pixels(again, paths), plain)


@pytest.mark.parametrize('method, platform', [
    (method, sys.platform) for method in ('spawn', 'forkserver') if method in multiprocessing.get_all_start_methods()]
    + [('spawn', 'darwin')])
def test_worker_processes_that_are_not_forked_read_the_one_copy_in_memory(folder, monkeypatch, method, platform):
    (folder / 'a' / 'bad.jpg').unlink()
    dataset = ImageFolder(folder, PILToTensor())
    dataset.loader = ImageCache(Resize((64, 96)), (64, 96), 24)
    plain = torch.stack([image for image, _ in dataset])
    monkeypatch.setattr(sys, 'platform', platform)
    dataset.loader.load([path for path, _ in dataset.samples], 'ram')
    for path, _ in dataset.samples:
        os.unlink(path)
    sent, dump = [], multiprocessing.reduction.dump
    monkeypatch.setattr(multiprocessing.reduction, 'dump', lambda content, file, *more: (
        dump(content, file, *more), sent.append(file.tell())))
    [(images, _)] = start_loader(dataset, 1, batch_size=6, multiprocessing_context=method)
    assert torch.equal(images, plain)
    assert sent and max(sent) < images.numel() / 5


def in_memory():
    """How many files in memory are (open, mapped) in this process."""
    opened = [os.readlink(f'/proc/self/fd/{name}') for name in os.listdir('/proc/self/fd')
              if os.path.islink(f'/proc/self/fd/{name}')]
    return sum('memfd:images' in name for name in opened), Path('/proc/self/maps').read_text().count('memfd:images')


@pytest.mark.skipif(sys.platform != 'linux', reason='/proc lists open files')
def test_memory_is_freed_with_the_cache(folder):
    gc.collect()  # what other tests have left
    images = ImageCache(shrink, SIZE, 24)
    for _ in range(2):
        images.load(paths_of(folder), 'ram')
        assert in_memory() == (2, 1)  # the mapping has a descriptor of its own
    del images
    assert in_memory() == (0, 0)


def test_memory_that_is_not_there_is_said(folder, monkeypatch):
    images = ImageCache(shrink, SIZE, 24)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="CACHE = 'ram': .*too large.*: choose 'disk'"):
        patch.setattr(cache, 'shared_array', mock.Mock(side_effect=OSError(errno.EFBIG, 'File too large')))
        images.load(paths_of(folder), 'ram')
    monkeypatch.setattr(sys, 'platform', 'darwin')  # where the memory is a file without a name
    monkeypatch.setattr(cache.shutil, 'disk_usage', lambda path: SimpleNamespace(free=100))
    if os.name == 'posix':
        with pytest.raises(UserError, match="CACHE = 'ram' needs .* choose 'disk' or a smaller"):
            images.load(paths_of(folder), 'ram')


@pytest.mark.skipif(sys.platform != 'linux', reason='/proc lists what is mapped')
def test_no_file_is_mapped_while_it_is_deleted(folder, monkeypatch):
    """Windows refuses that."""
    def unlink(path, missing_ok=False, real=Path.unlink):
        if str(path.absolute()) in Path('/proc/self/maps').read_text():
            raise PermissionError(errno.EACCES, 'mapped')
        real(path, missing_ok)

    monkeypatch.setattr(Path, 'unlink', unlink)
    images = ImageCache(shrink, SIZE, 24)
    for grey in (10, 200):
        for path in folder.rglob('*.png'):
            Image.new('RGB', (20, 24), (grey,) * 3).save(path)
        images.load(paths_of(folder), 'disk')
        assert all((image == grey).all() for image in pixels(images, paths_of(folder)))
    [file] = cache.CACHE_FOLDER.glob('*.pictures')
    assert file.stat().st_size == 7 * 8 * 12 * 3


def read_again(folder, monkeypatch):
    """(names of the files that a later run decodes, its images, its bad files)."""
    opened = []
    with monkeypatch.context() as patch:
        patch.setattr(Files, 'open', noted(opened))
        images = ImageCache(shrink, SIZE, 24)
        bad = images.load(paths_of(folder), 'disk')
        found = pixels(images, paths_of(folder))
    return sorted(os.path.basename(path) for path in opened), found, bad


original = Files.open


def noted(opened):
    """Files.open that also adds each path to a list."""
    return staticmethod(lambda path, at_least: opened.append(path) or original(path, at_least))


def test_on_disk_only_what_changed_is_read_again(folder, monkeypatch):
    assert len(read_again(folder, monkeypatch)[0]) == 8
    opened, found, bad = read_again(folder, monkeypatch)
    assert opened == ['bad.jpg'] and len(found) == 6 and len(bad) == 1
    Image.new('RGB', (20, 24), (1, 2, 3)).save(folder / 'a' / '001.png')
    draw_folder(folder / 'c', {'new': 1}, seed=4)
    (folder / 'b' / '000.png').unlink()
    opened, found, bad = read_again(folder, monkeypatch)
    assert opened == ['000.png', '001.png', 'bad.jpg'] and len(bad) == 1
    plain = ImageCache(shrink, SIZE, 24)
    np.testing.assert_array_equal(found, pixels(plain, paths_of(folder)))


@pytest.mark.parametrize('where', ['disk', None])
def test_what_a_killed_run_has_read_is_not_read_again(folder, monkeypatch, where):
    (folder / 'a' / 'bad.jpg').unlink()
    opened, paths = [], paths_of(folder)

    def open_image(path, at_least):
        opened.append(path)
        if len(opened) == 6:
            raise KeyboardInterrupt
        return original(path, at_least)

    monkeypatch.setattr(cache, 'NOTED', 2)
    monkeypatch.setattr(threads, 'AT_A_TIME', 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Files, 'open', staticmethod(open_image))
        ImageCache(shrink, SIZE, 24).load(paths, where)
    opened.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Files, 'open', noted(opened))
        images = ImageCache(shrink, SIZE, 24)
        images.load(paths, where)
    assert opened == paths[4:]
    np.testing.assert_array_equal(pixels(images, paths), pixels(ImageCache(shrink, SIZE, 24), paths))


def test_new_pictures_are_added_and_old_ones_taken_out_when_they_are_most(folder):
    def load():
        images = ImageCache(shrink, SIZE, 24)
        images.load(paths_of(folder), 'disk')
        np.testing.assert_array_equal(pixels(images, paths_of(folder)),
                                      pixels(ImageCache(shrink, SIZE, 24), paths_of(folder)))
        [file] = cache.CACHE_FOLDER.glob('*.pictures')
        return file.stat().st_size / (8 * 12 * 3), file.read_bytes()

    rows, first = load()
    draw_folder(folder / 'c', {'new': 2}, seed=4)
    more, second = load()
    assert (rows, more) == (7, 9) and second.startswith(first)
    kept = (folder / 'b' / '000.png').read_bytes()
    for path in [*folder.rglob('a/*'), *folder.rglob('b/*')]:
        path.unlink()
    draw_folder(folder / 'd', {'new': 1}, seed=5)
    assert load()[0] == 3
    (folder / 'b' / '000.png').write_bytes(kept)
    assert load()[0] == 4


def test_without_a_cache_only_what_changed_is_checked_again(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(Files, 'open', noted(opened))

    def check():
        opened.clear()
        return ImageCache(shrink, SIZE, 24).load(paths_of(folder), None), len(opened)

    (first, many), (second, none) = check(), check()
    assert many == 7 and none == 1 and first == second and len(first) == 1  # the bad one is tried again
    (folder / 'a' / '001.png').write_bytes(b'cut')
    assert check()[1] == 2 and len(check()[0]) == 2
    [file] = cache.CACHE_FOLDER.glob('*.checked')
    for content in ('', '[]', '{"x": 1}', file.read_text()[:50]):
        file.write_text(content)
        assert len(check()[0]) == 2 and check()[1] == 2
    (folder / 'a' / 'bad.jpg').unlink()
    Image.new('RGB', (9, 9)).save(folder / 'a' / 'bad.jpg')
    assert len(check()[0]) == 1


def test_a_damaged_cache_is_made_anew(folder, monkeypatch):
    read_again(folder, monkeypatch)
    [file] = cache.CACHE_FOLDER.glob('*.pictures')
    whole = file.read_bytes()
    for content in (b'', b'hello', whole[:-1], whole[100:], whole + b'x'):
        file.write_bytes(content)
        opened, found, _ = read_again(folder, monkeypatch)
        assert len(opened) == 8 and len(found) == 6 and file.read_bytes() == whole
    index = file.with_suffix('.index')
    index.write_bytes(index.read_bytes()[:-20])
    opened, found, _ = read_again(folder, monkeypatch)
    assert opened == ['002.png', 'bad.jpg'] and len(found) == 6


def test_another_size_or_kind_is_another_cache(folder):
    for size, kind in (((8, 12), ''), ((12, 8), ''), ((8, 12), 'bicubic')):
        ImageCache(lambda image, size=size: image.resize(size[::-1]), size, 24).load(paths_of(folder), 'disk', kind)
    assert len(list(cache.CACHE_FOLDER.glob('*.pictures'))) == 3


@pytest.mark.parametrize('method', ['fork', 'spawn', 'forkserver'])
def test_room_is_checked_before_it_is_taken(monkeypatch, method, capsys):
    monkeypatch.setattr(multiprocessing, 'get_start_method', lambda *arguments, **named: method)
    monkeypatch.setattr(cache, 'free_memory', lambda: 1000 * 96 * 3)
    assert choose_cache('auto', 250, SIZE) == 'ram' and not capsys.readouterr().out
    assert choose_cache('auto', 251, SIZE) is None and 'too little of it is free' in capsys.readouterr().out
    assert choose_cache('ram', 800, SIZE) == 'ram' and choose_cache(None, 10 ** 9, SIZE) is None
    with pytest.raises(UserError, match="CACHE = 'ram' needs .* choose 'disk' or a smaller"):
        choose_cache('ram', 1000, SIZE)
    monkeypatch.setattr(cache, 'free_memory', lambda: None)
    assert choose_cache('ram', 1000, SIZE) == 'ram'
    assert choose_cache('auto', 1, SIZE) is None and 'the system does not say' in capsys.readouterr().out


def test_a_disk_that_is_too_full_is_said_and_a_cache_that_is_there_is_used(folder, monkeypatch):
    images = ImageCache(shrink, SIZE, 24)
    images.load(paths_of(folder), 'disk')
    monkeypatch.setattr(cache.shutil, 'disk_usage', lambda path: SimpleNamespace(free=100))
    assert ImageCache(shrink, SIZE, 24).load(paths_of(folder), 'disk')
    with pytest.raises(UserError, match="CACHE = 'disk' needs .* choose None or a smaller"):
        ImageCache(shrink, SIZE, 24).load(paths_of(folder), 'disk', 'another kind')


def test_a_link_to_nowhere_is_a_bad_picture(folder):
    (folder / 'b' / 'gone.png').symlink_to('nowhere.png')
    for where in ('ram', 'disk', None):
        bad = ImageCache(shrink, SIZE, 24).load(paths_of(folder), where)
        assert sorted(map(os.path.basename, bad)) == ['bad.jpg', 'gone.png']


def test_what_a_crop_leaves_was_decoded_large_enough():
    def side(crop):
        return least_side(Transform([32, 48], [0.5] * 3, [0.2] * 3, crop=crop))

    assert side(0.25) == 2 * 48 * 4 and side(None) == side(1.15) == 2 * 48


def test_training_is_the_same_with_and_without(quick, tmp_path, monkeypatch):
    """Every number of the log, also with a crop, and a picture that cannot be read."""
    monkeypatch.chdir(tmp_path)
    for side in ('train', 'val'):
        draw_folder(tmp_path / 'data' / side, {'a': 12, 'b': 8}, suffix='.jpg', seed=len(side))
    (tmp_path / 'data' / 'train' / 'a' / 'bad.jpg').write_bytes(Path('data/train/a/000.jpg').read_bytes()[:500])
    logs = []
    for where in ('none', 'ram', 'disk'):
        run(cache=where, crop=0.9, num_workers=1, normalisation='((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))')
        assert 'bad.jpg' in Path('out/bad_images.txt').read_text()
        logs.append({key: value for key, value in result()['last'].items() if key not in CLOCKS})
    assert logs[0] == logs[1] == logs[2]


@pytest.mark.parametrize('where, suffix', [(None, '.checked'), ('disk', '.pictures'), ('disk', '.index')])
def test_a_link_in_place_of_a_cache_is_not_followed(folder, where, suffix):
    Path('victim').write_text('precious')
    ImageCache(shrink, SIZE, 24).load(paths_of(folder), where)
    [file] = Path('.cache').glob(f'*{suffix}')
    file.unlink()
    try:
        file.symlink_to(Path('victim').absolute())
    except OSError:
        pytest.skip('Windows lets only some users make links')
    images = ImageCache(shrink, SIZE, 24)
    assert len(images.load(paths_of(folder), where)) == 1
    assert Path('victim').read_text() == 'precious' and file.is_file() and not file.is_symlink()
