"""Checkpoints: plain dicts of tensors and values, written aside, moved into place, read without running anything.

best.pth is what test.py needs; last.pth is what a resumed run needs, last_before.pth the one before it.
"""
import contextlib
import os
import zipfile
from pathlib import Path

import torch

from common.evaluation.saved import FORMAT, load
from common.runtime.errors import UserError
from common.runtime.files import move, replacing

LAST_KEYS = ('settings', 'classes', 'fingerprint', 'transform', 'history', 'provenance', 'progress', 'plan', 'elapsed',
             'state_dict', 'state_dict_ema', 'lr_scale', 'optimizer', 'scaler')  # what last.pth must have


def save(path: Path, content: dict) -> None:
    """Write a dict so that `path` holds, at every moment, either the old content whole or the new."""
    with replacing(path) as aside, open(aside, 'wb') as file:
        try:
            torch.save({'format': FORMAT, **content}, file)
        except RuntimeError as error:  # how torch's zip writer reports a full disk
            raise OSError(error) from error
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk take note of files that were moved. Windows does that by itself, some file systems cannot."""
    if os.name == 'posix':
        handle = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fsync(handle)
        os.close(handle)


def save_last(folder: Path, content: dict) -> None:
    """Save last.pth; the one before it becomes last_before.pth."""
    last, before, new = (folder / name for name in ('last.pth', 'last_before.pth', 'last_new.pth'))
    save(new, content)
    if last.exists():
        move(last, before)
    move(new, last)
    sync_folder(folder)


def load_last(folder: Path) -> dict:
    """The content of last.pth, or of last_before.pth where last.pth is missing or damaged.

    Every byte is checked against the checksums that PyTorch's files have. Raises UserError where neither is whole.
    """
    last, before = folder / 'last.pth', folder / 'last_before.pth'
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
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # zipfile's errors on a damaged file are of a dozen types, struct.error and zlib.error among them
        return False


def set_aside(folder: Path) -> None:
    """Rename the checkpoints of an earlier run to previous_*.pth, over those of the run before it.

    A run without any update leaves no checkpoint.
    """
    last, before = folder / 'last.pth', folder / 'last_before.pth'
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


def has_updates(path: Path) -> bool:
    """Whether a last.pth is of a run that has learnt something."""
    try:
        content = load(path)
        return bool(content['history']) or content['progress']['updates'] > 0
    except (UserError, KeyError, TypeError):  # there is none, or it is damaged
        return False
