"""Folders of images, with one sub-folder for each class, and what opens the images of a data set."""
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from common.data.images import open_image, read_content
from common.data.listing import (
    describe_left_out,
    is_folder_entry,
    is_image,
    is_of_programs,
    is_output,
    list_images,
    read_folder,
)
from common.runtime.disks import is_file, is_folder, persistently, status
from common.runtime.errors import UserError, extra
from common.runtime.names import is_folder_name


def stamp(path: str | Path) -> list[int]:
    """Return [size in bytes, modification time in ns] of a file, zeros where it cannot be found. Raises DiskError."""
    found = status(path)
    if found is None:
        return [0, 0]
    return [found.st_size, found.st_mtime_ns]


# A sub-folder for each class

def class_name(folder: str) -> str:
    """Return the class that a folder of this name holds: accented letters can be stored in two ways, and macOS and
    others differ in which.
    """
    return unicodedata.normalize('NFC', folder)


def class_folders(folder: str | Path, left_out: Counter | None = None) -> dict[str, str]:
    """Return {class: name of its folder} for the sub-folders that are classes, sorted by class.

    What does not count is added to `left_out`, as in list_images. Raises UserError where there is no such folder, none
    in it, or one with control characters in its name, and for two folders of one class.
    """
    folder = Path(folder)
    if left_out is None:
        left_out = Counter()
    if not is_folder(folder):
        raise UserError(f'{folder}: no such folder')
    folders = {}
    for entry in read_folder(str(folder), set()):
        if not is_folder_entry(entry):
            if is_image(entry.name):
                left_out['images beside the class folders'] += 1
            elif entry.is_symlink() and not os.path.exists(entry.path) and not is_of_programs(entry.name):
                raise UserError(f'{entry.path}: a link to nowhere: mount its disk, or remove the link')
        elif is_of_programs(entry.name):
            left_out[f'{entry.name}/'] += 1
        elif is_output(Path(entry.path)):
            left_out[f'{entry.name}/ (results of these scripts)'] += 1
        else:
            name = class_name(entry.name)
            if name in folders:
                raise UserError(f'{folder}: two folders are called {name}, and differ only in how an accent is stored: '
                                'put the images of both into one')
            folders[name] = entry.name
    if not folders:
        advice = f' (left out: {describe_left_out(left_out)})' if left_out else ''
        raise UserError(f'{folder}: no sub-folders in it, and each class needs one of its own{advice}')
    refuse_class_names(folders, folder)
    return {name: folders[name] for name in sorted(folders)}


def refuse_class_names(names: Iterable[str], place: str | Path) -> None:
    """Raise UserError for a class that cannot be the name of a folder."""
    for name in names:
        if not is_folder_name(name) or is_of_programs(name):
            raise UserError(f'{place}: the class {name!r} cannot be the name of a folder, rename it')
        if any(unicodedata.category(character) == 'Cc' for character in name):
            raise UserError(f'{place}: the class {name!r} has control characters in its name, rename it')


def refuse_empty(names: Iterable[str], filled: Collection[str], place: str | Path, left_out: Counter,
                 problems: Mapping[str, str] | None = None) -> None:
    """Raise UserError for classes that are not among `filled`, the names of those with images.

    `problems`, {class: text}, says what is wrong with a file of a class.
    """
    empty = [name for name in names if name not in filled]
    if empty:
        known = [problems[name] for name in empty if problems and name in problems]
        also = ''
        if known:
            also = f' ({known[0]})'
        elif left_out:
            also = f' (left out: {describe_left_out(left_out)})'
        raise UserError(f'{place}: no images in {", ".join(empty)}: add some or remove the class{also}')


# A set that is split already

FOR_VAL = ('it needs classes with two images or more that do not belong together: add images, or see NEAR_DUPLICATES, '
           'GROUP and VAL_RATIO in makedata.py')  # what to do if val is empty
_SPELLINGS = {'train': ('train', 'training'), 'val': ('val', 'valid', 'validation'), 'test': ('test', 'testing')}


def is_side(name: str, side: str) -> bool:
    """Return whether a folder is called like a side of a split, 'train', 'val' or 'test', as people call them."""
    return name.lower() in _SPELLINGS[side]


def side_folders(folder: str | Path) -> dict[str, str]:
    """Return the names of the sub-folders that are called like sides of a split, {'train': 'Train', 'val': 'valid'}.

    Where there are two for a side, such as val and valid, it is the one that makedata.py would make. Where train holds
    nothing but another folder train, as some archives have it, it is 'train/train'. Raises UserError.
    """
    if not is_folder(folder):
        return {}
    found = {}
    for entry in read_folder(str(folder), set()):
        for side in _SPELLINGS:
            if is_side(entry.name, side) and is_folder_entry(entry) and found.get(side) != side:
                found[side] = entry.name
    return {side: _unwrapped(folder, found[side]) for side in _SPELLINGS if side in found}


