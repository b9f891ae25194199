"""Step 2: split a folder of pictures, one sub-folder for each class, into data/train and data/val.

    python makedata.py
    python makedata.py --folds 5      data/fold1/train, data/fold1/val and so on, for cross-validation

copies the pictures below data1/ (the source is never changed) and writes data/split.csv: for every file its source,
class, side, group and SHA-256; the settings are in data/split.json. What belongs together lands on the same side: files
that are byte-identical, pictures that are the same but for size, quality, a small crop or a turn, and what GROUP says.
Run again after pictures were added, it leaves those that were there before on their side.
"""
import hashlib
import io
import itertools
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common import settings
from common.data.folders import Rows, Samples, class_folders, is_image, list_files, refuse_empty, stamp
from common.data.images import bad_image, decode, header, regular
from common.data.near_duplicates import SIZE as THUMBNAIL
from common.data.near_duplicates import find_near_duplicates, thumbnail
from common.data.split import (
    LITTER,
    SIDES,
    TRAIN,
    VAL,
    alike,
    choose_sides,
    join,
    print_sides,
    read_sides,
    writing_manifest,
)
from common.runtime.console import printable
from common.runtime.errors import UserError, extra
from common.runtime.files import beside, harmless, locked, replacing_folder, restore, writable_folder
from common.runtime.machine import map_in_threads

SOURCE_DIR = 'data1'          # a folder with one sub-folder of pictures for each class
LABELS: str | None = None     # instead of sub-folders, a CSV file with the columns file (its path below SOURCE_DIR),
                              # class and, if you like, group
TARGET_DIR = 'data'           # is replaced as a whole, but only if this script made it
VAL_RATIO = 0.3               # share of each class that goes to val
TEST_RATIO = 0.0              # share of each class that goes to data/test, which train.py never reads
FOLDS: int | None = None      # instead of VAL_RATIO: so many splits, in which every picture is in val once
SEED = 42                     # another number gives another split
NEAR_DUPLICATES: bool | str = 'auto'  # keep pictures on one side that are the same but for quality, size, a crop of up
                              # to 5 %, quarter turns or mirroring; 'auto' does so for up to 20,000 pictures
GROUP: str | None = None      # what else stays together, such as the pictures of one plant, burst or video: 'folder'
                              # (each folder below a class), or a regular expression: where it finds the same in two
                              # paths below SOURCE_DIR
MAX_SIDE: int | None = None   # pixels; larger pictures are shrunk to this while copying: they take less room, and are
                              # read sooner at the start of each training
LINK = False                  # True: hard links instead of copies. They take no room, but are the source's own files:
                              # whoever edits a picture in data/ edits it there too
SHARDS = False                # True: data/train and data/val hold large files of many pictures each, for network disks
                              # and millions of pictures; train.py reads them as it reads folders

_TAKEN = 'taken'  # where pictures wait in the new folder until all are known (names with an underscore are no settings)
_MOST_COMPARED = 20_000
_SHRUNK_FORMATS = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.png': 'PNG', '.webp': 'WEBP'}  # any other becomes PNG


@dataclass
class Pictures:
    """The N pictures of SOURCE_DIR that can be read, in columns."""
    samples: Samples         # (path, index of the class)
    classes: list[str]
    numbers: np.ndarray      # (N,) each one's file in _TAKEN
    sha256: np.ndarray       # (N,) of the source, as 64 hexadecimal digits
    shrunk: np.ndarray       # (N,) whether it is larger than MAX_SIDE
    groups: np.ndarray       # (N,) the number of the group that stays together


@dataclass
class Taken:
    """What is known of one file, of an unreadable one only the problem."""
    problem: str
    sha256: str = ''
    is_shrunk: bool = False
    is_link: bool = False
    thumbnail: np.ndarray | None = None


def main(cfg: settings.Settings) -> None:
    check(cfg)
    with locked(beside(Path(cfg.TARGET_DIR), 'lock'), f'TARGET_DIR = {cfg.TARGET_DIR!r}: another makedata.py is there'):
        split(cfg)


