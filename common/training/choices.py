"""The settings of train.py that cannot work, refused before anything long begins."""
import difflib
import functools
import math
import statistics
from collections.abc import Callable

from timm.optim import get_optimizer_info, list_optimizers

from common.data.datasets import ImageFolder
from common.data.transforms import are_mean_and_std
from common.runtime.errors import UserError, extra
from common.runtime.processes import RESTARTS
from common.settings import Settings, check_ranges
from common.training.plan import Size, make_stages
from common.training.schedule import training_speed
from common.training.setup import Provenance, largest_batch
from models import VARIANTS, default_cfg, has_fixed_size

_RANGES = {  # least and most that make sense
    **dict.fromkeys(('EPOCHS', 'ACCUMULATE_STEPS', 'MAX_SKIPPED_UPDATES'), (1, math.inf)),
    'SEED': (0, 2 ** 32 - 1), 'SAVE_EVERY_MINUTES': (0, math.inf),
    'SMOOTHING': (0, 0.99), 'LAYER_DECAY': (0.01, 1), 'WARMUP': (0, 0.99), 'EMA_SHARE': (0.001, 1),
    **dict.fromkeys(('MIN_LR', 'DROP_PATH', 'EMA_DECAY', 'MIXUP_PROB', 'MIXUP_SWITCH_PROB'), (0, 1)),
    **dict.fromkeys(('FLIP', 'FLIP_VERTICAL', 'SHIFT', 'BLUR', 'CUTOUT'), (0, 1)),
    **dict.fromkeys(('FREEZE_EPOCHS', 'WEIGHT_DECAY', 'CLIP_GRAD'), (0, math.inf)),
    **dict.fromkeys(('ROTATION', 'JITTER', 'MIXUP_ALPHA', 'CUTMIX_ALPHA'), (0, math.inf))}
_CHOICES = {'USE_GPU': ('auto', True, False), 'INTERPOLATION': ('bilinear', 'bicubic'), 'RESUME': (True, False, 'auto'),
            'CACHE': ('ram', 'disk', 'auto', None), 'NORMALISATION': ('auto', 'weights', 'data'),
            'BALANCE': (None, 'weights', 'sampler'), 'BEST_BY': ('acc1', 'balanced_accuracy')}
_OURS = {'img_size', 'num_classes', 'in_chans', 'drop_path_rate', 'return_dense', 'mix_token'}  # not for MODEL_KWARGS


def validate_settings(cfg: Settings) -> None:
    """Raise UserError for settings that would fail later, each by its name."""
    check_ranges(cfg, _RANGES)
    for name, choices in _CHOICES.items():
        if getattr(cfg, name) not in choices:
            raise UserError(f'{name} = {getattr(cfg, name)!r}: choose {", ".join(map(repr, choices[:-1]))} '
                            f'or {choices[-1]!r}')
    _validate_model(cfg)
    _validate_optimisation(cfg)
    _validate_data(cfg)
    if cfg.TRACKER is not None:
        with extra('TRACKER'):
            from extras.trackers import validate_tracker
        validate_tracker(cfg.TRACKER)


def _validate_model(cfg: Settings) -> None:
    if cfg.MODEL_KWARGS.keys() & _OURS:
        raise UserError(f'MODEL_KWARGS: {", ".join(sorted(cfg.MODEL_KWARGS.keys() & _OURS))} is set by train.py itself')
    try:
        default_cfg(cfg.MODEL)
    except ValueError as error:
        raise UserError(f'MODEL: {error}') from error
    if cfg.TOKEN_LABEL and cfg.MODEL not in VARIANTS:
        raise UserError(f'TOKEN_LABEL: {cfg.MODEL} gives no logits for tokens, only {", ".join(VARIANTS)} do')
    if cfg.AUX_HEAD and cfg.MODEL in VARIANTS and cfg.MODEL_KWARGS.get('return_mean'):
        raise UserError('AUX_HEAD classifies by the class token and return_mean without it: set AUX_HEAD = False')
    if cfg.FREEZE_EPOCHS and cfg.PRETRAINED is False:
        raise UserError('FREEZE_EPOCHS needs weights to freeze: set it to 0, or PRETRAINED to something')


