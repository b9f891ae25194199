"""What happens to an image before the network sees it: one builder for training, one for validation and test.

Both begin with `fit`, which is never random, so that its result can be cached. Both follow from a Transform, which a
checkpoint carries: test.py rebuilds exactly what validated the network.
"""
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import torch
from PIL import Image
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torchvision.transforms import v2

from common.data.cutout import Cutout


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
