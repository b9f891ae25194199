"""What a network must know of the batch that several processes share: BatchNorm and stochastic depth."""
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common.data.loaders import own_rows
from common.runtime.processes import LAUNCHED, add_up
from models import set_rows


class Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; each has its part of the gradient, too."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        return add_up(tensor.clone())

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return add_up(gradient.clone())


class SyncBatchNorm(nn.BatchNorm2d):
    """In training the mean and variance are those of all processes' images, whatever the number that each has.

    PyTorch's own SyncBatchNorm has no path for CPUs. (B, C, H, W) -> (B, C, H, W).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            count = add_up(torch.tensor(x.numel() / x.shape[1], device=x.device))
            mean = Sum.apply(x.sum((0, 2, 3), dtype=torch.float32)) / count
            centred = x.float() - mean.view(-1, 1, 1)
            variance = Sum.apply(centred.square().sum((0, 2, 3))) / count
            scale = self.weight * (variance + self.eps).rsqrt()
            y = centred * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
        self.running_mean.lerp_(mean.detach(), self.momentum)
        self.running_var.lerp_(variance.detach() * count / (count - 1), self.momentum)
        self.num_batches_tracked.add_(1)
        return y.to(x.dtype)


def share_batches(net: nn.Module, batch_size: int) -> int:
    """Tell the network that several processes, if there are, share its batches. Returns the number of own images."""
    rows = own_rows(batch_size)
    if LAUNCHED:
        set_rows(net, rows, batch_size)
        synchronise_norms(net)
    return len(rows)


def synchronise_norms(net: nn.Module) -> None:
    """Give the network BatchNorms that see the images of all processes. Names, parameters and buffers stay.

    On a CPU that is done to plain BatchNorm2d, which VOLO has; for others, of timm's networks, there is a warning.
    """
    if next(net.parameters()).device.type == 'cuda':
        convert_sync_batchnorm(net)  # in place, but for a network that is a single BatchNorm
        return
    for name, module in list(net.named_modules()):
        if type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats and module.momentum:
            synchronised = SyncBatchNorm(module.num_features, module.eps, module.momentum)
            synchronised.__dict__.update(vars(module))
            net.set_submodule(name, synchronised)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            print(f'warning: {name}, a {type(module).__name__}, normalises with the images of each process alone')


def distributed(model: nn.Module, unused: bool) -> nn.Module:
    """Return the model in DistributedDataParallel, which averages the gradients of all processes. `unused`: not every
    parameter has a gradient in every update.
    """
    return DistributedDataParallel(model, find_unused_parameters=unused)
