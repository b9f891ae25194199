"""Step 3: train a VOLO on data/train, watch it on data/val, keep the best weights.

    python train.py                            with the constants below
    python train.py --img-size 112 --epochs 30 with two of them changed for one run; --help lists all

writes to checkpoints/volo_d1/ (OUTPUT_DIR): best.pth and last.pth; report.html, a page on what it learnt; the same as
files: loss.png, acc.png, lr.png, confusion.png, calibration.png, report.txt, report.json, result.json, log.csv and
class.json. README.md has measured accuracies and times to expect.
"""
import itertools
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, random_seed
from torchvision.transforms.v2.functional import resize

from common import settings
from common.data.datasets import open_split
from common.data.loaders import Data, TimedBatches, build_data, own_rows
from common.evaluation.metrics import BatchMeter, scores
from common.evaluation.suspects import Margins
from common.evaluation.validate import measure_batch_norm, validate
from common.runtime.device import (
    choose_amp_dtype,
    choose_device,
    describe_device,
    parallel,
    use_free_cores,
)
from common.runtime.errors import UserError, explain_failures, extra
from common.runtime.files import write_json
from common.runtime.machine import retain_freed_memory
from common.runtime.processes import LAUNCHED, RANK, WORLD_SIZE, StopRequest, from_first, on_first, process_group
from common.settings import Settings
from common.training import checkpoint
from common.training.checkpoint import check_resume, find_saved, is_complete, resumed_lr_scale
from common.training.choices import choose_settings, resolved, validate_settings
from common.training.log import (
    out_of_patience,
    print_epoch,
    print_result,
    training_columns,
    validation_columns,
    write_epoch,
)
from common.training.losses import balanced, build_mix, choose_loss
from common.training.monitor import Diverged, Monitor, Saver, output_folder
from common.training.optimizer import build_optimizer, can_skip, optimizer_flop
from common.training.page import RunPage
from common.training.plan import Size, make_stages
from common.training.schedule import Clock, build_plan
from common.training.setup import Provenance, build_network, find_weights, print_cost, set_train_mode
from common.training.step import Progress, TrainState, Update, seed_batch
from models import VARIANTS, logits_and_features

# Data
DATA_DIR = 'data'                 # what makedata.py made: train/ and val/, one sub-folder for each class
IMG_SIZE: int | tuple | str = 'auto'  # pixels, a multiple of 16, or (height, width); 112 takes a quarter of the time
                                  # that 224 does; 'auto': 224, or less where TIME_BUDGET is short and no weights are
INTERPOLATION = 'bilinear'        # of the resizing; 'bicubic' is what the published weights were trained with
CROP: float | str | None = None   # None resizes the whole picture to IMG_SIZE, whatever its shape; 0.96 takes the
                                  # middle 96 % undistorted, 'published' the share that MODEL was tested with
NORMALISATION = 'auto'            # 'weights': as the loaded weights had it; 'data': mean_std.json; 'auto': the first
                                  # where weights are loaded, else the second
MEAN: tuple | None = None         # of red, green, blue in [0, 1]: overrides NORMALISATION
STD: tuple | None = None          # likewise
NUM_WORKERS: int | str = 'auto'   # worker processes that read pictures; 'auto' takes one for each core
CACHE: str | None = 'auto'        # pictures at IMG_SIZE, decoded once: 'ram', 'disk' (in .cache/, for later runs too),
                                  # None, or 'auto': 'ram' if they take no more than a quarter of the free memory
# Model
MODEL = 'volo_d1'                 # volo_d1 (27 M parameters) … volo_d5 (296 M), or a network of timm, say 'resnet50'
MODEL_KWARGS = {}                 # more keyword arguments of the network, for example {'drop_rate': 0.1}
PRETRAINED: bool | str = 'auto'   # ImageNet weights: 'auto' if available, True required, False none; or a file's path
FREEZE_EPOCHS = 0                 # number of first epochs that train the head alone; WARMUP should take longer
DROP_PATH = 0.1                   # stochastic depth: the last block is skipped this often
AUX_HEAD = True                   # VOLO only: tokens vote too, class logits + half the largest of their logits
TOKEN_LABEL = False               # VOLO only: MixToken and a loss on every token, the paper's training; MIXUP_PROB = 0
GRAD_CHECKPOINTING = False        # compute blocks twice instead of storing them, which saves memory (docs/weights.md)
# Optimisation
TIME_BUDGET: float | None = None  # minutes for the whole of train.py, in place of EPOCHS: the number of updates follows
                                  # from the speed of the machine
