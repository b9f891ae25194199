"""Checkpoints: plain dicts of tensors and values, written aside, moved into place, read without running anything.

best.pth is what test.py needs; last.pth is what a resumed run needs, last_before.pth the one before it. A resumed run
must have the settings and images of the first one; what may change is printed.
"""
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch

from common.data.loaders import Data
from common.evaluation.predictor import FORMAT, load
from common.runtime.errors import UserError
from common.runtime.files import move, replacing, sync, writing
from common.settings import Settings
from common.training.schedule import Plan
from common.training.setup import Provenance
from common.training.step import Progress

LAST_KEYS = ('settings', 'classes', 'fingerprint', 'transform', 'history', 'provenance', 'progress', 'plan', 'elapsed',
             'state_dict', 'state_dict_ema', 'lr_scale', 'optimizer', 'scaler', 'margins')  # what last.pth must have
FIXED = ('MODEL', 'MODEL_KWARGS', 'IMG_SIZE', 'USE_EMA', 'TOKEN_LABEL', 'LAYER_DECAY', 'OPTIMIZER')  # of the whole run
FIXED_IN_EPOCH = ('BATCH_SIZE', 'ACCUMULATE_STEPS', 'SEED')  # while an epoch that was stopped in the middle goes on
ALSO_NEEDED = ('LR', 'AUGMENTATION', 'TIME_BUDGET', 'PATIENCE', 'EPOCHS')  # in the settings of last.pth


def save(path: Path, content: dict) -> None:
    """Write a dict so that `path` holds, at every moment, either the whole old content or the whole new one."""
    with replacing(path) as aside, open(aside, 'wb') as file:
        target = Target(file)
        try:
            torch.save({'format': FORMAT, **content}, target)
        except RuntimeError:
            if target.error is None:
                raise
            raise target.error from None


class Target:
    """A file for torch.save, which reports a full disk as a RuntimeError of its zip writer; `error` is the OSError."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_last(folder: Path, content: dict) -> None:
    """Save last.pth; the one before it becomes last_before.pth."""
    last = folder / 'last.pth'
    before = folder / 'last_before.pth'
    new = folder / 'last_new.pth'
    save(new, content)
    if last.exists():
        move(last, before)
    move(new, last)
    with writing(last):
        sync(folder)


def load_last(folder: Path) -> dict:
    """Return the content of last.pth, or of last_before.pth where last.pth is missing or damaged.

    Every byte is checked against the checksums that PyTorch's files have. Raises UserError where neither is whole.
    """
    last = folder / 'last.pth'
    before = folder / 'last_before.pth'
    path = next((path for path in (last, before) if is_whole(path)), last)
    if path == before:
        print(f'{last} is missing or damaged: going on from the save before it, {before}')
    content = load(path)
    missing = [key for key in LAST_KEYS if key not in content]
    if missing:
        raise UserError(f'RESUME: {path} has no {", ".join(missing)}: it is no last.pth, or one of an older version of '
                        'this project')
    return content


def is_whole(path: Path) -> bool:
    """Return whether a file is a zip archive without damage, as PyTorch's files are."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # zipfile's errors on a damaged file are of a dozen types, struct.error and zlib.error among them
        return False


def set_aside(folder: Path) -> None:
    """Rename the checkpoints of an earlier run to previous_*.pth, over those of the run before it.

    A run without any update leaves no checkpoint.
    """
    last = folder / 'last.pth'
    before = folder / 'last_before.pth'
    if before.exists() and not last.exists():  # it was killed between two moves
        move(before, last)
    for path in (before, folder / 'last_new.pth', folder / '.last_new.pth.tmp'):  # the last two: of a killed run
        path.unlink(missing_ok=True)
    if not (folder / 'best.pth').exists() and not has_updates(last):
        last.unlink(missing_ok=True)
    for name in ('best.pth', 'last.pth'):
        if (folder / name).exists():
            move(folder / name, folder / f'previous_{name}')
            print(f'{folder / name} of an earlier run is now previous_{name}')
    with writing(folder):
        sync(folder)


def has_updates(path: Path) -> bool:
    """Return whether a last.pth is of a run that has learnt something."""
    try:
        content = load(path)
        return bool(content['history']) or content['progress']['updates'] > 0
    except (UserError, KeyError, TypeError):  # there is none, or it is damaged
        return False


# ---- going on from a checkpoint --------------------------------------------------------------------------------------

