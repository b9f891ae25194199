"""The two-layer perceptron of each block, in two equivalent formulations: in plain operations, and keeping less.

The wide inner activations are the largest of a block. The backward pass needs them before and after the GELU;
GeluLinear keeps them before it and computes the GELU a second time, which costs little beside the products around it.
"""
import torch
import torch.nn.functional as F
from torch import nn


class Mlp(nn.Module):
    """(B, …, dim) -> (B, …, dim) by way of hidden_dim, with a GELU between."""

    def __init__(self, dim, hidden_dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x):
        x = self.fc1(x)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() or (
                type(self.fc2) is not nn.Linear or self.fc2._forward_hooks or self.fc2._forward_pre_hooks):
            return self.fc2(F.gelu(x))
        return GeluLinear.apply(x, self.fc2.weight.to(x.dtype), self.fc2.bias.to(x.dtype))


class GeluLinear(torch.autograd.Function):
    """linear(gelu(x), weight, bias), all of one dtype: x (B, …, in), weight (out, in), bias (out) -> (B, …, out)."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            flat = grad.flatten(0, -2)
            grad_weight = flat.t() @ F.gelu(x).flatten(0, -2)
            return torch.ops.aten.gelu_backward(grad @ weight, x), grad_weight, flat.sum(0)
