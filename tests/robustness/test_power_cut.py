"""A power cut at any moment leaves the old state or the new one, whole.

The scripts work on a file system in a file. Copies of that file, made at random moments while a script works and after
it ended, are what a machine would find that lost its power then. The file system is ext4 with the options that show a
missing sync soonest: names go to the disk each second, contents only when somebody asks for it. Root may mount it:
`make test-root`. POWER_CUTS is how many copies of each script's run are looked at.
"""
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import ROOT, arguments_of, draw_folder, entries, read_json, run, split, untrained
from PIL import Image

from common.runtime.files import restore

MOMENTS = int(os.environ.get('POWER_CUTS', 4))
AFTER = 2.5  # seconds after the end of a script in which the power may fail
OPTIONS = 'loop,commit=1,noauto_da_alloc'

pytestmark = [pytest.mark.root, pytest.mark.skipif(sys.platform != 'linux', reason='mount is Linux')]


def needs(extra):
    return pytest.mark.skipif(not (ROOT / 'extras' / extra).is_dir(), reason=f'extras/{extra} is not there')


class Disk:
    """A file system in the file `image`, mounted at `place`."""

    def __init__(self, folder):
        self.folder = folder
        self.image = folder / 'disk.img'
        self.place = folder / 'disk'
        self.after = folder / 'after'
        self.place.mkdir()
        self.after.mkdir()

    def writes(self):
        """(how often the kernel has written to the disk so far, how many reads and writes it is at)."""
        device = os.stat(self.place).st_dev
        found = Path(f'/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat').read_text().split()
        return int(found[4]), int(found[8])

    def copy(self, name):
        """Copy the image as it is at one moment: nothing may be written while it is copied."""
        image = self.folder / f'{name}.img'
        for _ in range(100):
            before = self.writes()
            subprocess.run(['cp', '--sparse=always', self.image, image], check=True)
            if before == self.writes() and not before[1]:
                return image
        raise AssertionError('the disk is never at rest')

    @contextmanager
    def booted(self, image):
        """The folder with what is on a copy of the image."""
        subprocess.run(['mount', '-o', 'loop', image, self.after], check=True)
        try:
            yield self.after
        finally:
            subprocess.run(['umount', self.after], check=True)

    def cut_power(self, pause, *commands):
        """Run Python commands here, and yield the folder of each boot; `pause` is the longest between two copies."""
        subprocess.run(['sync', '--file-system', self.place], check=True)
        draw = random.Random(0)
        during = []
        environment = {**os.environ, 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
        for command in commands:
            with open(self.folder / 'printed', 'w+', encoding='utf-8') as printed, subprocess.Popen(
                    [sys.executable, *map(str, command)], cwd=self.place, env=environment, stdout=printed,
                    stderr=subprocess.STDOUT) as process:
                while process.poll() is None:
                    time.sleep(draw.uniform(0, pause))
                    during.append(self.copy(f'during{len(during)}'))
                printed.seek(0)
                assert process.returncode == 0, printed.read()
        end = time.monotonic()
        after = []
        for moment in sorted(draw.uniform(0, AFTER) for _ in range(MOMENTS - MOMENTS // 2 - 1)) + [AFTER]:
            time.sleep(max(0, end + moment - time.monotonic()))
            after.append(self.copy(f'after{len(after)}'))
        for image in [*draw.sample(during, min(len(during), MOMENTS // 2)), *after]:
            with self.booted(image) as folder:
                yield folder


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """In memory where there is room, so that no test waits for the disks of this machine."""
    if os.geteuid() or not shutil.which('mkfs.ext4'):
        pytest.skip('only root may make a disk, with mkfs.ext4')
    memory = Path('/dev/shm')
    in_memory = memory.is_dir() and shutil.disk_usage(memory).free > 2 ** 30
    with tempfile.TemporaryDirectory(dir=memory if in_memory else tmp_path) as folder:
        found = Disk(Path(folder))
        with open(found.image, 'wb') as file:
            file.truncate(64 * 2 ** 20)
        subprocess.run(['mkfs.ext4', '-q', '-F', '-J', 'size=4', '-E', 'lazy_itable_init=0,lazy_journal_init=0',
                        found.image], check=True)
        if subprocess.run(['mount', '-o', OPTIONS, found.image, found.place], capture_output=True).returncode:
            pytest.skip('few containers may mount a file as a disk')
        try:
            with monkeypatch.context() as patch:
                patch.chdir(found.place)
                yield found
        finally:
            subprocess.run(['umount', '--lazy', found.place], check=True)


def check_whole(path):
    """Fail unless a file is complete; a hidden one need not be."""
    content = path.read_bytes()
    if path.name.startswith('.') or path.name == 'bad_images.txt':
        return
    assert content, f'{path.name} is empty'
    if path.suffix == '.json':
        json.loads(content)
    elif path.suffix in ('.csv', '.jsonl', '.txt'):
        assert content.endswith(b'\n') and b'\0' not in content, f'{path.name} is cut off'
    elif path.suffix == '.png':
        Image.open(path).load()
    elif path.suffix == '.html':
        assert content.rstrip().endswith(b'</html>'), f'{path.name} is cut off'
    elif path.suffix == '.pth':
        torch.load(path, weights_only=True)


def check_split(folder):
    """Return how many images the split has, all of which must be whole."""
    assert restore(folder / 'data'), 'neither split is there'
    rows = entries(folder)
    read_json(folder / 'data' / 'split.json')
    for row in rows:
        assert hashlib.sha256((folder / 'data' / row['file']).read_bytes()).hexdigest() == row['sha256'], row
    return len(rows)


def test_makedata_and_mean_std(disk):
    draw_folder(disk.place / 'data1', {'a': 40, 'b': 30})
    assert split('--near-duplicates', 'false').returncode == 0
    Path('mean_std.json').write_text('"old"')
    draw_folder(disk.place / 'data1', {'c': 30}, seed=1)
    found = []
    for folder in disk.cut_power(0.1, [ROOT / 'mean_std.py', '--num-workers', 0],
                                 [ROOT / 'makedata.py', '--near-duplicates', 'false']):
        found.append((check_split(folder), read_json(folder / 'mean_std.json') != 'old'))
    assert {count for count, _ in found} <= {70, 100} and found[-1] == (100, True), found


def test_train(disk, quick):
    draw_folder(disk.place / 'data' / 'train', {'a': 10, 'b': 10})
    draw_folder(disk.place / 'data' / 'val', {'a': 4, 'b': 4}, seed=1)
    run(epochs=1)
    for folder in disk.cut_power(1, [ROOT / 'train.py', *arguments_of(save_every_minutes=0)]):
        for path in folder.glob('out/*'):
            check_whole(path)
        names = {path.name for path in folder.glob('out/*.pth')}
        assert names & {'last.pth', 'last_before.pth', 'previous_last.pth'}, names
        names = {path.name for path in folder.glob('out/*')}
    assert names >= {'result.json', 'report.html', 'log.csv', 'loss.png', 'class.json', 'previous_best.pth',
                     'best.pth', 'last.pth'}


@needs('inbox')
def test_sorting(disk):
    draw_folder(disk.place / 'photos', {'a': 30, 'b': 30})
    untrained('x.pth', classes=('a', 'b'))
    known = {path.relative_to('photos').as_posix(): path.read_bytes() for path in Path('photos').rglob('*.png')}
    for folder in disk.cut_power(1, [ROOT / 'test.py', '--checkpoint', 'x.pth', '--test-dir', 'photos', '--sort-to',
                                       'sorted', '--num-workers', 0, '--batch-size', 4, '--unsure-below', 0]):
        copies = {}
        for path in folder.glob('sorted/*/*/*.png'):
            copies[path.relative_to(folder / 'sorted').as_posix().partition('/')[2]] = path.read_bytes()
        assert all(known[name] == content for name, content in copies.items()), 'a copy is not whole'
        lines = folder / 'predictions' / 'predictions.jsonl'
        rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
        assert {row['path'] for row in rows} <= copies.keys(), 'a row has no copy'
        for path in folder.glob('predictions/*'):
            if path.suffix not in ('.csv', '.jsonl'):  # they grow
                check_whole(path)
        table = folder / 'predictions' / 'predictions.csv'
        count = len(table.read_bytes().splitlines()) if table.exists() else 0
    assert copies == known and len(rows) == 60 and count == 61


@needs('deploy')
def test_deploy(disk):
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxscript')
    safetensors = pytest.importorskip('safetensors.torch')
    draw_folder(disk.place / 'data' / 'train', {'a': 3, 'b': 3})
    draw_folder(disk.place / 'data' / 'val', {'a': 3, 'b': 3}, seed=1)
    untrained('x.pth')
    names = ('x.safetensors', 'x.onnx', 'x_pictures.onnx', 'x_int8.onnx')
    for name in names:
        Path(name).write_text('old')
    found = []
    for folder in disk.cut_power(1, ['-m', 'extras.deploy', '--checkpoint', 'x.pth', '--data-dir', 'data']):
        found.append(0)
        for name in names:
            content = (folder / name).read_bytes()
            if content == b'old':
                continue
            found[-1] += 1
            if name.endswith('.onnx'):
                assert onnx.load_model_from_string(content).graph.node, name
            else:
                assert safetensors.load(content), name
    assert found[-1] == len(names), found
