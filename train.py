"""Step 3: train a VOLO on data/train, watch it on data/val, keep the best weights.

    python train.py                            with the constants below
    python train.py --img-size 112 --epochs 30 with two of them changed for one run; --help lists all

writes to checkpoints/volo_d1/ (OUTPUT_DIR): best.pth and last.pth, loss.png, acc.png, lr.png, confusion.png,
report.txt, report.json, result.json, log.csv and class.json. README.md has measured accuracies and times to expect.
"""
import math
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, mixup_target
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, ModelEmaV3, accuracy, random_seed

from common import augment, checkpoint, report, settings
from common.cache import Pictures, choose_cache
from common.datasets import EpochSampler, leave_out, open_split, start_loader
from common.device import amp_dtype, choose_device, compiled, describe, keep_memory, parallel
from common.files import writable_folder, write_csv, write_json
from common.images import loader_workers
from common.metrics import scores, validate
from common.network import build_network, find_weights, print_cost
from common.normalisation import normalisation
from common.progress import Bar, Clock, format_duration, with_waiting
from common.settings import UserError
from models import VARIANTS, default_cfg, heads_of, token_label_loss

# Data
DATA_DIR = 'data'                 # what makedata.py made: train/ and val/, one sub-folder for each class
IMG_SIZE: int | tuple = 224       # pixels, a multiple of 16, or (height, width); 112 takes a quarter of the time
INTERPOLATION = 'bilinear'        # of the resizing; 'bicubic' is what the published weights were trained with
CROP: float | str | None = None   # in val and test: None squeezes the whole picture into IMG_SIZE, 0.96 takes the
                                  # middle 96 % in its proportions, 'published' the share that MODEL was tested with
NORMALISATION = 'auto'            # 'weights': as the loaded weights had it; 'data': mean_std.json; 'auto': the first
                                  # where weights are loaded, else the second
MEAN: tuple | None = None         # of red, green, blue in [0, 1]: overrides NORMALISATION
STD: tuple | None = None          # likewise
NUM_WORKERS: int | str = 'auto'   # processes that read pictures; 'auto' takes one for each core
CACHE: str | None = 'auto'        # pictures at IMG_SIZE, decoded once: 'ram', 'disk' (in .cache/, for later runs too),
                                  # None, or 'auto': 'ram' if they take no more than a quarter of the free memory
