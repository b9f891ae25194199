"""The settings of train.py: what cannot work is refused before anything long begins, and what 'auto' becomes."""
import difflib
import math
from typing import NamedTuple

import torch
from timm.optim import get_optimizer_info, list_optimizers

from common.data.loaders import own_rows
from common.data.transforms import are_mean_and_std
from common.runtime.device import choose_amp_dtype, choose_device, parallel
from common.runtime.errors import UserError, extra
from common.runtime.processes import RESTARTS
from common.settings import Settings, check_range
from common.training.losses import LossModel, choose_loss
from common.training.optimizer import build_optimizer
from common.training.run_length import Clock, rehearse
from common.training.setup import (
    Demand,
    Provenance,
    Size,
    check_forward,
    largest_batch,
    network_spec,
    refuse_small_batch,
)
from models import VARIANTS, default_cfg, has_fixed_size
from models.volo import STRIDE
from models.weights import MOST_PIXELS, is_img_size

# ---- what cannot work ------------------------------------------------------------------------------------------------

RANGES = {  # least and most that make sense
    'EPOCHS': (1, math.inf), 'ACCUMULATE_STEPS': (1, math.inf),
    'WARMUP': (0, 0.99), 'WEIGHT_DECAY': (0, math.inf), 'CLIP_GRAD': (0, math.inf),
    'DROP_PATH': (0, 1), 'BLUR': (0, 1), 'JITTER': (0, math.inf), 'CUTOUT': (0, 1), 'MIXUP_PROB': (0, 1),
    'TEACHER_WEIGHT': (0, 1), 'SMOOTHING': (0, 0.99), 'SAVE_EVERY_MINUTES': (0, math.inf), 'SEED': (0, 2 ** 32 - 1)}

CHOICES = {
    'CACHE': ('auto', 'ram', 'disk', None), 'USE_GPU': ('auto', True, False), 'BALANCE': (None, 'weights', 'sampler'),
    'VIEW': ('upright', 'above', 'text', None), 'RESUME': (True, False, 'auto'),
    'USE_AMP': ('auto', True, False), 'GPU_AUGMENT': ('auto', True, False), 'BEST_BY': ('acc1', 'balanced_accuracy')}

SET_BY_TRAIN = {'img_size', 'num_classes', 'in_chans', 'drop_path_rate', 'mix_token'}  # not for MODEL_KWARGS


def check_settings(cfg: Settings) -> Settings:
    """Return the settings with IMG_SIZE as (height, width), unless it is 'auto', and with RESUME = 'auto' where
    torchrun has restarted the processes. Raises UserError for settings that would fail later, each by its name.
    """
    for name, (least, most) in RANGES.items():
        check_range(name, getattr(cfg, name), least, most)
    for name, choices in CHOICES.items():
        value = getattr(cfg, name)
        if value not in choices:
            others = ', '.join(map(repr, choices[:-1]))
            raise UserError(f'{name} = {value!r}: choose {others} or {choices[-1]!r}')
    check_model(cfg.MODEL, cfg.MODEL_KWARGS, cfg.TOKEN_LABEL)
    check_optimizer(cfg.OPTIMIZER, cfg.LR)
    check_batch(cfg.BATCH_SIZE, cfg.MIXUP_PROB, cfg.TOKEN_LABEL)
    check_preprocessing(cfg.CROP, cfg.NORMALISATION)
    if cfg.PATIENCE is not None and cfg.PATIENCE < 1:
        raise UserError(f'PATIENCE = {cfg.PATIENCE}: give a number of validations, or None to train to the end')
    if cfg.TIME_BUDGET is not None and not 0 < cfg.TIME_BUDGET < math.inf:
        raise UserError(f'TIME_BUDGET = {cfg.TIME_BUDGET}: give minutes, or None to train for EPOCHS')
    if not is_auto('VALIDATE_EVERY', cfg.VALIDATE_EVERY, 'a number of epochs') and cfg.VALIDATE_EVERY < 1:
        raise UserError(f'VALIDATE_EVERY = {cfg.VALIDATE_EVERY}: give a number of epochs, 1 or more')
    if not is_auto('AUGMENTATION', cfg.AUGMENTATION, 'a share, from 0 to 1,') and not 0 <= cfg.AUGMENTATION <= 1:
        raise UserError(f"AUGMENTATION = {cfg.AUGMENTATION}: give a share, from 0 to 1, or 'auto'")
    if cfg.TRACKER is not None:
        with extra('TRACKER'):
            from extras.trackers import validate_tracker
        validate_tracker(cfg.TRACKER)
    resume = 'auto' if RESTARTS and not cfg.RESUME else cfg.RESUME
    return Settings(**{**vars(cfg), 'IMG_SIZE': check_img_size(cfg.IMG_SIZE, cfg.CROP, cfg.MODEL), 'RESUME': resume})


