"""common/training/log.py and monitor.py: what the log, result.json and the progress bar say of the updates."""
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import build, read_json

from common.training.log import best_of, describe_run, epoch_row, print_epoch, print_result, write_epoch
from common.training.monitor import Monitor
from common.training.setup import BuiltNetwork, Provenance
from common.training.step import Progress, Update

NONE = torch.zeros(0, 3)
UPDATES = [Update(loss=1., norm=3., finite=True, images=8, unmixed=4, correct=1, margins=NONE),
           Update(loss=4., norm=1., finite=True, images=4, unmixed=1, correct=1, margins=NONE),
           Update(loss=float('nan'), norm=1., finite=False, images=4, unmixed=4, correct=4, margins=NONE)]
TIMES = [(2., 1.), (1., 0.), (3., .5)]  # seconds, waited
SCORES = {'loss': 2., 'acc1': 60., 'acc5': 90., 'balanced_accuracy': 50., 'temperature': 2., 'confusion': None}


def state_of(progress, image_flop=2e13):
    return SimpleNamespace(progress=progress, learning_rate=0.5, image_flop=image_flop)


def test_a_row_has_the_sums_and_means_of_an_epochs_updates():
    """Skipped updates count in images and seconds, not in losses, norms and accuracy."""
    progress = Progress(skipped=1)
    for update, (seconds, waited) in zip(UPDATES, TIMES, strict=True):
        progress.add(update, 2e13 * update.images, seconds, waited)
    assert progress.updates == 3
    row = epoch_row(4, state_of(progress), {'raw': SCORES}, 9.)
    assert row == {
        'epoch': 5, 'lr': 0.5, 'train_loss': 2., 'train_acc1': 40., 'grad_norm': 2., 'skipped_updates': 1,
        'waiting': 0.25, 'images_per_s': pytest.approx(16 / 6), 'pflop': pytest.approx(0.32), 'raw_loss': 2.,
        'raw_acc1': 60., 'raw_acc5': 90., 'raw_balanced_accuracy': 50., 'raw_temperature': 2., 'ema_loss': None,
        'ema_acc1': None, 'ema_acc5': None, 'ema_balanced_accuracy': None, 'ema_temperature': None, 'seconds': 9.}


def test_what_is_not_known_is_left_empty():
    progress = Progress()
    progress.add(replace(UPDATES[0], unmixed=0), 0., 1., 0.)
    row = epoch_row(0, state_of(progress, image_flop=None), {}, 9.)
    assert row['train_acc1'] is None and row['pflop'] is None and row['raw_acc1'] is None


def test_the_best_is_the_first_of_equals():
    columns = ('raw_acc1', 'ema_acc1', 'raw_balanced_accuracy', 'ema_balanced_accuracy', 'raw_temperature',
               'ema_temperature')
    rows = [{**dict.fromkeys(columns), **row} for row in (
        {'epoch': 1, 'raw_acc1': 50.}, {'epoch': 2, 'raw_acc1': 60., 'ema_acc1': 70., 'ema_temperature': 3.},
        {'epoch': 3, 'raw_acc1': 70., 'ema_acc1': 65.}, {'epoch': 4})]
    assert best_of(rows) == {
        'epoch': 2, 'weights': 'ema', 'acc1': 70., 'balanced_accuracy': None, 'temperature': 3.}
    assert best_of(rows[:1]) == {
        'epoch': 1, 'weights': 'raw', 'acc1': 50., 'balanced_accuracy': None, 'temperature': None}
    assert best_of([]) is None


def test_the_result_names_the_best_on_val_and_the_last(capsys):
    columns = ('raw_balanced_accuracy', 'ema_balanced_accuracy', 'raw_temperature', 'ema_temperature')
    rows = [{**dict.fromkeys(columns), **row} for row in (
        {'epoch': 1, 'raw_acc1': 50., 'ema_acc1': 80.}, {'epoch': 2, 'raw_acc1': 60., 'ema_acc1': None})]
    print_result(rows, 'acc1', 10)
    assert capsys.readouterr().out.splitlines()[1:] == [
        'best on val: epoch 1, ema weights, ACC1 80.00 % (95 % interval 49.0 to 94.3 %)',
        'last epoch, raw weights, whatever val says: ACC1 60.00 % (95 % interval 31.3 to 83.2 %)']


