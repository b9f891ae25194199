"""Which processor computes, in which precision, and with how many threads."""
import platform
import time

import torch

from common.runtime.machine import free_memory

PROBE = 0.1   # seconds for which a number of threads is tried
SLOWED = 1.5  # so many times as fast must fewer threads be: where all cores are free they are slower


def choose_device() -> torch.device:
    """The accelerator of this machine (CUDA, Apple's MPS, …), else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device('cpu')


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


def use_free_cores() -> None:
    """Let PyTorch compute with fewer threads where other programs keep cores busy, or a container may use but a part.

    All threads of an operation wait for the slowest, and keep their cores busy meanwhile: one that shares its core with
    another program makes training many times slower. So numbers of threads are tried. Where the cores are free, and
    where a GPU computes, nothing changes.
    """
    usual = torch.get_num_threads()
    if choose_device().type != 'cpu' or usual == 1:
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
    return f'device: {device.type} ({count}{name}), {precision}'


def dtype_name(dtype: torch.dtype) -> str:
    """'bfloat16' for torch.bfloat16."""
    return str(dtype).removeprefix('torch.')