def is_auto(name: str, value: float | str, what: str) -> bool:
    """Return whether a setting is 'auto'. Raises UserError for another text."""
    if isinstance(value, str) and value != 'auto':
        raise UserError(f"{name} = {value!r}: give {what} or 'auto'")
    return value == 'auto'


def check_img_size(img_size: int | tuple | str, crop: float | str | None, model: str) -> Size | str:
    """Return IMG_SIZE as (height, width), or 'auto'."""
    if img_size == 'auto':
        return img_size
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    unit = 16 if model in VARIANTS else 1
    ratio = None if crop == 'published' else crop
    if not is_img_size(sides, ratio) or any(side % unit for side in sides):
        what = 'a multiple of 16 pixels' if unit == 16 else '16 pixels or more'
        raise UserError(f'IMG_SIZE = {img_size}: each side must be {what}, and an image at most {MOST_PIXELS:,} '
                        'pixels, before it is cropped')
    return sides


def check_model(model: str, kwargs: dict, token_label: bool) -> None:
    """Raise UserError for an unknown network, and for settings that it does not go with."""
    if kwargs.keys() & SET_BY_TRAIN:
        raise UserError(f'MODEL_KWARGS: {", ".join(sorted(kwargs.keys() & SET_BY_TRAIN))} is set by train.py itself')
    try:
        default_cfg(model)
    except ValueError as error:
        raise UserError(f'MODEL: {error}') from error
    if token_label and model not in VARIANTS:
        raise UserError(f'TOKEN_LABEL: {model} gives no logits for tokens, only {", ".join(VARIANTS)} do')


def check_optimizer(name: str, lr: float | str) -> None:
    """Raise UserError for an optimizer that timm does not have, and for a learning rate that it cannot have."""
    if name != 'auto' and (name not in list_optimizers() or get_optimizer_info(name).second_order):
        near = difflib.get_close_matches(name, list_optimizers()) or ['muon', 'adamw', 'lion', 'sgd']
        raise UserError(f'OPTIMIZER = {name!r}: choose \'auto\' or one of timm.optim.list_optimizers(), such '
                        f'as {", ".join(near)}')
    if is_auto('LR', lr, 'a positive number'):
        if name not in ('auto', 'muon', 'adamw'):
            raise UserError(f"OPTIMIZER = {name!r} needs an LR of its own, 'auto' is Muon's and AdamW's: set LR")
    elif not 0 < lr < math.inf:
        raise UserError(f"LR = {lr}: give a positive number or 'auto'")


def check_batch(batch_size: int | str, mixup_prob: float, token_label: bool) -> None:
    """Raise UserError for a batch that cannot be mixed."""
    if token_label and mixup_prob:
        raise UserError('TOKEN_LABEL mixes tokens itself and does not go with Mixup and CutMix: set MIXUP_PROB = 0')
    if is_auto('BATCH_SIZE', batch_size, 'a number of images'):
        return
    if batch_size < 1:
        raise UserError(f"BATCH_SIZE = {batch_size}: give a number of images, 1 or more, or 'auto'")
    if mixup_prob and batch_size % 2:
        raise UserError(f'BATCH_SIZE = {batch_size} must be even: Mixup works on pairs; or set MIXUP_PROB = 0')


