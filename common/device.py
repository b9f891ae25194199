"""Which processor computes, and in which precision."""
import platform

import torch
from torch import nn


def choose_device():
    """The accelerator of this machine (CUDA, Apple's MPS, …), else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device('cpu')


def amp_dtype(device):
    """The dtype in which autocast is worth it, or None where only fp32 makes sense.

    bfloat16 on GPUs and CPUs that multiply in it; float16, which needs a GradScaler, on older GPUs.
    """
    if device.type == 'cuda':
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == 'cpu' and platform.machine() in ('x86_64', 'AMD64'):
        capabilities = torch.cpu.get_capabilities()
        return torch.bfloat16 if capabilities.get('amx_bf16') or capabilities.get('avx512_bf16') else None
    return None


def describe(device, dtype):
    """A line for the log: the device, the number of GPUs, the precision."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or platform.machine()
    count = f'{torch.cuda.device_count()} x ' if device.type == 'cuda' else ''
    precision = f'mixed precision in {str(dtype).removeprefix("torch.")}' if dtype else 'single precision (fp32)'
    return f'device: {device.type} ({count}{name}), {precision}'


def parallel(model, device, use_dp):
    """The network as it is, or, with several GPUs and `use_dp`, in DataParallel: each batch is shared among them."""
    if use_dp and device.type == 'cuda' and torch.cuda.device_count() > 1:
        return nn.DataParallel(model)
    return model
