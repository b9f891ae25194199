"""What accuracy.py compares: each function trains on data/train in the current folder, with `pflop` of compute (10^15
operations) at most, and returns a Trained.
"""
import argparse
import math
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.data.mixup import Mixup
from timm.utils import ModelEmaV3, random_seed
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import train
from common import settings
from common.data.cutout import Cutout
from common.data.datasets import ImageFolder
from common.data.normalisation import read_measured
from common.data.transforms import Transform, eval_transform
from common.runtime.device import choose_amp_dtype, choose_device
from common.runtime.errors import UserError
from common.runtime.machine import retain_freed_memory, worker_count
from common.training import checkpoint
from common.training.plan import make_plan
from models import VARIANTS, create_model
from models.cost import multiply_adds


@dataclass
class Trained:
    weights: dict[str, dict]  # 'raw' and, where the recipe has an average, 'ema': what test.py reads in a checkpoint
    pflop: float
    epochs: float
    seconds: float


def run_train(options: str, pflop: float, seed: int) -> Trained:
    """train.py with these options, and as many epochs as the compute is enough for."""
    argv = ['--pretrained', 'false', *shlex.split(options), '--validate-every', '1000000', '--seed', str(seed),
            '--output-dir', 'out']
    cfg = train.choose_settings(train.resolved(settings.read(train, argv)), train.Provenance('scratch'))
    dataset, kwargs = ImageFolder('data/train'), dict(cfg.MODEL_KWARGS)
    if cfg.MODEL in VARIANTS and cfg.AUX_HEAD:
        kwargs['return_dense'] = True
    net = create_model(cfg.MODEL, num_classes=len(dataset.classes), img_size=cfg.IMG_SIZE, **kwargs)
    image = sum(3 * 2 * multiply_adds(net, size) * share for size, share in make_plan(cfg, 1, 1).to_come(0))
    images = len(dataset) // cfg.BATCH_SIZE * cfg.BATCH_SIZE
    epochs = math.floor(pflop * 1e15 / (image * images))
    if not epochs:
        raise UserError(f'PFLOP = {pflop}: an epoch takes {image * images / 1e15:.2g}')
    train.main(settings.read(train, [*argv, '--epochs', str(epochs)]))
    saved = checkpoint.load(Path('out/last.pth'))
    weights = {'raw': saved}
    if saved['state_dict_ema']:
        weights['ema'] = {**saved, 'state_dict': saved['state_dict_ema']}
    return Trained(weights, sum(row['pflop'] for row in saved['history']), epochs, saved['elapsed'])


def run_tutorial(options: str, pflop: float, seed: int) -> Trained:
    """The tutorial's training as it is printed, cut off when the compute is used up: 224 pixels, its augmentations,
    batches of 16, AdamW with 1e-4, a cosine of 20 epochs, clipping at 5, and an average with a decay of 0.9998.
    """
    retain_freed_memory()
    random_seed(seed)
    dataset, device = ImageFolder('data/train'), choose_device()
    transform = Transform([224, 224], *map(list, read_measured(dataset.classes)))
    dataset.transform = v2.Compose([
        v2.RandomRotation(10), v2.GaussianBlur(5, (0.1, 3.0)), v2.ColorJitter(0.5, 0.5, 0.5), v2.Resize((224, 224)),
        Cutout(0.5, 224, 224), eval_transform(transform)])
    loader = DataLoader(dataset, 16, shuffle=True, drop_last=True, num_workers=worker_count('auto'))
    if not len(loader):
        raise UserError(f'{len(dataset)} pictures in data/train: the tutorial needs 16 for a batch')
    net = timm.create_model('volo_d1_224', num_classes=len(dataset.classes), use_aux_head=False).to(device)
    image = 3 * 2 * multiply_adds(net, (224, 224))
    updates = math.floor(pflop * 1e15 / (image * 16))
    mixup = Mixup(0.8, 1.0, prob=0.1, switch_prob=0.5, label_smoothing=0.1, num_classes=len(dataset.classes))
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, 1e-6)
    ema, amp_dtype = ModelEmaV3(net, 0.9998), choose_amp_dtype(device)
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16)
    start, done = time.perf_counter(), 0
    while done < updates:
        for images, labels in loader:
            images, targets = mixup(images.to(device), labels.to(device))
            with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
                logits = net.train()(images)
            loss = torch.nn.functional.cross_entropy(logits.float(), targets)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            ema.update(net)
            done += 1
            if done % 10 == 0 or done == updates:
                print(f'update {done}/{updates}, loss {loss.item():.3f}', flush=True)
            if done == updates:
                break
        schedule.step()
    common = {'model': 'volo_d1_224', 'model_kwargs': {'use_aux_head': False}, 'classes': dataset.classes,
              'transform': transform.as_dict(), 'settings': {'USE_AMP': True}}
    return Trained({'raw': {**common, 'state_dict': net.state_dict()},
                    'ema': {**common, 'state_dict': ema.module.state_dict()}},
                   image * 16 * updates / 1e15, updates / len(loader), time.perf_counter() - start)


def run_timm(options: str, pflop: float, seed: int) -> Trained:
    """timm's own train.py (github.com/huggingface/pytorch-image-models) with its VOLO-D1. The environment variable
    TIMM_TRAIN is its path; `options` are its options, --img-size and -b among them.
    """
    arguments, classes = shlex.split(options), ImageFolder('data/train').classes
    side, batch = (int(arguments[arguments.index(name) + 1]) for name in ('--img-size', '-b'))
    del arguments[(place := arguments.index('--img-size')):place + 2]  # VOLO takes it as a keyword argument
    transform = Transform([side, side], *map(list, read_measured(classes)), interpolation='bicubic')
    kwargs = {'img_size': side}
    image = 3 * 2 * multiply_adds(timm.create_model('volo_d1_224', num_classes=len(classes), **kwargs), (side, side))
    images = len(ImageFolder('data/train')) // batch * batch
    epochs, device = math.floor(pflop * 1e15 / (image * images)), choose_device()
    amp_dtype = choose_amp_dtype(device)
    precision = ['--amp', '--amp-dtype', str(amp_dtype).removeprefix('torch.')] if amp_dtype else []
    start = time.perf_counter()
    subprocess.run([
        sys.executable, os.environ['TIMM_TRAIN'], 'data', '--val-split', 'val', '--model', 'volo_d1_224',
        '--num-classes', str(len(classes)), '--model-kwargs', f'img_size={side}', '--input-size', '3', str(side),
        str(side), '--crop-pct', '1.0', '--mean', *map(str, transform.mean), '--std', *map(str, transform.std),
        '--device', device.type, '--no-prefetcher', '--workers', str(worker_count('auto')), *precision, '--epochs',
        str(epochs), '--seed', str(seed), '--output', '.', '--experiment', 'timm', '--checkpoint-hist', '1',
        *arguments], check=True)
    with torch.serialization.safe_globals([argparse.Namespace]):
        saved = torch.load('timm/last.pth.tar', weights_only=True)
    common = {'model': 'volo_d1_224', 'model_kwargs': {}, 'classes': classes, 'transform': transform.as_dict(),
              'settings': {'USE_AMP': True}}
    weights = {name: {**common, 'state_dict': saved[key]}
               for name, key in (('raw', 'state_dict'), ('ema', 'state_dict_ema')) if key in saved}
    return Trained(weights, image * images * epochs / 1e15, epochs, time.perf_counter() - start)
