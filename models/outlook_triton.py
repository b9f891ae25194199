"""The core of outlook attention on a GPU, in Triton: each value is read where it lies, and no window is copied.

Each token of the result gathers its share from all windows that contain it. Nothing is added up in memory, and so
results are the same in each run. Shapes are those of models/outlook.py.
"""
import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

ROWS = 32     # tokens, or windows, of one head that a Triton program works on
WARPS = 4     # warps of a Triton program, of 32 threads each; each thread has eight channels


@triton_op('volo::mix', mutates_args=())
def mix(attn: torch.Tensor, values: torch.Tensor, kernel_size: int, padding: int, stride: int) -> torch.Tensor:
    """Mix the values of each window by its attention and add overlapping windows up.

    attn (B, h, w, k2 keys, heads, k2 queries), values (B, H, W, heads, d) -> (B, H, W, heads, d), all of one dtype; d
    is a power of two.
    """
    return spread(attn, values, (kernel_size, padding, stride), transposed=False)


def spread(attn: torch.Tensor, values: torch.Tensor, window: tuple[int, int, int], transposed: bool) -> torch.Tensor:
    """Compute `mix`, or with `transposed` its adjoint, in which keys and queries have changed places."""
    attn = attn.contiguous()
    values = values.contiguous()
    B, H, W, heads, d = values.shape
    out = torch.empty_like(values)
    k2 = window[0] ** 2
    key_stride, query_stride = (1, heads * k2) if transposed else (heads * k2, 1)
    wrap_triton(spread_kernel)[(triton.cdiv(B * H * W * heads, ROWS),)](
        attn, values, out, B * H * W * heads, H, W, attn.shape[1], attn.shape[2], heads, key_stride, query_stride,
        d, *window, ROWS, exact(values), num_warps=WARPS)
    return out


def exact(x: torch.Tensor) -> tl.dtype:
    """Return the dtype that sums are computed in."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def keep(ctx, inputs: tuple, output: torch.Tensor) -> None:
    """Keep what the backward pass of `mix` needs."""
    attn, values, *ctx.window = inputs
    ctx.save_for_backward(attn, values)


def mix_backward(ctx, grad: torch.Tensor) -> tuple:
    """Return the gradients with respect to the five arguments of `mix`."""
    attn, values = ctx.saved_tensors
    grad_attn, grad_values = torch.ops.volo.mix_gradients(grad, attn, values, *ctx.window)
    return grad_attn, grad_values, None, None, None


@triton_op('volo::mix_gradients', mutates_args=())
def mix_gradients(grad: torch.Tensor, attn: torch.Tensor, values: torch.Tensor, kernel_size: int, padding: int,
                  stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of `mix` with respect to attn and to values; `grad` is the gradient of its result."""
    window = (kernel_size, padding, stride)
    grad = grad.contiguous()
    values = values.contiguous()
    B, H, W, heads, d = values.shape
    grad_attn = torch.empty_like(attn, memory_format=torch.contiguous_format)
    h, w = attn.shape[1:3]
    wrap_triton(products_kernel)[(triton.cdiv(B * h * w * heads, ROWS),)](
        values, grad, grad_attn, B * h * w * heads, H, W, h, w, heads, d, *window,
        triton.next_power_of_2(kernel_size ** 2), ROWS, exact(values), num_warps=WARPS)
    return grad_attn, spread(attn, grad, window, transposed=True)


mix.register_autograd(mix_backward, setup_context=keep)


@triton.jit
def spread_kernel(attn, values, out, rows, H, W, h, w, heads, key_stride, query_stride, D: tl.constexpr,
                  KERNEL: tl.constexpr, PADDING: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr,
                  EXACT: tl.constexpr):
    """Compute, in each row, a token of one head: the sum over its windows, and over the keys of each."""
    K2: tl.constexpr = KERNEL * KERNEL
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = row % heads
    token = row // heads
    x = token % W
    y = token // W % H
    image = (token // W // H).to(tl.int64)
    attn += image * h * w * K2 * heads * K2 + head * K2                                   # (ROWS,) from here on
    values += (image * H * W * heads + head) * D
    total = tl.zeros((ROWS, D), EXACT)
    for down in tl.static_range((KERNEL + STRIDE - 1) // STRIDE):
        for right in tl.static_range((KERNEL + STRIDE - 1) // STRIDE):
            top = (y + PADDING) // STRIDE - down                                          # the window
            left = (x + PADDING) // STRIDE - right
            i = y + PADDING - STRIDE * top                                                # the token's place in it
            j = x + PADDING - STRIDE * left
            inside = (row < rows) & (i < KERNEL) & (j < KERNEL) & (top >= 0) & (left >= 0) & (top < h) & (left < w)
            weights = attn + (top * w + left) * K2 * heads * K2 + (i * KERNEL + j) * query_stride
            for key in tl.static_range(K2):
                weight = tl.load(weights + key * key_stride, inside, 0.).to(EXACT)
                total += weight[:, None] * load_tokens(values, STRIDE * top - PADDING + key // KERNEL,
                                                       STRIDE * left - PADDING + key % KERNEL, inside, H, W, heads, D,
                                                       EXACT)
    tl.store(out + row.to(tl.int64)[:, None] * D + tl.arange(0, D), total.to(out.dtype.element_ty),
             (row < rows)[:, None])


@triton.jit
def products_kernel(values, grad, products, rows, H, W, h, w, heads, D: tl.constexpr, KERNEL: tl.constexpr,
                    PADDING: tl.constexpr, STRIDE: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
                    EXACT: tl.constexpr):
    """Compute, in each row, the scalar products of the values of the keys and the gradients of the queries of a window
    of one head. QUERIES is a power of two, not below the number of queries.
    """
    K2: tl.constexpr = KERNEL * KERNEL
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    head = row % heads
    window = row // heads
    top = window // w % h * STRIDE - PADDING
    left = window % w * STRIDE - PADDING
    image = (window // w // h).to(tl.int64)
    values += (image * H * W * heads + head) * D                                          # (ROWS,) from here on
    grad += (image * H * W * heads + head) * D
    products += (window.to(tl.int64) * K2 * heads + head) * K2
    column = tl.arange(0, QUERIES)
    for key in tl.static_range(K2):
        value = load_tokens(values, top + key // KERNEL, left + key % KERNEL, inside, H, W, heads, D, EXACT)
        found = tl.zeros((ROWS, QUERIES), EXACT)
        for query in tl.static_range(K2):
            slope = load_tokens(grad, top + query // KERNEL, left + query % KERNEL, inside, H, W, heads, D, EXACT)
            found = tl.where(column == query, tl.sum(value * slope, 1)[:, None], found)
        tl.store(products[:, None] + key * heads * K2 + column, found.to(products.dtype.element_ty),
                 inside[:, None] & (column < K2))


@triton.jit
def load_tokens(images, y, x, inside, H, W, heads, D: tl.constexpr, EXACT: tl.constexpr):
    """Load, in each row, the token (y, x) of an image and head, zero in the padding: (ROWS, D)."""
    there = inside & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    tokens = images + (y * W + x) * heads * D
    return tl.load(tokens[:, None] + tl.arange(0, D), there[:, None], 0.).to(EXACT)
