"""The split that makedata.py made, as PyTorch data sets whose randomness follows from seeds alone."""
import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchvision import datasets

from common.data.folders import FOR_VAL, SPLIT_TABLE, Samples, open_store, refuse_empty, side_folders, stamp
from common.data.images import BadImage, header, judging
from common.data.listing import describe_left_out
from common.runtime.errors import UserError
from common.runtime.files import write_text
from common.runtime.processes import RANK

SAMPLED = 50  # images that tell what all are like


class ImageFolder(datasets.ImageFolder):
    """torchvision's ImageFolder over open_image: (transformed image, class index), classes sorted by name. The folder
    may also be one of shards.

    `classes` may be given to fix the indices, by name; the folder must then have just those. An empty class is an error
    unless `allow_empty`.
    """

    def __init__(self, root: Path | str, transform: Callable | None = None, classes: list[str] | None = None,
                 allow_empty: bool = False):
        self.expected = classes
        self.store = open_store(root)
        super().__init__(str(root), transform, loader=self.store.open, allow_empty=allow_empty)
        self._keep(self.samples)
        self.listed = self.samples  # the files in the folder, whatever is left out or added later
        if not self.samples:
            raise UserError(f'{root}: no images in it: {FOR_VAL}')

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        names = self.store.classes()
        if self.expected is not None and set(names) != set(self.expected):
            problems = []
            if extra := sorted(set(names) - set(self.expected)):
                problems.append(f'{", ".join(extra)} is extra (move it away)')
            if missing := sorted(set(self.expected) - set(names)):
                problems.append(f'{", ".join(missing)} is missing (an empty folder will do)')
            raise UserError(f'{directory}: the classes must be those of the training set, but {" and ".join(problems)}')
        names = list(self.expected or names)
        return names, {name: index for index, name in enumerate(names)}

    def make_dataset(self, directory: str, class_to_idx: dict[str, int], allow_empty: bool = False,
                     **unused) -> Samples:
        """Return [(path, class index)], the files that the other scripts see, too."""
        samples = self.store.samples(class_to_idx)
        if not allow_empty:
            filled = {*samples.targets.tolist()}
            refuse_empty(class_to_idx, {name for name, index in class_to_idx.items() if index in filled}, directory,
                         self.store.left_out)
        return samples

    def blocks(self) -> np.ndarray | None:
        """Return the number (N,) of the part of the set that each sample lies in, if parts are best read one after the
        other; None: in any order.
        """
        return self.store.blocks(self.samples)

    def add(self, samples: Iterable[tuple[str, int]]) -> None:
        """Add images from elsewhere, [(path, class index)], to the set."""
        self._keep(Samples([*self.samples, *samples]))

    def leave_out(self, paths: Container[str]) -> None:
        """Drop files, such as unreadable ones, from the set."""
        self._keep(Samples(sample for sample in self.samples if sample[0] not in paths))

    def _keep(self, samples):
        self.samples = self.imgs = samples
        self.targets = samples.targets

    def some(self) -> list[tuple[str, int]]:
        """Return up to SAMPLED samples, evenly spread."""
        count = min(SAMPLED, len(self.samples))
        return [self.samples[index] for index in np.linspace(0, len(self.samples) - 1, count, dtype=int)]

    def usual_side(self) -> float:
        """Return the median of the shorter sides of some images, in pixels, as their files say; infinity if none can be
        read.
        """
        sides = []
        for path, _ in self.some():
            with suppress(BadImage), judging(path):  # those are found when all are read
                sides.append(min(header(self.store.content(path), path).size))
        return float(np.median(sides)) if sides else math.inf


class SeededImageFolder(ImageFolder):
    """ImageFolder for training: its keys are (index, seed), and the seed decides everything random in the transform."""

    def __getitem__(self, key: tuple[int, int]):
        index, seed = key
        python_state = random.getstate()
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            torch.default_generator.manual_seed(seed)
            item = super().__getitem__(index)
        random.setstate(python_state)
        return item


