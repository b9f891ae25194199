"""What goes wrong in the middle of a run ends it in one line, or does not end it; what was saved stays good."""
import gc
import multiprocessing
import os
import signal
import weakref
from pathlib import Path

import pytest
import torch
from helpers import build, read_json, run

import train
from common.runtime.errors import UserError
from common.runtime.signals import kill_workers
from common.training import checkpoint, monitor, step
from common.training.losses import LossModel
from common.training.monitor import Monitor
from common.training.step import UpdateMeter

pytestmark = pytest.mark.usefixtures('data')
CHANGES = {'epochs': 2, 'batch_size': 4}
UPDATES = 5  # in an epoch
OPTIMIZERS = ('lion', 'sgd', 'adan', 'muon')


def spoil(monkeypatch, batches):
    """Make the pixels of some batches of training NaN, counted from 1. Returns a list with an item for each batch."""
    real, calls = LossModel.forward, []

    def forward(model, images, targets):
        calls.append(1)
        if len(calls) in batches:
            images = images * float('nan')
        return real(model, images, targets)

    monkeypatch.setattr(LossModel, 'forward', forward)
    return calls


def test_an_update_with_a_non_finite_loss_is_skipped_and_counted(monkeypatch, capsys):
    spoil(monkeypatch, {2, 4, 5})
    run(**CHANGES)
    saved = torch.load('out/last.pth', weights_only=True)
    assert [row['skipped_updates'] for row in saved['history']] == [3, 0]
    assert all(torch.isfinite(value).all() for value in saved['state_dict'].values())
    assert all(torch.isfinite(value).all() for value in saved['state_dict_ema'].values())
    assert 'epoch 1, update 2: the loss became nan, so the update is skipped' in capsys.readouterr().out


class Enough(Exception):
    pass


def updates_of(cfg, data, state, count):
    """The first updates of an epoch, as train.py makes them."""
    found = []

    def after_update(update, batches):
        found.append(update)
        if len(found) == count:
            raise Enough

    with pytest.raises(Enough):
        train.train_one_epoch(cfg, state, data, 0, after_update)
    return found


def copies(state):
    """Everything that an update changes: weights, buffers, averages, what the optimizer remembers."""
    tensors = [*state.net.state_dict().values(), *state.ema.module.state_dict().values()]
    tensors += [value for found in state.optimizer.state_dict()['state'].values() for value in found.values()]
    return [torch.as_tensor(tensor).clone() for tensor in tensors]


def unmoved(before, state):
    """Whether all is as it was; what the optimizer has had no reason to remember yet is zero."""
    after = copies(state)
    return all(map(torch.equal, before, after)) and not any(map(torch.any, after[len(before):]))


@pytest.mark.parametrize('changes', [{}, {'accumulate_steps': 2}, *({'optimizer': name} for name in OPTIMIZERS)])
def test_a_skipped_update_leaves_no_trace(monkeypatch, changes):
    """Not in BatchNorm's averages either; one bad batch spoils all those that it is accumulated with."""
    cfg, data, state = build(**CHANGES, **changes)
    state.ema.module.pos_embed.data.fill_(1.)  # the average is no longer equal to the weights
    before = copies(state)
    spoil(monkeypatch, {1})
    assert not updates_of(cfg, data, state, 1)[0].finite
    assert unmoved(before, state) and all(p.grad is None for p in state.net.parameters())
    first, second = updates_of(cfg, data, state, 2)
    assert first.finite and second.finite and not unmoved(before, state)


def test_nor_does_one_that_the_optimizer_cannot_leave_out_by_itself(monkeypatch):
    monkeypatch.setattr(step, 'can_skip', lambda optimizer, device: False)
    cfg, data, state = build(**CHANGES)
    before = copies(state)
    spoil(monkeypatch, {1})
    assert not updates_of(cfg, data, state, 1)[0].finite and unmoved(before, state)


@pytest.fixture
def overflow(monkeypatch):
    """The scale of float16's gradients begins far too large: they overflow, and the scale halves."""
    monkeypatch.setattr(train.devices, 'choose_amp_dtype', lambda device: torch.float16)
    monkeypatch.setattr(torch.amp, 'GradScaler', lambda device, enabled: torch.cpu.amp.GradScaler(2. ** 40))


