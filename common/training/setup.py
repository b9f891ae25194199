"""The network of a training run: built, given its initial weights, checked; what it costs; what is frozen."""
import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import nn

from common.data.loaders import own_rows
from common.runtime.device import choose_amp_dtype, choose_device, free_device_memory
from common.runtime.errors import UserError
from common.runtime.processes import LAUNCHED, WORLD_SIZE
from common.settings import Settings
from common.training.plan import Size, make_stages
from models import (
    PUBLISHED,
    VARIANTS,
    WeightsError,
    create_model,
    default_cfg,
    fetch_weights,
    heads_of,
    load_weights,
    normalisation_of,
    read_file,
)
from models.cost import multiply_adds, training_memory

# Where the initial weights of a run come from: found and read before anything long begins

@dataclass(frozen=True)
class Provenance:
    """What result.json and the checkpoints say of the initial weights."""
    source: str                      # 'scratch', a tag of the model hub or the path of a file
    reason: str | None = None        # why none were loaded, if some were wanted
    mean: list[float] | None = None  # the normalisation that belongs to them, of three channels in [0, 1]
    std: list[float] | None = None
    loaded: int = 0                  # tensors
    resized: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    @property
    def from_scratch(self) -> bool:
        return self.source == 'scratch'

    @property
    def normalisation(self) -> tuple[list[float], list[float]] | None:
        return None if self.mean is None else (self.mean, self.std)


def find_weights(cfg: Settings) -> tuple[Provenance, dict | None]:
    """What PRETRAINED asks for: its provenance, and what the file holds, None from scratch. Raises UserError."""
    wanted = cfg.PRETRAINED
    if wanted is False:
        return Provenance('scratch'), None
    try:
        if wanted in (True, 'auto'):
            source, content = fetch_weights(cfg.MODEL, (224, 224) if cfg.IMG_SIZE == 'auto' else cfg.IMG_SIZE)
            if cfg.MODEL in PUBLISHED:
                source += f' (published for {" and ".join(map(str, PUBLISHED[cfg.MODEL]))} pixels)'
        else:
            source, content = wanted, read_file(wanted)
            if not isinstance(content, dict):
                raise WeightsError(f'{wanted}: there is no state dict in it')
    except WeightsError as error:
        if wanted != 'auto':
            raise UserError(f'PRETRAINED = {wanted!r}: {error}') from error
        print(f'!!! NO PRETRAINED WEIGHTS: training from scratch takes far more pictures and epochs !!!\n{error}')
        return Provenance('scratch', reason=str(error)), None
    published = default_cfg(cfg.MODEL)
    mean, std = normalisation_of(content) or (published['mean'], published['std'])
    return Provenance(source, mean=list(mean), std=list(std)), content
ROOM = 0.75  # of the free memory that a training step may take; the rest is for libraries, the allocator, pictures


def build_network(cfg: Settings, classes: list[str], provenance: Provenance,
                  content: dict | None) -> tuple[nn.Module, dict, Provenance]:
    """(network, its keyword arguments, the provenance with what was loaded). `content` is that of find_weights.

    Raises UserError for settings that the network does not go with.
    """
    net, kwargs = create_network(cfg, classes, cfg.IMG_SIZE, cfg.AUGMENTATION * cfg.DROP_PATH)
    if content is not None:
        try:
            provenance = dataclasses.replace(provenance, **vars(load_weights(net, content)))
        except WeightsError as error:
            raise UserError(f'PRETRAINED = {cfg.PRETRAINED!r}: {error}') from error
    print_provenance(provenance)
    if content is not None and content.get('classes', classes) != classes and not provenance.dropped:
        print('weights: the head comes along, though it was trained on other classes: their number is the same')
    check_forward(cfg, net, classes)
    if cfg.FREEZE_EPOCHS and not heads_of(net):
        raise UserError(f'FREEZE_EPOCHS: timm does not say which part of {cfg.MODEL} is the head, set it to 0')
    return net, kwargs, provenance


def create_network(cfg: Settings, classes: list[str], img_size: Size, drop_path: float) -> tuple[nn.Module, dict]:
    """(network with random weights, its keyword arguments). Raises UserError for settings that it does not go with."""
    kwargs = dict(cfg.MODEL_KWARGS)
    if cfg.MODEL in VARIANTS and (cfg.AUX_HEAD or cfg.TOKEN_LABEL):
        kwargs |= {'return_dense': True, 'mix_token': cfg.TOKEN_LABEL}
    try:
        net = create_model(cfg.MODEL, num_classes=len(classes), img_size=img_size, drop_path_rate=drop_path, **kwargs)
    except ValueError as error:
        advice = f': set DROP_PATH = 0, {cfg.MODEL} has none' if 'drop_path' in str(error) else ''
        raise UserError(f'MODEL, MODEL_KWARGS, IMG_SIZE: {error}{advice}') from error
    if cfg.GRAD_CHECKPOINTING:
        try:
            net.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise UserError(f'GRAD_CHECKPOINTING: {cfg.MODEL} cannot do it, set it to False') from error
    return net, kwargs


