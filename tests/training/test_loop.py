"""The training loop beside one that is written out in the plainest terms, and every constant that it should heed."""
import copy
import math

import numpy as np
import pytest
import torch
from helpers import TINY, build, draw_folder, load, prepare, read_json, run
from PIL import Image
from timm.data.mixup import Mixup

import models
import train
from common.training import losses, mixup
from common.training.step import seed_batch
from models.layers import DropPath

PLAIN = {'view': 'none', 'blur': 0, 'jitter': 0, 'cutout': 0}  # no augmentation
CHANGES = {**PLAIN, 'epochs': 2, 'batch_size': 4, 'warmup': 0.5, 'lr': 2e-2, 'use_amp': 'false', 'weight_decay': 0.5,
           'clip_grad': 0.05, 'mixup_prob': 0.6, 'smoothing': 0.2, 'accumulate_steps': 2}
UPDATES = 3  # in an epoch of five batches of four pictures, two batches to an update


@pytest.fixture
def data(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / 'data' / 'train', {'a': 10, 'b': 10}, size=(32, 32))
    draw_folder(tmp_path / 'data' / 'val', {'a': 2, 'b': 2}, size=(32, 32), seed=1)
    return tmp_path / 'data'


@pytest.fixture
def first_save(monkeypatch):
    """What the first checkpoint of a run holds: the weights before the first update."""
    saved, real = {}, torch.save

    def save(content, file):
        if not saved and 'optimizer' in content:
            saved.update(copy.deepcopy(content))
        return real(content, file)

    monkeypatch.setattr(torch, 'save', save)
    return saved


def learning_rate(update):
    """After so many updates: a linear warm-up over the first epoch, then half a cosine over the second."""
    if update < UPDATES:
        return 1e-6 + (2e-2 - 1e-6) * update / UPDATES
    return 1e-6 + 0.5 * (2e-2 - 1e-6) * (1 + math.cos(math.pi * (update - UPDATES) / UPDATES))


def train_plainly(start, batches, kwargs):
    """(weights, their average, gradient norms of each epoch) after two epochs as a textbook has them."""
    net = models.create_model('volo_d1', num_classes=2, img_size=32, return_dense=True, **{**TINY, **kwargs}).train()
    net.load_state_dict(start['state_dict'])
    average = {name: value.clone() for name, value in net.state_dict().items()}
    mixed = Mixup(0.8, 1., prob=0.6, switch_prob=0.5, label_smoothing=0.2, num_classes=2)
    free = [p for name, p in net.named_parameters() if p.ndim == 1 or name in ('pos_embed', 'cls_token')]
    rest = [p for name, p in net.named_parameters() if p.ndim > 1 and name not in ('pos_embed', 'cls_token')]
    optimizer = torch.optim.AdamW([{'params': rest, 'weight_decay': 0.5}, {'params': free, 'weight_decay': 0}],
                                  betas=(0.8, 0.999))
    update, norms = 0, ([], [])
    for epoch in range(2):
        found = list(batches(epoch))
        for group in (found[:2], found[2:4], found[4:]):
            for batch, (images, labels) in enumerate(group):
                seed_batch(42, update + 1, batch)
                images, targets = mixed(images, labels)
                class_logits, token_logits, _ = net(images)
                logits = class_logits + 0.5 * token_logits.max(dim=1).values
                loss = -(targets * logits.log_softmax(1)).sum(1).mean()
                (loss / len(group)).backward()
            norm = torch.stack([p.grad.pow(2).sum() for p in net.parameters()]).sum().sqrt()
            norms[epoch].append(norm.item())
            for parameter in net.parameters():
                parameter.grad *= min(1, 0.05 / (norm + 1e-6))
            for parameters in optimizer.param_groups:
                parameters['lr'] = learning_rate(update)
            optimizer.step()
            optimizer.zero_grad()
            update += 1
            decay = min(0.9998, 1 - 1 / (1 + (update - 1) / 50))
            for name, value in net.state_dict().items():
                average[name] = decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
    return net.state_dict(), average, norms


def with_statistics(weights, batches):
    """The weights with BatchNorm's mean and variance of these batches, the average over them."""
    net = models.create_model('volo_d1', num_classes=2, img_size=32, return_dense=True, **TINY).eval()
    net.load_state_dict(weights)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    with torch.no_grad():
        for images, _ in batches:
            net(images)
    return net.state_dict()