@pytest.mark.parametrize('optimizer', ['adamw', 'muon', 'lion'])
def test_an_update_that_float16_skips_moves_nothing(overflow, optimizer):
    cfg, data, state = build(**CHANGES, optimizer=optimizer)
    state.ema.module.pos_embed.data.fill_(1.)
    before = copies(state)
    [update] = updates_of(cfg, data, state, 1)
    assert not update.finite and update.loss < 10 and unmoved(before, state)
    assert state.scaler.get_scale() == 2. ** 39


def test_updates_that_float16_skips_are_counted(overflow):
    run(**CHANGES)
    skipped = [row['skipped_updates'] for row in torch.load('out/last.pth', weights_only=True)['history']]
    assert skipped[0] == UPDATES and read_json('out/result.json')['finished']


def test_many_in_a_row_go_back_once_with_a_lower_rate(monkeypatch, capsys):
    monkeypatch.setattr(monitor, 'MAX_SKIPPED', 3)
    calls = spoil(monkeypatch, {8, 9, 10})
    run(**CHANGES, lr=1e-3, save_every_minutes=0)
    out = capsys.readouterr().out
    assert 'the loss became nan in epoch 2, update 5' in out and 'going back to the last save' in out
    saved = torch.load('out/last.pth', weights_only=True)
    assert len(calls) == 13  # the last save is the one before the first that was skipped, after the seventh
    assert len(saved['history']) == 2 and saved['lr_scale'] == 0.1 and saved['history'][1]['skipped_updates'] == 0
    assert saved['history'][1]['lr'] < 1e-4 < saved['history'][0]['lr']
    run(**{**CHANGES, 'epochs': 3}, resume='true', lr=1e-3)  # the lower rate holds for what follows, too
    assert torch.load('out/last.pth', weights_only=True)['history'][2]['lr'] < 1e-4
    run(**{**CHANGES, 'epochs': 4}, resume='true', lr=2e-3)  # until LR is changed
    assert torch.load('out/last.pth', weights_only=True)['lr_scale'] == 1


def test_going_back_needs_no_memory_for_two_networks(monkeypatch):
    """The old one is gone when the new one is built, whatever holds on to the error."""
    monkeypatch.setattr(monitor, 'MAX_SKIPPED', 3)
    spoil(monkeypatch, {1, 2, 3})
    built, alive = [], []
    real = train.build_state

    def build_state(*arguments, **named):
        gc.collect()
        alive.extend(net() is not None for net in built)
        state, facts = real(*arguments, **named)
        built.append(weakref.ref(state.net))
        return state, facts

    monkeypatch.setattr(train, 'build_state', build_state)
    run(**CHANGES)
    assert alive == [False]


def test_they_do_so_after_a_resume_with_another_rate_too(monkeypatch):
    """Where the last save, which has the rate before, is the one that was resumed from."""
    monkeypatch.setattr(monitor, 'MAX_SKIPPED', 3)
    run(**{**CHANGES, 'epochs': 1}, lr=1e-3)
    spoil(monkeypatch, {1, 2, 3})
    run(**CHANGES, resume='true', lr=2e-3)
    saved = torch.load('out/last.pth', weights_only=True)
    assert saved['lr_scale'] == 0.1 and saved['history'][1]['lr'] < 2e-4


@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_gradients_that_stay_non_finite_are_noticed_too(monkeypatch, accumulate, dtype):
    """The loss is finite all the time; float16's scale may sink for a while before that counts."""
    real = torch.amp.GradScaler.unscale_

    def unscale(scaler, optimizer):
        optimizer.param_groups[0]['params'][0].grad.fill_(float('inf'))
        return real(scaler, optimizer)

    monkeypatch.setattr(torch.amp.GradScaler, 'unscale_', unscale)
    monkeypatch.setattr(train.devices, 'choose_amp_dtype', lambda device: dtype)
    monkeypatch.setattr(monitor, 'MAX_SKIPPED', 2)
    with pytest.raises(UserError, match='the norm of the gradient became (nan|inf) in epoch .* in a row'):
        run(**{**CHANGES, 'epochs': 20}, accumulate_steps=accumulate, validate_every=20)


