"""Step 3: train a VOLO on data/train, validate it on data/val, keep the best weights.

    python train.py                              with the constants below
    python train.py --img-size 112 --epochs 30   with two of them changed for one run; --help lists all

writes to checkpoints/volo_d1/ (OUTPUT_DIR): best.pth and last.pth; report.html, a page on what the network has learnt,
and its parts as files: loss.png, acc.png, lr.png, confusion.png, calibration.png, report.txt, report.json, result.json,
log.csv and class.json. README.md has measured accuracies and times to expect.
"""
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch.nn.utils import clip_grad_norm_
from torchvision.transforms import v2

from common import settings
from common.data.cutout import Cutout
from common.data.datasets import open_split
from common.data.loaders import Data, build_data
from common.data.transforms import Transform, eval_transform, make_transform
from common.evaluation.metrics import scores
from common.evaluation.suspects import Margins
from common.evaluation.validate import EvalModel, measure_batch_norm, validate
from common.runtime import device as devices
from common.runtime import processes
from common.runtime.errors import UserError, extra
from common.settings import Settings
from common.training import checkpoint, choices, log, losses, mixup, run_length, setup, step
from common.training.monitor import Diverged, Monitor
from common.training.optimizer import build_optimizer
from models import VARIANTS

# ---- Data
DATA_DIR: str = 'data'            # Folder that makedata.py made: train/ and val/, one sub-folder for each class.
IMG_SIZE: int | tuple | str = 'auto'  # Pixels, a multiple of 16, or (height, width). 112 takes a quarter of the time of
                                  # 224. 'auto' is 224; from scratch less with a short TIME_BUDGET or small
                                  # images: at most 1.5 times their shorter side, rounded up.
CROP: float | str | None = None   # None squeezes the whole image into IMG_SIZE, whatever its shape. 0.96 takes the
                                  # middle 96 % undistorted. 'published' crops and interpolates as MODEL was published.
NORMALISATION: str | tuple = 'auto'  # Mean and standard deviation of red, green and blue. 'data': those of
                                  # mean_std.json; 'weights': those of the loaded weights; 'auto': 'weights' where some
                                  # are loaded, else 'data'; or a pair ((0.33, 0.29, 0.21), (0.09, 0.10, 0.11)).
NUM_WORKERS: int | str = 'auto'   # Worker processes that read images. 'auto' takes one for each core, at most 8.
CACHE: str | None = 'auto'        # Where decoded images are kept at IMG_SIZE: 'ram', or 'disk' (.cache/, for later runs
                                  # too). None decodes them in every epoch. 'auto' takes 'ram' where a quarter of
                                  # the free memory is enough.
# ---- Model
MODEL: str = 'volo_d1'            # volo_d1 (27 M parameters) to volo_d5 (296 M), or one of timm's, such as 'resnet50'.
MODEL_KWARGS: dict = {}           # More keyword arguments of the network, for example {'drop_rate': 0.1}.
PRETRAINED: bool | str = 'auto'   # ImageNet weights: 'auto' if they can be fetched, True required, False none; or the
                                  # path of a file of weights.
DROP_PATH: float = 0.1            # Maximum stochastic-depth rate, reached in the last block.
TEACHER: str | tuple | None = None  # Checkpoint of a trained network of the same classes, or several with commas:
                                  # their probabilities replace the label of each image (extras/teacher).
TEACHER_WEIGHT: float = 1.0       # Weight of TEACHER's probabilities in the target, from 0 to 1; the rest is the label.
TOKEN_LABEL: bool = False         # VOLO only: the paper's training, with MixToken and a loss on every token. It needs
                                  # MIXUP_PROB = 0.
GRAD_CHECKPOINTING: bool = False  # True computes each block twice instead of storing it: slower, for less memory.
# ---- Optimisation
TIME_BUDGET: float | None = None  # Minutes for the whole of train.py, in place of EPOCHS. The number of updates follows
                                  # from the speed of the machine.
EPOCHS: int = 100                 # Passes over the training set. The tutorial's 300 can pay from scratch.
BATCH_SIZE: int | str = 'auto'    # Images at a time over all GPUs; an even number, since Mixup pairs them. 'auto' is
                                  # 16, or 64 from 10,000 images on; with Muon 32, or 128 from 1,000 on; less if memory
                                  # is short.