def check_preprocessing(crop: float | str | None, normalisation: str | tuple) -> None:
    """Raise UserError for a CROP and a NORMALISATION that do not exist."""
    if crop not in (None, 'published') and not (isinstance(crop, (int, float)) and 0.1 <= crop <= 2):
        raise UserError(f"CROP = {crop!r}: give a ratio such as 0.96, 'published' or None")
    if isinstance(normalisation, tuple):
        valid = len(normalisation) == 2 and are_mean_and_std(*normalisation)
    else:
        valid = normalisation in ('auto', 'weights', 'data')
    if not valid:
        raise UserError(f"NORMALISATION = {normalisation!r}: choose 'auto', 'weights', 'data' or a pair of three means "
                        'and three positive standard deviations')


# ---- what 'auto' becomes ---------------------------------------------------------------------------------------------

MANY_IMAGES = 10_000      # training images, from which on AdamW's batches are larger
ENOUGH_FOR_MUON = 1_000   # training images, from which on Muon is better (docs/measurements.md)
USUAL_SIDE = 224          # pixels
SPEED_SIDE = 128          # pixels, of the images that tell how fast a machine is
LEAST_SIDE = 64           # pixels, unless the images themselves are smaller
STRIDE_OF_OTHERS = 32     # pixels, of which some of timm's networks need a multiple
ENLARGEMENT = 1.5         # of small images: of 32 pixels at 48 more were right than at 32 and 64 (docs/recipe.md)
IMAGES_AT_LEAST = 20_000  # that a run from scratch should train on, each again and again
PASSES_AT_128 = 9         # over the training set, which a run from scratch should make with images of 128 pixels
PASSES_FOR_ALL = 100      # over the training set, from which on the whole of the augmentation is applied
CHOSEN = ('OPTIMIZER', 'USE_AMP', 'IMG_SIZE', 'BATCH_SIZE', 'LR', 'AUGMENTATION')  # may be 'auto' until images are seen
UPDATING_SHARE = 0.8      # of the time of a run: the rest is for reading, validating and saving


class Choice(NamedTuple):
    """What a setting becomes, and why."""
    value: object
    reason: str


def choose_settings(cfg: Settings, provenance: Provenance, images: int, classes: int, saved: dict | None,
                    own_side: float = math.inf) -> Settings:
    """Return the settings with a value for each 'auto', in a resumed run that of `saved`; each is printed with its
    reason. `images` is the number of training images, `own_side` the pixels of the shorter side that they usually have.
    Raises UserError for values of `saved` that would fail later.
    """
    chosen = Settings(**vars(cfg))

    def settle(name: str, choice: Choice) -> None:
        setattr(chosen, name, choice.value)
        shown = choice.value if isinstance(choice.value, (bool, str, tuple)) else f'{choice.value:.3g}'
        print(f"{name} = 'auto': {shown}, {choice.reason}")

    if saved:
        for name in CHOSEN:
            if getattr(cfg, name) == 'auto':
                settle(name, Choice(saved['settings'][name], 'as before'))
        return check_settings(chosen)
    from_scratch = provenance.from_scratch
    if chosen.OPTIMIZER == 'auto':
        settle('OPTIMIZER', choose_optimizer(cfg.MODEL, from_scratch, images))
    if chosen.USE_AMP == 'auto':
        settle('USE_AMP', choose_precision(chosen, images, classes))
    fits_images = cfg.IMG_SIZE == 'auto' and from_scratch and not has_fixed_size(cfg.MODEL)
    pixels = None  # of training images, all together, for which TIME_BUDGET is enough
    if cfg.TIME_BUDGET and (fits_images or cfg.AUGMENTATION == 'auto'):
        seconds = UPDATING_SHARE * 60 * cfg.TIME_BUDGET
        pixels = seconds * training_speed(chosen, images, classes)
    if chosen.IMG_SIZE == 'auto':
        if fits_images:
            stride = STRIDE if cfg.MODEL in VARIANTS else STRIDE_OF_OTHERS
            settle('IMG_SIZE', choose_img_size(images, own_side, pixels, cfg.TIME_BUDGET, stride))
        else:
            reason = 'as published' if from_scratch else 'the weights are trained already'
            settle('IMG_SIZE', Choice((USUAL_SIDE, USUAL_SIDE), reason))
    if chosen.BATCH_SIZE == 'auto':
        settle('BATCH_SIZE', choose_batch_size(chosen, images, classes))
    if chosen.LR == 'auto':
        fine_tuned = cfg.MODEL not in VARIANTS and not from_scratch
        settle('LR', choose_lr(chosen.OPTIMIZER, fine_tuned, chosen.BATCH_SIZE * chosen.ACCUMULATE_STEPS))
    if chosen.AUGMENTATION == 'auto':
        passes = cfg.EPOCHS if pixels is None else pixels / (images * math.prod(chosen.IMG_SIZE))
        settle('AUGMENTATION', choose_augmentation(passes))
    return chosen


