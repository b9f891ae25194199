"""Test-time augmentation: other views of an image, which a network should classify alike."""
from collections.abc import Callable
from typing import Any

import torch

View = Callable[[torch.Tensor], torch.Tensor]  # images (B, 3, H, W) -> the same images, seen another way

MIRRORINGS = ((3,), (2,), (2, 3))  # axes that are reversed: left and right, top and bottom, both


def seen_as(reversed_axes: tuple[int, ...], quarter_turns: int = 0) -> View:
    """Return the view that reverses some axes and then turns the image by so many times 90 degrees."""
    def view(images: torch.Tensor) -> torch.Tensor:
        return images.flip(reversed_axes).rot90(quarter_turns, (2, 3))

    return view


def symmetries(square: bool) -> list[View]:
    """Return the views of an image that has no up, other than the image itself: seven of a square one, and of others
    the three that keep its shape.
    """
    views = [seen_as(axes) for axes in MIRRORINGS]
    if square:
        for axes in ((), *MIRRORINGS):
            views.append(seen_as(axes, quarter_turns=1))
    return views


def trained_views(saved: dict[str, Any]) -> list[View]:
    """Return the views, other than the image itself, that training had too.

    They follow from the VIEW among the settings that a checkpoint holds, which may come from anyone: whatever is no
    known VIEW means no other view. `saved` has passed models.check_saved.
    """
    settings = saved.get('settings')
    if not isinstance(settings, dict):
        return []
    view = settings.get('VIEW')
    if view == 'upright':
        mirror_image = seen_as((3,))
        return [mirror_image]
    if view == 'above':
        height, width = saved['transform']['img_size']
        return symmetries(square=height == width)
    return []