ACCUMULATE_STEPS: int = 1         # Batches to each update of the weights: 4 with BATCH_SIZE = 8 learn like 32.
OPTIMIZER: str = 'auto'           # 'muon', 'adamw', or another of timm's, such as 'lion', for which you set LR. 'auto'
                                  # is 'muon' for a VOLO from scratch on 1,000 images or more, else 'adamw'.
LR: float | str = 'auto'          # Peak learning rate. 'auto' is √(images in an update / 16) times 1e-4, with Muon
                                  # 6e-4, for networks of timm with loaded weights 3e-4.
WARMUP: float = 0.1               # Fraction of the run in which the learning rate rises. The tutorial has no warm-up.
WEIGHT_DECAY: float = 0.05        # Decoupled weight decay. Norms, biases, pos_embed and cls_token have none.
CLIP_GRAD: float = 5.0            # Largest norm of the gradient; 0 does not clip.
USE_GPU: bool | str = 'auto'      # 'auto' takes an NVIDIA or AMD GPU if there is one. True also takes others, such as
                                  # Apple's, which nobody has tried. False uses the CPU.
USE_AMP: bool | str = 'auto'      # Mixed precision. 'auto' takes it where the network gains from it on this processor.
COMPILE: bool = False             # torch.compile, for GPUs: takes minutes at the start, then halves the time of an
                                  # update.
USE_EMA: bool = True              # Also keep an average of the weights (ModelEmaV3), and validate it.
USE_DP: bool = True               # DataParallel over several GPUs, which share each batch.
BALANCE: str | None = None        # For classes with far fewer images: 'weights' in the loss, or a 'sampler' that shows
                                  # all classes equally often.
# ---- Augmentation
VIEW: str | None = 'upright'      # How images may be turned. 'upright': by 10 degrees, and mirrored. 'above': by any
                                  # angle, mirrored both ways (plants or cells from above, satellites). 'text': by 10
                                  # degrees only, since left and right differ. None: not at all.
AUGMENTATION: float | str = 'auto'  # Fraction of BLUR, JITTER, CUTOUT, MIXUP_PROB and DROP_PATH that is applied, 0 to
                                  # 1. 'auto' is 1 in runs of 100 passes over the training set or more, else less.
BLUR: float = 0.1                 # Probability of a Gaussian blur.
JITTER: float = 0.4               # Brightness, contrast and saturation are multiplied by 1 - JITTER to 1 + JITTER.
CUTOUT: float = 0.5               # Probability of a grey box (torchtoolbox's Cutout).
MIXUP_PROB: float = 0.1           # Probability that a batch is mixed, by Mixup or by CutMix (timm).
SMOOTHING: float = 0.1            # Label smoothing.
GPU_AUGMENT: bool | str = 'auto'  # True turns and colours images on the device, a batch at a time, and False in the
                                  # worker processes. 'auto' is True on a GPU from NVIDIA or AMD (extras/gpu_augment).
# ---- Run
OUTPUT_DIR: str = 'checkpoints/volo_d1'  # Folder for checkpoints and reports.
RESUME: bool | str = False        # True goes on from OUTPUT_DIR/last.pth, 'auto' does so if it is there.
BEST_BY: str = 'acc1'             # Validation score that chooses best.pth: 'acc1' or 'balanced_accuracy'.
PATIENCE: int | None = None       # Validations without better weights after which the run ends early. None: never.
VALIDATE_EVERY: int | str = 'auto'  # Epochs between validations. 'auto' lets them take at most a fifth of the time.
SAVE_EVERY_MINUTES: float = 10.0  # Time between saves of last.pth, which is also saved on Ctrl-C and at the end.
TRACKER: str | None = None        # Curves in 'tensorboard', 'wandb' or 'trackio', by the package of that name.
SEED: int = 42                    # Seed of the initial weights, the order of the images and the augmentation.