def choose_optimizer(model: str, from_scratch: bool, images: int) -> Choice:
    if not from_scratch:
        return Choice('adamw', 'the weights are trained already')
    if model not in VARIANTS:
        return Choice('adamw', f'{model} is no VOLO')
    if images < ENOUGH_FOR_MUON:
        return Choice('adamw', f'{images} training images are fewer than {ENOUGH_FOR_MUON}')
    return Choice('muon', f'training from scratch on {ENOUGH_FOR_MUON} images or more')


def choose_precision(cfg: Settings, images: int, classes: int) -> Choice:
    """Choose whether to train in mixed precision. On a CPU many a convolution is slower in bfloat16, depthwise ones
    above all, so that both are tried; a VOLO is faster in it on every processor that multiplies in it.
    """
    device = choose_device(cfg.USE_GPU)
    if choose_amp_dtype(device) is None:
        return Choice(False, 'this processor gains nothing from mixed precision')
    if device.type != 'cpu' or cfg.MODEL in VARIANTS:
        return Choice(True, 'mixed precision is faster on this processor')
    single, mixed = (training_speed(Settings(**{**vars(cfg), 'USE_AMP': use_amp}), images, classes)
                     for use_amp in (False, True))
    return Choice(mixed > single, f'mixed precision is {mixed / single:.2g} times as fast')


def choose_img_size(images: int, own_side: float, pixels: float | None, minutes: float | None, stride: int) -> Choice:
    """Choose the largest images of which a run from scratch can see enough: `pixels` of them in the `minutes` of
    TIME_BUDGET, None without it. Far larger ones than the files hold only cost time. A side is a multiple of `stride`.
    """
    chosen = USUAL_SIDE
    reason = 'as published'
    if ENLARGEMENT * own_side <= USUAL_SIDE - stride:
        chosen = math.ceil(ENLARGEMENT * own_side / stride) * stride
        reason = f'since the shorter side of the images has {own_side:.0f} pixels'
    if pixels is not None:
        side = largest_seen_enough(images, pixels, stride)
        if side <= chosen:
            chosen = side
            seen = pixels / side ** 2
            wanted = images_wanted(side, images)
            if seen >= wanted:
                reason = f'so that {minutes:g} minutes are enough for about {round(wanted, -3)} images'
            else:
                reason = (f'the smallest, and {minutes:g} minutes are enough for about {seen:.0f} images only: from '
                          f'scratch {wanted / seen * minutes:.0f} would be better')
    return Choice((chosen, chosen), reason)


def largest_seen_enough(images: int, pixels: float, stride: int) -> int:
    """Return the side of the largest images of which a run from scratch sees enough with so many pixels in all."""
    sides = range(LEAST_SIDE, USUAL_SIDE + 1, stride)
    return max((side for side in sides if images_wanted(side, images) * side ** 2 <= pixels), default=LEAST_SIDE)


def images_wanted(side: int, images: int) -> int:
    """Return how many images of that side a run from scratch on so many should see before larger ones pay.

    From runs on 2,821 photographs, one seed each: with 0.15 PFLOP 8 passes at 80 pixels were better than 6 at 96, with
    0.47 PFLOP 11 at 128 better than 20 at 96, and with growing images 18 at 160 better than 9 at 224
    (docs/measurements.md).
    """
    return max(IMAGES_AT_LEAST, round(PASSES_AT_128 * (side / 128) ** 3 * images))


