"""Several processes under torchrun learn, validate and predict what one does; they stop, fail and go on together."""
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import CLOCKS, ROOT, arguments_of, draw_folder, launch, read_rows, run, run_script

import train

CHANGES = {'epochs': 7, 'batch_size': 14, 'lr': 1e-4, 'use_amp': 'false', 'mixup_prob': 0.5, 'drop_path': 0.2}


def draw_data(folder):
    draw_folder(folder / 'data' / 'train', {'a': 30, 'b': 30, 'c': 25}, size=(40, 40))
    draw_folder(folder / 'data' / 'val', {'a': 12, 'b': 9, 'c': 9}, size=(40, 40), seed=1)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train.devices, 'choose_device', lambda use_gpu: torch.device('cpu'))  # as in `launch`
    draw_data(tmp_path)
    return tmp_path / 'data'


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """The output folder of one process on its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp('alone'))
        patch.setattr(train.devices, 'choose_device', lambda use_gpu: torch.device('cpu'))
        draw_data(Path())
        run(**CHANGES)
        return Path('out').absolute()


def train_with(processes, *options, **changes):
    """(exit code, stdout, stderr) of a run in so many processes."""
    process = launch(processes, 'train.py', *arguments_of(**{**CHANGES, **changes}), options=options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def last(folder='out'):
    return torch.load(Path(folder, 'last.pth'), weights_only=True)


def assert_learnt_the_same(one, other):
    """But for rounding, which 49 updates amplify as much between one thread and two: to 3e-5."""
    for key in ('state_dict', 'state_dict_ema'):
        for name, tensor in one[key].items():
            torch.testing.assert_close(other[key][name], tensor, rtol=2e-4, atol=2e-4, msg=name)
    for a, b in zip(one['history'], other['history'], strict=True):
        for name in a.keys() - CLOCKS:
            assert b[name] == pytest.approx(a[name], rel=1e-2 if 'temperature' in name else 1e-4), name


def test_they_learn_what_one_does(data, alone):
    """The same pictures with the same random numbers; 14 pictures for 2 processes are 6 and 8."""
    code, out, err = train_with(2)
    assert code == 0, err
    assert_learnt_the_same(last(alone), last())
    assert out.count('epoch 7/7') == 1 and out.count('volo_d1: ') == 1  # one of them speaks


@pytest.mark.slow
def test_five_learn_what_one_does(data):
    """14 pictures for 5 processes are 2, 2, 4, 2 and 4."""
    run(**CHANGES, accumulate_steps=2)
    code, _, err = train_with(5, accumulate_steps=2, output_dir='shared')
    assert code == 0, err
    assert_learnt_the_same(last(), last('shared'))


def test_they_predict_what_one_does(data, alone):
    (data / 'val' / 'a' / 'broken.png').write_bytes(b'no picture')
    options = ('--checkpoint', alone / 'best.pth', '--batch-size', 3, '--num-workers', 1)
    assert run_script('test.py', *options, '--output-dir', 'one', env={'CUDA_VISIBLE_DEVICES': ''}).returncode == 3
    process = launch(2, 'test.py', *options, '--output-dir', 'two')
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and '30 images classified, 0 not recognised, 1 unreadable' in out, err
    for name in ('predictions.csv', 'report.json'):
        assert Path('one', name).read_text() == Path('two', name).read_text()
    assert len(read_rows('two')) == 31


def test_a_mistake_is_told_once(data):
    code, _, err = train_with(2, batch_size=2)
    message = 'train.py: BATCH_SIZE = 2: 1 pairs of images for 2 processes, raise it or start fewer'
    assert code != 0 and err.count(message) == 1 and 'train.py", line' not in err


def test_they_end_whatever_threads_are_left(tmp_path, monkeypatch):
    """Those of torch.distributed outlive the process group, as DistributedDataParallel holds it."""
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    script = tmp_path / 'threads.py'
    script.write_text('import sys, threading, time\nfrom common import settings\nCODE = 0\ndef main(cfg):\n'
                      '    threading.Thread(target=time.sleep, args=[1000]).start()\n    print("over")\n'
                      '    sys.exit(cfg.CODE)\nsettings.run(main)\n')
    for code in (0, 3):
        process = launch(1, script, '--code', code)
        out, err = process.communicate(timeout=60)
        assert 'over' in out and (process.returncode == 0) == (code == 0), err
    assert 'exitcode  : 3' in err


def started(processes, *options, **changes):
    """A run in so many processes, in its third epoch."""
    process = launch(processes, 'train.py', *arguments_of(**{**CHANGES, **changes}), options=options)
    for line in process.stdout:
        if line.startswith('epoch 2/'):
            return process
    raise AssertionError(process.stderr.read())


def test_a_signal_stops_all_and_one_goes_on(data, alone, capsys):
    process = started(2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert err.count('SIGTERM: saving, then leaving\n') == 1 and 'train.py", line' not in err
    history = last()['history']
    assert 2 <= len(history) < 7
    run(**CHANGES, resume='true')
    assert f'resume: out/last.pth, after epoch {len(history)}' in capsys.readouterr().out
    assert_learnt_the_same(last(alone), last())


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='finds the processes by /proc')
def test_a_killed_process_is_started_again_and_all_go_on(data, alone):
    process = started(2, '--max-restarts=1', save_every_minutes=0)
    workers = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.count('train.py: another process of this run ended or cannot be reached (') == 1
    assert 'train.py", line' not in err
    assert 'resume: out/last.pth, after epoch' in out
    assert_learnt_the_same(last(alone), last())


@pytest.mark.slow
def test_an_error_in_one_of_them_ends_all(data):
    """In seconds, with one line, however many of them have noticed."""
    process = started(2, cache='none', epochs=1000)
    for path in (data / 'train' / 'a').iterdir():
        path.unlink()
    _, err = process.communicate(timeout=60)
    own = [line for line in err.splitlines() if line.startswith('train.py: ')]
    assert len(own) == 1 and 'not a readable image' in own[0], err
    assert 'train.py", line' not in err


@pytest.fixture
def machines():
    """{name: the command that runs something there} of two machines: network namespaces that a cable joins."""
    if shutil.which('ip') is None:
        pytest.skip('there is no ip command')
    names = [f'volo-{os.getpid()}-{number}' for number in range(2)]
    commands = [f'ip link add cable0 netns {names[0]} type veth peer name cable1 netns {names[1]}'] + [
        f'ip -n {name} {what}' for number, name in enumerate(names)
        for what in (f'addr add 10.77.0.{number + 1}/24 dev cable{number}', f'link set cable{number} up',
                     'link set lo up')]
    try:
        for command in [f'ip netns add {name}' for name in names] + commands:
            if subprocess.run(command.split(), capture_output=True).returncode:
                pytest.skip('network namespaces are not permitted here')
        yield {name: ['ip', 'netns', 'exec', name, 'env', f'GLOO_SOCKET_IFNAME=cable{number}']
               for number, name in enumerate(names)}
    finally:
        for name in names:
            subprocess.run(['ip', 'netns', 'delete', name], capture_output=True)


@pytest.mark.root
@pytest.mark.slow
def test_two_machines_train_and_one_is_lost(data, alone, machines):
    """All of it is killed in the middle of an epoch: the other one goes on alone, and learns what it would have."""
    arguments = arguments_of(**CHANGES, save_every_minutes=0)
    kept, lost = [launch(
        1, 'train.py', *arguments, machine=machine,
        options=['--nnodes=1:2', '--max-restarts=3', '--rdzv-backend=c10d', '--rdzv-endpoint=10.77.0.1:29400',
                 '--rdzv-id=1', f'--rdzv-conf=last_call_timeout=5,is_host={number == 0}',
                 f'--local-addr=10.77.0.{number + 1}']) for number, machine in enumerate(machines.values())]
    for line in kept.stdout:
        if line.startswith('epoch 2/'):
            break
    pids = subprocess.run(['ip', 'netns', 'pids', list(machines)[1]], capture_output=True, text=True).stdout.split()
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    lost.communicate()
    out, err = kept.communicate(timeout=200)
    assert kept.returncode == 0, err
    assert 'resume: out/last.pth, after epoch' in out
    assert_learnt_the_same(last(alone), last())