def train_one_epoch(cfg: Settings, state: step.TrainState, data: Data, epoch: int, after_update: Callable) -> None:
    """Train on what is left of a pass over the training set.

    `after_update(result, batches)` is called after each update of the weights.
    """
    state.net.train()
    guarded_step = step.GuardedStep(state.net, state.optimizer, state.scaler, state.device)
    meter = step.UpdateMeter(smoothing=cfg.SMOOTHING, batch_size=cfg.BATCH_SIZE, rows=data.own_rows)
    batches = step.UpdateBatches(data.train, state, epoch, cfg.ACCUMULATE_STEPS)
    for images, labels in batches:                          # on the device
        step.seed_batch(cfg.SEED, batches.update, batches.place)  # so that a resumed run draws the same numbers
        images = data.augment(images)                       # augmentation on the device, with GPU_AUGMENT
        images, targets = state.mix(images, labels)         # Mixup or CutMix now and then; smoothed targets
        learnt = state.teach(images, targets)               # the targets, or what a TEACHER says of the images
        logits, each_loss = state.model(images, learnt)     # forward: autocast, in each replica of DataParallel
        loss = each_loss.sum() / (cfg.BATCH_SIZE * batches.in_update)
        loss = loss * processes.WORLD_SIZE                  # undoes torchrun's average over its processes
        state.scaler.scale(loss).backward()
        meter.add(each_loss, logits, labels, targets)
        if not batches.completes_update:                    # ACCUMULATE_STEPS batches make an update
            continue

        state.scaler.unscale_(state.optimizer)              # so that the norm is that of the true gradients
        norm = clip_grad_norm_(state.net.parameters(), cfg.CLIP_GRAD or math.inf)
        finite = guarded_step(norm)                         # optimizer.step, scaler.update, zero_grad; a norm that is
                                                            # not finite changes neither weights nor optimizer
        state.scheduler.step_update(100 * state.plan.share(batches.update))  # in percent of the run
        result = meter.read(norm, finite)                   # as Python's numbers: waits for the GPU
        if result.finite and state.ema:
            state.ema.update(state.net, step=batches.update)
        after_update(result, batches)                       # AverageMeters of loss and ACC1, progress, saves, signals


def evaluate(cfg: Settings, state: step.TrainState, data: Data, between_batches: Callable) -> dict[str, dict]:
    """Return {'raw': …, 'ema': …}: ACC1, ACC5 and other scores of the network and of its average on the validation set,
    with their outputs. Before that BatchNorm's statistics are measured on training images without augmentation.
    """
    nets = state.weights()
    measure_batch_norm([*nets.values()], data.plain, state.device, state.amp_dtype)
    results = {}
    for name, net in nets.items():
        model = devices.parallel(EvalModel(net, state.amp_dtype), state.device, cfg.USE_DP)
        outputs = validate(model, data.val, state.device, f'validating, {name} weights', between_batches)
        results[name] = {**scores(outputs.logits, outputs.targets, data.classes), 'outputs': outputs}
    return results


def train_epochs(cfg: Settings, state: step.TrainState, data: Data, facts: dict, history: list[dict],
                 out: Path) -> None:
    """Train and validate from where state.progress stands to the last epoch; a row for each goes into `history`.

    Raises Diverged after too many skipped updates, and Stopped after a signal, when all is saved.
    """
    with Monitor(cfg, state, data, facts, history, out) as monitor:
        while len(history) < state.plan.epochs:
            epoch = len(history)
            with monitor.epoch(epoch) as after_update:
                train_one_epoch(cfg, state, data, epoch, after_update)
            results = evaluate(cfg, state, data, monitor.between_batches) if state.plan.validates(epoch) else {}
            monitor.after_epoch(epoch, results)             # a row of the history, curves, report, checkpoints


# ---- what a run is built from ----------------------------------------------------------------------------------------

_VIEWS = {  # degrees either way, probability of a mirror image, of an upside-down one
    'upright': (10, 0.5, 0.),
    'above': (180, 0.5, 0.5),
    'text': (10, 0., 0.),
    None: (0, 0., 0.)}


def train_transform(cfg: Settings, transform: Transform) -> v2.Compose:
    """Return the augmentation of a training image that was fitted to IMG_SIZE: image -> float tensor (3, H, W)."""
    degrees, mirrored, upside_down = _VIEWS[cfg.VIEW]
    mean_colour = [round(255 * value) for value in transform.mean]
    share = cfg.AUGMENTATION
    jitter = share * cfg.JITTER
    return v2.Compose([
        v2.RandomRotation(degrees, v2.InterpolationMode.BILINEAR, fill=mean_colour),
        v2.RandomHorizontalFlip(mirrored),
        v2.RandomVerticalFlip(upside_down),
        v2.RandomApply([v2.GaussianBlur(kernel_size=5, sigma=(0.1, 3.0))], share * cfg.BLUR),
        v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter),
        Cutout(share * cfg.CUTOUT, *transform.img_size),
        eval_transform(transform)])                         # to a tensor, normalised


