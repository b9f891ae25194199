"""The initial weights of a VOLO, from which it learns a small set of pictures in few updates.

With the published ones, all linear layers from N(0, 0.02), every attention begins as an average over all that it sees,
and has to learn that a neighbour is not a token far away. Here each head begins by looking at one neighbour, as an
impulse filter of a convolutional network does (Zheng et al., arXiv:2404.01139 and 2505.19985), and the layers are large
enough to matter from the first update on (Glorot and Bengio, 2010). No name and no shape changes.
"""
import itertools
import math

import torch
from timm.layers import trunc_normal_
from torch import nn

from models.attention import Attention
from models.outlook import OutlookAttention

# Where the heads look, one after the other: (rows down, columns to the right).
OFFSETS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))
OUTLOOK = 2.5      # by how much the logit of that neighbour exceeds the others, in an Outlooker
TRANSFORMER = 6.   # the same in the first Transformer; less in later ones, whose tokens are larger
POSITION = 4.      # amplitude of the positions in pos_embed, of tokens that have a standard deviation of about 2
RANDOM = 0.5       # scale of what is random in queries and keys


def init_weights(net: nn.Module) -> None:
    """Initialise a VOLO, with PyTorch's global random number generator."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            if name in ('head', 'aux_head'):
                trunc_normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    trunc_normal_(net.pos_embed, std=0.02)
    trunc_normal_(net.cls_token, std=0.02)
    outlooks, attentions = ([module for module in net.modules() if isinstance(module, kind)]
                            for kind in (OutlookAttention, Attention))
    with torch.no_grad():
        offsets = itertools.cycle(OFFSETS)
        for attention in outlooks:
            look_in_window(attention, offsets)
        if attentions and attentions[0].head_dim >= 4:
            frequencies = encode_positions(net.pos_embed, attentions[0].head_dim // 4)
            offsets = itertools.cycle(OFFSETS)
            for attention in attentions:
                look_at_position(attention, frequencies, offsets)


def look_in_window(attention: OutlookAttention, offsets: itertools.cycle) -> None:
    """Biases with which each head mixes a window so that every token gets mainly its neighbour at the next offset; at
    the border of the window, the nearest to it.
    """
    side = attention.window[0]
    logits = torch.zeros(attention.num_heads, side, side, side, side)  # (heads, query's y, x, key's y, x)
    for head, (down, right) in zip(logits, offsets, strict=False):
        for y, x in itertools.product(range(side), repeat=2):
            head[y, x, min(max(y + down, 0), side - 1), min(max(x + right, 0), side - 1)] = OUTLOOK / attention.scale
    attention.attn.bias.copy_(logits.flatten())


def encode_positions(pos_embed: torch.Tensor, count: int) -> torch.Tensor:
    """Write the position of each token into the first 4 · count channels of pos_embed (1, H, W, dim): sine and cosine
    of y, sine and cosine of x, each for `count` frequencies, which are returned, in radians per token.
    """
    height, width = pos_embed.shape[1:3]
    highest, lowest = math.pi / 1.5, math.pi / max(height, width)
    frequencies = highest * (lowest / highest) ** torch.linspace(0, 1, count)
    angles = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij'), -1)  # (H, W, 2)
    angles = angles[..., None] * frequencies                                                         # (H, W, 2, count)
    codes = torch.stack([angles.sin(), angles.cos()], -2).flatten(2)                                 # (H, W, 4 · count)
    pos_embed[..., :4 * count] = POSITION * codes
    return frequencies


def look_at_position(attention: Attention, frequencies: torch.Tensor, offsets: itertools.cycle) -> None:
    """Queries and keys of which each head attends mainly to the neighbour at the next offset.

    A key is the code of its token's position; a query is that of the position which it looks for, for which sine and
    cosine are turned by frequency · offset. Their product is largest where both are the same.
    """
    count, head_dim = len(frequencies), attention.head_dim
    norm = POSITION / math.sqrt(4 + POSITION ** 2 * 2 * count / attention.qkv.in_features)  # of a code after LayerNorm
    gain = math.sqrt(TRANSFORMER * math.sqrt(head_dim) / (2 * count)) / norm
    queries, keys, _ = attention.qkv.weight.view(3, attention.num_heads, head_dim, -1)
    for query, key, offset in zip(queries, keys, offsets, strict=False):
        query *= RANDOM
        key *= RANDOM
        key[:4 * count, :4 * count] += gain * torch.eye(4 * count)
        for axis in range(2):
            sine = torch.arange(count) + 2 * count * axis
            cosine, angle = sine + count, frequencies * offset[axis]
            query[sine, sine] += gain * angle.cos()
            query[sine, cosine] += gain * angle.sin()
            query[cosine, cosine] += gain * angle.cos()
            query[cosine, sine] -= gain * angle.sin()
