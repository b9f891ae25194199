"""The layers of VOLO besides outlook attention: the stem, two kinds of attention, the perceptron, stochastic depth."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

PATCH_SIZE = 8  # side of a stage-1 token in pixels: the stem's stride of 2 times its projection's 4


class PatchEmbed(nn.Module):
    """The stem: three convolutions at half resolution, then one that makes the tokens.

    (B, in_chans, H, W) -> (B, embed_dim, H/8, W/8).
    """

    def __init__(self, in_chans: int, hidden_dim: int, embed_dim: int) -> None:
        super().__init__()
        layers = []
        for chans, kernel, stride in ((in_chans, 7, 2), (hidden_dim, 3, 1), (hidden_dim, 3, 1)):
            layers += [nn.Conv2d(chans, hidden_dim, kernel, stride, padding=kernel // 2, bias=False),
                       nn.BatchNorm2d(hidden_dim), nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*layers)
        self.proj = nn.Conv2d(hidden_dim, embed_dim, kernel_size=PATCH_SIZE // 2, stride=PATCH_SIZE // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for conv, norm, act in zip(self.conv[::3], self.conv[1::3], self.conv[2::3], strict=True):
            x = norm(conv(x)) if norm.training else conv_norm(conv, norm, x)
            x = act(x)
        return self.proj(x)


def conv_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """Return norm(conv(x)) in evaluation, computed as one convolution.

    BatchNorm is then only a scale and a shift of each channel.
    """
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = conv.weight * scale.view(-1, 1, 1, 1)  # (out, in, kernel, kernel) * (out, 1, 1, 1)
    return F.conv2d(x, weight, norm.bias - norm.running_mean * scale, conv.stride, conv.padding)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float = 0.) -> torch.Tensor:
    """Return softmax(q·k / √d)·v. Each is (B, heads, N, d); q, and then the result, may have fewer tokens.

    PyTorch's fused kernel is the fastest on GPUs. On CPUs it is the fastest in fp32 without a backward pass; in all
    other cases plain matrix products of contiguous operands are faster.
    """
    if q.device.type != 'cpu' or dropout or (q.dtype == torch.float32 and not torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    heads = q.shape[1]
    q = q * q.shape[-1] ** -0.5
    q, k, v = (x.contiguous().flatten(0, 1) for x in (q, k, v))  # (B*heads, N, d)
    with torch.autocast('cpu', enabled=False):                   # autocast would compute the softmax in fp32
        weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)    # (B*heads, queries, keys)
        return (weights @ v).unflatten(0, (-1, heads))           # (B, heads, N, d)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens of a map. (B, H, W, dim) -> (B, H, W, dim)."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = False, attn_drop: float = 0.) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height = x.shape[1]
        q, k, v = rearrange(self.qkv(x), 'b y x (three h d) -> three b h (y x) d',
                            three=3, h=self.num_heads)                          # 3 x (B, heads, H*W, d)
        x = attend(q, k, v, self.attn_drop if self.training else 0.)            # (B, heads, H*W, d)
        return self.proj(rearrange(x, 'b h (y x) d -> b y x (h d)', y=height))  # (B, H, W, dim)


class ClassAttention(nn.Module):
    """Attention of the first token to all tokens, itself included (CaiT, arXiv:2103.17239).

    (B, N, dim) -> (B, 1, dim).
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = False, attn_drop: float = 0.) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.kv = nn.Linear(dim, dim * 2, bias=qkv_bias)
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k, v = rearrange(self.kv(x), 'b n (two h d) -> two b h n d', two=2, h=self.num_heads)  # 2 x (B, heads, N, d)
        q = rearrange(self.q(x[:, :1]), 'b one (h d) -> b h one d', h=self.num_heads)          # (B, heads, 1, d)
        x = attend(q, k, v, self.attn_drop if self.training else 0.)                           # (B, heads, 1, d)
        return self.proj(rearrange(x, 'b h one d -> b one (h d)'))                             # (B, 1, dim)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """Return how much the first token attends to each token: (B, N, dim) -> (B, heads, N), each row of sum 1."""
        k, _ = rearrange(self.kv(x), 'b n (two h d) -> two b h n d', two=2, h=self.num_heads)  # (B, heads, N, d)
        q = rearrange(self.q(x[:, 0]), 'b (h d) -> b h d', h=self.num_heads)                   # (B, heads, d)
        return (torch.einsum('bhd,bhnd->bhn', q, k) * q.shape[-1] ** -0.5).softmax(-1)


class Mlp(nn.Module):
    """The perceptron of each block: linear, GELU, linear. (B, …, dim) -> (B, …, hidden_dim) -> (B, …, dim).

    The activations between the two layers are the largest of a block. Plain autograd keeps them twice for the backward
    pass, before and after the GELU. GeluLinear keeps only those before it and computes the GELU again, which takes
    little time beside the matrix products.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
            return self.fc2(F.gelu(x))
        if type(self.fc2) is not nn.Linear or self.fc2._forward_hooks or self.fc2._forward_pre_hooks:
            return self.fc2(F.gelu(x))  # GeluLinear takes its weights alone: the layer itself would not be called
        return GeluLinear.apply(x, self.fc2.weight.to(x.dtype), self.fc2.bias.to(x.dtype))


class GeluLinear(torch.autograd.Function):
    """linear(gelu(x), weight, bias), all of one dtype: x (B, …, in), weight (out, in), bias (out) -> (B, …, out)."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, weight = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            flat = grad.flatten(0, -2)                                    # (B*…, out)
            grad_weight = flat.t() @ F.gelu(x).flatten(0, -2)             # (out, B*…) @ (B*…, in)
            grad_x = torch.ops.aten.gelu_backward(grad @ weight, x)       # (B, …, in)
            return grad_x, grad_weight, flat.sum(0)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., arXiv:1603.09382). (B, …) -> (B, …).

    In training each image loses this branch with probability `drop_prob`; the branches of the others are scaled up to
    keep the mean. After set_rows the module draws for the whole batch and takes the rows of this process, so that
    processes with the same random numbers draw together what a single process would.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.batch_size: int | None = None     # None: that of the input
        self.rows: torch.Tensor | None = None  # None: all. It is no buffer, because buffers are alike in all processes.

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.drop_prob:
            return x
        kept = 1 - self.drop_prob
        scale = x.new_empty(self.batch_size or len(x)).bernoulli_(kept).div_(kept)
        if self.rows is not None:
            scale = scale[self.rows]
        return x * scale.view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3f}'


def set_rows(net: nn.Module, rows: Sequence[int], batch_size: int) -> None:
    """Tell a VOLO that from now on its inputs are these rows of batches of `batch_size` images."""
    rows = torch.tensor(rows, device=next(net.parameters()).device)
    for module in net.modules():
        if isinstance(module, DropPath):
            module.rows = rows
            module.batch_size = batch_size
