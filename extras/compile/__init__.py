"""COMPILE: the network under torch.compile, tried before it is trusted."""
import torch
from torch import nn

from common.runtime.console import Bar


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
