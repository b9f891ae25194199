"""common/training/history.py and monitor.py: what the log, result.json and the progress bar say of the updates."""
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import build, read_json

from common.training.log import (
    best_of,
    print_epoch,
    print_result,
    training_columns,
    validation_columns,
    write_epoch,
)
from common.training.monitor import Monitor
from common.training.step import Progress, Update

SIZE = (32, 32)
UPDATES = [Update(1, SIZE, loss=1., norm=3., finite=True, images=8, unmixed=4, correct=1, waited=1., seconds=2.),
           Update(2, SIZE, loss=4., norm=1., finite=True, images=4, unmixed=1, correct=1, waited=0., seconds=1.),
           Update(3, SIZE, loss=float('nan'), norm=1., finite=False, images=4, unmixed=4, correct=4, waited=.5,
                  seconds=3.)]
SCORES = {'loss': 2., 'acc1': 60., 'acc5': 90., 'balanced_accuracy': 50., 'temperature': 2., 'confusion': None}


def test_a_row_has_the_sums_and_means_of_an_epochs_updates():
    """Skipped updates count in images and seconds, not in losses, norms and accuracy."""
    progress = Progress(skipped=1)
    for update in UPDATES:
        progress.add(update, flop=2e13 * update.images)
    assert progress.updates == 3
    assert training_columns(SimpleNamespace(progress=progress, learning_rate=0.5, image_flop={SIZE: 2e13})) == {
        'lr': 0.5, 'train_loss': 2., 'train_acc1': 40., 'grad_norm': 2., 'skipped_updates': 1, 'waiting': 0.25,
        'images_per_s': pytest.approx(16 / 6), 'pflop': pytest.approx(0.32)}
    progress = Progress()
    progress.add(replace(UPDATES[0], unmixed=0), flop=0.)
    row = training_columns(SimpleNamespace(progress=progress, learning_rate=0.5, image_flop={}))
    assert row['train_acc1'] is None and row['pflop'] is None


def test_without_ema_its_columns_are_empty():
    row = validation_columns({'raw': SCORES})
    assert row == {'raw_loss': 2., 'raw_acc1': 60., 'raw_acc5': 90., 'raw_balanced_accuracy': 50.,
                   'raw_temperature': 2.,
                   'ema_loss': None, 'ema_acc1': None, 'ema_acc5': None, 'ema_balanced_accuracy': None,
                   'ema_temperature': None}


def test_the_best_is_the_first_of_equals():
    rows = [{'epoch': 1, 'raw_acc1': 50., 'ema_acc1': None}, {'epoch': 2, 'raw_acc1': 60., 'ema_acc1': 70.,
             'ema_temperature': 3.}, {'epoch': 3, 'raw_acc1': 70., 'ema_acc1': 65.}]
    rows = [{**row, 'height': 32, 'width': 48} for row in rows]
    assert best_of(rows) == {
        'epoch': 2, 'weights': 'ema', 'acc1': 70., 'balanced_accuracy': None, 'temperature': 3.}
    assert best_of(rows[:1]) == {
        'epoch': 1, 'weights': 'raw', 'acc1': 50., 'balanced_accuracy': None, 'temperature': None}
    assert best_of([]) is None


def test_the_best_is_one_with_the_largest_images_so_far():
    rows = [{'epoch': epoch, 'height': height, 'width': 64, 'raw_acc1': acc1, 'ema_acc1': None}
            for epoch, height, acc1 in ((1, 32, 90.), (2, 48, 40.), (3, 48, 50.), (4, 64, None), (5, 64, 45.))]
    assert [best_of(rows[:count])['epoch'] for count in (1, 2, 3, 4, 5)] == [1, 2, 3, 3, 5]


def test_the_result_names_the_best_on_val_and_the_last(capsys):
    rows = [{'epoch': 1, 'raw_acc1': 50., 'ema_acc1': 80.}, {'epoch': 2, 'raw_acc1': 60., 'ema_acc1': None}]
    print_result(SimpleNamespace(BEST_BY='acc1'), [{**row, 'height': 32, 'width': 32} for row in rows], 10)
    assert capsys.readouterr().out.splitlines()[1:] == [
        'best on val: epoch 1, ema weights, ACC1 80.00 % (95 % interval 49.0 to 94.3 %)',
        'last epoch, raw weights, whatever val says: ACC1 60.00 % (95 % interval 31.3 to 83.2 %)']