EPOCHS = 100                      # passes over the training set; the tutorial's 300 can pay from scratch
START_SIZE: float | str = 'auto'  # training begins with images of this share of IMG_SIZE, for a third of the compute;
                                  # 'auto': 0.5 from scratch, else 1
BATCH_SIZE: int | str = 'auto'    # pictures at a time over all processes, even (Mixup pairs them); 'auto': 16, from
                                  # 10,000 pictures on 64; with Muon 32, from 1,000 on 128; fewer where memory is short
ACCUMULATE_STEPS = 1              # batches to each update of the weights: 4 with BATCH_SIZE = 8 learn like 32
LR: float | str = 'auto'          # peak learning rate; 'auto': 1e-4, with Muon 6e-4, · √(pictures in an update / 16)
MIN_LR = 1e-6                     # learning rate at the end of the cosine
WARMUP = 0.1                      # share of the compute in which the learning rate rises; the tutorial has no warm-up
LAYER_DECAY = 1.0                 # learning rate of a layer / that of the one above; 0.75 keeps more of loaded weights
OPTIMIZER = 'auto'                # 'muon' for a VOLO from scratch and 1,000 pictures or more, else 'adamw'
                                  # (docs/recipe.md); or one of timm's, say 'lion', with an LR of its own
BETAS = (0.8, 0.999)              # of AdamW, with Muon for all but matrices: how much of the earlier gradients, and of
                                  # their squares, it remembers
WEIGHT_DECAY = 0.05               # not on norms, biases, pos_embed, cls_token
CLIP_GRAD = 5.0                   # largest norm of the gradient; 0 does not clip
USE_GPU: bool | str = 'auto'      # 'auto': NVIDIA's or AMD's, where there is one; True: Apple's and others too, which
                                  # nobody has tried (docs/speed.md); False: none
USE_AMP = True                    # mixed precision, where the processor gains from it
COMPILE = False                   # torch.compile, for GPUs: begins with minutes, then updates take about half the time
BALANCE: str | None = None        # where some classes have far fewer pictures: 'weights' in the loss, or a 'sampler'
                                  # that shows all classes equally often; BEST_BY may follow
USE_EMA = True                    # also keep an average of the weights, and validate it
EMA_SHARE = 0.02                  # it is one over about this share of the updates so far,
EMA_DECAY = 0.9998                # with no more decay than this
USE_DP = True                     # DataParallel, when there are several GPUs; BATCH_SIZE is then shared among them;
                                  # torchrun does without (docs/scaling.md)
# Augmentation
AUGMENTATION: float | str = 'auto'  # how much of BLUR, JITTER, CUTOUT, MIXUP_PROB and DROP_PATH is applied, 0 to 1;
                                  # 'auto': all of it from 100 passes over the training set on, less in shorter runs
ROTATION = 10                     # degrees either way; 180 for pictures without an up, such as plants from above
FLIP = 0.5                        # probability of a mirror image; 0 where left and right differ, as in text
FLIP_VERTICAL = 0.0               # likewise, upside down
SHIFT = 0.0                       # largest shift, as a share of the side
ZOOM: tuple | None = None         # least and most random scale, for example (0.8, 1.2); None: off
BLUR = 0.1                        # probability of a Gaussian blur
JITTER = 0.4                      # brightness, contrast and saturation times 1 - JITTER to 1 + JITTER
CUTOUT = 0.5                      # probability of a grey box (torchtoolbox's Cutout)
MIXUP_ALPHA = 0.8                 # of Mixup's Beta distribution
CUTMIX_ALPHA = 1.0                # of CutMix's
MIXUP_PROB = 0.1                  # probability that a batch is mixed, one way or the other
MIXUP_SWITCH_PROB = 0.5           # CutMix's share of those
SMOOTHING = 0.1                   # label smoothing
# Run
OUTPUT_DIR = 'checkpoints/volo_d1'
RESUME: bool | str = False        # True goes on from OUTPUT_DIR/last.pth, 'auto' does so if it is there
BEST_BY = 'acc1'                  # what makes weights the best.pth: 'acc1' or 'balanced_accuracy' on val
PATIENCE: int | None = None       # validations without better weights after which the run ends early; None: never
TRACKER: str | None = None        # curves in 'tensorboard', 'wandb' or 'trackio', by the package of that name
VALIDATE_EVERY: int | str = 'auto'  # epochs; 'auto': so that it takes no more than a fifth of the time of training
SAVE_EVERY_MINUTES = 10.0         # last.pth is written this often, on Ctrl-C and at the end; 0: after every update
MAX_SKIPPED_UPDATES = 10          # updates without a finite loss and gradient are skipped; after so many in a row the
                                  # run goes back to the last save with a tenth of the learning rate, once
