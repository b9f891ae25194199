"""What a network costs: parameters, multiply-adds of an image, memory of a training step. Nothing is computed for it.

The step runs on fake tensors, which have shapes and no contents; the storages that are alive at once are added up.
"""
import copy
import weakref

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class LiveMemory(TorchDispatchMode):
    """Adds up the bytes of all storages that operations make and that are alive; `peak` is the most at once."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.alive = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive.add(storage._cdata)
                    self.bytes += storage.nbytes()
                    self.peak = max(self.peak, self.bytes)
                    weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return out

    def free(self, key, size):
        self.alive.discard(key)
        self.bytes -= size


class Step(nn.Module):
    """A forward pass and, asked for it, the backward pass: inside one call, since checkpointing recomputes in it."""

    def __init__(self, net, dtype):
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, images, backward):
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            outputs = self.net(images)
        if backward:
            sum(part.float().sum() for part in (outputs[:2] if isinstance(outputs, tuple) else (outputs,))).backward()


def training_cost(net, img_size, batch_size, dtype=None, copies=3):
    """(multiply-adds of an image forward, bytes of a training step) of `batch_size` images of img_size (height, width).

    `dtype` is autocast's, None without it. `copies` of the parameters are kept besides: two by Adam, one by EMA. What
    the optimizer, the libraries and the allocator need on top is not counted. The network stays as it is.
    """
    net = copy.copy(net)  # shares all that is in it; only its own attributes change
    net.mix_token = False  # draws a box, which fake numbers cannot
    step, device = Step(net, dtype), next(net.parameters()).device
    fake = FakeTensorMode()
    tensors = [*step.named_parameters(remove_duplicate=False), *step.named_buffers(remove_duplicate=False)]
    state = {name: fake.from_tensor(tensor) for name, tensor in tensors}
    own = sum(tensor.untyped_storage().nbytes() for tensor in state.values())
    with fake:
        with FlopCounterMode(display=False) as counter:
            functional_call(step, state, (torch.empty(2, 3, *img_size, device=device), False))
        with LiveMemory() as memory:
            functional_call(step, state, (torch.empty(batch_size, 3, *img_size, device=device), True))
    return counter.get_total_flops() / 2 / 2, memory.peak + own * (1 + copies)  # two images, two operations each
