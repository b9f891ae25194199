"""A run that is stopped anywhere and goes on is, to the bit, the run that was never stopped."""
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from fuzzing import changed
from helpers import CLOCKS, ROOT, configure, draw_folder, run

import train
from common.runtime import files
from common.runtime.errors import Stopped, UserError
from common.runtime.signals import StopRequest
from common.training import checkpoint, monitor
from common.training.step import UpdateMeter

CHANGES = {'epochs': 2, 'mixup_prob': 0.5, 'cutout': 1, 'drop_path': 0.1, 'accumulate_steps': 2, 'batch_size': 4}
BATCHES, UPDATES = 5, 3  # in an epoch of 20 pictures


def finished():
    return torch.load('out/last.pth', weights_only=True)


def assert_same_run(one, other):
    for key in ('state_dict', 'state_dict_ema'):
        assert all(torch.equal(tensor, other[key][name]) for name, tensor in one[key].items())
    assert all(torch.equal(tensor, other['margins'][name]) for name, tensor in one['margins'].items())
    assert one['margins']['counts'].any()
    for a, b in zip(one['optimizer']['state'].values(), other['optimizer']['state'].values(), strict=True):
        assert all(torch.equal(*map(torch.as_tensor, (a[name], b[name]))) for name in a)
    for a, b in zip(one['history'], other['history'], strict=True):
        assert {key: a[key] for key in a.keys() - CLOCKS} == {key: b[key] for key in b.keys() - CLOCKS}


_whole_runs = {}


def run_without_stop():
    """Return the last.pth of CHANGES, and leave no trace of the run; tests share it."""
    key = repr(sorted(CHANGES.items()))
    if key not in _whole_runs:
        run(**CHANGES)
        _whole_runs[key] = finished()
        shutil.rmtree('out')
    return _whole_runs[key]


def stop_at(monkeypatch, name, count, signum=signal.SIGTERM):
    """Send a signal in the middle of the `count`th batch, validation or end of an epoch, then run until it stops."""
    owner = {'add': UpdateMeter, 'validate': train, 'write_epoch': monitor}[name]
    real, calls = getattr(owner, name), []

    def function(*arguments, **named):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signum)
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, function)
        with pytest.raises(Stopped, match=f'^{signum:d}$'):
            run(**CHANGES, resume='auto')


@pytest.mark.parametrize('stops', [
    [('add', 1)], [('add', 2)], [('add', 3)], [('add', BATCHES)], [('add', BATCHES + 2)],
    [('validate', 1)], [('validate', 2)], [('validate', 4)], [('write_epoch', 1)],
    [('add', 2), ('add', 1), ('validate', 1), ('add', 4)]])
def test_stopped_anywhere_and_resumed_is_the_same_run(data, monkeypatch, stops):
    """In the first update, in the middle of one, at an epoch's end, in validation, several times."""
    whole = run_without_stop()
    for name, count in stops:
        stop_at(monkeypatch, name, count)
    run(**CHANGES, resume='auto')
    assert_same_run(whole, finished())
    assert len(Path('out/log.csv').read_text().splitlines()) == 1 + CHANGES['epochs']


@pytest.mark.parametrize('changes', [
    {'num_workers': 1}, {'accumulate_steps': 1},
    {'validate_every': 2}, {'optimizer': 'sgd'}, {'optimizer': 'muon'},
    {'token_label': 'true', 'mixup_prob': 0, 'grad_checkpointing': 'true'},
    {'pretrained': 'first/best.pth'}])
def test_with_other_settings_too(data, monkeypatch, changes):
    if 'pretrained' in changes:
        run(epochs=1, output_dir='first')
    for name, value in changes.items():
        monkeypatch.setitem(CHANGES, name, value)
    whole = run_without_stop()
    stop_at(monkeypatch, 'add', BATCHES + 2)
    shutil.rmtree('first', ignore_errors=True)  # the run does not need the initial weights again
    run(**CHANGES, resume='auto')
    assert_same_run(whole, finished())


