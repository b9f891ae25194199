"""Step 3: train a VOLO on data/train, watch it on data/val, keep the best weights.

    python train.py                            with the constants below
    python train.py --img-size 112 --epochs 30 with two of them changed for one run; --help lists all

writes to checkpoints/volo_d1/ (OUTPUT_DIR): best.pth and last.pth, loss.png, acc.png, lr.png, confusion.png,
report.txt, report.json, result.json, log.csv and class.json. README.md has measured accuracies and times to expect.
"""
import math
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, ModelEmaV3, accuracy, random_seed
from torch.utils.data import DataLoader

from common import augment, checkpoint, report, settings
from common.device import amp_dtype, choose_device, describe, parallel
from common.files import writable_folder, write_csv, write_json
from common.images import EpochSampler, ImageFolder, SeededImageFolder, find_bad, loader_workers
from common.metrics import scores, validate
from common.normalisation import normalisation
from common.progress import Bar, Clock, format_duration, with_waiting
from common.settings import UserError
from models import WeightsError, create_model, fetch_published, load_weights

# Data
DATA_DIR = 'data'                 # what makedata.py made: train/ and val/, one sub-folder for each class
IMG_SIZE: int | tuple = 224       # pixels, a multiple of 16, or (height, width); 112 takes a quarter of the time
MEAN: tuple | None = None         # of red, green, blue in [0, 1]; None takes mean_std.json, else ImageNet's
STD: tuple | None = None          # likewise
NUM_WORKERS: int | str = 'auto'   # processes that read pictures; 'auto' takes one for each core
# Model
MODEL = 'volo_d1'                 # volo_d1 (26 M parameters) … volo_d5 (294 M)
MODEL_KWARGS = {}                 # more keyword arguments of the network, for example {'drop_rate': 0.1}
PRETRAINED: bool | str = 'auto'   # ImageNet weights: 'auto' if to be had, True insists, False never, or a file's path
DROP_PATH = 0.1                   # stochastic depth: the last block is skipped this often
# Optimisation
EPOCHS = 100                      # passes over the training set; the tutorial's 300 can pay from scratch
BATCH_SIZE = 32                   # pictures a step, even (Mixup pairs them); halve it if memory runs out
LR: float | str = 'auto'          # peak learning rate; 'auto': the tutorial's 1e-4 on loaded weights, else 5e-4
MIN_LR = 1e-6                     # learning rate at the end of the cosine
WARMUP_EPOCHS = 2                 # the learning rate rises for so long; the tutorial has no warm-up
WEIGHT_DECAY = 0.05               # not on norms, biases, pos_embed, cls_token
CLIP_GRAD = 5.0                   # largest norm of the gradient; 0 does not clip
USE_AMP = True                    # mixed precision, where the processor gains from it
USE_EMA = True                    # also keep an average of the weights, and validate it
EMA_DECAY = 0.9998                # of that average; it starts lower and rises with the number of steps
USE_DP = True                     # DataParallel, when there are several GPUs; BATCH_SIZE is then shared among them
# Augmentation
ROTATION = 10                     # degrees either way; 180 for pictures without an up, such as plants from above
FLIP = 0.5                        # probability of a mirror image; 0 where left and right differ, as in text
FLIP_VERTICAL = 0.0               # likewise, upside down
SHIFT = 0.0                       # largest shift, as a share of the side
ZOOM: tuple | None = None         # least and most random scale, for example (0.8, 1.2); None: off
BLUR = 1.0                        # probability of a Gaussian blur
JITTER = 0.5                      # brightness, contrast and saturation times 1 - JITTER to 1 + JITTER
CUTOUT = 0.5                      # probability of a grey box (torchtoolbox's Cutout)
MIXUP_ALPHA = 0.8                 # of Mixup's Beta distribution
CUTMIX_ALPHA = 1.0                # of CutMix's
MIXUP_PROB = 0.1                  # probability that a batch is mixed, one way or the other
MIXUP_SWITCH_PROB = 0.5           # CutMix's share of those
SMOOTHING = 0.1                   # label smoothing
# Run
OUTPUT_DIR = 'checkpoints/volo_d1'
RESUME = False                    # True goes on from OUTPUT_DIR/last.pth
SEED = 42


