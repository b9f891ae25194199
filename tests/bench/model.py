"""How fast the network is, beside timm's port of it and the processor's peak in matrix products.

    python tests/bench/model.py                 volo_d1 at 224 pixels
    python tests/bench/model.py --model volo_d3 --img-size 112 --batch-sizes 32,

All take turns in one process, with the same weights; printed are medians, the ratio of our best to timm's best, and the
share of the limit that matrix products set. `plain` is timm's with attention written out, as in the official code;
`compiled` is torch.compile, `graphs` the same with CUDA graphs (its mode 'reduce-overhead'). Machines that are shared
are noisy: trust the ratios.
"""
import functools
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import timm
import torch
from timm.layers import set_fused_attn

import models
from common import settings
from common.runtime.device import choose_amp_dtype, choose_device, describe_device
from common.runtime.machine import retain_freed_memory
from models.cost import multiply_adds

MODEL = 'volo_d1'
IMG_SIZE = 224                        # pixels
BATCH_SIZES: tuple | None = None      # pictures a step; None: 32, 128 and 256 on a GPU, 16 and 1 elsewhere
REPEATS = 5                           # of each, alternating, after one that does not count
PRECISIONS = ('float32', 'auto')      # 'auto': what train.py would choose
COMPILED = ('compiled', 'graphs')     # on a GPU; () for none: compiling takes a minute each
STEPS = {'cpu': 1}                    # steps in a repeat, by device; elsewhere 10


def main(cfg):
    device = choose_device()
    retain_freed_memory()  # for all of them
    nets = build(cfg, device)
    print(f'{describe_device(device, None)}; medians of {cfg.REPEATS} repeats, pictures/s\n')
    ours = [name for name in nets if name.startswith('ours')]
    print(f'{f"{cfg.MODEL}, {cfg.IMG_SIZE} pixels":36}' + ''.join(f'{name:>16}' for name in nets)
          + '  ours/timm  of the limit')
    chosen = {'float32': torch.float32, 'auto': choose_amp_dtype(device)}
    sizes = cfg.BATCH_SIZES or ((32, 128, 256) if device.type == 'cuda' else (16, 1))
    for dtype in filter(None, (chosen[name] for name in cfg.PRECISIONS)):
        limit = peak(device, dtype) / 2 / multiply_adds(nets['ours'], (cfg.IMG_SIZE, cfg.IMG_SIZE))
        for what, run, times in (('training step', train_step, 3), ('forward, eval', forward, 1)):
            for batch in sizes:
                images = torch.randn(batch, 3, cfg.IMG_SIZE, cfg.IMG_SIZE, device=device)
                labels = torch.randint(1000, (batch,), device=device)
                functions = [functools.partial(run, net, images, labels, dtype) for net in nets.values()]
                speeds = dict(zip(nets, (batch / s for s in compare(functions, cfg.REPEATS, device)), strict=True))
                best = max(speeds[name] for name in ours)
                ratio = best / max(speed for name, speed in speeds.items() if name not in ours)
                label = f'{what}, {str(dtype)[6:]}, batch {batch}'
                print(f'{label:36}' + ''.join(f'{speed:16.1f}' for speed in speeds.values())
                      + f'{ratio:11.2f} {best * times / limit:13.0%}', flush=True)
                if device.type == 'cuda' and run is train_step:
                    print(f'{"    memory, GiB":36}' + ''.join(f'{memory(f):16.1f}' for f in functions), flush=True)


def build(cfg, device):
    """{name: network}, all with the same weights; ours begin with 'ours'."""
    def timms():
        return timm.create_model(f'{cfg.MODEL}_224', img_size=cfg.IMG_SIZE, use_aux_head=False).to(device)

    def own():
        return models.create_model(cfg.MODEL, img_size=cfg.IMG_SIZE).to(device)

    nets = {}
    if device.type == 'cuda':
        nets |= {'timm': timms(), 'timm NHWC': timms().to(memory_format=torch.channels_last)}
    else:
        for name, fused in (('plain', False), ('timm', True)):
            set_fused_attn(fused)
            nets[name] = timms()
    nets['ours'] = own()
    if device.type == 'cuda':
        modes = {'compiled': 'default', 'graphs': 'reduce-overhead'}
        nets |= {f'{name} {mode}': torch.compile(make(), mode=modes[mode], dynamic=False)
                 for name, make in (('timm', timms), ('ours', own)) for mode in cfg.COMPILED}
    torch._dynamo.config.recompile_limit = 64  # sizes of batches, modes and precisions
    state = nets['timm'].state_dict()
    for net in nets.values():
        getattr(net, '_orig_mod', net).load_state_dict(state)
    return nets


def train_step(net, images, labels, dtype):
    net.train()
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        logits = net(images)
    torch.nn.functional.cross_entropy(logits.float(), labels).backward()
    net.zero_grad()


@torch.no_grad()
def forward(net, images, labels, dtype):
    net.eval()
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        net(images)


def compare(functions, repeats, device):
    """Median seconds of each function, run in turn."""
    seconds, steps = [[] for _ in functions], STEPS.get(device.type, 10)
    for repeat in range(repeats + 1):
        for function, results in zip(functions, seconds, strict=True):
            for _ in range(3 if repeat == 0 and device.type == 'cuda' else 0):
                function()  # compiles, and records graphs
            synchronize(device)
            start = time.perf_counter()
            for _ in range(steps):
                function()
            synchronize(device)
            if repeat:
                results.append((time.perf_counter() - start) / steps)
    return [statistics.median(results) for results in seconds]


def synchronize(device):
    if device.type != 'cpu':
        torch.accelerator.synchronize()


def memory(function):
    """The most memory that a step takes besides what is there before it, in GiB."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    return (torch.cuda.max_memory_allocated() - before) / 2 ** 30


def peak(device, dtype):
    """FLOP/s of a square matrix product."""
    side = 8192 if device.type == 'cuda' else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side ** 3 / compare([lambda: a @ a], 10, device)[0]


if __name__ == '__main__':
    settings.run(main)
