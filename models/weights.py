"""Weights from files and from the model hub, fitted to a network of another image size or number of classes.

Files: the official ones (such as d1_224_84.2.pth.tar), timm's, safetensors, and train.py's best.pth and last.pth. Only
tensors and plain values are unpickled. What cannot be loaded raises WeightsError, whose message is one line.
"""
import contextlib
import json
import mmap
import queue
import re
import shlex
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import huggingface_hub
import safetensors
import torch
from timm.models import load_state_dict_from_hf
from torch import nn

from models.errors import WeightsError, first_line
from models.volo import resize_pos_embed

PUBLISHED = {  # image sizes of the published ImageNet-1k weights, timm's tags volo_d1_224.sail_in1k and so on
    'volo_d1': (224, 384), 'volo_d2': (224, 384), 'volo_d3': (224, 448), 'volo_d4': (224, 448),
    'volo_d5': (224, 448, 512)}
HUB_FILE = 'model.safetensors'
HUB_PATIENCE = 12  # seconds in which the hub must answer; the download itself has no limit
STATE_DICT_KEYS = ('state_dict_ema', 'state_dict', 'model')  # where a file keeps its state dict; averaged weights first
TRANSFORM_KEYS = ('img_size', 'mean', 'std', 'crop', 'interpolation')  # of a checkpoint, and no others
CONVERT = ("import argparse, sys, torch; torch.serialization.add_safe_globals([argparse.Namespace]); "
           "old = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
           "torch.save({key: old[key] for key in ('model', 'state_dict', 'state_dict_ema') if key in old}, "
           "sys.argv[2])")
LARGEST = 2 ** 14  # limit for the sides of images, in pixels, and for the numbers in a checkpoint's model_kwargs
MOST_PIXELS = 2 ** 24  # limit for images: 4,096 x 4,096, which take 200 MB each as a tensor
LONGEST = 255      # limit for the names in a checkpoint, in characters
MOST_VALUES = 1000  # limit for the values in its model_kwargs, however they are nested
WIDEST = 100       # limit for the values in a list or dict of those
DEEPEST = 5        # limit for how deep those are nested
ZIP_END = 98       # bytes of the three structures at the end of a zip archive: 56, 20 and 22
BATCH_COUNT = 'num_batches_tracked'  # how the names of BatchNorm's counts of training batches end
GROWING = (b'\nbytearray\n', b'\nencode\n')  # what makes many bytes of few, as a pickle names it


# The model hub

def published_tag(name: str, img_size: tuple[int, int]) -> str:
    """Return timm's tag of the weights for `name` whose image side is the nearest to `img_size` (height, width)."""
    side = (img_size[0] * img_size[1]) ** 0.5
    nearest = min(PUBLISHED[name], key=lambda size: abs(size - side))
    return f'{name}_{nearest}.sail_in1k'


