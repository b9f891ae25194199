"""Batches in an order that follows from seeds alone, read by worker processes."""
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from common.runtime.machine import retain_freed_memory
from common.runtime.signals import leave_signals_to_parent


class EpochSampler(Sampler):
    """The shuffled order of an epoch, as (index, seed) keys for SeededImageFolder.

    Both follow from the run's seed and the attribute `epoch` alone: they depend neither on the number of workers nor on
    whether the run was interrupted before. The first `skip` keys of the epoch are left out.
    """

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch, self.skip = length, seed, 0, 0

    def __len__(self) -> int:
        return self.length

    def order(self) -> list[tuple[int, int]]:
        """All keys of the epoch."""
        rng = np.random.default_rng([self.seed, self.epoch])
        seeds = rng.integers(2 ** 63, size=self.length)
        return list(zip(rng.permutation(self.length).tolist(), seeds.tolist(), strict=True))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.order()[self.skip:])


class TimedBatches:
    """The batches of an epoch from an EpochSampler's loader, after the first `skip`, and the `seconds` waited for them.

    One pass only.
    """

    def __init__(self, loader: DataLoader, epoch: int, skip: int = 0):
        loader.sampler.epoch, loader.sampler.skip = epoch, skip * loader.batch_size
        self.batches = iter(loader)
        self.seconds = 0.

    def __iter__(self):
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        start = time.perf_counter()
        try:
            return next(self.batches)
        finally:
            self.seconds += time.perf_counter() - start


def image_paths(loader: DataLoader, first: int, count: int) -> list[str]:
    """The files of so many images of the epoch that the loader is in, from its image number `first`, counted from 0."""
    keys = loader.sampler.order()[first:first + count]
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
    return loader
