"""What a network in evaluation makes of images, besides their logits."""
import torch
from torch import nn

from models.volo import VOLO


def logits_and_features(net: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(logits (B, classes), features (B, dim)) of images (B, 3, H, W).

    The features say what an image is like: the mean of a VOLO's tokens, or what the classifier of another network gets.
    They are None for one without timm's forward_features and forward_head.
    """
    if isinstance(net, VOLO):
        tokens, box = net.forward_features(images)
        return net.forward_head(tokens, box), tokens.mean((1, 2))
    if not hasattr(net, 'forward_features') or not hasattr(net, 'forward_head'):
        return net(images), None
    features = net.forward_features(images)
    return net.forward_head(features), net.forward_head(features, pre_logits=True)
