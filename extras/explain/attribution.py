"""What in an image a VOLO's answer rests on."""
import torch

from models.volo import VOLO


@torch.enable_grad()
def explain(net: VOLO, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (logits (B, classes), class attention, attribution, both (B, H/16, W/16)) of a network in evaluation.

    The attribution is how much the logit of the most probable class would fall, to first order and where it would, if
    a token were the mean one of the image: gradient times difference.
    """
    with torch.no_grad():
        tokens, box = net.forward_features(images)                            # (B, H/16, W/16, dim)
        attention = net.class_attention(tokens)                               # (B, H/16, W/16)
    tokens.requires_grad_()
    logits = net.forward_head(tokens, box)
    gradient, = torch.autograd.grad(logits.amax(1).sum(), tokens)             # (B, H/16, W/16, dim)
    tokens = tokens.detach()
    difference = tokens - tokens.mean((1, 2), keepdim=True)
    attribution = (gradient * difference).sum(-1).clamp(min=0)                # (B, H/16, W/16)
    return logits.detach(), attention, attribution
