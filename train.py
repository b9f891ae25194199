"""Step 3: train a VOLO on data/train, watch it on data/val, keep the best weights.

    python train.py                            with the constants below
    python train.py --img-size 112 --epochs 30 with two of them changed for one run; --help lists all

writes to checkpoints/volo_d1/ (OUTPUT_DIR): best.pth and last.pth, loss.png, acc.png, lr.png, confusion.png,
report.txt, report.json, result.json, log.csv and class.json. README.md has measured accuracies and times to expect.
"""
import itertools
import math
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, mixup_target
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, accuracy, random_seed

from common import settings
from common.data.build import build_data
from common.data.loaders import with_waiting
from common.evaluation.metrics import scores
from common.evaluation.validate import validate
from common.runtime.console import Bar, format_duration
from common.runtime.device import choose_amp_dtype, choose_device, describe_device
from common.runtime.errors import UserError, explain_failures
from common.runtime.files import locked, writable_folder, write_json
from common.runtime.machine import retain_freed_memory
from common.runtime.parallel import compiled, parallel
from common.runtime.signals import StopRequest
from common.training import checkpoint
from common.training.clock import Clock
from common.training.history import best_of, save_epoch, save_last
from common.training.resume import check_resume
from common.training.setup import build_network, find_weights, print_cost
from common.training.state import Progress, restore_training_state
from common.training.validate_settings import check
from models import heads_of, token_label_loss

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
COMPILE = False                   # torch.compile: minutes to begin with; meant for GPUs, on a CPU steps became slower
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
RESUME: bool | str = False        # True goes on from OUTPUT_DIR/last.pth, 'auto' does so if it is there
SAVE_EVERY_MINUTES = 10.0         # last.pth is also written in the middle of an epoch, this often
MAX_BAD_STEPS = 10                # steps without a finite loss and gradient are skipped; after so many in a row the run
                                  # goes back to the last save with a tenth of the learning rate, once
SEED = 42


def main(cfg):
    check(cfg)
    retain_freed_memory()
    random_seed(cfg.SEED)
    out = writable_folder(cfg.OUTPUT_DIR, 'OUTPUT_DIR')
    refusal = f'OUTPUT_DIR = {cfg.OUTPUT_DIR!r}: another run is writing there; choose another folder'
    less = 'halve BATCH_SIZE and double ACCUMULATE_STEPS, or set GRAD_CHECKPOINTING = True'
    with locked(out / '.lock', refusal), explain_failures(less, f'--resume goes on from {out}/last.pth'):
        saved = find_saved(cfg, out)
        if saved and cfg.RESUME == 'auto' and len(saved['history']) >= cfg.EPOCHS:
            print(f'{out}/last.pth has all its epochs behind it: nothing to do')
            return
        weights, content = (saved['pretrained'], None) if saved else find_weights(cfg)
        data = build_data(cfg, weights)
        if saved:
            check_resume(cfg, data, saved, out)
        run = build_training(cfg, data, weights, content, saved)
        history = saved['history'] if saved else []
        if not saved:
            checkpoint.set_aside(out)
            save_last(cfg, run, data, out, history)
        del saved, content  # as large as the network, or four times
        write_json(out / 'class.json', data.classes)
        print(f'Ctrl-C saves and stops; RESUME = True (--resume) then goes on from {out}')
        diverged = False
        try:
            train_epochs(cfg, run, data, out, history)
        except Diverged as error:
            if run.lr_scale < 1:
                raise
            print(f'{error}: going back to the last save, with a tenth of the learning rate')
            diverged = True
        if diverged:  # here, where the error no longer holds the old network
            del run
            saved = checkpoint.load_last(out)
            saved['lr_scale'], saved['progress']['bad'] = 0.1, 0
            run, history = build_training(cfg, data, weights, None, saved), saved['history']
            train_epochs(cfg, run, data, out, history)
    best = best_of(history)
    print(f'\nbest: epoch {best["epoch"]}, {best["weights"]} weights, ACC1 {best["acc1"]:.2f} %; all of it is in {out}')


def find_saved(cfg, out):
    """The checkpoint that RESUME goes on from, or None."""
    there = any((out / name).exists() for name in ('last.pth', 'last_before.pth'))
    return checkpoint.load_last(out) if cfg.RESUME is True or (cfg.RESUME == 'auto' and there) else None


