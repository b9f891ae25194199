"""common/training/run_length.py: how long a run is, when it is validated, what its clock says."""
import time
from types import SimpleNamespace

import pytest

import models
from common.runtime.console import format_duration
from common.training import run_length
from common.training.run_length import Clock, Plan, make_plan, validation_cost


def make(updates=100, per_epoch=10, every=1, validation=5.):
    return Plan(updates, per_epoch, every, validation)


def test_after_a_revision_the_share_goes_on_at_another_pace():
    plan = make()
    assert plan.share(40) == 0.4
    plan.revise(40, updates_left=20)
    assert plan.updates == 60 and plan.share(40) == 0.4
    assert plan.share(50) == pytest.approx(0.7) and plan.share(60) == 1 and plan.share(61) == 1
    plan.revise(50, updates_left=90)
    assert plan.share(95) == pytest.approx(0.85) and plan.updates == 140
    plan.revise(95, updates_left=-7)
    assert plan.updates == 96 and plan.share(96) == 1, 'it ends, with all schedules at their ends'


def test_the_last_epoch_may_be_a_part_of_one():
    plan = make(updates=34)
    assert plan.epochs == 4 and [plan.updates_in(epoch) for epoch in range(4)] == [10, 10, 10, 4]
    plan.end_after(12)
    assert plan.epochs == 2 and plan.updates_in(1) == 2


@pytest.mark.parametrize('every, epochs', [(1, [0, 1, 2, 3, 4]), (2, [1, 3, 4]), (5, [4]), (9, [4])])
def test_validated_are_every_so_many_epochs_and_the_last(every, epochs):
    plan = make(updates=50, every=every)
    assert [epoch for epoch in range(5) if plan.validates(epoch)] == epochs


def test_auto_validates_for_a_fifth_of_the_time():
    """Ten updates of an epoch may have two of validation beside them."""
    assert [make_plan(7, 10, validation, 'auto').validate_every for validation in (1.9, 2., 2.1, 6.)] == [1, 1, 2, 3]
    assert make_plan(7, 10, 6., 5) == Plan(70, 10, 5, 6.)


def test_a_validation_costs_a_forward_pass_of_each_network():
    """A third of a training step for each batch; for BatchNorm a sixth of that in a VOLO, whose stem alone has any."""
    volo = models.create_model('volo_d1', layers=(1, 1, 1, 1), embed_dims=(24, 48), num_heads=(2, 4), img_size=32)
    resnet, vit = (models.create_model(name, num_classes=2) for name in ('test_resnet', 'test_vit'))
    assert validation_cost(volo, 10, 6, use_ema=False, accumulate_steps=1) == pytest.approx((10 + 1) / 3)
    assert validation_cost(volo, 10, 6, use_ema=True, accumulate_steps=2) == pytest.approx((10 + 1) / 3)
    assert validation_cost(resnet, 10, 6, use_ema=False, accumulate_steps=1) == pytest.approx((10 + 6) / 3)
    assert validation_cost(vit, 10, 6, use_ema=False, accumulate_steps=1) == pytest.approx(10 / 3)


# ---- the clock -------------------------------------------------------------------------------------------------------

def clock_of(*seconds):
    clock = Clock()
    for value in seconds:
        clock.add(value)
    return clock


def test_the_first_update_is_not_typical():
    clock = clock_of(9.)
    assert clock.seconds_left(make(), 1) is None and not clock.ready
    clock = clock_of(9., 2., 2.)
    assert clock.ready and clock.update_seconds == pytest.approx(2.)


def test_recent_updates_count_more():
    clock = clock_of(1., *[1.] * 100, *[3.] * 90)
    assert clock.update_seconds == pytest.approx(2.8)


@pytest.mark.parametrize('before', [2, 3, 30, 300])
def test_a_pause_of_the_machine_is_not_the_pace(before):
    """Whenever it comes, and should there be two of them."""
    clock = clock_of(*[0.1] * before, 60.)
    assert clock.update_seconds < 0.6 if before == 2 else clock.update_seconds < 0.4
    for _ in range(60):
        clock.add(0.1)
    assert clock.update_seconds < 0.12
    clock.add(60.)
    assert clock.update_seconds < 0.13


def test_what_is_slow_again_and_again_is_the_pace():
    """The first of every twenty updates takes as long as all others."""
    clock = clock_of(1., *[2., *[0.1] * 19] * 5)
    assert clock.update_seconds == pytest.approx(0.195)


def test_a_pause_in_a_validation_is_not_what_others_take():
    plan = make(validation=3.)
    clock = clock_of(2., 2., 2.)
    clock.add_validation(600.)
    assert clock.validation_seconds(plan) == 60, 'ten times what was expected'
    clock.add_validation(7.)
    assert clock.validation_seconds(plan) == 7
    clock.add_validation(8.)
    clock.add_validation(600.)
    assert clock.validation_seconds(plan) == 8


@pytest.mark.parametrize('at', [60, 120, 300, 500])
def test_the_schedule_loses_what_a_pause_took_and_nothing_else(monkeypatch, at):
    """Ten minutes with updates of a tenth of a second, one of which takes a minute."""
    now = 0.
    monkeypatch.setattr(run_length, 'time', SimpleNamespace(perf_counter=lambda: now))
    clock = Clock()
    plan = make(updates=10 ** 4, per_epoch=1000, validation=0.)
    for _ in range(5):
        clock.add(0.1)
    run_length.revise(plan, 10, clock, 0)
    revised = 0.
    number = 0
    shares = {}
    while number < plan.updates:
        number += 1
        seconds = 0.1 if not shares or now < at or max(shares) > at + 60 else 60.
        now += seconds
        clock.add(seconds)
        if now - revised > 12:
            revised = now
            run_length.revise(plan, 10, clock, number)
        shares[now] = plan.share(number)
    before = at / 600
    for later, share in shares.items():
        if later < at:
            assert share == pytest.approx(later / 600, abs=0.01)
        elif later > at + 60:
            assert share == pytest.approx(before + (1 - before) * (later - at - 60) / (600 - at - 60), abs=0.02)
    assert now == pytest.approx(600, rel=0.01)


def test_what_is_left():
    """100 updates of 2 s, a validation every 20: each as long as 3 updates, later 7 s; the run ends with one."""
    plan = make(every=2, validation=3.)
    clock = clock_of(2., 2.)
    assert clock.seconds_left(plan, 0) == pytest.approx(200 + 5 * 6)
    clock.add_validation(7.)
    assert clock.seconds_left(plan, 0) == pytest.approx(200 + 5 * 7)
    assert clock.seconds_left(plan, 50) == pytest.approx(100 + 2.5 * 7)
    assert clock.seconds_left(plan, 100) == 0
    plan.end_after(104)
    assert clock.seconds_left(plan, 64) == pytest.approx(40 * 2 + 2 * 7 + 7)
    assert clock.updates_in(40 * 2 + 2 * 7 + 7, plan) == 40


def test_the_time_before_an_interruption_counts():
    clock = Clock(elapsed=100.)
    time.sleep(0.01)
    assert 100 < clock.elapsed < 130


def test_format_duration():
    assert [format_duration(s) for s in (None, 9.6, 75, 3725)] == ['?', '10 s', '1 min 15 s', '1 h 02 min']
