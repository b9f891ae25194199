"""Whether a run can be resumed from last.pth: which settings and data must be the same, and which may change."""
from pathlib import Path

from common.data.build import Data
from common.runtime.errors import UserError
from common.settings import Settings
from common.training import checkpoint
from common.training.plan import Plan
from common.training.provenance import Provenance
from common.training.state import Progress

OF_AN_EPOCH = ('BATCH_SIZE', 'ACCUMULATE_STEPS', 'SEED')  # settings of an epoch that was stopped in the middle
FIXED = ('MODEL', 'MODEL_KWARGS', 'IMG_SIZE', 'USE_EMA', 'AUX_HEAD', 'TOKEN_LABEL', 'LAYER_DECAY',
         'OPTIMIZER')  # of the whole run


def find_saved(cfg: Settings, out: Path) -> dict | None:
    """The content of last.pth in the folder `out`, where RESUME asks for it. Raises UserError."""
    there = any((out / name).exists() for name in ('last.pth', 'last_before.pth'))
    if cfg.RESUME is not True and not (cfg.RESUME == 'auto' and there):
        return None
    saved = checkpoint.load_last(out)
    try:
        Progress.from_dict(saved['progress'])
        Provenance(**saved['provenance'])
        Plan(**saved['plan'])
        missing = [name for name in (*FIXED, *OF_AN_EPOCH, 'LR', 'START_SIZE', 'AUGMENTATION', 'TIME_BUDGET')
                   if name not in saved['settings']]
        whole = isinstance(saved['history'], list) and isinstance(saved['transform'], dict)
    except (TypeError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f'RESUME: {out}/last.pth is not of this run: choose another OUTPUT_DIR')
    if missing:
        raise UserError(f'RESUME: {out}/last.pth is of a version of this project without {", ".join(missing)}: choose '
                        'another OUTPUT_DIR')
    return saved


def is_complete(cfg: Settings, saved: dict) -> bool:
    """Whether a run has nothing left to do with these settings."""
    if all(saved['settings'].get(name) == getattr(cfg, name) for name in (
            'TIME_BUDGET', 'PATIENCE', *([] if cfg.TIME_BUDGET else ['EPOCHS']))):
        return len(saved['history']) >= Plan(**saved['plan']).epochs
    return not cfg.TIME_BUDGET and len(saved['history']) >= cfg.EPOCHS


def check_resume(cfg: Settings, data: Data, saved: dict, out: Path) -> None:
    """Raise UserError for settings and data that would make it another run, and print what else has changed."""
    before, place = saved['settings'], f'RESUME: {out}/last.pth'
    for name in FIXED:
        if before[name] != getattr(cfg, name):
            raise UserError(f'{place} was trained with {name} = {before[name]!r}: set it back, or choose another '
                            'OUTPUT_DIR')
    if saved['classes'] != data.classes:
        raise UserError(f'{place} was trained on other classes: choose another OUTPUT_DIR')
    if saved['fingerprint'] != data.fingerprint:
        raise UserError(f'{place} was trained on other pictures than DATA_DIR has now: put those back, or choose '
                        'another OUTPUT_DIR')
    if saved['progress']['updates']:
        check_unfinished_epoch(cfg, before, place)
    now = data.transform.as_dict()
    if saved['transform'] != now:
        were = ', '.join(f'{key.upper()} = {value}' for key, value in saved['transform'].items()
                         if value != now.get(key))
        raise UserError(f'{place} was trained with {were}: set it so, or choose another OUTPUT_DIR')
    if is_complete(cfg, saved):
        longer = 'TIME_BUDGET' if cfg.TIME_BUDGET else 'EPOCHS'
        raise UserError(f'{place} has completed all its {len(saved["history"])} epochs: raise {longer} to train on')
    print_changes(cfg, saved, out)


def check_unfinished_epoch(cfg: Settings, before: dict, place: str) -> None:
    """An epoch that was stopped in the middle goes on with as many images an update, in the same order."""
    images = before['BATCH_SIZE'] * before['ACCUMULATE_STEPS']
    if before['SEED'] != cfg.SEED or images != cfg.BATCH_SIZE * cfg.ACCUMULATE_STEPS:
        raise UserError(
            f'{place} stopped within an epoch that has BATCH_SIZE = {before["BATCH_SIZE"]}, ACCUMULATE_STEPS = '
            f'{before["ACCUMULATE_STEPS"]}, SEED = {before["SEED"]}: until that epoch is over, leave SEED and the '
            'product of the other two as they are')


def print_changes(cfg: Settings, saved: dict, out: Path) -> None:
    before = saved['settings']
    for name, value in vars(cfg).items():
        if name not in before:
            print(f'resume: {name} is new, now {value!r}')
        elif before[name] != value and name != 'RESUME':
            print(f'resume: {name} was {before[name]!r}, now {value!r}')
    if resumed_lr_scale(cfg, saved) < 1:
        print(f'resume: the learning rate stays at {saved["lr_scale"]} of LR, after updates without a finite loss')
    updates = saved['progress']['updates']
    print(f'resume: {out}/last.pth, after epoch {len(saved["history"])}{f" and {updates} updates" if updates else ""}')


def resumed_lr_scale(cfg: Settings, saved: dict) -> float:
    """The factor on LR: 0.1 after a divergence, 1 again when LR was changed since."""
    return saved['lr_scale'] if saved['settings']['LR'] == cfg.LR else 1.
