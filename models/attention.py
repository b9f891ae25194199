"""Softmax attention between tokens: multi-head self-attention, and the class attention of the last two blocks."""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float = 0.) -> torch.Tensor:
    """softmax(q·k / √d)·v, (B, heads, N, d) each; q may have fewer tokens than k and v, and so has the result.

    On GPUs PyTorch's fused kernel is the fastest. On CPUs it is only for fp32 without a backward pass; everything else
    is faster as plain matrix products of contiguous operands.
    """
    if q.device.type != 'cpu' or dropout or (q.dtype == torch.float32 and not torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    heads = q.shape[1]
    q, k, v = (x.contiguous().flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v))  # (B*heads, N, d)
    with torch.autocast('cpu', enabled=False):  # autocast would compute the softmax in fp32
        return (torch.bmm(q, k.transpose(1, 2)).softmax(-1) @ v).unflatten(0, (-1, heads))  # (B, heads, N, d)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens of a map. (B, H, W, dim) -> (B, H, W, dim)."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = False, attn_drop: float = 0.) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_drop = num_heads, dim // num_heads, attn_drop
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height = x.shape[1]
        q, k, v = rearrange(self.qkv(x), 'b y x (three h d) -> three b h (y x) d',
                            three=3, h=self.num_heads)                          # 3 x (B, heads, H*W, d)
        x = attend(q, k, v, self.attn_drop if self.training else 0.)            # (B, heads, H*W, d)
        return self.proj(rearrange(x, 'b h (y x) d -> b y x (h d)', y=height))  # (B, H, W, dim)


class ClassAttention(nn.Module):
    """The first token attends to all tokens, itself included (CaiT, arXiv:2103.17239). (B, N, dim) -> (B, 1, dim)."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = False, attn_drop: float = 0.) -> None:
        super().__init__()
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.kv = nn.Linear(dim, dim * 2, bias=qkv_bias)
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k, v = rearrange(self.kv(x), 'b n (two h d) -> two b h n d', two=2, h=self.num_heads)  # 2 x (B, heads, N, d)
        q = rearrange(self.q(x[:, :1]), 'b one (h d) -> b h one d', h=self.num_heads)          # (B, heads, 1, d)
        x = attend(q, k, v, self.attn_drop if self.training else 0.)                           # (B, heads, 1, d)
        return self.proj(rearrange(x, 'b h one d -> b one (h d)'))                             # (B, 1, dim)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """How much the first token attends to each one: (B, N, dim) -> (B, heads, N), positive, with the sum 1."""
        k, _ = rearrange(self.kv(x), 'b n (two h d) -> two b h n d', two=2, h=self.num_heads)  # (B, heads, N, d)
        q = rearrange(self.q(x[:, 0]), 'b (h d) -> b h d', h=self.num_heads)                   # (B, heads, d)
        return (torch.einsum('bhd,bhnd->bhn', q, k) * q.shape[-1] ** -0.5).softmax(-1)
