"""Batches in an order that follows from seeds alone, read by worker processes."""
import atexit
import copy
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torchvision.transforms import v2

from common.data import images
from common.data.cache import ImageCache, choose_cache
from common.data.datasets import ImageFolder, Split, fingerprint, leave_out
from common.data.transforms import Transform, eval_transform, fit, least_side
from common.runtime.device import choose_device, to_device
from common.runtime.errors import UserError, extra
from common.runtime.machine import lacking_for_processes, retain_freed_memory, worker_count
from common.runtime.processes import RANK, WORLD_SIZE, from_first, gather, on_each_machine
from common.runtime.signals import kill_workers, leave_signals_to_parent
from common.settings import Settings

BLOCKS = 16  # shards that an epoch reads from at a time


def own_rows(batch_size: int, rank: int = RANK, world_size: int = WORLD_SIZE) -> list[int]:
    """Return the rows of a batch that a process has: a share of the images, each with its partner in the reversed
    batch. Raises UserError where a process would have none.
    """
    pairs = (batch_size + 1) // 2
    if world_size > pairs:
        raise UserError(f'BATCH_SIZE = {batch_size}: {pairs} pairs of images for {world_size} processes, raise it or '
                        'start fewer')
    first = range(pairs * rank // world_size, pairs * (rank + 1) // world_size)
    return sorted({*first, *(batch_size - 1 - row for row in first)})


class EpochSampler(Sampler):
    """The shuffled batches of an epoch, as lists of (index, seed) keys for SeededImageFolder; a last, smaller one is
    left out.

    Both follow from the run's seed and the epoch alone: they depend neither on the number of workers nor on whether the
    run was interrupted before, nor on the number of processes, each of which has its own rows of a batch. `blocks`
    (length,) says which samples lie together: the epoch goes through BLOCKS of them at a time, in random order. With
    `shares` (length,), which add up to 1, each image is drawn with that probability, some of them several times.
    """

    def __init__(self, length: int, batch_size: int, seed: int, blocks: np.ndarray | None = None,
                 shares: np.ndarray | None = None):
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.blocks = blocks
        self.shares = shares
        self.rows = own_rows(batch_size)
        self.begin(epoch=0)

    def begin(self, epoch: int, skip: int = 0) -> None:
        """Give the batches of that epoch, counted from 0, from now on, without its first `skip` ones."""
        self.epoch = epoch
        self.skip = skip
        self.keys: np.ndarray | None = None

    def __len__(self) -> int:
        return self.length // self.batch_size

    def order(self) -> np.ndarray:
        """Return all keys of the epoch, int64 (length, 2). They are drawn once, which takes a while for many images."""
        if self.keys is None:
            self.keys = self.draw()
        return self.keys

    def draw(self) -> np.ndarray:
        rng = np.random.default_rng([self.seed, self.epoch])
        seeds = rng.integers(2 ** 63, size=self.length)
        if self.shares is None:
            order = rng.permutation(self.length)
        else:
            order = rng.choice(self.length, self.length, p=self.shares)
        if self.blocks is not None:
            turn = rng.permutation(self.blocks.max() + 1) // BLOCKS  # of each block
            order = order[turn[self.blocks[order]].argsort(kind='stable')]
        return np.stack([order, seeds], 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.order()
        rows = np.array(self.rows)
        for batch in range(self.skip, len(self)):
            keys = order[batch * self.batch_size + rows]
            yield [tuple(key) for key in keys.tolist()]

    def indices_of_update(self, update: int, images: int, batches: int) -> np.ndarray:
        """Return the samples (images,) of an update of the epoch, counted from 0; each has up to `batches` batches."""
        first = update * batches * self.batch_size
        return self.order()[first:first + images, 0]


def own_batches(length: int, batch_size: int) -> list[list[int]]:
    """Return the indices of every batch of a data set that falls to this process; each process takes the next one."""
    starts = range(RANK * batch_size, length, WORLD_SIZE * batch_size)
    return [list(range(start, min(start + batch_size, length))) for start in starts]


def in_turn(batches: list[list]) -> list:
    """Return what each process made of its own_batches, in the order of the data set."""
    return [batch for turn in itertools.zip_longest(*batches) for batch in turn if batch is not None]


class TimedBatches:
    """The batches of an epoch from an EpochSampler's loader, after the first `skip`, on the device; one pass only.

    `seconds` is the time waited for them so far. A GPU gets the next batch while it works on this one.
    """

    def __init__(self, loader: DataLoader, epoch: int, device: torch.device, skip: int = 0):
        loader.batch_sampler.begin(epoch, skip)
        self.batches = iter(loader)
        self.device = device
        self.seconds = 0.
        self.copying = torch.cuda.Stream() if device.type == 'cuda' else None
        self.following = self.read() if self.copying else None

    def __iter__(self):
        return self

    def __next__(self) -> list[Any]:
        batch = self.following if self.copying else self.read()
        if batch is None:
            raise StopIteration
        if self.copying:
            torch.cuda.current_stream().wait_stream(self.copying)
            for tensor in tensors_in(batch):
                tensor.record_stream(torch.cuda.current_stream())  # its memory is free for others only after that
            self.following = self.read()
        return batch

    def read(self) -> list[Any] | None:
        """Return the next batch, on its way to the device; None at the end."""
        start = time.perf_counter()
        batch = next(self.batches, None)
        self.seconds += time.perf_counter() - start
        if batch is None:
            return None
        with torch.cuda.stream(self.copying) if self.copying else nullcontext():
            return to_device(list(batch), self.device)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors in a list of tensors and such lists."""
    if isinstance(value, list):
        return [tensor for part in value for tensor in tensors_in(part)]
    return [value]


# What is left to do to images that worker processes have augmented.
keep_images = nn.Identity()


def init_worker(number: int) -> None:
    """Prepare a new worker process of a loader."""
    gc.freeze()  # what is garbage of the parent, such as iterators of other loaders, is not this process's to end
    leave_signals_to_parent()
    retain_freed_memory()


class Loader(DataLoader):
    """A DataLoader that chooses how its worker processes hand over their batches.

    By default they do so in shared memory, where collating puts them. With `through_pipes`, for a machine with little
    of it, samples come through pipes as they are, and this process collates them.
    """

    def __init__(self, dataset: Dataset, through_pipes: bool = False, collate_fn: Callable = default_collate, **kwargs):
        super().__init__(dataset, collate_fn=pack if through_pipes else collate_fn, **kwargs)
        self.collate_received = collate_fn if through_pipes else None

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        if self.collate_received is None:
            return batches
        return (self.collate_received(unpack(samples)) for samples in batches)


class Packed(NamedTuple):
    """A tensor as an array, which PyTorch does not move into shared memory."""
    array: np.ndarray


def pack(samples: Any) -> Any:
    """Return samples, which consist of lists, tuples and tensors, with their tensors packed."""
    if isinstance(samples, torch.Tensor):
        return Packed(samples.numpy())
    if isinstance(samples, (list, tuple)):
        return tuple(pack(part) for part in samples)
    return samples


def unpack(samples: Any) -> Any:
    """Return what pack() was given, with tuples in place of lists."""
    if isinstance(samples, Packed):
        return torch.from_numpy(samples.array)
    if isinstance(samples, tuple):
        return tuple(unpack(part) for part in samples)
    return samples


class Handover(NamedTuple):
    """What this machine allows: how many worker processes each of some loaders has, and how these hand over batches."""
    workers: list[int]
    through_pipes: bool = False


def choose_handover(workers: list[int], batch_bytes: int, tensors: int = 2) -> Handover:
    """Return what this machine allows of the `workers` that each of some loaders should have; prints what it does not.

    A batch is of `tensors` tensors with `batch_bytes` in all. Raises UserError where not enough files may be open.
    """
    processes = sum(workers)
    if not processes:
        return Handover(workers)
    batches = 2 * processes + 4  # each process reads two ahead; some are in use
    lacking = lacking_for_processes(processes, len(workers), batches * batch_bytes, batches * tensors)
    if not lacking:
        return Handover(workers)
    if not lacking_for_processes(processes, len(workers)):
        print(f'{lacking}: batches go through pipes instead, which is a little slower; a lower NUM_WORKERS needs less')
        return Handover(workers, through_pipes=True)
    print(f'warning: {lacking}: this process reads the images alone, as with NUM_WORKERS = 0')
    return Handover([0] * len(workers))


def start_loader(dataset: Dataset, workers: int, **kwargs) -> DataLoader:
    """Return a Loader whose worker processes are already there.

    They should start while this process is small: a page of memory that they inherited is copied as soon as it is
    written to, so that a process with a network in it would be slow for a whole epoch.
    """
    loader = Loader(dataset, num_workers=workers, persistent_workers=workers > 0, worker_init_fn=init_worker,
                        pin_memory=torch.cuda.is_available(), generator=torch.Generator(), **kwargs)
    iter(loader)
    atexit.register(kill_workers)  # a program that ends with a loader in a variable
    return loader


# ---- the data of a training run ------------------------------------------------------------------------------------

GREY = 2.            # grey levels by which the channels of a grey image may differ on average
PLAIN_IMAGES = 1024  # training images without augmentation that BatchNorm is measured with (docs/recipe.md)


@dataclass
class Data:
    """Both sides of a split, ready to train on."""
    classes: list[str]       # in the order of the logits
    transform: Transform
    train_size: list[int]    # [height, width] of the training images, which the network may see smaller
    fingerprint: str         # of the names, classes and sizes of all files
    grey: bool               # whether the training images have no colours
    train: DataLoader        # (images (B, 3, H, W), labels (B,)), shuffled; this process's rows of them
    augment: nn.Module       # what is left of their augmentation for the device: images -> images
    plain: DataLoader        # some of them without augmentation, always the same; this process's rows of each batch
    val: DataLoader          # the validation set in order, without augmentation; the batches of this process

    @property
    def own_rows(self) -> list[int]:
        """The rows of a training batch that this process has: all, unless torchrun has started several."""
        return self.train.batch_sampler.rows


def build_data(cfg: Settings, split: Split, transform: Transform, for_training: Transform, augment: Callable) -> Data:
    """Return the data of a run: files checked, loaders started.

    `transform` is what training, validation and test have in common; `for_training` may have larger images, which the
    network sees smaller. `augment` is what training does to one: image -> float tensor (3, H, W). Raises UserError.
    """
    train_set = split.train
    val_set = split.val
    device = choose_device(cfg.USE_GPU)
    train_set.transform, on_device = divide_augmentation(augment, cfg.GPU_AUGMENT, device)
    val_set.transform = eval_transform(transform)
    workers = worker_count(cfg.NUM_WORKERS)
    read_images(split, transform, for_training, cfg.CACHE, Path(cfg.OUTPUT_DIR, 'bad_images.txt'))
    if len(train_set) < cfg.BATCH_SIZE:
        raise UserError(f'{len(train_set)} training images but BATCH_SIZE = {cfg.BATCH_SIZE}: lower BATCH_SIZE')
    found = fingerprint(train_set, val_set)
    if len(set(gather(found))) > 1:
        raise UserError(f'DATA_DIR = {cfg.DATA_DIR!r}: its images are not the same on all machines: copy the same '
                        'folder to each')
    blocks = train_set.blocks()
    shares = equal_shares(train_set.targets) if cfg.BALANCE == 'sampler' else None
    plain_set = copy.copy(train_set)
    plain_set.transform = v2.Compose([v2.Resize(transform.img_size), val_set.transform])
    plain_sampler = EpochSampler(len(train_set), cfg.BATCH_SIZE, cfg.SEED, blocks)
    plain_batches = list(itertools.islice(plain_sampler, PLAIN_IMAGES // cfg.BATCH_SIZE or 1))
    half = (workers + 1) // 2
    (for_train, for_plain, for_val), through_pipes = choose_handover(
        [workers, half, half], cfg.BATCH_SIZE * image_bytes(for_training), tensors=3)
    return Data(
        train_set.classes, transform, for_training.img_size, found, is_grey(train_set),
        train=start_loader(train_set, for_train, through_pipes=through_pipes, batch_sampler=EpochSampler(
            len(train_set), cfg.BATCH_SIZE, cfg.SEED, blocks, shares)),
        plain=start_loader(plain_set, for_plain, through_pipes=through_pipes, batch_sampler=plain_batches),
        val=start_loader(val_set, for_val, through_pipes=through_pipes,
                         batch_sampler=own_batches(len(val_set), cfg.BATCH_SIZE)),
        augment=on_device.to(device))  # last: worker processes start before anything is on the device


def divide_augmentation(augment: Callable, wanted: bool | str, device: torch.device) -> tuple[Callable, nn.Module]:
    """Return what worker processes do to an image, and what is left for the device to do to a batch of them, as
    GPU_AUGMENT = `wanted` has it.
    """
    if wanted is False or (wanted == 'auto' and device.type != 'cuda'):
        return augment, keep_images
    try:
        with extra('GPU_AUGMENT'):
            from extras.gpu_augment import divide
        in_workers, on_device = divide(augment)
    except UserError as error:
        if wanted is True:
            raise
        print(f"GPU_AUGMENT = 'auto': False, since {error}")
        return augment, keep_images
    return in_workers, on_device


def is_grey(dataset: ImageFolder) -> bool:
    """Return whether none of some images, as they are read for training, has colours: JPEG leaves a trace of some."""
    for path, _ in dataset.some():
        pixels = np.asarray(dataset.loader(path)).astype(int)  # (H, W, 3)
        if np.ptp(pixels, axis=2).mean() > GREY:
            return False
    return True


def image_bytes(transform: Transform) -> int:
    """Return the bytes of an image and its label as tensors."""
    return 4 * 3 * math.prod(transform.img_size) + 8


def equal_shares(targets: np.ndarray) -> np.ndarray:
    """Return probabilities (N,) with which images of the classes `targets` (N,) are drawn: each class equally often."""
    counts = np.bincount(targets)
    return 1 / counts[targets] / np.count_nonzero(counts)


def read_images(split: Split, transform: Transform, for_training: Transform, wanted: str | None,
                listing: Path) -> None:
    """Decode every file once: those that are no images are left out and listed in the file `listing`, the others cached
    where CACHE = `wanted` says.
    """
    where = from_first(choose_cache(wanted, len(split.train) + len(split.val), for_training.img_size))
    print(f'checking {len(split.train)} images for training and {len(split.val)} for validation, '
          + ('each is decoded again in every epoch' if where is None else
             f'kept at {tuple(for_training.img_size)} pixels: {where}'))
    bad = {}
    for dataset, fitted in ((split.train, for_training), (split.val, transform)):
        dataset.loader, problems = on_each_machine(cached, fitted, dataset, where)
        bad |= problems
    if bad and not split.is_as_opened():
        raise UserError(f'{split.root} changed while its images were read, perhaps by makedata.py: start again')
    leave_out(split, bad, listing)


def cached(transform: Transform, dataset: ImageFolder, where: str | None) -> tuple[ImageCache, dict[str, str]]:
    """Return a cache of a data set's files, and {path: problem} of the unreadable ones."""
    cache = ImageCache(fit(transform), transform.img_size, least_side(transform), dataset.store)
    kind = f'{transform.interpolation} {transform.crop} {images.BIT_DEPTH}'
    return cache, cache.load([path for path, _ in dataset.samples], where, kind)