def split(cfg: settings.Settings) -> None:
    """Build the new split beside TARGET_DIR, put it in its place, and print what there is to know of the pictures."""
    target = Path(cfg.TARGET_DIR)
    earlier = read_sides(target, cfg) if restore(target) else Rows([])
    classes, found, labelled = find_pictures(cfg)
    stamps = read_stamps(found)
    report_likeness(classes)
    with replacing_folder(target) as folder:
        (folder / _TAKEN).mkdir()
        pictures = take_all(classes, found, labelled, folder, cfg)
        report_duplicates(pictures)
        targets, groups = pictures.samples.targets, pictures.groups
        if cfg.FOLDS:
            with extra('FOLDS'):
                from extras.folds import choose_folds, print_folds
            folds = choose_folds(targets, groups, classes, cfg.FOLDS, cfg.SEED)
            parts = {f'fold{number + 1}/': np.where(folds == number, VAL, TRAIN) for number in range(cfg.FOLDS)}
        else:
            before = np.array([earlier.get(digest.decode(), -1) for digest in pictures.sha256])
            ratios = cfg.VAL_RATIO, cfg.TEST_RATIO
            parts = {'': choose_sides(pictures.sha256, targets, groups, before, ratios, cfg.SEED)}
        with writing_manifest(folder, cfg) as rows:
            for part, sides in parts.items():
                arrange(pictures, sides, folder, part, rows, cfg)
        shutil.rmtree(folder / _TAKEN)
        if find_pictures(cfg, quiet=True)[1] != found or (read_stamps(found) != stamps).any():
            raise UserError(f'{cfg.SOURCE_DIR} changed while it was read: run makedata.py again when it is complete')
    if cfg.FOLDS:
        print_folds(targets, folds, classes, cfg.TARGET_DIR)
    else:
        print_sides(targets, parts[''], classes, cfg.TARGET_DIR)


def check(cfg: settings.Settings) -> None:
    """Raise UserError for settings with which there can be no split."""
    if not 0 < cfg.VAL_RATIO < 1:
        raise UserError(f'VAL_RATIO = {cfg.VAL_RATIO} must lie between 0 and 1')
    if not 0 <= cfg.TEST_RATIO < 1 - cfg.VAL_RATIO:
        raise UserError(f'TEST_RATIO = {cfg.TEST_RATIO} must be at least 0 and leave something beside VAL_RATIO')
    if cfg.FOLDS is not None and (cfg.FOLDS < 2 or cfg.SHARDS or cfg.TEST_RATIO):
        raise UserError(f'FOLDS = {cfg.FOLDS}: give 2 or more, without SHARDS and TEST_RATIO, or None')
    if not 0 <= cfg.SEED < 2 ** 32:
        raise UserError(f'SEED = {cfg.SEED} must lie between 0 and {2 ** 32 - 1}')
    if cfg.NEAR_DUPLICATES not in (True, False, 'auto'):
        raise UserError(f"NEAR_DUPLICATES = {cfg.NEAR_DUPLICATES!r}: choose True, False or 'auto'")
    try:
        re.compile(cfg.GROUP or '')
    except re.error as error:
        raise UserError(f"GROUP = {cfg.GROUP!r} must be None, 'folder' or a regular expression ({error})") from None
    if cfg.MAX_SIDE is not None and cfg.MAX_SIDE < 16:
        raise UserError(f'MAX_SIDE = {cfg.MAX_SIDE} is too small for a picture: give 16 pixels or more, or None')
    if Path(cfg.TARGET_DIR).name in ('', '..'):
        raise UserError(f'TARGET_DIR = {cfg.TARGET_DIR!r} is replaced as a whole: give it a name of its own')
    source, target = Path(cfg.SOURCE_DIR).resolve(), Path(cfg.TARGET_DIR).resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f'SOURCE_DIR = {cfg.SOURCE_DIR!r} and TARGET_DIR = {cfg.TARGET_DIR!r} must lie apart')
    if cfg.SHARDS:
        with extra('SHARDS'):
            from extras.shards import litdata
        litdata()
    writable_folder(Path(cfg.TARGET_DIR).parent, 'TARGET_DIR')


def find_pictures(cfg: settings.Settings, quiet: bool = False) -> tuple[list[str], Samples, list[str | None] | None]:
    """(class names, [(path, class index)], the group of each that LABELS gives or None).

    Prints, unless `quiet`, how many files of which endings are left out for their names.
    """
    if cfg.LABELS:
        with extra('LABELS'):
            from extras.labels import read_labels
        return read_labels(cfg.LABELS, cfg.SOURCE_DIR)
    classes, others = class_folders(cfg.SOURCE_DIR), Counter()

    def pictures() -> Iterator[tuple[str, int]]:
        for index, name in enumerate(classes):
            for path in list_files(Path(cfg.SOURCE_DIR, name)):
                if is_image(path):
                    yield path, index
                elif os.path.basename(path) not in LITTER:
                    others[os.path.splitext(path)[1].lower()] += 1

    found = Samples(pictures())
    refuse_empty(classes, {classes[target] for target in np.unique(found.targets)}, cfg.SOURCE_DIR)
    others.pop('', None)
    if others and not quiet:
        print('left out, no pictures to Pillow: '
              + ', '.join(f'{n} {printable(kind)}' for kind, n in others.most_common()))
        if others.keys() & {'.heic', '.heif'}:
            print('to read them too: python -m pip install pillow-heif')
    return classes, found, None


