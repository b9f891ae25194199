"""What accuracy.py compares: each function trains on data/train in the current folder, with `pflop` of compute (10^15
operations) at most, or for so many epochs, and returns a Trained.
"""
import argparse
import contextlib
import copy
import itertools
import math
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import timm
import torch
from timm.data import Mixup, create_transform
from timm.layers import trunc_normal_
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, random_seed
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2
from tqdm import tqdm

import train
from common import settings
from common.data.cutout import Cutout
from common.data.datasets import ImageFolder
from common.data.transforms import Transform, eval_transform, read_measured
from common.runtime.device import choose_amp_dtype, choose_device
from common.runtime.errors import UserError
from common.runtime.machine import retain_freed_memory, worker_count
from common.training import checkpoint, choices
from common.training.optimizer import build_optimizer, optimizer_flop
from common.training.setup import Provenance, network_spec
from models import init
from models.cost import multiply_adds
from models.volo import STRIDE

SAVE_EVERY = 600.  # seconds
FLIPS = {'upright': (0.5, 0.), 'above': (0.5, 0.5), 'text': (0., 0.), 'None': (0., 0.)}  # hflip and vflip by VIEW


@dataclass
class Trained:
    weights: dict[str, dict]  # 'raw' and, where the recipe has an average, 'ema': what test.py reads in a checkpoint
    pflop: float
    epochs: float
    seconds: float


