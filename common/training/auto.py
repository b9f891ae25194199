"""Settings that are 'auto': what they become, and why."""
import functools
import math
import statistics

from common.data.datasets import ImageFolder
from common.settings import Settings
from common.training.budget import training_speed
from common.training.plan import Size, make_stages
from common.training.provenance import Provenance
from common.training.setup import largest_batch
from models import VARIANTS, has_fixed_size

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
