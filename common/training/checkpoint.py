"""Checkpoints: plain dicts of tensors and values, written aside, moved into place, read without running anything."""
import contextlib
import os
import random
import zipfile

import numpy as np
import torch
from timm.utils import AverageMeter

from common.runtime.files import replacing
from common.settings import UserError
from models import WeightsError
from models.weights import read_file

_RESUMED = ('settings', 'classes', 'files', 'transform', 'history', 'pretrained', 'progress', 'state_dict', 'lr_scale',
            'optimizer', 'gradients', 'scaler', 'random')
FORMAT = 2  # of the checkpoint's content; raised when an older test.py could no longer read it


def save(path, content):
    """Write a dict so that `path` holds, at every moment, either the old content whole or the new."""
    with replacing(path) as aside, open(aside, 'wb') as file:
        try:
            torch.save({'format': FORMAT, **content}, file)
        except RuntimeError as error:  # how torch's zip writer reports a full disk
            raise OSError(error) from error
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder):
    """Have the disk take note of files that were moved. Windows does that by itself, some file systems cannot."""
    if os.name == 'posix':
        handle = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fsync(handle)
        os.close(handle)


def load(path):
    """A checkpoint's content. Raises UserError for a file that is missing, damaged or something else."""
    try:
        content = read_file(path)
    except WeightsError as error:
        raise UserError(f'{error}: run train.py first, or name one of its checkpoints') from None
    if not is_checkpoint(content):
        raise UserError(f'{path}: not a checkpoint of train.py')
    if content['format'] != FORMAT:
        raise UserError(f'{path}: written by another version of this project (its format is {content["format"]}, this '
                        f'one reads {FORMAT}): use that version')
    return content


def save_last(folder, content):
    """Save last.pth, and keep the one before as last_before.pth."""
    last, before, new = (folder / name for name in ('last.pth', 'last_before.pth', 'last_new.pth'))
    save(new, content)
    if last.exists():
        os.replace(last, before)
    os.replace(new, last)
    sync_folder(folder)


def load_last(folder):
    """The content of last.pth, or of the save before it where last.pth is missing or damaged.

    Every byte is checked against the checksums that PyTorch's files have. Raises UserError where neither is whole.
    """
    last, before = folder / 'last.pth', folder / 'last_before.pth'
    for path in (last, before):
        if is_whole(path):
            if path == before:
                print(f'{last} is missing or damaged: going on from the save before it, {before}')
            return complete(load(path), path)
    return complete(load(last), last)  # load says what is wrong with it


def complete(saved, path):
    missing = [key for key in _RESUMED if key not in saved]
    if missing:
        raise UserError(f'RESUME: {path} has no {", ".join(missing)}: it is no last.pth, or one of an older version of '
                        'this project')
    return saved


def is_whole(path):
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # zipfile's errors on a damaged file are of a dozen types, struct.error and zlib.error among them
        return False


def is_checkpoint(content):
    return isinstance(content, dict) and isinstance(content.get('format'), int)


def set_aside(folder):
    """Rename the checkpoints of the run before to previous_*.pth; those of the run before that are overwritten.

    Nothing is kept of a run without a single step.
    """
    if (folder / 'last_before.pth').exists() and not (folder / 'last.pth').exists():  # killed between two moves
        os.replace(folder / 'last_before.pth', folder / 'last.pth')
    for name in ('last_before.pth', 'last_new.pth', '.last_new.pth.tmp'):  # the latter two of a run that was killed
        (folder / name).unlink(missing_ok=True)
    if not (folder / 'best.pth').exists() and not has_steps(folder / 'last.pth'):
        (folder / 'last.pth').unlink(missing_ok=True)
    for name in ('best.pth', 'last.pth'):
        if (folder / name).exists():
            os.replace(folder / name, folder / f'previous_{name}')
            print(f'{folder / name} of an earlier run is now previous_{name}')


def has_steps(path):
    try:
        return load(path)['progress']['step'] > 0
    except (UserError, KeyError, TypeError):  # none, or damaged
        return False


def check_resume(cfg, data, saved, out):
    """Refuse settings that would make another run of the saved one, and list the others that changed."""
    before = saved['settings']
    for name in ('MODEL', 'MODEL_KWARGS', 'IMG_SIZE', 'USE_EMA', 'TOKEN_LABEL', 'LAYER_DECAY'):
        if before[name] != getattr(cfg, name):
            raise UserError(f'RESUME: {out}/last.pth was trained with {name} = {before[name]!r}: '
                            'set it back, or choose another OUTPUT_DIR')
    if saved['classes'] != data.classes:
        raise UserError(f'RESUME: {out}/last.pth was trained on other classes: choose another OUTPUT_DIR')
    if saved['files'] != data.files:
        raise UserError(f'RESUME: {out}/last.pth was trained on other pictures than DATA_DIR has now: put those '
                        'back, or choose another OUTPUT_DIR')
    if saved['progress']['step']:
        fit_progress(cfg, saved, out)
    if saved['transform'] != data.transform:
        were = ', '.join(f'{key.upper()} = {value}' for key, value in saved['transform'].items()
                         if value != data.transform[key])
        raise UserError(f'RESUME: {out}/last.pth was trained with {were}: set it so, or choose another OUTPUT_DIR')
    if len(saved['history']) >= cfg.EPOCHS:
        raise UserError(f'RESUME: {out}/last.pth has all its {len(saved["history"])} epochs behind it: '
                        'raise EPOCHS to train on')
    for name, value in vars(cfg).items():
        if before.get(name) != value and name != 'RESUME':
            print(f'resume: {name} was {before.get(name)!r}, now {value!r}')
    if saved['lr_scale'] < 1 and before['LR'] != cfg.LR:
        saved['lr_scale'] = 1.
    elif saved['lr_scale'] < 1:
        print(f'resume: the learning rate stays at {saved["lr_scale"]} of LR, after steps without a finite loss')
    step = saved['progress']['step']
    print(f'resume: {out}/last.pth, after epoch {len(saved["history"])}{f" and {step} steps" if step else ""}')


def fit_progress(cfg, saved, out):
    """Count an epoch that was stopped in the middle in batches of another size, if as many pictures make a step."""
    before, progress = saved['settings'], saved['progress']
    pictures = progress['step'] * before['BATCH_SIZE']
    group = before['BATCH_SIZE'] * before['ACCUMULATE_STEPS']
    if before['SEED'] != cfg.SEED or group != cfg.BATCH_SIZE * cfg.ACCUMULATE_STEPS or pictures % cfg.BATCH_SIZE:
        raise UserError(
            f'RESUME: {out}/last.pth stopped within an epoch that has BATCH_SIZE = {before["BATCH_SIZE"]}, '
            f'ACCUMULATE_STEPS = {before["ACCUMULATE_STEPS"]}, SEED = {before["SEED"]}: until that epoch is over, keep '
            'SEED and the product of the other two')
    progress['step'] = pictures // cfg.BATCH_SIZE


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
