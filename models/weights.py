"""Weights from files and from the model hub, fitted to a network of another image size or number of classes.

Files: the official ones (d1_224_84.2.pth.tar and its kin), timm's, safetensors, and train.py's best.pth and last.pth.
Only tensors and plain values are unpickled. What cannot be loaded raises WeightsError, in one line.
"""
import json
import shlex
import threading
import urllib.request
from pathlib import Path

import huggingface_hub
import safetensors
import torch
import torch.nn.functional as F
from timm.models import load_state_dict_from_hf

PUBLISHED = {  # image sizes of the published ImageNet-1k weights, timm's tags volo_d1_224.sail_in1k and so on
    'volo_d1': (224, 384), 'volo_d2': (224, 384), 'volo_d3': (224, 448), 'volo_d4': (224, 448),
    'volo_d5': (224, 448, 512)}
HUB_FILE = 'model.safetensors'
HUB_PATIENCE = 12  # seconds in which the hub must answer; the download that follows takes as long as it takes
CONVERT = ("import argparse, sys, torch; torch.serialization.add_safe_globals([argparse.Namespace]); "
           "old = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
           "torch.save({key: old[key] for key in ('model', 'state_dict', 'state_dict_ema') if key in old}, "
           "sys.argv[2])")


class WeightsError(ValueError):
    """Weights that cannot be read, do not fit the network, or cannot be fetched."""


def published_tag(name, img_size):
    """timm's tag of the weights for `name` whose image side is nearest to that of `img_size` (height, width)."""
    side = (img_size[0] * img_size[1]) ** 0.5
    return f'{name}_{min(PUBLISHED[name], key=lambda size: abs(size - side))}.sail_in1k'


def _probe(url, answer):
    try:
        urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=HUB_PATIENCE - 2).close()
        answer.append(None)
    except Exception as error:  # whatever it is, there is no answer
        answer.append(error)


def reach_hub(repo, cache_dir=None):
    """Raise WeightsError, within HUB_PATIENCE seconds, if a repository is neither in the cache nor in the hub's reach.

    The hub's own client retries for a minute, and a name server may never answer, so one request in a thread of its own
    goes first. HF_ENDPOINT names a mirror.
    """
    if isinstance(huggingface_hub.try_to_load_from_cache(repo, HUB_FILE, cache_dir=cache_dir), str):
        return
    answer, url = [], huggingface_hub.hf_hub_url(repo, HUB_FILE)
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        probe = threading.Thread(target=_probe, args=(url, answer), daemon=True)
        probe.start()
        probe.join(HUB_PATIENCE)
    if answer != [None]:
        raise WeightsError(f'{repo} is not in the cache and cannot be fetched from {url} '
                           f'({answer[0] if answer else "no answer"}): check the network, set HF_ENDPOINT to a mirror, '
                           'or give the path of a downloaded file')


