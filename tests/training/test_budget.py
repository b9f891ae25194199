"""TIME_BUDGET (common/training/run_length.py) is kept, on a clock that the tests turn."""
import copy
import dataclasses
import time
from pathlib import Path

import pytest
import torch
from helpers import build, result, run

import train
from common.runtime.errors import Stopped
from common.training import losses, monitor, run_length, step
from common.training.checkpoint import is_complete
from common.training.run_length import Plan


class Time:
    """In place of the module: an update, a rehearsal or a validation takes what the test says."""

    def __init__(self):
        self.now = 0.

    def perf_counter(self):
        return self.now

    monotonic = staticmethod(time.monotonic)


@pytest.fixture
def seconds(monkeypatch):
    """Time that passes only in the models, a second for each batch in training and a third of one in evaluation, after
    25 seconds `seconds.factor` times as much.
    """
    turned = Time()
    turned.batch = 1.
    turned.factor = 1.

    def slow(kind, share):
        forward = kind.forward

        def timed(model, images, *targets):
            speed = turned.factor if turned.now > 25 else 1
            turned.now += turned.batch * speed * share * images[0].numel() / (3 * 32 * 32)
            return forward(model, images, *targets)

        monkeypatch.setattr(kind, 'forward', timed)

    slow(losses.LossModel, 1.)
    slow(train.EvalModel, 1 / 3)
    for module in (run_length, step, monitor):
        monkeypatch.setattr(module, 'time', turned)
    return turned


@pytest.mark.parametrize('minutes, changes', [
    (1, {}), (0.75, {'accumulate_steps': 2, 'use_ema': 'false'}),
    (1, {'validate_every': 'auto'}), (1, {'validate_every': 1000})])
def test_a_run_ends_with_its_budget(data, seconds, minutes, changes):
    run(time_budget=minutes, **changes)
    assert seconds.now == pytest.approx(60 * minutes, rel=0.05)
    found = result()
    assert found['finished'] and found['last']['lr'] == pytest.approx(1e-6), 'the schedules came to their ends'
    assert found['last']['raw_acc1'] is not None, 'the last epoch is validated'


@pytest.mark.parametrize('factor', [0.5, 2.])
def test_a_machine_that_changes_its_speed(data, seconds, factor):
    seconds.factor = factor
    run(time_budget=1.5)
    assert seconds.now == pytest.approx(90, rel=0.05)
    assert result()['last']['lr'] == pytest.approx(1e-6)


def test_less_than_an_epoch(data, seconds):
    """Two batches an epoch; the rehearsal takes most of the time, two updates though one takes its seconds."""
    seconds.batch = 5.
    run(time_budget=0.3, use_ema='false')
    found = result()
    assert found['last']['epoch'] == 1 and found['finished'] and seconds.now < 19


def test_a_budget_that_is_over_before_training_begins(data, seconds, capsys):
    """There is an update, a validation, and best.pth; and no time below zero is told."""
    run(time_budget=0.01)
    printed = capsys.readouterr().out
    [line] = [line for line in printed.splitlines() if line.startswith('TIME_BUDGET = 0.01 min')]
    assert 'over before training began, after 5 s: one update and a validation follow' in line
    assert 'are left' not in printed and '-' not in line
    found = result()
    assert found['finished'] and found['last']['raw_acc1'] is not None and Path('out/best.pth').is_file()
    assert torch.load('out/last.pth', weights_only=True)['plan']['updates'] == 1


def rehearse(cfg, state):
    images = torch.zeros(8, 3, *cfg.IMG_SIZE, device=state.device)
    targets = torch.zeros(8, 2, device=state.device)
    run_length.rehearse(state.clock, state.model, state.optimizer, images, targets, cfg.ACCUMULATE_STEPS)