# Model
MODEL = 'volo_d1'                 # volo_d1 (26 M parameters) … volo_d5 (294 M), or a network of timm, say 'resnet50'
MODEL_KWARGS = {}                 # more keyword arguments of the network, for example {'drop_rate': 0.1}
PRETRAINED: bool | str = 'auto'   # ImageNet weights: 'auto' if to be had, True insists, False never, or a file's path
FREEZE_EPOCHS = 0                 # for so many epochs only the head learns; WARMUP_EPOCHS should be more than that
DROP_PATH = 0.1                   # stochastic depth: the last block is skipped this often
TOKEN_LABEL = False               # VOLO only: MixToken and a loss on every token, the paper's training; MIXUP_PROB = 0
GRAD_CHECKPOINTING = False        # compute blocks twice instead of keeping them: README.md has the memory it saves
# Optimisation
EPOCHS = 100                      # passes over the training set; the tutorial's 300 can pay from scratch
BATCH_SIZE = 32                   # pictures at a time, even (Mixup pairs them); halve it if memory runs out
ACCUMULATE_STEPS = 1              # batches to each step of the optimizer: 4 with BATCH_SIZE = 8 learn like 32
LR: float | str = 'auto'          # peak learning rate; 'auto': the tutorial's 1e-4 on loaded weights, else 5e-4
MIN_LR = 1e-6                     # learning rate at the end of the cosine
WARMUP_EPOCHS = 2                 # the learning rate rises for so long; the tutorial has no warm-up
LAYER_DECAY = 1.0                 # each layer learns so much slower than the one above it; 0.75 is usual with weights
WEIGHT_DECAY = 0.05               # not on norms, biases, pos_embed, cls_token
CLIP_GRAD = 5.0                   # largest norm of the gradient; 0 does not clip
USE_AMP = True                    # mixed precision, where the processor gains from it
COMPILE = False                   # torch.compile: minutes to begin with, then faster steps on GPUs; on CPUs slower ones
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
    keep_memory()
    random_seed(cfg.SEED)
    out = writable_folder(cfg.OUTPUT_DIR, 'OUTPUT_DIR')
    saved = checkpoint.load(out / 'last.pth') if cfg.RESUME else None
    weights, content = (saved['pretrained'], None) if saved else find_weights(cfg)
    data = build_data(cfg, weights)
    if saved:
        checkpoint.check_resume(cfg, data, saved, out)
    run = build_training(cfg, data, weights, content, saved)
    history = saved['history'] if saved else []
    if not saved:
        checkpoint.set_aside(out)
    del saved, content  # as large as the network, or four times
    write_json(out / 'class.json', data.classes)
    print(f'Ctrl-C stops; RESUME = True (--resume) then goes on after the last whole epoch in {out}')
    forward = 1 / 3  # of the time that a training step takes
    first = len(history)
    for epoch in range(first, cfg.EPOCHS):
        start = time.perf_counter()
        if epoch in (first, run.frozen_epochs):  # steps of the head alone do not tell how long the others take
            clock = Clock(len(data.train), cfg.EPOCHS, rest=len(data.val) * (1 + cfg.USE_EMA) * forward)
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
    'EPOCHS': (1, math.inf), 'BATCH_SIZE': (1, math.inf), 'ACCUMULATE_STEPS': (1, math.inf), 'SEED': (0, 2 ** 32 - 1),
    'SMOOTHING': (0, 0.99), 'LAYER_DECAY': (0.01, 1),
    **dict.fromkeys(('MIN_LR', 'DROP_PATH', 'EMA_DECAY', 'MIXUP_PROB', 'MIXUP_SWITCH_PROB'), (0, 1)),
    **dict.fromkeys(('FLIP', 'FLIP_VERTICAL', 'SHIFT', 'BLUR', 'CUTOUT'), (0, 1)),
    **dict.fromkeys(('WARMUP_EPOCHS', 'FREEZE_EPOCHS', 'WEIGHT_DECAY', 'CLIP_GRAD'), (0, math.inf)),
    **dict.fromkeys(('ROTATION', 'JITTER', 'MIXUP_ALPHA', 'CUTMIX_ALPHA'), (0, math.inf))}
_OURS = {'img_size', 'num_classes', 'in_chans', 'drop_path_rate', 'return_dense', 'mix_token'}  # not for MODEL_KWARGS