def ask_hub(url: str, answers: queue.SimpleQueue) -> None:
    """Put into the queue why a file of the hub cannot be reached, or '' if it can."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=HUB_PATIENCE - 2).close()
        answers.put('')
    except urllib.error.HTTPError as error:
        answers.put(first_line(error))
    except urllib.error.URLError as error:
        answers.put(first_line(error.reason))
    except Exception as error:  # whatever the error is, the hub cannot be used
        answers.put(first_line(error))


def reach_hub(repo: str, cache_dir: str | None = None) -> None:
    """Raise WeightsError within HUB_PATIENCE seconds if a repository is not in the cache and the hub does not answer.

    The hub's own client retries for a minute, and a name server may never answer. Therefore a single request in a
    thread of its own goes first. HF_ENDPOINT names a mirror.
    """
    if isinstance(huggingface_hub.try_to_load_from_cache(repo, HUB_FILE, cache_dir=cache_dir), str):
        return
    url = huggingface_hub.hf_hub_url(repo, HUB_FILE)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        failure = 'HF_HUB_OFFLINE is set'
    else:
        answers = queue.SimpleQueue()
        threading.Thread(target=ask_hub, args=(url, answers), daemon=True).start()
        try:
            failure = answers.get(timeout=HUB_PATIENCE)
        except queue.Empty:
            failure = 'no answer'
    if failure:
        raise WeightsError(f'{repo} is not in the cache and cannot be fetched from {url} ({failure}): check the '
                           'network, set HF_ENDPOINT to a mirror, or give the path of a downloaded file')


def fetch_published(name: str, img_size: tuple[int, int], cache_dir: str | None = None) -> dict[str, torch.Tensor]:
    """Return the published state dict of a VOLO for the nearest image size, from the cache or the model hub."""
    repo = f'timm/{published_tag(name, img_size)}'
    reach_hub(repo, cache_dir)
    try:
        return load_state_dict_from_hf(repo, weights_only=True, cache_dir=cache_dir)
    except Exception as error:  # of three network libraries, of safetensors, or of the disk
        raise WeightsError(f'{repo} cannot be fetched: {first_line(error)}') from error


# Files

def read_file(path: str | Path) -> Any:
    """Return the content of a .pth, .pth.tar or .safetensors file: tensors and plain values. No code in it is run.

    A safetensors file becomes {'state_dict': …, 'transform': the preprocessing in its metadata, or {}}. Raises
    WeightsError for a file that is missing or holds anything else.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f'{path}: no such file, it is a folder')
    if not path.is_file():
        raise WeightsError(f'{path}: no such file')
    try:
        if path.suffix == '.safetensors':
            return read_safetensors(path)
        refuse_what_grows(path)
        return torch.load(path, map_location='cpu', weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # for a damaged file torch.load raises errors of a dozen types
        if 'argparse.Namespace' in str(error):
            new = path.with_name(f'{path.name.split(".")[0]}_tensors.pth')
            raise WeightsError(f'{path} holds the settings of a program beside its weights, as an argparse.Namespace. '
                               'Only tensors and plain values are loaded; this command copies them safely: '
                               f'python -c "{CONVERT}" {shlex.quote(str(path))} {shlex.quote(str(new))}') from error
        raise WeightsError(f'{path}: not a readable file of weights, {what_is_wrong(path, error)}: give a .safetensors '
                           'file or a state dict saved with torch.save') from error


def refuse_what_grows(path: Path) -> None:
    """Raise WeightsError for a file of torch.save that could take far more memory than it is large.

    The records of its zip archive must lie there one after the other, as they are: compressed, a gigabyte of zeros is a
    megabyte, and records that share their bytes are as bad. Raises zipfile's errors for a damaged file.
    """
    with open(path, 'rb') as file:
        if file.read(4) != b'PK\3\4':  # written by PyTorch before 1.6, all of it in pickles
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                growing = [name for name in GROWING if content.find(name) >= 0]
        else:
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
                as_they_are = all(record.compress_type == zipfile.ZIP_STORED for record in records)
                size = path.stat().st_size
                if (not as_they_are or sum(record.file_size for record in records) > size
                        or directory_offset(file, size) != archive.start_dir):
                    raise WeightsError(f'{path}: its records are compressed or not as PyTorch writes them, so that it '
                                       'could take any amount of memory: save it with torch.save')
                pickles = [archive.read(record) for record in records if record.filename.endswith('data.pkl')]
            growing = [name for name in GROWING if any(name in content for content in pickles)]
    if growing:
        raise WeightsError(f'{path}: it holds bytes, made by a pickled {growing[0].decode().strip()}, and only tensors '
                           'and plain values are read')


def directory_offset(file: BinaryIO, size: int) -> int:
    """Return where the list of a zip archive's records begins, for every program alike; -1 where that is open.

    An archive can be written so that two programs find different lists in it.
    """
    file.seek(max(0, size - ZIP_END))
    end = file.read()
    if len(end) < ZIP_END or end[-22:-18] != b'PK\5\6':  # there is a comment behind it
        return -1
    if end[-42:-38] != b'PK\6\7':
        return int.from_bytes(end[-6:-2], 'little')
    if int.from_bytes(end[-34:-26], 'little') != size - ZIP_END:
        return -1
    return int.from_bytes(end[48:56], 'little')


def read_safetensors(path: Path) -> dict[str, Any]:
    """Return {'state_dict': …, 'transform': …} of a safetensors file.

    The entry `preprocessing` of the metadata, if there is one, holds a checkpoint's `transform` as JSON.
    """
    with safetensors.safe_open(path, 'pt') as file:
        metadata = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {'state_dict': state, 'transform': json.loads(metadata.get('preprocessing', '{}'))}


def what_is_wrong(path: Path, error: Exception) -> str:
    """Say in a few words why torch.load or safetensors refused a file; PyTorch's own reasons are paragraphs."""
    forbidden = re.search(r'GLOBAL ([\w.]{1,100})', str(error))
    if forbidden:
        return f'it holds a pickled {forbidden[1]}, and only tensors and plain values are read'
    if isinstance(error, (PermissionError, MemoryError)):
        return first_line(error)
    if path.stat().st_size == 0:
        return 'it is empty'
    if path.suffix == '.safetensors':
        return 'it is damaged or not a safetensors file'
    if 'TorchScript' in str(error):
        return 'it is a TorchScript program'
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as file:  # damaged, it raises errors of a dozen types
        if not any(name.endswith('/data.pkl') for name in file.namelist()):
            return 'it is a zip archive of something else'
    return 'it is damaged or PyTorch did not write it'


# What is in a file

def state_dict_of(content: Any) -> dict[str, torch.Tensor]:
    """Return the tensors by name in what read_file returned: averaged weights before raw ones, without `module.`."""
    state = content
    if isinstance(content, dict):
        nested = [content[key] for key in STATE_DICT_KEYS if isinstance(content.get(key), dict)]
        if nested:
            state = nested[0]
    if not is_state_dict(state):
        raise WeightsError('there is no state dict in it, which is a dict of dense tensors by name, alone or under '
                           f'{", ".join(STATE_DICT_KEYS[:-1])} or {STATE_DICT_KEYS[-1]}')
    return {name.removeprefix('module.'): tensor for name, tensor in state.items()}


def is_state_dict(value: Any) -> bool:
    """Return whether something is a dict, not an empty one, of dense tensors on the CPU by name."""
    return (isinstance(value, dict) and len(value) > 0
            and all(isinstance(name, str) and is_ordinary(tensor) for name, tensor in value.items()))


def is_ordinary(value: Any) -> bool:
    """Return whether something is a dense tensor on the CPU, not quantised, whose elements are all in memory: one that
    repeats a few of them without end is small, and what is computed from it is not.
    """
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.device.type != 'cpu':
        return False
    return not value.is_quantized and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def are_numbers(values: Any, count: int, least: float, most: float) -> bool:
    """Return whether something is a list or tuple of `count` numbers from `least` to `most`."""
    return (isinstance(values, (list, tuple)) and len(values) == count
            and all(type(value) in (int, float) and least <= value <= most for value in values))


def is_img_size(sides: Any, crop: float | None = None) -> bool:
    """Return whether something is a size of images, (height, width) in whole pixels, for which there is memory, also
    where they are the middle of larger ones: `crop` is the fraction of a side that is left.
    """
    if not are_numbers(sides, 2, 16, LARGEST) or not all(isinstance(side, int) for side in sides):
        return False
    return sides[0] * sides[1] <= MOST_PIXELS * min(1, crop or 1) ** 2


def normalisation_of(content: Any) -> tuple[list[float], list[float]] | None:
    """Return (mean, std), three numbers each, beside the weights in what read_file returned; None without them."""
    transform = content.get('transform') if isinstance(content, dict) else None
    if not isinstance(transform, dict):
        return None
    mean = transform.get('mean')
    std = transform.get('std')
    if not are_numbers(mean, 3, -1e3, 1e3) or not are_numbers(std, 3, 1e-6, 1e3):
        return None
    return list(mean), list(std)


def check_saved(saved: Any) -> None:
    """Raise WeightsError, one line, unless a checkpoint of train.py holds all that test.py needs.

    Types and ranges are checked before a network is built from it, because a checkpoint may come from anyone.
    """
    if not isinstance(saved, dict):
        raise WeightsError('not a checkpoint of train.py: give the path of its best.pth or last.pth')
    missing = [key for key in ('model', 'model_kwargs', 'state_dict', 'classes', 'transform') if key not in saved]
    transform = saved.get('transform')
    if not isinstance(transform, dict):
        transform = {}
    if 'transform' in saved:
        missing += [f'transform.{key}' for key in TRANSFORM_KEYS if key not in transform]
    if missing:
        raise WeightsError(f'not a complete checkpoint of train.py, {", ".join(missing)} is missing: give the path of '
                           'its best.pth or last.pth')
    kwargs = saved['model_kwargs']
    classes = saved['classes']
    crop = transform['crop']
    is_crop = crop is None or are_numbers([crop], 1, 0.1, 2)
    reserved = {'img_size', 'num_classes'}  # the checkpoint has them elsewhere
    valid = {
        'transform': len(transform) == len(TRANSFORM_KEYS),
        'model': is_name(saved['model']),
        'model_kwargs': isinstance(kwargs, dict) and is_plain(kwargs) and kwargs.keys().isdisjoint(reserved),
        'state_dict': isinstance(saved['state_dict'], dict),
        'classes': isinstance(classes, list) and all(map(is_name, classes)) and len(set(classes)) == len(classes) > 0,
        'img_size': is_img_size(transform['img_size'], crop if is_crop else None),
        'mean': are_numbers(transform['mean'], 3, -1e3, 1e3),
        'std': are_numbers(transform['std'], 3, 1e-6, 1e3),
        'crop': is_crop,
        'interpolation': transform['interpolation'] in ('bilinear', 'bicubic')}
    wrong = [name for name, fine in valid.items() if not fine]
    if wrong:
        raise WeightsError(f'not a complete checkpoint of train.py, something is wrong with its {", ".join(wrong)}')


def is_name(value: Any) -> bool:
    """Return whether something is a text of at most LONGEST characters that a folder could have for a name: characters,
    and in place of bytes that are none what Python puts there.
    """
    if not isinstance(value, str) or len(value) > LONGEST or '\0' in value:
        return False
    try:
        value.encode('utf-8', 'surrogateescape')
    except UnicodeEncodeError:
        return False
    return True


def is_plain_value(value: Any) -> bool:
    """Return whether something is None, a name, or a number up to LARGEST."""
    if isinstance(value, (int, float)):
        return abs(value) <= LARGEST
    return value is None or is_name(value)


def is_plain(value: Any, is_leaf: Callable[[Any], bool] = is_plain_value) -> bool:
    """Return whether something consists of what `is_leaf` accepts, and of lists and dicts of that: at most MOST_VALUES,
    where a list that is in several places counts in each.
    """
    count = 0
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = []
        for item in level:
            if not isinstance(item, (dict, list, tuple)):
                if not is_leaf(item):
                    return False
                continue
            count += len(item)
            if len(item) > WIDEST or count > MOST_VALUES:
                return False
            if isinstance(item, dict):
                if not all(map(is_name, item)):
                    return False
                inner.extend(item.values())
            else:
                inner.extend(item)
        level = inner
    return not level


# Into a network

@dataclass(frozen=True)
class LoadReport:
    """What load_weights did."""
    loaded: int            # number of tensors
    resized: list[str]     # such as 'pos_embed 14x14 to 24x24'
    dropped: list[str]     # heads that were not loaded, and why
    counted_anew: int = 0  # number of batch counts of BatchNorm that are not in the file and start at 0


def load_weights(model: nn.Module, source: str | Path | dict) -> LoadReport:
    """Load a file (its path), or what read_file returned, into a VOLO or another network of timm.

    pos_embed is resized to the network's. A head of which the file has none of the same shape becomes 0, so that all
    classes are equally probable; a head that the network lacks is left out. So are batch counts, which start at 0 where
    the file lacks them.
    Anything else that is missing, unexpected or of another shape raises WeightsError, and the network is not changed.
    """
    state = state_dict_of(source if isinstance(source, dict) else read_file(source))
    own = model.state_dict()
    state, counted_anew = fit_batch_counts(state, own)
    fitted, report = fit_weights(state, own, heads_of(model))
    report = replace(report, loaded=report.loaded - counted_anew, counted_anew=counted_anew)
    model.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in fitted.items()}, strict=False)
    for name in own.keys() - fitted.keys():  # of a new head; random ones would first push the loaded features about
        own[name].zero_()
    return report


