"""Whether speed costs accuracy: the loss of our network beside timm's, with the same weights and pictures at first.

    python tests/bench/loss.py                     on data/, three seeds, 200 steps each

Both learn in turn, in the precision that train.py takes. Rounding makes the curves drift apart, as another seed does:
what they differ by should be no more than what the seeds differ by.
"""
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import timm
import torch
from data import build_training
from timm.optim import create_optimizer_v2

import models
from common import settings
from common.runtime.console import Bar
from common.runtime.device import choose_amp_dtype, choose_device
from common.runtime.machine import retain_freed_memory

DATA_DIR = 'data'    # what makedata.py made
IMG_SIZE = 64        # pixels
BATCH_SIZE = 16
SEEDS = (1, 2, 3)
STEPS = 200
LR = 2e-4            # after 20 steps of warm-up


def main(cfg):
    retain_freed_memory()
    means = {'timm': [], 'ours': []}
    for seed in cfg.SEEDS:
        argv = [f'--data-dir={cfg.DATA_DIR}', f'--img-size={cfg.IMG_SIZE}', f'--batch-size={cfg.BATCH_SIZE}',
                f'--seed={seed}', '--pretrained=false', '--augmentation=1', '--gpu-augment=false']
        _, data, _ = build_training(argv)
        torch.manual_seed(seed)
        theirs = timm.create_model('volo_d1_224', img_size=cfg.IMG_SIZE, num_classes=len(data.classes),
                                   use_aux_head=False)
        ours = models.create_model('volo_d1', img_size=cfg.IMG_SIZE, num_classes=len(data.classes))
        ours.load_state_dict(theirs.state_dict())
        for name, net in (('timm', theirs), ('ours', ours)):
            losses = learn(net, data.train, cfg, f'seed {seed}, {name}')
            quarters = [statistics.mean(losses[i * cfg.STEPS // 4:(i + 1) * cfg.STEPS // 4]) for i in range(4)]
            means[name].append(quarters)
            print(f'seed {seed}, {name}: mean loss in each quarter ' + ' '.join(f'{loss:.3f}' for loss in quarters),
                  flush=True)
    for i in range(4):
        timms, own = ([quarters[i] for quarters in means[name]] for name in ('timm', 'ours'))
        apart = statistics.mean(ours - theirs for ours, theirs in zip(own, timms, strict=True))
        print(f'quarter {i + 1}: ours - timm {apart:+.3f} on average; standard deviation over the seeds '
              f'{statistics.stdev(timms):.3f} (timm), {statistics.stdev(own):.3f} (ours)')


def learn(net, loader, cfg, label):
    """The losses of so many steps of AdamW."""
    device, losses, epoch = choose_device(), [], 0
    dtype = choose_amp_dtype(device)
    net.to(device).train()
    optimizer = create_optimizer_v2(net, 'adamw', lr=cfg.LR, weight_decay=0.05)
    with Bar(total=cfg.STEPS, desc=label, unit='step') as bar:
        while True:
            loader.batch_sampler.begin(epoch)
            for images, labels in loader:
                for group in optimizer.param_groups:
                    group['lr'] = cfg.LR * min(1, (len(losses) + 1) / 20)
                with torch.autocast(device.type, dtype, enabled=dtype is not None):
                    logits = net(images.to(device))
                loss = torch.nn.functional.cross_entropy(logits.float(), labels.to(device), label_smoothing=0.1)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 5.)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                bar.update()
                if len(losses) == cfg.STEPS:
                    return losses
            epoch += 1


if __name__ == '__main__':
    settings.run(main)