def _validate_optimisation(cfg: Settings) -> None:
    mixing = cfg.MIXUP_PROB > 0 and (cfg.MIXUP_ALPHA > 0 or cfg.CUTMIX_ALPHA > 0)
    _validate_number_or_auto('BATCH_SIZE', cfg.BATCH_SIZE, lambda value: value >= 1, 'a number of pictures')
    if mixing and cfg.BATCH_SIZE != 'auto' and cfg.BATCH_SIZE % 2:
        raise UserError(f'BATCH_SIZE = {cfg.BATCH_SIZE} must be even: Mixup works on pairs; or set MIXUP_PROB = 0')
    if cfg.MIXUP_PROB and not mixing:
        raise UserError('MIXUP_PROB needs MIXUP_ALPHA or CUTMIX_ALPHA above 0: set it to 0 to switch mixing off')
    if cfg.TOKEN_LABEL and mixing:
        raise UserError('TOKEN_LABEL mixes tokens itself and does not go with Mixup and CutMix: set MIXUP_PROB = 0')
    if len(cfg.BETAS) != 2 or not all(isinstance(beta, (int, float)) and 0 <= beta < 1 for beta in cfg.BETAS):
        raise UserError(f'BETAS = {cfg.BETAS}: give two numbers from 0 to below 1, for example (0.9, 0.999)')
    if cfg.PATIENCE is not None and cfg.PATIENCE < 1:
        raise UserError(f'PATIENCE = {cfg.PATIENCE}: give a number of validations, or None to train to the end')
    if cfg.TIME_BUDGET is not None and not 0 < cfg.TIME_BUDGET < math.inf:
        raise UserError(f'TIME_BUDGET = {cfg.TIME_BUDGET}: give minutes, or None to train for EPOCHS')
    if cfg.OPTIMIZER != 'auto' and (
            cfg.OPTIMIZER not in list_optimizers() or get_optimizer_info(cfg.OPTIMIZER).second_order):
        near = difflib.get_close_matches(cfg.OPTIMIZER, list_optimizers()) or ['muon', 'adamw', 'lion', 'sgd']
        raise UserError(f'OPTIMIZER = {cfg.OPTIMIZER!r}: choose \'auto\' or one of timm.optim.list_optimizers(), such '
                        f'as {", ".join(near)}')
    if cfg.OPTIMIZER not in ('auto', 'muon', 'adamw') and cfg.LR == 'auto':
        raise UserError(f"OPTIMIZER = {cfg.OPTIMIZER!r} needs an LR of its own, 'auto' is Muon's and AdamW's: set LR")
    _validate_number_or_auto('LR', cfg.LR, lambda value: 0 < value < math.inf, 'a positive number')
    _validate_number_or_auto('VALIDATE_EVERY', cfg.VALIDATE_EVERY, lambda value: value >= 1, 'a number of epochs')


def _validate_number_or_auto(name: str, value: float | str, allowed: Callable[[float], bool], what: str) -> None:
    if value != 'auto' and (isinstance(value, str) or not allowed(value)):
        raise UserError(f"{name} = {value!r}: give {what} or 'auto'")


