"""What makedata.py prints of a split."""
from collections.abc import Sequence

import numpy as np

from common.data.grouping import TEST, TRAIN
from common.data.manifest import PICTURES, SIDES


def print_sides(targets: np.ndarray, sides: np.ndarray, classes: Sequence[str], place: str) -> None:
    """Print the pictures of each class on each side, and warn of classes that are small beside others.

    `targets` (N,) are class indices, `sides` (N,) numbers of SIDES, `place` is the folder of the split.
    """
    used = [number for number in range(len(SIDES)) if number != TEST or (sides == TEST).any()]
    counts = count(targets, sides, len(classes), len(SIDES))[:, used]
    print_counts('class', [SIDES[number] for number in used], counts, classes)
    sizes = counts.sum(1)
    if sizes.max() >= 2 * sizes.min():
        most, least = classes[sizes.argmax()], classes[sizes.argmin()]
        print(f'\nimbalance: {most} has {sizes.max() / sizes.min():.1f} times as many pictures as {least}; '
              'look at the balanced accuracy that train.py reports, beside ACC1')
    for target, column in np.argwhere(counts == 0):
        if used[column] != TRAIN:
            print(f'warning: {classes[target]} has no picture in {SIDES[used[column]]}, so nothing will measure it '
                  'there')
    print(f'\n{", ".join(f"{place}/{SIDES[number]}" for number in used)} and {place}/{PICTURES} are written')


def print_folds(targets: np.ndarray, folds: np.ndarray, classes: Sequence[str], place: str) -> None:
    """Print the pictures of each class that each fold has in val; `folds` (N,) are numbers from 0."""
    names = [f'fold{number + 1}' for number in range(folds.max() + 1)]
    counts = count(targets, folds, len(classes), len(names))
    print_counts('in val', names, counts, classes)
    for target, number in np.argwhere(counts == 0):
        print(f'warning: {names[number]} has no picture of {classes[target]} in val, so nothing will measure it there')
    print(f'\n{place}/fold1 to {place}/{names[-1]} and {place}/{PICTURES} are written, each fold with train and val')


def count(targets: np.ndarray, parts: np.ndarray, classes: int, columns: int) -> np.ndarray:
    """How many pictures of each class each part has, (classes, columns)."""
    counts = np.zeros((classes, columns), int)
    np.add.at(counts, (targets, parts), 1)
    return counts


def print_counts(title: str, names: Sequence[str], counts: np.ndarray, classes: Sequence[str]) -> None:
    width = max(len(title), *map(len, classes))
    for name, row in [(title, names), *zip(classes, counts, strict=True), ('all', counts.sum(0))]:
        print(f'{name:{width}} ' + ' '.join(f'{value:>6}' for value in row))
