"""Kills training, one of two processes that train together, and makedata.py (SIGKILL) at random moments, again and
again, and looks at what is left.

    python tests/robustness/chaos.py            140 kills, about fifteen minutes; `make chaos`

Each kill is followed by a new start. After each one a state to go on from must be there, whole; at the end the weights
and the split must be those of a run that nobody killed. Needs os.fork and /proc (Linux).
"""
import contextlib
import hashlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from helpers import TINY, arguments_of, draw_folder, launch, rows_of

import makedata
import train
from common import settings
from common.training import checkpoint

KILLS = 60        # of training, as many of makedata.py, and a third of it of processes that train together
EPOCHS = 250      # of training
SEED = 1          # of the moments


def main(cfg):
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        print(kill_makedata(cfg.KILLS, random.Random(cfg.SEED)))
        print(kill_training(cfg.KILLS, random.Random(cfg.SEED), cfg.EPOCHS))
        if cfg.KILLS >= 3:
            print(kill_processes(cfg.KILLS // 3, random.Random(cfg.SEED)))


def kill_makedata(kills, rng):
    """In the working folder. Returns what was done, in words."""
    draw_folder(Path('data1'), {'a': 120, 'b': 80})
    seconds = finish(makedata, '--target-dir', 'calm')
    for _ in range(kills):
        die(makedata, rng.uniform(0, 1.2 * seconds))
        assert_whole_split(Path('data'), Path('.data.old'))
    finish(makedata)
    assert_whole_split(Path('data'))
    files, calm = ({path.relative_to(root): path.read_bytes() for path in Path(root).rglob('*.png')}
                   for root in ('data', 'calm'))
    assert files == calm and not Path('.data.new').exists()
    return f'makedata.py: {kills} kills within {1.2 * seconds:.1f} s of the start, the split is the same'


def assert_whole_split(*places):
    """The first of the places that is there is a split with all its files; before the first split there is none."""
    for place in places:
        if place.exists():
            entries = rows_of(place)
            for entry in entries:
                assert hashlib.sha256((place / entry['file']).read_bytes()).hexdigest() == entry['sha256']
            assert len(entries) == 200
            return


def kill_training(kills, rng, epochs):
    """In the working folder. Returns what was done, in words."""
    for side, count in (('train', 12), ('val', 4)):
        draw_folder(Path('pictures') / side, {'a': count, 'b': count}, seed=count)
    arguments = [
        '--data-dir', 'pictures', '--img-size', '32', '--batch-size', '4', '--epochs', str(epochs), '--pretrained',
        'false', '--num-workers', '1', '--mixup-prob', '0.5', '--accumulate-steps', '2', '--model-kwargs', str(TINY),
        '--save-every-minutes', '0', '--resume', 'auto']
    seconds = finish(train, *arguments, '--output-dir', 'calm_run')
    longest, reached = max(6., 3 * seconds / kills), []  # a start alone takes two seconds
    for _ in range(kills):
        die(train, rng.uniform(0, longest), *arguments, '--output-dir', 'out')
        if Path('out/last.pth').exists() or Path('out/last_before.pth').exists():
            saved = checkpoint.load_last(Path('out'))
            reached.append((len(saved['history']), saved['progress']['updates']))
    assert reached == sorted(reached), 'a later life knew less than an earlier one'
    finish(train, *arguments, '--output-dir', 'out')
    assert_same_weights('calm_run', 'out')
    end = f'killed last after {reached[-1][0]} of {epochs} epochs' if reached else 'never past the start'
    return (f'training: {kills} kills within {longest:.1f} s of the start, {len(set(reached))} different states, '
            f'{end}; the weights are the same')


def kill_processes(kills, rng):
    """In the working folder, of kill_training's pictures. Returns what was done, in words."""
    arguments = arguments_of(data_dir='pictures', batch_size=4, epochs=10 + 5 * kills, mixup_prob=0.5,
                             save_every_minutes=0)
    calm = launch(2, 'train.py', *arguments, '--output-dir', 'calm_pair')
    calm.communicate()
    process = launch(2, 'train.py', *arguments, '--output-dir', 'pair', options=[f'--max-restarts={kills}'])
    reader = threading.Thread(target=process.communicate)
    reader.start()
    longest = killed = 0
    while killed < kills and process.poll() is None:
        workers = workers_of(process)
        time.sleep(rng.uniform(0, 15))
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(workers), signal.SIGKILL)
            killed, begin = killed + 1, time.monotonic()
            while process.poll() is None and set(workers) & set(workers_of(process)):
                assert time.monotonic() - begin < 60, 'torchrun or the other process hangs'
            longest = max(longest, time.monotonic() - begin)
    reader.join()
    assert process.returncode == 0
    assert_same_weights('calm_pair', 'pair')
    return (f'two processes: {killed} kills of one, all started again after {longest:.1f} s at most; the weights are '
            'the same')


def workers_of(process):
    """The process ids of the two that a torchrun has started, as soon as it has; none when it has ended."""
    while process.poll() is None:
        children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
        if len(children) == 2:
            return [int(number) for number in children]
        time.sleep(0.1)
    return [0]


def assert_same_weights(*folders):
    one, other = (torch.load(f'{folder}/last.pth', weights_only=True) for folder in folders)
    for key in ('state_dict', 'state_dict_ema'):
        assert all(torch.equal(value, other[key][name]) for name, value in one[key].items())


def start(script, *arguments):
    """The process id of a script that runs in a child of its own, silently."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            script.main(settings.read(script, list(arguments)))
            status = 0
        finally:
            os._exit(status)
    return pid


def die(script, seconds, *arguments):
    pid = start(script, *arguments)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def finish(script, *arguments):
    """Run a script to its end; returns the seconds it took."""
    begin = time.perf_counter()
    _, status = os.waitpid(start(script, *arguments), 0)
    assert status == 0, f'{script.__name__} failed'
    return time.perf_counter() - begin


if __name__ == '__main__':
    settings.run(main)
