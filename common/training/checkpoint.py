"""Checkpoints: plain dicts of tensors and values, written aside, moved into place, read without running anything.

best.pth is what test.py needs; last.pth is what a resumed run needs, last_before.pth the one before it. A resumed run
must have the settings and images of the first one; what may change is printed.
"""
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import torch

from common.data.loaders import Data
from common.evaluation.predictor import FORMAT, load
from common.runtime.errors import UserError
from common.runtime.files import move, replacing, sync, writing
from common.runtime.schema import (
    is_amount,
    is_count,
    is_number,
    is_percent,
    is_positive_count,
    is_share,
    is_switch,
    is_text,
    optional,
    wrong_place,
)
from common.settings import Settings
from common.training.optimizer import Muon
from common.training.run_length import Plan
from common.training.setup import Provenance
from common.training.step import Progress, TrainState
from models import WeightsError, check_saved
from models.weights import (
    are_numbers,
    check_same_shapes,
    is_img_size,
    is_ordinary,
    is_plain,
    is_state_dict,
    refuse_what_grows,
)


def is_single_setting(value: Any) -> bool:
    """Return whether something is None, a bool, a number or a text."""
    return value is None or isinstance(value, bool) or is_number(value) or is_text(value)


def is_setting(value: Any) -> bool:
    """Return whether something is what a setting can be: a single one, or short lists and dicts of them."""
    return is_plain(value, is_single_setting)


LAST_KEYS = ('settings', 'classes', 'fingerprint', 'transform', 'history', 'provenance', 'progress', 'plan', 'elapsed',
             'state_dict', 'state_dict_ema', 'lr_scale', 'optimizer', 'scaler', 'margins')  # what last.pth must have
LIKE_PARAMETER = ('exp_avg', 'exp_avg_sq', 'momentum', 'momentum_buffer')  # what has the shape of its parameter
OPTIMIZER_STATES = ({'step', 'exp_avg', 'exp_avg_sq'}, {'momentum'}, set())  # of AdamW, of Muon's matrices, of neither
METER = {'val': is_number, 'avg': is_number, 'sum': is_number, 'count': is_count}
LAST = {  # what a resumed run reads in last.pth, besides what models.check_saved looks at and check_fits compares
    'settings': {
        'MODEL': is_text, 'MODEL_KWARGS': is_setting, 'IMG_SIZE': is_img_size,
        'USE_EMA': is_setting, 'TOKEN_LABEL': is_setting, 'OPTIMIZER': is_text,
        'BATCH_SIZE': is_positive_count, 'ACCUMULATE_STEPS': is_positive_count, 'SEED': is_count,
        'LR': is_amount, 'USE_AMP': is_switch, 'AUGMENTATION': is_share, 'TIME_BUDGET': optional(is_amount),
        'PATIENCE': optional(is_positive_count), 'EPOCHS': is_positive_count},
    'fingerprint': is_text,
    'history': [{
        'epoch': is_positive_count, 'seconds': is_amount, 'images_per_s': is_amount, 'train_loss': is_number,
        'pflop': optional(is_number), 'raw_acc1': optional(is_percent), 'ema_acc1': optional(is_percent)}],
    'provenance': {
        'source': is_text, 'reason': optional(is_text), 'mean': optional(lambda mean: are_numbers(mean, 3, -1e3, 1e3)),
        'std': optional(lambda std: are_numbers(std, 3, 1e-6, 1e3)), 'loaded': is_count, 'resized': [is_text],
        'dropped': [is_text]},
    'progress': {
        'updates': is_count, 'images': is_count, 'skipped': is_count, 'skipped_in_row': is_count, 'waited': is_amount,
        'seconds': is_amount, 'flop': is_amount, 'losses': METER, 'acc1': METER, 'norms': METER},
    'plan': {
        'updates': is_positive_count, 'updates_per_epoch': is_positive_count, 'validate_every': is_positive_count,
        'validation': is_amount, 'revised_at': is_count, 'revised_share': is_share},
    'elapsed': is_amount,
    'lr_scale': lambda scale: is_share(scale) and scale > 0,
    'state_dict': is_state_dict,
    'state_dict_ema': optional(is_state_dict),
    'optimizer': {'state': lambda state: isinstance(state, dict), 'param_groups': [{'params': [is_count]}]},
    'scaler': lambda scaler: isinstance(scaler, dict) and all(map(is_amount, scaler.values())),
    'margins': {'sums': is_ordinary, 'counts': is_ordinary, 'guesses': is_ordinary}}
