"""Weights from files and from the model hub, fitted to a network of another image size or number of classes.

Files: the official ones (such as d1_224_84.2.pth.tar), timm's, safetensors, and train.py's best.pth and last.pth. Only
tensors and plain values are unpickled. What cannot be loaded raises WeightsError, whose message is one line.
"""
import contextlib
import json
import re
import shlex
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors
import torch
import torch.nn.functional as F
from timm.models import load_state_dict_from_hf
from torch import nn

PUBLISHED = {  # image sizes of the published ImageNet-1k weights, timm's tags volo_d1_224.sail_in1k and so on
    'volo_d1': (224, 384), 'volo_d2': (224, 384), 'volo_d3': (224, 448), 'volo_d4': (224, 448),
    'volo_d5': (224, 448, 512)}
HUB_FILE = 'model.safetensors'
HUB_PATIENCE = 12  # seconds in which the hub must answer; the download itself has no limit
STATE_DICT_KEYS = ('state_dict_ema', 'state_dict', 'model')  # where a file keeps its state dict; averaged weights first
CONVERT = ("import argparse, sys, torch; torch.serialization.add_safe_globals([argparse.Namespace]); "
           "old = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
           "torch.save({key: old[key] for key in ('model', 'state_dict', 'state_dict_ema') if key in old}, "
           "sys.argv[2])")


class WeightsError(ValueError):
    """Weights cannot be read or fetched, or do not fit the network. The message is one line."""


def published_tag(name: str, img_size: tuple[int, int]) -> str:
    """timm's tag of the weights for `name` whose image side is nearest to that of `img_size` (height, width)."""
    side = (img_size[0] * img_size[1]) ** 0.5
    return f'{name}_{min(PUBLISHED[name], key=lambda size: abs(size - side))}.sail_in1k'


def _probe(url: str, answer: list) -> None:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=HUB_PATIENCE - 2).close()
        answer.append(None)
    except Exception as error:  # whatever the error is, the hub cannot be used
        answer.append(first_line(error.reason if type(error) is urllib.error.URLError else error))


def reach_hub(repo: str, cache_dir: str | None = None) -> None:
    """Raise WeightsError within HUB_PATIENCE seconds if a repository is not in the cache and the hub does not answer.

    The hub's own client retries for a minute, and a name server may never answer, so a single request in its own thread
    goes first. HF_ENDPOINT names a mirror.
    """
    if isinstance(huggingface_hub.try_to_load_from_cache(repo, HUB_FILE, cache_dir=cache_dir), str):
        return
    answer, url = [], huggingface_hub.hf_hub_url(repo, HUB_FILE)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        answer.append('HF_HUB_OFFLINE is set')
    else:
        probe = threading.Thread(target=_probe, args=(url, answer), daemon=True)
        probe.start()
        probe.join(HUB_PATIENCE)
    if answer != [None]:
        raise WeightsError(f'{repo} is not in the cache and cannot be fetched from {url} '
                           f'({answer[0] if answer else "no answer"}): check the network, set HF_ENDPOINT to a mirror, '
                           'or give the path of a downloaded file')


def fetch_published(name: str, img_size: tuple[int, int], cache_dir: str | None = None) -> dict[str, torch.Tensor]:
    """State dict of the published weights of a VOLO whose image size is nearest, from the cache or the model hub."""
    repo = f'timm/{published_tag(name, img_size)}'
    reach_hub(repo, cache_dir)
    try:
        return load_state_dict_from_hf(repo, weights_only=True, cache_dir=cache_dir)
    except Exception as error:  # of three network libraries, of safetensors, or of the disk
        raise WeightsError(f'{repo} cannot be fetched: {first_line(error)}') from error


