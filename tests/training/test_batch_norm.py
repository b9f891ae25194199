"""BatchNorm's statistics are those of training pictures as validation has them, whatever training left behind."""
import pytest
import torch
from helpers import TINY, build, draw_folder, measure_norms, read_json, run
from torch import nn

import train
from common.data import loaders

AUGMENTED = {'view': 'above', 'blur': 1, 'jitter': 0.9, 'cutout': 1, 'batch_size': 4, 'use_amp': 'false'}


@pytest.fixture(autouse=True)
def folders(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train.devices, 'choose_device', lambda use_gpu: torch.device('cpu'))
    draw_folder(tmp_path / 'data' / 'train', {'a': 9, 'b': 8}, size=(32, 32))
    draw_folder(tmp_path / 'data' / 'val', {'a': 2, 'b': 2}, size=(32, 32), seed=1)


def plain_images(data):
    """All training pictures as validation would have them, (N, 3, H, W)."""
    dataset = data.train.dataset
    return torch.stack([data.val.dataset.transform(dataset.loader(path)) for path, _ in dataset.samples])


def norms_of(net):
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def statistics(net):
    return [buffer.clone() for norm in norms_of(net) for buffer in (norm.running_mean, norm.running_var)]


def measured(**changes):
    """(data, state) of a run before its first update, in which BatchNorm was measured; the averaged weights differ."""
    cfg, data, state = build(**{**AUGMENTED, **changes})
    with torch.no_grad():
        for parameter in state.ema.module.parameters():
            parameter.mul_(1.5)
    state.net.train()
    measure_norms(state, data.plain)
    return data, state


def test_they_are_those_of_pictures_without_augmentation():
    """The first layer's, in the raw and in the averaged weights; one batch of 16 of the 17 pictures."""
    data, state = measured(batch_size=16)
    (batch, _), = data.plain
    wanted = plain_images(data)
    assert all(any(torch.equal(image, other) for other in wanted) for image in batch) and len(batch) == 16
    for net in (state.net, state.ema.module):
        conv, norm = net.patch_embed.conv[:2]
        with torch.no_grad():
            responses = conv(batch).transpose(0, 1).flatten(1)
        torch.testing.assert_close(norm.running_mean, responses.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, responses.var(1), rtol=1e-4, atol=1e-5)
    assert not torch.equal(statistics(state.net)[1], statistics(state.ema.module)[1])


def test_all_batches_count_alike(monkeypatch):
    monkeypatch.setattr(loaders, 'PLAIN_IMAGES', 12)
    data, state = measured()
    batches = [images for images, _ in data.plain]
    assert len(batches) == 3
    conv, norm = state.net.patch_embed.conv[:2]
    with torch.no_grad():
        means = torch.stack([conv(images).mean((0, 2, 3)) for images in batches])
    torch.testing.assert_close(norm.running_mean, means.mean(0), rtol=1e-4, atol=1e-5)


def test_what_was_there_before_does_not_count():
    data, state = measured()
    before = statistics(state.net)
    for norm in norms_of(state.net):
        norm.running_mean.fill_(float('nan'))
        norm.running_var.fill_(7)
    state.net.train()
    measure_norms(state, data.plain)
    for one, other in zip(before, statistics(state.net), strict=True):
        assert torch.equal(one, other)


def test_all_layers_of_a_network_of_timm_have_them():
    """As if training had left NaN in every layer."""
    cfg, data, state = build(**AUGMENTED, model='resnet18', model_kwargs={}, img_size=64)
    for net in (state.net, state.ema.module):
        for norm in norms_of(net):
            norm.running_mean.fill_(float('nan'))
    measure_norms(state, data.plain)
    for net in (state.net, state.ema.module):
        assert len(norms_of(net)) == 20 and all(buffer.isfinite().all() for buffer in statistics(net))
        assert not any(module.training for module in net.modules())
        assert {norm.momentum for norm in norms_of(net)} == {0.1}


@pytest.mark.parametrize('model,kwargs,batches', [
    ('volo_d1', TINY, 1 + 4 / 6), ('resnet18', {}, 1 + 4), ('vit_tiny_patch16_224', {}, 1)])
def test_validation_is_planned_with_it(model, kwargs, batches):
    """Besides the one batch of val: both kinds of weights through a network that has any, or a VOLO's stem."""
    _, _, state = build(**AUGMENTED, model=model, model_kwargs=kwargs)
    assert state.plan.validation == pytest.approx(batches * 2 / 3)


def test_training_does_not_notice():
    """Validations between epochs change no weight, and best.pth has the statistics that it was validated with."""
    changes = {**AUGMENTED, 'epochs': 3, 'batch_size': 8}
    run(**changes, output_dir='every')
    run(**changes, output_dir='once', validate_every=3)
    every, once = (torch.load(f'{name}/last.pth', weights_only=True) for name in ('every', 'once'))
    for key in ('state_dict', 'state_dict_ema'):
        for name, value in once[key].items():
            assert torch.equal(every[key][name], value), name
    best = torch.load('once/best.pth', weights_only=True)
    which = {'raw': 'state_dict', 'ema': 'state_dict_ema'}[read_json('once/result.json')['best']['weights']]
    assert all(torch.equal(value, once[which][name]) for name, value in best['state_dict'].items())
