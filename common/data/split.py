"""A split into train, val and test: who goes where, the files that list it, and what makedata.py prints of it."""
import csv
import itertools
import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common.data.folders import FOR_VAL, SPLIT_TABLE, Rows
from common.data.grouping import suggest_group
from common.data.listing import is_litter
from common.data.taking import TakenImages
from common.runtime.console import printable
from common.runtime.disks import is_file, regular
from common.runtime.errors import UserError
from common.runtime.files import harmless, write_json
from common.runtime.names import BadName, inside

SIDES = ('train', 'val', 'test')
TRAIN, VAL, TEST = range(len(SIDES))


# The listing of a split: split.json has the settings, split.csv a row for each image

SPLIT_SETTINGS = 'split.json'
DECIDING = ('VAL_RATIO', 'TEST_RATIO', 'FOLDS', 'SEED', 'GROUP', 'LABELS')  # if one differs, all is drawn anew
# Images of one group lie on one side. `reason` says why an image has another class than in the source or, without a
# `file`, why it was left out.
SPLIT_COLUMNS = ('file', 'source', 'class', 'side', 'group', 'sha256', 'reason')

CORRECTED_TABLE = 'corrections.csv'  # the corrections that a split follows, of all the tables of CORRECTIONS
ABSENT_TABLE = 'absent.csv'  # the sides of images that an earlier split had, if they ever come back
ABSENT_COLUMNS = ('sha256', 'side')

FOR_TRAIN = ('and train.py refuses such a split: add images of the class or remove it, or see GROUP, NEAR_DUPLICATES, '
             'CORRECTIONS and SEED in makedata.py')  # what to do if train lacks a class

_MANY_SIMILAR = 1 / 5  # fraction of images with near-duplicates; of single photographs it is a fiftieth

_SHA256 = re.compile('[0-9a-f]{64}')
_MADE_BY = 'makedata.py'
_ADVICE = 'move it away or choose another TARGET_DIR; it was not touched'
# What reading the listing of a split raises where makedata.py did not write it.
MALFORMED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error, BadName)


