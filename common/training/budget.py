"""TIME_BUDGET: as many updates as its minutes are enough for on this machine, counted again on the way."""
import dataclasses
import math
import time

import torch
from torch import nn

from common.data.build import Data
from common.data.loaders import own_rows
from common.runtime.console import format_duration
from common.runtime.device import choose_amp_dtype, choose_device
from common.runtime.distributed import from_first, largest
from common.runtime.parallel import parallel
from common.settings import Settings
from common.training.batch_norm import has_statistics
from common.training.clock import Clock
from common.training.losses import choose_loss
from common.training.optimizer import build_optimizer, can_skip
from common.training.plan import Plan, make_plan
from common.training.setup import create_network
from models import VARIANTS

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
