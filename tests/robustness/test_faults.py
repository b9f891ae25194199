"""What goes wrong in the middle of a run ends it in one line, or does not end it; what was saved stays good."""
import os
import signal
from pathlib import Path

import pytest
import torch
from helpers import configure, run

import train
from common.runtime.errors import UserError
from common.training import checkpoint

pytestmark = pytest.mark.usefixtures('data')
CHANGES = {'epochs': 2, 'batch_size': 4}
STEPS = 5  # in an epoch


def spoil(monkeypatch, steps):
    """Make the pictures of some calls of a step no numbers."""
    real, calls = train.backward, []

    def backward(run, images, targets, share):
        calls.append(1)
        return real(run, images * float('nan') if len(calls) in steps else images, targets, share)

    monkeypatch.setattr(train, 'backward', backward)
    return calls


def test_a_bad_step_is_skipped_and_counted(monkeypatch, capsys):
    spoil(monkeypatch, {2, 4, 5})
    run(**CHANGES)
    saved = torch.load('out/last.pth', weights_only=True)
    assert [row['skipped_steps'] for row in saved['history']] == [3, 0]
    assert all(torch.isfinite(value).all() for value in saved['state_dict'].values())
    assert all(torch.isfinite(value).all() for value in saved['state_dict_ema'].values())
    assert 'epoch 1, step 2: the loss became nan, so the step is skipped' in capsys.readouterr().out


@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_bad_step_leaves_no_trace(monkeypatch, accumulate):
    cfg = configure(**CHANGES, accumulate_steps=accumulate)
    train.check(cfg)
    built = train.build_training(cfg, train.build_data(cfg, {'source': 'scratch'}), {'source': 'scratch'}, None, None)
    train.set_mode(built.net, frozen=False)
    before = {name: value.clone() for name, value in built.net.state_dict().items()}
    images = torch.full((4, 3, 32, 32), float('nan'))
    _, loss = train.backward(built, images, torch.eye(2)[[0, 1, 0, 1]], accumulate)
    train.update(cfg, built, 1)
    assert loss != loss and all(torch.equal(value, before[name]) for name, value in built.net.state_dict().items())
    train.backward(built, torch.randn(4, 3, 32, 32), torch.eye(2)[[0, 1, 0, 1]], accumulate)
    train.update(cfg, built, 2)
    assert not all(torch.equal(value, before[name]) for name, value in built.net.state_dict().items())


def test_many_bad_steps_go_back_once_with_a_lower_rate(monkeypatch, capsys):
    calls = spoil(monkeypatch, {8, 9, 10})
    run(**CHANGES, max_bad_steps=3, lr=1e-3)
    out = capsys.readouterr().out
    assert 'the loss became nan in epoch 2, step 5' in out and 'going back to the last save' in out
    saved = torch.load('out/last.pth', weights_only=True)
    assert len(calls) == 15 and len(saved['history']) == 2 and saved['lr_scale'] == 0.1
    assert saved['history'][1]['skipped_steps'] == 0 and saved['history'][1]['lr'] < 1e-4 < saved['history'][0]['lr']
    run(**{**CHANGES, 'epochs': 3}, resume='true', lr=1e-3)  # the lower rate holds for what follows, too
    assert torch.load('out/last.pth', weights_only=True)['history'][2]['lr'] < 1e-4


@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_gradients_that_stay_no_numbers_are_noticed_too(monkeypatch, accumulate, dtype):
    """The loss is finite all the time; float16's scale may sink for a while before that counts."""
    real = train.backward

    def backward(run, *arguments, **named):
        found = real(run, *arguments, **named)
        next(run.net.parameters()).grad.fill_(float('inf'))
        return found

    monkeypatch.setattr(train, 'backward', backward)
    monkeypatch.setattr(train, 'choose_amp_dtype', lambda device: dtype)
    with pytest.raises(UserError, match='the norm of the gradient became (nan|inf) in epoch .* in a row'):
        run(**{**CHANGES, 'epochs': 20}, max_bad_steps=2, accumulate_steps=accumulate)


def test_the_second_time_the_run_ends_and_names_the_pictures(monkeypatch):
    spoil(monkeypatch, set(range(6, 100)))
    with pytest.raises(UserError, match=r'3 steps in a row .*: lower LR.*data/train/[ab]/0\d\d\.png, .*\.png') as error:
        run(**CHANGES, max_bad_steps=3)
    named = str(error.value).split('batch: ')[1].split(', ')
    assert len(set(named)) == 4 and len(checkpoint.load_last(Path('out'))['history']) == 1


def test_a_picture_that_vanishes(data):
    real = train.save_last

    def vanish(*arguments):
        for path in (data / 'train' / 'a').iterdir():
            path.unlink()
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr(train, 'save_last', vanish)
        run(**CHANGES, cache='none', num_workers=1)
    text = str(error.value)
    assert '\n' not in text and 'not a readable image' in text and '--resume goes on from out/last.pth' in text
    assert not checkpoint.load_last(Path('out'))['history']


def test_a_loader_worker_that_dies(monkeypatch):
    real = train.save_last

    def kill(cfg, run, loaders, *more):
        for worker in loaders.train._iterator._workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        return real(cfg, run, loaders, *more)

    monkeypatch.setattr(train, 'save_last', kill)
    with pytest.raises(UserError, match=r'a process that reads pictures died .*lower NUM_WORKERS; --resume goes on'):
        run(**CHANGES, num_workers=1)


@pytest.mark.parametrize('error', [
    MemoryError(), torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried to")])
def test_memory_that_ends(monkeypatch, error):
    def backward(*arguments, **named):
        raise error

    monkeypatch.setattr(train, 'backward', backward)
    with pytest.raises(UserError, match=r'out of memory: halve BATCH_SIZE .*--resume goes on from out/last\.pth'):
        run(**CHANGES)


def test_other_errors_keep_their_traceback(monkeypatch):
    def backward(*arguments, **named):
        raise RuntimeError('a mistake of ours')

    monkeypatch.setattr(train, 'backward', backward)
    with pytest.raises(RuntimeError, match='a mistake of ours'):
        run(**CHANGES)


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_that_becomes_read_only(monkeypatch):
    real = train.save_epoch

    def save_epoch(*arguments):
        os.chmod('out', 0o500)
        return real(*arguments)

    monkeypatch.setattr(train, 'save_epoch', save_epoch)
    with pytest.raises(UserError, match='cannot be written'):
        run(**CHANGES)
    os.chmod('out', 0o700)
    assert not checkpoint.load_last(Path('out'))['history']