def fit_weights(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor],
                heads: Iterable[str]) -> tuple[dict[str, torch.Tensor], LoadReport]:
    """Return the tensors of `state` to load into the network whose state dict is `own`, and the report of loading them.

    `heads` are the network's. Raises WeightsError if they do not fit.
    """
    fitted = dict(state)
    expected = dict(own)
    resized = []
    dropped = []
    if has_other_grid(state, own):
        old = state['pos_embed'].shape[1:3]
        new = own['pos_embed'].shape[1:3]
        fitted['pos_embed'] = resize_pos_embed(state['pos_embed'], new)
        resized.append(f'pos_embed {old[0]}x{old[1]} to {new[0]}x{new[1]}')
    for head in heads:
        theirs = [name for name in state if name.startswith(f'{head}.')]
        ours = [name for name in own if name.startswith(f'{head}.')]
        if not theirs and not ours:
            continue
        if not theirs:
            dropped.append(f'{head}: none in the file')
        elif any(name not in own or own[name].shape != state[name].shape for name in theirs):
            dropped.append(f'{head} of {len(torch.atleast_1d(state[theirs[0]]))} classes')
        else:
            continue
        for name in theirs or ours:
            fitted.pop(name, None)
            expected.pop(name, None)
    check_same_shapes(fitted, expected)
    return fitted, LoadReport(len(fitted), resized, dropped)


