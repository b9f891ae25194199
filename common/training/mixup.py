"""What the network is trained on: images and their labels, mixed now and then, and smoothed."""
import functools
from collections.abc import Callable

import torch
from timm.data.mixup import Mixup, mixup_target

Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def build_mix(prob: float, smoothing: float, num_classes: int) -> Mix:
    """Return (images (B, 3, H, W), labels (B,)) -> (images, targets (B, classes)): timm's Mixup or CutMix with
    probability `prob`, and label smoothing.

    Each image is mixed with its partner in the reversed batch, which must be even then; so are their targets. The other
    settings are the tutorial's.
    """
    if not prob:
        return functools.partial(smooth, num_classes=num_classes, smoothing=smoothing)
    return Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, prob=prob, switch_prob=0.5, mode='batch',
                 label_smoothing=smoothing, num_classes=num_classes)


def keep_targets(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the targets: without a TEACHER, they are what is learnt."""
    return targets


def smooth(images: torch.Tensor, labels: torch.Tensor, num_classes: int,
           smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images as they are, and their labels as smoothed one-hot targets (B, classes)."""
    return images, mixup_target(labels, num_classes, lam=1., smoothing=smoothing)