def fetch_published(name, img_size, cache_dir=None):
    """State dict of the published weights of a VOLO whose image size is nearest, from the cache or the model hub."""
    repo = f'timm/{published_tag(name, img_size)}'
    reach_hub(repo, cache_dir)
    try:
        return load_state_dict_from_hf(repo, weights_only=True, cache_dir=cache_dir)
    except Exception as error:  # the errors of three network libraries, of safetensors and of the disk
        raise WeightsError(f'{repo} cannot be fetched: {first_line(error)}') from error


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_file(path):
    """What a .pth, .pth.tar or .safetensors file holds: tensors and plain values, nothing that runs.

    A safetensors file comes as {'state_dict': …, 'transform': the preprocessing of models/export.py or {}}.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f'{path}: no such file')
    try:
        if path.suffix == '.safetensors':
            with safetensors.safe_open(path, 'pt') as file:
                preprocessing = (file.metadata() or {}).get('preprocessing', '{}')  # of models/export.py
                return {'state_dict': {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                        'transform': json.loads(preprocessing)}
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch.load's errors on a damaged file are of a dozen types
        if 'argparse.Namespace' in str(error):
            new = path.with_name(f'{path.name.split(".")[0]}_tensors.pth')
            raise WeightsError(f'{path} holds the settings of a program beside its weights, as an argparse.Namespace. '
                               'Only tensors and plain values are loaded; this line takes them out, safely: '
                               f'python -c "{CONVERT}" {shlex.quote(str(path))} {shlex.quote(str(new))}') from error
        raise WeightsError(f'{path}: not a readable file of weights ({first_line(error)[:160]})') from error


def state_dict_of(content):
    """The tensors by name in what read_file gives: averaged weights before raw ones, without a `module.` prefix."""
    for key in ('state_dict_ema', 'state_dict', 'model'):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(
            isinstance(name, str) and is_ordinary(tensor) for name, tensor in content.items()):
        raise WeightsError('there is no state dict in it')
    return {name.removeprefix('module.'): tensor for name, tensor in content.items()}


def is_ordinary(tensor):
    """Whether something is a tensor with its numbers in memory, all of them."""
    return (isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and tensor.device.type == 'cpu'
            and not tensor.is_quantized)


def are_numbers(values, count, least, most):
    """Whether these are so many numbers of that range."""
    return (isinstance(values, (list, tuple)) and len(values) == count
            and all(type(value) in (int, float) and least <= value <= most for value in values))


def normalisation_of(content):
    """(mean, std) that stand beside the weights in what read_file gives, each of three numbers; None if they do not."""
    found = content.get('transform') if isinstance(content, dict) else None
    if isinstance(found, dict) and are_numbers(found.get('mean'), 3, -1e3, 1e3) and are_numbers(
            found.get('std'), 3, 1e-6, 1e3):
        return list(found['mean']), list(found['std'])
    return None


def resize_pos_embed(pos_embed, size):
    """(1, H, W, C) -> (1, *size, C), as the official code does it: bicubic, no antialias."""
    resized = F.interpolate(pos_embed.float().permute(0, 3, 1, 2), size=size, mode='bicubic', align_corners=False)
    return resized.permute(0, 2, 3, 1).to(pos_embed.dtype)


def load_weights(model, source, assign=False):
    """Load a file (its path) or what read_file gave into the network and return what was done, a dict for a log.

    pos_embed is resized to the network's. A head is left at its initial values only where the shapes differ or the file
    has none, and one that the network lacks is left out. Anything else missing, unexpected or of another shape raises
    WeightsError, and the network stays as it was. `model` is a VOLO or another network of timm. With `assign` its
    parameters become the file's tensors instead of copies of them.
    """
    state = state_dict_of(source if isinstance(source, dict) else read_file(source))
    own = model.state_dict()
    done = {'resized': [], 'dropped': []}
    theirs, ours = state.get('pos_embed'), own.get('pos_embed')
    if theirs is not None and ours is not None and theirs.ndim == ours.ndim == 4 and theirs.shape != ours.shape:
        state['pos_embed'] = resize_pos_embed(theirs, ours.shape[1:3])
        done['resized'].append('pos_embed {}x{} to {}x{}'.format(*theirs.shape[1:3], *ours.shape[1:3]))
    for head in heads_of(model):
        theirs, ours = ([name for name in names if name.startswith(f'{head}.')] for names in (state, own))
        if ours and not theirs:
            done['dropped'].append(f'{head}: none in the file')
            own = {name: tensor for name, tensor in own.items() if name not in ours}
        elif any(name not in own or own[name].shape != state[name].shape for name in theirs):
            done['dropped'].append(f'{head} of {len(state[theirs[0]])} classes')
            state = {name: tensor for name, tensor in state.items() if name not in theirs}
            own = {name: tensor for name, tensor in own.items() if name not in theirs}
    wrong = [f'{name} is missing' for name in own if name not in state]
    wrong += [f'{name} is unexpected' for name in state if name not in own]
    wrong += [f'{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}'
              for name in own if name in state and state[name].shape != own[name].shape]
    if wrong:
        more = f'; and {len(wrong) - 4} more' if len(wrong) > 4 else ''
        other = 'image size' if all(text.startswith('pos_embed') for text in wrong) else 'network'
        raise WeightsError(f'the weights are of another {other}: {"; ".join(wrong[:4])}{more}')
    state = {name: tensor.to(own[name].dtype) for name, tensor in state.items()}
    model.load_state_dict(state, strict=False, assign=assign)
    return {'loaded': len(state), **done}


def heads_of(model):
    """The names of the modules that make class logits, such as ('head', 'aux_head')."""
    names = model.default_cfg.get('classifier') or ()
    return (names,) if isinstance(names, str) else tuple(names)
