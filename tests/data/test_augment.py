"""common/data/transforms.py: the tutorial's augmentations, and the transform that a checkpoint can rebuild."""
import dataclasses
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from helpers import ROOT, configure
from PIL import Image

import train
from common.data.cutout import Cutout
from common.data.transforms import Transform, eval_transform, fit

TRANSFORM = Transform([32, 48], mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1])


def test_eval_transform_is_resize_scale_normalise():
    image = Image.new('RGB', (100, 60), (255, 128, 0))
    out = eval_transform(TRANSFORM)(fit(TRANSFORM)(image))
    assert out.shape == (3, 32, 48) and out.dtype == torch.float32
    expected = (torch.tensor([1, 128 / 255, 0]) - torch.tensor(TRANSFORM.mean)) / torch.tensor(TRANSFORM.std)
    torch.testing.assert_close(out, expected.view(3, 1, 1).expand_as(out))


def augment(**changes):
    """The augmentation of train.py with all of it off that is not in `changes`."""
    off = {'view': 'none', 'blur': 0, 'jitter': 0, 'cutout': 0, 'augmentation': 1}
    return train.train_transform(configure(**{**off, **changes}), TRANSFORM)


def test_without_augmentation_training_sees_what_validation_sees():
    image = Image.effect_noise((48, 32), 60).convert('RGB')
    assert torch.equal(augment()(image), eval_transform(TRANSFORM)(image))


def test_a_crop_takes_the_middle():
    image = Image.new('RGB', (96, 64), 'black')
    image.paste('white', (24, 16, 72, 48))  # the middle half
    assert np.asarray(fit(dataclasses.replace(TRANSFORM, crop=0.5))(image)).mean() > 250
    assert np.asarray(fit(TRANSFORM)(image)).mean() < 100


@pytest.mark.parametrize('crop', [None, 0.9])
def test_interpolation_decides_how_pictures_are_resized(crop):
    image = Image.effect_noise((96, 64), 60).convert('RGB')
    results = {np.asarray(fit(dataclasses.replace(TRANSFORM, crop=crop, interpolation=name))(image)).tobytes()
               for name in ('nearest', 'bilinear', 'bicubic')}
    assert len(results) == 3


def test_cutout_draws_grey_boxes_of_the_tutorials_sizes():
    image = Image.new('RGB', (64, 64), (1, 2, 3))
    cutout = Cutout(0.5, 64, 64)
    shares = []
    for _ in range(400):
        out = cutout(image)
        box = (out != (1, 2, 3)).any(2)
        shares.append(box.mean())
        if box.any():
            assert len(np.unique(out[box])) == 1  # one grey value, all channels alike
            assert box[np.ix_(box.any(1), box.any(0))].all()  # a rectangle
    assert 0.35 < np.mean([share > 0 for share in shares]) < 0.65
    assert max(shares) < 0.42 and np.mean([s for s in shares if s]) == pytest.approx(0.21, abs=0.05)
    assert image.getpixel((5, 5)) == (1, 2, 3)


@pytest.mark.parametrize('size', [(16, 64), (64, 16), (224, 16)])
def test_cutout_on_oblong_pictures(size):
    cutout = Cutout(1, *size)
    for _ in range(300):
        assert cutout(Image.new('RGB', size[::-1])).shape == (*size, 3)


def test_the_import_leaves_numpy_and_the_modules_as_they_were():
    """Also with an OpenCV that cannot be imported, as on a machine without libGL."""
    code = f'''
import random, sys; sys.path.insert(0, {str(ROOT)!r})
random.seed(0)  # the box may be black
if sys.argv[1] == 'broken': sys.modules['cv2'] = None
from common.data.cutout import Cutout
import numpy as np
from PIL import Image
assert Cutout(1, 32, 32)(Image.new('RGB', (32, 32))).any()
assert not hasattr(np, 'int')
assert 'cv2' not in sys.modules or sys.modules['cv2'] is None or hasattr(sys.modules['cv2'], '__version__')
'''
    for state in ('whole', 'broken'):
        done = subprocess.run([sys.executable, '-c', code, state], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_transforms_travel_to_spawned_workers():
    transform = augment(view='upright', blur=1, jitter=0.5, cutout=1)
    transform(Image.new('RGB', (48, 32)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        again = pickle.loads(pickle.dumps(transform))
    assert again(Image.new('RGB', (48, 32))).shape == (3, 32, 48)


@pytest.mark.parametrize('crop', [None, 0.96, 1.15])
def test_pictures_as_thin_as_a_hair(crop):
    """Enlarged until it is wide enough, the whole of such a picture would not go into any memory."""
    for size in ((10 ** 6, 1), (1, 10 ** 6), (90, 1)):
        transform = Transform([64, 96], TRANSFORM.mean, TRANSFORM.std, crop=crop)
        assert fit(transform)(Image.new('RGB', size)).size == (96, 64)
