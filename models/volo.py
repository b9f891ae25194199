"""VOLO, Vision Outlooker: five image classifiers, D1 (27 M parameters) to D5 (296 M).

Paper: Yuan, Hou, Jiang, Feng, Yan, "VOLO: Vision Outlooker for Visual Recognition", arXiv:2106.13112 (TPAMI 2022).
Official code and weights: github.com/sail-sg/volo (Apache-2.0; commercial users are asked to contact the authors).
This file is an independent implementation. Names and shapes of the parameters are the published ones: the official
weights load here unchanged, and ours load in the official code and in timm.

The stem turns an image into tokens of 8x8 pixels. Outlookers refine them: every second token, in both directions,
predicts how the nine tokens of its 3x3 neighbourhood are mixed. After one 2x downsampling, Transformers relate all
tokens to each other; two class-attention blocks then gather them into a class token.
Activations are channels-last, (B, H, W, C), from the first Outlooker to the last Transformer.
"""
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.init import init_weights
from models.layers import PATCH_SIZE, Attention, ClassAttention, DropPath, Mlp, PatchEmbed
from models.outlook import OutlookAttention
from models.token_label import Box, combine_logits, random_box, swap_box

VARIANTS = {  # paper, table 2: stage 1 consists of Outlookers, stages 2 to 4 of Transformers
    'volo_d1': dict(layers=(4, 4, 8, 2), embed_dims=(192, 384), num_heads=(6, 12)),
    'volo_d2': dict(layers=(6, 4, 10, 4), embed_dims=(256, 512), num_heads=(8, 16)),
    'volo_d3': dict(layers=(8, 8, 16, 4), embed_dims=(256, 512), num_heads=(8, 16)),
    'volo_d4': dict(layers=(8, 8, 16, 4), embed_dims=(384, 768), num_heads=(12, 16)),
    'volo_d5': dict(layers=(12, 12, 20, 4), embed_dims=(384, 768), num_heads=(12, 16), mlp_ratio=4,
                    stem_hidden_dim=128),
}
POOLING_SCALE = 2   # side of a later token in stage-1 tokens, and the grid step of MixToken's box
STRIDE = PATCH_SIZE * POOLING_SCALE  # side of a later token in pixels; the sides of an image are multiples of it


