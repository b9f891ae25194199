"""VOLO, Vision Outlooker: five image classifiers, D1 (27 M parameters) to D5 (296 M).

Paper: Yuan, Hou, Jiang, Feng, Yan, "VOLO: Vision Outlooker for Visual Recognition", arXiv:2106.13112 (TPAMI 2022).
Official code and weights: github.com/sail-sg/volo (Apache-2.0; commercial users are asked to contact the authors).
This file is an independent implementation. Names and shapes of the parameters are the published ones: those files load
unchanged here, and ours load there and in timm.

An image becomes tokens of 8x8 pixels (the stem). Outlookers refine them: each looks at the 3x3 neighbourhood of every
second token and predicts, from the token in its centre, how the nine neighbours mix. After one 2x downsample,
Transformers relate all tokens to each other; two class-attention blocks collect them in a class token.
Activations are channels-last, (B, H, W, C), from the stem to the last Transformer.
"""
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, to_2tuple, trunc_normal_
from timm.models import register_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from models import weights
from models.mlp import Mlp
from models.outlook import mix_windows
from models.token_label import random_box, swap_box

VARIANTS = {  # paper, table 2; stage 1 is Outlookers, stages 2 to 4 are Transformers
    'volo_d1': dict(layers=(4, 4, 8, 2), embed_dims=(192, 384), num_heads=(6, 12)),
    'volo_d2': dict(layers=(6, 4, 10, 4), embed_dims=(256, 512), num_heads=(8, 16)),
    'volo_d3': dict(layers=(8, 8, 16, 4), embed_dims=(256, 512), num_heads=(8, 16)),
    'volo_d4': dict(layers=(8, 8, 16, 4), embed_dims=(384, 768), num_heads=(12, 16)),
    'volo_d5': dict(layers=(12, 12, 20, 4), embed_dims=(384, 768), num_heads=(12, 16), mlp_ratio=4,
                    stem_hidden_dim=128),
}
PATCH_SIZE = 8      # pixels a side of a stage-1 token; the stem's stride of 2 times its projection's 4
POOLING_SCALE = 2   # stage-1 tokens a side of a later token, and the grid step of MixToken's box
STEP = PATCH_SIZE * POOLING_SCALE  # an image side is a multiple of it


