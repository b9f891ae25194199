"""FOLDS of makedata.py: several splits of the same pictures, for cross-validation."""
from collections.abc import Sequence

import numpy as np

from common.data.split import PICTURES, count, print_counts
from common.runtime.errors import UserError


def choose_folds(targets: np.ndarray, groups: np.ndarray, classes: Sequence[str], count: int, seed: int) -> np.ndarray:
    """The fold (N,), from 0, in which each of N pictures is in val: groups stay together, and every fold has about as
    many of each class, as nearly as groups allow.

    `targets` (N,) are class indices, `groups` (N,) numbers. Raises UserError for a class with too few pictures.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # takes a second

    for target in np.unique(targets):
        found = len(np.unique(groups[targets == target]))
        if found < count:
            raise UserError(f'FOLDS = {count}: {classes[target]} has {found} pictures, or groups of them that belong '
                            'together, and each fold needs one: take fewer FOLDS')
    folds = np.empty(len(targets), int)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for number, (_, val) in enumerate(splitter.split(targets, targets, groups)):
        folds[val] = number
    return folds


def print_folds(targets: np.ndarray, folds: np.ndarray, classes: Sequence[str], place: str) -> None:
    """Print the pictures of each class that each fold has in val; `folds` (N,) are numbers from 0."""
    names = [f'fold{number + 1}' for number in range(folds.max() + 1)]
    counts = count(targets, folds, len(classes), len(names))
    print_counts('in val', names, counts, classes)
    for target, number in np.argwhere(counts == 0):
        print(f'warning: {names[number]} has no picture of {classes[target]} in val, so nothing will measure it there')
    print(f'\n{place}/fold1 to {place}/{names[-1]} and {place}/{PICTURES} are written, each fold with train and val')
