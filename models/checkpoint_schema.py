"""What a checkpoint of train.py must hold before a network is built from it: it may come from anyone."""
from typing import Any

from models.weights import WeightsError, are_numbers

LARGEST = 2 ** 14  # side of an image in pixels, and every other number among a network's settings
LONGEST = 255      # characters of a name


def check_saved(saved: Any) -> None:
    """Raise WeightsError, one line, unless a checkpoint holds all that test.py needs, in the right types and ranges."""
    if not isinstance(saved, dict):
        raise WeightsError('not a checkpoint of train.py: give the path of its best.pth or last.pth')
    transform = saved['transform'] if isinstance(saved.get('transform'), dict) else {}
    missing = [key for key in ('model', 'model_kwargs', 'state_dict', 'classes', 'transform') if key not in saved]
    missing += [f'transform.{key}' for key in ('img_size', 'mean', 'std', 'crop', 'interpolation')
                if key not in transform and 'transform' in saved]
    if missing:
        raise WeightsError(f'not a whole checkpoint of train.py, it has no {", ".join(missing)}: give the path of '
                           'its best.pth or last.pth')
    kwargs, classes, img_size = saved['model_kwargs'], saved['classes'], transform['img_size']
    reserved = {'img_size', 'num_classes'}  # the checkpoint has them elsewhere
    valid = {
        'model': is_name(saved['model']),
        'model_kwargs': isinstance(kwargs, dict) and is_plain(kwargs) and kwargs.keys().isdisjoint(reserved),
        'state_dict': isinstance(saved['state_dict'], dict),
        'classes': isinstance(classes, list) and all(map(is_name, classes)) and len(set(classes)) == len(classes) > 0,
        'img_size': are_numbers(img_size, 2, 16, LARGEST) and all(isinstance(side, int) for side in img_size),
        'mean': are_numbers(transform['mean'], 3, -1e3, 1e3),
        'std': are_numbers(transform['std'], 3, 1e-6, 1e3),
        'crop': transform['crop'] is None or are_numbers([transform['crop']], 1, 0.1, 2),
        'interpolation': transform['interpolation'] in ('bilinear', 'bicubic')}
    if not all(valid.values()):
        raise WeightsError('not a whole checkpoint of train.py, something is wrong with its '
                           + ', '.join(name for name, fine in valid.items() if not fine))


def is_name(value: Any) -> bool:
    """Whether something is a text of at most LONGEST characters."""
    return isinstance(value, str) and len(value) <= LONGEST


def is_plain(value: Any, depth: int = 5) -> bool:
    """Whether something consists of names, of numbers up to LARGEST, and of short lists and dicts of these."""
    if isinstance(value, dict):
        return all(map(is_name, value)) and is_plain(list(value.values()), depth)
    if isinstance(value, (list, tuple)):
        return depth > 0 and len(value) <= 100 and all(is_plain(item, depth - 1) for item in value)
    return value is None or is_name(value) or (isinstance(value, (int, float)) and abs(value) <= LARGEST)
