"""How fast the network is, beside timm's port of it and beside the processor's peak in matrix products.

    python tests/bench_model.py                 volo_d1 at 224 pixels, batch 16
    python tests/bench_model.py --img-size 112 --batch-size 32

Ours and timm's take turns in one process, with the same weights; printed are medians and their ratio. Machines that are
shared are noisy: trust the ratios.
"""
import functools
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import timm
import torch

import models
from common import settings
from common.device import amp_dtype, choose_device, describe, keep_memory
from models.cost import training_cost

MODEL = 'volo_d1'
IMG_SIZE = 224     # pixels
BATCH_SIZE = 16    # pictures a step
REPEATS = 5        # of each, alternating, after one that does not count


def main(cfg):
    device = choose_device()
    keep_memory()  # for both
    theirs = timm.create_model(f'{cfg.MODEL}_224', img_size=cfg.IMG_SIZE, use_aux_head=False).to(device)
    ours = models.create_model(cfg.MODEL, img_size=cfg.IMG_SIZE).to(device)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(cfg.BATCH_SIZE, 3, cfg.IMG_SIZE, cfg.IMG_SIZE, device=device)
    labels = torch.randint(1000, (cfg.BATCH_SIZE,), device=device)
    gflop = 2 * training_cost(ours, images.shape[2:], cfg.BATCH_SIZE)[0] / 1e9
    print(f'{cfg.MODEL} at {cfg.IMG_SIZE} pixels, batch {cfg.BATCH_SIZE}: {gflop:.1f} GFLOP forward for each picture')
    for dtype in filter(None, (torch.float32, amp_dtype(device))):
        limit = peak(device, dtype) / gflop
        print(describe(device, None if dtype == torch.float32 else dtype))
        for what, run, times in (('training step', train_step, 3), ('forward, eval', forward, 1)):
            functions = [functools.partial(run, net, images, labels, dtype) for net in (theirs, ours)]
            timms, own = (cfg.BATCH_SIZE / seconds for seconds in compare(functions, cfg.REPEATS, device))
            print(f'  {what}: timm {timms:.1f}, ours {own:.1f} pictures/s, ratio {own / timms:.2f}; '
                  f'{own * times / limit:.0%} of what the matrix products alone would allow')


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
    """GFLOP/s of a square matrix product."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side ** 3 / compare([lambda: a @ a], 10, device)[0] / 1e9


if __name__ == '__main__':
    settings.run(main)
