"""What makedata.py writes about a split: split.json, its settings, and split.csv, a row for each picture."""
import csv
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from common.data.folders import Rows
from common.runtime.errors import UserError
from common.runtime.files import write_json
from common.settings import Settings

SETTINGS, PICTURES = 'split.json', 'split.csv'
SIDES = ('train', 'val', 'test')
COLUMNS = ('file', 'source', 'class', 'side', 'group', 'sha256')  # pictures of one group lie on one side
LITTER = {'.DS_Store', 'Thumbs.db', 'desktop.ini'}  # what file managers leave in every folder that they show

_MADE_BY = 'makedata.py'
_DECIDING = {  # settings with which a split is the same, and what held before there was such a setting
    'VAL_RATIO': None, 'SEED': None, 'TEST_RATIO': 0., 'GROUP': None, 'LABELS': None,
    'FOLDS': None}


@contextmanager
def writing_manifest(folder: Path, cfg: Settings) -> Iterator[Any]:
    """Yields a csv writer for the rows of split.csv; at the end both files are complete."""
    with open(folder / PICTURES, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        yield rows
    shards = [path.relative_to(folder).as_posix() for side in SIDES for path in sorted(folder.glob(f'{side}/*'))
              if path.is_file()]
    write_json(folder / SETTINGS, {'made_by': _MADE_BY, 'settings': vars(cfg), 'shards': shards})


def read_sides(target: Path, cfg: Settings) -> Rows:
    """The split that is there: from the SHA-256 of a picture to the number of its side in SIDES.

    Empty where the split has another VAL_RATIO, TEST_RATIO, SEED, GROUP, LABELS or FOLDS. Raises UserError if the
    folder is anything but a split of makedata.py, or holds a file that makedata.py did not put there.
    """
    advice = 'move it away or choose another TARGET_DIR; it was not touched'
    try:
        manifest = json.loads((target / SETTINGS).read_text(encoding='utf-8'))
        ours = manifest['made_by'] == _MADE_BY and not target.is_symlink()
        files = Rows(row['file'] for row in read_rows(target, manifest))
        sides = [SIDES.index(row['side']) for row in read_rows(target, manifest)]
        earlier = Rows((row['sha256'] for row in read_rows(target, manifest)), sides)
        others = {SETTINGS, PICTURES, *manifest.get('shards', [])}
        same = all(manifest['settings'].get(name, before) == getattr(cfg, name) for name, before in _DECIDING.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error):
        ours = False
    if not ours:
        raise UserError(f'{target} exists and was not made by {_MADE_BY}: {advice}')
    for place, folders, names in os.walk(target):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for path in (Path(place, name) for name in names + links):
            file = path.relative_to(target).as_posix()
            if file not in others and files.get(file) is None and path.name not in LITTER:
                raise UserError(f'{path} was not put there by {_MADE_BY} and would be lost: {advice}')
    return earlier if same else Rows([])


def read_rows(target: Path, manifest: dict) -> Iterator[dict[str, str]]:
    """Yields the rows of split.csv as {column: text}; in splits of earlier versions split.json has them."""
    if 'files' in manifest:
        yield from manifest['files']
        return
    with open(target / PICTURES, newline='', encoding='utf-8', errors='surrogateescape') as file:
        yield from csv.DictReader(file)


# Which pictures belong together, and the side of a split that each of them goes to

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


# What makedata.py prints of a split

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


def count(targets: np.ndarray, parts: np.ndarray, classes: int, columns: int) -> np.ndarray:
    """How many pictures of each class each part has, (classes, columns)."""
    counts = np.zeros((classes, columns), int)
    np.add.at(counts, (targets, parts), 1)
    return counts


def print_counts(title: str, names: Sequence[str], counts: np.ndarray, classes: Sequence[str]) -> None:
    width = max(len(title), *map(len, classes))
    for name, row in [(title, names), *zip(classes, counts, strict=True), ('all', counts.sum(0))]:
        print(f'{name:{width}} ' + ' '.join(f'{value:>6}' for value in row))