@pytest.mark.parametrize('most, more', [(4, ''), (3, ' and 1 more')])
def test_the_second_time_the_run_ends_and_names_the_pictures(monkeypatch, most, more):
    monkeypatch.setattr(monitor, 'NAMED_FILES', most)
    monkeypatch.setattr(monitor, 'MAX_SKIPPED', 3)
    spoil(monkeypatch, set(range(6, 100)))
    picture = r'data/train/[ab]/0\d\d\.png'
    named = rf'3 updates in a row .*: lower LR.* of that update: {picture}(, {picture}){{{most - 1}}}{more}$'
    with pytest.raises(UserError, match=named) as error:
        run(**CHANGES, save_every_minutes=0)
    names = str(error.value).removesuffix(more).split('update: ')[1].split(', ')
    assert len(set(names)) == most and len(checkpoint.load_last(Path('out'))['history']) == 1


def test_the_named_pictures_are_those_of_the_update():
    """Of all the batches that it accumulates, in the order in which they are read."""
    _, data, _ = build(**CHANGES, accumulate_steps=2)
    read = []
    data.train.dataset.loader, data.train.dataset.transform = read.append, None
    sampler = data.train.batch_sampler
    sampler.begin(epoch=1)
    for keys in sampler:
        for key in keys:
            data.train.dataset[key]
    sampler.begin(epoch=1, skip=2)  # as in an epoch that goes on in the middle
    found = [data.train.dataset.samples[index][0] for index in sampler.indices_of_update(1, images=8, batches=2)]
    assert found == read[8:16] and len(set(read)) == 20


def test_a_picture_that_vanishes(data):
    real = Monitor.save_last

    def vanish(saver):
        for path in (data / 'train' / 'a').iterdir():
            path.unlink()
        return real(saver)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(
            UserError, match=r'\A.*not a readable image.*--resume goes on from out/last.pth.*\Z'):
        patch.setattr(Monitor, 'save_last', vanish)
        try:
            run(**CHANGES, cache='none', num_workers=1)
        finally:
            kill_workers()  # as where a script ends with an error
    assert not checkpoint.load_last(Path('out'))['history']


def test_a_worker_process_that_dies(monkeypatch):
    real = Monitor.save_last

    def kill(saver):
        for worker in saver.data.train._iterator._workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        return real(saver)

    monkeypatch.setattr(Monitor, 'save_last', kill)
    with pytest.raises(UserError, match=r'worker process .* died .*lower NUM_WORKERS; --resume goes on'):
        run(**CHANGES, num_workers=1)


@pytest.mark.parametrize('kind, text', [
    (MemoryError, ''), (torch.OutOfMemoryError, 'CUDA out of memory. Tried to allocate 2 GiB'),
    (RuntimeError, "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried")])
def test_memory_that_ends(monkeypatch, kind, text):
    def add(*arguments):
        raise kind(text)

    monkeypatch.setattr(UpdateMeter, 'add', add)
    with pytest.raises(UserError, match=r'out of memory: halve BATCH_SIZE .*--resume goes on from out/last\.pth'):
        run(**CHANGES)


def test_other_errors_keep_their_traceback(monkeypatch):
    def add(*arguments):
        raise RuntimeError('a mistake of ours')

    monkeypatch.setattr(UpdateMeter, 'add', add)
    with pytest.raises(RuntimeError, match='a mistake of ours'):
        run(**CHANGES)


@pytest.mark.parametrize('name', ['plot_training', 'plot_confusion', 'write_csv'])
def test_pictures_and_tables_that_fail_do_not_end_a_run(monkeypatch, capsys, name):
    def fail(*arguments):
        raise UserError(f'{name} failed')

    monkeypatch.setattr(f'common.training.log.{name}', fail)
    run(**{**CHANGES, 'epochs': 1})
    assert f'warning: {name} failed' in capsys.readouterr().out and read_json('out/result.json')['finished']


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_that_becomes_read_only(monkeypatch):
    real = Monitor.save_best

    def save_best(saver, *arguments):
        os.chmod('out', 0o500)
        return real(saver, *arguments)

    monkeypatch.setattr(Monitor, 'save_best', save_best)
    with pytest.raises(UserError, match='cannot be written'):
        run(**CHANGES)
    os.chmod('out', 0o700)
    assert not checkpoint.load_last(Path('out'))['history']


def test_worker_processes_end_with_their_run():
    """As soon as nothing refers to their loader: collected in a circle, each of them takes five seconds to end."""
    gc.collect()
    before = {*multiprocessing.active_children()}
    gc.disable()
    try:
        run(**{**CHANGES, 'num_workers': 1})
        assert {*multiprocessing.active_children()} <= before
    finally:
        gc.enable()
