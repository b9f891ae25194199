"""Test-time augmentation: several views of an image, which a network should name alike."""
from collections.abc import Callable

import torch

View = Callable[[torch.Tensor], torch.Tensor]


def other_views(flip: bool, flip_vertical: bool, turns: bool) -> list[View]:
    """Functions (B, 3, H, W) -> another view of the same images, other than the images themselves.

    With all three there are seven: the symmetries of the square. Images that are not square are not turned by 90
    degrees.
    """
    def view(quarters: int, axes: tuple[int, ...]) -> View:
        return lambda images: images.flip(axes).rot90(quarters, (2, 3))

    mirrored = [axes for axes in ((), (3,), (2,), (2, 3))
                if (flip or 3 not in axes) and (flip_vertical or 2 not in axes)]
    quarters = range(1) if not turns else range(2) if flip and flip_vertical else range(4)
    return [view(turn, axes) for turn in quarters for axes in mirrored if turn or axes]


def trained_views(saved: dict) -> list[View]:
    """The other views that training had too, by the settings that a checkpoint holds: mirror images, and turns by 90
    degrees where it turned images at least as far.
    """
    settings, (height, width) = saved.get('settings'), saved['transform']['img_size']
    settings = settings if isinstance(settings, dict) else {}

    def had(name: str, least: float) -> bool:
        value = settings.get(name)
        return isinstance(value, (int, float)) and value >= least

    return other_views(had('FLIP', 0.01), had('FLIP_VERTICAL', 0.01), height == width and had('ROTATION', 90))