@dataclass
class Split:
    """Both sides of the folder that makedata.py made."""
    train: SeededImageFolder
    val: ImageFolder
    root: Path
    tables: list[list[int]]  # what table_stamps said when it was opened

    @property
    def classes(self) -> list[str]:
        return self.train.classes

    def is_as_opened(self) -> bool:
        """Return whether the folder still has the files that it had when it was opened, and the same split.csv."""
        if table_stamps(self.root) != self.tables:
            return False
        return all(open_store(dataset.root).samples(dataset.class_to_idx) == dataset.listed
                   for dataset in (self.train, self.val))


def open_split(data_dir: str) -> Split:
    """Return the training and validation sets of a folder; nothing is read yet. Raises UserError."""
    root = Path(data_dir)
    sides = side_folders(root)
    if 'train' not in sides or 'val' not in sides:
        if 'train' in sides:
            advice = f'run python makedata.py --source-dir {root / sides["train"]}, and train.py on what it writes'
        else:
            advice = 'run makedata.py first, or set DATA_DIR'
        raise UserError(f'{root}/train and {root}/val are needed: {advice}')
    tables = table_stamps(root)
    train_set = SeededImageFolder(root / sides['train'])
    if len(train_set.classes) == 1:
        raise UserError(f'{root}/train has one class only, {train_set.classes[0]}: give each class its own folder')
    val_set = ImageFolder(root / sides['val'], classes=train_set.classes, allow_empty=True)
    for dataset in (train_set, val_set):
        if dataset.store.left_out:
            print(f'left out of {dataset.root}: {describe_left_out(dataset.store.left_out)}')
    return Split(train_set, val_set, root, tables)


def table_stamps(root: Path) -> list[list[int]]:
    """Return the stamps of the split.csv that lists the split in a folder; that of FOLDS lies one folder higher."""
    return [stamp(folder / SPLIT_TABLE) for folder in (root, root.parent)]


def fingerprint(*sets: ImageFolder) -> str:
    """Return a text that changes with the names, classes and sizes in bytes of the files in data sets. Of images from
    elsewhere the class does not count: a network has given it, and may decide otherwise on another machine.
    """
    digest = hashlib.sha256()  # of the JSON of a list, which as a whole would take much memory
    separator = '['
    for dataset in sets:
        below = str(Path(dataset.root, ' '))[:-1]
        for path, target in dataset.samples:
            if path.startswith(below):
                name = path[len(below):]
            else:
                name = os.path.relpath(path, dataset.root)
                target = None
            entry = [name.replace(os.sep, '/'), target, dataset.store.stamp(path)[0]]
            digest.update(f'{separator}{json.dumps(entry)}'.encode())
            separator = ', '
    digest.update(b']')
    return digest.hexdigest()


def leave_out(split: Split, bad: dict[str, str], listing: Path) -> None:
    """Take the files in `bad`, {path: problem}, out of both sets, and list them in the file `listing`.

    Raises UserError where a class then has no image to learn from.
    """
    for problem in bad.values():
        print(f'left out: {problem}')
    if RANK == 0:
        listing.unlink(missing_ok=True)  # of an earlier run
        if bad:
            write_text(listing, ''.join(f'{problem}\n' for problem in bad.values()))
            print(f'{len(bad)} files are left out; {listing} lists them')
    problems = {target: bad[path] for path, target in split.train.samples if path in bad}  # of some file of a class
    for dataset in (split.train, split.val):
        dataset.leave_out(bad)
    if not len(split.val):
        raise UserError(f'{split.val.root}: none of its files is a readable image')
    trained = set(split.train.targets)
    measured = set(split.val.targets)
    for index, name in enumerate(split.classes):
        if index not in trained:
            raise UserError(f'{split.train.root}/{name}: none of its files is a readable image ({problems[index]})')
        if index not in measured:
            print(f'warning: {split.val.root} has no image of {name}, so nothing measures that class')
