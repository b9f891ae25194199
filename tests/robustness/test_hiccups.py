"""A disk that hiccups: no image is lost for it, and where it stays away nothing is changed."""
import errno
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT, draw_folder, files_below, load, prepare, rows_of, sides, split

import mean_std
from common import settings
from common.data import cache, folders, images, listing, loaders
from common.data.cache import ImageCache
from common.data.folders import Files
from common.data.images import BadImage, open_image
from common.data.sources import Reader
from common.data.split import ABSENT_TABLE
from common.data.transforms import Transform
from common.runtime import disks
from common.runtime.disks import DiskError

HANGS = 600  # seconds after which a process will not end by itself, however busy the machine
HICCUPS = [errno.EIO, errno.ESTALE, errno.EMFILE]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(disks.time, 'sleep', lambda seconds: None)
    return draw_folder(tmp_path / 'data1', {'a': 20, 'b': 20})


def interrupt(monkeypatch, module, name, code, every):
    """Let every so many calls of a function fail, from the first one on."""
    count = itertools.count()
    real = getattr(module, name)

    def fails(*arguments, **named):
        if next(count) % every == 0:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, fails)


@pytest.mark.parametrize('code', HICCUPS)
def test_a_hiccup_loses_no_image(folder, monkeypatch, code):
    interrupt(monkeypatch, images, '_read_once', code, every=3)
    assert split().returncode == 0 and len(rows_of(Path('data'))) == 40
    assert len(mean_std.read_stats([*folders.list_images(folder)], 0).images) == 40
    assert not ImageCache(lambda image: image, (20, 24), 1).load([*folders.list_images(folder)], None)


@pytest.mark.parametrize('code', HICCUPS)
@pytest.mark.parametrize('name', ['scandir', 'stat'])
def test_a_hiccup_loses_no_folder(folder, monkeypatch, code, name):
    (folder / 'a' / 'inner').mkdir()
    (folder / 'a' / '003.png').rename(folder / 'a' / 'inner' / '003.png')
    before = [*folders.list_images(folder)], folders.class_folders(folder)
    interrupt(monkeypatch, os, name, code, every=2)
    assert before == ([*folders.list_images(folder)], folders.class_folders(folder)) and len(before[0]) == 40


def test_a_folder_whose_kind_the_disk_does_not_say_at_once_stays_a_folder(folder):
    def is_dir():
        raise OSError(errno.EIO, 'away')

    assert listing.is_folder_entry(SimpleNamespace(is_dir=is_dir, path=str(folder / 'a')))
    assert not listing.is_folder_entry(SimpleNamespace(is_dir=is_dir, path=str(folder / 'a' / '000.png')))


def test_a_disk_that_stays_away_ends_makedata_and_changes_nothing(monkeypatch):
    split()
    before = files_below(Path())
    with monkeypatch.context() as patch:
        interrupt(patch, images, '_read_once', errno.EIO, every=1)
        done = split()
    assert done.returncode == 2 and 'Input/output error' in done.stderr and '\n' not in done.stderr
    assert files_below(Path()) == before


def test_a_disk_that_stays_away_ends_the_other_scripts(folder, monkeypatch):
    interrupt(monkeypatch, images, '_read_once', errno.ESTALE, every=1)
    path = str(folder / 'a' / '000.png')
    with pytest.raises(DiskError, match='a/000.png cannot be read .*the fault of the disk'):
        mean_std.main(settings.read(mean_std, ['--num-workers', '0']))
    assert not Path('mean_std.json').exists()
    with pytest.raises(DiskError):
        ImageCache(lambda image: image, (20, 24), 1).load([path], None)
    with pytest.raises(DiskError):
        Reader([Transform([32, 32], [0.5] * 3, [0.3] * 3)], Files)[path]


@pytest.mark.parametrize('code', [errno.ENOENT, errno.EACCES])
def test_what_is_wrong_with_the_file_makes_it_a_bad_one_at_once(folder, monkeypatch, code):
    monkeypatch.setattr(disks.time, 'sleep', lambda seconds: pytest.fail('tried again'))
    interrupt(monkeypatch, images, '_read_once', code, every=1)
    with pytest.raises(BadImage):
        open_image(folder / 'a' / '000.png')


@pytest.mark.parametrize('code', HICCUPS)
def test_an_error_of_the_disk_while_decoding_is_none_of_the_image(code):
    """As where an image lies in a shard, or a library opens the file by itself."""
    assert isinstance(images.bad_image('a.png', OSError(code, os.strerror(code))), DiskError)
    assert isinstance(images.bad_image('a.png', OSError('image file is truncated')), BadImage)