SEED = 42


def main(cfg: Settings) -> None:
    validate_settings(cfg)
    cfg = resolved(cfg)
    retain_freed_memory()
    random_seed(cfg.SEED)
    less_memory = 'halve BATCH_SIZE and double ACCUMULATE_STEPS, or set GRAD_CHECKPOINTING = True'
    with (process_group(cfg.USE_GPU), output_folder(cfg.OUTPUT_DIR) as out,
          explain_failures(less_memory, f'--resume goes on from {out}/last.pth')):
        use_free_cores(choose_device(cfg.USE_GPU))
        saved = on_first(find_saved, cfg, out)
        clock = Clock(saved['elapsed'] if saved else 0.)
        if saved and cfg.RESUME == 'auto' and is_complete(cfg, saved):
            print(f'{out}/last.pth is of a run that completed all its epochs: nothing to do')
            return
        provenance, content = (Provenance(**saved['provenance']), None) if saved else on_first(find_weights, cfg)
        split = open_split(cfg.DATA_DIR)
        cfg = from_first(choose_settings(cfg, provenance, split[0], saved))
        data = build_data(cfg, split, provenance.normalisation)
        if saved:
            check_resume(cfg, data, saved, out)
        state = build_state(cfg, data, provenance, content, saved, clock)
        history = saved['history'] if saved else []
        if not saved:
            on_first(checkpoint.set_aside, out)
        on_first(write_json, out / 'class.json', data.classes)
        print(f'Ctrl-C saves and stops; RESUME = True (--resume) then goes on from {out}')
        del saved, content  # as large as the network, or four times
        if not train_until_divergence(cfg, state, data, out, history):
            del state  # makes room for the next one
            saved = on_first(checkpoint.load_last, out)
            saved['lr_scale'], saved['settings']['LR'], saved['progress']['skipped_in_row'] = 0.1, cfg.LR, 0
            state, history = build_state(cfg, data, provenance, None, saved, clock), saved['history']
            del saved
            train_epochs(cfg, state, data, out, history)
    print_result(cfg, history, len(data.val.dataset))
    print(f'all of it is in {out}')


def train_until_divergence(cfg: Settings, state: TrainState, data: Data, out: Path, history: list[dict]) -> bool:
    """Train; return whether all epochs were completed. Raises Diverged if the run went back to a save once already."""
    try:
        train_epochs(cfg, state, data, out, history)
    except Diverged as error:
        if state.lr_scale < 1:
            raise
        print(f'{error}: going back to the last save, with a tenth of the learning rate')
        return False
    return True


# ---- network, optimizer, schedule ------------------------------------------------------------------------------------