FIXED = ('MODEL', 'MODEL_KWARGS', 'IMG_SIZE', 'USE_EMA', 'TOKEN_LABEL', 'OPTIMIZER')  # of the whole run
FIXED_IN_EPOCH = ('BATCH_SIZE', 'ACCUMULATE_STEPS', 'SEED')  # while an epoch that was stopped in the middle goes on
ALSO_NEEDED = ('LR', 'USE_AMP', 'AUGMENTATION', 'TIME_BUDGET', 'PATIENCE', 'EPOCHS')  # in the settings of last.pth


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
    if not path.exists():
        raise UserError(f'RESUME: there is no {path}: start without it, or give the OUTPUT_DIR of the run')
    content = load(path)
    missing = [key for key in LAST_KEYS if key not in content]
    if missing:
        raise UserError(f'RESUME: {path} has no {", ".join(missing)}: it is no last.pth, or one of an older version of '
                        'this project')
    return content


def is_whole(path: Path) -> bool:
    """Return whether a file is a zip archive without damage, as PyTorch's files are."""
    if not path.is_file():
        return False
    try:
        refuse_what_grows(path)
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
            previous = folder / f'previous_{name}'
            lost = ', in place of the one from the run before that' if previous.exists() else ''
            move(folder / name, previous)
            print(f'{folder / name} of an earlier run is now {previous.name}{lost}')
    with writing(folder):
        sync(folder)


def has_updates(path: Path) -> bool:
    """Return whether a last.pth is of a run that has learnt something."""
    try:
        content = load(path)
    except UserError:  # there is none, or it is damaged
        return False
    history = content.get('history')
    progress = content.get('progress')
    updates = progress.get('updates') if isinstance(progress, dict) else None
    return (isinstance(history, list) and len(history) > 0) or is_positive_count(updates)


# ---- going on from a checkpoint --------------------------------------------------------------------------------------

def find_saved(resume: bool | str, out: Path) -> dict | None:
    """Return the content of last.pth in the folder `out` where RESUME = `resume` asks for it. Raises UserError."""
    there = (out / 'last.pth').exists() or (out / 'last_before.pth').exists()
    if resume is False or (resume == 'auto' and not there):
        return None
    saved = load_last(out)
    of_run = saved['settings'] if isinstance(saved['settings'], dict) else {}
    missing = [name for name in (*FIXED, *FIXED_IN_EPOCH, *ALSO_NEEDED) if name not in of_run]
    if of_run and missing:
        raise UserError(f'RESUME: {out}/last.pth is of a version of this project without {", ".join(missing)}: choose '
                        'another OUTPUT_DIR')
    try:
        check_saved(saved)
    except WeightsError as error:
        raise UserError(f'RESUME: {out}/last.pth: {error}') from error
    wrong = wrong_in_last(saved)
    if wrong is not None:
        raise UserError(f'RESUME: {out}/last.pth is not of this run, something is wrong with its {wrong}: choose '
                        'another OUTPUT_DIR')
    return saved


def wrong_in_last(saved: dict) -> str | None:
    """Return where the content of a last.pth cannot be what train.py wrote, or None. It may come from anyone."""
    wrong = wrong_place(saved, LAST)
    if wrong is not None:
        return wrong
    for name, made in (('progress', Progress), ('plan', Plan), ('provenance', Provenance)):
        if saved[name].keys() != {item.name for item in fields(made)}:
            return name
    for name in ('losses', 'acc1', 'norms'):
        if saved['progress'][name].keys() != METER.keys():
            return f'progress.{name}'
    if not is_setting(saved['settings']):
        return 'settings'
    if [*saved['settings']['IMG_SIZE']] != saved['transform']['img_size']:
        return 'settings.IMG_SIZE'
    if (saved['provenance']['mean'] is None) != (saved['provenance']['std'] is None):
        return 'provenance.std'
    if saved['progress']['updates'] and not saved['progress']['seconds']:
        return 'progress.seconds'
    for number, row in enumerate(saved['history']):
        if row['epoch'] != number + 1 or not all(is_text(key) and (value is None or is_number(value))
                                                 for key, value in row.items()):
            return f'history[{number}]'
        for which in ('raw', 'ema'):
            needed = [f'{which}_balanced_accuracy', f'{which}_temperature']
            if row[f'{which}_acc1'] is not None and not all(is_number(row.get(name)) for name in needed):
                return f'history[{number}]'
    return None


