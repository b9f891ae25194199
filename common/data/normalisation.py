"""Mean and standard deviation of the colour channels: written by mean_std.py, used by train.py."""
import json
from pathlib import Path

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from common.runtime.errors import UserError
from common.settings import Settings
from models.weights import are_numbers

FILE = 'mean_std.json'


def find_normalisation(cfg: Settings, of_weights: tuple[list, list] | None,
                       classes: list[str]) -> tuple[list[float], list[float]]:
    """(mean, std) for a set of these classes: MEAN and STD if they are set, else what NORMALISATION says.

    'data' is mean_std.json, or ImageNet's without one; 'weights' is `of_weights`, the (mean, std) that belongs to the
    initial weights; 'auto' is 'weights' where some are loaded, else 'data'. Raises UserError.
    """
    if cfg.MEAN is not None:
        return cfg.MEAN, cfg.STD
    if cfg.NORMALISATION == 'weights' and of_weights is None:
        raise UserError("NORMALISATION = 'weights', but no weights are loaded: choose 'auto' or 'data'")
    if cfg.NORMALISATION != 'data' and of_weights:
        mean, std = of_weights
        print(f'normalisation: that of the loaded weights, mean {tuple(mean)}, std {tuple(std)}')
        return mean, std
    if not Path(FILE).exists():
        print(f"normalisation: ImageNet's mean and std, since there is no {FILE}: mean_std.py has not been run")
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return read_measured(classes)


def read_measured(classes: list[str]) -> tuple[list[float], list[float]]:
    """(mean, std) of mean_std.json. Raises UserError where it is damaged."""
    try:
        found = json.loads(Path(FILE).read_text(encoding='utf-8'))
        mean, std, theirs = found['mean'], found['std'], found['classes']
        if not are_mean_and_std(mean, std):
            raise ValueError('three means and three positive deviations are needed')
        print(f'normalisation: {FILE}, computed on {found["images"]} pictures of {found["data_dir"]}')
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{FILE} is of no use ({error!r}): run mean_std.py again or delete it') from None
    if theirs != classes:
        print(f'warning: {FILE} was computed on other classes than these: run mean_std.py again')
    return mean, std


def are_mean_and_std(mean, std) -> bool:
    """Whether these are three numbers each, and the deviations positive."""
    return are_numbers(mean, 3, -1e3, 1e3) and are_numbers(std, 3, 1e-6, 1e3)