def _unwrapped(folder, name):
    """Return `name`, or 'name/name' where that sub-folder holds only another of its name, with folders in it."""
    inner, has_images = _content(Path(folder, name))
    if has_images or inner != {class_name(name)}:
        return name
    deeper, has_images = _content(Path(folder, name, name))
    return f'{name}/{name}' if deeper and not has_images else name


def side_folder(folder: str | Path, side: str) -> Path:
    """Return the path of a side of the split in a folder, whether there is one or not. Raises UserError."""
    return Path(folder, side_folders(folder).get(side, side))


def find_split(folder: str | Path) -> dict[str, str]:
    """Return the side_folders of a set that is split already; {} for other folders, such as one with a class `train`.

    Each side of a split has class folders, of the same names as train, or the images of test lie in it directly.
    """
    sides = side_folders(folder)
    if 'train' not in sides or len(sides) == 1:
        return {}
    classes, has_images = _content(Path(folder, sides['train']))
    if has_images or not classes:
        return {}
    is_like_train = False
    for side in ('val', 'test'):
        if side in sides:
            others, has_images = _content(Path(folder, sides[side]))
            is_like_train |= not classes.isdisjoint(others) or (has_images and side == 'test' and len(classes) > 1)
    return sides if is_like_train else {}


def _content(folder):
    """Return (the names of the sub-folders that may be classes, whether there are images beside them)."""
    entries = read_folder(str(folder), set())
    names = {class_name(entry.name) for entry in entries if is_folder_entry(entry) and not is_of_programs(entry.name)}
    return names, any(is_image(entry.name) for entry in entries if not is_folder_entry(entry))


# Lists and maps of many paths in a few arrays

class Samples(Sequence):
    """A read-only list [(path, class index), ...] of images. `targets` are the class indices, int32 (N,)."""

    def __init__(self, samples: Iterable[tuple[str, int]]):
        names = bytearray()
        ends = []
        targets = []
        for path, target in samples:
            names += os.fsencode(path)
            ends.append(len(names))
            targets.append(target)
        self.names = np.frombuffer(bytes(names), np.uint8)
        self.ends = np.array(ends, np.int64)
        self.targets = np.array(targets, np.int32)

    def __len__(self) -> int:
        return len(self.ends)

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, Samples) and np.array_equal(self.names, other.names)
                and np.array_equal(self.ends, other.ends) and np.array_equal(self.targets, other.targets))

    def __getitem__(self, index: int | slice) -> tuple[str, int] | list[tuple[str, int]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # raises IndexError
        start = self.ends[number - 1] if number else 0
        return os.fsdecode(self.names[start:self.ends[number]].tobytes()), int(self.targets[number])


class Rows:
    """A read-only map from a text, such as a path, to a number, by default its place; 16 bytes for each."""

    def __init__(self, texts: Iterable[str], numbers: Iterable[int] | None = None):
        digests = np.fromiter(map(_digest, texts), np.uint64)
        order = digests.argsort()
        self.digests = digests[order]
        if numbers is None:
            self.numbers = order
        else:
            self.numbers = np.fromiter(numbers, np.int64, len(order))[order]

    def __len__(self) -> int:
        return len(self.digests)

    def get(self, text: str, default: int | None = None) -> int | None:
        """Return the number of a text, or `default` for one that is not in the map."""
        digest = _digest(text)
        place = self.digests.searchsorted(digest)
        if place < len(self.digests) and self.digests[place] == digest:
            return int(self.numbers[place])
        return default


def _digest(text):
    """Return 64 bits of a hash. Any two of ten million texts have the same one with a probability of 3e-6."""
    return np.uint64(int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), 'little'))


# All images of a folder

@dataclass
class FoundImages:
    """The images of a folder and their classes, as its sub-folders or a table give them."""
    root: str                # the folder
    classes: list[str]       # sorted
    samples: Samples         # [(path, class index)]
    class_depth: int = 1     # how many folders at the beginning of a path below `root` stand for the class
    groups: list[str | None] | None = None  # what a table says to keep together, for each sample
    left_out: Counter = field(default_factory=Counter)  # {kind: number} of files and folders that do not count


