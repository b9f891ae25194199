"""The data of a training run: pictures read and checked, transforms chosen, loaders started."""
from pathlib import Path
from types import SimpleNamespace

from common.data import transforms as augment
from common.data.cache import Pictures, choose_cache
from common.data.datasets import fingerprint, leave_out, open_split
from common.data.loaders import EpochSampler, start_loader
from common.data.normalisation import normalisation
from common.runtime.errors import UserError
from common.runtime.machine import worker_count


def build_data(cfg, weights):
    """The two loaders, the class names, and the transform's settings as plain values."""
    train_set, val_set = open_split(cfg.DATA_DIR)
    mean, std = normalisation(cfg, weights, train_set.classes)
    transform = {'img_size': list(cfg.IMG_SIZE), 'mean': list(mean), 'std': list(std),
                 'interpolation': cfg.INTERPOLATION, 'crop': cfg.CROP}
    train_set.transform = augment.train_transform(
        transform, rotation=cfg.ROTATION, flip=cfg.FLIP, flip_vertical=cfg.FLIP_VERTICAL, shift=cfg.SHIFT,
        zoom=cfg.ZOOM, blur=cfg.BLUR, jitter=cfg.JITTER, cutout=cfg.CUTOUT)
    val_set.transform = augment.eval_transform(transform)
    workers = worker_count(cfg.NUM_WORKERS)
    read_pictures(cfg, transform, train_set, val_set, workers)
    sampler = EpochSampler(len(train_set), cfg.SEED)
    return SimpleNamespace(
        classes=train_set.classes, transform=transform, files=fingerprint(train_set, val_set),
        train=start_loader(train_set, workers, batch_size=cfg.BATCH_SIZE, sampler=sampler, drop_last=True),
        val=start_loader(val_set, (workers + 1) // 2, batch_size=cfg.BATCH_SIZE))


def read_pictures(cfg, transform, train_set, val_set, workers):
    """Decode every file once: those that are no pictures are left out, the others kept where CACHE says."""
    where = choose_cache(cfg.CACHE, len(train_set) + len(val_set), cfg.IMG_SIZE, workers)
    print(f'checking {len(train_set)} pictures for training and {len(val_set)} for validation, '
          + ('each is decoded again in every epoch' if where is None else f'kept at {cfg.IMG_SIZE} pixels: {where}'))
    bad = {}
    for dataset, training in ((train_set, True), (val_set, False)):
        dataset.loader = Pictures(augment.fit(transform, training), cfg.IMG_SIZE,
                                  augment.least_side(transform, training))
        kind = f'{cfg.INTERPOLATION} {None if training else cfg.CROP}'
        bad |= dataset.loader.keep([path for path, _ in dataset.samples], where, kind)
    leave_out(train_set, val_set, bad, Path(cfg.OUTPUT_DIR, 'bad_images.txt'))
    if len(train_set) < cfg.BATCH_SIZE:
        raise UserError(f'{len(train_set)} training images but BATCH_SIZE = {cfg.BATCH_SIZE}: lower BATCH_SIZE')
