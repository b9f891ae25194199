"""What happens to an image before the network sees it: one builder for training, one for validation and test.

Both begin with `fit`, which is never random, so that its result can be cached. Both follow from a Transform, which a
checkpoint carries: test.py rebuilds exactly what validated the network.
"""
import importlib
import json
import sys
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torchvision.transforms import v2

from common.runtime.errors import UserError
from common.settings import Settings
from models.weights import are_numbers


@dataclass(frozen=True)
class Transform:
    """The part of the way from an image to a tensor that is the same in training, validation and test."""
    img_size: list[int]              # [height, width], pixels
    mean: list[float]                # of the three channels in [0, 1]
    std: list[float]
    interpolation: str = 'bilinear'  # or 'bicubic'
    crop: float | None = None        # None squeezes the whole image into img_size, a ratio resizes it in its
                                     # proportions until it just covers img_size / crop, and takes the middle; beyond 1
                                     # that leaves a black border

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict) -> 'Transform':
        """Of a checkpoint that models.check_saved has looked through."""
        return cls(**{item.name: saved[item.name] for item in fields(cls)})


def fit(transform: Transform) -> Callable[[Image.Image], Image.Image]:
    """Image -> image of img_size, the same in training, validation and test."""
    if transform.crop is None:
        return v2.Resize(transform.img_size, v2.InterpolationMode(transform.interpolation))
    cover = [int(side / transform.crop) for side in transform.img_size]
    return v2.Compose([trim, ResizeKeepRatio(cover, interpolation=transform.interpolation),
                       CenterCropOrPad(transform.img_size)])


def trim(image: Image.Image, most: int = 50) -> Image.Image:
    """Cut the ends off an image that is over `most` times as long as wide, so that its middle alone is looked at:
    enlarging all of it until it is wide enough would take any amount of memory.
    """
    longest = most * min(image.size)
    return v2.functional.center_crop(image, [min(image.height, longest), min(image.width, longest)])


def least_side(transform: Transform) -> int:
    """The shortest side, in pixels, that an image should be decoded at before `fit`: twice what comes out of it."""
    return int(2 * max(transform.img_size) / min(1, transform.crop or 1))


def train_transform(transform: Transform, *, rotation: float = 0, flip: float = 0., flip_vertical: float = 0.,
                    shift: float = 0., zoom: tuple[float, float] | None = None, blur: float = 0., jitter: float = 0.,
                    cutout: float = 0.) -> Callable[[Image.Image], torch.Tensor]:
    """What follows `fit` in training, the tutorial's augmentations: image -> normalised float tensor (3, H, W).

    `rotation` is degrees either way, `flip` and `flip_vertical` are probabilities, `shift` is a share of the side,
    `zoom` a pair (least, most), `blur` and `cutout` are probabilities, `jitter` the range of brightness, contrast and
    saturation. All of them are off unless given.
    """
    transforms = []
    if rotation or shift or zoom:
        transforms.append(v2.RandomAffine(rotation, translate=(shift, shift) if shift else None, scale=zoom,
                                          interpolation=v2.InterpolationMode.BILINEAR,
                                          fill=[round(255 * value) for value in transform.mean]))
    transforms += [v2.RandomHorizontalFlip(flip), v2.RandomVerticalFlip(flip_vertical)]
    if blur:
        transforms.append(v2.RandomApply([v2.GaussianBlur(kernel_size=5, sigma=(0.1, 3.0))], blur))
    if jitter:
        transforms.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
    if cutout:
        transforms.append(Cutout(cutout, *transform.img_size))
    return v2.Compose(transforms + _to_tensor(transform))


def eval_transform(transform: Transform) -> Callable[[Image.Image], torch.Tensor]:
    """What follows `fit` in validation and test: image -> normalised float tensor (3, H, W), nothing at random."""
    return v2.Compose(_to_tensor(transform))


def _to_tensor(transform: Transform) -> list:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(transform.mean, transform.std)]


