"""Token labelling (Jiang et al., arXiv:2104.10858), in the form that VOLO's official recipe uses without label maps.

MixToken swaps a box of tokens between each image and its partner in the reversed batch. The class token then learns the
mixture of both labels, every other token the label of the image that it came from.
"""
import math

import torch
import torch.nn.functional as F

Box = tuple[int, int, int, int]


def random_box(height: int, width: int) -> Box:
    """MixToken's box on a grid of height x width cells: (top, left, bottom, right), the ends exclusive.

    Its share of the area is 1 - λ with λ ~ Beta(1, 1), which is the uniform distribution, minus what the border cuts
    off. Drawn with torch's global random number generator.
    """
    side = math.sqrt(1 - torch.rand(()).item())
    half_h, half_w = int(height * side) // 2, int(width * side) // 2
    y, x = torch.randint(height, ()).item(), torch.randint(width, ()).item()
    return max(y - half_h, 0), max(x - half_w, 0), min(y + half_h, height), min(x + half_w, width)


def swap_box(x: torch.Tensor, box: Box) -> torch.Tensor:
    """Inside the box every map gets the content of its partner in the reversed batch. (B, H, W, C) -> (B, H, W, C)."""
    top, left, bottom, right = box
    mixed = x.clone()
    mixed[:, top:bottom, left:right] = x.flip(0)[:, top:bottom, left:right]
    return mixed


def combine_logits(logits: torch.Tensor, token_logits: torch.Tensor) -> torch.Tensor:
    """Class logits (B, classes) plus half the maximum of the token logits (B, N, classes), as published networks do."""
    return logits + 0.5 * token_logits.amax(1)


def token_label_loss(outputs: tuple[torch.Tensor, torch.Tensor, Box], targets: torch.Tensor,
                     dense_weight: float = 0.5) -> torch.Tensor:
    """The loss of each image, (B,), from what a VOLO with return_dense=True returns in training mode.

    `outputs` are class logits (B, classes), token logits (B, N, classes) and the box; `targets` (B, classes) are
    probabilities. The loss is the cross-entropy of the class logits with the targets, mixed as the box mixed the
    tokens, plus `dense_weight` times the mean cross-entropy of the token logits with the image's own target.
    """
    logits, token_logits, (top, left, bottom, right) = outputs
    tokens = token_logits.shape[1]
    swapped = (bottom - top) * (right - left) / tokens
    mixed = (1 - swapped) * targets + swapped * targets.flip(0)
    dense = F.cross_entropy(token_logits.transpose(1, 2),                       # (B, classes, N)
                            targets.unsqueeze(2).expand(-1, -1, tokens),        # (B, classes, N)
                            reduction='none')                                   # (B, N)
    return F.cross_entropy(logits, mixed, reduction='none') + dense_weight * dense.mean(1)