def print_provenance(provenance: Provenance) -> None:
    """Where the weights came from; what was loaded, resized and dropped, a line for each."""
    print(f'weights: source  {provenance.source}')
    if provenance.loaded:
        print(f'weights: loaded  {provenance.loaded} tensors')
    for name in ('resized', 'dropped'):
        if getattr(provenance, name):
            print(f'weights: {name:7} {", ".join(getattr(provenance, name))}')


def check_forward(cfg: Settings, net: nn.Module, classes: list[str]) -> None:
    """Raise UserError unless the network makes a logit for each class out of an image, of whichever size."""
    for _, size in make_stages(cfg.IMG_SIZE, cfg.START_SIZE):
        advice = '' if size == cfg.IMG_SIZE else f': set START_SIZE, now {cfg.START_SIZE}, to 1'
        try:
            with torch.no_grad():
                shape = getattr(net.eval()(torch.zeros(1, 3, *size)), 'shape', None)
        except Exception as error:  # each of timm's networks has words of its own for it
            raise UserError(f'{cfg.MODEL} takes no pictures of {size} pixels (IMG_SIZE): {error}{advice}') from error
        if shape != (1, len(classes)):
            raise UserError(f'MODEL: {cfg.MODEL} is no classifier, it gives {shape} instead of a logit for each class')


def largest_batch(cfg: Settings, classes: list[str]) -> int:
    """BATCH_SIZE, or about half of it, and so on, until a training step takes no more than ROOM of the free memory."""
    device = choose_device(cfg.USE_GPU)
    amp_dtype = choose_amp_dtype(device) if cfg.USE_AMP else None
    if (free := free_device_memory(device)) is None:
        return cfg.BATCH_SIZE
    with torch.random.fork_rng():
        net, _ = create_network(cfg, classes, cfg.IMG_SIZE, cfg.DROP_PATH)
    net.to(device)
    while (smaller := cfg.BATCH_SIZE // 4 * 2) >= 2 * WORLD_SIZE:  # even, and a pair for each process
        try:
            *_, needed = device_needs(cfg, net, device, amp_dtype)
        except Exception:  # not to be worked out: print_cost will say so
            break
        if needed <= ROOM * free:
            break
        cfg = Settings(**{**vars(cfg), 'BATCH_SIZE': smaller})
    return cfg.BATCH_SIZE


def device_needs(cfg: Settings, net: nn.Module, device: torch.device,
                 amp_dtype: torch.dtype | None) -> tuple[int, int, int]:
    """(this process's devices, at most so many pictures of a batch on each, bytes of memory that training takes there).

    Raises what the network does where its numbers are looked into: they are fake here.
    """
    gpus = torch.cuda.device_count() if cfg.USE_DP and device.type == 'cuda' and not LAUNCHED else 1
    pictures = math.ceil(len(own_rows(cfg.BATCH_SIZE)) / max(1, gpus))
    return gpus, pictures, training_memory(net.train(), cfg.IMG_SIZE, pictures, amp_dtype, copies=2 + cfg.USE_EMA)


def print_cost(cfg: Settings, net: nn.Module, device: torch.device,
               amp_dtype: torch.dtype | None) -> dict[Size, float]:
    """Print a line with the network's parameters, multiply-adds and memory.

    Returns the floating-point operations that training on an image takes, by its size: the backward pass takes
    twice those of the forward pass, and a multiply-add is two. Empty for a network whose operations cannot be counted.
    """
    macs, text = {}, f'{cfg.MODEL}: {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters'
    try:
        gpus, batch, memory = device_needs(cfg, net, device, amp_dtype)
        macs = {size: multiply_adds(net, size) for _, size in make_stages(cfg.IMG_SIZE, cfg.START_SIZE)}
        text += (f', {macs[cfg.IMG_SIZE] / 1e9:.2f} G multiply-adds a picture; a batch of {batch} pictures needs at '
                 f'least {memory / 2 ** 30:.1f} GiB of memory{" on each GPU" if gpus > 1 else ""}')
    except Exception as error:  # a network of timm that looks into its numbers: they are fake there
        if 'more than 1 value per channel' in str(error):
            raise UserError(f'BATCH_SIZE = {cfg.BATCH_SIZE}: too few for the BatchNorm of {cfg.MODEL}') from error
        text += f'; its multiply-adds and memory could not be worked out ({type(error).__name__})'
    print(text)
    return {size: 3 * 2 * count for size, count in macs.items()}


def set_train_mode(net: nn.Module, heads_only: bool) -> None:
    """Set training mode. With `heads_only` all but the heads is frozen, with BatchNorm and dropout as in evaluation."""
    net.train()
    heads = tuple(f'{head}.' for head in heads_of(net))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not heads_only or name.startswith(heads))
    if heads_only:
        for child in net.children():  # not the network itself: token labels need its training mode
            child.eval()
