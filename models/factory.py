"""Networks by name: volo_d1 … volo_d5 or any other of timm's; their published weights; networks of checkpoints."""
import contextlib
import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from models import volo
from models.checkpoint_schema import check_saved
from models.volo import STRIDE, VARIANTS, VOLO
from models.weights import (
    WeightsError,
    check_same_shapes,
    fetch_published,
    first_line,
    heads_of,
    published_tag,
    reach_hub,
    resize_pos_embed,
    state_dict_of,
)

# Arguments of timm.create_model itself; a checkpoint that sets them could make it read other files.
_TIMMS_OWN = {'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'checkpoint_path', 'cache_dir', 'scriptable',
              'exportable', 'no_jit', 'features_only'}
# Some of timm's networks replace layers while they are built, and so create more parameters than they keep. Over all of
# them the most is 1.3 times as many tensors and 2.9 times as many elements; these are the limits for a checkpoint's.
_MORE_TENSORS, _MORE_ELEMENTS = 2, 4


def default_cfg(name: str) -> dict[str, Any]:
    """The published preprocessing of a network and more, by its name. Raises ValueError for an unknown name."""
    if name in VARIANTS:
        return volo.default_cfg(name)
    if not timm.is_model(name):
        near = similar_names(name)
        raise ValueError(f'there is no network {name!r}{", perhaps " if near else ""}{", ".join(near)}: choose one of '
                         f'{", ".join(VARIANTS)}, or one that timm.list_models() names')
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False).to_dict()
    except RuntimeError as error:  # an unknown tag as in resnet50.nothing, or a name that timm no longer has
        raise ValueError(f'{name}: {first_line(error).rstrip(".")}: timm.list_models(pretrained=True) lists the '
                         'names') from error


def has_fixed_size(name: str) -> bool:
    """Whether a network takes images of the size alone that it was built for."""
    return name not in VARIANTS and bool(default_cfg(name).get('fixed_input_size'))


def similar_names(name: str) -> list[str]:
    """At most three names of networks like `name`, the most similar first."""
    wanted = name.lower().replace('-', '_')
    near = difflib.get_close_matches(wanted, {*VARIANTS, *timm.list_models()}, n=20)
    return sorted(near, key=lambda other: (-difflib.SequenceMatcher(None, wanted, other).ratio(), other))[:3]


def create_model(name: str, /, img_size: int | tuple[int, int] = 224, drop_path_rate: float = 0.,
                 **kwargs: Any) -> nn.Module:
    """Build a network: volo_d1 … volo_d5, or one of timm's. `img_size` is in pixels, a number or (height, width).

    Raises ValueError, one line, for an unknown name or setting.
    """
    if kwargs.keys() & _TIMMS_OWN:
        raise ValueError(f'{", ".join(sorted(kwargs.keys() & _TIMMS_OWN))} is no setting of a network')
    if name in VARIANTS or has_fixed_size(name):
        kwargs['img_size'] = img_size
    kwargs['drop_path_rate'] = drop_path_rate
    while True:
        try:
            return timm.create_model(name, **kwargs)
        except WeightsError:
            raise
        except Exception as error:  # each of timm's networks refuses settings with errors of its own
            if 'drop_path_rate' not in str(error) or kwargs.pop('drop_path_rate', None) != 0:
                raise ValueError(f'{name}: {first_line(error)}') from error


def fetch_weights(name: str, img_size: tuple[int, int]) -> tuple[str, dict[str, torch.Tensor]]:
    """(tag, state dict) of the published ImageNet weights, from the cache or the model hub; raises WeightsError.

    For a VOLO they are those of the nearest published size, for another network timm's default ones at `img_size`.
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
        state = timm.create_model(name, pretrained=True, **size).state_dict()  # timm fits the weights to the size
        return repo.removeprefix('timm/'), state
    except Exception as error:  # of three network libraries, of the disk, or of timm's conversions
        raise WeightsError(f'{repo} cannot be fetched and fitted to {img_size} pixels: {first_line(error)}') from error


def state_dict_at(net: nn.Module, img_size: Sequence[int]) -> dict[str, torch.Tensor]:
    """The state dict of a network for images of (height, width) pixels: a VOLO's positions are resized."""
    state, size = net.state_dict(), tuple(side // STRIDE for side in img_size)
    if isinstance(net, VOLO) and state['pos_embed'].shape[1:3] != size:
        state['pos_embed'] = resize_pos_embed(state['pos_embed'], size)
    return state


def restore_model(saved: Any) -> nn.Module:
    """The network of a checkpoint of train.py (its content), with its weights. Raises WeightsError, one line.

    The network is built on the meta device first, where tensors have shapes but no memory, and gets memory only if the
    names and shapes of its tensors are those of the checkpoint.
    """
    check_saved(saved)
    ours, state = saved['model'] in VARIANTS, state_dict_of({'state_dict': saved['state_dict']})
    try:
        net = build_to_match(saved, state, 'meta')
    except WeightsError:
        raise
    except ValueError as error:
        if ours:
            raise WeightsError(str(error)) from error
    if not ours:  # many compute tables that a state dict does not hold, and some cannot be built on the meta device
        try:
            net = build_to_match(saved, state, 'cpu')
        except ValueError as error:
            raise WeightsError(str(error)) from error
    own = net.state_dict()
    net.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in state.items()}, assign=ours)
    return net


def build_to_match(saved: dict[str, Any], state: dict[str, torch.Tensor], device: str) -> nn.Module:
    """The network of a checkpoint, without its weights, on a device.

    Raises WeightsError if `state` has other names or shapes, as soon as the network has far more parameters than
    `state`; ValueError if the network cannot be built.
    """
    with torch.device(device), parameters_limited_by(state):
        net = create_model(saved['model'], num_classes=len(saved['classes']), img_size=saved['transform']['img_size'],
                           **saved['model_kwargs'])
    check_same_shapes(state, net.state_dict(), heads_of(net))
    return net


@contextlib.contextmanager
def parameters_limited_by(state: dict[str, torch.Tensor]) -> Iterator[None]:
    """Inside this context, WeightsError ends the construction of a network with far more parameters than `state`.

    Modules register a parameter before they write its initial values, so that no more memory than that is used.
    """
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in state.values()}  # views count once
    elements = sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in storages.values())
    tensors_left, elements_left = _MORE_TENSORS * len(state), _MORE_ELEMENTS * elements

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors_left, elements_left
        if parameter is not None:
            tensors_left, elements_left = tensors_left - 1, elements_left - parameter.numel()
            if tensors_left < 0 or elements_left < 0:
                raise WeightsError('the weights are of a smaller network')

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
