"""The processor that computes, the precision, and the number of threads."""
import platform
import time
from typing import Any

import torch
from torch import nn

from common.runtime.errors import UserError
from common.runtime.machine import free_memory
from common.runtime.processes import LAUNCHED

RIGHT_ON_APPLE = (2, 14)  # the first version of PyTorch with right products of usual sizes on Apple's GPUs
THREAD_TRIAL_SECONDS = 0.1  # for which each number of threads is tried
LEAST_SPEEDUP = 1.5  # at which fewer threads are chosen; where all cores are free, fewer threads are slower


def choose_device(use_gpu: bool | str = 'auto') -> torch.device:
    """Return this machine's GPU if USE_GPU = `use_gpu` takes it, else the CPU.

    'auto' takes the GPUs that PyTorch calls cuda, from NVIDIA and AMD. True also takes those of Apple (mps), Intel
    (xpu) and others. Raises UserError for Apple's with a PyTorch that multiplies wrongly on it.
    """
    found = gpu()
    if found and use_gpu is True:
        if found.type == 'mps' and torch.__version__ < RIGHT_ON_APPLE:
            raise UserError(f'USE_GPU = True: PyTorch {torch.__version__} returns wrong products on GPUs of Apple '
                            '(pytorch/pytorch#193487): update it to 2.14 or newer, or set USE_GPU = False')
        return found
    if found and use_gpu == 'auto' and found.type == 'cuda':
        return found
    return torch.device('cpu')


def gpu() -> torch.device | None:
    """Return the accelerator of this machine, or None."""
    return torch.accelerator.current_accelerator(check_available=True)


def to_device(value: Any, device: torch.device) -> Any:
    """Return a tensor, or a list of them, on the device. A CUDA GPU copies it while the program goes on.

    An Apple GPU must not: the tensor's memory may be given to another tensor before it is copied
    (pytorch/pytorch#189690).
    """
    if isinstance(value, list):
        return [to_device(part, device) for part in value]
    return value.to(device, non_blocking=device.type == 'cuda')


def free_device_memory(device: torch.device) -> int | None:
    """Return the bytes of memory that are free on `device`, or None where the system does not say."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    if device.type == 'cpu':
        return free_memory()
    return None


def choose_amp_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype for autocast, or None where only single precision makes sense.

    It is bfloat16 on GPUs and CPUs that multiply in it, and float16, which needs a GradScaler, on older GPUs.
    """
    if device.type == 'cuda':
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == 'cpu' and _cpu_multiplies_bf16():
        return torch.bfloat16
    return None


def _cpu_multiplies_bf16() -> bool:
    if hasattr(torch.cpu, 'get_capabilities'):
        found = torch.cpu.get_capabilities()
        return bool(found.get('amx_bf16') or found.get('avx512_bf16'))
    # Earlier versions of PyTorch have no public function that says so.
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def use_free_cores(device: torch.device) -> None:
    """Let PyTorch use fewer threads where other programs keep cores busy or a container may use only some of them.

    All threads of an operation wait for the slowest and keep their cores busy meanwhile. One thread that shares its
    core with another program makes training many times slower. So several numbers of threads are tried. Nothing changes
    where the cores are free, or where `device` is not a CPU.
    """
    usual = torch.get_num_threads()
    if device.type != 'cpu' or usual == 1:
        return
    tried = [usual >> halvings for halvings in range(usual.bit_length())]
    speeds = {threads: multiplications_per_second(threads) for threads in tried}
    fastest = max(speeds, key=speeds.get)
    if speeds[fastest] < LEAST_SPEEDUP * speeds[usual]:
        fastest = usual
    torch.set_num_threads(fastest)
    if fastest < usual:
        print(f'threads: {fastest} instead of {usual}, since other programs keep cores busy: '
              f'{speeds[fastest] / speeds[usual]:.1f} times as fast (docs/speed.md)')


def multiplications_per_second(threads: int) -> float:
    """Return 512 × 512 matrix products per second with `threads` threads, and leave that number of threads set."""
    torch.set_num_threads(threads)
    matrix = torch.ones(512, 512)
    count = 0
    seconds = 0.
    start = time.perf_counter()
    while seconds < THREAD_TRIAL_SECONDS:
        matrix @ matrix
        count += 1
        seconds = time.perf_counter() - start
    return count / seconds


def describe_device(device: torch.device, amp_dtype: torch.dtype | None) -> str:
    """Return a line for the log: the device, the number of GPUs, the precision."""
    if device.type == 'cuda':
        name = f'{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}'
    else:
        name = platform.processor() or platform.machine()
    precision = f'mixed precision in {dtype_name(amp_dtype)}' if amp_dtype else 'single precision (fp32)'
    line = f'device: {device.type} ({name}), {precision}'
    unused = gpu()
    if device.type == 'cpu' and unused:
        line += f'; the GPU ({unused.type}) is not used: USE_GPU = True takes it'
    return line


def dtype_name(dtype: torch.dtype) -> str:
    """Return 'bfloat16' for torch.bfloat16."""
    return str(dtype).removeprefix('torch.')


def parallel(model: nn.Module, device: torch.device, use_dp: bool) -> nn.Module:
    """Return the model, in DataParallel where there are several GPUs and `use_dp` is set: it shares each batch among
    them. Under torchrun the processes share it instead.
    """
    if use_dp and device.type == 'cuda' and torch.cuda.device_count() > 1 and not LAUNCHED:
        return nn.DataParallel(model)
    return model