def find_in_class_folders(root: str) -> FoundImages:
    """Return the images of a folder with one sub-folder for each class.

    Raises UserError where a class has none, and for a set that is split already.
    """
    sides = find_split(root)
    if sides:
        train = Path(root, sides['train'])
        advice = f'python makedata.py --source-dir {train} splits {sides["train"]}'
        if 'val' in sides:
            advice = f'python train.py --data-dir {root} takes it as it is, and {advice} anew'
        else:
            advice += f', and, after training, python test.py --test-dir {Path(root, sides["test"])} tests the network'
        raise UserError(f'{root} is split already, into {", ".join(sides.values())}: {advice}; if these are classes, '
                        'rename one')
    files = Files(root)
    classes = files.classes()
    samples = files.samples({name: index for index, name in enumerate(classes)})
    refuse_empty(classes, {classes[target] for target in np.unique(samples.targets)}, root, files.left_out)
    warn_of_deeper_classes(root, classes, samples)
    return FoundImages(root, classes, samples, left_out=files.left_out)


def warn_of_deeper_classes(root: str, classes: Sequence[str], samples: Samples) -> None:
    """Print a warning where the folders below those of the classes seem to be the classes.

    That is so if no class folder has images of its own, and all have sub-folders of the same names, or one holds only
    another of its own name, with folders in it.
    """
    inner = [set() for _ in classes]  # (a folder in that of the class, whether its images lie deeper)
    for path, target in samples:
        folders = Path(path).relative_to(root).parts[1:-1]
        if not folders:
            return
        inner[target].add((folders[0], len(folders) > 1))
    shared = set.intersection(*inner)
    wrapped = [name for name, found in zip(classes, inner, strict=True) if found == {(name, True)}]
    if len(shared) > 1 or wrapped:
        counts = dict(zip(classes, np.bincount(samples.targets), strict=True))
        largest = max(wrapped or classes, key=counts.get)
        example = Path(root, largest, largest if wrapped else '')
        print(f'warning: {", ".join(classes[:8])} are taken to be the classes, but hold folders alone: if the classes '
              f'are further down, name the folder around them, such as {example}')


def read_stamps(samples: Samples) -> np.ndarray:
    """Return the size and the modification time of each file, (N, 2)."""
    return np.fromiter((stamp(path) for path, _ in samples), np.dtype((np.int64, 2)), len(samples))


# Where the images of a data set lie

SPLIT_TABLE = 'split.csv'      # makedata.py writes it beside the images that it lists
SHARDS_TABLE = 'pictures.csv'  # lists the images in a folder of shards (extras/shards)
SHARDS_COLUMNS = ['file', 'class', 'bytes']


class Store(Protocol):
    """What opens images by their paths: files, or shards that are treated as if they were files.

    `left_out`, {kind: number}, is what the last listing found that does not count.
    """
    left_out: Counter

    def open(self, path: str | Path, at_least: int | None = None) -> Image.Image: ...

    def content(self, path: str | Path) -> bytes: ...

    def stamp(self, path: str | Path) -> list[int]: ...


class Files:
    """A folder of images, one sub-folder for each class."""
    open = staticmethod(open_image)
    content = staticmethod(read_content)
    stamp = staticmethod(stamp)

    def __init__(self, root: str | Path):
        self.root = str(root)
        self.left_out = Counter()

    def paths(self) -> Iterator[str]:
        """Yield the path of each image, in order; `root` itself if it is a file."""
        self.left_out = Counter()
        if is_file(self.root):
            return iter([self.root])
        return list_images(self.root, self.left_out)

    def classes(self) -> list[str]:
        """Return the names of the classes, sorted."""
        return list(class_folders(self.root))

    def samples(self, classes: Mapping[str, int]) -> Samples:
        """Return [(path, class index)] of all images of `classes`, {name: index}."""
        self.left_out = Counter()
        folders = class_folders(self.root, self.left_out)
        return Samples((path, index) for name, index in classes.items()
                       for path in list_images(Path(self.root, folders.get(name, name)), self.left_out))

    def blocks(self, samples: Samples) -> None:
        """Return None: files may be read in any order."""


def holds_shards(folder: str | Path) -> bool:
    """Return whether a folder is one of shards: its SHARDS_TABLE, or somebody's own table of that name, tells."""
    table = Path(folder, SHARDS_TABLE)
    if not is_file(table):
        return False
    try:
        return persistently(_first_line, table) == ','.join(SHARDS_COLUMNS).encode()
    except OSError:
        return False


def _first_line(path):
    """Return the bytes of the first line of a file, or of its beginning. Raises OSError."""
    with open(path, 'rb') as file:
        return file.readline(1000).rstrip()


def open_store(root: str | Path) -> Store:
    """Return the store of a folder of images or of shards."""
    if holds_shards(root):
        with extra(f'{root}, a folder of shards,'):
            from extras.shards import Shards
        return Shards(root)
    return Files(root)