@pytest.mark.parametrize('optimizer', ['adamw', 'muon', 'lion'])
def test_the_rehearsal_leaves_no_trace(data, seconds, monkeypatch, optimizer):
    """Though the optimizer works as well, where it can without."""
    torch.manual_seed(1)
    cfg, _, state = build(time_budget=1, drop_path=0.5, optimizer=optimizer)
    assert state.clock.ready
    net = copy.deepcopy(state.net.state_dict())
    random, before, steps = torch.get_rng_state(), state.clock.count, []
    real = state.optimizer.step
    monkeypatch.setattr(state.optimizer, 'step', lambda: steps.append(real()))
    rehearse(cfg, state)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(net[name], value) for name, value in state.net.state_dict().items())
    assert all(p.grad is None for p in state.net.parameters())
    assert not any(value.any() for found in state.optimizer.state.values() for value in found.values())
    measured = state.clock.count - before
    assert len(steps) == (0 if optimizer == 'lion' else measured) and measured > 0


def test_no_optimizer_rehearses_on_a_device_where_it_would_leave_a_trace(data, seconds, monkeypatch):
    cfg, _, state = build(time_budget=1)
    before, steps = state.clock.count, []
    monkeypatch.setattr(run_length, 'can_skip', lambda optimizer, device: False)
    monkeypatch.setattr(state.optimizer, 'step', lambda: steps.append(1))
    rehearse(cfg, state)
    assert state.clock.count > before and not steps


def test_a_slow_first_update_leaves_time_to_measure_others(data, seconds):
    cfg, _, state = build()
    seconds.batch = 20.
    clock = state.clock = run_length.Clock()
    real = clock.add

    def add(duration):
        real(duration)
        seconds.batch = 1.

    clock.add = add
    rehearse(cfg, state)
    assert clock.count == 5 and clock.update_seconds == 1.


def saved(minutes, plan, epochs, updates=0):
    return {'plan': vars(plan), 'history': [{}] * epochs, 'progress': {'updates': updates},
            'settings': {'TIME_BUDGET': minutes}}


def unexpected():
    raise AssertionError('another rehearsal')


def test_a_resumed_run_has_the_plan_that_was_saved():
    plan = Plan(40, 2, 1, 1., revised_at=10, revised_share=0.4)
    new = Plan(6, 2, 3, 1.)
    found = run_length.fit_time_budget(new, 1., run_length.Clock(), saved(1., plan, 8, 1), unexpected)
    assert found == dataclasses.replace(plan, validate_every=3)


def test_a_resumed_run_ends_in_time_too(data, seconds, monkeypatch):
    """Its updates take longer than the plan is left alone: the first one, which is not measured, asks for it."""
    seconds.batch = 4.
    real = train.train_one_epoch

    def stop(cfg, state, data, epoch, after_update):
        def hook(update, batches):
            after_update(update, batches)
            if batches.update == 3:
                raise Stopped(15)
        real(cfg, state, data, epoch, hook)

    with monkeypatch.context() as patch:
        patch.setattr(train, 'train_one_epoch', stop)
        with pytest.raises(Stopped):
            run(time_budget=1.5, save_every_minutes=0)
    before = seconds.now
    run(time_budget=1.5, resume='true')
    assert seconds.now == pytest.approx(90, rel=0.05) and seconds.now > before + 20
    assert result()['finished'] and result()['last']['lr'] == pytest.approx(1e-6)


def test_another_budget_goes_on_from_the_share_of_it_that_is_over(seconds):
    """A minute of two is over after 40 updates; they take a second each, and there is no validation to speak of."""
    plan = Plan(40, 2, 1, 0., revised_at=10, revised_share=0.4)
    clock = run_length.Clock(elapsed=60.)

    def rehearse():
        clock.add(1.)
        clock.add(1.)

    found = run_length.fit_time_budget(Plan(6, 2, 1, 0.), 2., clock, saved(1., plan, 20), rehearse)
    assert found.share(40) == pytest.approx(0.5) and found.updates == 100


def test_complete_is_what_the_settings_ask_for(data):
    plan = Plan(4, 2, 1, 1.)
    for then, now, epochs, complete in ((1., 1., 2, True), (1., 1., 1, False), (1., 2., 2, False), (1., None, 2, True),
                                        (None, 1., 2, False), (None, None, 1, False)):
        content = {'settings': {'TIME_BUDGET': then, 'PATIENCE': None, 'EPOCHS': 2}, 'plan': vars(plan),
                   'history': [{}] * epochs}
        assert is_complete(content, epochs=2, time_budget=now, patience=None) == complete
