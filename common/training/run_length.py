"""How long a run is: a plan of its updates, a clock that measures them, and TIME_BUDGET, which fits the plan to it."""
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from common.data.loaders import Data
from common.evaluation.validate import has_statistics
from common.runtime.console import format_duration
from common.runtime.processes import from_first, largest
from common.training.mixup import keep_targets
from common.training.optimizer import can_skip
from models import VOLO

FORWARD_SHARE = 1 / 3      # cost of a forward pass, as a fraction of a training step
STEM_SHARE = 1 / 6         # cost of a VOLO's stem, which BatchNorm is measured with, as a fraction of its forward pass
VALIDATION_SHARE = 0.2     # VALIDATE_EVERY = 'auto': time of validation, as a fraction of the time of training
RECENT = 100               # updates that tell how long others take: other programs may come and go
RARE = 2                   # of those, whose length need not be typical: a laptop was closed, a disk was asleep
STALL = 10                 # times as long as most updates, which even a rare one may take and still count as it is
RECENT_VALIDATIONS = 5     # validations that tell how long others take
REHEARSAL_SECONDS = 4      # for which blank updates are timed before a run with TIME_BUDGET, after a first one


@dataclass
class Plan:
    """The length of a run in updates, which are counted from 1 in the whole run.

    With TIME_BUDGET the length is revised on the way: the share of the run that is over stays what it is, and grows
    from there at another pace.
    """
    updates: int                 # of the whole run
    updates_per_epoch: int
    validate_every: int          # epochs
    validation: float            # cost of one validation, in updates
    revised_at: int = 0          # the update after which the length was last revised
    revised_share: float = 0.    # the share of the run that was over at that update

    def share(self, number: int) -> float:
        """Return the share of the run that is over after update `number`, from 0 to 1."""
        left = (number - self.revised_at) / max(1, self.updates - self.revised_at)
        return min(1., self.revised_share + (1 - self.revised_share) * left)

    @property
    def epochs(self) -> int:
        """Number of epochs; the last may be partial."""
        return math.ceil(self.updates / self.updates_per_epoch)

    def updates_in(self, epoch: int) -> int:
        """Return the number of updates in an epoch, counted from 0."""
        return min(self.updates_per_epoch, self.updates - epoch * self.updates_per_epoch)

    def validates(self, epoch: int) -> bool:
        """Return whether the epoch, counted from 0, ends with a validation: every so many do, and the last."""
        return (epoch + 1) % self.validate_every == 0 or epoch + 1 >= self.epochs

    def revise(self, number: int, updates_left: int) -> None:
        """Let the run end `updates_left` updates after update `number`, but not before the next one."""
        self.revised_share = self.share(number)
        self.revised_at = number
        self.updates = number + max(1, updates_left)

    def end_after(self, number: int) -> None:
        """Let the run end with update `number`."""
        self.updates = number


def make_plan(epochs: int, updates_per_epoch: int, validation: float, validate_every: int | str) -> Plan:
    """Return the plan that EPOCHS and VALIDATE_EVERY ask for. `validation` is the cost of one, in updates."""
    if validate_every == 'auto':
        validate_every = max(1, math.ceil(validation / (VALIDATION_SHARE * updates_per_epoch)))
    return Plan(epochs * updates_per_epoch, updates_per_epoch, validate_every, validation)


def validation_cost(net: nn.Module, val_batches: int, plain_batches: int, use_ema: bool,
                    accumulate_steps: int) -> float:
    """Return the cost of a validation in updates: a forward pass of each network, of which there are two with EMA, over
    the validation set, and of the part with BatchNorm over the images that its statistics are measured with.
    """
    batches = largest(val_batches)
    if any(map(has_statistics, net.modules())):
        batches += (STEM_SHARE if isinstance(net, VOLO) else 1) * plain_batches
    nets = 2 if use_ema else 1
    return FORWARD_SHARE * nets * batches / accumulate_steps


class Clock:
    """Measures updates and validations. `elapsed` is the time of the run so far in seconds, earlier parts included."""

    def __init__(self, elapsed: float = 0.):
        self.started = time.perf_counter() - elapsed
        self.validations: deque[float] = deque(maxlen=RECENT_VALIDATIONS)  # seconds
        self.count = 0
        self.recent: deque[float] = deque(maxlen=RECENT)  # seconds

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    @property
    def ready(self) -> bool:
        """Whether an update was measured: the first one does not count, since it starts workers and chooses kernels."""
        return self.count > 1

    def add(self, seconds: float) -> None:
        """Note what an update took."""
        if self.count:
            self.recent.append(seconds)
        self.count += 1

    def add_validation(self, seconds: float) -> None:
        """Note what a validation took, with its tables and plots."""
        self.validations.append(seconds)

    @property
    def update_seconds(self) -> float:
        """Seconds of an update, the mean of recent ones. The clock must be ready.

        A rare one that takes far longer is a pause of the machine, which has cost its time once and does not tell how
        long others take. What is slow again and again, such as the first update of each epoch, counts as it is.
        """
        ordered = sorted(self.recent)
        rare = RARE if len(ordered) > 2 * RARE else 1
        longest_usual = ordered[max(0, len(ordered) - 1 - rare)]
        longest = max(longest_usual, STALL * statistics.median_low(ordered))
        return statistics.fmean(min(seconds, longest) for seconds in ordered)

    def validation_seconds(self, plan: Plan) -> float:
        """Return what a validation takes: as long as most of the last ones, or before the first what its cost says.

        The first alone may have fallen into a pause of the machine, and is believed up to a limit.
        """
        expected = plan.validation * self.update_seconds
        if not self.validations:
            return expected
        seconds = statistics.median_low(self.validations)
        if len(self.validations) == 1 and plan.validation:
            return min(seconds, STALL * expected)
        return seconds

    def pace(self, plan: Plan) -> float:
        """Return the seconds of an update with its share of the validations. The clock must be ready."""
        return self.update_seconds + self.validation_seconds(plan) / (plan.validate_every * plan.updates_per_epoch)

    def seconds_left(self, plan: Plan, number: int) -> float | None:
        """Return the seconds until the end of the run after update `number`; None while nothing is known."""
        if number >= plan.updates:
            return 0.
        if not self.ready:
            return None
        seconds = self.pace(plan) * (plan.updates - number)
        ends_between_validations = plan.updates % (plan.validate_every * plan.updates_per_epoch) > 0
        if ends_between_validations:
            seconds += self.validation_seconds(plan)
        return seconds

    def updates_in(self, seconds: float, plan: Plan) -> int:
        """Return the number of updates that fit into the seconds, with a validation at the end."""
        return math.floor((seconds - self.validation_seconds(plan)) / self.pace(plan))