def test_the_loop_does_what_the_plain_one_does(data, first_save, monkeypatch):
    """Warm-up, cosine, AdamW with decay where it belongs, clipping, accumulation, Mixup, smoothing, EMA."""
    monkeypatch.setattr(train.devices, 'choose_device', lambda use_gpu: torch.device('cpu'))  # as the plain one
    run(**CHANGES)
    loaded = load(prepare(**CHANGES))

    def batches(epoch):
        loaded.train.batch_sampler.begin(epoch)
        return loaded.train

    raw, average, norms = train_plainly(first_save, batches, {})
    raw, average = (with_statistics(weights, loaded.plain) for weights in (raw, average))
    last = torch.load('out/last.pth', weights_only=True)
    for name, value in raw.items():
        torch.testing.assert_close(last['state_dict'][name], value, rtol=1e-3, atol=2e-4, msg=name)
        torch.testing.assert_close(last['state_dict_ema'][name], average[name], rtol=1e-3, atol=2e-4, msg=name)
    for row, found in zip(last['history'], norms, strict=True):
        assert min(found) > 0.05  # each was clipped
        assert row['grad_norm'] == pytest.approx(np.mean(found), rel=1e-3)
    assert last['history'][1]['lr'] == pytest.approx(learning_rate(2 * UPDATES))


def training_sample(data, **changes):
    """The first training picture as the network gets it, (3, 32, 32) in [0, 1]."""
    cfg = prepare(**{**PLAIN, 'normalisation': '((0, 0, 0), (1, 1, 1))', 'augmentation': 1, **changes})
    return load(cfg).train.dataset[0, 5][0]


def test_every_augmentation_has_its_constant(data):
    plain = training_sample(data)
    for name, value in (('view', 'above'), ('jitter', 0.9)):
        changed = training_sample(data, **{name: value})
        assert not torch.equal(changed, plain), name
        assert torch.equal(changed, training_sample(data, **{name: value})), f'{name}: the seed of the image decides'
    variation = [(picture[:, :, 1:] - picture[:, :, :-1]).abs().mean() for picture in
                 (plain, training_sample(data, blur=1))]
    assert variation[1] < 0.8 * variation[0]
    box = (training_sample(data, cutout=1) != plain).any(0)
    assert 0.01 < box.float().mean() < 0.5 and box[box.any(1)][:, box.any(0)].float().mean() > 0.95
    assert torch.equal(training_sample(data, augmentation=0, jitter=0.9, blur=1, cutout=1), plain)


def test_a_view_says_how_images_are_turned(data):
    """An image of four colours shows whether it was mirrored and how far it was turned."""
    corners = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    Image.fromarray(corners).resize((32, 32), Image.Resampling.NEAREST).save(data / 'train' / 'a' / '000.png')
    expected = {'upright': {'as it is', 'mirrored'}, 'text': {'as it is'}, 'none': {'as it is'}}
    for view, found in expected.items():
        cfg = prepare(**{**PLAIN, 'normalisation': '((0, 0, 0), (1, 1, 1))', 'augmentation': 1, 'view': view})
        dataset = load(cfg).train.dataset
        samples = [dataset[0, seed][0][:, 8, 8].tolist() for seed in range(20)]  # in the middle of a quarter
        names = {(1., 0., 0.): 'as it is', (0., 1., 0.): 'mirrored'}
        assert {names[tuple(sample)] for sample in samples} == found
    cfg = prepare(**{**PLAIN, 'augmentation': 1, 'view': 'above', 'normalisation': '((0.25, 0.5, 0.75), (1, 1, 1))'})
    dataset = load(cfg).train.dataset
    samples = [dataset[0, seed][0] for seed in range(40)]
    assert len({tuple(sample[:, 8, 8].sign().tolist()) for sample in samples}) >= 4, 'all quarters come there'
    corner = torch.stack([sample[:, 0, 0] for sample in samples])
    assert (corner.abs() <= 1 / 255).all(1).any(), 'beyond its border there is the mean colour'


def test_mixing_is_timms_with_the_tutorials_settings(data, monkeypatch):
    made = []
    monkeypatch.setattr(mixup, 'Mixup', lambda **settings: made.append(settings))
    build(mixup_prob=0.7, smoothing=0.2)
    assert made == [{'mixup_alpha': 0.8, 'cutmix_alpha': 1., 'prob': 0.7, 'switch_prob': 0.5, 'mode': 'batch',
                     'label_smoothing': 0.2, 'num_classes': 2}]


@pytest.mark.parametrize('mixup_prob', [0, 1])
def test_the_network_gets_the_mixed_pictures_and_their_targets(data, monkeypatch, mixup_prob):
    """Mixed or not: what train.py hands to the network is what timm's Mixup made of the batch."""
    handed, mixed = [], []

    class Recorder(Mixup):
        def __call__(self, images, labels):
            out = super().__call__(images.clone(), labels)
            mixed.append(out)
            return out

    monkeypatch.setattr(mixup, 'Mixup', Recorder)
    monkeypatch.setattr(losses, 'choose_loss', lambda *arguments: lambda outputs, targets: handed.append(targets) or (
        losses.aux_loss(outputs, targets)))
    seen = []
    real = models.VOLO.forward
    monkeypatch.setattr(models.VOLO, 'forward', lambda net, x: seen.append(x) or real(net, x))
    run(**{**CHANGES, 'epochs': 1, 'warmup': 0, 'mixup_prob': mixup_prob, 'smoothing': 0.1})
    batches = [x for x in seen if type(x) is torch.Tensor and len(x) == 4][:5]  # the cost is of fake tensors
    if mixup_prob:
        assert len(mixed) == 5
        for (images, targets), batch, target in zip(mixed, batches, handed, strict=True):
            assert torch.equal(images, batch) and torch.equal(targets, target)
    else:
        assert not mixed
        for target in handed:
            assert set(target.flatten().tolist()) == {torch.tensor(0.05).item(), torch.tensor(0.95).item()}