class Outlooker(nn.Module):
    """Outlook attention, then a perceptron, each on a residual branch. (B, H, W, dim) -> (B, H, W, dim)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool = False,
                 attn_drop: float = 0.) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = OutlookAttention(dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Self-attention, then a perceptron, each on a residual branch with stochastic depth.

    (B, H, W, dim) -> (B, H, W, dim).
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool = False, attn_drop: float = 0.,
                 drop_path: float = 0.) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias, attn_drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ClassBlock(nn.Module):
    """Class attention, then a perceptron: the class token learns from the others, which do not change.

    (B, 1, dim), (B, N, dim) -> (B, 1, dim).
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool = False,
                 attn_drop: float = 0.) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ClassAttention(dim, num_heads, qkv_bias, attn_drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, cls: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        cls = cls + self.attn(self.norm1(torch.cat([cls, x], dim=1)))
        return cls + self.mlp(self.norm2(cls))


class Downsample(nn.Module):
    """The convolution that makes each 2x2 tokens one. (B, H, W, in_dim) -> (B, H/2, W/2, out_dim)."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, out_dim, kernel_size=POOLING_SCALE, stride=POOLING_SCALE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # channels first for the convolution, then last


class VOLO(nn.Module):
    """The network. It takes a float batch of images (B, in_chans, H, W). `return_dense` decides what it returns:

    - False: class logits (B, num_classes), both in training and in evaluation.
    - True, in evaluation: class logits plus half the maximum of the token logits over all tokens (combine_logits).
    - True, in training: (class logits, token logits (B, N, num_classes), box), with N = H/16 · W/16. With
      `mix_token=True` the tokens of each image and of its partner in the reversed batch are swapped inside the box
      before the first block, and the token logits are swapped back; otherwise the box is empty, (0, 0, 0, 0). The box
      is (top, left, bottom, right) on the grid of the N later tokens.

    `layers` is the number of blocks of each stage; `embed_dims` and `num_heads` are pairs, for stage 1 and for the
    later stages. `img_size` is in pixels, a number or (height, width), each a multiple of 16; for a batch of another
    size pos_embed is resized. `return_mean=True` classifies the mean of all tokens instead of the class token.
    `num_classes=0` returns features. `drop_path_rate` is that of the last Transformer: the rate rises linearly over
    all layers, but only Transformers apply it, as published.

    Raises ValueError for settings that contradict each other and for images whose sides are no multiples of 16.
    """

    def __init__(self, layers: tuple[int, ...], embed_dims: tuple[int, int], num_heads: tuple[int, int],
                 mlp_ratio: float = 3, stem_hidden_dim: int = 64, img_size: int | tuple[int, int] = 224,
                 in_chans: int = 3, num_classes: int = 1000, qkv_bias: bool = False, drop_rate: float = 0.,
                 attn_drop_rate: float = 0., drop_path_rate: float = 0., return_mean: bool = False,
                 return_dense: bool = False, mix_token: bool = False) -> None:
        super().__init__()
        self.img_size = tuple(to_2tuple(img_size))
        check_sizes(layers, embed_dims, num_heads, self.img_size)
        if return_mean and return_dense:
            raise ValueError('return_mean has no class token to go with the token logits of return_dense: choose one')
        if mix_token and not return_dense:
            raise ValueError('mix_token needs the token logits: set return_dense=True too')
        dim = embed_dims[1]
        self.num_classes = num_classes
        self.num_features = dim
        self.return_mean = return_mean
        self.return_dense = return_dense
        self.mix_token = mix_token
        self.grad_checkpointing = False
        shared = dict(mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, attn_drop=attn_drop_rate)

        self.patch_embed = PatchEmbed(in_chans, stem_hidden_dim, embed_dims[0])
        self.pos_embed = nn.Parameter(torch.zeros(1, self.img_size[0] // STRIDE, self.img_size[1] // STRIDE, dim))
        self.pos_drop = nn.Dropout(drop_rate)
        self.network = build_stages(layers, embed_dims, num_heads, drop_path_rate, shared)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.post_network = nn.ModuleList(ClassBlock(dim, num_heads[1], **shared) for _ in range(2))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        if return_dense:
            self.aux_head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        if not self.pos_embed.is_meta:  # there are no values to set, and going through the motions takes half a second
            init_weights(self)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters without weight decay, besides those of norms and biases."""
        return {'pos_embed', 'cls_token'}

    def group_matcher(self, coarse: bool) -> dict[str, Any]:
        """Return patterns of parameter names in the order of depth, for timm.optim's layer-wise learning-rate decay.

        The layers are the stem, each block, the downsampling with pos_embed, and each class block; the heads come last.
        `coarse` is part of timm's interface and has no effect.
        """
        return {'stem': '^patch_embed',
                'blocks': [(r'^network\.(\d+)\.(\d+)', None), (r'^network\.1\.|^pos_embed', (1,))],
                'class': [('^cls_token', (0,)), (r'^post_network\.(\d+)', None), ('^norm', (1,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of the blocks for the backward pass, which then computes their activations again."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the class head; the method is part of timm's interface."""
        return self.head

    def run_blocks(self, blocks: nn.Module, x: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        """Apply the blocks one after the other to x; each also gets `more`, unchanged."""
        for block in blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, *more, use_reentrant=False)
            else:
                x = block(x, *more)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, Box]:
        return self.forward_head(*self.forward_features(x))

    def forward_features(self, x: torch.Tensor) -> tuple[torch.Tensor, Box]:
        """Return the tokens (B, H/16, W/16, dim) ahead of the class blocks, and the box, for x (B, in_chans, H, W)."""
        if any(side % STRIDE for side in x.shape[-2:]):
            raise ValueError(f'the images are {tuple(x.shape[-2:])}: each side must be a multiple of {STRIDE} pixels')
        x = self.patch_embed(x).permute(0, 2, 3, 1)  # (B, H/8, W/8, C)
        box = (0, 0, 0, 0)
        if self.mix_token and self.training:
            box = random_box(x.shape[1] // POOLING_SCALE, x.shape[2] // POOLING_SCALE, x.device)
            x = swap_box(x, [POOLING_SCALE * side for side in box])
        outlookers, downsample, *transformers = self.network
        x = downsample(self.run_blocks(outlookers, x))  # (B, H/16, W/16, dim)
        pos_embed = self.pos_embed
        if pos_embed.shape[1:3] != x.shape[1:3]:
            pos_embed = resize_pos_embed(pos_embed, x.shape[1:3])
        x = self.pos_drop(x + pos_embed)
        for stage in transformers:
            x = self.run_blocks(stage, x)
        return x, box

    def forward_head(self, x: torch.Tensor, box: Box) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, Box]:
        """Return what forward returns, from what forward_features returns."""
        grid = x.shape[1:3]
        x = x.flatten(1, 2)  # (B, N, dim), with N = H/16 · W/16
        cls = self.run_blocks(self.post_network, self.cls_token.expand(x.shape[0], -1, -1), x)
        if not self.return_dense and not self.return_mean:
            return self.head(self.norm(cls)[:, 0])
        x = self.norm(torch.cat([cls, x], dim=1))
        if self.return_mean:
            return self.head(x.mean(1))
        logits = self.head(x[:, 0])
        token_logits = self.aux_head(x[:, 1:])
        if not self.training:
            return combine_logits(logits, token_logits)
        if self.mix_token:
            token_logits = swap_box(token_logits.unflatten(1, grid), box).flatten(1, 2)  # (B, N, num_classes)
        return logits, token_logits, box

    def class_attention(self, x: torch.Tensor) -> torch.Tensor:
        """Return where the class token looks, of the tokens (B, H/16, W/16, dim) that forward_features returns.

        It is what the class token takes from each of them, (B, H/16, W/16), on average over the heads of the class
        blocks; with what it takes from itself the sum is 1.
        """
        grid = x.shape[1:3]
        x = x.flatten(1, 2)
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        found = []
        for block in self.post_network:
            weights = block.attn.weights(block.norm1(torch.cat([cls, x], dim=1)))  # (B, heads, 1 + N)
            found.append(weights[:, :, 1:].mean(1))
            cls = block(cls, x)
        return torch.stack(found).mean(0).unflatten(1, grid)


def resize_pos_embed(pos_embed: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (1, H, W, C) to (1, *size, C) as the official code does: bicubic, without antialiasing."""
    resized = F.interpolate(pos_embed.float().permute(0, 3, 1, 2), size=size, mode='bicubic', align_corners=False)
    return resized.permute(0, 2, 3, 1).to(pos_embed.dtype)  # (1, C, *size) -> (1, *size, C)


def check_sizes(layers: tuple[int, ...], embed_dims: tuple[int, int], num_heads: tuple[int, int],
                img_size: tuple[int, int]) -> None:
    """Raise ValueError, one line, for sizes that no VOLO can have."""
    if len(img_size) != 2 or any(side < STRIDE or side % STRIDE for side in img_size):
        raise ValueError(f'img_size {img_size}: each side must be a multiple of {STRIDE} pixels')
    if not are_counts(layers, 0) or not layers:
        raise ValueError(f'layers {layers}: give a list with the number of blocks of each stage')
    pairs = are_counts(embed_dims, 1) and are_counts(num_heads, 1) and len(embed_dims) == len(num_heads) == 2
    if not pairs or embed_dims[0] % num_heads[0] or embed_dims[1] % num_heads[1]:
        raise ValueError(f'embed_dims {embed_dims} and num_heads {num_heads}: give two of each, for stage 1 and for '
                         'the later stages, with embed_dims divisible by num_heads')


def are_counts(values: Any, least: int) -> bool:
    """Return whether something is a list or tuple of whole numbers, none below `least`."""
    return isinstance(values, (list, tuple)) and all(isinstance(value, int) and value >= least for value in values)


def build_stages(layers: tuple[int, ...], embed_dims: tuple[int, int], num_heads: tuple[int, int],
                 drop_path_rate: float, shared: dict[str, Any]) -> nn.ModuleList:
    """Return the Outlookers, the downsampling and the stages of Transformers; `shared` are arguments of each block."""
    first, dim = embed_dims
    rates = [drop_path_rate * i / max(sum(layers) - 1, 1) for i in range(sum(layers))]
    stages = [nn.Sequential(*(Outlooker(first, num_heads[0], **shared) for _ in range(layers[0]))),
              Downsample(first, dim)]
    for stage in range(1, len(layers)):
        start = sum(layers[:stage])
        stages.append(nn.Sequential(*(Transformer(dim, num_heads[1], drop_path=rate, **shared)
                                      for rate in rates[start:start + layers[stage]])))
    return nn.ModuleList(stages)
