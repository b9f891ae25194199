"""Networks by name, with published weights, and from checkpoints: volo_d1 … volo_d5 or any other network of timm.

Importing this file registers volo_d1 … volo_d5 with timm.
"""
import contextlib
import difflib
from collections.abc import Iterator
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from models.errors import WeightsError, first_line
from models.volo import VARIANTS, VOLO
from models.weights import (
    check_same_shapes,
    check_saved,
    fetch_published,
    fit_batch_counts,
    heads_of,
    load_weights,
    published_tag,
    reach_hub,
    state_dict_of,
)

# Arguments of timm.create_model itself; a checkpoint that sets them could make it read other files.
_TIMMS_OWN = {'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'checkpoint_path', 'cache_dir', 'scriptable',
              'exportable', 'no_jit', 'features_only'}
# Some of timm's networks replace layers while they are built, and so create more parameters than they keep: at most 1.3
# times as many tensors and 2.9 times as many elements. These are the limits while a checkpoint's network is built.
_MORE_TENSORS = 2
_MORE_ELEMENTS = 4


# By name

def default_cfg(name: str) -> dict[str, Any]:
    """Return the published preprocessing of a network, and more, by its name. Raises ValueError for an unknown name."""
    if name in VARIANTS:
        return volo_cfg(name)
    if not timm.is_model(name):
        near = similar_names(name)
        perhaps = f', perhaps {", ".join(near)}' if near else ''
        raise ValueError(f'there is no network {name!r}{perhaps}: choose one of {", ".join(VARIANTS)}, or one that '
                         'timm.list_models() lists')
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False).to_dict()
    except RuntimeError as error:  # an unknown tag as in resnet50.nothing, or a name that timm no longer has
        raise ValueError(f'{name}: {first_line(error).rstrip(".")}: timm.list_models(pretrained=True) lists the '
                         'names') from error


def volo_cfg(name: str, img_size: tuple[int, int] = (224, 224), num_classes: int = 1000) -> dict[str, Any]:
    """Return what timm records for its networks: the published preprocessing, the names of the heads, the licence."""
    return {'architecture': name, 'input_size': (3, *img_size), 'num_classes': num_classes,
            'crop_pct': 1.15 if name in ('volo_d4', 'volo_d5') else 0.96, 'interpolation': 'bicubic',
            'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD, 'first_conv': 'patch_embed.conv.0',
            'classifier': ('head', 'aux_head'), 'license': 'apache-2.0'}


def has_fixed_size(name: str) -> bool:
    """Return whether a network only takes images of the size that it was built for."""
    return name not in VARIANTS and bool(default_cfg(name).get('fixed_input_size'))


def similar_names(name: str) -> list[str]:
    """Return at most three names of networks similar to `name`, the most similar first."""
    wanted = name.lower().replace('-', '_')
    near = difflib.get_close_matches(wanted, {*VARIANTS, *timm.list_models()}, n=20)
    return sorted(near, key=lambda other: (-difflib.SequenceMatcher(None, wanted, other).ratio(), other))[:3]


def create_model(name: str, /, img_size: int | tuple[int, int] = 224, drop_path_rate: float = 0.,
                 **kwargs: Any) -> nn.Module:
    """Build a network: volo_d1 … volo_d5, or one of timm's. `img_size` is in pixels, a number or (height, width).

    Raises ValueError, one line, for an unknown name or setting.
    """
    reserved = kwargs.keys() & _TIMMS_OWN
    if reserved:
        raise ValueError(f'{", ".join(sorted(reserved))} is no setting of a network')
    if name in VARIANTS or has_fixed_size(name):
        kwargs['img_size'] = img_size
    try:
        net = build_with_timm(name, drop_path_rate, **kwargs)
    except WeightsError:
        raise
    except Exception as error:  # each of timm's networks refuses settings with errors of its own
        raise ValueError(f'{name}: {first_line(error)}') from error
    if name not in VARIANTS:
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # in which convolutions are up to twice as fast
    return net


def build_with_timm(name: str, drop_path_rate: float, /, **kwargs: Any) -> nn.Module:
    """Call timm.create_model. A rate of 0 also suits networks that have no stochastic depth and refuse the argument."""
    try:
        return timm.create_model(name, drop_path_rate=drop_path_rate, **kwargs)
    except Exception as error:
        if drop_path_rate != 0 or 'drop_path_rate' not in str(error):
            raise
    return timm.create_model(name, **kwargs)


def fetch_weights(name: str, img_size: tuple[int, int]) -> tuple[str, dict[str, torch.Tensor]]:
    """Return (tag, state dict) of the published ImageNet weights, from the cache or the model hub.

    For a VOLO they are those of the nearest published size, for another network timm's default ones at `img_size`.
    Raises WeightsError.
    """
    if name in VARIANTS:
        return published_tag(name, img_size), fetch_published(name, img_size)
    cfg = default_cfg(name)
    repo = cfg.get('hf_hub_id')
    if not repo:
        raise WeightsError(f'{name} has no published weights in the model hub')
    reach_hub(repo)
    size = {'img_size': img_size} if cfg.get('fixed_input_size') else {}
    try:
        net = timm.create_model(name, pretrained=True, **size)  # timm fits the weights to the size
    except Exception as error:  # of three network libraries, of the disk, or of timm's conversions
        raise WeightsError(f'{repo} cannot be fetched and fitted to {img_size} pixels: {first_line(error)}') from error
    return repo.removeprefix('timm/'), net.state_dict()


# The network in use

