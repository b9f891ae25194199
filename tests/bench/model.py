"""How fast the network is, beside timm's port of it, the plain formula and the processor's peak in matrix products.

    python tests/bench/model.py                 volo_d1 at 224 pixels, batches of 16 and of 1
    python tests/bench/model.py --model volo_d3 --img-size 112 --batch-sizes 32,

The three take turns in one process, with the same weights; printed are medians and their ratios. `plain` is timm's with
attention written out, as in the official code. Machines that are shared are noisy: trust the ratios.
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
IMG_SIZE = 224           # pixels
BATCH_SIZES = (16, 1)    # pictures a step
REPEATS = 5              # of each, alternating, after one that does not count


def main(cfg):
    device = choose_device()
    retain_freed_memory()  # for all of them
    nets = build(cfg, device)
    print(f'{describe_device(device, None)}; medians of {cfg.REPEATS} repeats, pictures/s\n')
    print(f'{cfg.MODEL}, {cfg.IMG_SIZE} pixels              plain    timm    ours  ours/plain  ours/timm  of the limit')
    for dtype in filter(None, (torch.float32, choose_amp_dtype(device))):
        limit = peak(device, dtype) / 2 / multiply_adds(nets['ours'], (cfg.IMG_SIZE, cfg.IMG_SIZE))
        for what, run, times in (('training step', train_step, 3), ('forward, eval', forward, 1)):
            for batch in cfg.BATCH_SIZES:
                images = torch.randn(batch, 3, cfg.IMG_SIZE, cfg.IMG_SIZE, device=device)
                labels = torch.randint(1000, (batch,), device=device)
                functions = [functools.partial(run, net, images, labels, dtype) for net in nets.values()]
                plain, timms, ours = (batch / seconds for seconds in compare(functions, cfg.REPEATS, device))
                name = f'{what}, {str(dtype)[6:]}, batch {batch}'
                print(f'{name:36} {plain:7.1f} {timms:7.1f} {ours:7.1f} {ours / plain:11.2f} {ours / timms:10.2f} '
                      f'{ours * times / limit:13.0%}', flush=True)


def build(cfg, device):
    """{'plain', 'timm', 'ours': network}, all with the same weights."""
    nets = {}
    for name, fused in (('plain', False), ('timm', True)):
        set_fused_attn(fused)
        nets[name] = timm.create_model(f'{cfg.MODEL}_224', img_size=cfg.IMG_SIZE, use_aux_head=False).to(device)
    nets['ours'] = models.create_model(cfg.MODEL, img_size=cfg.IMG_SIZE).to(device)
    for net in nets.values():
        net.load_state_dict(nets['timm'].state_dict())
    return nets


def train_step(net, images, labels, dtype):
    net.train()
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        logits = net(images)
    torch.nn.functional.cross_entropy(logits.float(), labels).backward()
    net.zero_grad()


@torch.inference_mode()
def forward(net, images, labels, dtype):
    net.eval()
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        net(images)


def compare(functions, repeats, device):
    """Median seconds of each function, run in turn."""
    seconds = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, results in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if device.type == 'cuda':
                torch.cuda.synchronize()
            if repeat:
                results.append(time.perf_counter() - start)
    return [statistics.median(results) for results in seconds]


def peak(device, dtype, side=2048):
    """FLOP/s of a square matrix product."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side ** 3 / compare([lambda: a @ a], 10, device)[0]


if __name__ == '__main__':
    settings.run(main)
