"""Peak memory of a training step of D1, D3 and D5, with and without gradient checkpointing, and of timm's D1 and D3.

    python tests/bench/memory.py

Each row is a process of its own: the peak of its resident memory (Linux) after two steps of AdamW, which keeps its
averages from the first on, what models/cost.py says beforehand, and the seconds of the second step. Mixed precision
where the processor gains from it, as in train.py; no EMA.
"""
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import timm  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from common.runtime.device import choose_amp_dtype
from common.runtime.machine import retain_freed_memory
from models import create_model  # noqa: E402
from models.cost import training_memory  # noqa: E402

ROWS = [('volo_d1', 224, 16), ('volo_d1', 384, 4), ('volo_d3', 224, 16), ('volo_d3', 448, 4), ('volo_d5', 224, 8),
        ('volo_d5', 512, 1)]


def step(name, size, batch, kind):
    """Train on two batches of noise and print a row."""
    dtype = choose_amp_dtype(torch.device('cpu'))
    retain_freed_memory()
    if kind == 'timm':
        net = timm.create_model(f'{name}_{size}', use_aux_head=False).train()
    else:
        net = create_model(name, img_size=size, num_classes=1000).train()
        net.set_grad_checkpointing(kind == 'checkpointing')
    estimate = training_memory(net, (size, size), batch, dtype, copies=2)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    for _ in range(2):
        start = time.perf_counter()
        with torch.autocast('cpu', dtype, enabled=dtype is not None):
            logits = net(torch.randn(batch, 3, size, size))
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), torch.arange(batch)).backward()
        optimizer.step()
        seconds = time.perf_counter() - start
    peak = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
    print(f'{name:8} {size:5} {batch:6} {kind:>14} {int(peak.split()[1]) / 2 ** 20:10.2f} '
          f'{estimate / 2 ** 30:9.2f} {seconds:8.1f}', flush=True)


def main():
    print('network   size  batch           kind  peak, GiB  estimate  seconds', flush=True)
    for name, size, batch in ROWS:
        for kind in ('ours', 'checkpointing', 'timm'):
            if kind != 'timm' or (size == 224 and name != 'volo_d5'):
                subprocess.run([sys.executable, __file__, name, str(size), str(batch), kind], check=True)


if __name__ == '__main__':
    if len(sys.argv) == 5:
        step(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        main()
