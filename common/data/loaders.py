"""Batches in an order that follows from seeds alone, read by worker processes."""
import atexit
import copy
import itertools
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from common.data import images
from common.data.cache import ImageCache, choose_cache
from common.data.datasets import ImageFolder, fingerprint, leave_out
from common.data.transforms import Transform, eval_transform, find_normalisation, fit, least_side, train_transform
from common.runtime.device import to_device
from common.runtime.errors import UserError
from common.runtime.machine import retain_freed_memory, worker_count
from common.runtime.processes import (
    RANK,
    WORLD_SIZE,
    from_first,
    gather,
    kill_workers,
    leave_signals_to_parent,
    on_each_machine,
)
from common.settings import Settings

BLOCKS = 16  # shards that an epoch reads from at a time


def own_rows(batch_size: int, rank: int = RANK, world_size: int = WORLD_SIZE) -> list[int]:
    """The rows of a batch that a process has: a share of the images, each with its partner in the reversed batch."""
    pairs = (batch_size + 1) // 2
    if world_size > pairs:
        raise UserError(f'BATCH_SIZE = {batch_size}: {pairs} pairs of images for {world_size} processes, raise it or '
                        'start fewer')
    first = range(pairs * rank // world_size, pairs * (rank + 1) // world_size)
    return sorted({*first, *(batch_size - 1 - row for row in first)})


class EpochSampler(Sampler):
    """The shuffled batches of an epoch, as lists of (index, seed) keys for SeededImageFolder; a last, smaller one is
    left out.

    Both follow from the run's seed and the attribute `epoch` alone: they depend neither on the number of workers nor on
    whether the run was interrupted before, nor on the number of processes, of which each has its own rows of a batch.
    The first `skip` batches of the epoch are left out. `blocks` (length,) says which samples lie together: the epoch
    goes through BLOCKS of them at a time, in random order. With `shares` (length,), which add up to 1, each image is
    drawn with that probability, some of them several times.
    """

    def __init__(self, length: int, batch_size: int, seed: int, blocks: np.ndarray | None = None,
                 shares: np.ndarray | None = None):
        self.length, self.batch_size, self.seed, self.epoch, self.skip = length, batch_size, seed, 0, 0
        self.rows, self.blocks, self.shares = own_rows(batch_size), blocks, shares

    def __len__(self) -> int:
        return self.length // self.batch_size

    def order(self) -> np.ndarray:
        """All keys of the epoch, int64 (length, 2)."""
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
        order, rows = self.order(), np.array(self.rows)
        for batch in range(self.skip, len(self)):
            yield [tuple(key) for key in order[batch * self.batch_size + rows].tolist()]


def own_batches(length: int, batch_size: int) -> list[list[int]]:
    """The indices of every batch of a data set that falls to this process, in order: each process takes the next."""
    starts = range(RANK * batch_size, length, WORLD_SIZE * batch_size)
    return [list(range(start, min(start + batch_size, length))) for start in starts]


def in_turn(batches: list[list]) -> list:
    """What each process made of its own_batches, in the order of the data set."""
    return [batch for turn in itertools.zip_longest(*batches) for batch in turn if batch is not None]


class TimedBatches:
    """The batches of an epoch from an EpochSampler's loader, after the first `skip`, on the device; and the `seconds`
    waited for them.

    One pass only. A GPU gets the next batch while it works on this one.
    """

    def __init__(self, loader: DataLoader, epoch: int, device: torch.device, skip: int = 0):
        loader.batch_sampler.epoch, loader.batch_sampler.skip = epoch, skip
        self.batches, self.device, self.seconds = iter(loader), device, 0.
        self.copying = torch.cuda.Stream() if device.type == 'cuda' else None
        self.following = self.read() if self.copying else None

    def __iter__(self):
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self.following if self.copying else self.read()
        if batch is None:
            raise StopIteration
        if self.copying:
            torch.cuda.current_stream().wait_stream(self.copying)
            for tensor in batch:
                tensor.record_stream(torch.cuda.current_stream())  # its memory is free for others only after that
            self.following = self.read()
        return batch

    def read(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The next batch, on its way to the device; None at the end."""
        start = time.perf_counter()
        batch = next(self.batches, None)
        self.seconds += time.perf_counter() - start
        with torch.cuda.stream(self.copying) if self.copying else nullcontext():
            return batch and tuple(to_device(tensor, self.device) for tensor in batch)


def image_paths(loader: DataLoader, first: int, count: int) -> list[str]:
    """The files of so many images of the epoch that the loader is in, from its image number `first`, counted from 0."""
    keys = loader.batch_sampler.order()[first:first + count]
    return [loader.dataset.samples[index][0] for index, _ in keys]


def init_worker(number: int) -> None:
    """In each new worker process of a loader."""
    leave_signals_to_parent()
    retain_freed_memory()


def start_loader(dataset: Dataset, workers: int, **kwargs) -> DataLoader:
    """A DataLoader whose worker processes are already there.

    They should start while this process is small: a page of memory that they inherited is copied as soon as it is
    written to, so that a process with a network in it would be slow for a whole epoch.
    """
    loader = DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0, worker_init_fn=init_worker,
                        pin_memory=torch.cuda.is_available(), generator=torch.Generator(), **kwargs)
    iter(loader)
    atexit.register(kill_workers)  # a program that ends with a loader in a variable
    return loader


# The data of a training run: files checked, transforms chosen, loaders started

PLAIN = 1024  # training pictures that BatchNorm is measured with (docs/recipe.md)


@dataclass
class Data:
    """Both sides of a split, ready to train on."""
    classes: list[str]       # in the order of the logits
    transform: Transform
    fingerprint: str         # of the names, classes and sizes of all files
    train: DataLoader        # (images (B, 3, H, W), labels (B,)), shuffled and augmented; this process's rows of them
    plain: DataLoader        # some of them without augmentation, always the same; this process's rows of each batch
    val: DataLoader          # the validation set in order, without augmentation; the batches of this process


def build_data(cfg: Settings, split: tuple[ImageFolder, ImageFolder],
               weights_normalisation: tuple[list, list] | None) -> Data:
    """`split` is that of open_split; `weights_normalisation` is the (mean, std) that belongs to the initial weights."""
    train_set, val_set = split
    mean, std = find_normalisation(cfg, weights_normalisation, train_set.classes)
    transform = Transform(list(cfg.IMG_SIZE), list(mean), list(std), cfg.INTERPOLATION, cfg.CROP)
    share = cfg.AUGMENTATION
    train_set.transform = train_transform(
        transform, rotation=cfg.ROTATION, flip=cfg.FLIP, flip_vertical=cfg.FLIP_VERTICAL, shift=cfg.SHIFT,
        zoom=cfg.ZOOM, blur=share * cfg.BLUR, jitter=share * cfg.JITTER, cutout=share * cfg.CUTOUT)
    val_set.transform = eval_transform(transform)
    workers = worker_count(cfg.NUM_WORKERS)
    read_images(cfg, transform, train_set, val_set)
    found = fingerprint(train_set, val_set)
    if len(set(gather(found))) > 1:
        raise UserError(f'DATA_DIR = {cfg.DATA_DIR!r}: its pictures are not the same on all machines')
    order = len(train_set), cfg.BATCH_SIZE, cfg.SEED, train_set.blocks()
    shares = equal_shares(train_set.targets) if cfg.BALANCE == 'sampler' else None
    plain_set = copy.copy(train_set)
    plain_set.transform = val_set.transform
    plain_batches = list(itertools.islice(EpochSampler(*order), PLAIN // cfg.BATCH_SIZE or 1))
    return Data(
        train_set.classes, transform, found,
        train=start_loader(train_set, workers, batch_sampler=EpochSampler(*order, shares)),
        plain=start_loader(plain_set, (workers + 1) // 2, batch_sampler=plain_batches),
        val=start_loader(val_set, (workers + 1) // 2, batch_sampler=own_batches(len(val_set), cfg.BATCH_SIZE)))


def equal_shares(targets: np.ndarray) -> np.ndarray:
    """Probabilities (N,) with which pictures of the classes `targets` (N,) are drawn, each class as often as others."""
    counts = np.bincount(targets)
    return 1 / counts[targets] / np.count_nonzero(counts)


def read_images(cfg: Settings, transform: Transform, train_set: ImageFolder, val_set: ImageFolder) -> None:
    """Decode every file once: those that are no images are left out, the others cached where CACHE says."""
    where = from_first(choose_cache(cfg.CACHE, len(train_set) + len(val_set), cfg.IMG_SIZE))
    print(f'checking {len(train_set)} pictures for training and {len(val_set)} for validation, '
          + ('each is decoded again in every epoch' if where is None else f'kept at {cfg.IMG_SIZE} pixels: {where}'))
    bad = {}
    for dataset in (train_set, val_set):
        dataset.loader, problems = on_each_machine(read_set, cfg, transform, dataset, where)
        bad |= problems
    leave_out(train_set, val_set, bad, Path(cfg.OUTPUT_DIR, 'bad_images.txt'))
    if len(train_set) < cfg.BATCH_SIZE:
        raise UserError(f'{len(train_set)} training images but BATCH_SIZE = {cfg.BATCH_SIZE}: lower BATCH_SIZE')


def read_set(cfg: Settings, transform: Transform, dataset: ImageFolder,
             where: str | None) -> tuple[ImageCache, dict[str, str]]:
    """(a cache of a data set's files, {path: problem} of the unreadable ones)."""
    cache = ImageCache(fit(transform), cfg.IMG_SIZE, least_side(transform), dataset.store)
    kind = f'{cfg.INTERPOLATION} {cfg.CROP} {images.BIT_DEPTH}'
    return cache, cache.load([path for path, _ in dataset.samples], where, kind)