def build_schedule(optimizer: torch.optim.Optimizer, lr: float, warmup: float) -> CosineLRScheduler:
    """Return the schedule of the learning rate, in percent of the run: a linear warm-up to `lr`, then the cosine."""
    lowest = min(1e-6, lr)
    return CosineLRScheduler(optimizer, t_initial=100 - 100 * warmup, warmup_t=100 * warmup, warmup_prefix=True,
                             lr_min=lowest, warmup_lr_init=lowest, t_in_epochs=False)


def build_model(cfg: Settings, built: setup.BuiltNetwork, data: Data, images: torch.Tensor, targets: torch.Tensor,
                device: torch.device, amp_dtype: torch.dtype | None) -> torch.nn.Module:
    """Return (images, targets) -> (logits, losses): the network with its loss, over several GPUs or processes. The
    images and targets that it is given here are blank ones of the same shape.
    """
    loss = losses.choose_loss(cfg.TOKEN_LABEL, built.kwargs.get('return_dense', False))
    if cfg.BALANCE == 'weights':
        loss = losses.balanced(loss, data.train.dataset.targets)
    model = losses.LossModel(built.net, loss, amp_dtype, tuple(cfg.IMG_SIZE))
    model = devices.parallel(model, device, cfg.USE_DP)     # torch.nn.DataParallel where there are several GPUs
    if cfg.COMPILE:
        with extra('COMPILE'):
            from extras.compile import compiled
        graphs = device.type == 'cuda' and cfg.ACCUMULATE_STEPS == 1 and not processes.LAUNCHED
        model = compiled(model.train(), images, targets, graphs)
    if processes.LAUNCHED:
        with extra('torchrun'):
            from extras.torchrun.shared_batch import distributed
        model = distributed(model, unused=cfg.MODEL not in VARIANTS)
    return model


def build_state(cfg: Settings, data: Data, weights: setup.InitialWeights, saved: dict | None, clock: run_length.Clock,
                lr_scale: float = 1.) -> tuple[step.TrainState, dict]:
    """Return everything that an update needs, new or as it was saved, and what every checkpoint says of the run.

    Raises UserError for a network that cannot be built, and for a save that does not fit.
    """
    device = devices.choose_device(cfg.USE_GPU)
    amp_dtype = devices.choose_amp_dtype(device) if cfg.USE_AMP else None
    print(devices.describe_device(device, amp_dtype))
    spec = setup.network_spec(cfg, len(data.classes), drop_path=cfg.AUGMENTATION * cfg.DROP_PATH)
    built = setup.build_network(spec, data.classes, weights, data.grey)
    net = built.net.to(device)
    demand = setup.Demand(cfg.BATCH_SIZE, device, amp_dtype, cfg.USE_DP, cfg.USE_EMA)
    image_flop = setup.work_out_cost(spec, net, demand)
    if processes.LAUNCHED:
        with extra('torchrun'):
            from extras.torchrun.shared_batch import share_batches
        share_batches(net, cfg.BATCH_SIZE)
    lr = lr_scale * cfg.LR
    optimizer = build_optimizer(cfg.OPTIMIZER, net, lr, cfg.WEIGHT_DECAY, amp_dtype)  # Muon or AdamW
    ema = None
    if cfg.USE_EMA:  # an average over about the last fiftieth of all updates so far, at most 5,000
        ema = ModelEmaV3(net, decay=0.9998, use_warmup=True, warmup_gamma=50, warmup_power=1)
    teach = mixup.keep_targets
    if cfg.TEACHER:
        with extra('TEACHER'):
            from extras.teacher import build_teacher
        teach = build_teacher(cfg.TEACHER, cfg.TEACHER_WEIGHT, data.transform, cfg.TOKEN_LABEL, device, cfg.USE_DP)
        image_flop = teach.add_flop(image_flop)
    blank = run_length.blank_batch(data, device)
    model = build_model(cfg, built, data, blank.images, teach(*blank), device, amp_dtype)
    validation = run_length.validation_cost(net, len(data.val), len(data.plain), cfg.USE_EMA, cfg.ACCUMULATE_STEPS)
    updates_per_epoch = math.ceil(len(data.train) / cfg.ACCUMULATE_STEPS)
    plan = run_length.make_plan(cfg.EPOCHS, updates_per_epoch, validation, cfg.VALIDATE_EVERY)
    if cfg.TIME_BUDGET:  # updates with blank images tell how fast the machine is
        rehearse = partial(run_length.rehearse, clock, model, optimizer, *blank, cfg.ACCUMULATE_STEPS, teach)
        plan = run_length.fit_time_budget(plan, cfg.TIME_BUDGET, clock, saved, rehearse)
    state = step.TrainState(
        net=net,
        model=model,
        mix=mixup.build_mix(cfg.AUGMENTATION * cfg.MIXUP_PROB, cfg.SMOOTHING, len(data.classes)),
        teach=teach,
        optimizer=optimizer,
        scheduler=build_schedule(optimizer, lr, cfg.WARMUP),
        scaler=torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16),
        ema=ema,
        device=device,
        amp_dtype=amp_dtype,
        plan=plan,
        clock=clock,
        margins=Margins(len(data.train.dataset)),
        image_flop=image_flop,
        lr_scale=lr_scale)
    if saved:
        checkpoint.check_fits(saved, state)
        try:
            state.load_state_dict(saved)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f'RESUME: last.pth is not of this run ({error}): choose another OUTPUT_DIR') from error
    return state, log.describe_run(cfg, data, built, amp_dtype)


