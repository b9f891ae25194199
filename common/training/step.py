"""One update of the weights: its batches, a guarded step of the optimizer, its result, the state that it changes."""
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import AverageMeter, ModelEmaV3, random_seed
from torch import nn
from torch.utils.data import DataLoader

from common.data.loaders import TimedBatches
from common.evaluation.suspects import Margins
from common.runtime.processes import LAUNCHED, add_up
from common.training.optimizer import can_skip, optimizer_flop
from common.training.run_length import Clock, Plan

# ---- the state -------------------------------------------------------------------------------------------------------

@dataclass
class Update:
    """What became of one step of the optimizer."""
    loss: float              # the mean over its images
    norm: float              # of the gradient, before clipping
    finite: bool             # whether the norm is; otherwise the update was skipped
    images: int
    unmixed: int             # images whose label is not a mixture, the only ones that the accuracy counts
    correct: int             # images among those that were classified correctly
    margins: torch.Tensor    # (images, 3), see UpdateMeter


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

    def add(self, update: Update, flop: float, seconds: float, waited: float) -> None:
        """Count an update that took `seconds`, for `waited` of which it waited for the data loader."""
        self.updates += 1
        self.images += update.images
        self.flop += flop
        self.waited += waited
        self.seconds += seconds
        if not update.finite:
            return
        self.losses.update(update.loss, update.images)
        self.norms.update(update.norm)
        if update.unmixed:
            self.acc1.update(100 * update.correct / update.unmixed, update.unmixed)

    def as_dict(self) -> dict:
        """Return plain values, for a checkpoint."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: vars(value) if isinstance(value, AverageMeter) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, saved: dict) -> 'Progress':
        """Return what as_dict was called on. Raises TypeError or AttributeError for what as_dict cannot have made."""
        progress = cls(**saved)
        for name in ('losses', 'acc1', 'norms'):
            meter = AverageMeter()
            vars(meter).update(getattr(progress, name))
            setattr(progress, name, meter)
        return progress


@dataclass
class TrainState:
    """What an update reads or changes; a checkpoint holds what a resumed run needs of it."""
    net: nn.Module                   # the network itself, on its device
    model: nn.Module                 # (images, targets) -> (logits, losses): LossModel, perhaps in DataParallel
    mix: Callable                    # (images, labels) -> (images, targets (B, classes))
    teach: Callable                  # (images, targets) -> targets: TEACHER's in their place
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler             # in percent of the run
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    device: torch.device
    amp_dtype: torch.dtype | None    # None: fp32
    plan: Plan
    clock: Clock
    margins: Margins
    image_flop: float | None         # floating-point operations to train on one image; None: unknown
    lr_scale: float = 1.             # 0.1 after the run went back to an earlier save
    progress: Progress = field(default_factory=Progress)

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]['lr']

    def update_flop(self, images: int) -> float:
        """Return the floating-point operations of an update with so many images, 0 where they are unknown."""
        if self.image_flop is None:
            return 0.
        return images * self.image_flop + optimizer_flop(self.optimizer)

    def weights(self) -> dict[str, nn.Module]:
        """Return {'raw': the network, 'ema': the one with averaged weights, with USE_EMA}."""
        nets = {'raw': self.net}
        if self.ema:
            nets['ema'] = self.ema.module
        return nets

    def state_dict(self) -> dict:
        """Return what a resumed run needs besides the settings, as plain values and tensors."""
        return {
            'state_dict': self.net.state_dict(),
            'state_dict_ema': self.ema.module.state_dict() if self.ema else None,
            'optimizer': self.optimizer.state_dict(),
            'scheduler': self.scheduler.state_dict(),
            'scaler': self.scaler.state_dict(),
            'lr_scale': self.lr_scale,
            'progress': self.progress.as_dict(),
            'plan': vars(self.plan),
            'elapsed': self.clock.elapsed,
            'margins': vars(self.margins)}

    def load_state_dict(self, saved: dict) -> None:
        """Go back to where state_dict() was called, after len(saved['history']) epochs and what saved['progress'] says.

        Learning rate, betas, weight decay and what is switched on or off stay as the settings have them now; the
        schedule follows from the plan and the number of the update.
        """
        self.net.load_state_dict(saved['state_dict'])
        if self.ema:
            self.ema.module.load_state_dict(saved['state_dict_ema'])
        current = [{name: value for name, value in group.items()
                    if name in ('lr', 'initial_lr', 'betas', 'weight_decay') or isinstance(value, bool)}
                   for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(saved['optimizer'])
        for group, values in zip(self.optimizer.param_groups, current, strict=True):
            group.update(values)
        lay_out_as_parameters(self.optimizer)
        self.margins.load(saved['margins'])
        self.progress = Progress.from_dict(saved['progress'])
        if self.lr_scale != saved['lr_scale']:
            self.progress.skipped_in_row = 0  # another learning rate is another try
        done = len(saved['history']) * self.plan.updates_per_epoch + self.progress.updates
        self.scheduler.step_update(100 * self.plan.share(done))
        if saved['scaler']:  # empty where the run had no float16 so far
            self.scaler.load_state_dict(saved['scaler'])


def lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give what an optimizer knows of each parameter the parameter's layout in memory.

    Fused optimizers take that for granted. A file may have it in another: earlier versions had no channels last.
    """
    for parameter, known in optimizer.state.items():
        for name, value in known.items():
            is_alike = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if is_alike and value.stride() != parameter.stride():
                known[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


# ---- the batches of an update ----------------------------------------------------------------------------------------

def seed_batch(seed: int, update: int, place: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators for what is random in a batch after it was read: Mixup, boxes of
    tokens, stochastic depth and dropout.

    The numbers follow from the batch's place within its update and the update's number in the run, and from nothing
    before it: a run that was interrupted, or is shared by several processes, draws those of one that was not.
    """
    random_seed(int(np.random.SeedSequence([seed, update, place]).generate_state(1)[0]))


class UpdateBatches:
    """The batches (images, labels) that are left of an epoch, on the device; what follows is about the last one given.

    The epoch ends when state.progress, which is counted up after each update, has as many updates as the plan: with
    TIME_BUDGET the plan may change on the way.
    """

    def __init__(self, loader: DataLoader, state: TrainState, epoch: int, accumulate_steps: int):
        self.state = state
        self.epoch = epoch
        self.accumulate_steps = accumulate_steps
        self.batches = TimedBatches(loader, epoch, state.device, skip=state.progress.updates * accumulate_steps)
        self.batches_in_epoch = len(loader)
        self.update = 0          # number of the update that the batch is for, counted from 1 in the whole run
        self.in_update = 0       # batches of that update: ACCUMULATE_STEPS, at the end of an epoch perhaps fewer
        self.place = 0           # place of the batch among those, from 0
        self.started = 0.        # when the first of those was asked for
        self.waited_before = 0.

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        progress = self.state.progress
        plan = self.state.plan
        while progress.updates < plan.updates_in(self.epoch):
            self.started = time.perf_counter()
            self.waited_before = self.batches.seconds
            self.update = self.epoch * plan.updates_per_epoch + progress.updates + 1
            left = self.batches_in_epoch - progress.updates * self.accumulate_steps
            self.in_update = min(self.accumulate_steps, left)
            for place in range(self.in_update):
                self.place = place
                with self.sharing_gradients():
                    yield next(self.batches)

    def sharing_gradients(self) -> AbstractContextManager:
        """Let several processes exchange gradients once an update: until its last batch they stay in their process."""
        if LAUNCHED and not self.completes_update:
            return self.state.model.no_sync()
        return nullcontext()

    @property
    def completes_update(self) -> bool:
        """Whether the batch is the last one of its update."""
        return self.place + 1 == self.in_update

    @property
    def seconds(self) -> float:
        """Seconds since the update began."""
        return time.perf_counter() - self.started

    @property
    def waited(self) -> float:
        """Seconds in which the update waited for the data loader."""
        return self.batches.seconds - self.waited_before


# ---- the guarded step ------------------------------------------------------------------------------------------------

class GuardedStep:
    """A step of the optimizer that leaves no trace in network, moments and scaler where the gradient is not finite.

    To be made when the forward pass of the first update has not begun: that changes BatchNorm's buffers, which are put
    back after an update that was skipped.
    """

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                 device: torch.device):
        self.net = net
        self.optimizer = optimizer
        self.scaler = scaler
        self.skips_by_itself = can_skip(optimizer, device)
        self.buffers = self.copy_buffers()

    def copy_buffers(self) -> list[torch.Tensor]:
        return [buffer.clone() for buffer in self.net.buffers()]

    def __call__(self, norm: torch.Tensor) -> torch.Tensor:
        """Apply the gradients, whose norm was taken after unscaling, if it is finite; then delete them.

        Returns whether it was, as a tensor that nobody has looked into: so far a GPU need not be waited for.
        """
        finite = norm.isfinite()
        if self.skips_by_itself:
            self.optimizer.found_inf = 1. - finite.float()
            self.scaler.step(self.optimizer)
        elif finite:  # here a GPU is waited for
            self.scaler.step(self.optimizer)
        for buffer, before in zip(self.net.buffers(), self.buffers, strict=True):
            buffer.copy_(torch.where(finite, buffer, before))
        self.scaler.update()
        self.optimizer.zero_grad()
        self.buffers = self.copy_buffers()
        return finite


class UpdateMeter:
    """Collects what is to be known of the images of an update, on the device until it is read.

    The margin of an image is the logit of its label less that of the most probable other class. Of the `batch_size`
    images of a batch this process has `rows`.
    """

    def __init__(self, smoothing: float, batch_size: int, rows: list[int]):
        self.smoothing = smoothing
        self.batch_size = batch_size
        self.rows = rows
        self.images: list[torch.Tensor] = []  # for each batch (batch_size, 5): loss, correct, margin, guess, unmixed

    @torch.no_grad()
    def add(self, losses: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor) -> None:
        """Note a batch: losses (B,), logits (B, classes), labels (B,) and targets (B, classes) of own images."""
        unmixed = targets.amax(1) >= 1 - self.smoothing  # mixed with another class a label says little
        correct = unmixed & (logits.argmax(1) == labels)
        other, guess = logits.scatter(1, labels[:, None], -math.inf).max(1)
        margin = logits.gather(1, labels[:, None])[:, 0] - other
        found = torch.stack([losses.detach(), correct, margin, guess, unmixed], 1)
        if len(self.rows) < self.batch_size:  # only then, since a GPU is waited for as it gets the numbers of the rows
            rows = torch.tensor(self.rows).to(found.device)
            found = found.new_zeros(self.batch_size, 5).index_copy(0, rows, found)
        self.images.append(found)

    def read(self, norm: torch.Tensor, finite: torch.Tensor) -> Update:
        """Return what became of an update, and begin the next one. Here a GPU is waited for."""
        found = add_up(torch.cat(self.images)).cpu().double()  # not double before: MPS has no such numbers
        self.images = []
        losses, correct, _, _, unmixed = found.T
        return Update(loss=losses.mean().item(), norm=norm.item(), finite=bool(finite), images=len(found),
                      unmixed=int(unmixed.sum()), correct=int(correct.sum()), margins=found[:, 2:])