@contextmanager
def writing_manifest(folder: Path, settings: Mapping[str, Any]) -> Iterator[Any]:
    """Yield a csv writer for the rows of split.csv. At the end split.json has the settings of makedata.py."""
    with open(folder / SPLIT_TABLE, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        rows = csv.writer(file)
        rows.writerow(SPLIT_COLUMNS)
        yield rows
    # Files directly in the folder of a side hold many images each; split.csv does not list them.
    shards = [path.relative_to(folder).as_posix() for side in SIDES for path in sorted(folder.glob(f'{side}/*'))
              if path.is_file()]
    write_json(folder / SPLIT_SETTINGS, {'made_by': _MADE_BY, 'settings': dict(settings), 'shards': shards})


def read_split_settings(folder: Path) -> dict[str, Any]:
    """Return the settings with which makedata.py made the split, or fold, in a folder; {} where it did not."""
    for place in (folder, folder.parent):
        with suppress(*MALFORMED):
            return dict(json.loads(regular(place / SPLIT_SETTINGS).read_text(encoding='utf-8'))['settings'])
    return {}


def describe_draw(settings: Mapping[str, Any]) -> str:
    """Return a text of the DECIDING settings of a split: images of splits with the same ones stay on their sides."""
    return ', '.join(f'{name} = {settings.get(name)!r}' for name in DECIDING)


def read_sides(target: Path, settings: Mapping[str, Any]) -> Rows:
    """Return the split that is there, as a map from the SHA-256 of an image to the number of its side in SIDES.

    Images that only an earlier split had are in it, too. The map is empty, and a line says so, if the split was made
    with other DECIDING settings than these of makedata.py. Raises UserError if the folder is anything but a split of
    this makedata.py, or holds a file that makedata.py did not put there.
    """
    try:
        manifest = json.loads(regular(target / SPLIT_SETTINGS).read_text(encoding='utf-8'))
        is_ours = manifest['made_by'] == _MADE_BY and not target.is_symlink()
    except MALFORMED:
        is_ours = False
    if not is_ours:
        raise UserError(f'{target} exists and was not made by {_MADE_BY}: {_ADVICE}')
    try:
        files = Rows(row['file'] for row in read_split_table(target))
        sides = [SIDES.index(row['side']) for row in read_all_sides(target)]
        earlier = Rows((row['sha256'] for row in read_all_sides(target)), sides)
        unlisted = {SPLIT_SETTINGS, SPLIT_TABLE, ABSENT_TABLE, CORRECTED_TABLE, *manifest['shards']}
        before = {name: manifest['settings'][name] for name in DECIDING}
    except MALFORMED:
        raise UserError(f'{target} was made by another version of {_MADE_BY}, or changed since: {_ADVICE}') from None

    for place, folders, names in os.walk(target):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for path in (Path(place, name) for name in names + links):
            below = path.relative_to(target)
            file = below.as_posix()
            if file not in unlisted and files.get(file) is None and not is_litter(below):
                raise UserError(f'{path} was not put there by {_MADE_BY} and would be lost: {_ADVICE}')
    changed = [f'{name} was {value!r} and is {settings[name]!r}' for name, value in before.items()
               if value != settings[name]]
    if not changed:
        return earlier
    print(printable(f'{", ".join(changed)} now, so all images are drawn anew: a network that was trained before has '
                    'learnt from some of those that measure now, so train it again'))
    return Rows([])


def read_split_table(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of split.csv as {column: text}, each with a 'file' that lies in the folder.

    Those of images that were left out, which have none, are passed over. Raises BadName for others, and OSError,
    ValueError, KeyError and csv.Error.
    """
    for row in _read_rows(folder):
        if not _is_left_out(row):
            inside(folder, row['file'])
            yield row


def _read_rows(folder):
    """Yield all rows of split.csv as {column: text}."""
    with open(regular(folder / SPLIT_TABLE), newline='', encoding='utf-8', errors='surrogateescape') as file:
        yield from csv.DictReader(file)


def _is_left_out(row):
    """Return whether a row of split.csv is that of an image that corrections left out."""
    return row['file'] == '' and bool(row.get('reason'))


def read_all_sides(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of split.csv, also of images that were left out, then those of ABSENT_TABLE, if there is one.

    Each has the 'sha256' of an image. Raises what read_split_table does.
    """
    for row in itertools.chain(_read_rows(folder), read_absent(folder)):
        if not _SHA256.fullmatch(row['sha256']):
            raise ValueError('sha256 has 64 hexadecimal digits')
        yield row


def read_absent(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of ABSENT_TABLE, if there is one."""
    if is_file(folder / ABSENT_TABLE):
        with open(folder / ABSENT_TABLE, newline='', encoding='utf-8') as file:
            yield from csv.DictReader(file)


def keep_absent(folder: Path, images: TakenImages, target: Path, earlier: Rows) -> None:
    """Write ABSENT_TABLE into `folder`: the sides of images that the split in `target` knows and the new one lacks.

    An image that could not be read once, or was moved away for a while, comes back to the side where it was. It would
    otherwise be drawn anew, and one that has been learnt from could come to measure. `earlier` is what read_sides
    returned: nothing is written where that is empty.
    """
    present = Rows(digest.decode() for digest in images.sha256)
    absent = {}
    if len(earlier):
        for row in read_all_sides(target):
            if present.get(row['sha256']) is None:
                absent[row['sha256']] = row['side']
    if absent:
        with open(folder / ABSENT_TABLE, 'w', newline='', encoding='utf-8') as file:
            csv.writer(file).writerows([ABSENT_COLUMNS, *absent.items()])


# The side of each image

def choose_sides(sha256: np.ndarray, targets: np.ndarray, groups: np.ndarray, earlier: np.ndarray,
                 ratios: tuple[float, float], seed: int) -> np.ndarray:
    """Return the side (N,) of each of N images, a number of SIDES.

    `ratios` are the fractions of each class's distinct images that go to val and to test. Whole groups go there. Every
    class has an image in train, and one on each other side if it has enough groups. `sha256` (N,) tells which images
    are the same; `targets` (N,) are the classes. `earlier` (N,) is the side in an earlier split, -1 for new images,
    which alone are drawn. A group whose images were on several sides goes to train before val before test: what has
    been learnt from must not measure.
    """
    sides = np.full(groups.max() + 1, -1)  # of each group
    for side in (TEST, VAL, TRAIN):
        sides[groups[earlier == side]] = side
    before = sides.copy()
    is_old = before >= 0

    distinct = distinct_images(sha256, targets)
    members = {target: groups[places] for target, places in distinct.items()}
    in_class = np.concatenate([np.unique(of_class) for of_class in members.values()])  # each class has a group once
    is_shared = np.bincount(in_class) > 1
    # A class with few groups has the least choice: it is drawn before others give sides to groups that it shares.
    for target in sorted(members, key=lambda target: len(np.unique(members[target]))):
        of_class = members[target]
        if len(np.unique(before[of_class])) == 1:  # the class was on one side, since images were taken away
            redrawn = of_class[~is_shared[of_class]]  # the others are not for this class alone to move
            sides[redrawn] = -1
            is_old[redrawn] = False
        draw_class(sides, of_class, ratios, seed)
    fill_sides(sides, members, is_old, ratios)
    return sides[groups]


def distinct_images(sha256: np.ndarray, targets: np.ndarray) -> dict[int, np.ndarray]:
    """Return {class: places of its distinct images}, in the order of their hashes."""
    order = np.lexsort((sha256, targets))  # stable
    is_first = np.ones(len(order), bool)
    is_first[1:] = (sha256[order[1:]] != sha256[order[:-1]]) | (targets[order[1:]] != targets[order[:-1]])
    places = order[is_first]
    found, starts = np.unique(targets[places], return_index=True)
    return dict(zip(found.tolist(), np.split(places, starts[1:]), strict=True))


def draw_class(sides: np.ndarray, members: np.ndarray, ratios: tuple[float, float], seed: int) -> None:
    """Give a side to those groups of a class that have none. `members` is the group of each of its distinct images."""
    sizes = np.bincount(members, minlength=len(sides))
    new = members[sides[members] < 0]
    left = dict.fromkeys(new[np.random.RandomState(seed).permutation(len(new))].tolist())
    for side, ratio in zip((VAL, TEST), ratios, strict=True):
        if not ratio:
            continue
        wanted = max(1, round(ratio * len(members)))
        have = (sides[members] == side).sum()
        for group in list(left):
            if have + sizes[group] / 2 <= wanted and not is_last(left, sides[members]):
                sides[group] = side
                have += sizes[group]
                del left[group]
        if not have and left and not is_last(left, sides[members]):
            smallest = min(left, key=lambda group: sizes[group])
            sides[smallest] = side
            del left[smallest]
    sides[list(left)] = TRAIN


def is_last(left: Collection[int], sides: np.ndarray) -> bool:
    """Return whether one group is left, and train has no image without it."""
    return len(left) == 1 and not (sides == TRAIN).any()


def fill_sides(sides: np.ndarray, members: Mapping[int, np.ndarray], is_old: np.ndarray,
               ratios: tuple[float, float]) -> None:
    """Move groups so that each class has one in train and, if that takes no other class its last one in train, on the
    other sides. They may lack where classes share groups.

    `sides` and `is_old` have a value for each group. An old group, from an earlier split, moves only to train, and only
    if there is no new one. `members` is {class: the group of each of its distinct images}.
    """
    classes = [np.unique(of_class) for of_class in members.values()]  # the groups of each
    sizes = np.bincount(np.concatenate([*members.values()]))

    def lost(group: int) -> int:
        """Return how many classes would lose their last group on its side."""
        return sum(group in of_class and (sides[of_class] == sides[group]).sum() == 1 for of_class in classes)

    for of_class in classes:
        if not (sides[of_class] == TRAIN).any():
            moved = min(of_class.tolist(), key=lambda group: (is_old[group], sizes[group]))
            sides[moved] = TRAIN
    for side, ratio in zip((VAL, TEST), ratios, strict=True):
        for of_class in classes:
            if not ratio or (sides[of_class] == side).any():
                continue
            spare = [group for group in of_class[sides[of_class] == TRAIN].tolist()
                     if not is_old[group] and not lost(group)]
            if spare:
                sides[min(spare, key=lambda group: sizes[group])] = side


# How the images of a split come to lie

class Layout(Protocol):
    """What divides the images of a split and puts them into its folder. FOLDS and SHARDS bring layouts of their own."""
    links_suffice: bool  # whether the waiting images are only read, so that links to their sources will do

    def divide(self, images: TakenImages, earlier: Rows) -> np.ndarray:
        """Return the part (N,) of the split that each image goes to."""

    def write(self, images: TakenImages, parts: np.ndarray, folder: Path, rows: Any) -> None:
        """Put every image into the folder of the split, and a row for it into split.csv."""

    def report(self, images: TakenImages, parts: np.ndarray, place: str) -> None:
        """Print what the split in the folder `place` holds."""


class FileLayout:
    """A split of files, SIDE/CLASS/NAME, drawn with `seed`, with the fractions of each class that are val and test."""
    links_suffice = False

    def __init__(self, val_ratio: float, test_ratio: float, seed: int):
        self.ratios = (val_ratio, test_ratio)
        self.seed = seed

    def divide(self, images: TakenImages, earlier: Rows) -> np.ndarray:
        before = np.array([earlier.get(digest.decode(), -1) for digest in images.sha256])
        return choose_sides(images.sha256, images.samples.targets, images.groups, before, self.ratios, self.seed)

    def write(self, images: TakenImages, parts: np.ndarray, folder: Path, rows: Any) -> None:
        write_files(images, parts, folder, rows)

    def report(self, images: TakenImages, parts: np.ndarray, place: str) -> None:
        print_sides(images.samples.targets, parts, images.classes, place)


def write_files(images: TakenImages, sides: np.ndarray, folder: Path, rows: Any, prefix: str = '',
                put: Callable[[Path, Path], Any] = os.rename) -> None:
    """Put every image into the folder of its side and class, and a row for it into split.csv.

    `prefix` is '' or the folder of one of several splits, such as 'fold1/'. `put` brings a waiting file to its place.
    """
    for side, name in itertools.product(used_sides(sides), images.classes):
        (folder / f'{prefix}{SIDES[side]}' / name).mkdir(parents=True)
    for place, side in enumerate(sides):
        file = f'{prefix}{SIDES[side]}/{images.name(place)}'
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        put(images.file(place), folder / file)
        rows.writerow(split_row(images, place, side, file))


def split_row(images: TakenImages, place: int, side: int, file: str) -> tuple:
    """Return the row of split.csv, with SPLIT_COLUMNS, of an image that lies at `file` in the folder of the split."""
    path, target = images.samples[place]
    return (file, Path(path).as_posix(), harmless(images.classes[target]), SIDES[side], images.groups[place],
            images.sha256[place].decode(), images.corrected.get(place, ''))


def used_sides(sides: np.ndarray) -> list[int]:
    """Return the numbers of the sides that a split has: train, val, and test if any image is in it."""
    return [TRAIN, VAL, TEST] if (sides == TEST).any() else [TRAIN, VAL]


# What makedata.py prints

def warn_of_similar_names(names: Iterable[str]) -> None:
    """Print a warning of classes whose names differ in nothing but letter case, spaces or the width of letters."""
    similar = defaultdict(list)
    for name in sorted(names):
        similar[' '.join(unicodedata.normalize('NFKC', name).casefold().split())].append(name)
    for same in similar.values():
        if len(same) > 1:
            print(f'warning: {" and ".join(same)} are different classes here, but one on Windows and macOS, or to a '
                  'reader: rename one if that is a slip')


def report_duplicates(images: TakenImages) -> None:
    """Print how many images there are more than once or belong together, and warn of those in several classes."""
    copies = len(images.sha256) - len(np.unique(images.sha256))
    if copies:
        print(f'{copies} files are byte-identical to another')
    sizes = np.bincount(images.groups)
    sizes = sizes[sizes > 1]
    if len(sizes):
        print(f'{sizes.sum()} images belong to {len(sizes)} groups, each of which stays on one side')
    in_group, _ = np.unique(np.stack([images.groups, images.samples.targets]), axis=1)  # each class has a group once
    mixed = (np.bincount(in_group) > 1).sum()
    if mixed:
        print(f'groups with images of several classes: {mixed}')
    order = images.sha256.argsort(kind='stable')
    for _, places in itertools.groupby(order, lambda place: images.sha256[place]):
        equal = [images.samples[place] for place in places]
        labels = {target for _, target in equal}
        if len(labels) > 1:
            files = ', '.join(printable(path) for path, _ in equal)
            print(f'warning: the same image in {len(labels)} classes, so at least one label is wrong: {files}')


def advise_group(images: TakenImages) -> None:
    """Print what GROUP can do if the images seem to be series, such as frames of videos."""
    _, distinct = np.unique(images.sha256, return_index=True)
    groups = images.groups[distinct]
    similar = (np.bincount(groups)[groups] > 1).sum()
    group = suggest_group(images.samples, images.root, images.class_depth)
    if similar >= _MANY_SIMILAR * len(groups):
        reason = f'{similar} of {len(groups)} images are nearly like others, as frames of a video are'
    elif group:
        reason = 'most names differ in their last number alone, as those of the frames of a video do'
    else:
        return
    if group:
        print(f"{reason}: if the names tell which images belong together, set GROUP, here --group '{group}'")
    else:
        print(f"{reason}: if more belong together than was found, put them into a folder below the class and set "
              "GROUP = 'folder', or list them in a table of LABELS with a column group")


def print_sides(targets: np.ndarray, sides: np.ndarray, classes: Sequence[str], place: str) -> None:
    """Print the number of images of each class on each side, and warn of classes that are small beside others.

    `targets` (N,) are class indices, `sides` (N,) numbers of SIDES, `place` is the folder of the split.
    """
    used = used_sides(sides)
    counts = count_parts(targets, sides, len(classes), len(SIDES))[:, used]
    print_counts('class', [SIDES[side] for side in used], counts, classes)
    sizes = counts.sum(1)
    if sizes.max() >= 2 * sizes.min():
        most = classes[sizes.argmax()]
        least = classes[sizes.argmin()]
        print(f'\nimbalance: {most} has {sizes.max() / sizes.min():.1f} times as many images as {least}; '
              'look at the balanced accuracy that train.py reports, beside ACC1')
    for target, column in np.argwhere(counts == 0):
        if used[column] == TRAIN:
            print(f'warning: {classes[target]} has no image in {SIDES[TRAIN]}, {FOR_TRAIN}')
        else:
            print(f'warning: {classes[target]} has no image in {SIDES[used[column]]}, so nothing will measure it there')
    if not (sides == VAL).any():
        print(f'warning: {place}/{SIDES[VAL]} is empty, and train.py needs it: {FOR_VAL}')
    print(f'\n{", ".join(f"{place}/{SIDES[side]}" for side in used)} and {place}/{SPLIT_TABLE} are written')


def count_parts(targets: np.ndarray, parts: np.ndarray, classes: int, columns: int) -> np.ndarray:
    """Return how many images of each class each part has, (classes, columns)."""
    counts = np.zeros((classes, columns), int)
    np.add.at(counts, (targets, parts), 1)
    return counts


def print_counts(title: str, names: Sequence[str], counts: np.ndarray, classes: Sequence[str]) -> None:
    """Print a table of counts (classes, names) with a last row for the sums; `title` heads the column of classes."""
    width = max(len(title), *map(len, classes))
    for name, row in [(title, names), *zip(classes, counts, strict=True), ('all', counts.sum(0))]:
        print(f'{name:{width}} ' + ' '.join(f'{value:>6}' for value in row))
