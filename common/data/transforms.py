"""What happens to a picture before the network sees it: one builder for training, one for validation and test.

Both take plain values, which a checkpoint can carry: test.py rebuilds exactly the transform that validated the network.
"""

import torch
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torchvision.transforms import v2

from common.data.cutout import Cutout


def fit(settings, training=False):
    """PIL image -> PIL image of img_size: the part of a transform that is always the same.

    `settings` are plain values: img_size (height, width) in pixels, mean and std of the [0, 1] channels, interpolation
    ('bilinear' or 'bicubic') and crop. With crop None, and in training, the whole picture is squeezed into img_size. A
    ratio resizes it, in its proportions, until it just covers img_size / crop, and takes the middle; beyond 1 that
    leaves a black border.
    """
    if training or settings['crop'] is None:
        return v2.Resize(settings['img_size'], v2.InterpolationMode(settings['interpolation']))
    cover = [int(side / settings['crop']) for side in settings['img_size']]
    return v2.Compose([trim, ResizeKeepRatio(cover, interpolation=settings['interpolation']),
                       CenterCropOrPad(settings['img_size'])])


def trim(image, most=50):
    """Cut the ends off a picture that is over `most` times as long as wide: only its middle is looked at, and enlarging
    all of it until it is wide enough would take any amount of memory.
    """
    longest = most * min(image.size)
    return v2.functional.center_crop(image, [min(image.height, longest), min(image.width, longest)])


def least_side(settings, training=False):
    """The shortest side, in pixels, that a picture should be decoded at before `fit`: twice what comes out of it."""
    return int(2 * max(settings['img_size']) / min(1, 1 if training else settings['crop'] or 1))


def train_transform(settings, *, rotation=0, flip=0., flip_vertical=0., shift=0., zoom=None, blur=0., jitter=0.,
                    cutout=0.):
    """What follows `fit` in training, the tutorial's augmentations: PIL image -> normalised float tensor (3, H, W).

    `rotation` is degrees either way, `flip` and `flip_vertical` are probabilities, `shift` is a share of the side,
    `zoom` a pair (least, most), `blur` and `cutout` are probabilities, `jitter` the range of brightness, contrast and
    saturation. All of them are off unless given.
    """
    height, width = settings['img_size']
    steps = []
    if rotation or shift or zoom:
        steps.append(v2.RandomAffine(rotation, translate=(shift, shift) if shift else None, scale=zoom,
                                     interpolation=v2.InterpolationMode.BILINEAR,
                                     fill=[round(255 * value) for value in settings['mean']]))
    steps += [v2.RandomHorizontalFlip(flip), v2.RandomVerticalFlip(flip_vertical)]
    if blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel_size=5, sigma=(0.1, 3.0))], blur))
    if jitter:
        steps.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
    if cutout:
        steps.append(Cutout(cutout, height, width))
    return v2.Compose(steps + _to_tensor(settings))


def eval_transform(settings):
    """What follows `fit` in validation and test: PIL image -> normalised float tensor (3, H, W), nothing at random."""
    return v2.Compose(_to_tensor(settings))


def _to_tensor(settings):
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(settings['mean'], settings['std'])]
