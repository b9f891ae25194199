"""common/training/budget.py: TIME_BUDGET is kept, on a clock that the tests turn."""
import copy
import time
from types import SimpleNamespace

import pytest
import torch
from helpers import build, prepare, result, run

import train
from common.runtime.errors import Stopped
from common.training import schedule as budget
from common.training import schedule as clock
from common.training.plan import Plan

SIZE = (32, 32)


class Time:
    """In place of the module: an update, a rehearsal or a validation takes what the test says."""

    def __init__(self):
        self.now = 0.

    def perf_counter(self):
        return self.now

    monotonic = staticmethod(time.monotonic)


@pytest.fixture
def seconds(monkeypatch):
    """Time that passes only in the loss, a second for each batch, after 25 seconds `seconds.factor` times as much."""
    turned, real = Time(), train.parallel
    turned.batch, turned.factor = 1., 1.

    def parallel(*arguments, **options):
        model = real(*arguments, **options)
        forward = model.forward

        def slow(images, targets=None):
            speed = turned.factor if turned.now > 25 else 1
            step = 1 / 3 if targets is None else 1
            turned.now += turned.batch * speed * step * images[0].numel() / (3 * 32 * 32)
            return forward(images, targets)

        model.forward = slow
        return model

    monkeypatch.setattr(train, 'parallel', parallel)
    for module in (budget, clock, train):
        monkeypatch.setattr(module, 'time', turned)
    return turned


@pytest.mark.parametrize('minutes, changes', [
    (1, {}), (1.5, {'start_size': 0.5}), (0.75, {'accumulate_steps': 2, 'use_ema': 'false'}),
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


@pytest.mark.parametrize('optimizer', ['adamw', 'muon', 'lion'])
def test_the_rehearsal_leaves_no_trace(data, seconds, monkeypatch, optimizer):
    """Though the optimizer works as well, where it can without."""
    torch.manual_seed(1)
    cfg, _, state = build(time_budget=1, start_size=0.5, img_size=64, drop_path=0.5, optimizer=optimizer)
    assert state.clock.count(SIZE) >= 2 and state.clock.count((64, 64)) >= 2
    net = copy.deepcopy(state.net.state_dict())
    random, before, steps = torch.get_rng_state(), sum(map(state.clock.count, state.clock.measured)), []
    real = state.optimizer.step
    monkeypatch.setattr(state.optimizer, 'step', lambda: steps.append(real()))
    budget.rehearse(cfg, state.clock, state.loss_model, state.optimizer, torch.zeros(8, 2, device=state.device),
                    state.plan)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(net[name], value) for name, value in state.net.state_dict().items())
    assert all(p.grad is None for p in state.net.parameters())
    assert not any(value.any() for found in state.optimizer.state.values() for value in found.values())
    measured = sum(map(state.clock.count, state.clock.measured)) - before
    assert len(steps) == (0 if optimizer == 'lion' else measured) and measured > 0


def test_no_optimizer_rehearses_on_a_device_where_it_would_leave_a_trace(data, seconds, monkeypatch):
    cfg, _, state = build(time_budget=1)
    before, steps = state.clock.count(SIZE), []
    monkeypatch.setattr(budget, 'can_skip', lambda cfg, device: False)
    monkeypatch.setattr(state.optimizer, 'step', lambda: steps.append(1))
    budget.rehearse(cfg, state.clock, state.loss_model, state.optimizer, torch.zeros(8, 2, device=state.device),
                    state.plan)
    assert state.clock.count(SIZE) > before and not steps


def saved(cfg, plan, elapsed, epochs, updates=0):
    return {'plan': vars(plan), 'elapsed': elapsed, 'history': [{}] * epochs, 'progress': {'updates': updates},
            'settings': vars(cfg)}


def test_a_resumed_run_has_the_plan_that_was_saved(data, seconds):
    cfg, sets, state = build(time_budget=1)
    plan = Plan(40, [(1., SIZE)], 2, 1, 1., revised_at=10, revised_share=0.4)
    before = seconds.now
    assert budget.build_plan(cfg, sets, state.clock, state.model, None, None, saved(cfg, plan, 30., 8, 1)) == plan
    assert seconds.now == before, 'without another rehearsal'


def test_a_resumed_run_ends_in_time_too(data, seconds, monkeypatch):
    """Its updates take longer than the plan is left alone: the first one, which is not measured, asks for it."""
    seconds.batch = 4.
    real = train.train_one_epoch

    def stop(cfg, state, data, epoch, after_update):
        def hook(update):
            after_update(update)
            if update.number == 3:
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


def test_another_budget_goes_on_from_the_share_of_it_that_is_over(data, seconds):
    cfg, sets, state = build(time_budget=2)
    old = prepare(time_budget=1)
    plan = Plan(40, [(1., SIZE)], 2, 1, 1., revised_at=10, revised_share=0.4)
    state.clock.started = seconds.now - 60
    found = budget.build_plan(cfg, sets, state.clock, state.loss_model, state.optimizer,
                              torch.zeros(8, 2, device=state.device), saved(old, plan, 60., 20))
    assert found.share(40) == pytest.approx(0.5) and found.updates > 60
    cfg.TIME_BUDGET = None
    found = budget.build_plan(cfg, sets, state.clock, state.loss_model, None, None, saved(old, plan, 60., 20))
    assert found.updates == 2 * cfg.EPOCHS and found.share(1) == 1 / found.updates


def test_complete_is_what_the_settings_ask_for(data):
    plan = Plan(4, [(1., SIZE)], 2, 1, 1.)
    for then, now, epochs, complete in ((1., 1., 2, True), (1., 1., 1, False), (1., 2., 2, False), (1., None, 2, True),
                                        (None, 1., 2, False), (None, None, 1, False)):
        content = {'settings': {'TIME_BUDGET': then}, 'plan': vars(plan), 'history': [{}] * epochs}
        assert train.is_complete(SimpleNamespace(TIME_BUDGET=now, EPOCHS=2, PATIENCE=None), content) == complete
