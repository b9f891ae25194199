"""The network (volo.py) and its weights (weights.py). Importing it also registers volo_d1 … volo_d5 with timm."""
import timm

from models.volo import VARIANTS, VOLO, volo_d1, volo_d2, volo_d3, volo_d4, volo_d5
from models.weights import WeightsError, fetch_published, load_weights

__all__ = ['VARIANTS', 'VOLO', 'WeightsError', 'create_model', 'fetch_published', 'load_weights',
           'volo_d1', 'volo_d2', 'volo_d3', 'volo_d4', 'volo_d5']


def create_model(name, **kwargs):
    """Build a network by its name. Raises ValueError, one line, for a name or a setting that does not exist."""
    if name not in VARIANTS:
        raise ValueError(f'there is no network {name!r}: choose one of {", ".join(VARIANTS)}')
    try:
        return timm.create_model(name, **kwargs)
    except TypeError as error:  # an unknown keyword
        raise ValueError(f'{name}: {error}') from error
