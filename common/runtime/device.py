"""Which processor computes, in which precision, and how it gets its memory."""
import ctypes
import platform
from pathlib import Path

import torch
from torch import nn


def choose_device():
    """The accelerator of this machine (CUDA, Apple's MPS, …), else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device('cpu')


def keep_memory():
    """Under Linux: keep memory that is freed for the next step instead of giving it back to the system.

    By default glibc returns large blocks at once. On a CPU the next training step then waits for up to 130,000 page
    faults, a tenth of its time, and a blur in a loader worker takes eight times as long. The peak stays what it was.
    Elsewhere nothing is done.
    """
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(-4, 0)            # M_MMAP_MAX: no block gets a mapping of its own
        libc.mallopt(-1, -1)           # M_TRIM_THRESHOLD: the top of the heap is not handed back


def free_memory():
    """Bytes of memory that may still be taken, by this machine's or container's limit; None if it is unknown."""
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        free = 1024 * int(next(line.split()[1] for line in lines if line.startswith('MemAvailable')))
    except (OSError, StopIteration):
        return None
    try:
        limit, used, stat = (Path('/sys/fs/cgroup', f'memory.{x}').read_text() for x in ('max', 'current', 'stat'))
        cached = next(int(line.split()[1]) for line in stat.splitlines() if line.startswith('inactive_file '))
        return min(free, int(limit) - int(used) + cached)
    except (OSError, ValueError, StopIteration):  # no container, or one without a limit
        return free


def amp_dtype(device):
    """The dtype in which autocast is worth it, or None where only fp32 makes sense.

    bfloat16 on GPUs and CPUs that multiply in it; float16, which needs a GradScaler, on older GPUs.
    """
    if device.type == 'cuda':
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == 'cpu' and _cpu_multiplies_bf16() else None


def _cpu_multiplies_bf16():
    if hasattr(torch.cpu, 'get_capabilities'):
        found = torch.cpu.get_capabilities()
        return bool(found.get('amx_bf16') or found.get('avx512_bf16'))
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()  # torch before get_capabilities


def describe(device, dtype):
    """A line for the log: the device, the number of GPUs, the precision."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or platform.machine()
    count = f'{torch.cuda.device_count()} x ' if device.type == 'cuda' else ''
    precision = f'mixed precision in {str(dtype).removeprefix("torch.")}' if dtype else 'single precision (fp32)'
    return f'device: {device.type} ({count}{name}), {precision}'


class InAutocast(nn.Module):
    """Enters autocast around a network: DataParallel's threads forget the dtype that the caller's autocast has.

    Called with targets too it returns (logits, losses), both with one row for each image, as `loss` (outputs, targets)
    computes them in fp32: within each replica, so that DataParallel gathers nothing else.
    """

    def __init__(self, net, dtype, loss=None):
        super().__init__()
        self.net, self.dtype, self.loss = net, dtype, loss

    def forward(self, x, targets=None):
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
            outputs = self.net(x)
        return outputs if targets is None else self.loss(outputs, targets)


def parallel(net, device, dtype, use_dp, loss=None):
    """The network in autocast and, with several GPUs and `use_dp`, in DataParallel: each batch is shared among them."""
    model = InAutocast(net, dtype, loss)
    if use_dp and device.type == 'cuda' and torch.cuda.device_count() > 1:
        return nn.DataParallel(model)
    return model


def compiled(model, img_size, targets):
    """A model of `parallel` under torch.compile, after a step on blank pictures showed that it works; else the model.

    `targets` are of the shape that a batch has, (B, classes).
    """
    if isinstance(model, nn.DataParallel):
        print('COMPILE does not go with several GPUs in DataParallel: going on without')
        return model
    faster = torch.compile(model)
    buffers = [buffer.clone() for buffer in model.buffers()]  # a step changes BatchNorm's
    print('COMPILE: compiling, for minutes', flush=True)
    try:
        with torch.random.fork_rng():
            faster(torch.zeros(len(targets), 3, *img_size, device=targets.device), targets)[1].mean().backward()
    except Exception as error:  # there may be no C++ compiler, or no Triton; each stage has errors of its own
        print(f'COMPILE: going on without, since {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}')
        faster = model
    for buffer, kept in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(kept)
    model.zero_grad()
    return faster
