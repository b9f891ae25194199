"""What updates and validations take on this machine, and so what is left of a run."""
import dataclasses
import math
import time

import torch
from torch import nn

from common.data.loaders import Data, own_rows
from common.evaluation.validate import has_statistics
from common.runtime.console import format_duration
from common.runtime.device import choose_amp_dtype, choose_device, parallel
from common.runtime.processes import from_first, largest
from common.settings import Settings
from common.training.losses import choose_loss
from common.training.optimizer import build_optimizer, can_skip
from common.training.plan import Plan, Size, make_plan
from common.training.setup import create_network
from models import VARIANTS

MEMORY = 0.98  # weight of all earlier updates beside the newest: other programs may come and go


class Clock:
    """Measures; `elapsed` is the time of the run so far in seconds, before an interruption too."""

    def __init__(self, elapsed: float = 0.):
        self.started = time.perf_counter() - elapsed
        self.measured: dict[Size, tuple[float, float, int]] = {}  # weighted seconds, weights, number of updates
        self.validation: tuple[Size, float] | None = None  # the last one: size of its images, seconds

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    @property
    def ready(self) -> bool:
        """Whether an update has been measured: the second of some size."""
        return any(weight for _, weight, _ in self.measured.values())

    def add_validation(self, size: Size, seconds: float) -> None:
        """Note what a validation with images of that size took."""
        self.validation = size, seconds

    def restart(self) -> None:
        """Forget the updates so far: those of the head alone do not tell how long the others take."""
        self.measured.clear()

    def add(self, size: Size, seconds: float) -> None:
        """Note what an update with images of that size took."""
        total, weight, count = self.measured.get(size, (0., 0., 0))
        if count:  # the first one starts workers and chooses kernels
            total, weight = MEMORY * total + seconds, MEMORY * weight + 1
        self.measured[size] = total, weight, count + 1

    def count(self, size: Size) -> int:
        """The number of updates with images of that size so far."""
        return self.measured[size][2] if size in self.measured else 0

    def update_seconds(self, size: Size) -> float:
        """What an update takes with images of that size, by the nearest size that was measured; the clock is ready."""
        known = {other: total / weight for other, (total, weight, _) in self.measured.items() if weight}
        nearest = min(known, key=lambda other: abs(math.log(math.prod(other) / math.prod(size))))
        return known[nearest] * math.prod(size) / math.prod(nearest)

    def pace(self, plan: Plan, number: int) -> tuple[float, float]:
        """(seconds of an update on average after update `number`, with its share of the validations; of a validation),
        when the clock is ready.
        """
        largest = plan.stages[-1][1]
        validation = plan.validation * self.update_seconds(largest)
        if self.validation:
            size, seconds = self.validation  # with tables and pictures, which take the same with images of any size
            validation += seconds - plan.validation * self.update_seconds(size)
        update = sum(share * self.update_seconds(size) for size, share in plan.to_come(number))
        return update + validation / (plan.validate_every * plan.updates_per_epoch), validation

    def seconds_left(self, plan: Plan, number: int) -> float | None:
        """Until the end of a run, after update `number`; None while nothing is known."""
        if number >= plan.updates:
            return 0.
        if not self.ready:
            return None
        update, validation = self.pace(plan, number)
        last = plan.updates % (plan.validate_every * plan.updates_per_epoch) > 0  # one more, at the end
        return update * (plan.updates - number) + last * validation

    def updates_in(self, seconds: float, plan: Plan, number: int) -> int:
        """The number of updates after update `number` that the seconds are enough for, with a validation at the end."""
        update, validation = self.pace(plan, number)
        return math.floor((seconds - validation) / update)


# TIME_BUDGET: as many updates as its minutes are enough for on this machine, counted again on the way

SECONDS = 4      # to try each image size for
STEM = 1 / 6     # of a VOLO's forward pass: all of it that BatchNorm is measured with


