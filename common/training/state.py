"""The state of a training run."""
import random

import numpy as np
import torch
from timm.utils import AverageMeter


def training_state(run):
    """What a resumed run needs besides the settings. `run` has net, ema, optimizer, scheduler, scaler and progress."""
    gradients = [parameter.grad for parameter in run.net.parameters()]  # all None unless batches are accumulated
    return {'state_dict': run.net.state_dict(), 'state_dict_ema': run.ema and run.ema.module.state_dict(),
            'optimizer': run.optimizer.state_dict(), 'scheduler': run.scheduler.state_dict(),
            'scaler': run.scaler.state_dict(), 'gradients': gradients, 'lr_scale': run.lr_scale,
            'progress': run.progress.as_dict(), 'random': random_states()}


def restore_training_state(run, saved):
    """Put a run where training_state was taken. Learning rate and weight decay stay as the settings have them now.

    The scheduler is not restored: it is a function of the settings and the number of the step.
    """
    run.net.load_state_dict(saved['state_dict'])
    if run.ema:
        run.ema.module.load_state_dict(saved['state_dict_ema'])
    keep = 'lr', 'initial_lr', 'weight_decay'
    settings = [{key: group[key] for key in keep} for group in run.optimizer.param_groups]
    run.optimizer.load_state_dict(saved['optimizer'])
    for group, values in zip(run.optimizer.param_groups, settings, strict=True):
        group.update(values)
    for parameter, gradient in zip(run.net.parameters(), saved['gradients'], strict=True):
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    run.progress = Progress.from_dict(saved['progress'])
    if saved['scaler']:  # empty where the run had no float16 so far
        run.scaler.load_state_dict(saved['scaler'])
    restore_random_states(saved['random'])


class Progress:
    """How far an epoch has come: its steps (batches) so far, and the sums of which the log's row is made."""

    def __init__(self):
        self.step = self.seen = self.skipped = self.bad = 0  # bad: steps in a row whose loss was no number
        self.waited = self.seconds = 0.
        self.losses, self.acc1, self.norms = AverageMeter(), AverageMeter(), AverageMeter()

    def as_dict(self):
        return {key: vars(value) if isinstance(value, AverageMeter) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, saved):
        progress = cls()
        for key, value in saved.items():
            if isinstance(value, dict):
                vars(getattr(progress, key)).update(value)
            else:
                setattr(progress, key, value)
        return progress


def random_states():
    """The states of all random generators of this process, as plain values and tensors."""
    kind, numbers, position, has_gauss, cached = np.random.get_state()
    return {'python': random.getstate(), 'numpy': (kind, numbers.tolist(), position, has_gauss, cached),
            'torch': torch.get_rng_state(), 'cuda': torch.cuda.get_rng_state_all(),
            'mps': torch.mps.get_rng_state() if torch.backends.mps.is_available() else None}


def restore_random_states(states):
    version, numbers, gauss = states['python']
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(states['numpy']))
    torch.set_rng_state(states['torch'])
    if len(states['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states['cuda'])
    if states['mps'] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states['mps'])
