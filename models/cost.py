"""What a network costs: the multiply-adds of an image and the memory of a training step, without computing anything.

The step runs on fake tensors, which have shapes but no contents. The bytes of all storages that exist at the same time
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
    """The sum of the bytes of all live storages that operations have allocated; `peak` is the largest sum so far."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self.alive: set[int] = set()  # their addresses

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
        self.net = net
        self.dtype = dtype

    def forward(self, images: torch.Tensor, backward: bool) -> None:
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            outputs = self.net(images)
        if not backward:
            return
        parts = outputs[:2] if isinstance(outputs, tuple) else (outputs,)  # (class logits, token logits, box) or logits
        sum(part.float().sum() for part in parts).backward()


def multiply_adds(net: nn.Module, img_size: tuple[int, int]) -> float:
    """Return the multiply-adds of a forward pass for an image of (height, width) pixels. The network is not changed."""
    counter = FlopCounterMode(display=False)
    run_on_fakes(net, (2, 3, *img_size), None, False, counter)
    return counter.get_total_flops() / 2 / 2  # two images; a multiply-add counts as two operations


def training_memory(net: nn.Module, img_size: tuple[int, int], batch_size: int, dtype: torch.dtype | None = None,
                    copies: int = 3) -> int:
    """Return the bytes that a training step takes with `batch_size` images of (height, width) pixels.

    `dtype` is that of autocast, None without autocast. `copies` is the number of further copies of the parameters: two
    for Adam, one for EMA. What the optimizer's update, the libraries and the allocator need is not included. The
    network is not changed.
    """
    memory = LiveMemory()
    state_bytes = run_on_fakes(net, (batch_size, 3, *img_size), dtype, True, memory)
    return memory.peak + state_bytes * (1 + copies)


def run_on_fakes(net: nn.Module, shape: tuple[int, ...], dtype: torch.dtype | None, backward: bool,
                 observer: TorchDispatchMode) -> int:
    """Run the network, with fake tensors in place of its own, on a batch of that shape; return the bytes of its state.
    """
    module = ForwardBackward(net, dtype)
    device = next(net.parameters()).device
    fake = FakeTensorMode()
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    state = {name: fake.from_tensor(tensor) for name, tensor in tensors}
    with fake, observer:
        functional_call(module, state, (torch.empty(*shape, device=device), backward))
    return sum(tensor.untyped_storage().nbytes() for tensor in state.values())
