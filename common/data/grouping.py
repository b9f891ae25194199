"""Which pictures belong together, and the side of a split that each of them goes to."""
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from common.data.manifest import SIDES
from common.runtime.errors import UserError

TRAIN, VAL, TEST = range(len(SIDES))


def join(count: int, *pairs: np.ndarray) -> np.ndarray:
    """The group (N,), a number from 0, of each of N = `count` pictures; the two of each pair, (P, 2), belong together,
    and so do those that belong to the same third one.
    """
    first, second = np.concatenate([np.empty((0, 2), np.int64), *pairs]).T
    return connected_components(coo_array((np.ones(len(first)), (first, second)), (count, count)), False)[1]


def alike(keys: Iterable[str | None]) -> np.ndarray:
    """(P, 2): enough pairs of places with the same key that each of them leads to every other. None is like no other.
    """
    last, pairs = {}, []
    for place, key in enumerate(keys):
        if key in last:
            pairs.append((last[key], place))
        if key is not None:
            last[key] = place
    return np.array(pairs, np.int64).reshape(-1, 2)


def choose_sides(sha256: np.ndarray, targets: np.ndarray, groups: np.ndarray, earlier: np.ndarray,
                 ratios: tuple[float, float], seed: int) -> np.ndarray:
    """The side (N,) of each of N pictures: a number of SIDES.

    `ratios` are the shares of each class's distinct pictures that go to val and to test, but each gets one at least
    where there are enough, and whole groups only. `sha256` (N,) tells which pictures are the same, `targets` (N,) the
    class; one in several classes counts in the first. `earlier` (N,) is the side in an earlier split, -1 for new
    pictures, which alone are drawn. A group with pictures that have been on several sides goes to the one that most has
    been learnt from.
    """
    sides = np.full(groups.max() + 1, -1)  # of each group
    for side in reversed(range(len(SIDES))):
        sides[groups[earlier == side]] = side
    _, first = np.unique(sha256, return_index=True)  # the distinct pictures, in the order of their hashes
    for target in np.unique(targets[first]):
        members = groups[first[targets[first] == target]]
        if len({*sides[members].tolist()}) == 1:  # all on one side: pictures were taken away; draw anew
            sides[members] = -1
        draw(sides, members, ratios, seed)
    return sides[groups]


def draw(sides: np.ndarray, members: np.ndarray, ratios: tuple[float, float], seed: int) -> None:
    """Give those groups of a class a side that have none. `members` is the group of each of its distinct pictures."""
    sizes = np.bincount(members, minlength=len(sides))
    new = members[sides[members] < 0]
    left = dict.fromkeys(new[np.random.RandomState(seed).permutation(len(new))].tolist())
    for side, ratio in ((VAL, ratios[0]), (TEST, ratios[1])):
        wanted = max(1, round(ratio * len(members))) if ratio else 0
        have = (sides[members] == side).sum()
        for group in list(left):
            if have + sizes[group] / 2 <= wanted and not is_last(left, sides[members]):
                sides[group] = side
                have += sizes[group]
                del left[group]
        if wanted and not have and left and not is_last(left, sides[members]):
            smallest = min(left, key=lambda group: sizes[group])
            sides[smallest] = side
            del left[smallest]
    sides[list(left)] = TRAIN


def is_last(left: Collection[int], sides: np.ndarray) -> bool:
    """Whether one group is left, and train has no picture without it."""
    return len(left) == 1 and not (sides == TRAIN).any()


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