def check(cfg):
    """Refuse settings that would fail later, each by its name."""
    settings.check_ranges(cfg, _RANGES)
    mixing = cfg.MIXUP_PROB > 0 and (cfg.MIXUP_ALPHA > 0 or cfg.CUTMIX_ALPHA > 0)
    if mixing and cfg.BATCH_SIZE % 2:
        raise UserError(f'BATCH_SIZE = {cfg.BATCH_SIZE} must be even: Mixup works on pairs; or set MIXUP_PROB = 0')
    if cfg.MIXUP_PROB and not mixing:
        raise UserError('MIXUP_PROB needs MIXUP_ALPHA or CUTMIX_ALPHA above 0: set it to 0 to switch mixing off')
    if cfg.TOKEN_LABEL and mixing:
        raise UserError('TOKEN_LABEL mixes tokens itself and does not go with Mixup and CutMix: set MIXUP_PROB = 0')
    if cfg.TOKEN_LABEL and cfg.MODEL not in VARIANTS:
        raise UserError(f'TOKEN_LABEL: {cfg.MODEL} gives no logits for tokens, only {", ".join(VARIANTS)} do')
    if 0 < cfg.WARMUP_EPOCHS >= cfg.EPOCHS:
        raise UserError(f'WARMUP_EPOCHS = {cfg.WARMUP_EPOCHS} must be less than EPOCHS = {cfg.EPOCHS}; 0: none')
    if cfg.FREEZE_EPOCHS and cfg.PRETRAINED is False:
        raise UserError('FREEZE_EPOCHS needs weights to freeze: set it to 0, or PRETRAINED to something')
    if cfg.LR != 'auto' and not (isinstance(cfg.LR, (int, float)) and cfg.LR > 0):
        raise UserError(f"LR = {cfg.LR!r}: give a positive number or 'auto'")
    if cfg.ZOOM is not None and not (len(cfg.ZOOM) == 2 and 0 < cfg.ZOOM[0] <= cfg.ZOOM[1]):
        raise UserError(f'ZOOM = {cfg.ZOOM}: give the least and the most, for example (0.8, 1.2), or None')
    if cfg.INTERPOLATION not in ('bilinear', 'bicubic'):
        raise UserError(f"INTERPOLATION = {cfg.INTERPOLATION!r}: choose 'bilinear' or 'bicubic'")
    if cfg.CACHE not in ('ram', 'disk', 'auto', None):
        raise UserError(f"CACHE = {cfg.CACHE!r}: choose 'ram', 'disk', 'auto' or None")
    if cfg.CROP not in (None, 'published') and not (isinstance(cfg.CROP, (int, float)) and 0.1 <= cfg.CROP <= 2):
        raise UserError(f"CROP = {cfg.CROP!r}: give a ratio such as 0.96, 'published' or None")
    if cfg.MODEL_KWARGS.keys() & _OURS:
        raise UserError(f'MODEL_KWARGS: {", ".join(sorted(cfg.MODEL_KWARGS.keys() & _OURS))} is set by train.py itself')
    try:
        published = default_cfg(cfg.MODEL)
    except ValueError as error:
        raise UserError(f'MODEL: {error}') from error
    if cfg.CROP == 'published':
        cfg.CROP = published['crop_pct']
    sides = (cfg.IMG_SIZE, cfg.IMG_SIZE) if isinstance(cfg.IMG_SIZE, int) else cfg.IMG_SIZE
    unit = 16 if cfg.MODEL in VARIANTS else 1
    if len(sides) != 2 or any(type(side) is not int or side < 16 or side % unit for side in sides):
        raise UserError(f'IMG_SIZE = {cfg.IMG_SIZE}: each side must be '
                        + ('a multiple of 16 pixels' if unit == 16 else '16 pixels or more'))
    cfg.IMG_SIZE = tuple(sides)


# ---- data ------------------------------------------------------------------------------------------------------------