def choose_batch_size(cfg: Settings, images: int, classes: int) -> Choice:
    """Choose by the number of training images, and less where memory is short. IMG_SIZE has been chosen before."""
    if cfg.OPTIMIZER == 'muon':
        usual = 32
        many = ENOUGH_FOR_MUON
        larger = 128
    else:
        usual = 16
        many = MANY_IMAGES
        larger = 64
    if images < usual:
        batch = max(2, images // 2 * 2)
        reason = f'{images} training images, in pairs'
    elif images < many:
        batch = usual
        reason = f'{images} training images are fewer than {many}'
    else:
        batch = larger
        reason = f'{images} training images are {many} or more'
    device = choose_device(cfg.USE_GPU)
    amp_dtype = choose_amp_dtype(device) if cfg.USE_AMP else None
    demand = Demand(batch, device, amp_dtype, cfg.USE_DP, cfg.USE_EMA)
    fitting = largest_batch(network_spec(cfg, classes, cfg.DROP_PATH), demand)
    if fitting < batch:
        reason += f', and {batch} need too much of the free memory'
    return Choice(fitting, reason)


def choose_lr(optimizer: str, fine_tuned: bool, images: int) -> Choice:
    """Choose by the number of images in an update, and more for a network of timm that is `fine_tuned`."""
    if optimizer == 'muon':
        base = 6e-4
        whose = "Muon's 6e-4"
    elif fine_tuned:
        base = 3e-4
        whose = 'the 3e-4 of trained networks of timm'
    else:
        base = 1e-4
        whose = "the tutorial's 1e-4"
    return Choice(base * math.sqrt(images / 16), f'{whose} for 16 images in an update, times √({images}/16)')


def choose_augmentation(passes: float) -> Choice:
    """Choose by the number of passes over the training set."""
    return Choice(min(1., passes / PASSES_FOR_ALL),
                  f'about {passes:.3g} passes over the training set, of {PASSES_FOR_ALL} for all of it')


def training_speed(cfg: Settings, images: int, classes: int) -> float:
    """Return the pixels of images that can be trained on in a second, tried with blank ones on a network that is thrown
    away. No random number is drawn. Raises UserError for a network that cannot be trained so.
    """
    cfg = Settings(**vars(cfg))
    if cfg.IMG_SIZE == 'auto':
        side = USUAL_SIDE if has_fixed_size(cfg.MODEL) else SPEED_SIDE
        cfg.IMG_SIZE = (side, side)
    if cfg.BATCH_SIZE == 'auto':
        cfg.BATCH_SIZE = choose_batch_size(cfg, images, classes).value
    device = choose_device(cfg.USE_GPU)
    amp_dtype = choose_amp_dtype(device) if cfg.USE_AMP else None
    spec = network_spec(cfg, classes)
    with torch.random.fork_rng():
        net = spec.create()
    check_forward(spec, net)
    net.to(device)
    optimizer = build_optimizer(cfg.OPTIMIZER, net, 1., cfg.WEIGHT_DECAY, amp_dtype)
    loss = choose_loss(cfg.TOKEN_LABEL, spec.kwargs.get('return_dense', False))
    model = parallel(LossModel(net, loss, amp_dtype), device, cfg.USE_DP)
    rows = len(own_rows(cfg.BATCH_SIZE))
    blank = torch.zeros(rows, 3, *cfg.IMG_SIZE, device=device)
    clock = Clock()
    try:
        rehearse(clock, model, optimizer, blank, torch.zeros(rows, classes, device=device), cfg.ACCUMULATE_STEPS)
    except ValueError as error:
        refuse_small_batch(error, cfg.BATCH_SIZE, cfg.MODEL)
        raise
    return cfg.BATCH_SIZE * cfg.ACCUMULATE_STEPS * math.prod(cfg.IMG_SIZE) / clock.update_seconds
