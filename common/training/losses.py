"""The loss of every image."""
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models import combine_logits, token_label_loss

Loss = Callable[[torch.Tensor | tuple, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class LossModel(nn.Module):
    """The network with its loss: (images (B, 3, H, W), targets (B, classes)) -> (logits (B, classes), losses (B,)).

    The token_loss also takes targets of each token, (B, 1 + N, classes). Images are resized to `img_size`, if that is
    given: a TEACHER may have seen larger ones.

    Both results are in fp32. Autocast is entered here, and not around the call, because DataParallel's threads forget
    the dtype of the caller's autocast; the loss is computed here so that DataParallel gathers one row for each image.
    """

    def __init__(self, net: nn.Module, loss: Loss, amp_dtype: torch.dtype | None,
                 img_size: tuple[int, int] | None = None):
        super().__init__()
        self.img_size = img_size
        self.net = net
        self.loss = loss
        self.amp_dtype = amp_dtype

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.img_size and images.shape[2:] != self.img_size:
            images = F.interpolate(images, self.img_size, mode='bilinear', antialias=True)
        with torch.autocast(images.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            outputs = self.net(images)
        return self.loss(outputs, targets)


def choose_loss(token_label: bool, has_aux_head: bool) -> Loss:
    """Return the loss that goes with what the network returns in training."""
    if token_label:
        return token_loss
    return aux_loss if has_aux_head else class_loss


def balanced(loss: Loss, labels: np.ndarray) -> Loss:
    """Return the loss times a weight of each image, with which all classes of the training set, labels (N,), count the
    same and an image counts 1 on average; the weight of a mixture is a mixture.
    """
    counts = np.bincount(labels)
    weights = torch.from_numpy(counts.mean() / counts).float()  # (classes,)

    def weighted(outputs: torch.Tensor | tuple, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, losses = loss(outputs, targets)
        of_images = targets if targets.ndim == 2 else targets[:, 0]  # the others are of tokens
        return logits, losses * (of_images @ weights.to(targets))

    return weighted


def class_loss(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (logits (B, classes), cross-entropy of every image (B,)) in fp32."""
    logits = outputs.float()
    return logits, F.cross_entropy(logits, targets, reduction='none')


def aux_loss(outputs: tuple, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the class_loss of a VOLO with an auxiliary head, on the logits that it predicts with in evaluation.

    `outputs` are its class logits (B, classes), token logits (B, N, classes) and an empty box.
    """
    logits, token_logits, _ = outputs
    return class_loss(combine_logits(logits.float(), token_logits.float()), targets)


def token_loss(outputs: tuple, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (logits (B, classes), loss of every image (B,)) in fp32, of a VOLO trained with token labels.

    `outputs` are its class logits (B, classes), token logits (B, N, classes) and box. The logits returned are the mean
    of an image's own tokens: its class token saw a mixture of two images, which accuracy cannot judge.
    """
    logits, token_logits, box = outputs
    logits = logits.float()
    token_logits = token_logits.float()
    return token_logits.mean(1), token_label_loss((logits, token_logits, box), targets)
