"""Token labelling (Jiang et al., arXiv:2104.10858), in the form that VOLO's official recipe uses without label maps.

MixToken swaps a box of tokens between each image and its partner in the reversed batch. The class token then learns the
mixture of both labels, and each other token the label of the image that it came from.
"""
import torch
import torch.nn.functional as F

Box = torch.Tensor | tuple[int, int, int, int]  # (top, left, bottom, right) on a grid of cells, the ends exclusive


def random_box(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return MixToken's box on a grid of height x width cells: (top, left, bottom, right), a tensor on the device.

    Its share of the area is 1 - λ, minus what the border cuts off, with λ ~ Beta(1, 1), the uniform distribution. It is
    drawn with torch's generator of the device and not read here, so that nothing waits for a GPU.
    """
    share = (1 - torch.rand((), device=device)).sqrt()  # of each side
    half_h, half_w = ((side * share).long() // 2 for side in (height, width))
    y, x = (torch.randint(side, (), device=device) for side in (height, width))  # the centre
    return torch.stack([(y - half_h).clamp(min=0), (x - half_w).clamp(min=0),
                        (y + half_h).clamp(max=height), (x + half_w).clamp(max=width)])


def swap_box(maps: torch.Tensor, box: Box) -> torch.Tensor:
    """Give each map, inside the box, the content of its partner in the reversed batch. (B, H, W, C) -> (B, H, W, C)."""
    top, left, bottom, right = box
    y, x = (torch.arange(side, device=maps.device) for side in maps.shape[1:3])
    inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))  # (H, W)
    return torch.where(inside[..., None], maps.flip(0), maps)


def combine_logits(logits: torch.Tensor, token_logits: torch.Tensor) -> torch.Tensor:
    """Return class logits (B, classes) + ½ · maximum over the token logits (B, N, classes), as published networks do.
    """
    return logits + 0.5 * token_logits.amax(1)


def token_label_loss(outputs: tuple[torch.Tensor, torch.Tensor, Box], targets: torch.Tensor,
                     dense_weight: float = 0.5) -> torch.Tensor:
    """Return the loss of each image, (B,), from what a VOLO with return_dense=True returns in training mode.

    `outputs` are class logits (B, classes), token logits (B, N, classes) and the box; `targets` are probabilities, of
    the images (B, classes) or also of each token (B, 1 + N, classes). The loss is the cross-entropy of the class logits
    with the image's target, mixed as the box mixed the tokens, plus `dense_weight` times the mean cross-entropy of the
    token logits with their own targets, or that of their image.
    """
    logits, token_logits, (top, left, bottom, right) = outputs
    tokens = token_logits.shape[1]
    if targets.ndim == 2:
        token_targets = targets.unsqueeze(1).expand(-1, tokens, -1)             # (B, N, classes)
    else:
        token_targets = targets[:, 1:]
        targets = targets[:, 0]
    swapped = (bottom - top) * (right - left) / tokens
    mixed = (1 - swapped) * targets + swapped * targets.flip(0)
    dense = F.cross_entropy(token_logits.mT, token_targets.mT, reduction='none')  # of (B, classes, N) each -> (B, N)
    return F.cross_entropy(logits, mixed, reduction='none') + dense_weight * dense.mean(1)
