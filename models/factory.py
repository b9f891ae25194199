"""Networks by name: volo_d1 … volo_d5, or any other of timm's; their published weights; networks of checkpoints."""
import difflib

import timm
import torch

from models import volo
from models.checkpoint_schema import check_saved
from models.volo import VARIANTS
from models.weights import WeightsError, fetch_published, first_line, load_weights, published_tag, reach_hub

# What timm.create_model takes for itself; a checkpoint that asks for it could make it read other files.
_TIMMS_OWN = {'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'checkpoint_path', 'cache_dir', 'scriptable',
              'exportable', 'no_jit', 'features_only'}


def default_cfg(name):
    """The published preprocessing of a network and more, by its name. Raises ValueError for a name that is none."""
    if name in VARIANTS:
        return volo.default_cfg(name)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*VARIANTS, *timm.list_models()], n=3)
        raise ValueError(f'there is no network {name!r}: choose one of {", ".join(VARIANTS)}, or another of timm'
                         + (f', perhaps {", ".join(near)}' if near else ''))
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False).to_dict()
    except RuntimeError as error:  # an unknown tag, resnet50.nothing, or a name that timm has given up
        raise ValueError(f'{name}: {error}; timm.list_models(pretrained=True) has the names of today') from error


def create_model(name, img_size=224, drop_path_rate=0., **kwargs):
    """Build a network: volo_d1 … volo_d5, or one of timm's. `img_size` is pixels, a number or (height, width).

    Raises ValueError, one line, for a name or a setting that does not exist.
    """
    if kwargs.keys() & _TIMMS_OWN:
        raise ValueError(f'{", ".join(sorted(kwargs.keys() & _TIMMS_OWN))} is no setting of a network')
    if name in VARIANTS or default_cfg(name).get('fixed_input_size'):
        kwargs['img_size'] = img_size
    try:
        return timm.create_model(name, drop_path_rate=drop_path_rate, **kwargs)
    except Exception as error:  # each of timm's networks has a way of its own to refuse a setting
        if 'drop_path_rate' in str(error) and not drop_path_rate:
            return timm.create_model(name, **kwargs)
        raise ValueError(f'{name}: {first_line(error)}') from error


def fetch_weights(name, img_size):
    """(tag, state dict) of the published ImageNet weights, from the cache or the model hub; raises WeightsError.

    For a VOLO those of the nearest published size, for another network timm's default ones at `img_size`.
    """
    if name in VARIANTS:
        return published_tag(name, img_size), fetch_published(name, img_size)
    found = default_cfg(name)
    repo = found.get('hf_hub_id')
    if not repo:
        raise WeightsError(f'{name} has no published weights in the model hub')
    reach_hub(repo)
    try:
        size = {'img_size': img_size} if found.get('fixed_input_size') else {}
        state = timm.create_model(name, pretrained=True, **size).state_dict()  # timm knows how to fit the size
        return repo.removeprefix('timm/'), state
    except Exception as error:  # the errors of three network libraries, of the disk, and of timm's conversions
        raise WeightsError(f'{repo} cannot be fetched and fitted to {img_size} pixels: {first_line(error)}') from error


def restore_model(saved):
    """The network of a checkpoint of train.py (its content), with its weights. Raises WeightsError, one line."""
    check_saved(saved)
    ours = saved['model'] in VARIANTS
    try:
        layers = saved['model_kwargs'].get('layers', ()) if ours else ()
        if min(layers, default=0) < 0 or sum(layers) > len(saved['state_dict']):
            raise WeightsError('the weights are of a smaller network')
        with torch.device('meta' if ours else 'cpu'):  # without memory, and so without initial values, until it fits
            net = create_model(saved['model'], num_classes=len(saved['classes']),
                               img_size=saved['transform']['img_size'], **saved['model_kwargs'])
        done = load_weights(net, {'state_dict': saved['state_dict']}, assign=ours)
    except TypeError as error:
        raise WeightsError(f'not a whole checkpoint of train.py ({error!r})') from error
    except ValueError as error:  # WeightsError is one
        raise WeightsError(str(error)) from error
    if done['resized'] or done['dropped']:
        raise WeightsError(f'its weights do not go with its {len(saved["classes"])} classes and image size: '
                           + ', '.join(done['resized'] + done['dropped']))
    return net
