"""What a network costs: multiply-adds for an image, memory of a training step. Nothing is computed for it.

The step runs on fake tensors, which have shapes but no contents; the bytes of all storages that exist at the same time
are added up.
"""
import weakref
from collections.abc import Callable

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class LiveMemory(TorchDispatchMode):
    """Adds up the bytes of all live storages that operations have allocated; `peak` is the largest sum so far."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.alive = set()

    def __torch_dispatch__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None):
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

    def free(self, key: int, size: int) -> None:
        """Subtract a storage of `size` bytes that was freed."""
        self.alive.discard(key)
        self.bytes -= size


class ForwardBackward(nn.Module):
    """A forward pass and, on demand, the backward pass in the same call: gradient checkpointing needs both in one."""

    def __init__(self, net: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, images: torch.Tensor, backward: bool) -> None:
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            outputs = self.net(images)
        if backward:
            sum(part.float().sum() for part in (outputs[:2] if isinstance(outputs, tuple) else (outputs,))).backward()


def multiply_adds(net: nn.Module, img_size: tuple[int, int]) -> float:
    """Of a forward pass, for an image of (height, width) pixels. The network is not changed."""
    counter = FlopCounterMode(display=False)
    run_on_fakes(net, (2, 3, *img_size), None, False, counter)
    return counter.get_total_flops() / 2 / 2  # two images; a multiply-add counts as two operations


def training_memory(net: nn.Module, img_size: tuple[int, int], batch_size: int, dtype: torch.dtype | None = None,
                    copies: int = 3) -> int:
    """Bytes of a training step with `batch_size` images of (height, width) pixels.

    `dtype` is that of autocast, None without autocast. `copies` is how many more copies of the parameters are kept: two
    by Adam, one by EMA. The memory that the optimizer's update, the libraries and the allocator need besides is not
    included. The network is not changed.
    """
    memory = LiveMemory()
    state_bytes = run_on_fakes(net, (batch_size, 3, *img_size), dtype, True, memory)
    return memory.peak + state_bytes * (1 + copies)


def run_on_fakes(net: nn.Module, shape: tuple[int, ...], dtype: torch.dtype | None, backward: bool,
                 observer: TorchDispatchMode) -> int:
    """Run the network, with fake tensors for its own, on a batch of that shape. Returns the bytes of its state."""
    module, device = ForwardBackward(net, dtype), next(net.parameters()).device
    fake = FakeTensorMode()
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    state = {name: fake.from_tensor(tensor) for name, tensor in tensors}
    with fake, observer:
        functional_call(module, state, (torch.empty(*shape, device=device), backward))
    return sum(tensor.untyped_storage().nbytes() for tensor in state.values())
