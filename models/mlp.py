"""The two-layer perceptron of every block, in two equivalent formulations: plain, and with less memory in training.

The activations between the two layers are the largest of a block. Plain autograd keeps them twice for the backward
pass, before and after the GELU. GeluLinear keeps only those before it and computes the GELU again, which takes little
time beside the matrix products.
"""
import torch
import torch.nn.functional as F
from torch import nn


class Mlp(nn.Module):
    """Linear, GELU, linear: (B, …, dim) -> (B, …, hidden_dim) -> (B, …, dim)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() or (
                type(self.fc2) is not nn.Linear or self.fc2._forward_hooks or self.fc2._forward_pre_hooks):
            return self.fc2(F.gelu(x))
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
            flat = grad.flatten(0, -2)                             # (B*…, out)
            grad_weight = flat.t() @ F.gelu(x).flatten(0, -2)      # (out, B*…) @ (B*…, in)
            return torch.ops.aten.gelu_backward(grad @ weight, x), grad_weight, flat.sum(0)
