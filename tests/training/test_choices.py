"""common/training/choices.py: what 'auto' becomes, and that it says why."""
import math

import pytest
import torch
from helpers import TINY, configure, prepare

from common.runtime.errors import UserError
from common.training import choices, run_length
from common.training.choices import choose_settings
from common.training.setup import Provenance


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """Enough of it, whatever the machine."""
    monkeypatch.setattr(choices, 'largest_batch', lambda spec, demand: demand.batch_size)


def choose(source, images=100, saved=None, own_side=math.inf, **changes):
    cfg = choices.check_settings(configure(**{'model_kwargs': {}, 'optimizer': 'adamw', 'lr': 'auto', **changes}))
    return cfg, choose_settings(cfg, Provenance(source), images, 2, saved, own_side)


@pytest.mark.parametrize('model, source, pictures, optimizer, lr, why', [
    ('volo_d1', 'scratch', 1000, 'muon', 6e-4, 'training from scratch on 1000 images or more'),
    ('volo_d1', 'scratch', 999, 'adamw', 1e-4, '999 training images are fewer than 1000'),
    ('volo_d1', 'out/best.pth', 1000, 'adamw', 1e-4, 'the weights are trained already'),
    ('resnet18', 'scratch', 1000, 'adamw', 1e-4, 'resnet18 is no VOLO')])
def test_muon_is_for_networks_that_know_nothing(capsys, model, source, pictures, optimizer, lr, why):
    cfg, found = choose(source, pictures, model=model, optimizer='auto', batch_size=16)
    assert vars(found) == {**vars(cfg), 'OPTIMIZER': optimizer, 'LR': lr}
    assert f"OPTIMIZER = 'auto': {optimizer}, {why}\n" in capsys.readouterr().out


@pytest.mark.parametrize('mixed_speed, faster', [(90., False), (150., True)])
def test_precision_is_tried_for_networks_of_timm(capsys, monkeypatch, mixed_speed, faster):
    monkeypatch.setattr(choices, 'choose_amp_dtype', lambda device: torch.bfloat16)
    monkeypatch.setattr(choices, 'training_speed', lambda cfg, *sizes: mixed_speed if cfg.USE_AMP else 100.)
    _, found = choose('scratch', model='resnet18', use_amp='auto')
    assert found.USE_AMP is faster
    out = capsys.readouterr().out
    assert f"USE_AMP = 'auto': {faster}, mixed precision is {mixed_speed / 100} times as fast" in out


@pytest.mark.parametrize('dtype, use_amp', [(torch.bfloat16, True), (None, False)])
def test_a_volo_is_mixed_wherever_the_processor_can(monkeypatch, dtype, use_amp):
    monkeypatch.setattr(choices, 'choose_amp_dtype', lambda device: dtype)
    monkeypatch.setattr(choices, 'training_speed', None)
    assert choose('scratch', use_amp='auto')[1].USE_AMP is use_amp


@pytest.mark.parametrize('pictures, batch', [(1_000, 128), (999, 32), (32, 32), (31, 30), (1, 2)])
def test_muon_has_larger_batches(pictures, batch):
    cfg, found = choose('scratch', pictures, optimizer='muon', batch_size='auto')
    assert vars(found) == {**vars(cfg), 'BATCH_SIZE': batch, 'LR': 6e-4 * (batch / 16) ** 0.5}


@pytest.mark.parametrize('img_size, largest', [(64, (64, 64)), ('auto', (224, 224))])
def test_batches_are_smaller_where_memory_is_short(capsys, monkeypatch, img_size, largest):
    asked = []
    monkeypatch.setattr(choices, 'largest_batch', lambda spec, demand: asked.append((spec, demand)) or 4)
    _, found = choose('scratch', batch_size='auto', img_size=img_size)
    assert (found.BATCH_SIZE, found.LR) == (4, 1e-4 / 2)
    [(spec, demand)] = asked
    assert spec.img_size == largest and spec.classes == 2 and demand.batch_size == 16
    assert "BATCH_SIZE = 'auto': 4, 100 training images are fewer than 10000, and 16 need too much of the free " \
           'memory\n' in capsys.readouterr().out


def test_small_images_leave_memory_for_the_batch(monkeypatch):
    """So few minutes are enough for images of 64 pixels, of which 16 fit, as of those that try the speed."""
    monkeypatch.setattr(choices, 'largest_batch',
                        lambda spec, demand: 16 if spec.img_size[0] <= choices.SPEED_SIDE else 2)
    monkeypatch.setattr(choices, 'training_speed', lambda cfg, images, classes: 1e3)
    _, found = choose('scratch', batch_size='auto', img_size='auto', time_budget=1)
    assert (found.IMG_SIZE, found.BATCH_SIZE, found.LR) == ((64, 64), 16, 1e-4)


@pytest.mark.parametrize('pictures, accumulate, batch, lr', [(9_999, 1, 16, 1e-4), (10_000, 1, 64, 2e-4),
                                                            (100, 4, 16, 2e-4), (9, 1, 8, 1e-4 / 2 ** 0.5)])