def find_saved(resume: bool | str, out: Path) -> dict | None:
    """Return the content of last.pth in the folder `out` where RESUME = `resume` asks for it. Raises UserError."""
    there = (out / 'last.pth').exists() or (out / 'last_before.pth').exists()
    if resume is False or (resume == 'auto' and not there):
        return None
    saved = load_last(out)
    try:
        Progress.from_dict(saved['progress'])
        Provenance(**saved['provenance'])
        Plan(**saved['plan'])
        missing = [name for name in (*FIXED, *FIXED_IN_EPOCH, *ALSO_NEEDED) if name not in saved['settings']]
        whole = isinstance(saved['history'], list) and isinstance(saved['transform'], dict)
    except (TypeError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f'RESUME: {out}/last.pth is not of this run: choose another OUTPUT_DIR')
    if missing:
        raise UserError(f'RESUME: {out}/last.pth is of a version of this project without {", ".join(missing)}: choose '
                        'another OUTPUT_DIR')
    return saved


def is_complete(saved: dict, epochs: int, time_budget: float | None, patience: int | None) -> bool:
    """Return whether a run has nothing left to do with these settings of its end."""
    before = saved['settings']
    done = len(saved['history'])
    same_end = before['TIME_BUDGET'] == time_budget and before['PATIENCE'] == patience
    if same_end and (time_budget or before['EPOCHS'] == epochs):
        return done >= Plan(**saved['plan']).epochs
    return not time_budget and done >= epochs


def check_resume(cfg: Settings, data: Data, saved: dict) -> None:
    """Raise UserError for settings and data that would make it another run, and print what else has changed."""
    before = saved['settings']
    place = f'RESUME: {cfg.OUTPUT_DIR}/last.pth'
    for name in FIXED:
        if before[name] != getattr(cfg, name):
            raise UserError(f'{place} was trained with {name} = {before[name]!r}: set it back, or choose another '
                            'OUTPUT_DIR')
    if saved['classes'] != data.classes:
        raise UserError(f'{place} was trained on other classes: choose another OUTPUT_DIR')
    if saved['fingerprint'] != data.fingerprint:
        raise UserError(f'{place} was trained on other images than DATA_DIR has now: put those back, or choose '
                        'another OUTPUT_DIR')
    images = before['BATCH_SIZE'] * before['ACCUMULATE_STEPS']
    if saved['progress']['updates'] and (
            before['SEED'] != cfg.SEED or images != cfg.BATCH_SIZE * cfg.ACCUMULATE_STEPS):
        described = ', '.join(f'{name} = {before[name]}' for name in FIXED_IN_EPOCH)
        raise UserError(f'{place} stopped within an epoch that has {described}: until that epoch is over, leave SEED '
                        'and the product of the other two as they are')
    now = data.transform.as_dict()
    if saved['transform'] != now:
        were = ', '.join(f'{key.upper()} = {value}' for key, value in saved['transform'].items()
                         if value != now.get(key))
        raise UserError(f'{place} was trained with {were}: set it so, or choose another OUTPUT_DIR')
    if is_complete(saved, cfg.EPOCHS, cfg.TIME_BUDGET, cfg.PATIENCE):
        longer = 'TIME_BUDGET' if cfg.TIME_BUDGET else 'EPOCHS'
        raise UserError(f'{place} has completed all its {len(saved["history"])} epochs: raise {longer} to train on')
    print_changes(vars(cfg), before)
    if resumed_lr_scale(cfg.LR, saved) < 1:
        print(f'resume: the learning rate stays at {saved["lr_scale"]} of LR, after updates without a finite loss')
    updates = saved['progress']['updates']
    more = f' and {updates} updates' if updates else ''
    print(f'resume: {cfg.OUTPUT_DIR}/last.pth, after epoch {len(saved["history"])}{more}')


def print_changes(settings: dict, before: dict) -> None:
    """Print the settings that are not what they were."""
    for name, value in settings.items():
        if name not in before:
            print(f'resume: {name} is new, now {value!r}')
        elif before[name] != value and name != 'RESUME':
            print(f'resume: {name} was {before[name]!r}, now {value!r}')


def resumed_lr_scale(lr: float, saved: dict) -> float:
    """Return the factor on LR = `lr`: 0.1 after a divergence, 1 again when LR was changed since."""
    return saved['lr_scale'] if saved['settings']['LR'] == lr else 1.