def read_stamps(samples: Samples) -> np.ndarray:
    """(N, 2): size and modification time of each file."""
    return np.fromiter((stamp(path) for path, _ in samples), np.dtype((np.int64, 2)), len(samples))


def report_likeness(names: Iterable[str]) -> None:
    """Warn of classes whose names differ in nothing but letter case."""
    groups = defaultdict(list)
    for name in sorted(names):
        groups[name.casefold()].append(name)
    for names in groups.values():
        if len(names) > 1:
            print(f'warning: {" and ".join(names)} are different classes here, but one on Windows and macOS')


def take_all(classes: list[str], found: Samples, labelled: list[str | None] | None, folder: Path,
             cfg: settings.Settings) -> Pictures:
    """Read all pictures once, and have them wait in _TAKEN. Raises UserError where a class has no readable ones."""
    compare = len(found) <= _MOST_COMPARED if cfg.NEAR_DUPLICATES == 'auto' else cfg.NEAR_DUPLICATES
    if not compare and cfg.NEAR_DUPLICATES:
        print(f'NEAR_DUPLICATES = True would look for them among {len(found)} pictures, too: it takes long')
    sha256, shrunk = np.zeros(len(found), 'S64'), np.zeros(len(found), bool)
    thumbnails, copies = np.empty((compare * len(found), THUMBNAIL, THUMBNAIL, 3), np.uint8), 0

    def take_one(number, sample):
        return take(Path(sample[0]), folder / _TAKEN / str(number), compare, cfg)

    taken = map_in_threads(take_one, range(len(found)), found, desc='reading' if cfg.LINK or cfg.SHARDS else 'copying')
    for number, one in enumerate(taken):
        if one.problem:
            print(f'left out: {one.problem}')
            continue
        sha256[number], shrunk[number] = one.sha256, one.is_shrunk
        copies += not one.is_shrunk and not one.is_link
        if compare:
            thumbnails[number] = one.thumbnail
    numbers = np.flatnonzero(sha256 != b'')
    samples = Samples(found[number] for number in numbers)
    refuse_empty(classes, {classes[target] for target in np.unique(samples.targets)}, cfg.SOURCE_DIR)
    if cfg.LINK and copies:
        print(f'LINK: {cfg.TARGET_DIR} lies where no hard links to {cfg.SOURCE_DIR} can be made, so these are copies')
    pairs = [alike(sha256[numbers].tolist()), alike(group_of(path, cfg) for path, _ in samples)]
    if labelled:
        pairs.append(alike(labelled[number] for number in numbers))
    if compare:
        pairs.append(find_near_duplicates(thumbnails[numbers]))
    return Pictures(samples, classes, numbers, sha256[numbers], shrunk[numbers], join(len(numbers), *pairs))


def take(path: Path, file: Path, compare: bool, cfg: settings.Settings) -> Taken:
    """Read a picture once, for its copy, link or shrunken version at `file` and for what else is to be known of it."""
    try:
        content = regular(path).read_bytes()
        with header(io.BytesIO(content)) as image:
            is_large = cfg.MAX_SIDE is not None and max(image.size) > cfg.MAX_SIDE
        if compare or is_large:
            at_least = max(2 * cfg.MAX_SIDE if is_large else 0, 2 * THUMBNAIL)
            picture = decode(io.BytesIO(content), path, at_least)
    except (MemoryError, UserError):
        raise
    except Exception as error:  # Pillow's errors on a damaged file are of a dozen types
        return Taken(str(bad_image(path, error)))
    small = thumbnail(picture) if compare else None
    if is_large:
        picture.thumbnail((cfg.MAX_SIDE, cfg.MAX_SIDE), Image.Resampling.LANCZOS)
        picture.save(file, _SHRUNK_FORMATS.get(path.suffix.lower(), 'PNG'), quality=95)
    is_link = not is_large and (cfg.LINK or cfg.SHARDS) and link(path, file)  # into shards it is copied later
    if not is_large and not is_link:
        file.write_bytes(content)
    return Taken('', hashlib.sha256(content).hexdigest(), is_large, is_link, small)