def train_epochs(cfg, run, data, out, history):
    """Train and validate from where run.progress stands to the last epoch; saves in between, rows go into history."""
    forward = 1 / 3  # of the time that a training step takes
    first, saved_at = len(history), time.monotonic()

    def between_steps():
        nonlocal saved_at
        if stop.signum or (time.monotonic() - saved_at > 60 * cfg.SAVE_EVERY_MINUTES and not run.progress.bad):
            save_last(cfg, run, data, out, history)
            saved_at = time.monotonic()
        stop.raise_if_stopped()

    with StopRequest() as stop:
        for epoch in range(first, cfg.EPOCHS):
            start = time.perf_counter()
            if epoch in (first, run.frozen_epochs):  # steps of the head alone do not tell how long the others take
                clock = Clock(len(data.train), cfg.EPOCHS, rest=len(data.val) * (1 + cfg.USE_EMA) * forward)
            row = {'epoch': epoch + 1, **train_one_epoch(cfg, run, data, epoch, clock, between_steps)}
            trained = time.perf_counter()
            results = {'raw': evaluate(run.model, data, run, 'validating', between_steps)}
            if run.ema:
                results['ema'] = evaluate(run.ema_model, data, run, 'validating the EMA weights', between_steps)
            for which in ('raw', 'ema'):
                scored = results.get(which, {})
                row |= {f'{which}_{key}': scored.get(key) for key in ('loss', 'acc1', 'acc5', 'balanced_accuracy')}
            row['seconds'] = time.perf_counter() - start
            history.append(row)
            run.progress = Progress()
            save_epoch(cfg, run, data, out, history, results)
            saved_at = time.monotonic()
            clock.rest_seconds = time.perf_counter() - trained
            print_epoch(cfg, row, clock.left(epoch + 1, 0))
            if epoch + 1 < cfg.EPOCHS:
                stop.raise_if_stopped()


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
    dtype = choose_amp_dtype(device) if cfg.USE_AMP else None
    print(describe_device(device, dtype))
    net, kwargs = build_network(cfg, data.classes, weights, content)
    net.to(device)
    print_cost(cfg, net, device, dtype)
    loaded = weights['source'] != 'scratch'
    if cfg.FREEZE_EPOCHS and not loaded:
        print('FREEZE_EPOCHS is ignored: no weights were loaded')
    scale = saved['lr_scale'] if saved else 1.
    lr = scale * (cfg.LR if cfg.LR != 'auto' else 1e-4 if loaded else 5e-4)
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
        weights=weights, lr_scale=scale, progress=Progress(), optimizer=optimizer, scheduler=scheduler,
        updates=updates,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype is torch.float16),
        ema=ema, ema_model=ema and parallel(ema.module, device, dtype, cfg.USE_DP),
        frozen_epochs=cfg.FREEZE_EPOCHS if loaded else 0,
        mixup=Mixup(cfg.MIXUP_ALPHA, cfg.CUTMIX_ALPHA, prob=cfg.MIXUP_PROB, switch_prob=cfg.MIXUP_SWITCH_PROB,
                    label_smoothing=cfg.SMOOTHING, num_classes=len(data.classes)) if cfg.MIXUP_PROB else None,
        parameters=sum(p.numel() for p in net.parameters()))
    if saved:
        try:
            restore_training_state(run, saved)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f'RESUME: last.pth is not of this run ({error}): choose another OUTPUT_DIR') from error
        done = updates if run.progress.step == len(data.train) else run.progress.step // cfg.ACCUMULATE_STEPS
        scheduler.step_update(len(saved['history']) * updates + done)
    return run


# ---- the epoch loop --------------------------------------------------------------------------------------------------

class Diverged(UserError):
    """Too many steps in a row without a finite loss."""