def test_codes_of_windows(monkeypatch):
    error = OSError(errno.EINVAL, 'the network name is no longer available')
    assert disks.is_of_the_file(error)
    monkeypatch.setattr(disks, 'getattr', lambda *arguments: 64, raising=False)
    error.winerror = 64
    assert not disks.is_of_the_file(error)


def test_half_a_list_of_cached_images_is_not_taken_for_the_whole(folder, monkeypatch):
    paths = [*folders.list_images(folder)]
    ImageCache(lambda image: image, (20, 24), 1).load(paths, 'disk')
    before = files_below(Path('.cache'))

    def lines(*arguments):
        raise OSError(errno.EIO, 'away')

    monkeypatch.setattr(cache.json, 'loads', lines)  # in the middle of the file
    with pytest.raises(DiskError):
        ImageCache(lambda image: image, (20, 24), 1).load([paths[0], paths[-1]], 'disk')
    assert files_below(Path('.cache')) == before


# ---- images that were missing once ---------------------------------------------------------------------------------

def test_images_that_come_back_go_to_the_side_where_they_were(folder):
    split()
    before = sides(Path())
    assert not Path('data', ABSENT_TABLE).exists()
    away = [Path(row['source']) for row in rows_of(Path('data')) if row['file'].endswith(('1.png', '7.png'))]
    hidden = {path: path.read_bytes() for path in away}
    for number, path in enumerate(away):
        path.unlink()
        if number % 3 == 0:
            assert split().returncode == 0
    assert split().returncode == 0 and len(rows_of(Path('data'))) == 40 - len(away) < 40
    for path, content in hidden.items():
        path.write_bytes(content)
    assert split().returncode == 0
    assert sides(Path()) == before and not Path('data', ABSENT_TABLE).exists()


def test_images_that_come_back_are_drawn_anew_with_another_seed(folder):
    split()
    content = (folder / 'a' / '000.png').read_bytes()
    (folder / 'a' / '000.png').unlink()
    split()
    assert len(Path('data', ABSENT_TABLE).read_text().splitlines()) == 2
    split('--seed', '3')
    assert not Path('data', ABSENT_TABLE).exists()
    (folder / 'a' / '000.png').write_bytes(content)
    split('--seed', '3')
    after = sides(Path())
    split('--seed', '5')
    split('--seed', '3')
    assert len(after) == len(sides(Path())) == 40


# ---- a split that changes while it is read -------------------------------------------------------------------------

@pytest.mark.parametrize('seed', [42, 9])
def test_a_new_split_while_images_are_checked(monkeypatch, seed):
    split()
    real = ImageCache._decode
    count = itertools.count()

    def decode(images, path):
        if next(count) == 30:
            assert split('--seed', str(seed)).returncode == 0
            if seed == 42:  # as if makedata.py were between its two renames
                raise BadImage(f'{path}: No such file')
        return real(images, path)

    monkeypatch.setattr(ImageCache, '_decode', decode)
    monkeypatch.setattr(cache, 'map_in_threads', lambda function, *columns, **named: map(function, *columns))
    with pytest.raises(settings.UserError, match='data changed while its images were read'):
        load(prepare(batch_size=4))


def test_bad_images_of_a_split_that_stays_are_left_out_as_ever(monkeypatch):
    split()
    path = next(Path('data/train/a').iterdir())
    path.write_bytes(b'no image')
    Path('out').mkdir()
    data = load(prepare(batch_size=4))
    assert str(path) not in [name for name, _ in data.train.dataset.samples] and len(data.train.dataset) == 27


# ---- processes that outlive the run ----------------------------------------------------------------------------------

@pytest.mark.skipif(os.name != 'posix', reason='signals')
@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGKILL])
def test_worker_processes_end_with_mean_std(signum):
    code = ('import os, time, mean_std\n'
            'def wait(path): os.write(1, b"here\\n"); time.sleep(100_000)\n'
            'mean_std.open_image = wait\n'
            'if __name__ == "__main__": mean_std.read_stats(["a"] * 8, 2)')
    parent = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True,
                              env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert [parent.stdout.readline() for _ in range(2)] == ['here\n'] * 2
    parent.send_signal(signum)
    parent.communicate(timeout=HANGS)  # reads until the last process that could write has ended


# ---- worker processes and what they need ---------------------------------------------------------------------------

def test_batches_through_pipes_are_the_same(folder):
    from torchvision.transforms import PILToTensor

    from common.data.datasets import ImageFolder
    dataset = ImageFolder(folder, PILToTensor())
    shared = [*loaders.start_loader(dataset, 1, batch_size=16)]
    piped = [*loaders.start_loader(dataset, 1, batch_size=16, through_pipes=True)]
    assert len(piped) == 3
    for (ours, labels), (theirs, expected) in zip(piped, shared, strict=True):
        assert ours.equal(theirs) and labels.equal(expected) and theirs.is_shared() and not ours.is_shared()
