"""Outlook attention: each window of a map mixes its values by a softmax; overlapping windows add up.

Its core has four equivalent formulations:
- mix_windows_plain, with Unfold and Fold as in algorithm 1 of the paper (arXiv:2106.13112);
- MixWindows, which is faster and needs less memory;
- models/outlook_triton.py, on a GPU;
- mix_windows_sliced, for ONNX files, because not every runtime has Fold's Col2Im.

`window` is (kernel_size, padding, stride), as in torch.nn.Unfold. Shapes: H x W tokens in the map, h x w windows,
k2 = kernel_size² tokens in a window.
"""
import contextlib
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from models.errors import first_line

triton_mix = None
if torch.cuda.is_available():
    with contextlib.suppress(ImportError):  # PyTorch for Windows comes without Triton
        from models.outlook_triton import mix as triton_mix

Window = tuple[int, int, int]


class OutlookAttention(nn.Module):
    """Attention within each window of kernel_size² tokens, predicted from the window's centre.

    (B, H, W, dim) -> (B, H, W, dim). The centres lie `stride` tokens apart; where windows overlap, their results add
    up. There are no queries and keys: one linear layer predicts the attention (paper, section 3.1).
    """

    def __init__(self, dim: int, num_heads: int, kernel_size: int = 3, padding: int = 1, stride: int = 2,
                 qkv_bias: bool = False, attn_drop: float = 0.) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = (kernel_size, padding, stride)
        self.attn_drop = attn_drop
        self.scale = (dim // num_heads) ** -0.5
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.attn = nn.Linear(dim, kernel_size ** 4 * num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel_size, _, stride = self.window
        k2 = kernel_size ** 2
        values = self.v(x).unflatten(-1, (self.num_heads, -1))                    # (B, H, W, heads, d)
        centre = F.avg_pool2d(x.permute(0, 3, 1, 2), stride, stride, ceil_mode=True).permute(0, 2, 3, 1)  # (B, h, w, C)
        weight, bias = (rearrange(parameter * self.scale, '(heads queries keys) ... -> (keys heads queries) ...',
                                  heads=self.num_heads, queries=k2)
                        for parameter in (self.attn.weight, self.attn.bias))
        logits = F.linear(centre, weight, bias)                                   # (B, h, w, keys*heads*queries)
        logits = logits.unflatten(-1, (k2, self.num_heads, k2))                   # (B, h, w, keys, heads, queries)
        x = mix_windows(values, logits, self.window, self.attn_drop if self.training else 0.)
        # Without contiguous() the CPU's matrix product would copy the weight matrix in each call in evaluation.
        return self.proj(x.flatten(3).contiguous())                               # (B, H, W, dim)


class TritonMix:
    """The mixing of models/outlook_triton.py. After its first failure it is not tried again in this process."""

    def __init__(self, mix: Callable | None) -> None:
        self.mix = mix  # None: there is no GPU, or no Triton
        self.failed = False

    def takes(self, values: torch.Tensor) -> bool:
        """Return whether to mix these values (B, H, W, heads, d) in Triton; it takes a power of two for d."""
        return self.mix is not None and not self.failed and values.is_cuda and values.shape[-1].bit_count() == 1

    def try_to_mix(self, attn: torch.Tensor, values: torch.Tensor, window: Window) -> torch.Tensor | None:
        """Return what mix_windows returns, from the softmax of the logits; None, with a warning, if Triton fails."""
        if torch.compiler.is_compiling():  # what fails there is for whoever compiles
            return self.mix(attn, values, *window)
        try:
            return self.mix(attn, values, *window)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no C compiler, no headers of Python, or a GPU that is too old for Triton
            self.failed = True
            warnings.warn('outlook attention is slower on this GPU than it could be: Triton needs a C compiler and '
                          "Python's headers (Debian, Ubuntu: apt install gcc python3-dev) and does not work here "
                          f'({type(error).__name__}: {first_line(error)})', stacklevel=2)
            return None


TRITON = TritonMix(triton_mix)


def mix_windows(values: torch.Tensor, logits: torch.Tensor, window: Window, dropout: float = 0.) -> torch.Tensor:
    """Mix by the formulation that is the fastest here.

    values (B, H, W, heads, d), logits (B, h, w, k2 keys, heads, k2 queries) -> (B, H, W, heads, d).
    """
    if TRITON.takes(values):
        attn = logits.softmax(3, dtype=logits.dtype)  # without a dtype autocast would make it fp32
        mixed = TRITON.try_to_mix(F.dropout(attn, dropout), values, window)
        if mixed is not None:
            return mixed
    if torch.onnx.is_in_onnx_export():
        return mix_windows_sliced(values, logits, window)
    if dropout or torch.compiler.is_compiling():
        return mix_windows_plain(values, logits, window, dropout)
    return MixWindows.apply(values, logits, window)


def gather_windows(x: torch.Tensor, kernel_size: int, padding: int, stride: int) -> torch.Tensor:
    """Return the windows of a zero-padded map, in a single copy: (B, H, W, heads, d) -> (B, h, w, heads, k2, d)."""
    x = F.pad(x, (0, 0, 0, 0, padding, padding, padding, padding))
    B, H, W, heads, d = x.shape
    h = (H - kernel_size) // stride + 1
    w = (W - kernel_size) // stride + 1
    b, y, c, head, one = x.stride()
    windows = x.as_strided((B, h, w, heads, kernel_size, kernel_size, d), (b, stride * y, stride * c, head, y, c, one))
    return windows.flatten(4, 5)  # (B, h, w, heads, k2, d)


def scatter_windows(windows: torch.Tensor, size: tuple[int, int], kernel_size: int, padding: int,
                    stride: int) -> torch.Tensor:
    """Add windows (B, h, w, heads, k2, d) up to a map (B, *size, heads, d): the adjoint of gather_windows."""
    B, h, w, heads, _, d = windows.shape
    H = size[0] + 2 * padding
    W = size[1] + 2 * padding
    x = windows.new_zeros(B, H, W, heads, d)
    for i in range(kernel_size):
        for j in range(kernel_size):
            x[:, i:i + stride * h:stride, j:j + stride * w:stride] += windows[..., i * kernel_size + j, :]
    return x[:, padding:H - padding, padding:W - padding]


class MixWindows(torch.autograd.Function):
    """The softmax of the logits over the keys, the values of each window mixed by it, overlapping windows added up.

    values (B, H, W, heads, d), logits (B, h, w, k2 keys, heads, k2 queries) -> (B, H, W, heads, d). The results are
    those of mix_windows_plain, but what is kept for the backward pass is the map, not its overlapping windows. The
    logits have the keys before the heads because a softmax over nine innermost elements is several times slower than
    one over a strided dimension.
    """

    @staticmethod
    def forward(ctx, values: torch.Tensor, logits: torch.Tensor, window: Window) -> torch.Tensor:
        with torch.autocast(values.device.type, enabled=False):
            attn = logits.softmax(3)
            ctx.save_for_backward(values, attn)
            ctx.window = window
            attn = attn.permute(0, 1, 2, 4, 5, 3)              # (B, h, w, heads, queries, keys)
            mixed = attn @ gather_windows(values, *window)     # (B, h, w, heads, k2, d)
            return scatter_windows(mixed, values.shape[1:3], *window)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        values, attn = ctx.saved_tensors
        with torch.autocast(values.device.type, enabled=False):
            grad = gather_windows(grad, *ctx.window)                                      # (B, h, w, heads, queries, d)
            grad_attn = gather_windows(values, *ctx.window) @ grad.transpose(-1, -2)  # (B, h, w, heads, keys, queries)
            attn_t = attn.permute(0, 1, 2, 4, 3, 5)                                   # (B, h, w, heads, keys, queries)
            grad_values = scatter_windows(attn_t @ grad, values.shape[1:3], *ctx.window)  # (B, H, W, heads, d)
            grad_attn = grad_attn.transpose(3, 4)                                     # (B, h, w, keys, heads, queries)
            grad_logits = torch._softmax_backward_data(grad_attn, attn, 3, attn.dtype)
            return grad_values, grad_logits, None


def mix_windows_plain(values: torch.Tensor, logits: torch.Tensor, window: Window, dropout: float = 0.) -> torch.Tensor:
    """Compute what MixWindows does with Unfold and Fold, as in algorithm 1 of the paper.

    `dropout` is the rate on the attention.
    """
    kernel_size, padding, stride = window
    B, H, W, heads, d = values.shape
    options = {'kernel_size': kernel_size, 'padding': padding, 'stride': stride}
    v = F.unfold(rearrange(values, 'b y x h d -> b (h d) y x'), **options)                 # (B, heads*d*k2, h*w)
    v = rearrange(v, 'b (h d k) n -> b n h k d', h=heads, d=d)                             # (B, h*w, heads, k2, d)
    attn = rearrange(logits.softmax(3), 'b y x j h i -> b (y x) h i j')                    # (B, h*w, heads, k2, k2)
    mixed = rearrange(F.dropout(attn, dropout) @ v, 'b n h k d -> b (h d k) n')            # (B, heads*d*k2, h*w)
    return rearrange(F.fold(mixed, (H, W), **options), 'b (h d) y x -> b y x h d', h=heads)  # (B, H, W, heads, d)


def mix_windows_sliced(values: torch.Tensor, logits: torch.Tensor, window: Window) -> torch.Tensor:
    """Compute what MixWindows does by slices, products, pads and sums alone.

    Row i of the tokens of window y lands in row i + stride * y of the map. The rows with the same remainder by the
    stride make a map of their own, in which row i of window y lands in row i // stride + y. The same holds for columns.
    """
    kernel_size, padding, stride = window
    H, W = values.shape[1:3]
    h, w = logits.shape[1:3]
    rows = h + (kernel_size - 1) // stride     # of a map with the same remainders
    columns = w + (kernel_size - 1) // stride
    padded = F.pad(values, (0, 0, 0, 0, padding, stride * columns - W - padding, padding, stride * rows - H - padding))
    slices = [padded[:, i:i + stride * h:stride, j:j + stride * w:stride]
              for i in range(kernel_size) for j in range(kernel_size)]             # k2 x (B, h, w, heads, d)
    attn = logits.softmax(3).permute(0, 1, 2, 4, 5, 3)                             # (B, h, w, heads, queries, keys)
    mixed = (attn @ torch.stack(slices, 4)).unbind(4)                              # k2 x (B, h, w, heads, d)
    maps = []                                                                      # stride² x (B, rows, columns, …)
    for top in range(stride):
        for left in range(stride):
            shifted = []
            for i in range(top, kernel_size, stride):
                for j in range(left, kernel_size, stride):
                    down = i // stride
                    right = j // stride
                    margins = (0, 0, 0, 0, right, columns - w - right, down, rows - h - down)
                    shifted.append(F.pad(mixed[kernel_size * i + j], margins))
            maps.append(sum(shifted))
    whole = rearrange(maps, '(top left) b y x h d -> b (y top) (x left) h d', top=stride)
    return whole[:, padding:padding + H, padding:padding + W]                      # (B, H, W, heads, d)
