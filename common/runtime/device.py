"""Which processor computes, in which precision, and with how many threads."""
import platform
import time

import torch
from torch import nn

from common.runtime.machine import free_memory
from common.runtime.processes import LAUNCHED

PROBE = 0.1   # seconds for which a number of threads is tried
SLOWED = 1.5  # so many times as fast must fewer threads be: where all cores are free they are slower


def choose_device(use_gpu: bool | str = 'auto') -> torch.device:
    """The GPU of this machine, where USE_GPU = `use_gpu` takes it, else the CPU.

    'auto' takes those that PyTorch calls cuda, of NVIDIA and AMD; True also Apple's (mps), Intel's (xpu) and others.
    """
    found = gpu()
    return found if found and (use_gpu is True or use_gpu == 'auto' and found.type == 'cuda') else torch.device('cpu')


def gpu() -> torch.device | None:
    """The accelerator of this machine, if it has one."""
    return torch.accelerator.current_accelerator(check_available=True)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device. The copy to a CUDA GPU goes on meanwhile; one to Apple's would then be of whatever the
    tensor's memory was given to (pytorch/pytorch#189690).
    """
    return tensor.to(device, non_blocking=device.type == 'cuda')


def free_device_memory(device: torch.device) -> int | None:
    """Bytes that may still be taken on `device`; None where the system does not say."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    return free_memory() if device.type == 'cpu' else None


def choose_amp_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype in which autocast is worth it, or None where only fp32 makes sense.

    bfloat16 on GPUs and CPUs that multiply in it; float16, which needs a GradScaler, on older GPUs.
    """
    if device.type == 'cuda':
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == 'cpu' and _cpu_multiplies_bf16() else None


def _cpu_multiplies_bf16() -> bool:
    if hasattr(torch.cpu, 'get_capabilities'):
        found = torch.cpu.get_capabilities()
        return bool(found.get('amx_bf16') or found.get('avx512_bf16'))
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()  # torch before get_capabilities


def use_free_cores(device: torch.device) -> None:
    """Let PyTorch compute with fewer threads where other programs keep cores busy, or a container may use but a part.

    All threads of an operation wait for the slowest, and keep their cores busy meanwhile: one that shares its core with
    another program makes training many times slower. So numbers of threads are tried. Where the cores are free, and
    where `device` is no CPU, nothing changes.
    """
    usual = torch.get_num_threads()
    if device.type != 'cpu' or usual == 1:
        return
    tried = [usual >> halvings for halvings in range(usual.bit_length())]
    speeds = {threads: multiplications_per_second(threads) for threads in tried}
    fastest = max(speeds, key=speeds.get)
    if speeds[fastest] < SLOWED * speeds[usual]:
        fastest = usual
    torch.set_num_threads(fastest)
    if fastest < usual:
        print(f'threads: {fastest} instead of {usual}, since other programs keep cores busy: '
              f'{speeds[fastest] / speeds[usual]:.1f} times as fast (docs/speed.md)')


def multiplications_per_second(threads: int) -> float:
    """Of two matrices, with so many threads."""
    torch.set_num_threads(threads)
    matrix, count, start = torch.ones(512, 512), 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < PROBE:
        matrix @ matrix
        count += 1
    return count / seconds


def describe_device(device: torch.device, amp_dtype: torch.dtype | None) -> str:
    """A line for the log: the device, the number of GPUs, the precision."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or platform.machine()
    count = f'{torch.cuda.device_count()} x ' if device.type == 'cuda' else ''
    precision = f'mixed precision in {dtype_name(amp_dtype)}' if amp_dtype else 'single precision (fp32)'
    unused = f'; without the GPU, {gpu().type} (USE_GPU)' if gpu() and device.type == 'cpu' else ''
    return f'device: {device.type} ({count}{name}), {precision}{unused}'


def dtype_name(dtype: torch.dtype) -> str:
    """'bfloat16' for torch.bfloat16."""
    return str(dtype).removeprefix('torch.')


def parallel(model: nn.Module, device: torch.device, use_dp: bool) -> nn.Module:
    """Return the model, in DataParallel where there are several GPUs and `use_dp` is set: it shares each batch among
    them. Under torchrun the processes share it instead.
    """
    if use_dp and device.type == 'cuda' and torch.cuda.device_count() > 1 and not LAUNCHED:
        return nn.DataParallel(model)
    return model