def test_an_epochs_line(capsys):
    row = {'epoch': 2, 'train_loss': 1.23456, 'raw_loss': 2.34567, 'raw_acc1': 50., 'ema_acc1': 60.126,
           'images_per_s': 12.34, 'waiting': 0.126, 'seconds': 61.}
    not_validated = {'raw_acc1': None, 'ema_acc1': None}
    for changes, seconds_left in (({}, 3600.), ({'ema_acc1': None}, None), (not_validated, 3600.)):
        print_epoch({**row, **changes}, 9, seconds_left)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == ('epoch 2/9: loss 1.235, val loss 2.346, ACC1 50.00 % (EMA 60.13 %), 12.3 img/s, waiting 13%, '
                     '1 min 01 s, 1 h 00 min left')
    assert second == first.replace(' (EMA 60.13 %)', '').replace('1 h 00 min left', '? left')
    assert third == 'epoch 2/9: loss 1.235, 12.3 img/s, waiting 13%, 1 min 01 s, 1 h 00 min left', 'not validated'


def monitor_of(cfg, sets, state, out):
    facts = describe_run(cfg, sets, BuiltNetwork(state.net, {}, Provenance('scratch')), state.amp_dtype)
    return Monitor(cfg, state, sets, facts, [], out), facts


def test_result_json_says_how_and_how_far(data, tmp_path):
    cfg, sets, state = build(use_amp='false', epochs=2)
    state.image_flop = 1e12
    _, facts = monitor_of(cfg, sets, state, tmp_path)
    state.progress.add(UPDATES[0], 0.25e15, 1., 0.)
    rows = [epoch_row(epoch, state, {'raw': SCORES}, 3.) for epoch in (0, 1)]
    for count in (1, 2):
        write_epoch(facts, state, sets, tmp_path, rows[:count], None)
        found = read_json(tmp_path / 'result.json')
        assert found['finished'] == (count == 2) and found['seconds'] == 3. * count and found['last'] == rows[count - 1]
    assert found['pflop'] == 0.5
    assert found['torch'] == torch.__version__ and found['device'].endswith('single precision (fp32)')
    assert found['parameters'] == sum(p.numel() for p in state.net.parameters())
    assert found['settings'] == json.loads(json.dumps(vars(cfg))) and found['best']['acc1'] == 60.
    assert (tmp_path / 'log.csv').read_text('utf-8-sig').count('\n') == 3


class FakeBar:
    """What the monitor tells its progress bar."""
    total = 0

    def __init__(self):
        self.said = []

    def set_postfix_str(self, text, refresh):
        self.said.append(text)

    def update(self):
        self.said.append('+1')


def counted(monitor, bar, updates_and_times):
    for number, (update, (seconds, waited)) in enumerate(updates_and_times, 1):
        monitor.after_update(0, update, SimpleNamespace(number=number, seconds=seconds, waited=waited))
        monitor.show_progress(0, number, bar)


def test_the_forecast_comes_once_and_names_what_shortens_a_long_run(data, tmp_path, capsys):
    cfg, sets, state = build(epochs=3, img_size='64,32', use_ema='false')
    state.image_flop = 4e14
    monitor, _ = monitor_of(cfg, sets, state, tmp_path)
    update = replace(UPDATES[0], margins=torch.zeros(8, 3))
    counted(monitor, FakeBar(), [(update, (9000., 0.))] * 2)
    out = capsys.readouterr().out
    assert f'({6 * 8 * 4e14 / 1e15:.2g} PFLOP for the whole run)' in out and out.count('forecast') == 1
    assert out.endswith('; shorter with a TIME_BUDGET in minutes, with fewer EPOCHS (now 3), with IMG_SIZE = (32, 16) '
                        '(about a quarter of it), or on a machine with a GPU\n')


def test_the_bar_says_how_fast_and_how_long(data, tmp_path):
    cfg, sets, state = build(epochs=3, use_ema='false')
    bar = FakeBar()
    monitor, _ = monitor_of(cfg, sets, state, tmp_path)
    updates = [replace(update, margins=torch.zeros(update.images, 3)) for update in UPDATES[:2]]
    counted(monitor, bar, zip(updates, TIMES[:2], strict=True))
    assert bar.said[0].endswith(', 4.0 img/s, waiting 50%, whole run ? left') and bar.said[1::2] == ['+1', '+1']
    # two epochs are left, each of two updates of a second and a validation of a third of one
    assert bar.said[2] == (f'loss 2.000, lr {state.learning_rate:.1e}, 4.0 img/s, waiting 33%, whole run 5 s left')
