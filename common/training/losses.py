"""What the network is trained on: smoothed or mixed targets, and the loss of every image."""
import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, mixup_target

from common.settings import Settings
from models import combine_logits, token_label_loss


def build_mix(cfg: Settings, num_classes: int) -> Callable:
    """(images (B, 3, H, W), labels (B,)) -> (images, targets (B, classes)): Mixup or CutMix with MIXUP_PROB, smoothing.

    Each image is mixed with its partner in the reversed batch, which must be even then; so are their targets.
    """
    if cfg.MIXUP_PROB:
        return Mixup(cfg.MIXUP_ALPHA, cfg.CUTMIX_ALPHA, prob=cfg.AUGMENTATION * cfg.MIXUP_PROB,
                     switch_prob=cfg.MIXUP_SWITCH_PROB, label_smoothing=cfg.SMOOTHING, num_classes=num_classes)
    return functools.partial(smooth, num_classes=num_classes, smoothing=cfg.SMOOTHING)


def smooth(images: torch.Tensor, labels: torch.Tensor, num_classes: int, smoothing: float):
    """The images as they are, and their labels as smoothed one-hot targets (B, classes)."""
    return images, mixup_target(labels, num_classes, lam=1., smoothing=smoothing)


def choose_loss(cfg: Settings, model_kwargs: dict) -> Callable:
    """The loss that goes with what the network returns in training."""
    if cfg.TOKEN_LABEL:
        return token_loss
    return aux_loss if model_kwargs.get('return_dense') else class_loss


def balanced(loss: Callable, labels: np.ndarray) -> Callable:
    """The loss of every image times a weight with which all classes of the training set, labels (N,), count the same,
    and a picture counts 1 on average; the weight of a mixture is a mixture.
    """
    counts = np.bincount(labels)
    weights = torch.from_numpy(counts.mean() / counts).float()  # (classes,)

    def weighted(outputs: torch.Tensor | tuple, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, losses = loss(outputs, targets)
        return logits, losses * (targets @ weights.to(targets))

    return weighted


def class_loss(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits (B, classes), cross-entropy of every image (B,)) in fp32."""
    logits = outputs.float()
    return logits, F.cross_entropy(logits, targets, reduction='none')


def aux_loss(outputs: tuple, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """class_loss of a VOLO with an auxiliary head on the logits that it predicts with in evaluation.

    `outputs` are its class logits (B, classes), token logits (B, N, classes) and an empty box.
    """
    logits, token_logits, _ = outputs
    return class_loss(combine_logits(logits.float(), token_logits.float()), targets)


def token_loss(outputs: tuple, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits (B, classes), loss of every image (B,)) in fp32, of a VOLO trained with token labels.

    `outputs` are its class logits (B, classes), token logits (B, N, classes) and box. The logits returned are the mean
    of an image's own tokens: its class token saw a mixture of two images, which accuracy cannot judge.
    """
    logits, token_logits, box = outputs
    outputs = logits.float(), token_logits.float(), box
    return outputs[1].mean(1), token_label_loss(outputs, targets)