def main(cfg):
    check(cfg)
    random_seed(cfg.SEED)
    out = writable_folder(cfg.OUTPUT_DIR, 'OUTPUT_DIR')
    saved = checkpoint.load(out / 'last.pth') if cfg.RESUME else None
    data = build_data(cfg)
    if saved:
        check_resume(cfg, data, saved, out)
    run = build_training(cfg, data, saved)
    if not saved:
        checkpoint.set_aside(out)
    history = saved['history'] if saved else []
    write_json(out / 'class.json', data.classes)
    print(f'Ctrl-C stops; RESUME = True (--resume) then goes on after the last whole epoch in {out}')
    forward = 1 / 3  # of the time that a training step takes
    clock = Clock(len(data.train), cfg.EPOCHS, rest=len(data.val) * (1 + cfg.USE_EMA) * forward)
    for epoch in range(len(history), cfg.EPOCHS):
        start = time.perf_counter()
        data.train.sampler.epoch = epoch
        row = {'epoch': epoch + 1, **train_one_epoch(cfg, run, data, epoch, clock)}
        trained = time.perf_counter()
        results = {'raw': evaluate(run.model, data, run, 'validating')}
        if run.ema:
            results['ema'] = evaluate(run.ema_model, data, run, 'validating the EMA weights')
        for which in ('raw', 'ema'):
            scored = results.get(which, {})
            row |= {f'{which}_{key}': scored.get(key) for key in ('loss', 'acc1', 'acc5', 'balanced_accuracy')}
        row['seconds'] = time.perf_counter() - start
        history.append(row)
        save_epoch(cfg, run, data, out, history, results)
        clock.rest_seconds = time.perf_counter() - trained
        print_epoch(cfg, row, clock.left(epoch + 1, 0))
    best = best_of(history)
    print(f'\nbest: epoch {best["epoch"]}, {best["weights"]} weights, ACC1 {best["acc1"]:.2f} %; all of it is in {out}')


_RANGES = {  # least and most that make sense
    'EPOCHS': (1, math.inf), 'BATCH_SIZE': (2, math.inf), 'SEED': (0, 2 ** 32 - 1), 'SMOOTHING': (0, 0.99),
    **dict.fromkeys(('MIN_LR', 'DROP_PATH', 'EMA_DECAY', 'MIXUP_PROB', 'MIXUP_SWITCH_PROB'), (0, 1)),
    **dict.fromkeys(('FLIP', 'FLIP_VERTICAL', 'SHIFT', 'BLUR', 'CUTOUT'), (0, 1)),
    **dict.fromkeys(('WARMUP_EPOCHS', 'WEIGHT_DECAY', 'CLIP_GRAD'), (0, math.inf)),
    **dict.fromkeys(('ROTATION', 'JITTER', 'MIXUP_ALPHA', 'CUTMIX_ALPHA'), (0, math.inf))}
_OURS = {'img_size', 'num_classes', 'in_chans', 'drop_path_rate', 'return_dense', 'mix_token'}  # not for MODEL_KWARGS