def build_state(cfg: Settings, data: Data, provenance: Provenance, content: dict | None, saved: dict | None,
                clock: Clock) -> TrainState:
    """Everything that an update needs: new, with the initial weights of find_weights, or as it was saved.

    Raises UserError for a network that cannot be built, and for a save that does not fit.
    """
    device = choose_device(cfg.USE_GPU)
    amp_dtype = choose_amp_dtype(device) if cfg.USE_AMP else None
    print(describe_device(device, amp_dtype))
    net, model_kwargs, provenance = build_network(cfg, data.classes, provenance, content)
    net.to(device)
    image_flop = print_cost(cfg, net, device, amp_dtype)
    rows = len(own_rows(cfg.BATCH_SIZE))
    if LAUNCHED:
        with extra('torchrun'):
            from extras.torchrun.shared_batch import distributed, share_batches
        share_batches(net, cfg.BATCH_SIZE)
    if cfg.FREEZE_EPOCHS and provenance.from_scratch:
        print('FREEZE_EPOCHS is ignored: no weights were loaded')
    lr_scale = resumed_lr_scale(cfg, saved) if saved else 1.
    optimizer = build_optimizer(cfg, net, lr_scale * cfg.LR, amp_dtype)
    scheduler = build_schedule(cfg, optimizer, lr_scale * cfg.LR)
    ema = ModelEmaV3(net, decay=cfg.EMA_DECAY, use_warmup=True, warmup_gamma=1 / cfg.EMA_SHARE,
                     warmup_power=1) if cfg.USE_EMA else None
    loss = choose_loss(cfg, model_kwargs)
    if cfg.BALANCE == 'weights':
        loss = balanced(loss, data.train.dataset.targets)
    model = parallel(net, device, amp_dtype, cfg.USE_DP, loss, logits_and_features)
    targets = torch.zeros(rows, len(data.classes), device=device)
    loss_model = model
    if cfg.COMPILE:
        with extra('COMPILE'):
            from extras.compile import compiled
        loss_model = compiled(model.train(), [size for _, size in make_stages(cfg.IMG_SIZE, cfg.START_SIZE)], targets,
                              graphs=device.type == 'cuda' and cfg.ACCUMULATE_STEPS == 1 and not LAUNCHED)
    if LAUNCHED:
        loss_model = distributed(loss_model, unused=cfg.FREEZE_EPOCHS > 0 or cfg.MODEL not in VARIANTS)
    plan = build_plan(cfg, data, clock, loss_model, optimizer, targets, saved)
    state = TrainState(
        net, model, loss_model, build_mix(cfg, len(data.classes)), optimizer, scheduler,
        torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16),
        ema, ema and parallel(ema.module, device, amp_dtype, cfg.USE_DP, look=logits_and_features),
        device, amp_dtype, image_flop, optimizer_flop(cfg, net), plan, clock,
        0 if provenance.from_scratch else cfg.FREEZE_EPOCHS, lr_scale, model_kwargs, provenance,
        Margins(len(data.train.dataset)))
    if saved:
        try:
            state.load_state_dict(saved)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f'RESUME: last.pth is not of this run ({error}): choose another OUTPUT_DIR') from error
    return state


def build_schedule(cfg: Settings, optimizer: torch.optim.Optimizer, lr: float) -> CosineLRScheduler:
    """The learning rate in percent of the compute of the run: a linear warm-up to `lr`, then half a cosine."""
    warmup, lowest = 100 * cfg.WARMUP, min(cfg.MIN_LR, lr)
    return CosineLRScheduler(optimizer, t_initial=100 - warmup, warmup_t=warmup, warmup_prefix=True, lr_min=lowest,
                             warmup_lr_init=lowest, t_in_epochs=False)


# ---- the epochs ------------------------------------------------------------------------------------------------------

def train_epochs(cfg: Settings, state: TrainState, data: Data, out: Path, history: list[dict]) -> None:
    """Train and validate from where state.progress stands to the last epoch; a row for each goes into `history`.

    Raises Diverged after too many skipped updates, and Stopped after a signal, when all is saved.
    """
    with StopRequest() as stop, track_with(cfg, out, history) as track:
        saver = Saver(cfg, state, data, out, history, stop)
        monitor, page = Monitor(cfg, state, data, saver), RunPage(cfg, state, data, out)
        if not history and not state.progress.updates:
            saver.save_last()  # there is a save to go back to from the first update on
        while (epoch := len(history)) < state.plan.epochs:
            start = time.perf_counter()
            with monitor.epoch(epoch) as after_update:
                train_one_epoch(cfg, state, data, epoch, after_update)
            trained, validates = time.perf_counter(), state.plan.validates(epoch)
            number = epoch * state.plan.updates_per_epoch + state.progress.updates
            size = state.plan.image_size(number)
            results = evaluate(state, data, size, saver.between_updates) if validates else {}
            history.append({'epoch': epoch + 1, 'height': size[0], 'width': size[1], **training_columns(state),
                            **validation_columns(results), 'seconds': time.perf_counter() - start})
            state.progress = Progress()
            if validates:
                best = saver.save_best(results)
                if out_of_patience(cfg, history):
                    state.plan.updates = number  # it ends here
                if RANK == 0:
                    write_epoch(cfg, state, data, out, history, best)
                    page.after_epoch(history, size)
                state.clock.add_validation(size, time.perf_counter() - trained)
            track(history[-1])
            print_epoch(history[-1], state.plan.epochs, state.clock.seconds_left(state.plan, number))
            saver.after_epoch()


