"""Networks in autocast, shared among several GPUs or processes, and compiled."""
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common.runtime.console import Bar
from common.runtime.ranks import LAUNCHED

Loss = Callable  # (outputs of a network, targets (B, classes)) -> (logits (B, classes), losses (B,)), both in fp32


class Autocast(nn.Module):
    """Enters autocast around a network: DataParallel's threads forget the dtype that the caller's autocast has.

    Called with images alone it returns what `look` makes of the network and them; with targets too, what `loss` makes
    of the network's outputs and them, with one row for each image: within each replica, so that DataParallel gathers
    nothing else.
    """

    def __init__(self, net: nn.Module, amp_dtype: torch.dtype | None, loss: Loss | None = None,
                 look: Callable = nn.Module.__call__):
        super().__init__()
        self.net, self.amp_dtype, self.loss, self.look = net, amp_dtype, loss, look

    def forward(self, images: torch.Tensor, targets: torch.Tensor | None = None):
        with torch.autocast(images.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            if targets is None:
                return self.look(self.net, images)
            outputs = self.net(images)
        return self.loss(outputs, targets)


def parallel(net: nn.Module, device: torch.device, amp_dtype: torch.dtype | None, use_dp: bool,
             loss: Loss | None = None, look: Callable = nn.Module.__call__) -> nn.Module:
    """The network in Autocast and, with several GPUs and `use_dp`, in DataParallel: each batch is shared among them.
    Under torchrun the processes share it.
    """
    model = Autocast(net, amp_dtype, loss, look)
    if use_dp and device.type == 'cuda' and torch.cuda.device_count() > 1 and not LAUNCHED:
        return nn.DataParallel(model)
    return model


def distributed(model: nn.Module, unused: bool) -> nn.Module:
    """Under torchrun: the model in DistributedDataParallel, which averages the gradients of all processes; else the
    model. `unused`: not every parameter has a gradient in every update.
    """
    return DistributedDataParallel(model, find_unused_parameters=unused) if LAUNCHED else model


def no_reduction(model: nn.Module, wanted: bool) -> AbstractContextManager:
    """Inside `with` gradients stay in their process, if `wanted`: those of later batches of the update are added."""
    return model.no_sync() if wanted and isinstance(model, DistributedDataParallel) else nullcontext()


def compiled(model: nn.Module, sizes: list[tuple[int, int]], targets: torch.Tensor, graphs: bool = False) -> nn.Module:
    """A model of `parallel` under torch.compile, after steps on blank images showed that it works; else the model.

    It is compiled for each of the `sizes` that images have, (height, width) in pixels; `targets` are of the shape that
    a batch has, (B, classes). With `graphs`, on a GPU, the kernels of a step are recorded and later started all at
    once; gradients must then be gone before the next forward pass.
    """
    if isinstance(model, nn.DataParallel):
        print('COMPILE does not go with several GPUs in DataParallel: going on without')
        return model
    faster = torch.compile(model, dynamic=False, mode='reduce-overhead' if graphs else None)
    buffers = [buffer.clone() for buffer in model.buffers()]  # a step changes BatchNorm's
    try:
        with torch.random.fork_rng():
            for size in Bar(sizes, desc='COMPILE: image sizes, a minute or two each', unit='size'):
                for _ in range(3 if graphs else 1):  # the second and third time the graphs are recorded
                    faster(torch.zeros(len(targets), 3, *size, device=targets.device), targets)[1].mean().backward()
                    model.zero_grad()
    except Exception as error:  # there may be no C++ compiler, or no Triton; each stage has errors of its own
        print(f'COMPILE: going on without, since {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}')
        faster = model
    model.zero_grad()
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return faster
