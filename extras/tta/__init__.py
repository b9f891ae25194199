"""Test-time augmentation: other views of an image, which a network should classify alike."""
from dataclasses import dataclass
from typing import Any

import torch

MIRRORINGS = ((3,), (2,), (2, 3))  # axes that are reversed: left and right, top and bottom, both


@dataclass(frozen=True)
class View:
    """Another way to see images (B, 3, H, W): some axes are reversed, and then the image turns by 90 degrees so often.
    """
    reversed_axes: tuple[int, ...]
    quarter_turns: int = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.flip(self.reversed_axes).rot90(self.quarter_turns, (2, 3))


def symmetries(square: bool) -> list[View]:
    """Return the views of an image that has no up, other than the image itself: seven of a square one, and of others
    the three that keep its shape.
    """
    views = [View(axes) for axes in MIRRORINGS]
    if square:
        for axes in ((), *MIRRORINGS):
            views.append(View(axes, quarter_turns=1))
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
        mirror_image = View((3,))
        return [mirror_image]
    if view == 'above':
        height, width = saved['transform']['img_size']
        return symmetries(square=height == width)
    return []
