"""What a checkpoint of train.py must hold before anything is built from it: it may come from anywhere."""
from models.weights import WeightsError, are_numbers

LARGEST = 2 ** 14  # side of a picture in pixels, and any other number of a network's settings


def check_saved(saved):
    """Raise WeightsError, one line, unless all that naming a picture takes is there, and of its kind."""
    if not isinstance(saved, dict):
        raise WeightsError('not a whole checkpoint of train.py')
    try:
        transform, classes, kwargs = saved['transform'], saved['classes'], saved['model_kwargs']
        good = {
            'model': isinstance(saved['model'], str),
            'model_kwargs': isinstance(kwargs, dict) and is_plain(kwargs),
            'state_dict': isinstance(saved['state_dict'], dict),
            'classes': isinstance(classes, list) and all(isinstance(name, str) and len(name) <= 255 for name in classes)
            and len(set(classes)) == len(classes) > 0,
            'img_size': are_numbers(transform['img_size'], 2, 16, LARGEST)
            and all(isinstance(side, int) for side in transform['img_size']),
            'mean': are_numbers(transform['mean'], 3, -1e3, 1e3),
            'std': are_numbers(transform['std'], 3, 1e-6, 1e3),
            'crop': transform['crop'] is None or are_numbers([transform['crop']], 1, 0.1, 2),
            'interpolation': transform['interpolation'] in ('bilinear', 'bicubic')}
    except (KeyError, TypeError, IndexError) as error:
        raise WeightsError(f'not a whole checkpoint of train.py ({error!r})') from None
    if not all(good.values()):
        raise WeightsError('not a whole checkpoint of train.py, something is wrong with its '
                           + ', '.join(name for name, fine in good.items() if not fine))


def is_plain(value):
    """Whether something consists of texts and numbers of a network's size, in short lists and under names."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and is_plain(list(value.values()))
    if isinstance(value, (list, tuple)):
        return len(value) <= 100 and all(map(is_plain, value))
    return value is None or isinstance(value, str) or (isinstance(value, (int, float)) and abs(value) <= LARGEST)
