"""What happens to an image before the network sees it, alike in training, validation and test.

It begins with `fit`, which is never random, so that its result can be cached. It follows from a Transform, which a
checkpoint carries: test.py rebuilds exactly what validated the network. What training adds stands in train.py.
"""
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torchvision.transforms import v2

from common.runtime.disks import regular
from common.runtime.errors import UserError
from models import default_cfg
from models.weights import are_numbers


@dataclass(frozen=True)
class Transform:
    """The part of the way from an image to a tensor that is the same in training, validation and test.

    `crop` = None squeezes the whole image into img_size. A ratio resizes it in its proportions until it just covers
    img_size / crop, and takes the middle; beyond 1 that leaves a black border.
    """
    img_size: list[int]              # [height, width], pixels
    mean: list[float]                # of the three channels in [0, 1]
    std: list[float]                 # of the three channels in [0, 1]
    interpolation: str = 'bilinear'  # or 'bicubic'
    crop: float | None = None

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict) -> 'Transform':
        """Return that of a checkpoint which models.check_saved has looked through."""
        return cls(**{item.name: saved[item.name] for item in fields(cls)})


def make_transform(img_size: tuple[int, int], crop: float | str | None, model: str, normalisation: str | tuple,
                   of_weights: tuple[list, list] | None, classes: list[str]) -> Transform:
    """Return the transform of a run on these classes. With CROP = 'published' it crops and interpolates as the network
    `model` was published with; otherwise it is bilinear. The rest is as in find_normalisation.
    """
    mean, std = find_normalisation(normalisation, of_weights, classes)
    interpolation = 'bilinear'
    if crop == 'published':
        published = default_cfg(model)
        crop = published['crop_pct']
        interpolation = 'bilinear' if published['interpolation'] == 'bilinear' else 'bicubic'
    return Transform(list(img_size), mean, std, interpolation, crop)


def fit(transform: Transform) -> Callable[[Image.Image], Image.Image]:
    """Return image -> image of img_size, the same in training, validation and test."""
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
    """Return the shortest side, in pixels, at which an image should be decoded before `fit`: twice what comes out."""
    return int(2 * max(transform.img_size) / min(1, transform.crop or 1))


def eval_transform(transform: Transform) -> Callable[[Image.Image], torch.Tensor]:
    """Return what follows `fit` in validation and test: image -> normalised float tensor (3, H, W), nothing at random.

    In training it follows the augmentations of train.py.
    """
    return v2.Compose([
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(transform.mean, transform.std)])


# ---- mean and standard deviation of the channels: written by mean_std.py, used by train.py -------------------------

MEAN_STD_FILE = 'mean_std.json'


class Normalisation(NamedTuple):
    """Mean and standard deviation of the three channels in [0, 1]."""
    mean: list[float]
    std: list[float]


def find_normalisation(wanted: str | tuple, of_weights: tuple[list, list] | None, classes: list[str]) -> Normalisation:
    """Return what NORMALISATION = `wanted` stands for, for a data set of these classes. Raises UserError.

    'data' is mean_std.json, or ImageNet's without that file; 'weights' is `of_weights`, the (mean, std) that belongs to
    the initial weights; 'auto' is 'weights' where some are loaded, else 'data'; a pair is taken as it is.
    """
    if not isinstance(wanted, str):
        mean, std = wanted
        return Normalisation(list(mean), list(std))
    if wanted == 'weights' and of_weights is None:
        raise UserError("NORMALISATION = 'weights', but no weights are loaded: choose 'auto' or 'data'")
    if wanted != 'data' and of_weights:
        mean, std = of_weights
        print(f'normalisation: that of the loaded weights, mean {tuple(mean)}, std {tuple(std)}')
        return Normalisation(list(mean), list(std))
    if not Path(MEAN_STD_FILE).exists():
        print(f"normalisation: ImageNet's mean and std, since there is no {MEAN_STD_FILE}: run mean_std.py")
        return Normalisation(list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD))
    return read_measured(classes)


def read_measured(classes: list[str]) -> Normalisation:
    """Return what mean_std.json says. Raises UserError where the file is damaged."""
    try:
        found = json.loads(regular(MEAN_STD_FILE).read_text(encoding='utf-8'))
        normalisation = Normalisation(found['mean'], found['std'])
        theirs = found['classes']
        if not are_mean_and_std(*normalisation):
            raise ValueError('three means and three positive deviations are needed')
        print(f'normalisation: {MEAN_STD_FILE}, computed on {found["images"]} images of {found["data_dir"]}')
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{MEAN_STD_FILE} is of no use ({error!r}): run mean_std.py again or delete it') from None
    if theirs != classes:
        print(f'warning: {MEAN_STD_FILE} was computed on other classes than these: run mean_std.py again')
    return normalisation


def are_mean_and_std(mean, std) -> bool:
    """Return whether these are three numbers each, and the deviations positive."""
    return are_numbers(mean, 3, -1e3, 1e3) and are_numbers(std, 3, 1e-6, 1e3)
