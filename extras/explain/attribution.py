"""What in an image a VOLO's answer rests on."""
import torch

from models.volo import VOLO


@torch.enable_grad()
def explain(net: VOLO, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (logits (B, classes), class attention, attribution, both (B, H/16, W/16)) of a network in evaluation.

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
    difference = tokens - tokens.mean((1, 2), keepdim=True)
    attribution = (gradient * difference).sum(-1).clamp(min=0)                # (B, H/16, W/16)
    return logits.detach(), attention.unflatten(1, tokens.shape[1:3]), attribution


def class_attention(net: VOLO, tokens: torch.Tensor) -> torch.Tensor:
    """Return what the class token takes from each of the tokens ahead of the class blocks, (B, N, dim) -> (B, N)."""
    cls = net.cls_token.expand(len(tokens), -1, -1)
    found = []
    for block in net.post_network:
        together = torch.cat([cls, tokens], dim=1)
        weights = block.attn.weights(block.norm1(together)).mean(1)  # (B, 1 + N), mean over the heads
        found.append(weights[:, 1:])
        cls = block(cls, tokens)
    return torch.stack(found).mean(0)
