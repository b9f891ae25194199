"""GPU_AUGMENT: the augmentation of train.py on the device, a batch at a time.

Worker processes then only fetch images and draw what is random, from the seed of each image and in the order in which
the transforms of train.py draw. So an image becomes what it becomes on the CPU, but for a grey level here and there,
and the same in one process, in several, and on several GPUs.
"""
import copy
import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from common.data.cutout import Cutout
from common.runtime.errors import UserError

BILINEAR = v2.InterpolationMode.BILINEAR
RGB_TO_GREY = (0.299, 0.587, 0.114)  # as Pillow has it (ITU-R 601-2)


def round_down(images: torch.Tensor) -> torch.Tensor:
    """Return grey levels as Pillow has them, which drops fractions; those just below 1 come from rounding errors."""
    return (images + 1e-3).floor()


class Part(nn.Module):
    """A transform: draw() in a worker process, then (images (B, 3, H, W), draws (B, length)) -> images on the device.

    Images have grey levels from 0 to 255.
    """
    length = 0

    @staticmethod
    def knows(transform: Callable) -> bool:
        """Return whether it is this transform with all that is set in it."""
        return True

    def draw(self) -> list[float]:
        """Draw what the transform draws for an image, with the same generators; returns `length` numbers."""
        return []


class Rotation(Part):
    """v2.RandomRotation, bilinear, about the middle."""
    length = 1

    def __init__(self, transform: v2.RandomRotation):
        super().__init__()
        self.transform = transform
        self.register_buffer('fill', torch.tensor(transform.fill).float().reshape(-1, 1, 1))

    @staticmethod
    def knows(transform: v2.RandomRotation) -> bool:
        return (transform.interpolation, transform.expand, transform.center) == (BILINEAR, False, None)

    def draw(self) -> list[float]:
        return [self.transform.make_params([])['angle']]

    def forward(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        if not any(self.transform.degrees):
            return images
        height, width = images.shape[2:]
        angle = draws[:, 0].deg2rad()
        cos = angle.cos()
        sin = angle.sin()
        zero = torch.zeros_like(angle)
        ratio = height / width
        # Places are counted from -1 to 1 on both sides, whatever their lengths.
        turn = torch.stack([torch.stack([cos, -sin * ratio, zero], 1), torch.stack([sin / ratio, cos, zero], 1)], 1)
        places = F.affine_grid(turn, list(images.shape), align_corners=False)              # (B, H, W, 2)
        turned = F.grid_sample(images, places, padding_mode='border', align_corners=False)
        outside = (places.abs() > 1).any(3)[:, None]
        return torch.where(outside, self.fill, round_down(turned))


class Flip(Part):
    """v2.RandomHorizontalFlip and v2.RandomVerticalFlip."""
    length = 1

    def __init__(self, transform: v2.RandomHorizontalFlip | v2.RandomVerticalFlip):
        super().__init__()
        self.p = transform.p
        self.side = 3 if isinstance(transform, v2.RandomHorizontalFlip) else 2

    def draw(self) -> list[float]:
        return [torch.rand(1).item() < self.p]

    def forward(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        return torch.where(draws[:, 0, None, None, None] > 0, images.flip(self.side), images)


class Blur(Part):
    """v2.RandomApply of one v2.GaussianBlur."""
    length = 1

    def __init__(self, transform: v2.RandomApply):
        super().__init__()
        self.p = transform.p
        [self.transform] = transform.transforms
        self.reach = self.transform.kernel_size[0] // 2

    @staticmethod
    def knows(transform: v2.RandomApply) -> bool:
        blurs = [part for part in transform.transforms if type(part) is v2.GaussianBlur]
        return len(transform.transforms) == len(blurs) == 1 and len({*blurs[0].kernel_size}) == 1

    def draw(self) -> list[float]:
        if torch.rand(1) >= self.p:
            return [0.]
        return [self.transform.make_params([])['sigma'][0]]

    def forward(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        offsets = torch.arange(-self.reach, self.reach + 1, device=images.device)
        weights = torch.exp(-0.5 * (offsets / draws.clamp(min=1e-3)) ** 2)                 # (B, kernel)
        weights = (weights / weights.sum(1, keepdim=True)).T[..., None, None, None]        # (kernel, B, 1, 1, 1)
        for side in (2, 3):
            padding = [self.reach, self.reach, 0, 0] if side == 3 else [0, 0, self.reach, self.reach]
            padded = F.pad(images, padding, mode='reflect')
            length = images.shape[side]
            images = sum(weight * padded.narrow(side, start, length) for start, weight in enumerate(weights))
        return images.round()


class Jitter(Part):
    """v2.ColorJitter of brightness, contrast and saturation, in an order that is drawn.

    Each of them is a mixture: of the image with black, with its mean grey level, with itself in grey.
    """
    length = 6

    def __init__(self, transform: v2.ColorJitter):
        super().__init__()
        self.transform = transform
        self.register_buffer('grey', torch.tensor(RGB_TO_GREY)[:, None, None])

    @staticmethod
    def knows(transform: v2.ColorJitter) -> bool:
        return transform.hue is None

    def draw(self) -> list[float]:
        drawn = self.transform.make_params([])
        order = [number for number in drawn['fn_idx'].tolist() if number < 3]
        factors = [drawn[f'{name}_factor'] for name in ('brightness', 'contrast', 'saturation')]
        return order + [1. if factor is None else factor for factor in factors]

    def forward(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        for turn in range(3):
            which = draws[:, turn, None].long()
            factor = draws[:, 3:].gather(1, which)[..., None, None]
            which = which[..., None, None]
            grey = (images * self.grey).sum(1, keepdim=True).round()
            mean = grey.mean((2, 3), keepdim=True).round()
            other = torch.where(which == 2, grey, torch.where(which == 1, mean, 0.))       # (B, 1, H, W)
            images = round_down(torch.lerp(other, images, factor).clamp(0, 255))
        return images


class Box(Part):
    """torchtoolbox's Cutout."""
    length = 5

    def __init__(self, cutout: Cutout):
        super().__init__()
        self.cutout = cutout

    def draw(self) -> list[float]:
        p, height, width = self.cutout.settings
        theirs = self.cutout.cutout
        if random.random() >= p:
            return [0., 0., 0., 0., 0.]
        blank = Image.new('RGB', (height, width))  # it takes the sides of an image from Pillow the wrong way round
        left, top, box_height, box_width, _ = theirs.get_params(blank, theirs.scale, theirs.ratio)
        return [top, top + box_height, left, left + box_width, random.randint(*theirs.value)]

    def forward(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        top, bottom, left, right, grey = draws.T[..., None, None, None]                    # (B, 1, 1, 1) each
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
        rows = rows[:, None]
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        return torch.where(inside, grey, images)


class Normalisation(Part):
    """What follows in validation, too: eval_transform."""

    def __init__(self, transform: v2.Compose):
        super().__init__()
        *_, last = transform.transforms
        for name in ('mean', 'std'):
            self.register_buffer(name, 255 * torch.tensor(getattr(last, name))[:, None, None])

    @staticmethod
    def knows(transform: v2.Compose) -> bool:
        return [type(part) for part in transform.transforms] == [v2.ToImage, v2.ToDtype, v2.Normalize]

    def forward(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / self.std


PARTS = {v2.RandomRotation: Rotation, v2.RandomHorizontalFlip: Flip, v2.RandomVerticalFlip: Flip, v2.RandomApply: Blur,
         v2.ColorJitter: Jitter, Cutout: Box, v2.Compose: Normalisation}


class Fetch:
    """In a worker process: image -> (pixels (3, H, W) as uint8, what was drawn (D,))."""

    def __init__(self, parts: Sequence[nn.Module]):
        self.parts = parts

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = [value for part in self.parts for value in part.draw()]
        return v2.functional.pil_to_tensor(image), torch.tensor(drawn, dtype=torch.float32)


class Augment(nn.Module):
    """On the device: (pixels (B, 3, H, W), what was drawn (B, D)) -> images (B, 3, H, W), normalised."""

    def __init__(self, parts: Sequence[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    @torch.no_grad()
    def forward(self, fetched: Sequence[torch.Tensor]) -> torch.Tensor:
        pixels, drawn = fetched
        images = pixels.float()
        of_parts = drawn.split([part.length for part in self.parts], 1)
        for part, draws in zip(self.parts, of_parts, strict=True):
            images = part(images, draws)
        return images


def divide(transform: v2.Compose) -> tuple[Fetch, Augment]:
    """Return what worker processes do of train.py's train_transform, and what is left for a device.

    Raises UserError for a transform that is not among PARTS.
    """
    parts = []
    for part in getattr(transform, 'transforms', [transform]):
        kind = PARTS.get(type(part))
        if kind is None or not kind.knows(part):
            raise UserError(f'GPU_AUGMENT: {part} in train_transform can only be done in worker processes: set '
                            'GPU_AUGMENT = False')
        parts.append(kind(part))
    return Fetch(parts), Augment(copy.deepcopy(parts))  # worker processes have nothing on the device