def _validate_data(cfg: Settings) -> None:
    sides = (224, 224) if cfg.IMG_SIZE == 'auto' else _sides(cfg.IMG_SIZE)
    unit = 16 if cfg.MODEL in VARIANTS else 1
    if len(sides) != 2 or any(type(side) is not int or side < 16 or side % unit for side in sides):
        raise UserError(f'IMG_SIZE = {cfg.IMG_SIZE}: each side must be '
                        + ('a multiple of 16 pixels' if unit == 16 else '16 pixels or more'))
    _validate_number_or_auto('AUGMENTATION', cfg.AUGMENTATION, lambda value: 0 <= value <= 1, 'a share, from 0 to 1,')
    _validate_number_or_auto('START_SIZE', cfg.START_SIZE, lambda value: 0 < value <= 1, 'a share of IMG_SIZE')
    if cfg.START_SIZE not in ('auto', 1) and has_fixed_size(cfg.MODEL):
        raise UserError(f'START_SIZE = {cfg.START_SIZE}: {cfg.MODEL} takes images of one size: set it to 1')
    if cfg.CROP not in (None, 'published') and not (isinstance(cfg.CROP, (int, float)) and 0.1 <= cfg.CROP <= 2):
        raise UserError(f"CROP = {cfg.CROP!r}: give a ratio such as 0.96, 'published' or None")
    if cfg.ZOOM is not None and not (len(cfg.ZOOM) == 2 and 0 < cfg.ZOOM[0] <= cfg.ZOOM[1]):
        raise UserError(f'ZOOM = {cfg.ZOOM}: give the least and the most, for example (0.8, 1.2), or None')
    if (cfg.MEAN is None) != (cfg.STD is None):
        raise UserError('MEAN and STD go together: set both or neither')
    if cfg.MEAN is not None and not are_mean_and_std(cfg.MEAN, cfg.STD):
        raise UserError(f'MEAN = {cfg.MEAN}, STD = {cfg.STD}: each needs three numbers, and STD positive ones')


def _sides(img_size: int | tuple) -> tuple:
    return (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)


def resolved(cfg: Settings) -> Settings:
    """The settings with IMG_SIZE as (height, width), unless 'auto', and the CROP of published weights as a number;
    RESUME is 'auto' when torchrun has restarted the processes.
    """
    crop = default_cfg(cfg.MODEL)['crop_pct'] if cfg.CROP == 'published' else cfg.CROP
    size = cfg.IMG_SIZE if cfg.IMG_SIZE == 'auto' else _sides(cfg.IMG_SIZE)
    resume = cfg.RESUME or ('auto' if RESTARTS else False)
    return Settings(**{**vars(cfg), 'IMG_SIZE': size, 'CROP': crop, 'RESUME': resume})


# Settings that are 'auto': what they become, and why

MANY = 10_000     # training pictures, from which on batches are larger
ENOUGH = 1_000    # the same with Muon, and for it: with 944 it was better, with 474 it was not (docs/recipe.md)
USUAL = 224       # pixels
PROBE = 112       # likewise, of images that tell how fast a machine is
SIDES = range(64, USUAL + 1, 16)
SEEN = 15_000     # images that a run from scratch should train on, each again and again,
PASSES = 9        # and passes over the training set, with images of 128 pixels; with others see images_wanted
FULL = 100        # passes, from which on the whole of the augmentation is applied
TRAINED = 'the weights are trained already'
ORDER = ('OPTIMIZER', 'START_SIZE', 'IMG_SIZE', 'BATCH_SIZE', 'LR', 'AUGMENTATION')  # each may need those before it
UPDATING = 0.8    # of the time: the rest is for reading, validating and saving


def choose_settings(cfg: Settings, provenance: Provenance, train_set: ImageFolder, saved: dict | None) -> Settings:
    """The settings with numbers for 'auto', in a resumed run those of `saved`; each is printed with its reason."""
    choices = Choices(cfg, provenance, train_set)
    for name in ORDER:
        if getattr(cfg, name) == 'auto':
            value, reason = (saved['settings'][name], 'as before') if saved else getattr(choices, name.lower())()
            print(f"{name} = 'auto': {f'{value:.3g}' if isinstance(value, (int, float)) else value}, {reason}")
            choices.cfg = Settings(**{**vars(choices.cfg), name: value})
    return choices.cfg