def test_batch_and_learning_rate_go_together(capsys, pictures, accumulate, batch, lr):
    cfg, found = choose('scratch', pictures, batch_size='auto', accumulate_steps=accumulate)
    assert vars(found) == {**vars(cfg), 'BATCH_SIZE': batch, 'LR': lr}
    said = capsys.readouterr().out
    assert f"BATCH_SIZE = 'auto': {batch}, {pictures} training images" in said
    assert f"LR = 'auto': {lr:.3g}, the tutorial's 1e-4" in said and f'√({batch * accumulate}/16)' in said


@pytest.mark.parametrize('model, source, lr', [
    ('resnet18', 'out/best.pth', 3e-4), ('resnet18', 'scratch', 1e-4), ('volo_d1', 'out/best.pth', 1e-4)])
def test_trained_networks_of_timm_learn_faster(capsys, model, source, lr):
    _, found = choose(source, model=model, batch_size=16)
    assert lr == found.LR
    said = "LR = 'auto': 0.0003, the 3e-4 of trained networks of timm for 16 images"
    assert (said in capsys.readouterr().out) == (lr == 3e-4)


@pytest.mark.parametrize('budget, source, model, words', [
    ('none', 'scratch', 'volo_d1', 'as published'), (1, 'out/best.pth', 'volo_d1', 'the weights are trained already'),
    (1, 'scratch', 'test_vit', 'as published')])
def test_images_are_of_the_usual_size_where_nothing_asks_for_less(capsys, budget, source, model, words):
    _, found = choose(source, img_size='auto', time_budget=budget, model=model)
    assert found.IMG_SIZE == (224, 224) and f"IMG_SIZE = 'auto': (224, 224), {words}\n" in capsys.readouterr().out


def test_images_are_as_large_as_the_time_allows(capsys, monkeypatch):
    """However fast the machine, so many images should be seen; more of them where there are more."""
    monkeypatch.setattr(choices, 'training_speed', lambda cfg, images, classes: 1e4 * speed)
    sizes = {}
    for speed in (0.1, 3, 10, 30, 1000):
        sizes[speed] = [choose('scratch', pictures, img_size='auto', time_budget=10)[1].IMG_SIZE[0]
                        for pictures in (100, 10_000)]
    few, many = ([found[index] for found in sizes.values()] for index in range(2))
    assert few[0] == 64 and few[-1] == 224 and few == sorted(few) and len(set(few)) > 2
    assert all(one >= other for one, other in zip(few, many, strict=True)) and few != many
    out = capsys.readouterr().out
    assert 'so that 10 minutes are enough for about 20000 images' in out and 'about 176000 images' in out
    assert 'the smallest, and 10 minutes are enough for about 117 images only: from scratch 1707 would be better' in out


def test_other_networks_get_multiples_of_32(monkeypatch):
    monkeypatch.setattr(choices, 'training_speed', lambda cfg, images, classes: 3e5)
    for model, of_small_images, in_short_time in (('volo_d1', 80, 80), ('resnet18', 96, 64)):
        _, found = choose('scratch', own_side=47, img_size='auto', model=model)
        assert (of_small_images, of_small_images) == found.IMG_SIZE
        _, found = choose('scratch', img_size='auto', model=model, time_budget=10)
        assert (in_short_time, in_short_time) == found.IMG_SIZE


@pytest.mark.parametrize('own_side, budget, source, size', [
    (32, 'none', 'scratch', 48), (47, 'none', 'scratch', 80), (20, 1, 'scratch', 32), (149, 'none', 'scratch', 224),
    (60, 1, 'scratch', 64), (60, 1000, 'scratch', 96), (32, 'none', 'out/best.pth', 224)])
def test_small_images_are_not_enlarged_much(capsys, monkeypatch, own_side, budget, source, size):
    monkeypatch.setattr(choices, 'training_speed', lambda cfg, images, classes: 1e6)
    _, found = choose(source, own_side=own_side, img_size='auto', time_budget=budget)
    assert (size, size) == found.IMG_SIZE
    said = f"IMG_SIZE = 'auto': ({size}, {size}), since the shorter side of the images has {own_side} pixels\n"
    assert (said in capsys.readouterr().out) == (size not in (64, 224))


@pytest.mark.parametrize('changes, passes, share', [
    ({'epochs': 30}, 30, 0.3), ({'epochs': 300}, 300, 1),
    ({'time_budget': 10, 'img_size': 64}, 0.8 * 600 * 1e5 / 64 / 64 / 500, 0.234)])
def test_augmentation_grows_with_the_passes_over_the_training_set(capsys, monkeypatch, changes, passes, share):
    monkeypatch.setattr(choices, 'training_speed', lambda cfg, images, classes: 1e5)
    _, found = choose('scratch', 500, augmentation='auto', **changes)
    assert pytest.approx(share, rel=0.01) == found.AUGMENTATION
    assert f"AUGMENTATION = 'auto': {share:.3g}, about {passes:.3g} passes" in capsys.readouterr().out


