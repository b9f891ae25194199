"""GPU_AUGMENT: what becomes of an image is what becomes of it in a worker process."""
import base64
import csv
import io
import os
import pickle
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import build, configure, run
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import default_collate
from torchvision.transforms import v2

import train
from common.data.loaders import divide_augmentation, keep_images
from common.data.transforms import Transform
from common.runtime.errors import Stopped, UserError
from common.training.page import RunPage
from common.training.step import UpdateMeter
from extras.gpu_augment import Augment, Fetch, divide

TRANSFORM = Transform([160, 224], [0.5, 0.4, 0.3], [0.2, 0.2, 0.1])
ALL = {'view': 'above', 'blur': 0.5, 'jitter': 0.4, 'cutout': 0.5}


def transform(**changes):
    return train.train_transform(
        configure(**{'view': 'none', 'blur': 0, 'jitter': 0, 'cutout': 0, 'augmentation': 1, **changes}), TRANSFORM)


def pictures(count=30):
    """Smooth and noisy ones, from dark to light."""
    rng = np.random.default_rng(0)
    for number in range(count):
        small = rng.integers(0, 256, (6, 8, 3) if number % 2 else (160, 224, 3), dtype=np.uint8)
        yield Image.fromarray(small // (1 + number % 3)).resize((224, 160), Image.Resampling.BICUBIC)


def seed(number):
    random.seed(number)
    torch.manual_seed(number)


@pytest.mark.parametrize('changes', [
    {}, {'view': 'above'}, {'view': 'upright'}, {'view': 'text'}, {'blur': 1}, {'jitter': 0.4}, {'cutout': 1}, ALL])
def test_an_image_becomes_what_it_becomes_in_a_worker_process(changes):
    """Nearly everywhere to the grey level, and the random generators are then where they are there."""
    on_cpu = transform(**changes)
    fetch, augment = divide(on_cpu)
    levels = 255 * torch.tensor(TRANSFORM.std)[:, None, None]
    expected = []
    fetched = []
    states = []
    for number, picture in enumerate(pictures()):
        seed(number)
        expected.append(on_cpu(picture))
        states.append((torch.get_rng_state().tolist(), random.getstate()))
        seed(number)
        fetched.append(fetch(picture))
        assert (torch.get_rng_state().tolist(), random.getstate()) == states[-1]
    difference = ((augment(default_collate(fetched)) - torch.stack(expected)) * levels).abs()
    assert difference.max() < 6.5 and (difference > 0.5).float().mean() < 0.02  # processors round in ways of their own
    moved = torch.stack(expected) - torch.stack([transform()(picture) for picture in pictures()])
    assert (moved.abs().amax((1, 2, 3)) > 0).float().mean() > 0.3 or not changes


def test_an_image_does_not_depend_on_the_others_in_its_batch():
    fetch, augment = divide(transform(**ALL))
    fetched = [fetch(picture) for picture in pictures(8)]
    together = augment(default_collate(fetched))
    for image, one in zip(together, fetched, strict=True):
        torch.testing.assert_close(augment(default_collate([one]))[0], image, rtol=0, atol=1e-5)


def test_nothing_is_waited_for_and_all_is_on_the_device():
    """Fake tensors refuse to be looked into, and to be mixed with those of another device."""
    _, augment = divide(transform(**ALL))
    with FakeTensorMode(allow_non_fake_inputs=False) as fake:
        for part in augment.parts:
            for name, buffer in part.named_buffers():
                setattr(part, name, fake.from_tensor(buffer).to('cuda'))
        pixels = torch.empty(4, 3, 48, 64, dtype=torch.uint8, device='cuda')
        drawn = torch.empty(4, sum(part.length for part in augment.parts), device='cuda')
        images = augment([pixels, drawn])
    assert images.device.type == 'cuda' and images.dtype == torch.float32


def test_worker_processes_may_be_spawned():
    fetch, _ = divide(transform(**ALL))
    again = pickle.loads(pickle.dumps(fetch))
    picture = next(pictures(1))
    found = []
    for one in (fetch, again):
        seed(5)
        found.append(one(picture))
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize('own', [
    v2.TrivialAugmentWide(), v2.ColorJitter(hue=0.1), v2.RandomRotation(9), v2.RandomRotation(9, expand=True),
    v2.RandomApply([v2.ColorJitter(0.3)]), v2.RandomApply([v2.GaussianBlur((3, 5))]), v2.Compose([v2.ToImage()])])
def test_a_transform_that_only_workers_can_do(own, capsys):
    """Asked for, it is an error; by itself the device is not taken."""
    augment = v2.Compose([own, *transform().transforms])
    gpu = torch.device('cuda')
    with pytest.raises(UserError, match=f'GPU_AUGMENT: {type(own).__name__}'):
        divide_augmentation(augment, True, gpu)
    assert divide_augmentation(augment, 'auto', gpu) == (augment, keep_images)
    assert "GPU_AUGMENT = 'auto': False" in capsys.readouterr().out


def test_auto_follows_the_device():
    augment = transform(**ALL)
    assert divide_augmentation(augment, 'auto', torch.device('cpu')) == (augment, keep_images)
    assert divide_augmentation(augment, False, torch.device('cuda')) == (augment, keep_images)
    fetch, on_device = divide_augmentation(augment, 'auto', torch.device('cuda'))
    assert isinstance(fetch, Fetch) and isinstance(on_device, Augment)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_run_learns_the_same(data, workers):
    losses = []
    for wanted in ('false', 'true'):
        run(gpu_augment=wanted, num_workers=workers, view='above', output_dir=wanted)
        with open(f'{wanted}/log.csv', encoding='utf-8') as file:
            losses.append([float(row['train_loss']) for row in csv.DictReader(file)])
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)


