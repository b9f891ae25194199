"""Batches in an order that follows from seeds alone, read by worker processes."""
import atexit
import itertools
import time
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from common.runtime.device import to_device
from common.runtime.errors import UserError
from common.runtime.machine import retain_freed_memory
from common.runtime.ranks import RANK, WORLD_SIZE
from common.runtime.signals import kill_workers, leave_signals_to_parent

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