def run_train(options: str, pflop: float, seed: int) -> Trained:
    """train.py with these options, and as many epochs as the compute is enough for. IMG_SIZE = 'auto' follows from the
    compute, by the rule that makes it follow from a TIME_BUDGET. A run that was interrupted goes on.
    """
    argv = ['--pretrained', 'false', *arguments(options, seed)]
    dataset = ImageFolder('data/train')
    cfg = chosen(argv, dataset)
    if settings.read(train, argv).IMG_SIZE == 'auto':
        sides = [side for side in range(choices.LEAST_SIDE, choices.USUAL_SIDE + 1, STRIDE)
                 if choices.images_wanted(side, len(dataset)) * image_flop(cfg, dataset, (side, side)) <= pflop * 1e15]
        argv += ['--img-size', str(min(max(sides, default=choices.LEAST_SIDE), *cfg.IMG_SIZE))]
        cfg = chosen(argv, dataset)  # of smaller images more may fit into a batch
    epoch = image_flop(cfg, dataset, cfg.IMG_SIZE) * (len(dataset) // cfg.BATCH_SIZE * cfg.BATCH_SIZE)
    epochs = math.floor(pflop * 1e15 / epoch)
    if not epochs:
        raise UserError(f'PFLOP = {pflop}: an epoch takes {epoch / 1e15:.2g}')
    return train_epochs(argv, epochs)


def run_finetuned(options: str, epochs: int, seed: int) -> Trained:
    """train.py with these options, from the weights that they name. A run that was interrupted goes on."""
    return train_epochs(['--pretrained', 'true', *arguments(options, seed)], epochs)


def arguments(options: str, seed: int) -> list[str]:
    """The command line of train.py with these options, without its length."""
    return [*shlex.split(options), '--validate-every', '1000000', '--seed', str(seed), '--output-dir', 'out',
            '--resume', 'auto']


def train_epochs(argv: list[str], epochs: int) -> Trained:
    """train.py with this command line; the compute is what its history says."""
    train.main(settings.read(train, [*argv, '--epochs', str(epochs)]))
    saved = checkpoint.load(Path('out/last.pth'))
    weights = {'raw': saved}
    if saved['state_dict_ema']:
        weights['ema'] = {**saved, 'state_dict': saved['state_dict_ema']}
    return Trained(weights, sum(row['pflop'] for row in saved['history']), epochs, saved['elapsed'])


def chosen(argv: list[str], dataset: ImageFolder) -> settings.Settings:
    """The settings of train.py with these arguments, from scratch."""
    cfg = choices.check_settings(settings.read(train, argv))
    return choices.choose_settings(cfg, Provenance('scratch'), len(dataset), len(dataset.classes), None,
                                   dataset.usual_side())


def run_without(*parts: str) -> Callable[[str, float, int], Trained]:
    """run_train, in which these functions of models/init.py do nothing."""
    def run(options: str, pflop: float, seed: int) -> Trained:
        with contextlib.ExitStack() as patches:
            for part in parts:
                patches.enter_context(mock.patch.object(init, part))
            return run_train(options, pflop, seed)
    return run


def run_published_init(options: str, pflop: float, seed: int) -> Trained:
    """run_train from the random weights that the authors begin with."""
    with mock.patch('models.volo.init_weights', published_init):
        return run_train(options, pflop, seed)


def published_init(net: torch.nn.Module) -> None:
    """Linear layers, pos_embed and cls_token from N(0, 0.02), all else as PyTorch has it (arXiv:2106.13112's code)."""
    for module in net.modules():
        if isinstance(module, torch.nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    trunc_normal_(net.pos_embed, std=0.02)
    trunc_normal_(net.cls_token, std=0.02)


def image_flop(cfg: settings.Settings, dataset: ImageFolder, size: tuple[int, int]) -> float:
    """Operations of training on an image of a batch, with its share of the optimizer's, and of asking a TEACHER."""
    spec = replace(network_spec(cfg, len(dataset.classes)), img_size=size)
    net = spec.create()
    optimizer = build_optimizer(cfg.OPTIMIZER, net, 1., cfg.WEIGHT_DECAY, None)
    flop = 3 * 2 * multiply_adds(net, size) + optimizer_flop(optimizer) / (cfg.BATCH_SIZE * cfg.ACCUMULATE_STEPS)
    if cfg.TEACHER:
        from extras.teacher import build_teacher  # an extra may be missing

        blank = Transform(list(size), [0.5] * 3, [0.5] * 3)
        flop = build_teacher(cfg.TEACHER, 1., blank, False, torch.device('cpu'), False).add_flop(flop)
    return flop


def run_tutorial(options: str, pflop: float, seed: int) -> Trained:
    """The tutorial's training as it is printed, cut off when the compute is used up: 224 pixels, its augmentations,
    batches of 16, AdamW with 1e-4, a cosine of 20 epochs, clipping at 5, and an average with a decay of 0.9998.
    """
    random_seed(seed)
    dataset = ImageFolder('data/train')
    transform = Transform([224, 224], *map(list, read_measured(dataset.classes)))
    dataset.transform = v2.Compose([
        v2.RandomRotation(10), v2.GaussianBlur(5, (0.1, 3.0)), v2.ColorJitter(0.5, 0.5, 0.5), v2.Resize((224, 224)),
        Cutout(0.5, 224, 224), eval_transform(transform)])
    net = timm.create_model('volo_d1_224', num_classes=len(dataset.classes), use_aux_head=False).to(choose_device())
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, 1e-6)
    epoch = len(dataset) // 16
    return run_loop(
        net, {'use_aux_head': False}, dataset, transform, 16, pflop, optimizer, ModelEmaV3(net, 0.9998),
        Mixup(0.8, 1.0, prob=0.1, switch_prob=0.5, label_smoothing=0.1, num_classes=len(dataset.classes)),
        lambda update: update % epoch or schedule.step())


def run_timm(options: str, pflop: float, seed: int) -> Trained:
    """What timm's train.py does with these options, of the same names, from timm's parts: its VOLO-D1 with the
    auxiliary head, random resized crops, erased boxes, Mixup and CutMix, a cosine over the updates, an average. Its
    --hflip and --vflip follow from --view.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument('--scale', type=float, nargs=2, default=(0.08, 1.))
    parser.add_argument('--view', choices=FLIPS, default='upright')
    for name, default in (('img-size', 64), ('batch-size', 32), ('opt', 'adamw'), ('lr', 4e-4), ('weight-decay', 0.05),
                          ('warmup-epochs', 1), ('drop-path', 0.), ('mixup-prob', 1.), ('reprob', 0.),
                          ('color-jitter', 0.4)):
        parser.add_argument(f'--{name}', type=type(default), default=default)
    args = parser.parse_args(shlex.split(options))
    hflip, vflip = FLIPS[args.view]
    random_seed(seed)
    dataset, size = ImageFolder('data/train'), (args.img_size, args.img_size)
    transform = Transform(list(size), *map(list, read_measured(dataset.classes)), interpolation='bicubic', crop=1.)
    dataset.transform = create_transform(
        (3, *size), is_training=True, scale=args.scale, hflip=hflip, vflip=vflip, color_jitter=args.color_jitter,
        interpolation='random', re_prob=args.reprob, re_mode='pixel', mean=transform.mean, std=transform.std)
    net = timm.create_model('volo_d1_224', num_classes=len(dataset.classes), img_size=args.img_size,
                            drop_path_rate=args.drop_path).to(choose_device())
    optimizer = create_optimizer_v2(net, args.opt, lr=args.lr, weight_decay=args.weight_decay)
    epoch = len(dataset) // args.batch_size
    updates = math.floor(pflop * 1e15 / update_flop(net, optimizer, size, args.batch_size))
    schedule = CosineLRScheduler(optimizer, updates, warmup_t=args.warmup_epochs * epoch, warmup_lr_init=1e-5,
                                 t_in_epochs=False)
    return run_loop(
        net, {}, dataset, transform, args.batch_size, pflop, optimizer,
        ModelEmaV3(net, 0.9998, use_warmup=True),
        Mixup(0.8, 1.0, prob=args.mixup_prob, label_smoothing=0.1, num_classes=len(dataset.classes)),
        schedule.step_update)


def update_flop(net: torch.nn.Module, optimizer: torch.optim.Optimizer, size: tuple, batch: int) -> float:
    """Operations of an update: forward, backward, and what the optimizer multiplies."""
    net, optimizer = copy.deepcopy((net, optimizer))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    return 3 * 2 * multiply_adds(net, size) * batch + counter.get_total_flops()


def run_loop(net: torch.nn.Module, model_kwargs: dict, dataset: ImageFolder, transform: Transform, batch: int,
             pflop: float, optimizer: torch.optim.Optimizer, ema: ModelEmaV3, mixup: Mixup,
             schedule: Callable) -> Trained:
    """Train timm's VOLO-D1 with as many updates as the compute is enough for. A run that was interrupted goes on from
    its last save, with the pictures shuffled anew.
    """
    retain_freed_memory()
    device = choose_device()
    amp_dtype, flop = choose_amp_dtype(device), update_flop(net, optimizer, transform.img_size, batch)
    updates = math.floor(pflop * 1e15 / flop)
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16)
    loader = DataLoader(dataset, batch, shuffle=True, drop_last=True, num_workers=worker_count('auto'))
    if not len(loader):
        raise UserError(f'{len(dataset)} pictures in data/train: this recipe needs {batch} for a batch')
    path = Path(f'out/loop_{torch.initial_seed()}_{updates}.pth')
    parts = {'net': net, 'ema': ema, 'optimizer': optimizer, 'scaler': scaler}
    number, seconds = resume_loop(path, parts, schedule)
    path.parent.mkdir(exist_ok=True)
    start = time.perf_counter() - seconds
    net.train()
    with tqdm(total=updates, initial=number) as bar:
        while number < updates:
            for images, labels in itertools.islice(loader, updates - number):
                loss = train_on(*mixup(images.to(device), labels.to(device)), net, amp_dtype, optimizer, scaler)
                number += 1
                ema.update(net, step=number)
                schedule(number)
                bar.set_postfix(loss=f'{loss:.3f}', refresh=False)
                bar.update()
                if (now := time.perf_counter() - start) > seconds + SAVE_EVERY:
                    seconds = now
                    checkpoint.save(path, {'number': number, 'seconds': seconds,
                                           **{name: part.state_dict() for name, part in parts.items()}})
    path.unlink(missing_ok=True)
    common = {'model': 'volo_d1_224', 'model_kwargs': model_kwargs, 'classes': dataset.classes,
              'transform': transform.as_dict(), 'settings': {'USE_AMP': True}}
    return Trained({'raw': {**common, 'state_dict': net.state_dict()},
                    'ema': {**common, 'state_dict': ema.module.state_dict()}},
                   flop * updates / 1e15, updates / len(loader), time.perf_counter() - start)


def resume_loop(path: Path, parts: dict, schedule: Callable) -> tuple[int, float]:
    """(updates, seconds) so far of the run that was saved there, whose parts are loaded; (0, 0.) without one."""
    if not path.exists():
        return 0, 0.
    saved = checkpoint.load(path)
    random_seed(torch.initial_seed() + saved['number'])
    for number in range(1, saved['number'] + 1):
        schedule(number)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved['number'], saved['seconds']


def train_on(images: torch.Tensor, targets: torch.Tensor, net: torch.nn.Module, amp_dtype: torch.dtype | None,
             optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> float:
    """One update, its gradient clipped at 5; returns the loss."""
    with torch.autocast(images.device.type, amp_dtype, enabled=amp_dtype is not None):
        logits = net(images)
    loss = torch.nn.functional.cross_entropy(logits.float(), targets)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(net.parameters(), 5.)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return loss.item()
