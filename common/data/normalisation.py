"""Mean and standard deviation of the colour channels: written by mean_std.py, used by train.py."""
import json
from pathlib import Path

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from common.runtime.errors import UserError
from models.weights import are_numbers

FILE = 'mean_std.json'


def normalisation(cfg, weights, classes):
    """(mean, std) for a set of these classes: MEAN and STD if they are set, else what NORMALISATION says.

    'data' is mean_std.json, or ImageNet's without one; 'weights' is what common.network.find_weights found beside the
    initial weights; 'auto' is 'weights' where some are loaded, else 'data'.
    """
    mean, std = cfg.MEAN, cfg.STD
    if cfg.NORMALISATION not in ('auto', 'weights', 'data'):
        raise UserError(f"NORMALISATION = {cfg.NORMALISATION!r}: choose 'auto', 'weights' or 'data'")
    if (mean is None) != (std is None):
        raise UserError('MEAN and STD go together: set both or neither')
    if mean is not None:
        if not are_numbers(mean, 3, -1e3, 1e3) or not are_numbers(std, 3, 1e-6, 1e3):
            raise UserError(f'MEAN = {mean}, STD = {std}: each needs three numbers, and STD positive ones')
        return mean, std
    if cfg.NORMALISATION == 'weights' and 'mean' not in weights:
        raise UserError("NORMALISATION = 'weights', but no weights are loaded: choose 'auto' or 'data'")
    if cfg.NORMALISATION != 'data' and 'mean' in weights:
        mean, std = weights['mean'], weights['std']
        print(f'normalisation: that of the loaded weights, mean {tuple(mean)}, std {tuple(std)}')
        return mean, std
    if not Path(FILE).exists():
        print(f"normalisation: ImageNet's mean and std, since there is no {FILE}: mean_std.py has not been run")
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    try:
        found = json.loads(Path(FILE).read_text(encoding='utf-8'))
        mean, std, theirs = found['mean'], found['std'], found['classes']
        if not are_numbers(mean, 3, -1e3, 1e3) or not are_numbers(std, 3, 1e-6, 1e3):
            raise ValueError('three means and three positive deviations are needed')
        print(f'normalisation: {FILE}, computed on {found["images"]} pictures of {found["data_dir"]}')
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{FILE} is of no use ({error!r}): run mean_std.py again or delete it') from None
    if theirs != classes:
        print(f'warning: {FILE} was computed on other classes than these: run mean_std.py again')
    return mean, std
