"""Worker processes are not started where the system has too little for them, and the user is told what is lacking."""
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import ROOT, draw_folder

from common.data.loaders import Handover, choose_handover
from common.runtime import machine

MB = 2 ** 20

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='/dev/shm is Linux')


def share(monkeypatch, size):
    monkeypatch.setattr(machine.os, 'statvfs', lambda path: SimpleNamespace(f_blocks=1, f_frsize=1, f_bavail=size))


def test_eight_workers_in_docker_with_its_64_mb(monkeypatch, capsys):
    share(monkeypatch, 64 * MB)
    assert choose_handover([8, 4, 4], 10 * MB) == Handover([8, 4, 4], through_pipes=True)
    said = capsys.readouterr().out
    assert '--shm-size' in said and '--ipc=host' in said and 'NUM_WORKERS' in said and said.count('\n') == 1
    assert choose_handover([8, 4, 4], MB) == Handover([8, 4, 4])
    assert choose_handover([0, 0, 0], 1000 * MB) == Handover([0, 0, 0])
    assert not capsys.readouterr().out


def test_no_room_for_semaphores(monkeypatch, tmp_path, capsys):
    share(monkeypatch, 4096)
    assert choose_handover([2, 1], 1) == Handover([0, 0])
    assert '--ipc=host' in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(machine, 'SHARED_MEMORY', tmp_path / 'missing')
    assert machine.shared_memory_room() == 0


def test_shared_memory_without_a_limit(monkeypatch):
    monkeypatch.setattr(machine.os, 'statvfs', lambda path: SimpleNamespace(f_blocks=0, f_frsize=1, f_bavail=0))
    assert machine.shared_memory_room() is None


def test_few_open_files(monkeypatch, capsys):
    limits = []
    fake = SimpleNamespace(RLIMIT_NOFILE=7, RLIM_INFINITY=-1, getrlimit=lambda which: (32, 36),
                           setrlimit=lambda which, value: limits.append(value))
    monkeypatch.setattr(machine, 'resource', fake)
    monkeypatch.setattr(machine, 'shared_memory_room', lambda: None)
    monkeypatch.setattr(machine.os, 'listdir', lambda path: ['0', '1', '2'])
    assert choose_handover([2], 1) == Handover([0])
    assert 'ulimit -n' in capsys.readouterr().out and not limits
    assert machine.may_open(33) and limits == [(36, 36)] and machine.may_open(29) and not machine.may_open(34)


@pytest.mark.root
@pytest.mark.parametrize('options', ['ro', 'size=4k'])
def test_scripts_where_nothing_can_be_shared(tmp_path, options):
    draw_folder(tmp_path / 'data1', {'a': 4, 'b': 4})
    loader = ('from common.data.sources import *; from common.data.transforms import Transform; import glob\n'
              'if __name__ == "__main__":\n'
              '    batches = [sorted(glob.glob("data1/*/*.png"))]\n'
              '    read = read_batches(batches, [Transform([32, 32], [0.5] * 3, [0.3] * 3)], Files, 2, 8)\n'
              '    print(len(next(read).tensors[0]), "tensors")')
    (tmp_path / 'loader.py').write_text(loader)
    python = shlex.quote(sys.executable)
    command = (f'mount -t tmpfs -o {options} tmpfs /dev/shm || exit 77\n'
               f'{python} {shlex.quote(str(ROOT))}/mean_std.py --num-workers 2 && {python} loader.py')
    done = subprocess.run(['unshare', '-m', 'bash', '-c', command], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    if done.returncode == 77 or 'unshare' in done.stderr:
        pytest.skip('only root may mount a file system, and in few containers')
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    assert '8 images, 2 classes' in done.stdout and '8 tensors' in done.stdout and done.stdout.count('--ipc=host') == 2