def track_with(cfg: Settings, out: Path, history: list[dict]) -> AbstractContextManager:
    """Yields a function to call with each new row of the log: TRACKER gets it."""
    if cfg.TRACKER is None or RANK:
        return nullcontext(lambda row: None)
    with extra('TRACKER'):
        from extras.trackers import tracking
    return tracking(cfg, out, history)


def evaluate(state: TrainState, data: Data, size: Size, between_batches: Callable) -> dict[str, dict]:
    """{'raw': …, 'ema': …}: what these weights score on the validation set with images of `size`, and the 'outputs'."""
    nets = [state.net, state.ema.module] if state.ema else [state.net]
    measure_batch_norm(nets, data.plain, size, state.device, state.amp_dtype)
    results = {}
    for name, model in {'raw': state.model, 'ema': state.ema_model}.items():
        if model is not None:
            outputs = validate(model, data.val, size, state.device, f'validating, {name} weights',
                               between_batches if WORLD_SIZE == 1 else lambda: None)
            results[name] = {**scores(outputs.logits, outputs.targets, data.classes), 'outputs': outputs}
    return results


def train_one_epoch(cfg: Settings, state: TrainState, data: Data, epoch: int,
                    after_update: Callable[[Update], None]) -> None:
    """What is left, by state.progress, of a pass over the training set. `after_update` is called after each update."""
    set_train_mode(state.net, heads_only=epoch < state.frozen_epochs)
    batches = TimedBatches(data.train, epoch, state.device, skip=state.progress.updates * cfg.ACCUMULATE_STEPS)
    order = torch.from_numpy(data.train.batch_sampler.order()[:, 0])
    while (index := state.progress.updates) < state.plan.updates_in(epoch):
        start, waited = time.perf_counter(), batches.seconds
        number = epoch * state.plan.updates_per_epoch + index + 1  # of the update, in the whole run
        size = state.plan.image_size(number)
        count = min(cfg.ACCUMULATE_STEPS, len(data.train) - index * cfg.ACCUMULATE_STEPS)
        buffers = [buffer.clone() for buffer in state.net.buffers()]
        meter = BatchMeter(cfg.SMOOTHING, cfg.BATCH_SIZE, data.train.batch_sampler.rows)
        for batch, (images, labels) in enumerate(itertools.islice(batches, count)):
            seed_batch(cfg.SEED, number, batch)
            images = resize(images, size)                       # smaller at first
            images, targets = state.mix(images, labels)         # Mixup or CutMix now and then; smoothed targets
            with state.loss_model.no_sync() if LAUNCHED and batch + 1 < count else nullcontext():
                logits, losses = state.loss_model(images, targets)  # forward, in mixed precision; the losses in fp32
                loss = losses.sum() / cfg.BATCH_SIZE            # of several processes each has its part of it
                state.scaler.scale(WORLD_SIZE * loss / count).backward()
            meter.add(loss, logits, labels, targets)

        state.scaler.unscale_(state.optimizer)                  # so that the norm is of the true gradients
        norm = torch.nn.utils.clip_grad_norm_(state.net.parameters(), cfg.CLIP_GRAD or math.inf)
        finite = norm.isfinite()                                # else the update is skipped, without waiting for a GPU:
        if skips := can_skip(cfg, state.device):
            state.optimizer.found_inf = 1. - finite.float()     # the optimizer itself leaves weights and moments alone,
        if skips or finite:
            state.scaler.step(state.optimizer)
        for buffer, before in zip(state.net.buffers(), buffers, strict=True):
            buffer.copy_(torch.where(finite, buffer, before))   # and BatchNorm's averages are those of before
        state.scaler.update()
        state.optimizer.zero_grad()
        state.scheduler.step_update(100 * state.plan.compute_share(number))
        loss, correct, unmixed, margins = meter.read()          # here a GPU is waited for
        norm, finite = norm.item(), bool(finite)
        if finite:
            state.margins.add(order[index * cfg.ACCUMULATE_STEPS * cfg.BATCH_SIZE:][:len(margins)], margins)
        if finite and state.ema:
            state.ema.update(state.net, step=number)
        after_update(Update(number, size, loss, norm, finite, cfg.BATCH_SIZE * count, unmixed, correct,
                            batches.seconds - waited, time.perf_counter() - start))


if __name__ == '__main__':
    settings.run(main)
