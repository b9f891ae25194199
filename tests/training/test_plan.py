"""common/training/plan.py: how long a run is, how large its images are, when it is validated."""
import math

import pytest
from helpers import prepare

from common.training.plan import Plan, make_plan, make_stages

STAGES = [(0.5, (32, 32)), (0.8, (48, 48)), (1., (64, 64))]


def make(updates=100, per_epoch=10, every=1):
    return Plan(updates, STAGES, per_epoch, every, validation=5.)


def test_the_stages_grow_to_the_whole_size_with_equal_compute():
    for size, start in (((64, 64), 0.5), ((224, 224), 0.5), ((96, 192), 0.25)):
        stages = make_stages(size, start)
        shares = [end - begin for (begin, _), (end, _) in zip([(0., None), *stages], stages, strict=False)]
        compute = [share * math.prod(side) for share, (_, side) in zip(shares, stages, strict=True)]
        assert len(stages) == 3 and stages[-1] == (pytest.approx(1.), size)
        assert compute == pytest.approx([compute[0]] * 3)
        assert all(side % 16 == 0 for _, sides in stages for side in sides)
    assert [size for _, size in make_stages((64, 64), 0.5)] == [(32, 32), (48, 48), (64, 64)]


def test_sizes_that_are_the_same_are_one_stage():
    assert make_stages((224, 224), 1.) == [(1., (224, 224))]
    assert [size for _, size in make_stages((32, 16), 0.5)] == [(16, 16), (32, 16)]


def test_each_update_has_its_image_size():
    plan = make()
    sizes = [plan.image_size(number)[0] for number in range(1, 101)]
    assert sizes == [32] * 50 + [48] * 30 + [64] * 20
    assert plan.to_come(0) == [((32, 32), 0.5), ((48, 48), pytest.approx(0.3)), ((64, 64), pytest.approx(0.2))]
    assert plan.to_come(90) == [((64, 64), pytest.approx(1.))] and plan.to_come(100) == []


def test_the_stages_have_the_same_compute():
    plan = make()
    found = [plan.compute_share(number) for number in (0, 25, 50, 65, 80, 90, 100, 101)]
    assert found == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1, 1])


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


@pytest.mark.parametrize('every, epochs', [(1, [0, 1, 2, 3, 4]), (2, [1, 3, 4]), (5, [4]), (9, [4])])
def test_validated_are_every_so_many_epochs_and_the_last(every, epochs):
    plan = make(updates=50, every=every)
    assert [epoch for epoch in range(5) if plan.validates(epoch)] == epochs


def test_auto_validates_for_a_fifth_of_the_time():
    """100 batches of training cost 100; 43 of validation, twice over with EMA, a third each."""
    for changes, expected in (({}, 2), ({'use_ema': 'false'}, 1), ({'start_size': 0.5}, 4)):
        cfg = prepare(img_size=64, validate_every='auto', **changes)
        assert make_plan(cfg, 100, 43).validate_every == expected
    cfg = prepare(img_size=64, epochs=7, accumulate_steps=3, validate_every=6)
    assert make_plan(cfg, 100, 43) == Plan(7 * 34, [(1., (64, 64))], 34, 6, pytest.approx(43 * 2 / 3 / 3))
