"""The heart of outlook attention: each window of a map mixes its values by softmaxed weights, overlaps add up.

Two equivalent formulations: mix_windows_plain with Unfold and Fold, as in algorithm 1 of the paper (arXiv:2106.13112),
and MixWindows, which is faster and keeps less. A window is (kernel_size, padding, stride), as in torch.nn.Unfold.
"""
import torch
import torch.nn.functional as F
from einops import rearrange


def mix_windows(values, logits, window, dropout=0.):
    """values (B, H, W, heads, d), logits (B, h, w, k2 keys, heads, k2 queries) -> (B, H, W, heads, d)."""
    if dropout or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return mix_windows_plain(values, logits, window, dropout)
    return MixWindows.apply(values, logits, window)


def gather_windows(x, kernel_size, padding, stride):
    """The windows of a map, (B, H, W, heads, d) -> (B, h, w, heads, k2, d): one strided copy of the zero-padded map."""
    x = F.pad(x, (0, 0, 0, 0, padding, padding, padding, padding))
    B, H, W, heads, d = x.shape
    h, w = (H - kernel_size) // stride + 1, (W - kernel_size) // stride + 1
    b, y, c, head, one = x.stride()
    windows = x.as_strided((B, h, w, heads, kernel_size, kernel_size, d), (b, stride * y, stride * c, head, y, c, one))
    return windows.flatten(4, 5)


def scatter_windows(windows, size, kernel_size, padding, stride):
    """The adjoint of gather_windows: windows (B, h, w, heads, k2, d) add up to a map (B, *size, heads, d)."""
    B, h, w, heads, _, d = windows.shape
    H, W = size[0] + 2 * padding, size[1] + 2 * padding
    x = windows.new_zeros(B, H, W, heads, d)
    for i in range(kernel_size):
        for j in range(kernel_size):
            x[:, i:i + stride * h:stride, j:j + stride * w:stride] += windows[..., i * kernel_size + j, :]
    return x[:, padding:H - padding, padding:W - padding]


class MixWindows(torch.autograd.Function):
    """Softmax the logits over the keys, mix each window's values by them, add the windows up.

    values (B, H, W, heads, d), logits (B, h, w, k2 keys, heads, k2 queries) -> (B, H, W, heads, d). The same as
    mix_windows_plain, which autograd differentiates: this one keeps the map instead of its overlapping windows for the
    backward pass, and moves memory in whole rows of d. The keys come before the heads because a softmax over nine
    innermost numbers is several times slower than one over strided ones.
    """

    @staticmethod
    def forward(ctx, values, logits, window):
        with torch.autocast(values.device.type, enabled=False):
            attn = logits.softmax(3)
            ctx.save_for_backward(values, attn)
            ctx.window = window
            mixed = attn.permute(0, 1, 2, 4, 5, 3) @ gather_windows(values, *window)  # (B, h, w, heads, k2, d)
            return scatter_windows(mixed, values.shape[1:3], *window)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        values, attn = ctx.saved_tensors
        with torch.autocast(values.device.type, enabled=False):
            grad = gather_windows(grad, *ctx.window)
            grad_attn = gather_windows(values, *ctx.window) @ grad.transpose(-1, -2)  # (B, h, w, heads, keys, queries)
            grad_values = scatter_windows(attn.permute(0, 1, 2, 4, 3, 5) @ grad, values.shape[1:3], *ctx.window)
            grad_attn = grad_attn.transpose(3, 4)                                     # (B, h, w, keys, heads, queries)
            grad_logits = torch._softmax_backward_data(grad_attn, attn, 3, attn.dtype)
            return grad_values, grad_logits, None


def mix_windows_plain(values, logits, window, dropout=0.):
    """What MixWindows computes, with Unfold and Fold as in the paper's algorithm 1; also drops out weights."""
    kernel_size, padding, stride = window
    B, H, W, heads, d = values.shape
    options = {'kernel_size': kernel_size, 'padding': padding, 'stride': stride}
    v = F.unfold(rearrange(values, 'b y x h d -> b (h d) y x'), **options)            # (B, heads*d*k2, h*w)
    v = rearrange(v, 'b (h d k) n -> b n h k d', h=heads, d=d)
    attn = F.dropout(rearrange(logits.softmax(3), 'b y x j h i -> b (y x) h i j'), dropout)
    mixed = rearrange(attn @ v, 'b n h k d -> b (h d k) n')
    return rearrange(F.fold(mixed, (H, W), **options), 'b (h d) y x -> b y x h d', h=heads)