class OutlookAttention(nn.Module):
    """Every window of kernel_size² tokens mixes its own values with weights that its centre token predicts.

    (B, H, W, dim) -> (B, H, W, dim). The windows' centres lie `stride` tokens apart; where windows overlap, their
    results add up. No query meets a key: the weights come from one linear layer (paper, section 3.1).
    """

    def __init__(self, dim, num_heads, kernel_size=3, padding=1, stride=2, qkv_bias=False, attn_drop=0.):
        super().__init__()
        self.num_heads, self.window, self.attn_drop = num_heads, (kernel_size, padding, stride), attn_drop
        self.scale = (dim // num_heads) ** -0.5
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.attn = nn.Linear(dim, kernel_size ** 4 * num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        stride, k2 = self.window[2], self.window[0] ** 2
        values = self.v(x).unflatten(-1, (self.num_heads, -1))                        # (B, H, W, heads, d)
        centre = F.avg_pool2d(x.permute(0, 3, 1, 2), stride, stride, ceil_mode=True).permute(0, 2, 3, 1)
        order = {'pattern': '(h i j) ... -> (j h i) ...', 'h': self.num_heads, 'i': k2}  # the outputs keys first
        weight, bias = (rearrange(p * self.scale, **order) for p in (self.attn.weight, self.attn.bias))
        logits = F.linear(centre, weight, bias)                                       # (B, h, w, keys*heads*queries)
        logits = logits.unflatten(-1, (k2, self.num_heads, k2))
        x = mix_windows(values, logits, self.window, self.attn_drop if self.training else 0.)
        return self.proj(x.flatten(3).contiguous())  # a view would make the product copy its weights in evaluation


class Outlooker(nn.Module):
    """Outlook attention, then a two-layer perceptron, each on a residual branch. (B, H, W, dim) -> the same."""

    def __init__(self, dim, num_heads, mlp_ratio, qkv_bias=False, attn_drop=0.):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = OutlookAttention(dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def attend(q, k, v, dropout=0.):
    """softmax(q·k / √d)·v, (B, heads, N, d) each.

    PyTorch's fused kernel is the faster one on GPUs, plain products of matrices that lie in order are on CPUs, but for
    fp32 without a backward pass.
    """
    if q.device.type != 'cpu' or dropout or (q.dtype == torch.float32 and not torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    heads = q.shape[1]
    q, k, v = (x.contiguous().flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v))  # (B*heads, N, d)
    with torch.autocast('cpu', enabled=False):  # the softmax stays in q's dtype
        return (torch.bmm(q, k.transpose(1, 2)).softmax(-1) @ v).unflatten(0, (-1, heads))


class Attention(nn.Module):
    """Multi-head self-attention over all tokens of a map. (B, H, W, dim) -> the same."""

    def __init__(self, dim, num_heads, qkv_bias=False, attn_drop=0.):
        super().__init__()
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        height = x.shape[1]
        q, k, v = rearrange(self.qkv(x), 'b y x (three h d) -> three b h (y x) d', three=3, h=self.num_heads)
        x = attend(q, k, v, self.attn_drop if self.training else 0.)
        return self.proj(rearrange(x, 'b h (y x) d -> b y x (h d)', y=height))


class Transformer(nn.Module):
    """Self-attention, then a two-layer perceptron, both under stochastic depth. (B, H, W, dim) -> the same."""

    def __init__(self, dim, num_heads, mlp_ratio, qkv_bias=False, attn_drop=0., drop_path=0.):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias, attn_drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ClassAttention(nn.Module):
    """The first token asks all tokens, itself included (CaiT, arXiv:2103.17239). (B, N, dim) -> (B, 1, dim)."""

    def __init__(self, dim, num_heads, qkv_bias=False, attn_drop=0.):
        super().__init__()
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.kv = nn.Linear(dim, dim * 2, bias=qkv_bias)
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        k, v = rearrange(self.kv(x), 'b n (two h d) -> two b h n d', two=2, h=self.num_heads)
        q = rearrange(self.q(x[:, :1]), 'b one (h d) -> b h one d', h=self.num_heads)
        x = attend(q, k, v, self.attn_drop if self.training else 0.)
        return self.proj(rearrange(x, 'b h one d -> b one (h d)'))


class ClassBlock(nn.Module):
    """Updates the class token by all tokens, which stay as they are. (B, 1, dim), (B, N, dim) -> (B, 1, dim)."""

    def __init__(self, dim, num_heads, mlp_ratio, qkv_bias=False, attn_drop=0.):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ClassAttention(dim, num_heads, qkv_bias, attn_drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, cls, x):
        cls = cls + self.attn(self.norm1(torch.cat([cls, x], dim=1)))
        return cls + self.mlp(self.norm2(cls))


class PatchEmbed(nn.Module):
    """The stem: three convolutions at half resolution, then one that makes tokens.

    (B, in_chans, H, W) -> (B, embed_dim, H/8, W/8).
    """

    def __init__(self, in_chans, hidden_dim, embed_dim):
        super().__init__()
        layers = []
        for chans, kernel, stride in ((in_chans, 7, 2), (hidden_dim, 3, 1), (hidden_dim, 3, 1)):
            layers += [nn.Conv2d(chans, hidden_dim, kernel, stride, padding=kernel // 2, bias=False),
                       nn.BatchNorm2d(hidden_dim), nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*layers)
        self.proj = nn.Conv2d(hidden_dim, embed_dim, kernel_size=PATCH_SIZE // 2, stride=PATCH_SIZE // 2)

    def forward(self, x):
        x = x.contiguous(memory_format=torch.channels_last)
        for conv, norm, act in zip(self.conv[::3], self.conv[1::3], self.conv[2::3], strict=True):
            x = act(norm(conv(x)) if norm.training else conv_norm(conv, norm, x))
        return self.proj(x)


def conv_norm(conv, norm, x):
    """norm(conv(x)) in evaluation, where BatchNorm is a scale and a shift: they go into the convolution's weights."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    return F.conv2d(x, weight, norm.bias - norm.running_mean * scale, conv.stride, conv.padding)


class Downsample(nn.Module):
    """Every 2x2 tokens become one. (B, H, W, in_dim) -> (B, H/2, W/2, out_dim)."""

    def __init__(self, in_dim, out_dim):
        super().__init__()
        self.proj = nn.Conv2d(in_dim, out_dim, kernel_size=POOLING_SCALE, stride=POOLING_SCALE)

    def forward(self, x):
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class VOLO(nn.Module):
    """The network. A float image batch (B, in_chans, H, W) goes in; what comes out depends on two switches:

    - `return_dense=False`: class logits (B, num_classes), in training as in evaluation.
    - `return_dense=True`: in evaluation class logits + 0.5 · the maximum of the token logits, as published; in training
      (class logits, token logits (B, N, num_classes), box). With `mix_token=True` the tokens of each image and of its
      partner in the reversed batch are swapped inside the box before the first block, and the token logits are swapped
      back; otherwise the box is (0, 0, 0, 0), that is, empty. The box counts later tokens: N = H/16 · W/16.

    `img_size` is pixels, a number or (height, width), each a multiple of 16; the batch must have that size, since
    pos_embed does. `return_mean=True` classifies by the mean of all tokens instead of the class token. `num_classes=0`
    returns features. `drop_path_rate` rises linearly over the depth, but only Transformers apply it, as published.
    Raises ValueError for settings that contradict each other and for a batch of another size.
    """

    def __init__(self, layers, embed_dims, num_heads, mlp_ratio=3, stem_hidden_dim=64, img_size=224, in_chans=3,
                 num_classes=1000, qkv_bias=False, drop_rate=0., attn_drop_rate=0., drop_path_rate=0.,
                 return_mean=False, return_dense=False, mix_token=False):
        super().__init__()
        self.img_size = tuple(to_2tuple(img_size))
        if len(self.img_size) != 2 or any(side < STEP or side % STEP for side in self.img_size):
            raise ValueError(f'img_size {img_size}: each side must be a multiple of {STEP} pixels')
        if len(embed_dims) != 2 or len(num_heads) != 2 or embed_dims[0] % num_heads[0] or embed_dims[1] % num_heads[1]:
            raise ValueError(f'embed_dims {embed_dims} and num_heads {num_heads}: each is a pair, for stage 1 and for '
                             'the later ones, and the heads divide the dims')
        if return_mean and return_dense:
            raise ValueError('return_mean has no class token to go with the token logits of return_dense: choose one')
        if mix_token and not return_dense:
            raise ValueError('mix_token needs the token logits: set return_dense=True too')
        self.num_classes, self.num_features = num_classes, embed_dims[1]
        self.return_mean, self.return_dense, self.mix_token = return_mean, return_dense, mix_token
        self.grad_checkpointing = False
        first, dim = embed_dims
        shared = dict(mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, attn_drop=attn_drop_rate)

        self.patch_embed = PatchEmbed(in_chans, stem_hidden_dim, first)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.img_size[0] // STEP, self.img_size[1] // STEP, dim))
        self.pos_drop = nn.Dropout(drop_rate)
        rates = [drop_path_rate * i / max(sum(layers) - 1, 1) for i in range(sum(layers))]
        stages = [nn.Sequential(*(Outlooker(first, num_heads[0], **shared) for _ in range(layers[0]))),
                  Downsample(first, dim)]
        for stage in range(1, len(layers)):
            start = sum(layers[:stage])
            stages.append(nn.Sequential(*(Transformer(dim, num_heads[1], drop_path=rate, **shared)
                                          for rate in rates[start:start + layers[stage]])))
        self.network = nn.ModuleList(stages)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.post_network = nn.ModuleList(ClassBlock(dim, num_heads[1], **shared) for _ in range(2))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        if return_dense:
            self.aux_head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self):
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)

    def no_weight_decay(self):
        """Names of the parameters that an optimizer should not decay, besides norms and biases."""
        return {'pos_embed', 'cls_token'}

    def group_matcher(self, coarse):
        """Patterns of parameter names, in the order of the depth, by which timm.optim decays learning rates.

        A layer is the stem, each block, the downsampling with pos_embed, each class block; the heads are the last.
        `coarse` is part of timm's interface; there is one grouping only.
        """
        return {'stem': '^patch_embed',
                'blocks': [(r'^network\.(\d+)\.(\d+)', None), (r'^network\.1\.|^pos_embed', (1,))],
                'class': [('^cls_token', (0,)), (r'^post_network\.(\d+)', None), ('^norm', (1,))]}

    def set_grad_checkpointing(self, enable=True):
        """Keep only the inputs of the blocks for the backward pass, which computes their insides a second time."""
        self.grad_checkpointing = enable

    def get_classifier(self):
        return self.head

    def run_blocks(self, blocks, x, *more):
        """Each block takes the one before's result, and `more`."""
        for block in blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, *more, use_reentrant=False)
            else:
                x = block(x, *more)
        return x

    def forward_features(self, x):
        """(B, in_chans, H, W) -> (normalised tokens (B, 1 + H/16 · W/16, dim), the class token first, and the box).

        Without return_dense and return_mean nobody needs the others: the class token comes alone, (B, 1, dim).
        """
        if x.shape[-2:] != self.img_size:
            raise ValueError(f'the images are {tuple(x.shape[-2:])}, the network was built for {self.img_size}')
        x = self.patch_embed(x).permute(0, 2, 3, 1)  # (B, H/8, W/8, C)
        box = (0, 0, 0, 0)
        if self.mix_token and self.training:
            box = random_box(x.shape[1] // POOLING_SCALE, x.shape[2] // POOLING_SCALE)
            x = swap_box(x, [POOLING_SCALE * side for side in box])
        outlookers, downsample, *transformers = self.network
        x = self.pos_drop(downsample(self.run_blocks(outlookers, x)) + self.pos_embed)
        for stage in transformers:
            x = self.run_blocks(stage, x)
        x = x.flatten(1, 2)
        cls = self.run_blocks(self.post_network, self.cls_token.expand(x.shape[0], -1, -1), x)
        if not self.return_dense and not self.return_mean:
            return self.norm(cls), box
        return self.norm(torch.cat([cls, x], dim=1)), box

    def forward(self, x):
        x, box = self.forward_features(x)
        if self.return_mean:
            return self.head(x.mean(1))
        logits = self.head(x[:, 0])
        if not self.return_dense:
            return logits
        token_logits = self.aux_head(x[:, 1:])
        if not self.training:
            return logits + 0.5 * token_logits.amax(1)
        if self.mix_token:
            height, width = self.pos_embed.shape[1:3]
            token_logits = swap_box(token_logits.unflatten(1, (height, width)), box).flatten(1, 2)
        return logits, token_logits, box


def default_cfg(name, img_size=(224, 224), num_classes=1000):
    """What timm knows about each of its networks: the published preprocessing, the names of the heads, the licence."""
    return {'architecture': name, 'input_size': (3, *img_size), 'num_classes': num_classes,
            'crop_pct': 1.15 if name in ('volo_d4', 'volo_d5') else 0.96, 'interpolation': 'bicubic',
            'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD, 'first_conv': 'patch_embed.conv.0',
            'classifier': ('head', 'aux_head'), 'license': 'apache-2.0'}


def _register(name):
    def build(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
        model = VOLO(**{**VARIANTS[name], **kwargs})
        model.pretrained_cfg = model.default_cfg = default_cfg(name, model.img_size, model.num_classes)
        if pretrained:
            weights.load_weights(model, weights.fetch_published(name, model.img_size, cache_dir))
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""VOLO-{name[-2:].upper()}. Keyword arguments go to VOLO; an unknown one is a TypeError.

    `pretrained=True` loads the published ImageNet-1k weights of the nearest image size from the model hub.
    `pretrained_cfg` and `pretrained_cfg_overlay` are what timm.create_model passes along; they are not used.
    """
    return register_model(build)


volo_d1, volo_d2, volo_d3, volo_d4, volo_d5 = map(_register, VARIANTS)