def check(cfg):
    """Refuse settings that would fail later, each by its name."""
    for name, (least, most) in _RANGES.items():
        if not least <= getattr(cfg, name) <= most:
            raise UserError(f'{name} = {getattr(cfg, name)} must be at least {least}'
                            + (f' and at most {most}' if most < math.inf else ''))
    if cfg.BATCH_SIZE % 2:
        raise UserError(f'BATCH_SIZE = {cfg.BATCH_SIZE} must be even: Mixup works on pairs')
    if 0 < cfg.WARMUP_EPOCHS >= cfg.EPOCHS:
        raise UserError(f'WARMUP_EPOCHS = {cfg.WARMUP_EPOCHS} must be less than EPOCHS = {cfg.EPOCHS}; 0: none')
    if cfg.LR != 'auto' and not (isinstance(cfg.LR, (int, float)) and cfg.LR > 0):
        raise UserError(f"LR = {cfg.LR!r}: give a positive number or 'auto'")
    if cfg.ZOOM is not None and not (len(cfg.ZOOM) == 2 and 0 < cfg.ZOOM[0] <= cfg.ZOOM[1]):
        raise UserError(f'ZOOM = {cfg.ZOOM}: give the least and the most, for example (0.8, 1.2), or None')
    if cfg.MIXUP_PROB and not cfg.MIXUP_ALPHA and not cfg.CUTMIX_ALPHA:
        raise UserError('MIXUP_PROB needs MIXUP_ALPHA or CUTMIX_ALPHA above 0: set it to 0 to switch mixing off')
    if cfg.MODEL_KWARGS.keys() & _OURS:
        raise UserError(f'MODEL_KWARGS: {", ".join(sorted(cfg.MODEL_KWARGS.keys() & _OURS))} is set by train.py itself')
    sides = (cfg.IMG_SIZE, cfg.IMG_SIZE) if isinstance(cfg.IMG_SIZE, int) else cfg.IMG_SIZE
    if len(sides) != 2 or any(type(side) is not int or side < 16 or side % 16 for side in sides):
        raise UserError(f'IMG_SIZE = {cfg.IMG_SIZE}: each side must be a multiple of 16 pixels')
    cfg.IMG_SIZE = tuple(sides)


# ---- data ------------------------------------------------------------------------------------------------------------