def link(path: Path, file: Path) -> bool:
    """Make `file` a hard link to `path`; False where the file system has none, or it is another one."""
    try:
        os.link(path.resolve(), file)
    except OSError:
        return False
    return True


def group_of(path: str, cfg: settings.Settings) -> str | None:
    """What GROUP finds in a picture's path; pictures with the same stay together. None: with no other."""
    below = Path(path).relative_to(cfg.SOURCE_DIR)
    if cfg.GROUP == 'folder':
        return below.parent.as_posix() if len(below.parts) > 2 - bool(cfg.LABELS) else None
    match = re.search(cfg.GROUP, below.as_posix()) if cfg.GROUP else None
    return match and repr(match.groups() or match.group())


def report_duplicates(pictures: Pictures) -> None:
    """Print how many pictures there are more than once, and warn of those in several classes."""
    count = len(pictures.samples)
    distinct = len(np.unique(pictures.sha256))
    if distinct < count:
        print(f'{count - distinct} files are byte-identical to another')
    sizes = np.bincount(pictures.groups)
    sizes = sizes[sizes > 1]
    if len(sizes):
        print(f'{sizes.sum()} pictures belong to {len(sizes)} groups, each of which stays on one side')
    order = pictures.sha256.argsort(kind='stable')
    for _, equal in itertools.groupby(order, lambda number: pictures.sha256[number]):
        equal = list(equal)
        labels = {pictures.samples[number][1] for number in equal} if len(equal) > 1 else ()
        if len(labels) > 1:
            files = ', '.join(printable(pictures.samples[number][0]) for number in equal)
            print(f'warning: the same picture in {len(labels)} classes, so at least one label is wrong: {files}')


def arrange(pictures: Pictures, sides: np.ndarray, folder: Path, part: str, rows: Any, cfg: settings.Settings) -> None:
    """Put every picture in its place, as a file of its side and class or in the shards of its side; list them all.

    `part` is the folder of one of several splits, with a slash, or empty; `rows` takes the rows of split.csv.
    """
    def taken(place):
        return folder / _TAKEN / str(pictures.numbers[place])

    used = [name for number, name in enumerate(SIDES) if number in (TRAIN, VAL) or (sides == number).any()]
    order = np.arange(len(sides))
    if cfg.SHARDS:  # any part of the shards is then a fair sample
        order = np.random.default_rng(cfg.SEED).permutation(order)
    with ExitStack() as stack:
        if cfg.SHARDS:
            with extra('SHARDS'):
                from extras.shards.writing import writing_shards
            writers = {side: stack.enter_context(writing_shards(folder / side, pictures.classes)) for side in used}
            contents = map_in_threads(lambda n: taken(n).read_bytes(), order, desc='writing shards', at_a_time=64)
        else:
            contents = itertools.repeat(None)
            for side, name in itertools.product(used, pictures.classes):
                (folder / part / side / name).mkdir(parents=True)
        for content, place in zip(contents, order, strict=False):
            path, target = pictures.samples[place]
            name, side, file = pictures.classes[target], SIDES[sides[place]], name_below(pictures, place, cfg)
            if cfg.SHARDS:
                writers[side].add(content, name, f'{name}/{file}')
                taken(place).unlink()
            else:
                target = folder / part / side / name / file
                target.parent.mkdir(parents=True, exist_ok=True)
                if not part:
                    taken(place).rename(target)
                elif not link(taken(place), target):
                    shutil.copyfile(taken(place), target)
            rows.writerow([f'{part}{side}/{name}/{file}', Path(path).as_posix(), harmless(name), side,
                           pictures.groups[place], pictures.sha256[place].decode()])


def name_below(pictures: Pictures, place: int, cfg: settings.Settings) -> str:
    """The path of a picture below its class: that of its source, or another where it became a PNG."""
    path, target = pictures.samples[place]
    below = Path(path).relative_to(cfg.SOURCE_DIR if cfg.LABELS else Path(cfg.SOURCE_DIR, pictures.classes[target]))
    if not pictures.shrunk[place] or below.suffix.lower() in _SHRUNK_FORMATS:
        return below.as_posix()
    file = f'{below.name}.shrunk.png'
    if len(os.fsencode(file)) > 255 or os.path.lexists(f'{path}.shrunk.png'):  # the most that file systems take
        file = f'{pictures.sha256[place].decode()}-{place}.png'
    return below.with_name(file).as_posix()


if __name__ == '__main__':
    settings.run(main)
