"""What in an image a VOLO's answer rests on."""
import torch

from models.volo import VOLO


@torch.enable_grad()
def explain(net: VOLO, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logits (B, classes), class attention, attribution (B, H/16, W/16) both) of a network in evaluation.

    The class attention is what the class token takes from each place, on average over the heads of the class blocks;
    with what it takes from itself the sum is 1. The attribution is how much the logit of the most probable class would
    fall, to first order and where it would, if a token were the mean one of the image: gradient times difference.
    """
    with torch.no_grad():
        tokens, box = net.forward_features(images)                            # (B, H/16, W/16, dim)
        attention = class_attention(net, tokens.flatten(1, 2))                # (B, N)
    tokens.requires_grad_()
    logits = net.forward_head(tokens, box)
    gradient, = torch.autograd.grad(logits.amax(1).sum(), tokens)             # (B, H/16, W/16, dim)
    tokens = tokens.detach()
    attribution = (gradient * (tokens - tokens.mean((1, 2), keepdim=True))).sum(-1).clamp(min=0)
    return logits.detach(), attention.unflatten(1, tokens.shape[1:3]), attribution


def class_attention(net: VOLO, x: torch.Tensor) -> torch.Tensor:
    """Tokens (B, N, dim) ahead of the class blocks -> what the class token takes from each of them (B, N)."""
    cls, found = net.cls_token.expand(len(x), -1, -1), []
    for block in net.post_network:
        found.append(block.attn.weights(block.norm1(torch.cat([cls, x], dim=1))).mean(1)[:, 1:])
        cls = block(cls, x)
    return torch.stack(found).mean(0)