def test_training_accuracy_leaves_out_mixtures(data, monkeypatch):
    """Half of each batch is mixed here; the network answers with the label of the unmixed ones and errs on the rest."""
    class Half:
        def __init__(self, *args, **kwargs):
            pass

        def __call__(self, images, labels):
            targets = torch.nn.functional.one_hot(labels, 2).float()
            targets[:2] = 0.5
            Half.labels = labels
            return images, targets

    def loss(outputs, targets):
        logits = torch.nn.functional.one_hot(Half.labels, 2).float()
        logits[:2] = logits[:2].flip(1)
        return logits + 0 * outputs[0], outputs[0].square().mean(1)

    monkeypatch.setattr(mixup, 'Mixup', Half)
    monkeypatch.setattr(losses, 'choose_loss', lambda *arguments: loss)
    run(**{**CHANGES, 'epochs': 1, 'warmup': 0})
    assert read_json('out/result.json')['last']['train_acc1'] == 100


def test_the_tokens_vote_unless_model_kwargs_says_no(data):
    for changes, loss, dense in (({}, losses.aux_loss, True),
                                 ({'model_kwargs': {**TINY, 'return_dense': False}}, losses.class_loss, False),
                                 ({'model_kwargs': {**TINY, 'return_mean': True}}, losses.class_loss, False),
                                 ({'token_label': 'true', 'mixup_prob': 0}, losses.token_loss, True),
                                 ({'model': 'test_vit', 'model_kwargs': {}}, losses.class_loss, None)):
        *_, built = build(**changes)
        assert built.model.loss is loss and getattr(built.net, 'return_dense', None) is dense


def test_stochastic_depth_has_its_constant(data):
    rates = [module.drop_prob for module in build(drop_path=0.3)[2].net.modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(0.3) and sum(rate > 0 for rate in rates) == 3


def test_clipping_can_be_switched_off(data, monkeypatch):
    limits, real = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(train, 'clip_grad_norm_',
                        lambda parameters, limit: limits.append(limit) or real(parameters, limit))
    for clip in (0, 2.5):
        run(**{**CHANGES, 'epochs': 1, 'warmup': 0, 'clip_grad': clip})
    assert limits == [math.inf] * UPDATES + [2.5] * UPDATES


def test_accumulated_batches_equal_a_large_one(data):
    """A network without BatchNorm, nothing random: two batches of 8 make the step that one of 16 makes."""
    common = {**PLAIN, 'model': 'test_vit', 'model_kwargs': {}, 'epochs': 1, 'mixup_prob': 0, 'use_amp': 'false',
              'lr': 1e-3}
    run(**common, batch_size=16, output_dir='large')
    run(**common, batch_size=8, accumulate_steps=2, output_dir='small')
    run(**common, batch_size=8, output_dir='other')
    large, small, other = (torch.load(f'{name}/last.pth', weights_only=True) for name in ('large', 'small', 'other'))
    for name, tensor in large['state_dict'].items():
        torch.testing.assert_close(small['state_dict'][name], tensor, rtol=0, atol=1e-4)
    assert large['optimizer']['state'][0]['step'] == small['optimizer']['state'][0]['step'] == 1
    assert other['optimizer']['state'][0]['step'] == 2
    assert small['history'][0]['grad_norm'] == pytest.approx(large['history'][0]['grad_norm'], rel=1e-3)


def test_the_last_group_of_an_epoch_may_be_smaller(data, monkeypatch):
    """20 pictures are five batches of four: a group of three and one of two, of which each counts for a half."""
    gradients, real = [], torch.nn.utils.clip_grad_norm_

    def clip(parameters, limit):
        parameters = list(parameters)
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
        return real(parameters, limit)

    monkeypatch.setattr(train, 'clip_grad_norm_', clip)
    common = {**PLAIN, 'model': 'test_vit', 'model_kwargs': {}, 'epochs': 1, 'mixup_prob': 0, 'use_amp': 'false',
              'lr': 1e-12, 'batch_size': 4}
    run(**common, accumulate_steps=3)
    grouped = list(gradients)
    gradients.clear()
    run(**common)
    assert len(grouped) == 2 and len(gradients) == 5
    torch.testing.assert_close(grouped[0], torch.stack(gradients[:3]).mean(0), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(grouped[1], torch.stack(gradients[3:]).mean(0), rtol=1e-3, atol=1e-6)
