"""TRACKER: the rows of the log in another program, whole after a resumed run; nothing where it is None."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, arguments_of, configure, read_json, run

from common.runtime.errors import UserError
from common.training import choices, monitor
from extras import trackers as tracker

pytestmark = pytest.mark.usefixtures('data')


def scalars():
    """{name: {epoch: value}} as TensorBoard reads its files."""
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    found = accumulator.EventAccumulator('out/tensorboard').Reload()
    assert all(len({event.step for event in found.Scalars(name)}) == len(found.Scalars(name))
               for name in found.Tags()['scalars'])
    return {name: {event.step: event.value for event in found.Scalars(name)} for name in found.Tags()['scalars']}


def assert_whole(epochs):
    found, rows = scalars(), torch.load('out/last.pth', weights_only=True)['history']
    assert len(rows) == epochs and {'ema/balanced_accuracy', 'train/acc1', 'grad_norm', 'seconds'} <= found.keys()
    columns = {'train_loss': 'train/loss', 'raw_acc1': 'raw/acc1', 'ema_loss': 'ema/loss', 'lr': 'lr'}
    for column, name in columns.items():
        assert found[name] == {row['epoch']: pytest.approx(row[column]) for row in rows}


def test_tensorboard_reads_every_epoch():
    pytest.importorskip('tensorboard')
    run(tracker='tensorboard', epochs=2)
    assert_whole(2)
    run(tracker='tensorboard', epochs=3, resume='true')
    assert_whole(3)


def test_a_run_that_was_tracked_later_is_whole():
    pytest.importorskip('tensorboard')
    run(epochs=2)
    run(tracker='tensorboard', epochs=3, resume='true')
    assert_whole(3)


def in_a_process(tmp_path, name, **env):
    """A run with that tracker, which keeps its files in tmp_path."""
    env = {**os.environ, 'HOME': str(tmp_path), 'OMP_NUM_THREADS': '1', 'PYTHONUTF8': '1', **env}
    return subprocess.run([sys.executable, ROOT / 'train.py', *arguments_of(tracker=name)], env=env, text=True,
                          capture_output=True, encoding='utf-8')


@pytest.mark.slow
def test_wandb_offline(tmp_path):
    pytest.importorskip('wandb')
    done = in_a_process(tmp_path, 'wandb', WANDB_MODE='offline', WANDB_SILENT='true')
    assert done.returncode == 0 and 'warning' not in done.stdout, done.stdout + done.stderr
    [file] = Path('out/wandb').glob('offline-run-*/run-*.wandb')
    assert b'raw/acc1' in file.read_bytes()


@pytest.mark.slow
def test_trackio_on_this_machine(tmp_path):
    pytest.importorskip('trackio')
    done = in_a_process(tmp_path, 'trackio', TRACKIO_DIR=str(tmp_path / 'trackio'))
    assert done.returncode == 0 and 'warning' not in done.stdout, done.stdout + done.stderr
    assert any(b'raw/acc1' in path.read_bytes() for path in (tmp_path / 'trackio').rglob('*') if path.is_file())


def test_a_tracker_that_fails_ends_nothing(monkeypatch, capsys):
    sent = []

    def log(values, epoch):
        sent.append(epoch)
        raise ConnectionError('no route')
    monkeypatch.setattr(tracker, 'open_service', lambda *arguments: (log, lambda: sent.append('closed')))
    monkeypatch.setattr('extras.trackers.validate_tracker', lambda name: None)
    run(tracker='wandb', epochs=2)
    out = capsys.readouterr().out
    assert sent == [1] and out.count("warning: TRACKER = 'wandb' failed") == 1 and 'ConnectionError: no route' in out
    assert read_json('out/result.json')['finished']


def test_a_tracker_is_closed_whatever_happens(monkeypatch):
    sent = []
    monkeypatch.setattr('extras.trackers.validate_tracker', lambda name: None)
    monkeypatch.setattr(tracker, 'open_service', lambda *arguments: (
        lambda values, epoch: sent.append(epoch), lambda: sent.append('closed')))
    run(tracker='wandb', epochs=2)
    assert sent == [1, 2, 'closed']
    monkeypatch.setattr(monitor, 'print_epoch', lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tracker='wandb', epochs=2, output_dir='other')
    assert sent == [1, 2, 'closed', 1, 'closed']


def test_a_tracker_that_cannot_begin_is_a_mistake(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError('not logged in')
    monkeypatch.setattr(tracker, 'open_service', refuse)
    monkeypatch.setattr('extras.trackers.validate_tracker', lambda name: None)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(UserError, match="TRACKER = 'trackio' cannot begin .not logged in.: log in"):
        run(tracker='trackio')
    assert signal.getsignal(signal.SIGINT) == before, 'Ctrl-C does again what it did'


def test_a_tracker_that_is_not_there(monkeypatch):
    with pytest.raises(UserError, match="TRACKER = 'mlflow': choose 'tensorboard'"):
        choices.check_settings(configure(tracker='mlflow'))
    monkeypatch.setattr(tracker.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='is not installed: python -m pip install tensorboard'):
        choices.check_settings(configure(tracker='tensorboard'))


def test_a_run_without_a_tracker_imports_none():
    code = ("import sys; sys.argv[0] = 'train.py'; import train; from common import settings; "
            "train.main(settings.read(train)); import json; print(json.dumps(sorted(sys.modules)))")
    done = subprocess.run([sys.executable, '-c', code, *arguments_of(epochs=1)], text=True, capture_output=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert not {name.split('.')[0] for name in loaded} & {'tensorboard', 'trackio', 'gradio'}  # timm imports wandb
    assert 'torch.utils.tensorboard' not in loaded and 'extras.trackers' not in loaded
