"""The network of a training run: its initial weights, how it is built, what it costs."""
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from timm.utils import random_seed
from torch import nn

from common.data.loaders import own_rows
from common.runtime.device import choose_device, free_device_memory, use_free_cores
from common.runtime.errors import UserError, explain_failures
from common.runtime.files import sole_writer, writable_folder
from common.runtime.machine import retain_freed_memory
from common.runtime.processes import LAUNCHED, RANK, WORLD_SIZE, on_first, process_group
from common.settings import Settings
from models import (
    PUBLISHED,
    VARIANTS,
    VOLO,
    WeightsError,
    create_model,
    default_cfg,
    fetch_weights,
    load_weights,
    normalisation_of,
    read_file,
)
from models.cost import multiply_adds, training_memory
from models.init import filter_images

MEMORY_SHARE = 0.75  # of the free memory that a training step may take; the rest is for libraries, allocator, images

Size = tuple[int, int]  # (height, width) in pixels


# ---- the machine -----------------------------------------------------------------------------------------------------

@contextmanager
def running(output_dir: str, use_gpu: bool | str, seed: int) -> Iterator[Path]:
    """Yield the folder OUTPUT_DIR, made where there is none, in which no other run may write meanwhile.

    Inside, several processes can talk to each other, all random numbers follow from the seed, and failures of the
    machine, such as too little memory, become UserErrors.
    """
    retain_freed_memory()
    random_seed(seed)
    less_memory = 'halve BATCH_SIZE and double ACCUMULATE_STEPS, or set GRAD_CHECKPOINTING = True'
    with process_group(use_gpu):
        out = on_first(writable_folder, output_dir, 'OUTPUT_DIR')
        with (sole_writer(out, 'OUTPUT_DIR') if RANK == 0 else nullcontext(),
              explain_failures(less_memory, f'--resume goes on from {out}/last.pth')):
            use_free_cores(choose_device(use_gpu))
            yield out


# ---- initial weights -------------------------------------------------------------------------------------------------

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
        if self.mean is None:
            return None
        return self.mean, self.std


@dataclass
class InitialWeights:
    """Weights that a run begins with, found and read before anything long begins."""
    provenance: Provenance
    content: dict | None  # what the file holds; None from scratch, and in a resumed run


def find_weights(wanted: bool | str, model: str, img_size: Size | str) -> InitialWeights:
    """Return what PRETRAINED = `wanted` asks for. Raises UserError."""
    if wanted is False:
        return InitialWeights(Provenance('scratch'), None)
    try:
        if wanted in (True, 'auto'):
            source, content = fetch_weights(model, (224, 224) if img_size == 'auto' else img_size)
            if model in PUBLISHED:
                source += f' (published for {" and ".join(map(str, PUBLISHED[model]))} pixels)'
        else:
            source = wanted
            content = read_file(wanted)
            if not isinstance(content, dict):
                raise WeightsError(f'{wanted}: there is no state dict in it')
    except WeightsError as error:
        if wanted != 'auto':
            raise UserError(f'PRETRAINED = {wanted!r}: {error}') from error
        print(f'!!! NO PRETRAINED WEIGHTS: training from scratch takes far more images and epochs !!!\n{error}')
        return InitialWeights(Provenance('scratch', reason=str(error)), None)
    published = default_cfg(model)
    mean, std = normalisation_of(content) or (published['mean'], published['std'])
    return InitialWeights(Provenance(source, mean=list(mean), std=list(std)), content)


def weights_of_resumed(saved: dict) -> InitialWeights:
    """Return what a checkpoint says of the weights that its run began with; its own will be loaded."""
    return InitialWeights(Provenance(**saved['provenance']), None)


def print_provenance(provenance: Provenance) -> None:
    """Print where the weights came from, and what was loaded, resized and dropped, a line for each."""
    print(f'weights: source  {provenance.source}')
    if provenance.loaded:
        print(f'weights: loaded  {provenance.loaded} tensors')
    if provenance.resized:
        print(f'weights: resized {", ".join(provenance.resized)}')
    if provenance.dropped:
        print(f'weights: dropped {", ".join(provenance.dropped)}')


# ---- the network -----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class NetworkSpec:
    """What a network is built from."""
    model: str
    kwargs: dict
    classes: int
    img_size: Size
    drop_path: float = 0.
    grad_checkpointing: bool = False

    def create(self) -> nn.Module:
        """Return the network with random weights. Raises UserError for settings that it does not go with."""
        try:
            net = create_model(self.model, num_classes=self.classes, img_size=self.img_size,
                               drop_path_rate=self.drop_path, **self.kwargs)
        except ValueError as error:
            advice = f': set DROP_PATH = 0, {self.model} has none' if 'drop_path' in str(error) else ''
            raise UserError(f'MODEL, MODEL_KWARGS, IMG_SIZE: {error}{advice}') from error
        if self.grad_checkpointing:
            try:
                net.set_grad_checkpointing(True)
            except (AttributeError, AssertionError) as error:
                raise UserError(f'GRAD_CHECKPOINTING: {self.model} cannot do it, set it to False') from error
        return net


def network_spec(cfg: Settings, classes: int, drop_path: float = 0.) -> NetworkSpec:
    """Return what the settings ask for. A VOLO has an auxiliary head, as published, unless MODEL_KWARGS says no."""
    kwargs = dict(cfg.MODEL_KWARGS)
    if cfg.MODEL in VARIANTS:
        kwargs = {'return_dense': not kwargs.get('return_mean', False), **kwargs}
    if cfg.TOKEN_LABEL:
        kwargs['mix_token'] = True
    return NetworkSpec(cfg.MODEL, kwargs, classes, cfg.IMG_SIZE, drop_path, cfg.GRAD_CHECKPOINTING)


