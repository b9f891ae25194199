"""Token labelling (Jiang et al., arXiv:2104.10858) as VOLO's official recipe has it without maps of labels.

MixToken swaps a box of tokens between each image and its partner in the reversed batch. The class token then learns the
mixture of both labels, every other token the label of the image that it came from.
"""
import math

import torch
import torch.nn.functional as F


def random_box(height, width):
    """MixToken's box on a grid of height x width cells: (top, left, bottom, right), the ends exclusive.

    Its share of the area is 1 - λ with λ ~ Beta(1, 1), which is the uniform distribution, less what the border cuts
    off. Drawn from torch's random generator.
    """
    side = math.sqrt(1 - torch.rand(()).item())
    half_h, half_w = int(height * side) // 2, int(width * side) // 2
    y, x = torch.randint(height, ()).item(), torch.randint(width, ()).item()
    return max(y - half_h, 0), max(x - half_w, 0), min(y + half_h, height), min(x + half_w, width)


def swap_box(x, box):
    """Inside the box each map gets the content of its partner in the reversed batch. (B, H, W, C) -> the same."""
    top, left, bottom, right = box
    mixed = x.clone()
    mixed[:, top:bottom, left:right] = x.flip(0)[:, top:bottom, left:right]
    return mixed


def token_label_loss(outputs, targets, dense_weight=0.5):
    """The loss of every image, (B,), of a VOLO that was built with return_dense=True and is in training mode.

    `outputs` is what it returns: class logits (B, classes), token logits (B, N, classes) and the box; `targets`
    (B, classes) are probabilities. Cross-entropy of the class logits with the targets, mixed as the box mixed the
    tokens, plus `dense_weight` times the mean cross-entropy of the token logits with the image's own target.
    """
    logits, token_logits, (top, left, bottom, right) = outputs
    tokens = token_logits.shape[1]
    swapped = (bottom - top) * (right - left) / tokens
    mixed = (1 - swapped) * targets + swapped * targets.flip(0)
    dense = F.cross_entropy(token_logits.transpose(1, 2), targets.unsqueeze(2).expand(-1, -1, tokens), reduction='none')
    return F.cross_entropy(logits, mixed, reduction='none') + dense_weight * dense.mean(1)