def test_what_the_optimizer_knows_may_lie_in_memory_otherwise(data, monkeypatch):
    """As in a last.pth of before convolutions were channels last: the fused AdamW reads it as its parameter lies."""
    for name, value in {'model': 'test_resnet', 'model_kwargs': {}, 'optimizer': 'adamw'}.items():
        monkeypatch.setitem(CHANGES, name, value)
    whole = run_without_stop()
    stop_at(monkeypatch, 'add', BATCHES + 2)
    saved = finished()
    for known in saved['optimizer']['state'].values():
        for name in known:
            known[name] = known[name].contiguous()
    torch.save(saved, 'out/last.pth')
    run(**CHANGES, resume='auto')
    assert_same_run(whole, finished())


def test_workers_and_float16_scaling_resume_too(data, monkeypatch):
    monkeypatch.setitem(CHANGES, 'num_workers', 1)
    monkeypatch.setattr(train.devices, 'choose_amp_dtype', lambda device: torch.float16)
    run(**CHANGES)
    whole = finished()
    shutil.rmtree('out')
    stop_at(monkeypatch, 'add', 3, signal.SIGINT)
    run(**CHANGES, resume='auto')
    assert_same_run(whole, finished())


def saves(monkeypatch):
    """A list that gets (epochs, updates) of every last.pth."""
    saved, real = [], checkpoint.save_last

    def save_last(out, content):
        saved.append((len(content['history']), content['progress']['updates']))
        real(out, content)

    monkeypatch.setattr(checkpoint, 'save_last', save_last)
    return saved


def test_the_clock_decides_when_last_pth_is_written(data, monkeypatch):
    """Not the epochs: it is several times as large as the network. At the start and at the end it is written too."""
    saved = saves(monkeypatch)
    run(**CHANGES, save_every_minutes=0)
    assert {(epoch, update) for epoch in (0, 1) for update in range(UPDATES)} | {(2, 0)} <= set(saved)
    saved.clear()
    run(**{**CHANGES, 'epochs': 4})
    assert saved == [(0, 0), (4, 0)]


def test_auto_has_nothing_to_do_after_the_end(data, capsys):
    run(**CHANGES, resume='auto')
    before = Path('out/last.pth').read_bytes()
    run(**CHANGES, resume='auto')
    assert 'nothing to do' in capsys.readouterr().out and Path('out/last.pth').read_bytes() == before
    with pytest.raises(UserError, match='was trained with IMG_SIZE'):
        run(**CHANGES, resume='auto', img_size=48)
    next((data / 'train').rglob('*.png')).unlink()
    with pytest.raises(UserError, match='other images than DATA_DIR has now'):
        run(**CHANGES, resume='auto')