def check_fits(saved: dict, state: TrainState) -> None:
    """Raise UserError unless what find_saved accepted fits the network, the optimizer and the images of this run."""
    try:
        check_same_shapes(saved['state_dict'], state.net.state_dict())
        if state.ema:
            check_same_shapes(saved['state_dict_ema'] or {}, state.ema.module.state_dict())
    except WeightsError as error:
        raise UserError(f'RESUME: last.pth: {error}: choose another OUTPUT_DIR') from error
    margins = vars(state.margins)
    fit = all(saved['margins'][name].shape == tensor.shape and saved['margins'][name].dtype == tensor.dtype
              for name, tensor in margins.items())
    guesses = saved['margins']['guesses']
    if not fit or (guesses.numel() and not 0 <= guesses.min() <= guesses.max() < len(saved['classes'])):
        raise UserError('RESUME: last.pth is not of this run, something is wrong with its margins: choose another '
                        'OUTPUT_DIR')
    if not optimizer_fits(saved['optimizer'], state.optimizer):
        raise UserError('RESUME: last.pth is not of this run, something is wrong with its optimizer: choose another '
                        'OUTPUT_DIR')


def optimizer_fits(saved: dict, optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer can go on from the state of another one: its settings are of the same kinds, and what
    it knows of each parameter has the parameter's shape, as far as that must be so.
    """
    own = optimizer.state_dict()['param_groups']
    if [group['params'] for group in saved['param_groups']] != [group['params'] for group in own]:
        return False
    for group, settings in zip(saved['param_groups'], own, strict=True):
        for name, value in settings.items():
            if not is_setting(group.get(name)) or not same_kind(group.get(name), value):
                return False
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    for index, known in saved['state'].items():
        if not is_count(index) or index >= len(parameters) or not isinstance(known, dict):
            return False
        if isinstance(optimizer, (Muon, torch.optim.AdamW)) and set(known) not in OPTIMIZER_STATES:
            return False
        for name, value in known.items():
            if isinstance(value, torch.Tensor):
                shape = parameters[index].shape if name in LIKE_PARAMETER else value.shape
                if not is_ordinary(value) or value.shape != shape or value.is_complex():
                    return False
                if name == 'step' and not (value.numel() == 1 and is_amount(float(value))):
                    return False
            elif name in LIKE_PARAMETER or not is_setting(value) or (name == 'step' and not is_amount(value)):
                return False
    return True


def same_kind(value: Any, other: Any) -> bool:
    """Return whether two settings of an optimizer are both numbers, or of the same type; None may be a bool."""
    kinds = {int: float, type(None): bool}
    return kinds.get(type(value), type(value)) is kinds.get(type(other), type(other))


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
        if before.get('TEACHER') != cfg.TEACHER:  # which decides whether unlabelled images belong to them
            raise UserError(f'{place} was trained with TEACHER = {before.get("TEACHER")!r}: set it back, or choose '
                            'another OUTPUT_DIR')
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
        were = {key: value for key, value in saved['transform'].items() if value != now.get(key)}
        pair = tuple(saved['transform']['mean']), tuple(saved['transform']['std'])
        advice = f'set NORMALISATION = {pair}' if were.keys() <= {'mean', 'std'} else 'put CROP back'
        described = ', '.join(f'{key.upper()} = {value}' for key, value in were.items())
        raise UserError(f'{place} was trained with {described}: {advice}, or choose another OUTPUT_DIR')
    if cfg.RESUME != 'auto' and is_complete(saved, cfg.EPOCHS, cfg.TIME_BUDGET, cfg.PATIENCE):
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
