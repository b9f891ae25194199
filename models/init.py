"""The initial weights of a VOLO, from which it learns a small set of images in few updates.

The published initialisation draws all linear layers from N(0, 0.02). Each attention then begins as an average over all
that it sees, and has to learn that a neighbour differs from a token far away; a token begins as a random mixture.

Here each head begins by looking at one neighbour, as an impulse filter of a convolutional network does (Zheng et al.,
arXiv:2404.01139 and 2505.19985). A token begins as the mean and the slopes of each channel over its area. The layers
are large enough to matter from the first update on (Glorot and Bengio, 2010). No name and no shape changes.
"""
import itertools
import math

import torch
from timm.layers import trunc_normal_
from torch import nn

from models.layers import Attention
from models.outlook import OutlookAttention

# The offsets of the neighbours that successive heads look at: (rows down, columns to the right).
OFFSETS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))
OUTLOOK = 2.5      # by how much an Outlooker's logit of the head's neighbour exceeds the other logits
TRANSFORMER = 9.   # the same in the first Transformer; less in later ones, whose tokens are larger
SHIFTED = 0.5      # weight of the shifted tokens that an Outlooker adds to its input
TOKEN = 3.         # approximate standard deviation of the tokens ahead of the first Transformer
POSITION = 8.      # amplitude of the positions in pos_embed
RANDOM = 0.5       # scale of the random part of queries and keys, and of an Outlooker's values and projection
NOISE = 0.2        # norm of the random part of a filter, relative to the norm of the filter
RECTIFIED = 0.4    # mean of a standard normal distribution behind a ReLU
COLOUR = 9         # by how much the squared frequency of a colour filter may be below that of a brightness filter


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
    outlooks = [module for module in net.modules() if isinstance(module, OutlookAttention)]
    attentions = [module for module in net.modules() if isinstance(module, Attention)]
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
    """Return the filters of the discrete cosine transform of `shape` (channels, height, width) with the lowest
    frequencies: (count, *shape), or fewer if there are no more, each of norm 1.

    Across three channels they are brightness, red against blue, and green against both.
    """
    by_channel, by_row, by_column = (
        torch.cos(math.pi / size * torch.arange(size)[:, None] * (torch.arange(size) + 0.5)) for size in shape)

    def order(frequency: tuple[int, int, int]) -> tuple:
        channel, row, column = frequency
        colour = COLOUR if channel else 0
        return colour + row ** 2 + column ** 2, frequency

    filters = []
    for channel, row, column in sorted(itertools.product(*map(range, shape)), key=order)[:count]:
        found = torch.einsum('c,y,x->cyx', by_channel[channel], by_row[row], by_column[column])
        filters.append(found / found.norm())
    return torch.stack(filters)


def filter_images(conv: nn.Conv2d, grey: bool = False) -> None:
    """Make each output channel a cosine filter of the image, or its negative, since the ReLU behind keeps one sign.

    For `grey` images they are of brightness alone, up to higher frequencies: filters of colour see nothing there.
    """
    channels, *window = conv.weight.shape[1:]
    count = math.ceil(conv.out_channels / 2)
    if grey:
        filters = cosine_filters((1, *window), count).expand(-1, channels, -1, -1) / math.sqrt(channels)
    else:
        filters = cosine_filters((channels, *window), count)
    filters = torch.cat([filters, -filters])
    set_filters(conv, filters[torch.arange(conv.out_channels) % len(filters)])


def summarise_channels(conv: nn.Conv2d, norm: float) -> None:
    """Make the output channels the mean of each input channel, then its slope from left to right, then that from top
    to bottom, and so on, by filters of norm `norm`.
    """
    channels = torch.arange(conv.out_channels)
    filters = cosine_filters((1, *conv.kernel_size), math.ceil(conv.out_channels / conv.in_channels)).squeeze(1)
    weight = torch.zeros_like(conv.weight)
    weight[channels, channels % conv.in_channels] = norm * filters[channels // conv.in_channels % len(filters)]
    set_filters(conv, weight)


def set_filters(conv: nn.Conv2d, filters: torch.Tensor) -> None:
    """Set a convolution's weights to filters of one norm, with some noise."""
    conv.weight.copy_(filters + NOISE * filters[0].norm() * torch.randn_like(filters) / math.sqrt(filters[0].numel()))


def look_in_window(attention: OutlookAttention, offsets: itertools.cycle) -> None:
    """Set biases by which each head gives each token of a window mainly its neighbour at the next offset.

    At the border of the window it is the token nearest to that neighbour. Values and projection are near the identity,
    so that the whole is a shift.
    """
    side = attention.window[0]
    logits = torch.zeros(attention.num_heads, side, side, side, side)  # (heads, query's y, x, key's y, x)
    for head, (down, right) in zip(logits, offsets, strict=False):
        for y, x in itertools.product(range(side), repeat=2):
            key_y = min(max(y + down, 0), side - 1)
            key_x = min(max(x + right, 0), side - 1)
            head[y, x, key_y, key_x] = OUTLOOK / attention.scale
    attention.attn.bias.copy_(logits.flatten())
    for layer, scale in ((attention.v, 1.), (attention.proj, SHIFTED)):
        layer.weight.mul_(RANDOM).add_(scale * torch.eye(len(layer.weight)))


def encode_positions(pos_embed: torch.Tensor, count: int) -> torch.Tensor:
    """Write the position of each token into the first 4 · count channels of pos_embed (1, H, W, dim).

    They are sine and cosine of y, then sine and cosine of x, each for `count` frequencies. Returns the frequencies, in
    radians per token.
    """
    height, width = pos_embed.shape[1:3]
    highest = math.pi / 1.5
    lowest = math.pi / max(height, width)
    frequencies = highest * (lowest / highest) ** torch.linspace(0, 1, count)
    angles = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij'), -1)  # (H, W, 2)
    angles = angles[..., None] * frequencies                                                         # (H, W, 2, count)
    codes = torch.stack([angles.sin(), angles.cos()], -2).flatten(2)                                 # (H, W, 4 · count)
    pos_embed[..., :4 * count] = POSITION * codes
    return frequencies


def look_at_position(attention: Attention, frequencies: torch.Tensor, offsets: itertools.cycle) -> None:
    """Set queries and keys by which each head attends mainly to the neighbour at the next offset.

    A key is the code of its token's position. A query is the code of the position that it looks for, which is its own
    with sine and cosine turned by frequency · offset. Their product is largest where the two positions are the same.
    """
    count = len(frequencies)
    head_dim = attention.head_dim
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
            cosine = sine + count
            angle = frequencies * offset[axis]
            query[sine, sine] += gain * angle.cos()
            query[sine, cosine] += gain * angle.sin()
            query[cosine, cosine] += gain * angle.cos()
            query[cosine, sine] -= gain * angle.sin()