def test_a_torn_save_costs_no_more_than_the_updates_since_the_one_before(data, capsys):
    """Cut at every 4 KiB, and with one bit changed in many places: always a state to go on from."""
    run(**{**CHANGES, 'epochs': 1})
    out, whole = Path('out'), Path('out/last.pth').read_bytes()
    before = checkpoint.load(out / 'last_before.pth')
    assert before['history'] == [] and len(finished()['history']) == 1
    newest = finished()['state_dict']
    noticed, places = 0, range(100, len(whole) - 100, len(whole) // 15)
    for position in places:
        (out / 'last.pth').write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1:])
        found = checkpoint.load_last(out)
        noticed += found['history'] == []
        if found['history']:  # a changed bit that no checksum covers, because it means nothing
            assert all(torch.equal(value, newest[name]) for name, value in found['state_dict'].items())
    assert noticed > len(places) / 2
    for size in range((len(whole) - 1) // 4096 * 4096, -1, -4096):
        os.truncate(out / 'last.pth', size)
        assert not checkpoint.is_whole(out / 'last.pth')
        if size % (1 << 19) == 0:
            assert checkpoint.load_last(out)['history'] == []
    assert 'going on from the save before it' in capsys.readouterr().out
    (out / 'last.pth').unlink()
    assert checkpoint.load_last(out)['history'] == []
    (out / 'last_before.pth').write_bytes(b'')
    with pytest.raises(UserError, match=r'last\.pth'):
        checkpoint.load_last(out)


def test_resume_refuses_another_run_and_lists_changes(data, capsys):
    run(epochs=1)
    with pytest.raises(UserError, match='IMG_SIZE = .32, 32'):
        run(resume='true', img_size=48)
    with pytest.raises(UserError, match='TOKEN_LABEL = False: set it back'):
        run(resume='true', token_label='true', mixup_prob=0)
    with pytest.raises(UserError, match='raise EPOCHS'):
        run(resume='true', epochs=1)
    with pytest.raises(UserError, match='was trained with MEAN = .*: set NORMALISATION = ') as refused:
        run(resume='true', epochs=2, normalisation='((0.5, 0.5, 0.5), (0.1, 0.1, 0.1))')
    pair = re.search(r'NORMALISATION = (.*), or', str(refused.value))[1]
    with pytest.raises(UserError, match=r'was trained with CROP = None: put CROP back'):
        run(resume='true', epochs=2, normalisation=pair, crop=0.8)
    run(resume='true', epochs=2, weight_decay=0.01, normalisation=pair)
    out = capsys.readouterr().out
    assert 'resume: WEIGHT_DECAY was 0.05, now 0.01\n' in out and 'resume: out/last.pth, after epoch 1\n' in out
    groups = torch.load('out/last.pth', weights_only=True)['optimizer']['param_groups']
    assert {group['weight_decay'] for group in groups} == {0, 0.01}
    draw_folder(data / 'train', {'c': 3})
    draw_folder(data / 'val', {'c': 3})
    with pytest.raises(UserError, match='other classes'):
        run(resume='true', epochs=3)


def test_what_makes_it_another_run_is_refused(data, monkeypatch):
    stop_at(monkeypatch, 'add', 2)
    for changes in ({'batch_size': 2}, {'accumulate_steps': 1}, {'seed': 7}):
        with pytest.raises(UserError, match='stopped within an epoch that has BATCH_SIZE = 4, ACCUMULATE_STEPS = 2, '
                                            'SEED = 42: until that epoch is over'):
            run(**{**CHANGES, **changes}, resume='true')
    draw_folder(data / 'train', {'a/more': 1}, seed=8)
    with pytest.raises(UserError, match='other images than DATA_DIR has now'):
        run(**CHANGES, resume='true')


def test_smaller_batches_can_finish_the_epoch(data, monkeypatch, capsys):
    """What the advice for too little memory says: half the BATCH_SIZE, twice the ACCUMULATE_STEPS."""
    stop_at(monkeypatch, 'add', 3)
    run(**{**CHANGES, 'batch_size': 2, 'accumulate_steps': 4, 'mixup_prob': 0}, resume='true')
    assert 'resume: out/last.pth, after epoch 0 and 2 updates\n' in capsys.readouterr().out
    saved = finished()
    assert len(saved['history']) == 2 and saved['optimizer']['state'][0]['step'] == 6  # as many as without


def test_a_false_start_costs_no_earlier_run(data, monkeypatch):
    run(**CHANGES)
    before = Path('out/last.pth').read_bytes()
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(train, 'train_epochs', interrupt)
            run(**CHANGES)
    assert Path('out/previous_last.pth').read_bytes() == before


def test_the_updates_of_a_first_epoch_are_not_thrown_away(data, monkeypatch):
    stop_at(monkeypatch, 'add', 3)
    updates = finished()['progress']['updates']
    run(**CHANGES)
    assert torch.load('out/previous_last.pth', weights_only=True)['progress']['updates'] == updates > 0


def test_a_save_that_was_killed_between_its_moves_is_not_thrown_away(data):
    run(**CHANGES)
    before = Path('out/last_before.pth').read_bytes()
    Path('out/last.pth').unlink()
    run(**CHANGES)
    assert Path('out/previous_last.pth').read_bytes() == before


def test_a_file_that_is_no_last_pth_is_refused(data):
    run(**CHANGES)
    shutil.copy('out/best.pth', 'out/last.pth')
    with pytest.raises(UserError, match='has no progress, plan, elapsed, state_dict_ema, .*it is no last.pth'):
        run(**{**CHANGES, 'epochs': 3}, resume='true')
    saved = torch.load('out/last_before.pth', weights_only=True)
    for key, value in (('optimizer', {'state': {}, 'param_groups': []}), ('progress', {'losses': 3}),
                       ('provenance', {'from': 1}), ('plan', {'updates': 3}), ('history', 7)):
        torch.save({**saved, key: value}, 'out/last.pth')
        with pytest.raises(UserError, match='is not of this run'):
            run(**{**CHANGES, 'epochs': 3}, resume='true')


@pytest.mark.parametrize('place, value, words', [
    (('transform', 'img_size'), [48, 48], 'settings.IMG_SIZE'), (('elapsed',), 1e300, 'elapsed'),
    (('history', 0, 'raw_acc1'), 1e9, 'history.0..raw_acc1'), (('scaler',), {'scale': 'x'}, 'scaler'),
    (('optimizer', 'state', 0, 'step'), torch.tensor(-1.), 'optimizer'),
    (('optimizer', 'state', 0, 'step'), torch.tensor(1j), 'optimizer'),
    (('optimizer', 'state', 0, 'step'), torch.tensor(float('nan')), 'optimizer')])
def test_a_last_pth_with_a_value_that_fails_later_is_refused(data, place, value, words):
    """Such as a learning rate that is divided by 1 - beta ** 0 in the first update."""
    run(**CHANGES)
    torch.save(changed(torch.load('out/last.pth', weights_only=True), place, value), 'out/last.pth')
    with pytest.raises(UserError, match=f'is not of this run, something is wrong with its {words}'):
        run(**{**CHANGES, 'epochs': 3}, resume='true')


def test_a_last_pth_of_other_images_is_refused(data):
    """Its listing says that they are the same ones."""
    run(**CHANGES)
    saved = finished()
    torch.save({**saved, 'margins': {name: tensor[:3] for name, tensor in saved['margins'].items()}}, 'out/last.pth')
    with pytest.raises(UserError, match='something is wrong with its margins'):
        run(**{**CHANGES, 'epochs': 3}, resume='true')


def test_a_last_pth_that_is_older_than_a_setting(data, capsys):
    """Where the setting makes no other run, it goes on; where it may, that is said."""
    run(**CHANGES)
    saved = torch.load('out/last.pth', weights_only=True)
    for name in ('TOKEN_LABEL', 'USE_AMP', 'MIXUP_PROB'):
        settings = {key: value for key, value in saved['settings'].items() if key != name}
        torch.save({**saved, 'settings': settings}, 'out/last.pth')
        changes = {**CHANGES, 'epochs': 3, 'use_amp': 'auto', 'resume': 'true'}
        if name == 'MIXUP_PROB':
            run(**changes)
        else:
            with pytest.raises(UserError, match=f'of a version of this project without {name}: choose another'):
                run(**changes)
    assert 'resume: MIXUP_PROB is new, now 0.5' in capsys.readouterr().out


def test_a_signal_is_noted_once_and_kills_the_second_time():
    with StopRequest() as stop:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            assert signal.getsignal(signum) == stop.note
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_two_runs_do_not_share_a_folder(data):
    Path('out').mkdir()
    with FileLock('out/.lock'), pytest.raises(UserError, match="OUTPUT_DIR = 'out': another run is writing there"):
        run(**CHANGES)


def test_a_file_system_without_locks_is_said(data, monkeypatch, capsys):
    def refuse(*arguments, **named):
        raise OSError('no locks here')

    monkeypatch.setattr(files, 'FileLock', refuse)
    run(**{**CHANGES, 'epochs': 1})
    assert 'cannot be locked (no locks here): let no second run write there' in capsys.readouterr().out
    assert len(finished()['history']) == 1


def start(*more):
    cfg = {**vars(configure(**CHANGES)), 'RESUME': 'auto', 'NUM_WORKERS': 1}
    options = [f'--{name.lower().replace("_", "-")}={value}' for name, value in cfg.items() if value is not None]
    return subprocess.Popen([sys.executable, ROOT / 'train.py', *options, *more], start_new_session=True, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, 'HF_HUB_OFFLINE': '1'})


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_leave_with_their_own_exit_code(data, signum):
    """Both reach the loader workers too: from a terminal, or from a scheduler that signals the whole job."""
    process = start('--epochs=10000')
    try:
        for line in process.stdout:
            if line.startswith('epoch 2/'):
                break
        os.killpg(process.pid, signum)
        output, _ = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a test that fails leaves nothing behind
    assert process.returncode == 128 + signum and 'Traceback' not in output and 'saving, then leaving' in output
    assert len(finished()['history']) >= 2
