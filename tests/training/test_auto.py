"""common/training/auto.py: what 'auto' becomes, and that it says why."""
import pytest
import torch
from helpers import TINY, build, configure, prepare

import train
from common.runtime.errors import UserError
from common.training import choices as auto
from common.training import schedule as budget
from common.training.choices import choose_settings
from common.training.setup import Provenance

MEAN = 3 / (32 ** -2 + 48 ** -2 + 64 ** -2)  # pixels of an image in a run from 32 to 64 pixels


class TrainSet(list):
    """As much of a data set as the choices look at."""
    classes = ['a', 'b']


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """Enough of it, whatever the machine."""
    monkeypatch.setattr(auto, 'largest_batch', lambda cfg, classes: cfg.BATCH_SIZE)


def choose(source, pictures=100, saved=None, **changes):
    cfg = train.resolved(configure(
        **{'model_kwargs': {}, 'optimizer': 'adamw', 'lr': 'auto', 'start_size': 'auto', **changes}))
    return cfg, choose_settings(cfg, Provenance(source), TrainSet(range(pictures)), saved)


@pytest.mark.parametrize('model, source, start', [
    ('volo_d1', 'scratch', 0.5), ('volo_d1', 'out/best.pth', 1.), ('resnet18', 'scratch', 0.5),
    ('test_vit', 'scratch', 1.)])
def test_the_first_images_are_small_without_weights(capsys, model, source, start):
    cfg, found = choose(source, model=model, lr=0.1)
    assert vars(found) == {**vars(cfg), 'START_SIZE': start}
    how = 'training from scratch' if source == 'scratch' else 'the weights are trained already'
    if model == 'test_vit':
        how = 'test_vit takes images of one size'
    assert f"START_SIZE = 'auto': {start:g}, {how}\n" in capsys.readouterr().out


@pytest.mark.parametrize('model, source, pictures, optimizer, lr, why', [
    ('volo_d1', 'scratch', 1000, 'muon', 6e-4, 'training from scratch on 1000 pictures or more'),
    ('volo_d1', 'scratch', 999, 'adamw', 1e-4, '999 training pictures are fewer than 1000'),
    ('volo_d1', 'out/best.pth', 1000, 'adamw', 1e-4, 'the weights are trained already'),
    ('resnet18', 'scratch', 1000, 'adamw', 1e-4, 'resnet18 is no VOLO')])
def test_muon_is_for_networks_that_know_nothing(capsys, model, source, pictures, optimizer, lr, why):
    cfg, found = choose(source, pictures, model=model, optimizer='auto', batch_size=16, start_size=1)
    assert vars(found) == {**vars(cfg), 'OPTIMIZER': optimizer, 'LR': lr}
    assert f"OPTIMIZER = 'auto': {optimizer}, {why}\n" in capsys.readouterr().out


@pytest.mark.parametrize('pictures, batch', [(1_000, 128), (999, 32), (32, 32), (31, 30), (1, 2)])
def test_muon_has_larger_batches(pictures, batch):
    cfg, found = choose('scratch', pictures, optimizer='muon', batch_size='auto', start_size=1)
    assert vars(found) == {**vars(cfg), 'BATCH_SIZE': batch, 'LR': 6e-4 * (batch / 16) ** 0.5}


@pytest.mark.parametrize('img_size, largest', [(64, (64, 64)), ('auto', (224, 224))])
def test_batches_are_smaller_where_memory_is_short(capsys, monkeypatch, img_size, largest):
    asked = []
    monkeypatch.setattr(auto, 'largest_batch', lambda cfg, classes: asked.append((cfg, classes)) or 4)
    cfg, found = choose('scratch', batch_size='auto', img_size=img_size, start_size=1)
    assert (found.BATCH_SIZE, found.LR) == (4, 1e-4 / 2) and len(asked) == 1 and asked[0][1] == ['a', 'b']
    assert vars(asked[0][0]) == {**vars(cfg), 'BATCH_SIZE': 16, 'IMG_SIZE': largest}
    assert "BATCH_SIZE = 'auto': 4, 100 training pictures are fewer than 10000, and 16 need too much of the free " \
           'memory\n' in capsys.readouterr().out


def test_small_images_leave_memory_for_the_batch(monkeypatch):
    """So few minutes are enough for images of 64 pixels, of which 16 fit, as of the 112 that try the speed."""
    tried = []
    monkeypatch.setattr(auto, 'largest_batch', lambda cfg, classes: 16 if cfg.IMG_SIZE[0] <= 112 else 2)
    monkeypatch.setattr(auto, 'training_speed', lambda cfg, classes: tried.append(cfg) or 1e3)
    _, found = choose('scratch', batch_size='auto', img_size='auto', time_budget=1)
    assert (found.IMG_SIZE, found.BATCH_SIZE, found.LR) == ((64, 64), 16, 1e-4)
    assert [(cfg.IMG_SIZE, cfg.BATCH_SIZE) for cfg in tried] == [((112, 112), 16)]