def build_plan(cfg: Settings, data: Data, clock: Clock, model: nn.Module, optimizer: torch.optim.Optimizer,
               targets: torch.Tensor, saved: dict | None) -> Plan:
    """The plan of a run, as it was saved or new. With TIME_BUDGET the clock first learns what an update takes.

    `model` is one of common.runtime.parallel with a loss, `targets` are of the shape that this process's rows of a
    batch have, (B, classes).
    """
    share = any(map(has_statistics, model.modules())) * (STEM if cfg.MODEL in VARIANTS else 1)
    plan = make_plan(cfg, len(data.train), largest(len(data.val)) + share * len(data.plain))
    if not cfg.TIME_BUDGET:
        return plan
    number = 0
    if saved:
        old = Plan(**saved['plan'])
        number = len(saved['history']) * plan.updates_per_epoch + saved['progress']['updates']
        if saved['settings']['TIME_BUDGET'] == cfg.TIME_BUDGET and old.updates_per_epoch == plan.updates_per_epoch:
            return dataclasses.replace(old, stages=plan.stages, validate_every=plan.validate_every)
        plan.revised_at, plan.revised_share = number, from_first(min(1., clock.elapsed / (60 * cfg.TIME_BUDGET)))
    rehearse(cfg, clock, model, optimizer, targets, plan)
    plan.revise(number, from_first(clock.updates_in(60 * cfg.TIME_BUDGET - clock.elapsed, plan, number)))
    print(f'TIME_BUDGET: {format_duration(60 * cfg.TIME_BUDGET - clock.elapsed)} are left, an update takes about '
          f'{clock.pace(plan, number)[0]:.2g} s: {(plan.updates - number) / plan.updates_per_epoch:.3g} epochs, to be '
          'adjusted on the way')
    return plan


def revise(cfg: Settings, plan: Plan, clock: Clock, number: int) -> None:
    """Let the run end when TIME_BUDGET does, by what updates took lately; `number` updates are over."""
    if clock.ready and number < plan.updates:
        seconds = 60 * cfg.TIME_BUDGET - clock.elapsed
        plan.revise(number, from_first(clock.updates_in(seconds, plan, number)))


def training_speed(cfg: Settings, classes: list[str]) -> float:
    """Pixels of images in a second of training, tried with blank ones on a network that is thrown away."""
    with torch.random.fork_rng():
        net, kwargs = create_network(cfg, classes, cfg.IMG_SIZE, 0.)
    device = choose_device(cfg.USE_GPU)
    amp_dtype = choose_amp_dtype(device) if cfg.USE_AMP else None
    optimizer = build_optimizer(cfg, net.to(device), 1., amp_dtype)  # its updates are skipped
    model = parallel(net, device, amp_dtype, cfg.USE_DP, choose_loss(cfg, kwargs))
    clock, targets = Clock(), torch.zeros(len(own_rows(cfg.BATCH_SIZE)), len(classes), device=device)
    rehearse(cfg, clock, model, optimizer, targets, Plan(1, [(1., cfg.IMG_SIZE)], 1, 1, 0.))
    return cfg.BATCH_SIZE * cfg.ACCUMULATE_STEPS * math.prod(cfg.IMG_SIZE) / clock.update_seconds(cfg.IMG_SIZE)


def rehearse(cfg: Settings, clock: Clock, model: nn.Module, optimizer: torch.optim.Optimizer, targets: torch.Tensor,
             plan: Plan) -> None:
    """Tell the clock what updates take, from blank images. They leave no trace in the network."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.random.fork_rng():
        for size, _ in plan.to_come(plan.revised_at):
            model.train()
            images, end = torch.zeros(len(targets), 3, *size, device=targets.device), time.perf_counter() + SECONDS
            while largest(time.perf_counter() < end or clock.count(size) < 2):
                start = time.perf_counter()
                for _ in range(cfg.ACCUMULATE_STEPS):
                    model(images, targets)[1].mean().backward()
                if can_skip(cfg, images.device):
                    optimizer.found_inf = torch.ones((), device=targets.device)  # it works and changes nothing
                    optimizer.step()
                if images.device.type != 'cpu':
                    torch.accelerator.synchronize()
                clock.add(size, time.perf_counter() - start)
            model.zero_grad()
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