def test_an_epochs_line(capsys):
    row = {'epoch': 2, 'train_loss': 1.23456, 'raw_loss': 2.34567, 'raw_acc1': 50., 'ema_acc1': 60.126,
           'images_per_s': 12.34, 'waiting': 0.126, 'seconds': 61.}
    for changes, seconds_left in (({}, 3600.), ({'ema_acc1': None}, None), ({'raw_acc1': None}, 3600.)):
        print_epoch({**row, **changes}, 9, seconds_left)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == ('epoch 2/9: loss 1.235, val loss 2.346, ACC1 50.00 % (EMA 60.13 %), 12.3 img/s, waiting 13%, '
                     '1 min 01 s, 1 h 00 min left')
    assert second == first.replace(' (EMA 60.13 %)', '').replace('1 h 00 min left', '? left')
    assert third == 'epoch 2/9: loss 1.235, 12.3 img/s, waiting 13%, 1 min 01 s, 1 h 00 min left', 'not validated'


def test_result_json_says_how_and_how_far(data, tmp_path):
    cfg, sets, state = build(use_amp='false', epochs=2)
    state.image_flop = {(32, 32): 1e12}
    rows = [{'epoch': epoch, 'height': 32, 'width': 32, 'seconds': 3., 'pflop': 0.25,
             **validation_columns({'raw': SCORES})} for epoch in (1, 2)]
    for count in (1, 2):
        write_epoch(cfg, state, sets, tmp_path, rows[:count], None)
        found = read_json(tmp_path / 'result.json')
        assert found['finished'] == (count == 2) and found['seconds'] == 3. * count and found['last'] == rows[count - 1]
    assert found['pflop'] == 0.5
    assert found['torch'] == torch.__version__ and found['device'].endswith('single precision (fp32)')
    assert found['parameters'] == sum(p.numel() for p in state.net.parameters())
    assert found['settings'] == json.loads(json.dumps(vars(cfg))) and found['best']['acc1'] == 60.
    assert (tmp_path / 'log.csv').read_text('utf-8-sig').count('\n') == 3


def test_the_forecast_comes_once_and_names_what_shortens_a_long_run(data, capsys):
    cfg, sets, state = build(epochs=3, img_size='64,32', start_size=0.5, use_ema='false')
    state.image_flop, state.optimizer_flop = {(32, 16): 1e14, (48, 32): 3e14, (64, 32): 4e14}, 5e14
    bar = SimpleNamespace(set_postfix_str=lambda text, refresh: None, update=lambda: None)
    monitor = Monitor(cfg, state, sets, SimpleNamespace(between_updates=lambda: None))
    for number in range(1, 4):
        monitor.after_update(0, bar, replace(UPDATES[0], number=number, size=(64, 32), seconds=9000.))
    out = capsys.readouterr().out
    flop = sum(share * state.image_flop[size] for size, share in state.plan.to_come(0))
    assert f'({6 * (8 * flop + 5e14) / 1e15:.2g} PFLOP for the whole run)' in out and out.count('forecast') == 1
    assert out.endswith('; shorter with a TIME_BUDGET in minutes, with fewer EPOCHS (now 3), with IMG_SIZE = (32, 16) '
                        '(about a quarter of it), or on a machine with a GPU\n')


def test_the_bar_says_how_fast_and_how_long(data):
    cfg, sets, state = build(epochs=3, use_ema='false')
    said, saves = [], []
    bar = SimpleNamespace(set_postfix_str=lambda text, refresh: said.append(text), update=lambda: said.append('+1'))
    monitor = Monitor(cfg, state, sets, SimpleNamespace(between_updates=lambda: saves.append(state.progress.updates)))
    for update in UPDATES[:2]:
        monitor.after_update(0, bar, update)
    assert said[0].endswith(', 4.0 img/s, waiting 50%, whole run ? left') and said[1::2] == ['+1', '+1']
    rate = f'{state.learning_rate:.1e}'
    # two epochs are left, each of two updates of a second and a validation of a third of one
    assert said[2] == f'loss 2.000, lr {rate}, 4.0 img/s, waiting 33%, whole run 5 s left' and saves == [1, 2]
