"""Checkpoints: plain dicts of tensors and values, written aside, moved into place, read without running anything."""
import os
import random
from pathlib import Path

import numpy as np
import torch

from common.settings import UserError
from models import WeightsError
from models.weights import read_file

FORMAT = 1  # of the checkpoint's content; raised when an older test.py could no longer read it


def save(path, content):
    """Write a dict so that `path` holds, at every moment, either the old content whole or the new."""
    path = Path(path)
    aside = path.with_name(f'.{path.name}.tmp')
    try:
        with open(aside, 'wb') as file:
            torch.save({'format': FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as a RuntimeError
        aside.unlink(missing_ok=True)
        raise UserError(f'{path} cannot be written ({error}): free some space or choose another OUTPUT_DIR') from error


def load(path):
    """A checkpoint's content. Raises UserError for a file that is missing, damaged or something else."""
    try:
        content = read_file(path)
    except WeightsError as error:
        raise UserError(f'{error}: run train.py first, or name one of its checkpoints') from None
    if not isinstance(content, dict) or 'format' not in content:
        raise UserError(f'{path}: not a checkpoint of train.py')
    if content['format'] > FORMAT:
        raise UserError(f'{path}: written by a newer version of this project (format {content["format"]}): update it')
    return content


def random_states():
    """The states of all random generators of this process, as plain values and tensors."""
    kind, numbers, position, has_gauss, cached = np.random.get_state()
    return {'python': random.getstate(), 'numpy': (kind, numbers.tolist(), position, has_gauss, cached),
            'torch': torch.get_rng_state(), 'cuda': torch.cuda.get_rng_state_all()}


def restore_random_states(states):
    version, numbers, gauss = states['python']
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(states['numpy']))
    torch.set_rng_state(states['torch'])
    if len(states['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states['cuda'])
