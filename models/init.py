"""The initial weights of a VOLO, from which it learns a small set of pictures in few updates.

With the published ones, all linear layers from N(0, 0.02), every attention begins as an average over all that it sees,
and has to learn that a neighbour is not a token far away; a token begins as a thousand numbers mixed at random. Here
each head begins by looking at one neighbour, as an impulse filter of a convolutional network does (Zheng et al.,
arXiv:2404.01139 and 2505.19985), a token begins as mean and slopes of each channel over its area, and the layers are
large enough to matter from the first update on (Glorot and Bengio, 2010). No name and no shape changes.
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
TRANSFORMER = 9.   # the same in the first Transformer; less in later ones, whose tokens are larger
SHIFTED = 0.5      # how much of the shifted tokens an Outlooker adds
TOKEN = 3.         # standard deviation of the tokens there, about
POSITION = 8.      # amplitude of the positions in pos_embed
RANDOM = 0.5       # scale of what is random in queries and keys, and in values and projections of an Outlooker
NOISE = 0.2        # norm of what is random in a filter, relative to that of the filter
RECTIFIED = 0.4    # the mean of a normal distribution behind a ReLU
COLOUR = 9         # by how much the squared frequency of a colour filter may be lower than that of one of brightness


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
        filter_images(net.patch_embed.conv[0])
        summarise_channels(net.patch_embed.proj, 1.)
        net.patch_embed.proj.bias.copy_(-RECTIFIED * net.patch_embed.proj.weight.sum((1, 2, 3)))  # tokens of mean 0
        summarise_channels(net.network[1].proj, 0.5)  # the first is then the mean of the four tokens
        offsets = itertools.cycle(OFFSETS)
        for attention in outlooks:
            look_in_window(attention, offsets)
        if attentions and attentions[0].head_dim >= 4:
            frequencies = encode_positions(net.pos_embed, attentions[0].head_dim // 4)
            offsets = itertools.cycle(OFFSETS)
            for attention in attentions:
                look_at_position(attention, frequencies, offsets)


def cosine_filters(shape: tuple[int, int, int], count: int) -> torch.Tensor:
    """(count, channels, height, width): the filters of the discrete cosine transform of `shape` with the lowest
    frequencies, fewer if it has not so many, each of norm 1. Those across three channels are brightness, red against
    blue, green against both.
    """
    bases = [torch.cos(math.pi / size * torch.arange(size)[:, None] * (torch.arange(size) + 0.5)) for size in shape]
    frequencies = sorted(itertools.product(*map(range, shape)),
                         key=lambda cyx: (COLOUR * bool(cyx[0]) + cyx[1] ** 2 + cyx[2] ** 2, cyx))
    filters = [torch.einsum('c,y,x->cyx', *(basis[number] for basis, number in zip(bases, cyx, strict=True)))
               for cyx in frequencies[:count]]
    return torch.stack([found / found.norm() for found in filters])


def filter_images(conv: nn.Conv2d) -> None:
    """Make each output channel a cosine filter of the image or its negative: the ReLU behind it keeps one sign."""
    filters = cosine_filters(conv.weight.shape[1:], math.ceil(conv.out_channels / 2))
    filters = torch.cat([filters, -filters])
    set_filters(conv, filters[torch.arange(conv.out_channels) % len(filters)])


def summarise_channels(conv: nn.Conv2d, norm: float) -> None:
    """Make the output channels the mean of each input channel, then its slope from left to right, then from top to
    bottom, and so on, by filters of that norm.
    """
    channels = torch.arange(conv.out_channels)
    filters = cosine_filters((1, *conv.kernel_size), math.ceil(conv.out_channels / conv.in_channels)).squeeze(1)
    weight = torch.zeros_like(conv.weight)
    weight[channels, channels % conv.in_channels] = norm * filters[channels // conv.in_channels % len(filters)]
    set_filters(conv, weight)


def set_filters(conv: nn.Conv2d, filters: torch.Tensor) -> None:
    """The filters, which have the same norm, and some noise."""
    conv.weight.copy_(filters + NOISE * filters[0].norm() * torch.randn_like(filters) / math.sqrt(filters[0].numel()))


def look_in_window(attention: OutlookAttention, offsets: itertools.cycle) -> None:
    """Biases with which each head mixes a window so that every token gets mainly its neighbour at the next offset, or
    at the border of the window the nearest to it. Values and projection are near the identity, so that it is a shift.
    """
    side = attention.window[0]
    logits = torch.zeros(attention.num_heads, side, side, side, side)  # (heads, query's y, x, key's y, x)
    for head, (down, right) in zip(logits, offsets, strict=False):
        for y, x in itertools.product(range(side), repeat=2):
            head[y, x, min(max(y + down, 0), side - 1), min(max(x + right, 0), side - 1)] = OUTLOOK / attention.scale
    attention.attn.bias.copy_(logits.flatten())
    for layer, scale in ((attention.v, 1.), (attention.proj, SHIFTED)):
        layer.weight.mul_(RANDOM).add_(scale * torch.eye(len(layer.weight)))


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
    variance = TOKEN ** 2 + POSITION ** 2 * 2 * count / attention.qkv.in_features
    norm = POSITION / math.sqrt(variance)  # of a code after LayerNorm
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
