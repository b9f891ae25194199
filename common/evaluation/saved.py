"""What the steps after training read in a checkpoint of train.py."""
import math
from pathlib import Path

import torch

from common.runtime.errors import UserError
from models import WeightsError, check_saved
from models.weights import read_file

FORMAT = 2  # of the checkpoint's content; raised when an older test.py could no longer read it


def load(path: Path | str) -> dict:
    """A checkpoint's content. Raises UserError for a file that is missing, damaged or something else."""
    try:
        content = read_file(path)
    except WeightsError as error:
        raise UserError(f'{error}: run train.py first, or name one of its checkpoints') from None
    if not isinstance(content, dict) or not isinstance(content.get('format'), int):
        raise UserError(f'{path}: not a checkpoint of train.py')
    if content['format'] != FORMAT:
        raise UserError(f'{path}: written by another version of this project (its format is {content["format"]}, this '
                        f'one reads {FORMAT}): use that version')
    return content


def load_network(path: Path | str) -> dict:
    """The content of a checkpoint that holds all that restore_model needs. Raises UserError, naming the file."""
    saved = load(path)
    try:
        check_saved(saved)
    except WeightsError as error:
        raise UserError(f'{path}: {error}') from None
    return saved


def trained_with_amp(saved: dict) -> bool:
    """Whether a checkpoint's network was trained and validated in mixed precision."""
    if 'amp_dtype' in saved:
        return saved['amp_dtype'] is not None
    settings = saved.get('settings')  # in checkpoints of earlier versions
    return not isinstance(settings, dict) or settings.get('USE_AMP') is not False


def temperature_of(saved: dict) -> float:
    """What train.py found to fit the validation set best; 1 in checkpoints of earlier versions."""
    best = saved.get('best')
    value = best.get('temperature') if isinstance(best, dict) else None
    return value if isinstance(value, float) and 0 < value < math.inf else 1.


def outliers_of(saved: dict, dim: int) -> dict | None:
    """What train.py knew of the features (N, dim) of the validation set; None in checkpoints that do not tell."""
    known, shapes = saved.get('outliers'), {'mean': (dim,), 'precision': (dim, dim), 'share': ()}
    whole = isinstance(known, dict) and all(
        isinstance(known.get(name), torch.Tensor) and known[name].dtype == torch.float32
        and known[name].shape == shapes.get(name, known[name].shape[:1]) and known[name].isfinite().all()
        for name in ('mean', 'precision', 'share', 'squares'))
    return known if whole else None