class Choices:
    """A method for each setting that can be 'auto': (its value, the reason)."""

    def __init__(self, cfg: Settings, provenance: Provenance, train_set: ImageFolder) -> None:
        self.cfg, self.provenance, self.train_set = cfg, provenance, train_set

    def optimizer(self) -> tuple[str, str]:
        if not self.provenance.from_scratch:
            return 'adamw', TRAINED
        if self.cfg.MODEL not in VARIANTS:
            return 'adamw', f'{self.cfg.MODEL} is no VOLO'
        if (pictures := len(self.train_set)) < ENOUGH:
            return 'adamw', f'{pictures} training pictures are fewer than {ENOUGH}'
        return 'muon', f'training from scratch on {ENOUGH} pictures or more'

    def batch_size(self) -> tuple[int, str]:
        usual, many, more = (32, ENOUGH, 128) if self.cfg.OPTIMIZER == 'muon' else (16, MANY, 64)
        pictures = len(self.train_set)
        if pictures < usual:
            batch, reason = max(2, pictures // 2 * 2), f'{pictures} training pictures, in pairs'
        elif pictures < many:
            batch, reason = usual, f'{pictures} training pictures are fewer than {many}'
        else:
            batch, reason = more, f'{pictures} training pictures are {many} or more'
        fitting = largest_batch(Settings(**{**vars(self.cfg), 'BATCH_SIZE': batch}), self.train_set.classes)
        return fitting, reason if fitting == batch else f'{reason}, and {batch} need too much of the free memory'

    def lr(self) -> tuple[float, str]:
        images = self.cfg.BATCH_SIZE * self.cfg.ACCUMULATE_STEPS
        base, whose = (6e-4, "Muon's 6e-4") if self.cfg.OPTIMIZER == 'muon' else (1e-4, "the tutorial's 1e-4")
        return base * math.sqrt(images / 16), f'{whose} for 16 pictures in an update, times √({images}/16)'

    def start_size(self) -> tuple[float, str]:
        if has_fixed_size(self.cfg.MODEL):
            return 1., f'{self.cfg.MODEL} takes images of one size'
        return (0.5, 'training from scratch') if self.provenance.from_scratch else (1., TRAINED)

    def img_size(self) -> tuple[Size, str]:
        """The largest images of which the run can see enough in its TIME_BUDGET."""
        usual = USUAL, USUAL
        if not self.cfg.TIME_BUDGET or has_fixed_size(self.cfg.MODEL):
            return usual, 'as published'
        if not self.provenance.from_scratch:
            return usual, TRAINED
        wanted = {side: images_wanted(side, len(self.train_set)) for side in SIDES}
        side = max((side for side, images in wanted.items()
                    if images * mean_pixels((side, side), self.cfg.START_SIZE) <= self.pixels), default=SIDES[0])
        images = round(wanted[side], -3)
        return (side, side), f'so that {self.cfg.TIME_BUDGET:g} minutes are enough for about {images} images'

    def augmentation(self) -> tuple[float, str]:
        passes = self.cfg.EPOCHS
        if self.cfg.TIME_BUDGET:
            passes = self.pixels / (len(self.train_set) * mean_pixels(self.cfg.IMG_SIZE, self.cfg.START_SIZE))
        return min(1., passes / FULL), f'about {passes:.3g} passes over the training set, of {FULL} for all of it'

    @functools.cached_property
    def pixels(self) -> float:
        """How many pixels of images can be trained on in the TIME_BUDGET, about."""
        cfg = self.cfg
        if cfg.IMG_SIZE == 'auto':
            cfg = Settings(**{**vars(cfg), 'IMG_SIZE': (PROBE, PROBE)})
        if cfg.BATCH_SIZE == 'auto':
            batch, _ = Choices(cfg, self.provenance, self.train_set).batch_size()
            cfg = Settings(**{**vars(cfg), 'BATCH_SIZE': batch})
        return UPDATING * 60 * self.cfg.TIME_BUDGET * training_speed(cfg, self.train_set.classes)


def images_wanted(side: int, pictures: int) -> int:
    """The images of that side that a run from scratch on so many pictures should see before larger ones pay.

    From four runs on 2,821 photographs, of one seed each: with 0.47 PFLOP 18 passes at 160 pixels were better than 9 at
    224, with 0.15 PFLOP 9 at 128 better than 17 at 96.
    """
    return max(SEEN, round(PASSES * (side / 128) ** 3 * pictures))


def mean_pixels(size: Size, start: float) -> float:
    """Of an image, on average over the stages of a plan: each has the same share of the compute."""
    return statistics.harmonic_mean([math.prod(size) for _, size in make_stages(size, start)])
