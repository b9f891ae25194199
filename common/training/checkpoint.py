"""Checkpoints: plain dicts of tensors and values, written aside, moved into place, read without running anything."""
import contextlib
import os
import zipfile

import torch

from common.runtime.errors import UserError
from common.runtime.files import replacing
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