@pytest.mark.parametrize('pictures, accumulate, batch, lr', [(9_999, 1, 16, 1e-4), (10_000, 1, 64, 2e-4),
                                                            (100, 4, 16, 2e-4), (9, 1, 8, 1e-4 / 2 ** 0.5)])
def test_batch_and_learning_rate_go_together(capsys, pictures, accumulate, batch, lr):
    cfg, found = choose('scratch', pictures, batch_size='auto', accumulate_steps=accumulate, start_size=1)
    assert vars(found) == {**vars(cfg), 'BATCH_SIZE': batch, 'LR': lr}
    said = capsys.readouterr().out
    assert f"BATCH_SIZE = 'auto': {batch}, {pictures} training pictures" in said
    assert f"LR = 'auto': {lr:.3g}, the tutorial's 1e-4" in said and f'√({batch * accumulate}/16)' in said


@pytest.mark.parametrize('budget, source, model, words', [
    ('none', 'scratch', 'volo_d1', 'as published'), (1, 'out/best.pth', 'volo_d1', 'the weights are trained already'),
    (1, 'scratch', 'test_vit', 'as published')])
def test_images_are_of_the_usual_size_where_nothing_asks_for_less(capsys, budget, source, model, words):
    _, found = choose(source, img_size='auto', time_budget=budget, model=model)
    assert found.IMG_SIZE == (224, 224) and f"IMG_SIZE = 'auto': (224, 224), {words}\n" in capsys.readouterr().out


def test_images_are_as_large_as_the_time_allows(capsys, monkeypatch):
    """However fast the machine, so many images should be seen; more of them where there are more pictures."""
    monkeypatch.setattr(auto, 'training_speed', lambda cfg, classes: 1e4 * speed)
    sizes = {}
    for speed in (0.1, 3, 10, 30, 1000):
        sizes[speed] = [choose('scratch', pictures, img_size='auto', time_budget=10)[1].IMG_SIZE[0]
                        for pictures in (100, 10_000)]
    few, many = ([found[index] for found in sizes.values()] for index in range(2))
    assert few[0] == 64 and few[-1] == 224 and few == sorted(few) and len(set(few)) > 2
    assert all(one >= other for one, other in zip(few, many, strict=True)) and few != many
    out = capsys.readouterr().out
    assert 'so that 10 minutes are enough for about 15000 images' in out and 'about 234000 images' in out


@pytest.mark.parametrize('changes, passes, share', [
    ({'epochs': 30}, 30, 0.3), ({'epochs': 300}, 300, 1),
    ({'time_budget': 10, 'img_size': 64, 'start_size': 1}, 0.8 * 600 * 1e5 / 64 / 64 / 500, 0.234),
    ({'time_budget': 10, 'img_size': 64, 'start_size': 0.5}, 0.8 * 600 * 1e5 / 500 / MEAN, 0.53)])
def test_augmentation_grows_with_the_passes_over_the_training_set(capsys, monkeypatch, changes, passes, share):
    monkeypatch.setattr(auto, 'training_speed', lambda cfg, classes: 1e5)
    _, found = choose('scratch', 500, augmentation='auto', **changes)
    assert pytest.approx(share, rel=0.01) == found.AUGMENTATION
    assert f"AUGMENTATION = 'auto': {share:.3g}, about {passes:.3g} passes" in capsys.readouterr().out


def test_the_speed_is_measured_once_and_leaves_no_trace(data, monkeypatch):
    calls, before = [], torch.get_rng_state()
    real = auto.training_speed
    monkeypatch.setattr(auto, 'training_speed', lambda *args: calls.append(real(*args)) or calls[-1])
    monkeypatch.setattr(budget, 'SECONDS', 0)
    cfg, found = choose('scratch', model_kwargs=TINY, img_size='auto', augmentation='auto', time_budget=0.05)
    assert len(calls) == 1 and calls[0] > 0 and found.IMG_SIZE == (64, 64) and 0 < found.AUGMENTATION <= 1
    assert torch.equal(torch.get_rng_state(), before)


def test_a_resumed_run_keeps_what_was_chosen(capsys):
    saved = {'settings': {'BATCH_SIZE': 4, 'LR': 0.3, 'START_SIZE': 0.75, 'IMG_SIZE': (96, 96), 'AUGMENTATION': 0.2}}
    cfg, found = choose('scratch', saved=saved, img_size='auto', batch_size='auto', augmentation='auto', time_budget=1)
    assert vars(found) == {**vars(cfg), **saved['settings']}
    assert capsys.readouterr().out.count(', as before') == 5


def test_numbers_stay_as_they_are(capsys):
    cfg = prepare(optimizer='lion', lr=0.5, start_size=0.75, augmentation=0.3)
    assert choose_settings(cfg, Provenance('scratch'), TrainSet(), None) == cfg and not capsys.readouterr().out


def test_a_network_that_takes_no_small_images(data):
    with pytest.raises(UserError, match=r'inception_v3 takes no pictures of \(64, 64\).*set START_SIZE, now 0.5, to 1'):
        build(model='inception_v3', model_kwargs={}, img_size=128, start_size=0.5)