@dataclass
class BuiltNetwork:
    """A network with its initial weights."""
    net: nn.Module
    kwargs: dict             # its keyword arguments, for the checkpoint
    provenance: Provenance   # with what was loaded


def build_network(spec: NetworkSpec, classes: list[str], weights: InitialWeights, grey: bool = False) -> BuiltNetwork:
    """Return the network with its initial weights, after an image went through it. Raises UserError.

    A VOLO that learns `grey` images from scratch begins with filters of brightness alone.
    """
    net = spec.create()
    provenance = weights.provenance
    content = weights.content
    counted_anew = 0
    if content is not None:
        try:
            report = load_weights(net, content)
        except WeightsError as error:
            raise UserError(f'PRETRAINED: {provenance.source}: {error}') from error
        provenance = replace(provenance, loaded=report.loaded, resized=report.resized, dropped=report.dropped)
        counted_anew = report.counted_anew
    elif grey and isinstance(net, VOLO):
        print('the images are grey: the first layer begins with filters of brightness alone')
        with torch.no_grad():
            filter_images(net.patch_embed.conv[0], grey=True)
    print_provenance(provenance)
    if counted_anew:
        print(f'weights: started at 0: {counted_anew} counts of batches (num_batches_tracked), which the file lacks')
    if content is not None and content.get('classes', classes) != classes and not provenance.dropped:
        print('weights: the head comes along, though it was trained on other classes: their number is the same')
    check_forward(spec, net)
    return BuiltNetwork(net, spec.kwargs, provenance)


def check_forward(spec: NetworkSpec, net: nn.Module) -> None:
    """Raise UserError unless the network makes a logit for each class out of an image."""
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(1, 3, *spec.img_size))
    except Exception as error:  # each of timm's networks has words of its own for it
        raise UserError(f'{spec.model} takes no images of {spec.img_size} pixels (IMG_SIZE): {error}') from error
    shape = getattr(logits, 'shape', None)
    if shape != (1, spec.classes):
        raise UserError(f'MODEL: {spec.model} is no classifier, it gives {shape} instead of a logit for each class')


# ---- what it costs ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Demand:
    """What a device has to hold during training."""
    batch_size: int                  # over all processes and devices
    device: torch.device
    amp_dtype: torch.dtype | None
    use_dp: bool
    use_ema: bool

    @property
    def gpus(self) -> int:
        """Number of this process's devices."""
        if not self.use_dp or self.device.type != 'cuda' or LAUNCHED:
            return 1
        return max(1, torch.cuda.device_count())

    @property
    def images(self) -> int:
        """At most so many images of a batch are on each device."""
        return math.ceil(len(own_rows(self.batch_size)) / self.gpus)

    def memory(self, net: nn.Module, img_size: Size) -> int:
        """Return the bytes that training takes on a device.

        Raises what the network does where its numbers are looked into: they are fake here.
        """
        copies = 2 + self.use_ema  # of the weights: AdamW's averages and the EMA's
        return training_memory(net.train(), img_size, self.images, self.amp_dtype, copies=copies)


def largest_batch(spec: NetworkSpec, demand: Demand) -> int:
    """Return the batch size, or about half of it, and so on, until a training step takes no more than MEMORY_SHARE of
    the free memory of the device.
    """
    free = free_device_memory(demand.device)
    if free is None:
        return demand.batch_size
    with torch.random.fork_rng():
        net = spec.create()
    net.to(demand.device)
    while True:
        smaller = demand.batch_size // 4 * 2  # even, since Mixup pairs images
        if smaller < 2 * WORLD_SIZE:        # a pair for each process
            return demand.batch_size
        try:
            needed = demand.memory(net, spec.img_size)
        except Exception:  # not to be worked out: work_out_cost will say so
            return demand.batch_size
        if needed <= MEMORY_SHARE * free:
            return demand.batch_size
        demand = replace(demand, batch_size=smaller)


def refuse_small_batch(error: Exception, batch_size: int, model: str) -> None:
    """Raise UserError if the error of a training step is that BatchNorm finds no variance in so few images."""
    if 'more than 1 value per channel' in str(error):
        raise UserError(f'BATCH_SIZE = {batch_size}: too few for the BatchNorm of {model}: raise it') from error


def work_out_cost(spec: NetworkSpec, net: nn.Module, demand: Demand) -> float | None:
    """Print a line with the network's parameters, multiply-adds and memory.

    Returns the floating-point operations that training on one image takes: the backward pass takes twice those of the
    forward pass, and a multiply-add is two. None for a network whose operations cannot be counted.
    """
    parameters = sum(p.numel() for p in net.parameters())
    text = f'{spec.model}: {parameters / 1e6:.1f} M parameters'
    flop = None
    try:
        memory = demand.memory(net, spec.img_size)
        macs = multiply_adds(net, spec.img_size)
        flop = 3 * 2 * macs
        where = ' on each GPU' if demand.gpus > 1 else ''
        text += (f', {macs / 1e9:.2f} G multiply-adds an image; a batch of {demand.images} images needs at least '
                 f'{memory / 2 ** 30:.1f} GiB of memory{where}')
    except Exception as error:  # a network of timm that looks into its numbers: they are fake there
        refuse_small_batch(error, demand.batch_size, spec.model)
        text += f'; its multiply-adds and memory could not be worked out ({type(error).__name__})'
    print(text)
    return flop
