"""Stochastic depth (Huang et al., arXiv:1603.09382), of a batch that several processes may share."""
from collections.abc import Sequence

import torch
from torch import nn


class DropPath(nn.Module):
    """In training an image goes without this branch with probability `drop_prob`; the others' is scaled to make up.

    (B, …) -> (B, …). After set_rows it draws for the whole batch and takes the rows that this process has, so that
    processes with the same random numbers draw what a single one would.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.batch_size: int | None = None  # None: that of the input
        self.rows: torch.Tensor | None = None  # None: all. No buffer: those are the same in all processes

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
    """Tell a VOLO that its inputs are from now on these rows of batches of `batch_size` images."""
    rows = torch.tensor(rows, device=next(net.parameters()).device)
    for module in net.modules():
        if isinstance(module, DropPath):
            module.rows, module.batch_size = rows, batch_size
