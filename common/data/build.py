"""The data of a training run: files checked, transforms chosen, loaders started."""
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader

from common.data import images
from common.data.cache import ImageCache, choose_cache
from common.data.datasets import ImageFolder, fingerprint, leave_out
from common.data.loaders import EpochSampler, start_loader
from common.data.normalisation import find_normalisation
from common.data.transforms import Transform, eval_transform, fit, least_side, train_transform
from common.runtime.errors import UserError
from common.runtime.machine import worker_count
from common.settings import Settings


@dataclass
class Data:
    """Both sides of a split, ready to train on."""
    classes: list[str]       # in the order of the logits
    transform: Transform
    fingerprint: str         # of the names, classes and sizes of all files
    train: DataLoader        # (images (B, 3, H, W), labels (B,)), shuffled and augmented; the last, smaller batch is
                             # left out
    val: DataLoader          # the same in order, without augmentation, and whole


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
    sampler = EpochSampler(len(train_set), cfg.SEED)
    return Data(
        train_set.classes, transform, fingerprint(train_set, val_set),
        train=start_loader(train_set, workers, batch_size=cfg.BATCH_SIZE, sampler=sampler, drop_last=True),
        val=start_loader(val_set, (workers + 1) // 2, batch_size=cfg.BATCH_SIZE))


def read_images(cfg: Settings, transform: Transform, train_set: ImageFolder, val_set: ImageFolder) -> None:
    """Decode every file once: those that are no images are left out, the others cached where CACHE says."""
    where = choose_cache(cfg.CACHE, len(train_set) + len(val_set), cfg.IMG_SIZE)
    print(f'checking {len(train_set)} pictures for training and {len(val_set)} for validation, '
          + ('each is decoded again in every epoch' if where is None else f'kept at {cfg.IMG_SIZE} pixels: {where}'))
    bad = {}
    for dataset, training in ((train_set, True), (val_set, False)):
        dataset.loader = ImageCache(fit(transform, training), cfg.IMG_SIZE, least_side(transform, training))
        kind = f'{cfg.INTERPOLATION} {None if training else cfg.CROP} {images.BIT_DEPTH}'
        bad |= dataset.loader.load([path for path, _ in dataset.samples], where, kind)
    leave_out(train_set, val_set, bad, Path(cfg.OUTPUT_DIR, 'bad_images.txt'))
    if len(train_set) < cfg.BATCH_SIZE:
        raise UserError(f'{len(train_set)} training images but BATCH_SIZE = {cfg.BATCH_SIZE}: lower BATCH_SIZE')