def logits_and_features(net: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (logits (B, classes), features (B, dim)) of images (B, 3, H, W), with the network in evaluation mode.

    The features say what an image is like: the mean of a VOLO's tokens, or the input of another network's classifier.
    They are None for a network without timm's forward_features and forward_head.
    """
    if isinstance(net, VOLO):
        tokens, box = net.forward_features(images)
        return net.forward_head(tokens, box), tokens.mean((1, 2))
    if not hasattr(net, 'forward_features') or not hasattr(net, 'forward_head'):
        return net(images), None
    features = net.forward_features(images)
    return net.forward_head(features), net.forward_head(features, pre_logits=True)


# From a checkpoint

def restore_model(saved: Any) -> nn.Module:
    """Return the network of a checkpoint of train.py (its content), with its weights. Raises WeightsError, one line.

    The network is first built on the meta device, where tensors have shapes but no memory. It gets memory only if the
    names and shapes of its tensors are those of the checkpoint.
    """
    check_saved(saved)
    state = state_dict_of({'state_dict': saved['state_dict']})
    is_volo = saved['model'] in VARIANTS
    try:
        net = build_to_match(saved, state, 'meta') if is_volo else build_timms_to_match(saved, state)
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(str(error)) from error
    own = net.state_dict()
    state, _ = fit_batch_counts(state, own)
    state = {name: tensor.to(own[name].dtype) for name, tensor in state.items()}
    net.load_state_dict(state, assign=is_volo)  # a VOLO on the meta device takes the tensors themselves
    return net


def build_timms_to_match(saved: dict[str, Any], state: dict[str, torch.Tensor]) -> nn.Module:
    """Build the network of a checkpoint that is another one of timm's.

    Many of them compute tables that no state dict holds, and so must be built on the CPU in the end. Some cannot be
    built on the meta device; for those the limit on parameters alone holds.
    """
    try:
        build_to_match(saved, state, 'meta')
    except WeightsError:
        raise
    except ValueError:
        pass
    return build_to_match(saved, state, 'cpu')


def build_to_match(saved: dict[str, Any], state: dict[str, torch.Tensor], device: str) -> nn.Module:
    """Build the network of a checkpoint, without its weights, on a device.

    Raises WeightsError if `state` has other names or shapes, as soon as the network has far more parameters than
    `state`; ValueError if the network cannot be built.
    """
    with torch.device(device), parameters_limited_by(state):
        net = create_model(saved['model'], num_classes=len(saved['classes']), img_size=saved['transform']['img_size'],
                           **saved['model_kwargs'])
    own = net.state_dict()
    fitted, _ = fit_batch_counts(state, own)
    check_same_shapes(fitted, own, heads_of(net))
    return net


@contextlib.contextmanager
def parameters_limited_by(state: dict[str, torch.Tensor]) -> Iterator[None]:
    """Let WeightsError end the construction of a network, inside this context, with far more parameters than `state`.

    Modules register a parameter before they write its initial values, so that no more memory than that is used.
    """
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in state.values()}  # views count once
    elements = sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in storages.values())
    tensors_left = _MORE_TENSORS * len(state)
    elements_left = _MORE_ELEMENTS * elements

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors_left, elements_left
        if parameter is None:
            return
        tensors_left -= 1
        elements_left -= parameter.numel()
        if tensors_left < 0 or elements_left < 0:
            raise WeightsError('the weights are of a smaller network')

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


# What timm.create_model calls

def build_variant(name: str, /, pretrained: bool, pretrained_cfg: Any = None, pretrained_cfg_overlay: Any = None,
                  cache_dir: str | None = None, **kwargs: Any) -> VOLO:
    """Build a variant of VOLO. `kwargs` go to VOLO; an unknown one raises TypeError.

    With `pretrained` it gets the published ImageNet-1k weights of the nearest image size, from `cache_dir` or the model
    hub; WeightsError if that fails. timm.create_model always passes `pretrained_cfg` and `pretrained_cfg_overlay`,
    which are not used.
    """
    model = VOLO(**{**VARIANTS[name], **kwargs})
    model.default_cfg = volo_cfg(name, model.img_size, model.num_classes)
    model.pretrained_cfg = model.default_cfg
    if pretrained:
        load_weights(model, fetch_published(name, model.img_size, cache_dir))
    return model


@register_model
def volo_d1(pretrained: bool = False, **kwargs: Any) -> VOLO:
    """VOLO-D1: 27 M parameters, 84.2 % top-1 on ImageNet at 224 pixels."""
    return build_variant('volo_d1', pretrained, **kwargs)


@register_model
def volo_d2(pretrained: bool = False, **kwargs: Any) -> VOLO:
    """VOLO-D2: 59 M parameters, 85.2 % top-1 on ImageNet at 224 pixels."""
    return build_variant('volo_d2', pretrained, **kwargs)


@register_model
def volo_d3(pretrained: bool = False, **kwargs: Any) -> VOLO:
    """VOLO-D3: 86 M parameters, 85.4 % top-1 on ImageNet at 224 pixels."""
    return build_variant('volo_d3', pretrained, **kwargs)


@register_model
def volo_d4(pretrained: bool = False, **kwargs: Any) -> VOLO:
    """VOLO-D4: 193 M parameters, 85.7 % top-1 on ImageNet at 224 pixels."""
    return build_variant('volo_d4', pretrained, **kwargs)


@register_model
def volo_d5(pretrained: bool = False, **kwargs: Any) -> VOLO:
    """VOLO-D5: 296 M parameters, 86.1 % top-1 on ImageNet at 224 pixels."""
    return build_variant('volo_d5', pretrained, **kwargs)