# ---- the run ---------------------------------------------------------------------------------------------------------

def main(cfg: Settings) -> None:
    cfg = choices.check_settings(cfg)
    with setup.running(cfg.OUTPUT_DIR, cfg.USE_GPU, cfg.SEED) as out:
        saved = processes.on_first(checkpoint.find_saved, cfg.RESUME, out)
        clock = run_length.Clock(saved['elapsed'] if saved else 0.)
        if saved:
            weights = setup.weights_of_resumed(saved)
        else:
            weights = processes.on_first(setup.find_weights, cfg.PRETRAINED, cfg.MODEL, cfg.IMG_SIZE)
        split = open_split(cfg.DATA_DIR)
        sizes = []
        if cfg.TEACHER:
            with extra('TEACHER'):
                from extras.teacher import add_unlabelled, load_teachers
            teachers = load_teachers(cfg.TEACHER, split.classes, out)
            add_unlabelled(split, teachers, cfg.NUM_WORKERS, cfg.USE_GPU)
            sizes = [teacher['transform']['img_size'] for teacher in teachers.values()]
            del teachers  # all their weights
        cfg = processes.from_first(choices.choose_settings(
            cfg, weights.provenance, len(split.train), len(split.classes), saved, split.train.usual_side()))
        transform = make_transform(cfg.IMG_SIZE, cfg.CROP, cfg.MODEL, cfg.NORMALISATION,
                                   weights.provenance.normalisation, split.classes)
        for_training = replace(transform, img_size=[max(sides) for sides in zip(cfg.IMG_SIZE, *sizes, strict=True)])
        data = build_data(cfg, split, transform, for_training, train_transform(cfg, for_training))
        history = []
        lr_scale = 1.
        if saved:
            checkpoint.check_resume(cfg, data, saved)
            if checkpoint.is_complete(saved, cfg.EPOCHS, cfg.TIME_BUDGET, cfg.PATIENCE):
                print(f'{out}/last.pth is of a run that completed all its epochs: nothing to do')
                return
            history = saved['history']
            lr_scale = checkpoint.resumed_lr_scale(cfg.LR, saved)
        state, facts = build_state(cfg, data, weights, saved, clock, lr_scale)
        if not saved:
            processes.on_first(checkpoint.set_aside, out)
        print(f'Ctrl-C saves and stops; RESUME = True (--resume) then goes on from {out}')
        del saved, weights  # `weights` is as large as the network, `saved` up to four times
        diverged = False
        try:
            train_epochs(cfg, state, data, facts, history, out)
        except Diverged as error:
            if lr_scale < 1:  # the run went back before
                raise
            print(f'{error}: going back to the last save, with a tenth of the learning rate')
            diverged = True
        if diverged:  # not within except, where the traceback would keep the old network in memory
            del state
            saved = processes.on_first(checkpoint.load_last, out)
            history = saved['history']
            state, facts = build_state(cfg, data, setup.weights_of_resumed(saved), saved, clock, lr_scale=0.1)
            del saved
            train_epochs(cfg, state, data, facts, history, out)
    log.print_result(history, cfg.BEST_BY, len(data.val.dataset))
    print(f'results: {out}')


if __name__ == '__main__':
    settings.run(main)
