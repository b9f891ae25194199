"""Images and folders of images: which files count, how one is opened, one sub-folder per class.

Every script opens pictures through open_image, so statistics, training and test see the same pixels.
"""
import os
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Sampler
from torchvision import datasets
from tqdm.contrib.concurrent import thread_map

from common.progress import Bar
from common.settings import UserError

# Formats that Pillow lists but cannot draw by itself (scientific containers, video), or draws by running Ghostscript.
NOT_PICTURES = {'.bufr', '.eps', '.grib', '.h5', '.hdf', '.mpeg', '.mpg', '.ps'}
EXTENSIONS = {ext for ext, kind in Image.registered_extensions().items() if kind in Image.OPEN} - NOT_PICTURES
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
THREADS = min(8, CORES)  # for work that Pillow and hashlib do outside Python's lock


class BadImage(UserError):
    """A file that is no readable picture."""


def loader_workers(value):
    """The number of loader processes that NUM_WORKERS stands for: 'auto' is one for each core, 8 at most."""
    if value == 'auto':
        return min(8, CORES)
    if isinstance(value, str) or value < 0:
        raise UserError(f"NUM_WORKERS = {value!r}: give 'auto' or a number from 0")
    return value


def is_image(path):
    """Whether a file name is one that Pillow reads, in any letter case; hidden files are not."""
    path = Path(path)
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith('.')


def list_images(folder):
    """All image files below a folder, sorted by path."""
    return sorted(path for path in Path(folder).rglob('*') if is_image(path) and path.is_file())


def open_image(path):
    """An image file as an RGB picture: turned as its EXIF says, 16 bits scaled to 8, transparency on white.

    Of an animation the first frame counts. Raises BadImage, which names the file.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's errors on a damaged file are of a dozen types
        raise BadImage(f'{path}: not a readable image ({error})') from None


def to_rgb(image):
    if image.mode.startswith('I'):  # 16 or 32 bits of grey; 16-bit files also open as 32-bit ones
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    elif image.mode == 'F':  # floating-point grey from 0 to 1
        image = Image.fromarray((np.nan_to_num(np.asarray(image)).clip(0, 1) * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
    return image.convert('RGB')


def find_bad(paths):
    """Decode every file, several at a time, and return {path: what is wrong with it} for those that cannot be."""
    def problem(path):
        try:
            open_image(path)
        except BadImage as error:
            return str(error)

    problems = thread_map(problem, paths, max_workers=THREADS, tqdm_class=Bar, desc='checking images', unit='img')
    return {path: text for path, text in zip(paths, problems, strict=True) if text}


def class_folders(folder):
    """Names of the sub-folders that are classes, sorted. Raises UserError where there is no folder or none in it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder')
    names = sorted(entry.name for entry in folder.iterdir()
                   if entry.is_dir() and not entry.name.startswith(('.', '__')))
    if not names:
        raise UserError(f'{folder}: no sub-folders in it, and each class needs one of its own')
    return names


class ImageFolder(datasets.ImageFolder):
    """torchvision's ImageFolder over open_image: (transformed picture, class index), classes sorted by name.

    `classes` may be given to fix the indices, by name; the folder must then have just those. An empty class is an error
    unless `allow_empty`.
    """

    def __init__(self, root, transform=None, classes=None, allow_empty=False):
        self.expected = classes
        try:
            super().__init__(str(root), transform, loader=open_image, is_valid_file=is_image, allow_empty=allow_empty)
        except FileNotFoundError as error:
            raise UserError(f'{root}: {str(error).splitlines()[0]} Add pictures or remove the folder.') from None
        if not self.samples:
            raise UserError(f'{root}: no images in it')

    def find_classes(self, directory):
        names = class_folders(directory)
        if self.expected is not None and names != sorted(self.expected):
            extra, missing = sorted(set(names) - set(self.expected)), sorted(set(self.expected) - set(names))
            raise UserError(f'{directory}: the classes must be those of the training set, but '
                            + ' and '.join([f'{", ".join(extra)} is extra'] * bool(extra)
                                           + [f'{", ".join(missing)} is missing'] * bool(missing)))
        names = list(self.expected or names)
        return names, {name: index for index, name in enumerate(names)}

    def leave_out(self, paths):
        """Drop files, such as unreadable ones, from the set."""
        self.samples = self.imgs = [sample for sample in self.samples if sample[0] not in paths]
        self.targets = [target for _, target in self.samples]


class EpochSampler(Sampler):
    """The shuffled order of an epoch, as (index, seed) keys for SeededImageFolder.

    Both follow from the run's seed and the attribute `epoch` alone: they depend neither on the number of workers nor on
    whether the run was interrupted before.
    """

    def __init__(self, length, seed):
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self):
        return self.length

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        seeds = rng.integers(2 ** 63, size=self.length)
        return zip(rng.permutation(self.length).tolist(), seeds.tolist(), strict=True)


class SeededImageFolder(ImageFolder):
    """ImageFolder for training: its keys are (index, seed), and the seed decides everything random in the transform."""

    def __getitem__(self, key):
        index, seed = key
        python_state = random.getstate()
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            torch.default_generator.manual_seed(seed)
            item = super().__getitem__(index)
        random.setstate(python_state)
        return item


def open_split(data_dir):
    """(training set, validation set) of a folder that makedata.py made, without the files that are no pictures.

    Every file is decoded once. Raises UserError where a class has no picture to learn from.
    """
    root = Path(data_dir)
    if not (root / 'train').is_dir() or not (root / 'val').is_dir():
        raise UserError(f'{root}/train and {root}/val are needed: run makedata.py first, or set DATA_DIR')
    train_set = SeededImageFolder(root / 'train')
    val_set = ImageFolder(root / 'val', classes=train_set.classes, allow_empty=True)
    print(f'checking {len(train_set)} pictures for training and {len(val_set)} for validation')
    bad = find_bad([path for path, _ in train_set.samples + val_set.samples])
    for problem in bad.values():
        print(f'left out: {problem}')
    for dataset in (train_set, val_set):
        dataset.leave_out(bad)
    if not len(val_set):
        raise UserError(f'{val_set.root}: none of its files is a readable picture')
    trained, measured = set(train_set.targets), set(val_set.targets)
    for index, name in enumerate(train_set.classes):
        if index not in trained:
            raise UserError(f'{train_set.root}/{name}: none of its files is a readable picture')
        if index not in measured:
            print(f'warning: {val_set.root} has no picture of {name}, so nothing measures that class')
    return train_set, val_set