def first_line(error: object) -> str:
    """The first line of an error's message, or its type where it has none; at most 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def read_file(path: str | Path) -> Any:
    """The content of a .pth, .pth.tar or .safetensors file: tensors and plain values; no code in it is run.

    A safetensors file becomes {'state_dict': …, 'transform': the preprocessing that extras/deploy wrote, or {}}.
    Raises WeightsError for a file that is missing or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f'{path}: no such file{", it is a folder" if path.is_dir() else ""}')
    try:
        if path.suffix == '.safetensors':
            with safetensors.safe_open(path, 'pt') as file:
                preprocessing = (file.metadata() or {}).get('preprocessing', '{}')
                return {'state_dict': {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                        'transform': json.loads(preprocessing)}
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # for a damaged file torch.load raises errors of a dozen types
        if 'argparse.Namespace' in str(error):
            new = path.with_name(f'{path.name.split(".")[0]}_tensors.pth')
            raise WeightsError(f'{path} holds the settings of a program beside its weights, as an argparse.Namespace. '
                               'Only tensors and plain values are loaded; this command copies them safely: '
                               f'python -c "{CONVERT}" {shlex.quote(str(path))} {shlex.quote(str(new))}') from error
        raise WeightsError(f'{path}: not a readable file of weights, {what_is_wrong(path, error)}: give a .safetensors '
                           'file or a state dict saved with torch.save') from error


def what_is_wrong(path: Path, error: Exception) -> str:
    """Why torch.load or safetensors refused a file, in a few words; PyTorch's own reasons are paragraphs."""
    forbidden = re.search(r'GLOBAL ([\w.]{1,100})', str(error))
    if forbidden:
        return f'it holds a pickled {forbidden[1]}, and only tensors and plain values are read'
    if isinstance(error, (PermissionError, MemoryError)):
        return first_line(error)
    if path.stat().st_size == 0:
        return 'it is empty'
    if path.suffix == '.safetensors':
        return 'it is damaged or no safetensors file'
    if 'TorchScript' in str(error):
        return 'it is a TorchScript program'
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as file:  # damaged, it raises errors of a dozen types
        if not any(name.endswith('/data.pkl') for name in file.namelist()):
            return 'it is a zip archive of something else'
    return 'it is damaged or PyTorch did not write it'


def state_dict_of(content: Any) -> dict[str, torch.Tensor]:
    """The tensors by name in what read_file returns: averaged weights before raw ones, without a `module.` prefix."""
    for key in STATE_DICT_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(
            isinstance(name, str) and is_ordinary(tensor) for name, tensor in content.items()):
        raise WeightsError('there is no state dict in it, which is a dict of dense tensors by name, alone or under '
                           f'{", ".join(STATE_DICT_KEYS[:-1])} or {STATE_DICT_KEYS[-1]}')
    return {name.removeprefix('module.'): tensor for name, tensor in content.items()}


def is_ordinary(tensor: Any) -> bool:
    """Whether something is a dense tensor on the CPU, not quantised."""
    return (isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and tensor.device.type == 'cpu'
            and not tensor.is_quantized)


def are_numbers(values: Any, count: int, least: float, most: float) -> bool:
    """Whether something is a list or tuple of `count` numbers from `least` to `most`."""
    return (isinstance(values, (list, tuple)) and len(values) == count
            and all(type(value) in (int, float) and least <= value <= most for value in values))


def normalisation_of(content: Any) -> tuple[list[float], list[float]] | None:
    """(mean, std) beside the weights in what read_file returns, three numbers each; None where there are none."""
    found = content.get('transform') if isinstance(content, dict) else None
    if isinstance(found, dict) and are_numbers(found.get('mean'), 3, -1e3, 1e3) and are_numbers(
            found.get('std'), 3, 1e-6, 1e3):
        return list(found['mean']), list(found['std'])
    return None


def resize_pos_embed(pos_embed: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(1, H, W, C) -> (1, *size, C), by the official code's interpolation: bicubic, without antialiasing."""
    resized = F.interpolate(pos_embed.float().permute(0, 3, 1, 2), size=size, mode='bicubic', align_corners=False)
    return resized.permute(0, 2, 3, 1).to(pos_embed.dtype)  # (1, C, *size) -> (1, *size, C)


def load_weights(model: nn.Module, source: str | Path | dict) -> dict[str, Any]:
    """Load a file (its path) or what read_file returned into the network, and return a report of the loading.

    The report is {'loaded': number of tensors, 'resized': [text, …], 'dropped': [text, …]}. pos_embed is resized to the
    network's. A head keeps its initial values only where the shapes differ or the file has none; a head that the
    network lacks is left out. Anything else that is missing, unexpected or of another shape raises WeightsError, and
    the network is not changed. `model` is a VOLO or another network of timm.
    """
    state, own = state_dict_of(source if isinstance(source, dict) else read_file(source)), model.state_dict()
    resized, dropped = fit_pos_embed(state, own), drop_other_heads(state, own, heads_of(model))
    check_same_shapes(state, own)
    model.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in state.items()}, strict=False)
    return {'loaded': len(state), 'resized': resized, 'dropped': dropped}


def fit_pos_embed(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> list[str]:
    """Resize pos_embed of `state`, in place, to that of the network's state dict `own`. Returns lines for a report."""
    theirs, ours = state.get('pos_embed'), own.get('pos_embed')
    if theirs is None or ours is None or theirs.shape == ours.shape or not theirs.ndim == ours.ndim == 4 or (
            not theirs.numel()):
        return []
    state['pos_embed'] = resize_pos_embed(theirs, ours.shape[1:3])
    return ['pos_embed {}x{} to {}x{}'.format(*theirs.shape[1:3], *ours.shape[1:3])]


def drop_other_heads(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor], heads: Iterable[str]) -> list[str]:
    """Take out of both state dicts, in place, the heads that only one has or that differ in shape. Returns lines for
    the report."""
    dropped = []
    for head in heads:
        theirs, ours = ([name for name in names if name.startswith(f'{head}.')] for names in (state, own))
        if ours and not theirs:
            dropped.append(f'{head}: none in the file')
        elif any(name not in own or own[name].shape != state[name].shape for name in theirs):
            dropped.append(f'{head} of {len(torch.atleast_1d(state[theirs[0]]))} classes')
        else:
            continue
        for name in theirs or ours:
            state.pop(name, None)
            own.pop(name, None)
    return dropped


def check_same_shapes(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor], heads: Iterable[str] = ()) -> None:
    """Raise WeightsError unless both state dicts have the same names and shapes. `heads` are told from other parts."""
    wrong = [f'{name} is missing' for name in own if name not in state]
    wrong += [f'{" ".join(name[:99].split())} is unexpected' for name in state if name not in own]
    wrong += [f'{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}'
              for name in own if name in state and state[name].shape != own[name].shape]
    if not wrong:
        return
    other = 'network'
    if all(text.startswith('pos_embed ') for text in wrong):
        other = 'image size'
    elif all(text.startswith(tuple(f'{head}.' for head in heads)) for text in wrong):
        other = 'number of classes'
    more = f'; and {len(wrong) - 4} more' if len(wrong) > 4 else ''
    raise WeightsError(f'the weights are of another {other}: {"; ".join(wrong[:4])}{more}')


def heads_of(model: nn.Module) -> tuple[str, ...]:
    """The names of the modules that make the class logits, such as ('head', 'aux_head')."""
    names = model.default_cfg.get('classifier') or ()
    return (names,) if isinstance(names, str) else tuple(names)