def test_a_run_through_pipes(data, monkeypatch):
    """Where there is little shared memory."""
    _, whole, _ = build(gpu_augment='true', num_workers=1, view='above')
    monkeypatch.setattr('common.data.loaders.lacking_for_processes', lambda processes, loaders, size=0, count=0: (
        'too little shared memory' if size else None))
    _, pieces, _ = build(gpu_augment='true', num_workers=1, view='above')
    assert pieces.train.collate_received is not None
    for (images, labels), (expected, expected_labels) in zip(pieces.train, whole.train, strict=True):
        assert all(a.equal(b) for a, b in zip([*images, labels], [*expected, expected_labels], strict=True))


def test_a_stopped_run_goes_on_to_the_bit(data, monkeypatch):
    changes = {'gpu_augment': 'true', 'epochs': 2, 'view': 'above', 'mixup_prob': 0.5}
    run(**changes, output_dir='whole')
    add = UpdateMeter.add
    batches = []

    def stopping(*arguments):
        batches.append(1)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return add(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(UpdateMeter, 'add', stopping)
        with pytest.raises(Stopped):
            run(**changes)
    run(**changes, resume='true')
    first, second = (torch.load(f'{name}/last.pth', weights_only=True)['state_dict'] for name in ('whole', 'out'))
    assert len(batches) < 4 and all(first[name].equal(value) for name, value in second.items())


def test_the_page_shows_what_the_device_made(folder):
    """White pictures that a grey box is laid over; nothing else is done to them."""
    for path in (folder / 'train').rglob('*.png'):
        Image.new('RGB', (32, 32), 'white').save(path)
    cfg, data, state = build(gpu_augment='true', view='none', blur=0, jitter=0, cutout=1, mixup_prob=0)
    pictures = RunPage(vars(state) | {'settings': vars(cfg)}, state, data, Path()).batch_section(0)['pictures']
    for picture in pictures:
        own, seen = (np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2]))).convert('L'))
                     for uri in picture['images'])
        assert own.min() > 250 > seen.min() and seen.max() > 250
