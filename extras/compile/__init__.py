"""COMPILE: the network under torch.compile, tried before it is trusted."""
import torch
from torch import nn


def compiled(model: nn.Module, images: torch.Tensor, targets: torch.Tensor, graphs: bool = False) -> nn.Module:
    """Return a LossModel under torch.compile, after steps on blank images showed that it works; else the model.

    It is compiled for batches of the shape of `images` (B, 3, H, W) and `targets` (B, classes), which are blank. With
    `graphs`, on a GPU, the kernels of a step are recorded and later started all at once; gradients must then be gone
    before the next forward pass.
    """
    if isinstance(model, nn.DataParallel):
        print('COMPILE does not go with several GPUs in DataParallel: going on without')
        return model
    print('COMPILE: this takes a minute or two')
    faster = torch.compile(model, dynamic=False, mode='reduce-overhead' if graphs else None)
    buffers = [buffer.clone() for buffer in model.buffers()]  # a step changes BatchNorm's
    try:
        with torch.random.fork_rng():
            for _ in range(3 if graphs else 1):  # the second and third time the graphs are recorded
                _, losses = faster(images, targets)
                losses.mean().backward()
                model.zero_grad()
    except Exception as error:  # there may be no C++ compiler, or no Triton; each stage has errors of its own
        reason = str(error).strip().partition('\n')[0]
        print(f'COMPILE: going on without, since {type(error).__name__}: {reason}')
        faster = model
    model.zero_grad()
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return faster
