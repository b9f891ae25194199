"""Which processor computes, and in which precision."""
import platform

import torch


def choose_device() -> torch.device:
    """The accelerator of this machine (CUDA, Apple's MPS, …), else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device('cpu')


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


def describe_device(device: torch.device, amp_dtype: torch.dtype | None) -> str:
    """A line for the log: the device, the number of GPUs, the precision."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or platform.machine()
    count = f'{torch.cuda.device_count()} x ' if device.type == 'cuda' else ''
    precision = f'mixed precision in {dtype_name(amp_dtype)}' if amp_dtype else 'single precision (fp32)'
    return f'device: {device.type} ({count}{name}), {precision}'


def dtype_name(dtype: torch.dtype) -> str:
    """'bfloat16' for torch.bfloat16."""
    return str(dtype).removeprefix('torch.')
