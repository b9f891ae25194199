"""Random numbers of training that follow from the seed and the number of the batch, and from nothing before it."""
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import AverageMeter, ModelEmaV3, random_seed
from torch import nn

from common.evaluation.suspects import Margins
from common.training.plan import Plan, Size
from common.training.schedule import Clock
from common.training.setup import Provenance


def seed_batch(seed: int, update: int, batch: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators for Mixup, boxes of tokens, stochastic depth and dropout of a
    batch, by its number within its update, and that of the update within the run.

    A run that was interrupted, or is shared by several processes, thus draws the same numbers as one that was not.
    """
    random_seed(int(np.random.SeedSequence([seed, update, batch]).generate_state(1)[0]))


# What a training run consists of, and how it goes into a checkpoint and comes back, to the bit

@dataclass
class Update:
    """One step of the optimizer: what it was made of and what became of it."""
    number: int              # counted from 1 in the whole run
    size: Size               # (height, width) of its images
    loss: float              # the mean over its images
    norm: float              # of the gradient, before clipping
    finite: bool             # whether loss and norm are; otherwise it was skipped
    images: int
    unmixed: int             # images whose label is no mixture, the only ones that the accuracy counts
    correct: int             # of those, the ones that were classified correctly
    waited: float            # seconds for the data loader
    seconds: float           # in all


@dataclass
class Progress:
    """How far an epoch has come, and the sums that its row of the log is made of."""
    updates: int = 0
    images: int = 0
    skipped: int = 0         # updates without a finite loss and gradient
    skipped_in_row: int = 0
    waited: float = 0.       # seconds for the data loader
    seconds: float = 0.
    flop: float = 0.         # floating-point operations, as far as they are known
    losses: AverageMeter = field(default_factory=AverageMeter)
    acc1: AverageMeter = field(default_factory=AverageMeter)
    norms: AverageMeter = field(default_factory=AverageMeter)

    def add(self, update: Update, flop: float) -> None:
        self.updates += 1
        self.images += update.images
        self.flop += flop
        self.waited += update.waited
        self.seconds += update.seconds
        if update.finite:
            self.losses.update(update.loss, update.images)
            self.norms.update(update.norm)
            if update.unmixed:
                self.acc1.update(100 * update.correct / update.unmixed, update.unmixed)

    def as_dict(self) -> dict:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: vars(value) if isinstance(value, AverageMeter) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, saved: dict) -> 'Progress':
        """Raises TypeError or AttributeError for what as_dict cannot have made."""
        progress = cls(**saved)
        for name in ('losses', 'acc1', 'norms'):
            meter = AverageMeter()
            vars(meter).update(getattr(progress, name))
            setattr(progress, name, meter)
        return progress


@dataclass
class TrainState:
    """Everything that an update reads or changes."""
    net: nn.Module                   # the network itself, on its device
    model: nn.Module                 # the network in autocast, with several GPUs in DataParallel
    loss_model: nn.Module            # `model`, or `model` compiled: (images, targets) -> (logits, losses)
    mix: Callable                    # (images, labels) -> (images, targets (B, classes))
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    ema_model: nn.Module | None      # as `model`, of the averaged weights
    device: torch.device
    amp_dtype: torch.dtype | None    # None: fp32
    image_flop: dict[Size, float]    # operations to train on an image of each size, as far as they are known
    optimizer_flop: float            # those of the optimizer in an update
    plan: Plan
    clock: Clock
    frozen_epochs: int               # in which only the heads learn
    lr_scale: float                  # 0.1 after the run went back to an earlier save, else 1
    model_kwargs: dict
    provenance: Provenance
    margins: Margins
    progress: Progress = field(default_factory=Progress)

    @property
    def learning_rate(self) -> float:
        """The head's: with LAYER_DECAY the largest."""
        return max(group['lr'] for group in self.optimizer.param_groups)

    def update_flop(self, size: Size, images: int) -> float:
        """Operations of an update with so many images of that size, 0 where they are not known."""
        return images * self.image_flop[size] + self.optimizer_flop if size in self.image_flop else 0.

    def state_dict(self) -> dict:
        """What a resumed run needs besides the settings, as plain values and tensors."""
        return {'state_dict': self.net.state_dict(), 'state_dict_ema': self.ema and self.ema.module.state_dict(),
                'optimizer': self.optimizer.state_dict(), 'scheduler': self.scheduler.state_dict(),
                'scaler': self.scaler.state_dict(), 'lr_scale': self.lr_scale, 'progress': self.progress.as_dict(),
                'plan': vars(self.plan), 'elapsed': self.clock.elapsed, 'margins': vars(self.margins)}

    def load_state_dict(self, saved: dict) -> None:
        """Go back to where state_dict() was called, after len(saved['history']) epochs and what saved['progress'] says.

        Learning rate, betas and weight decay stay as the settings have them now; the schedule follows from the plan
        and the number of the update.
        """
        self.net.load_state_dict(saved['state_dict'])
        if self.ema:
            self.ema.module.load_state_dict(saved['state_dict_ema'])
        groups = self.optimizer.param_groups
        current = [{name: group[name] for name in ('lr', 'initial_lr', 'betas', 'weight_decay') if name in group}
                   for group in groups]
        self.optimizer.load_state_dict(saved['optimizer'])
        for group, values in zip(self.optimizer.param_groups, current, strict=True):
            group.update(values)
        self.progress = Progress.from_dict(saved['progress'])
        if 'margins' in saved:  # else it is of an earlier version
            self.margins.load(saved['margins'])
        done = len(saved['history']) * self.plan.updates_per_epoch + self.progress.updates
        self.scheduler.step_update(100 * self.plan.compute_share(done))
        if saved['scaler']:  # empty where the run had no float16 so far
            self.scaler.load_state_dict(saved['scaler'])
