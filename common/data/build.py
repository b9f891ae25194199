"""The data of a training run: files checked, transforms chosen, loaders started."""
import copy
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from common.data import images
from common.data.cache import ImageCache, choose_cache
from common.data.datasets import ImageFolder, fingerprint, leave_out
from common.data.loaders import EpochSampler, own_batches, start_loader
from common.data.normalisation import find_normalisation
from common.data.transforms import Transform, eval_transform, fit, least_side, train_transform
from common.runtime.distributed import from_first, gather, on_each_machine
from common.runtime.errors import UserError
from common.runtime.machine import worker_count
from common.settings import Settings

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