def train_one_epoch(cfg, run, data, epoch, clock, between_steps=lambda: None):
    """What is left of a pass over the training set by run.progress. Returns the log's columns that belong to it."""
    done = run.progress
    set_mode(run.net, frozen=epoch < run.frozen_epochs)
    data.train.sampler.epoch, data.train.sampler.skip = epoch, done.step * cfg.BATCH_SIZE
    steps, together, classes = len(data.train), cfg.ACCUMULATE_STEPS, len(data.classes)
    bar = Bar(with_waiting(data.train), initial=done.step, total=steps, desc=f'epoch {epoch + 1}/{cfg.EPOCHS}',
              unit='step')
    for waiting, (images, labels) in bar:
        begin = time.perf_counter()
        images, labels = images.to(run.device, non_blocking=True), labels.to(run.device, non_blocking=True)
        if run.mixup:  # Mixup or CutMix now and then; smoothed one-hot targets always
            images, targets = run.mixup(images, labels)
        else:
            targets = mixup_target(labels, classes, 1., cfg.SMOOTHING)
        group = done.step // together * together  # the first of the batches that belong to one step of the optimizer
        logits, loss = backward(run, images, targets, share=min(together, steps - group))
        done.step += 1
        norm = None
        if done.step % together == 0 or done.step == steps:
            norm = update(cfg, run, epoch * run.updates + group // together + 1)
            if math.isfinite(norm):
                done.norms.update(norm)
        note_bad(cfg, run, data, loss, norm, epoch)

        if math.isfinite(loss):
            done.losses.update(loss, len(images))
            unmixed = targets.amax(1) >= 1 - cfg.SMOOTHING  # accuracy only on pictures whose label is not a mixture
            if unmixed.any():
                done.acc1.update(accuracy(logits[unmixed], labels[unmixed])[0].item(), int(unmixed.sum()))
        done.waited, done.seen = done.waited + waiting, done.seen + len(images)
        done.seconds += waiting + time.perf_counter() - begin
        clock.step(waiting + time.perf_counter() - begin)
        if epoch >= run.frozen_epochs:
            clock.forecast(cfg, epoch, done.step - 1)
        bar.set_postfix_str(
            f'loss {done.losses.avg:.3f}, lr {learning_rate(run):.1e}, {done.seen / done.seconds:.1f} img/s, waiting '
            f'{done.waited / done.seconds:.0%}, whole run {format_duration(clock.left(epoch, done.step))} left',
            refresh=False)
        between_steps()
    return {'lr': learning_rate(run), 'train_loss': done.losses.avg,
            'train_acc1': done.acc1.avg if done.acc1.count else None, 'grad_norm': done.norms.avg,
            'skipped_steps': done.skipped, 'images_per_s': done.seen / done.seconds,
            'waiting': done.waited / done.seconds}


def learning_rate(run):
    return max(group['lr'] for group in run.optimizer.param_groups)


def backward(run, images, targets, share):
    """Add a batch's gradients, as one of `share` batches. Returns (logits, the loss, a number).

    A loss that is no number leaves no trace, neither in the gradients nor in BatchNorm's averages.
    """
    buffers = [buffer.clone() for buffer in run.net.buffers()]
    logits, losses = run.step_model(images, targets)  # in autocast; the losses in fp32
    loss = losses.mean()
    value = loss.item()
    if math.isfinite(value):
        run.scaler.scale(loss / share).backward()
    else:
        for buffer, before in zip(run.net.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return logits.detach(), value


def note_bad(cfg, run, data, loss, norm, epoch):
    """Count the steps that were skipped. Raises Diverged, with the pictures, after MAX_BAD_STEPS of them in a row.

    `norm` is the gradient's, or None where the step of the optimizer comes later.
    """
    done = run.progress
    learning_to_scale = run.scaler.is_enabled() and run.scaler.get_scale() >= 1  # fp16 begins with too large a scale
    if math.isfinite(loss) and (norm is None or math.isfinite(norm) or learning_to_scale):
        done.bad = done.bad if norm is None else 0
        return
    done.bad, done.skipped = done.bad + 1, done.skipped + 1
    what = f'the loss became {loss}' if not math.isfinite(loss) else f'the norm of the gradient became {norm}'
    if done.bad == 1:
        Bar.write(f'epoch {epoch + 1}, step {done.step}: {what}, so the step is skipped')
    if done.bad >= cfg.MAX_BAD_STEPS or (done.step == len(data.train) and not done.norms.count):
        names = batch_files(data.train, done.step - 1)
        raise Diverged(f'{what} in epoch {epoch + 1}, step {done.step}, and {done.bad} steps in a row had to be '
                       f'skipped: lower LR, or look at the pictures of that batch: {", ".join(names)}')


def batch_files(loader, step):
    """The files of a batch of the epoch that the loader is in."""
    sampler = loader.sampler
    first = step * loader.batch_size - sampler.skip
    keys = itertools.islice(iter(sampler), first, first + loader.batch_size)
    return [loader.dataset.samples[index][0] for index, _ in keys]


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
    """Step number `done` of the optimizer, by the gradients since the last. Returns their norm before clipping.

    Without a gradient, or with one that is no number, no step is taken.
    """
    norm = math.nan
    if any(parameter.grad is not None for parameter in run.net.parameters()):
        run.scaler.unscale_(run.optimizer)  # the norm is of the true gradients
        norm = torch.nn.utils.clip_grad_norm_(run.net.parameters(), cfg.CLIP_GRAD or math.inf).item()
        if math.isfinite(norm) or run.scaler.is_enabled():  # the scaler skips its step by itself
            run.scaler.step(run.optimizer)
            if run.ema:
                run.ema.update(run.net, step=done)
        run.scaler.update()
    run.optimizer.zero_grad()
    run.scheduler.step_update(done)
    return norm


def evaluate(model, data, run, label, between_batches):
    """The scores of a model on the validation set."""
    return scores(*validate(model, data.val, run.device, label, between_batches), data.classes)


def print_epoch(cfg, row, left):
    ema = f' (EMA {row["ema_acc1"]:.2f} %)' if cfg.USE_EMA else ''
    print(f'epoch {row["epoch"]}/{cfg.EPOCHS}: loss {row["train_loss"]:.3f}, val loss {row["raw_loss"]:.3f}, '
          f'ACC1 {row["raw_acc1"]:.2f} %{ema}, {row["images_per_s"]:.1f} img/s, waiting {row["waiting"]:.0%}, '
          f'{format_duration(row["seconds"])}, {format_duration(left)} left', flush=True)


if __name__ == '__main__':
    settings.run(main)