# ---- TIME_BUDGET -----------------------------------------------------------------------------------------------------

class BlankBatch(NamedTuple):
    """Images (B, 3, H, W) and targets (B, classes) of zeros, as many as this process has of a batch."""
    images: torch.Tensor
    targets: torch.Tensor


def blank_batch(data: Data, device: torch.device) -> BlankBatch:
    """Return a blank batch on the device, of the size that those of `data` have."""
    rows = len(data.own_rows)
    return BlankBatch(torch.zeros(rows, 3, *data.train_size, device=device),
                      torch.zeros(rows, len(data.classes), device=device))


def rehearse(clock: Clock, model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor,
             targets: torch.Tensor, accumulate_steps: int, teach: Callable = keep_targets) -> None:
    """Tell the clock what updates take, from blank images (B, 3, H, W) and targets (B, classes) on the device of the
    model, which returns logits and losses; `teach` is as in TrainState. The updates leave no trace in the network.
    """
    buffers = [buffer.clone() for buffer in model.buffers()]
    model.train()
    end = None
    going_on = True
    with torch.random.fork_rng():
        while going_on:
            start = time.perf_counter()
            for _ in range(accumulate_steps):
                _, losses = model(images, teach(images, targets))
                losses.mean().backward()
            if can_skip(optimizer, images.device):
                optimizer.found_inf = torch.ones((), device=images.device)  # it works and changes nothing
                optimizer.step()
            if images.device.type != 'cpu':
                torch.accelerator.synchronize()
            now = time.perf_counter()
            clock.add(now - start)
            if end is None:  # the first update may take as long as ten others
                end = now + REHEARSAL_SECONDS
            going_on = bool(largest(now < end or not clock.ready))
    model.zero_grad()
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)


def seconds_left_of(minutes: float, clock: Clock) -> float:
    """Return the seconds that are left of a TIME_BUDGET."""
    return 60 * minutes - clock.elapsed


def earlier_plan(saved: dict, plan: Plan, minutes: float) -> Plan | None:
    """Return the plan of a checkpoint if the run goes on with the same TIME_BUDGET and epochs, else None."""
    earlier = Plan(**saved['plan'])
    if saved['settings']['TIME_BUDGET'] != minutes or earlier.updates_per_epoch != plan.updates_per_epoch:
        return None
    return replace(earlier, validate_every=plan.validate_every)


def fit_time_budget(plan: Plan, minutes: float, clock: Clock, saved: dict | None, rehearse: Callable) -> Plan:
    """Return the plan with as many updates as TIME_BUDGET's minutes are enough for, in a resumed run those of `saved`.

    `rehearse` tells the clock what updates take, where that is not known.
    """
    number = 0
    if saved:
        earlier = earlier_plan(saved, plan, minutes)
        if earlier:
            return earlier
        number = len(saved['history']) * plan.updates_per_epoch + saved['progress']['updates']
        share = from_first(min(1., clock.elapsed / (60 * minutes)))
        plan = replace(plan, revised_at=number, revised_share=share)
    rehearse()
    seconds = seconds_left_of(minutes, clock)
    plan.revise(number, from_first(clock.updates_in(seconds, plan)))
    if seconds <= 0:
        print(f'TIME_BUDGET = {minutes:g} minutes were over before training began, after '
              f'{format_duration(clock.elapsed)}: one update and a validation follow; raise it for more')
        return plan
    epochs = (plan.updates - number) / plan.updates_per_epoch
    print(f'TIME_BUDGET: {format_duration(seconds)} are left, an update takes about {clock.pace(plan):.2g} s: '
          f'{epochs:.3g} epochs, to be adjusted on the way')
    return plan


def revise(plan: Plan, minutes: float, clock: Clock, number: int) -> None:
    """Let the run end when TIME_BUDGET does, by what updates took lately; `number` updates are over."""
    if clock.ready and number < plan.updates:
        plan.revise(number, from_first(clock.updates_in(seconds_left_of(minutes, clock), plan)))
