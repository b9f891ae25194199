"""Real limits, not simulated errors: a full disk, a folder that becomes read-only, memory that ends, a killed process.

Those that mount a file system need root: `make test-root` runs them.
"""
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import ROOT, TINY, configure, draw_folder, files_below, rows_of, run, split

import makedata
import mean_std
from common import settings
from common.data import images
from common.runtime.errors import UserError
from common.training import checkpoint
from common.training.monitor import Monitor

CHANGES = {'epochs': 2, 'batch_size': 4, 'accumulate_steps': 2}
HANGS = 600  # seconds after which a process will not end by itself, however busy the machine

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='mount, /proc and address space limits are Linux')


def mount(*arguments):
    if os.geteuid() or subprocess.run(['mount', *map(str, arguments)], capture_output=True).returncode:
        pytest.skip('only root may mount a file system, and in few containers')


@pytest.fixture
def disk(tmp_path):
    """A file system of 8 MB."""
    place = tmp_path / 'disk'
    place.mkdir()
    mount('-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', place)
    yield place
    subprocess.run(['umount', '--lazy', place], check=True)


def fill(folder):
    """Write a file until nothing more goes in."""
    with open(folder / 'filler', 'wb', buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


@pytest.mark.root
def test_training_on_a_disk_that_fills_up(data, disk, monkeypatch):
    real = Monitor.save_best

    def save_best(saver, *arguments):
        fill(disk)
        return real(saver, *arguments)

    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr(Monitor, 'save_best', save_best)
        run(**CHANGES, output_dir=disk / 'out')
    text = str(error.value)
    assert f'{disk}/out/' in text and 'cannot be written' in text and 'free some space' in text and '\n' not in text
    assert not checkpoint.load_last(disk / 'out')['history']
    (disk / 'filler').unlink()
    run(**CHANGES, output_dir=disk / 'out', resume='true')
    assert len(checkpoint.load_last(disk / 'out')['history']) == 2


@pytest.mark.root
def test_training_in_a_folder_that_becomes_read_only(data, monkeypatch):
    real = Monitor.save_best

    def save_best(saver, *arguments):
        mount('--bind', 'out', 'out')
        mount('-o', 'remount,ro,bind', 'out')
        return real(saver, *arguments)

    try:
        with monkeypatch.context() as patch, pytest.raises(UserError, match='cannot be written .*Read-only file'):
            patch.setattr(Monitor, 'save_best', save_best)
            run(**CHANGES)
    finally:
        subprocess.run(['umount', '--lazy', 'out'])
    assert not checkpoint.load_last(Path('out'))['history']
    run(**CHANGES, resume='true')
    assert len(checkpoint.load_last(Path('out'))['history']) == 2


@pytest.mark.root
def test_makedata_on_a_disk_that_is_too_small(disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = draw_folder(tmp_path / 'data1', {'a': 8, 'b': 8}, size=(200, 200))
    assert split('--target-dir', disk / 'data').returncode == 0
    before = files_below(disk / 'data')
    draw_folder(source, {'c': 60}, size=(200, 200), seed=5)
    done = split('--target-dir', disk / 'data')
    assert done.returncode == 2 and 'No space left on device' in done.stderr and 'free some space' in done.stderr
    assert files_below(disk / 'data') == before and sorted(os.listdir(disk)) == ['.data.lock', 'data']


def test_training_with_too_little_memory(data):
    """The limit is set when all is imported; the step of 20 pictures of 320 pixels needs more than that."""
    cfg = {**vars(configure(**{**CHANGES, 'img_size': 320, 'batch_size': 20, 'accumulate_steps': 1})), 'CACHE': None}
    options = [f'--{name.lower().replace("_", "-")}={value}' for name, value in cfg.items() if value is not None]
    code = ('import resource, sys; import train; from common import settings\n'
            'used = next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmSize")) * 1024\n'
            'resource.setrlimit(resource.RLIMIT_AS, (used + 2 ** 29,) * 2)\n'
            'settings.run(train.main)')
    done = subprocess.run([sys.executable, '-c', code, *options], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith(
        'train.py: out of memory: halve BATCH_SIZE and double ACCUMULATE_STEPS'), done.stderr
    assert 'Traceback' not in done.stderr and not checkpoint.load_last(Path('out'))['history']


def test_mean_std_whose_process_is_killed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / 'data1', {'a': 6})

    def open_image(path):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(mean_std, 'open_image', open_image)
    with pytest.raises(UserError, match='a process that reads images died: .* lower NUM_WORKERS'):
        mean_std.main(settings.read(mean_std, ['--num-workers', '2']))
    assert not Path('mean_std.json').exists()


def test_makedata_on_a_source_that_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = draw_folder(tmp_path / 'data1', {'a': 6, 'b': 6})
    split()
    before = files_below(tmp_path / 'data')
    real = makedata.report_duplicates
    changes = [lambda: (source / 'a' / '001.png').write_bytes(b''), lambda: (source / 'a' / '002.png').unlink(),
               lambda: draw_folder(source, {'c': 1}, seed=3)]
    for change in changes:
        with monkeypatch.context() as patch:
            patch.setattr(makedata, 'report_duplicates', lambda entries, change=change: (change(), real(entries)))
            done = split()
        assert done.returncode == 2 and 'data1 changed while it was read' in done.stderr
        assert files_below(tmp_path / 'data') == before
    assert split().returncode == 0
    assert len(rows_of(tmp_path / 'data')) == 11


def test_an_error_of_ours_ends_the_process_though_workers_are_waiting(tmp_path):
    """A traceback, then the end: workers that outlive it would keep the process, and a rented machine, for ever."""
    code = ('import train; from common import settings\n'
            'def mistake(*arguments, **named): raise RuntimeError("a mistake of ours")\n'
            'train.step.UpdateMeter.add = mistake\n'
            'settings.run(train.main)')
    draw_folder(tmp_path / 'data' / 'train', {'a': 8, 'b': 8})
    draw_folder(tmp_path / 'data' / 'val', {'a': 2, 'b': 2}, seed=1)
    done = subprocess.run([sys.executable, '-c', code, '--img-size=32', '--batch-size=4', '--pretrained=false',
                           f'--model-kwargs={TINY}', '--num-workers=1'], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, timeout=HANGS)
    assert done.returncode == 1 and 'a mistake of ours' in done.stderr.splitlines()[-1]


def test_a_program_ends_that_still_has_a_loader(tmp_path):
    draw_folder(tmp_path / 'pictures', {'a': 2})
    code = ('from common.data.datasets import ImageFolder; from common.data.loaders import start_loader\n'
            'loader = start_loader(ImageFolder("pictures"), 1)')
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)},
                   timeout=HANGS, check=True)


def test_results_do_not_depend_on_who_reads_what_is_printed(tmp_path):
    draw_folder(tmp_path / 'data1', {'a': 6, 'b': 6})
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, ROOT / 'mean_std.py'], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE,
                              text=True)
    assert done.returncode == 0 and not done.stderr and (tmp_path / 'mean_std.json').exists()


def test_too_little_memory_for_a_picture_does_not_make_it_a_bad_one(tmp_path, monkeypatch):
    def decode(*arguments):
        raise MemoryError

    monkeypatch.setattr(images, 'decode', decode)
    [path] = draw_folder(tmp_path, {'a': 1}).rglob('*.png')
    with pytest.raises(MemoryError):
        images.open_image(path)