def fit_batch_counts(state: dict[str, torch.Tensor],
                     own: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], int]:
    """Return `state` with the batch counts of BatchNorm that the state dict `own` has, and how many of them are new.

    PyTorch treats them as optional: older versions did not save them, converters leave them out, and a network in
    evaluation does not use them. New ones are 0; those of layers that have none in `own` are left out.
    """
    fitted = dict(state)
    new = 0
    for name in own:
        layer = name.removesuffix(BATCH_COUNT)
        if layer != name and name not in state and f'{layer}running_var' in state:
            fitted[name] = torch.tensor(0)
            new += 1
    for name in state:
        layer = name.removesuffix(BATCH_COUNT)
        if layer != name and name not in own and f'{layer}running_var' in own:
            del fitted[name]
    return fitted, new


def has_other_grid(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> bool:
    """Return whether the pos_embed of two state dicts are a VOLO's, (1, H, W, C), and differ in shape."""
    if 'pos_embed' not in state or 'pos_embed' not in own:
        return False
    theirs = state['pos_embed']
    ours = own['pos_embed']
    return theirs.ndim == 4 and ours.ndim == 4 and theirs.numel() > 0 and theirs.shape != ours.shape


def check_same_shapes(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor], heads: Iterable[str] = ()) -> None:
    """Raise WeightsError unless both state dicts have the same names and shapes.

    If only `heads` differ, the message says that the number of classes does.
    """
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
    """Return the names of the modules that make the class logits, such as ('head', 'aux_head')."""
    names = model.default_cfg.get('classifier') or ()
    return (names,) if isinstance(names, str) else tuple(names)