# torchtoolbox's Cutout, made to work with today's NumPy and without libGL

class Cutout:
    """torchtoolbox's Cutout: with probability p, one grey box over 2 to 40 % of the image. Image -> uint8 (H, W, 3).

    torchtoolbox 0.1.8 (2021, unmaintained) needs help in three places, all of them here. It reads numpy.int as it is
    imported, which NumPy removed. It imports OpenCV, which Cutout never calls and which fails without libGL. And it
    mixes up width and height of PIL images, so it gets an array, and box shapes that fit into an oblong image.
    """

    def __init__(self, p: float, height: int, width: int):
        self.settings = p, height, width
        ratio = 0.4 * height / width, 2.5 * height / width  # the default (0.4, 2.5), in the image's own proportion
        self.cutout = _import_cutout()(p=p, ratio=ratio)

    def __call__(self, image: Image.Image) -> np.ndarray:
        return self.cutout(np.array(image))

    def __reduce__(self):  # a spawned worker process builds its own
        return Cutout, self.settings


def _import_cutout() -> type:
    borrowed = []
    if not hasattr(np, 'int'):
        np.int = int
        borrowed.append((np.__dict__, 'int'))
    try:
        import cv2  # noqa: F401
    except ImportError:
        sys.modules['cv2'] = stand_in = types.ModuleType('cv2')
        stand_in.__getattr__ = _constant
        borrowed.append((sys.modules, 'cv2'))
    try:
        return importlib.import_module('torchtoolbox.transform').Cutout
    finally:
        for namespace, name in borrowed:
            namespace.pop(name)


def _constant(name: str) -> int:
    """A value for each constant of OpenCV, in tables that Cutout does not use."""
    if name.startswith('__'):  # what Python itself asks modules for
        raise AttributeError(name)
    return 0


# Mean and standard deviation of the colour channels: written by mean_std.py, used by train.py

FILE = 'mean_std.json'


def find_normalisation(cfg: Settings, of_weights: tuple[list, list] | None,
                       classes: list[str]) -> tuple[list[float], list[float]]:
    """(mean, std) for a set of these classes: MEAN and STD if they are set, else what NORMALISATION says.

    'data' is mean_std.json, or ImageNet's without one; 'weights' is `of_weights`, the (mean, std) that belongs to the
    initial weights; 'auto' is 'weights' where some are loaded, else 'data'. Raises UserError.
    """
    if cfg.MEAN is not None:
        return cfg.MEAN, cfg.STD
    if cfg.NORMALISATION == 'weights' and of_weights is None:
        raise UserError("NORMALISATION = 'weights', but no weights are loaded: choose 'auto' or 'data'")
    if cfg.NORMALISATION != 'data' and of_weights:
        mean, std = of_weights
        print(f'normalisation: that of the loaded weights, mean {tuple(mean)}, std {tuple(std)}')
        return mean, std
    if not Path(FILE).exists():
        print(f"normalisation: ImageNet's mean and std, since there is no {FILE}: mean_std.py has not been run")
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return read_measured(classes)


def read_measured(classes: list[str]) -> tuple[list[float], list[float]]:
    """(mean, std) of mean_std.json. Raises UserError where it is damaged."""
    try:
        found = json.loads(Path(FILE).read_text(encoding='utf-8'))
        mean, std, theirs = found['mean'], found['std'], found['classes']
        if not are_mean_and_std(mean, std):
            raise ValueError('three means and three positive deviations are needed')
        print(f'normalisation: {FILE}, computed on {found["images"]} pictures of {found["data_dir"]}')
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{FILE} is of no use ({error!r}): run mean_std.py again or delete it') from None
    if theirs != classes:
        print(f'warning: {FILE} was computed on other classes than these: run mean_std.py again')
    return mean, std


def are_mean_and_std(mean, std) -> bool:
    """Whether these are three numbers each, and the deviations positive."""
    return are_numbers(mean, 3, -1e3, 1e3) and are_numbers(std, 3, 1e-6, 1e3)