def test_the_speed_is_measured_once_and_leaves_no_trace(data, monkeypatch):
    calls, before = [], torch.get_rng_state()
    real = choices.training_speed
    monkeypatch.setattr(choices, 'training_speed', lambda *args: calls.append(real(*args)) or calls[-1])
    monkeypatch.setattr(run_length, 'REHEARSAL_SECONDS', 0)
    _, found = choose('scratch', model_kwargs=TINY, img_size='auto', augmentation='auto', time_budget=0.05)
    assert len(calls) == 1 and calls[0] > 0 and found.IMG_SIZE == (64, 64) and 0 < found.AUGMENTATION <= 1
    assert torch.equal(torch.get_rng_state(), before)


def test_the_speed_is_that_of_the_images_of_the_run(monkeypatch):
    """Where their size is not chosen yet, of images that nearly every machine can try."""
    tried = []

    def rehearse(clock, model, optimizer, images, targets, accumulate_steps):
        tried.append((tuple(images.shape), tuple(targets.shape), accumulate_steps))
        for _ in range(2):
            clock.add(2.)

    monkeypatch.setattr(choices, 'rehearse', rehearse)
    for img_size, side in (('auto', choices.SPEED_SIDE), ('64', 64)):
        changes = {'img_size': img_size, 'accumulate_steps': 3, 'optimizer': 'adamw'}
        cfg = choices.check_settings(configure(**changes))
        assert choices.training_speed(cfg, 100, 2) == pytest.approx(8 * 3 * side * side / 2)
        assert tried.pop() == ((8, 3, side, side), (8, 2), 3)


@pytest.mark.parametrize('model, side', [('test_vit', 224), ('test_resnet', 128)])
def test_precision_is_tried_with_images_that_the_network_takes(monkeypatch, model, side):
    """A network of one size is built for that of the run; many others halve their images five times."""
    tried = []

    def rehearse(clock, model, optimizer, images, *others):
        tried.append(images.shape[2:])
        for _ in range(2):
            clock.add(2.)

    monkeypatch.setattr(choices, 'rehearse', rehearse)
    monkeypatch.setattr(choices, 'choose_amp_dtype', lambda device: torch.bfloat16)
    choose('scratch', model=model, img_size='auto', use_amp='auto', batch_size=8)
    assert tried == [(side, side)] * 2


@pytest.mark.parametrize('changes, words', [
    ({'model': 'test_vit', 'img_size': 40}, r'test_vit takes no images of \(40, 40\) pixels'),
    ({'model': 'test_resnet', 'batch_size': 1, 'mixup_prob': 0}, 'BATCH_SIZE = 1: too few for the BatchNorm')])
def test_what_cannot_be_tried_is_a_mistake_of_the_settings(monkeypatch, changes, words):
    monkeypatch.setattr(choices, 'choose_amp_dtype', lambda device: torch.bfloat16)
    with pytest.raises(UserError, match=words):
        choose('scratch', use_amp='auto', **changes)


def test_a_resumed_run_keeps_what_was_chosen(capsys):
    saved = {'settings': {'BATCH_SIZE': 4, 'LR': 0.3, 'IMG_SIZE': (96, 96), 'AUGMENTATION': 0.2}}
    cfg, found = choose('scratch', saved=saved, img_size='auto', batch_size='auto', augmentation='auto', time_budget=1)
    assert vars(found) == {**vars(cfg), **saved['settings']}
    assert capsys.readouterr().out.count(', as before') == 4


@pytest.mark.parametrize('before', [
    {'OPTIMIZER': 'nonsense'}, {'IMG_SIZE': (96, 100)}, {'IMG_SIZE': (2 ** 14, 2 ** 14)}, {'BATCH_SIZE': 0}, {'LR': 0.},
    {'LR': 'fast'}, {'AUGMENTATION': 2.}])
def test_what_a_last_pth_brings_is_looked_at_like_a_setting(monkeypatch, before):
    """Nothing is built or computed for it."""
    monkeypatch.setattr(choices, 'network_spec', None)
    good = {'BATCH_SIZE': 4, 'LR': 0.3, 'IMG_SIZE': (96, 96), 'AUGMENTATION': 0.2, 'OPTIMIZER': 'adamw'}
    auto = dict.fromkeys(('img_size', 'batch_size', 'augmentation', 'optimizer'), 'auto')
    choose('scratch', saved={'settings': good}, **auto)
    with pytest.raises(UserError, match=f'^{next(iter(before))} = '):
        choose('scratch', saved={'settings': {**good, **before}}, **auto)


@pytest.mark.parametrize('img_size, crop', [('16384,2048', 'None'), ('4096', '0.5'), ('32768,16', 'None')])
def test_images_that_no_later_step_would_take_are_refused_before_training(img_size, crop):
    with pytest.raises(UserError, match='IMG_SIZE = .* at most 16,777,216 pixels'):
        prepare(img_size=img_size, crop=crop)
    prepare(img_size='4096', crop='None')


def test_numbers_stay_as_they_are(capsys):
    cfg = prepare(optimizer='lion', lr=0.5, augmentation=0.3)
    assert choose_settings(cfg, Provenance('scratch'), 100, 2, None) == cfg and not capsys.readouterr().out
