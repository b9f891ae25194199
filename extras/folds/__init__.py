"""FOLDS of makedata.py: several splits of the same images, for cross-validation."""
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.data.folders import Rows
from common.data.split import FOR_TRAIN, SPLIT_TABLE, TRAIN, VAL, count_parts, print_counts, write_files
from common.data.taking import TakenImages, make_link
from common.runtime.errors import UserError


class FoldLayout:
    """`count` splits of files, fold1/SIDE/CLASS/NAME and so on, in which every image is in val once."""
    links_suffice = False

    def __init__(self, count: int, seed: int, test_ratio: float, shards: bool):
        """Raise UserError for fewer than two folds, and together with TEST_RATIO or SHARDS."""
        if count < 2 or shards or test_ratio:
            raise UserError(f'FOLDS = {count}: give 2 or more, without SHARDS and with TEST_RATIO = 0; or set '
                            'FOLDS = None')
        self.count = count
        self.seed = seed

    def divide(self, images: TakenImages, earlier: Rows) -> np.ndarray:
        """Return the fold (N,) in which each image is in val; `earlier` does not count."""
        return choose_folds(images.samples.targets, images.groups, images.classes, self.count, self.seed)

    def write(self, images: TakenImages, folds: np.ndarray, folder: Path, rows: Any) -> None:
        """Put every image into each fold, and a row for each of these files into split.csv."""
        for number in range(self.count):
            sides = np.where(folds == number, VAL, TRAIN)
            write_files(images, sides, folder, rows, f'fold{number + 1}/', link_or_copy)

    def report(self, images: TakenImages, folds: np.ndarray, place: str) -> None:
        """Print the number of images of each class in the val of each fold."""
        print_folds(images.samples.targets, folds, images.classes, place)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where there are no hard links."""
    if not make_link(source, target):
        shutil.copyfile(source, target)


def choose_folds(targets: np.ndarray, groups: np.ndarray, classes: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Return the fold (N,), from 0, in which each of N images is in val.

    Groups stay together, and every fold has about as many images of each class, as nearly as groups allow. `targets`
    (N,) are class indices, `groups` (N,) numbers. Raises UserError for a class with too few images.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # takes a second

    for target in np.unique(targets):
        found = len(np.unique(groups[targets == target]))
        if found < count:
            raise UserError(f'FOLDS = {count}: {classes[target]} has {found} images, or groups of them that belong '
                            'together, and each fold needs one: take fewer FOLDS')
    folds = np.empty(len(targets), int)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for number, (_, val) in enumerate(splitter.split(targets, targets, groups)):
        folds[val] = number
    return folds


def print_folds(targets: np.ndarray, folds: np.ndarray, classes: Sequence[str], place: str) -> None:
    """Print the number of images of each class that each fold has in val; `folds` (N,) are numbers from 0."""
    names = [f'fold{number + 1}' for number in range(folds.max() + 1)]
    counts = count_parts(targets, folds, len(classes), len(names))
    print_counts('in val', names, counts, classes)
    for target, number in np.argwhere(counts == 0):
        print(f'warning: {names[number]} has no image of {classes[target]} in val, so nothing will measure it there')
    for target, number in np.argwhere(counts == counts.sum(1, keepdims=True)):
        print(f'warning: {names[number]} has no image of {classes[target]} in train, {FOR_TRAIN}')
    print(f'\n{place}/fold1 to {place}/{names[-1]} and {place}/{SPLIT_TABLE} are written, each fold with train and val')