def build_data(cfg, weights):
    """The two loaders, the class names, and the transform's settings as plain values."""
    train_set, val_set = open_split(cfg.DATA_DIR)
    mean, std = normalisation(cfg, weights, train_set.classes)
    transform = {'img_size': list(cfg.IMG_SIZE), 'mean': list(mean), 'std': list(std),
                 'interpolation': cfg.INTERPOLATION, 'crop': cfg.CROP}
    train_set.transform = augment.train_transform(
        transform, rotation=cfg.ROTATION, flip=cfg.FLIP, flip_vertical=cfg.FLIP_VERTICAL, shift=cfg.SHIFT,
        zoom=cfg.ZOOM, blur=cfg.BLUR, jitter=cfg.JITTER, cutout=cfg.CUTOUT)
    val_set.transform = augment.eval_transform(transform)
    workers = loader_workers(cfg.NUM_WORKERS)
    read_pictures(cfg, transform, train_set, val_set, workers)
    sampler = EpochSampler(len(train_set), cfg.SEED)
    return SimpleNamespace(
        classes=train_set.classes, transform=transform,
        train=start_loader(train_set, workers, batch_size=cfg.BATCH_SIZE, sampler=sampler, drop_last=True),
        val=start_loader(val_set, (workers + 1) // 2, batch_size=cfg.BATCH_SIZE))


def read_pictures(cfg, transform, train_set, val_set, workers):
    """Decode every file once: those that are no pictures are left out, the others kept where CACHE says."""
    where = choose_cache(cfg.CACHE, len(train_set) + len(val_set), cfg.IMG_SIZE, workers)
    print(f'checking {len(train_set)} pictures for training and {len(val_set)} for validation, '
          + ('each is decoded again in every epoch' if where is None else f'kept at {cfg.IMG_SIZE} pixels: {where}'))
    bad = {}
    for dataset, training in ((train_set, True), (val_set, False)):
        dataset.loader = Pictures(augment.fit(transform, training), cfg.IMG_SIZE)
        kind = f'{cfg.INTERPOLATION} {None if training else cfg.CROP}'
        bad |= dataset.loader.keep([path for path, _ in dataset.samples], where, kind)
    leave_out(train_set, val_set, bad)
    if len(train_set) < cfg.BATCH_SIZE:
        raise UserError(f'{len(train_set)} training images but BATCH_SIZE = {cfg.BATCH_SIZE}: lower BATCH_SIZE')


# ---- network, optimizer, schedule ------------------------------------------------------------------------------------

def plain_loss(outputs, targets):
    logits = outputs.float()
    return logits, F.cross_entropy(logits, targets, reduction='none')


def token_loss(outputs, targets):
    """The logits for the training accuracy are those of the image's own tokens: the class token saw a mixture."""
    logits, token_logits, box = outputs
    outputs = logits.float(), token_logits.float(), box
    return outputs[1].mean(1), token_label_loss(outputs, targets)


def build_training(cfg, data, weights, content, saved):
    """Everything that a step needs, under one name; in the state that was saved, if any."""
    device = choose_device()
    dtype = amp_dtype(device) if cfg.USE_AMP else None
    print(describe(device, dtype))
    net, kwargs = build_network(cfg, data.classes, weights, content)
    net.to(device)
    print_cost(cfg, net, device, dtype)
    loaded = weights['source'] != 'scratch'
    if cfg.FREEZE_EPOCHS and not loaded:
        print('FREEZE_EPOCHS is ignored: no weights were loaded')
    lr = cfg.LR if cfg.LR != 'auto' else 1e-4 if loaded else 5e-4
    optimizer = create_optimizer_v2(net, 'adamw', lr=lr, weight_decay=cfg.WEIGHT_DECAY,
                                    layer_decay=cfg.LAYER_DECAY if cfg.LAYER_DECAY < 1 else None,
                                    fused=device.type in ('cpu', 'cuda'))
    updates = math.ceil(len(data.train) / cfg.ACCUMULATE_STEPS)  # in an epoch
    warmup, low = cfg.WARMUP_EPOCHS * updates, min(cfg.MIN_LR, lr)
    scheduler = CosineLRScheduler(optimizer, t_initial=cfg.EPOCHS * updates - warmup, lr_min=low, t_in_epochs=False,
                                  warmup_t=warmup, warmup_lr_init=low, warmup_prefix=True)
    ema = ModelEmaV3(net, decay=cfg.EMA_DECAY, use_warmup=True) if cfg.USE_EMA else None
    loss = token_loss if cfg.TOKEN_LABEL else plain_loss
    model = parallel(net, device, dtype, cfg.USE_DP, loss)
    targets = torch.zeros(cfg.BATCH_SIZE, len(data.classes), device=device)
    step_model = compiled(model.train(), cfg.IMG_SIZE, targets) if cfg.COMPILE else model
    run = SimpleNamespace(
        net=net, kwargs=kwargs, model=model, step_model=step_model, device=device, dtype=dtype,
        weights=weights, optimizer=optimizer, scheduler=scheduler, updates=updates,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype is torch.float16),
        ema=ema, ema_model=ema and parallel(ema.module, device, dtype, cfg.USE_DP),
        frozen_epochs=cfg.FREEZE_EPOCHS if loaded else 0,
        mixup=Mixup(cfg.MIXUP_ALPHA, cfg.CUTMIX_ALPHA, prob=cfg.MIXUP_PROB, switch_prob=cfg.MIXUP_SWITCH_PROB,
                    label_smoothing=cfg.SMOOTHING, num_classes=len(data.classes)) if cfg.MIXUP_PROB else None,
        parameters=sum(p.numel() for p in net.parameters()))
    if saved:
        checkpoint.restore_training_state(run, saved)
        scheduler.step_update(len(saved['history']) * updates)
    return run


# ---- the epoch loop --------------------------------------------------------------------------------------------------

def train_one_epoch(cfg, run, data, epoch, clock):
    """One pass over the training set. Returns the columns of the log that belong to it."""
    losses, acc1, norms = AverageMeter(), AverageMeter(), AverageMeter()
    waited, seen, start = 0., 0, time.perf_counter()
    set_mode(run.net, frozen=epoch < run.frozen_epochs)
    steps, together, norm = len(data.train), cfg.ACCUMULATE_STEPS, 0.
    bar = Bar(with_waiting(data.train), total=steps, desc=f'epoch {epoch + 1}/{cfg.EPOCHS}', unit='step')
    for step, (waiting, (images, labels)) in enumerate(bar):
        begin = time.perf_counter()
        images, labels = images.to(run.device, non_blocking=True), labels.to(run.device, non_blocking=True)
        if run.mixup:  # Mixup or CutMix now and then; smoothed one-hot targets always
            images, targets = run.mixup(images, labels)
        else:
            targets = mixup_target(labels, len(data.classes), 1., cfg.SMOOTHING)
        logits, each = run.step_model(images, targets)  # in autocast; the losses in fp32
        loss = each.mean()
        share = min(together, steps - step // together * together)  # the last group of an epoch may be smaller
        run.scaler.scale(loss / share).backward()
        if (step + 1) % together == 0 or step + 1 == steps:
            norm = update(cfg, run, epoch * run.updates + step // together + 1)
            if math.isfinite(norm):  # fp16 skips the steps in which it is not
                norms.update(norm)
        if not math.isfinite(loss.item()) or not (math.isfinite(norm) or run.scaler.is_enabled()):
            raise UserError(f'the loss became {loss.item()} and the gradient {norm} in epoch {epoch + 1}, step '
                            f'{step + 1}: lower LR; {cfg.OUTPUT_DIR}/last.pth, if there, holds the epoch before')

        losses.update(loss.item(), len(images))
        unmixed = targets.amax(1) >= 1 - cfg.SMOOTHING  # accuracy only on pictures whose label is not a mixture
        if unmixed.any():
            acc1.update(accuracy(logits[unmixed], labels[unmixed])[0].item(), int(unmixed.sum()))
        waited, seen = waited + waiting, seen + len(images)
        seconds = time.perf_counter() - start
        clock.step(waiting + time.perf_counter() - begin)
        if epoch >= run.frozen_epochs:
            clock.forecast(cfg, epoch, step)
        lr = max(group['lr'] for group in run.optimizer.param_groups)
        bar.set_postfix_str(
            f'loss {losses.avg:.3f}, lr {lr:.1e}, {seen / seconds:.1f} img/s, waiting {waited / seconds:.0%}, '
            f'whole run {format_duration(clock.left(epoch, step + 1))} left', refresh=False)
    return {'lr': lr, 'train_loss': losses.avg, 'train_acc1': acc1.avg if acc1.count else None, 'grad_norm': norms.avg,
            'images_per_s': seen / seconds, 'waiting': waited / seconds}


def set_mode(net, frozen):
    """Ready for training; if frozen, all but the heads stand still, their BatchNorm statistics and dropout too."""
    net.train()
    heads = tuple(f'{head}.' for head in heads_of(net))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith(heads))
    if frozen:
        for child in net.children():  # not the network itself: token labels need its training mode
            child.eval()


def update(cfg, run, done):
    """Step number `done` of the optimizer, by the gradients since the last. Returns their norm before clipping."""
    run.scaler.unscale_(run.optimizer)  # the norm is of the true gradients
    norm = torch.nn.utils.clip_grad_norm_(run.net.parameters(), cfg.CLIP_GRAD or math.inf).item()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad()
    run.scheduler.step_update(done)
    if run.ema:
        run.ema.update(run.net, step=done)
    return norm


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
    info = {'model': cfg.MODEL, 'model_kwargs': run.kwargs, 'classes': data.classes, 'transform': data.transform,
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


def print_epoch(cfg, row, left):
    ema = f' (EMA {row["ema_acc1"]:.2f} %)' if cfg.USE_EMA else ''
    print(f'epoch {row["epoch"]}/{cfg.EPOCHS}: loss {row["train_loss"]:.3f}, val loss {row["raw_loss"]:.3f}, '
          f'ACC1 {row["raw_acc1"]:.2f} %{ema}, {row["images_per_s"]:.1f} img/s, waiting {row["waiting"]:.0%}, '
          f'{format_duration(row["seconds"])}, {format_duration(left)} left', flush=True)


if __name__ == '__main__':
    settings.run(main)