def build_data(cfg):
    """The two loaders, the class names, and the transform's settings as plain values."""
    root = Path(cfg.DATA_DIR)
    if not (root / 'train').is_dir() or not (root / 'val').is_dir():
        raise UserError(f'{root}/train and {root}/val are needed: run makedata.py first, or set DATA_DIR')
    train_set = SeededImageFolder(root / 'train')
    val_set = ImageFolder(root / 'val', classes=train_set.classes, allow_empty=True)
    print(f'checking {len(train_set)} pictures for training and {len(val_set)} for validation')
    bad = find_bad([path for path, _ in train_set.samples + val_set.samples])
    for problem in bad.values():
        print(f'left out: {problem}')
    for dataset in (train_set, val_set):
        dataset.leave_out(bad)
    if not len(val_set):
        raise UserError(f'{val_set.root}: none of its files is a readable picture')
    trained, measured = set(train_set.targets), set(val_set.targets)
    for index, name in enumerate(train_set.classes):
        if index not in trained:
            raise UserError(f'{train_set.root}/{name}: none of its files is a readable picture')
        if index not in measured:
            print(f'warning: {val_set.root} has no picture of {name}, so nothing measures that class')
    if len(train_set) < cfg.BATCH_SIZE:
        raise UserError(f'{len(train_set)} training images but BATCH_SIZE = {cfg.BATCH_SIZE}: lower BATCH_SIZE')
    mean, std = normalisation(cfg.MEAN, cfg.STD, train_set.classes)
    transform = {'img_size': list(cfg.IMG_SIZE), 'mean': list(mean), 'std': list(std)}
    train_set.transform = augment.train_transform(
        transform, rotation=cfg.ROTATION, flip=cfg.FLIP, flip_vertical=cfg.FLIP_VERTICAL, shift=cfg.SHIFT,
        zoom=cfg.ZOOM, blur=cfg.BLUR, jitter=cfg.JITTER, cutout=cfg.CUTOUT)
    val_set.transform = augment.eval_transform(transform)
    workers = loader_workers(cfg.NUM_WORKERS)
    common = {'batch_size': cfg.BATCH_SIZE, 'persistent_workers': workers > 0, 'pin_memory': torch.cuda.is_available(),
              'generator': torch.Generator()}  # its own: a loader takes a number from it when workers start
    return SimpleNamespace(
        classes=train_set.classes, transform=transform,
        train=DataLoader(train_set, sampler=EpochSampler(len(train_set), cfg.SEED), drop_last=True, num_workers=workers,
                         **common),
        val=DataLoader(val_set, num_workers=(workers + 1) // 2, **common))


# ---- network, optimizer, schedule ------------------------------------------------------------------------------------

def build_training(cfg, data, saved):
    """Everything that a step needs, under one name; in the state that was saved, if any."""
    device = choose_device()
    dtype = amp_dtype(device) if cfg.USE_AMP else None
    print(describe(device, dtype))
    try:
        net = create_model(cfg.MODEL, num_classes=len(data.classes), img_size=cfg.IMG_SIZE,
                           drop_path_rate=cfg.DROP_PATH, **cfg.MODEL_KWARGS)
    except ValueError as error:
        raise UserError(f'MODEL, MODEL_KWARGS: {error}') from error
    weights = saved['pretrained'] if saved else pretrained(cfg, net)
    print(f'weights: {", ".join(f"{key} {value}" for key, value in weights.items() if value and key != "reason")}')
    net.to(device)
    lr = cfg.LR if cfg.LR != 'auto' else 1e-4 if weights['source'] != 'scratch' else 5e-4
    optimizer = create_optimizer_v2(net, 'adamw', lr=lr, weight_decay=cfg.WEIGHT_DECAY,
                                    fused=device.type in ('cpu', 'cuda'))
    steps = len(data.train)
    warmup, low = cfg.WARMUP_EPOCHS * steps, min(cfg.MIN_LR, lr)
    scheduler = CosineLRScheduler(optimizer, t_initial=cfg.EPOCHS * steps - warmup, lr_min=low, t_in_epochs=False,
                                  warmup_t=warmup, warmup_lr_init=low, warmup_prefix=True)
    ema = ModelEmaV3(net, decay=cfg.EMA_DECAY, use_warmup=True) if cfg.USE_EMA else None
    run = SimpleNamespace(
        net=net, model=parallel(net, device, dtype, cfg.USE_DP), device=device, dtype=dtype, weights=weights,
        optimizer=optimizer, scheduler=scheduler,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype is torch.float16),
        ema=ema, ema_model=ema and parallel(ema.module, device, dtype, cfg.USE_DP),
        mixup=Mixup(cfg.MIXUP_ALPHA, cfg.CUTMIX_ALPHA, prob=cfg.MIXUP_PROB, switch_prob=cfg.MIXUP_SWITCH_PROB,
                    label_smoothing=cfg.SMOOTHING, num_classes=len(data.classes)),
        criterion=SoftTargetCrossEntropy(), parameters=sum(p.numel() for p in net.parameters()))
    if saved:
        checkpoint.restore_training_state(run, saved)
        scheduler.step_update(len(saved['history']) * steps)
    return run


def pretrained(cfg, net):
    """Load the weights that PRETRAINED asks for. Returns {'source': …, and what was resized or dropped}."""
    wanted = cfg.PRETRAINED
    if wanted is False:
        return {'source': 'scratch'}
    try:
        if wanted not in (True, 'auto'):
            return {'source': wanted, **load_weights(net, wanted)}
        return {'source': 'ImageNet', **load_weights(net, fetch_published(cfg.MODEL, cfg.IMG_SIZE))}
    except WeightsError as error:
        if wanted != 'auto':
            raise UserError(f'PRETRAINED = {wanted!r}: {error}') from error
        print(f'!!! NO PRETRAINED WEIGHTS: training from scratch takes far more pictures and epochs !!!\n{error}')
        return {'source': 'scratch', 'reason': str(error)}


# ---- the epoch loop --------------------------------------------------------------------------------------------------

def train_one_epoch(cfg, run, data, epoch, clock):
    """One pass over the training set. Returns the columns of the log that belong to it."""
    losses, acc1, norms = AverageMeter(), AverageMeter(), AverageMeter()
    waited, seen, start = 0., 0, time.perf_counter()
    run.model.train()
    bar = Bar(with_waiting(data.train), total=len(data.train), desc=f'epoch {epoch + 1}/{cfg.EPOCHS}', unit='step')
    for step, (waiting, (images, labels)) in enumerate(bar):
        begin = time.perf_counter()
        images, labels = images.to(run.device, non_blocking=True), labels.to(run.device, non_blocking=True)
        images, targets = run.mixup(images, labels)  # Mixup or CutMix now and then; always smoothed one-hot targets
        logits = run.model(images).float()  # the model runs inside autocast, the loss outside
        loss = run.criterion(logits, targets)
        run.optimizer.zero_grad()
        run.scaler.scale(loss).backward()
        run.scaler.unscale_(run.optimizer)  # the norm is of the true gradients
        norm = torch.nn.utils.clip_grad_norm_(run.net.parameters(), cfg.CLIP_GRAD or math.inf).item()
        if not math.isfinite(loss.item()) or not (math.isfinite(norm) or run.scaler.is_enabled()):
            raise UserError(f'the loss became {loss.item()} and the gradient {norm} in epoch {epoch + 1}, step '
                            f'{step + 1}: lower LR; {cfg.OUTPUT_DIR}/last.pth, if there, holds the epoch before')
        run.scaler.step(run.optimizer)
        run.scaler.update()
        done = epoch * len(data.train) + step + 1
        run.scheduler.step_update(done)
        if run.ema:
            run.ema.update(run.net, step=done)

        losses.update(loss.item(), len(images))
        if math.isfinite(norm):  # fp16 skips the steps in which it is not
            norms.update(norm)
        unmixed = targets.amax(1) >= 1 - cfg.SMOOTHING  # accuracy only on pictures whose label is not a mixture
        if unmixed.any():
            acc1.update(accuracy(logits[unmixed], labels[unmixed])[0].item(), int(unmixed.sum()))
        waited, seen = waited + waiting, seen + len(images)
        seconds = time.perf_counter() - start
        clock.step(waiting + time.perf_counter() - begin)
        forecast(cfg, clock, epoch, step)
        lr = run.optimizer.param_groups[0]['lr']
        bar.set_postfix_str(
            f'loss {losses.avg:.3f}, lr {lr:.1e}, {seen / seconds:.1f} img/s, waiting {waited / seconds:.0%}, '
            f'whole run {format_duration(clock.left(epoch, step + 1))} left', refresh=False)
    return {'lr': lr, 'train_loss': losses.avg, 'train_acc1': acc1.avg if acc1.count else None, 'grad_norm': norms.avg,
            'images_per_s': seen / seconds, 'waiting': waited / seconds}


def forecast(cfg, clock, epoch, step):
    """Say once, after a few steps, how long the whole run takes, and what shortens a long one."""
    if clock.told or clock.count < 2 or (clock.seconds < 10 and step + 1 < clock.steps):
        return
    clock.told = True
    left = clock.left(epoch, step + 1)
    text = f'forecast: {format_duration(left)} for the whole run on this machine'
    if left > 3600:
        small = tuple(max(16, side // 32 * 16) for side in cfg.IMG_SIZE)
        text += (f'; shorter with fewer EPOCHS (now {cfg.EPOCHS}), with IMG_SIZE = {small} (about a quarter of it), '
                 'or on a machine with a GPU')
    Bar.write(text)


def evaluate(model, data, run, label):
    """The scores of a model on the validation set."""
    return scores(*validate(model, data.val, run.device, label), data.classes)


# ---- what is kept ----------------------------------------------------------------------------------------------------

def best_of(history):
    """{epoch, weights ('raw' or 'ema'), acc1} of the highest ACC1 so far, the earliest of equals."""
    found = [{'epoch': row['epoch'], 'weights': which, 'acc1': row[f'{which}_acc1']}
             for row in history for which in ('raw', 'ema') if row[f'{which}_acc1'] is not None]
    return max(found, key=lambda best: best['acc1'])


def save_epoch(cfg, run, data, out, history, results):
    """Write checkpoints, tables and pictures after an epoch. `results`: the scores of the raw and the EMA weights."""
    best = best_of(history)
    info = {'model': cfg.MODEL, 'model_kwargs': cfg.MODEL_KWARGS, 'classes': data.classes, 'transform': data.transform,
            'settings': vars(cfg), 'pretrained': run.weights, 'best': best}
    state = checkpoint.training_state(run)
    if best['epoch'] == len(history):
        weights = state['state_dict_ema' if best['weights'] == 'ema' else 'state_dict']
        checkpoint.save(out / 'best.pth', {**info, 'history': history, 'state_dict': weights})
    checkpoint.save(out / 'last.pth', {**info, 'history': history, **state})  # second: best.pth must not miss an epoch
    try:
        write_csv(out / 'log.csv', history)
        write_json(out / 'result.json', {
            **info, 'last': history[-1], 'finished': len(history) == cfg.EPOCHS, 'parameters': run.parameters,
            'seconds': sum(row['seconds'] for row in history), 'device': describe(run.device, run.dtype),
            'torch': torch.__version__})
        report.plot_training(out, history, best)
        if best['epoch'] == len(history):
            report.write_scores(out, results[best['weights']], data.classes, best)
    except UserError as error:  # a table that is open in another program, say; the training is worth more
        print(f'warning: {error}')


def check_resume(cfg, data, saved, out):
    """Refuse settings that would make another run of the saved one, and list the others that changed."""
    before = saved['settings']
    for name in ('MODEL', 'MODEL_KWARGS', 'IMG_SIZE', 'USE_EMA'):
        if before[name] != getattr(cfg, name):
            raise UserError(f'RESUME: {out}/last.pth was trained with {name} = {before[name]!r}: '
                            'set it back, or choose another OUTPUT_DIR')
    if saved['classes'] != data.classes:
        raise UserError(f'RESUME: {out}/last.pth was trained on other classes: choose another OUTPUT_DIR')
    if saved['transform'] != data.transform:
        raise UserError(f'RESUME: {out}/last.pth was trained with MEAN = {tuple(saved["transform"]["mean"])}, '
                        f'STD = {tuple(saved["transform"]["std"])}: set them so, or choose another OUTPUT_DIR')
    if len(saved['history']) >= cfg.EPOCHS:
        raise UserError(f'RESUME: {out}/last.pth has all its {len(saved["history"])} epochs behind it: '
                        'raise EPOCHS to train on')
    for name, value in vars(cfg).items():
        if before.get(name) != value and name != 'RESUME':
            print(f'resume: {name} was {before.get(name)!r}, now {value!r}')
    print(f'resume: {out}/last.pth, after epoch {len(saved["history"])}')


def print_epoch(cfg, row, left):
    ema = f' (EMA {row["ema_acc1"]:.2f} %)' if cfg.USE_EMA else ''
    print(f'epoch {row["epoch"]}/{cfg.EPOCHS}: loss {row["train_loss"]:.3f}, val loss {row["raw_loss"]:.3f}, '
          f'ACC1 {row["raw_acc1"]:.2f} %{ema}, {row["images_per_s"]:.1f} img/s, waiting {row["waiting"]:.0%}, '
          f'{format_duration(row["seconds"])}, {format_duration(left)} left', flush=True)


if __name__ == '__main__':
    settings.run(main)
