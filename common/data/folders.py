"""Folders of images, with one sub-folder for each class: which files count, and in which order."""
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

from common.data.images import FORMATS, open_image
from common.runtime.disks import is_file, is_folder, persistently, status
from common.runtime.errors import UserError, extra
from common.runtime.names import is_folder_name

EXTENSIONS = {extension for extension, kind in Image.registered_extensions().items() if kind in {*FORMATS, 'MPO'}}
LITTER = {'.DS_Store', 'Thumbs.db', 'desktop.ini'}  # what file managers leave in every folder that they show


def is_image(path: str | Path) -> bool:
    """Return whether a file has the name of an image that Pillow reads, in any letter case; hidden files have not."""
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith('.')


def is_hidden(name: str) -> bool:
    """Return whether a folder is named as one that programs make for themselves, such as .thumbnails or __MACOSX."""
    return name.startswith(('.', '__'))


def list_files(folder: str | Path) -> Iterator[str]:
    """Yield the paths of all files below a folder, in the order of their names, folder by folder.

    Links are followed; no folder is entered twice, and no hidden one. Raises UserError for a folder that cannot be
    read.
    """
    entered = set()  # the folders, as (device, inode)
    left = [_read_folder(str(Path(folder)), entered)]  # of each folder on the way down, the entries to come
    while left:
        entry = next(left[-1], None)
        if entry is None:
            left.pop()
        elif not _is_folder(entry):
            yield entry.path
        elif not is_hidden(entry.name):
            left.append(_read_folder(entry.path, entered))


def _read_folder(folder, entered):
    """Return an iterator over the entries of a folder, sorted by name; an empty one if it has been entered before."""
    try:
        found = persistently(os.stat, folder)
        if (found.st_dev, found.st_ino) in entered:
            return iter(())
        entries = persistently(_entries, folder)
    except OSError as error:
        raise UserError(f'{folder}: this folder cannot be read ({error.strerror})') from None
    entered.add((found.st_dev, found.st_ino))
    return iter(entries)


def _entries(folder):
    """Return the entries of a folder, sorted by name. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry):
    """Return whether an entry of os.scandir is a folder, or a link to one. Raises DiskError."""
    try:
        return entry.is_dir()  # which seldom asks the disk
    except OSError:
        return is_folder(entry.path)


def list_images(folder: str | Path) -> Iterator[str]:
    """Yield those files of list_files that have the name of an image."""
    return filter(is_image, list_files(folder))


def stamp(path: str | Path) -> list[int]:
    """Return [size in bytes, modification time in ns] of a file, zeros where it cannot be found. Raises DiskError."""
    found = status(path)
    if found is None:
        return [0, 0]
    return [found.st_size, found.st_mtime_ns]


def class_folders(folder: str | Path) -> list[str]:
    """Return the names of the sub-folders that are classes, sorted.

    Raises UserError where there is no such folder, none in it, or one with control characters in its name.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise UserError(f'{folder}: no such folder')
    try:
        entries = persistently(_entries, folder)
    except OSError as error:
        raise UserError(f'{folder}: this folder cannot be read ({error.strerror})') from None
    names = [entry.name for entry in entries if not is_hidden(entry.name) and _is_folder(entry)]
    if not names:
        raise UserError(f'{folder}: no sub-folders in it, and each class needs one of its own')
    refuse_class_names(names, folder)
    return names


def refuse_class_names(names: Iterable[str], place: str | Path) -> None:
    """Raise UserError for a class that cannot be the name of a folder."""
    for name in names:
        if not is_folder_name(name) or is_hidden(name):
            raise UserError(f'{place}: the class {name!r} cannot be the name of a folder, rename it')
        if any(unicodedata.category(character) == 'Cc' for character in name):
            raise UserError(f'{place}: the class {name!r} has control characters in its name, rename it')


def refuse_empty(names: Iterable[str], filled: Collection[str], place: str | Path) -> None:
    """Raise UserError for classes that are not among `filled`, the names of those with images."""
    empty = [name for name in names if name not in filled]
    if empty:
        raise UserError(f'{place}: no images in {", ".join(empty)}: add some or remove the class')


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
    other_endings: Counter = field(default_factory=Counter)  # {ending: number of files that are no images}


def find_in_class_folders(root: str) -> FoundImages:
    """Return the images of a folder with one sub-folder for each class. Raises UserError where a class has none."""
    classes = class_folders(root)
    other_endings = Counter()

    def images() -> Iterator[tuple[str, int]]:
        for index, name in enumerate(classes):
            for path in list_files(Path(root, name)):
                ending = os.path.splitext(path)[1].lower()
                if is_image(path):
                    yield path, index
                elif ending and os.path.basename(path) not in LITTER:
                    other_endings[ending] += 1

    samples = Samples(images())
    refuse_empty(classes, {classes[target] for target in np.unique(samples.targets)}, root)
    return FoundImages(root, classes, samples, other_endings=other_endings)


def read_stamps(samples: Samples) -> np.ndarray:
    """Return the size and the modification time of each file, (N, 2)."""
    return np.fromiter((stamp(path) for path, _ in samples), np.dtype((np.int64, 2)), len(samples))


# Where the images of a data set lie

SPLIT_TABLE = 'split.csv'      # makedata.py writes it beside the images that it lists
SHARDS_TABLE = 'pictures.csv'  # a folder with this file holds shards (extras/shards), not image files


class Store(Protocol):
    """What opens images by their paths: files, or shards that are treated as if they were files."""

    def open(self, path: str | Path, at_least: int | None = None) -> Image.Image: ...

    def stamp(self, path: str | Path) -> list[int]: ...


class Files:
    """A folder of images, one sub-folder for each class."""
    open = staticmethod(open_image)
    stamp = staticmethod(stamp)

    def __init__(self, root: str | Path):
        self.root = str(root)

    def paths(self) -> Iterator[str]:
        """Yield the path of each image, in order; `root` itself if it is a file."""
        if is_file(self.root):
            return iter([self.root])
        return list_images(self.root)

    def classes(self) -> list[str]:
        """Return the names of the classes, sorted."""
        return class_folders(self.root)

    def samples(self, classes: Mapping[str, int]) -> Samples:
        """Return [(path, class index)] of all images of `classes`, {name: index}."""
        return Samples((path, index) for name, index in classes.items()
                       for path in list_images(Path(self.root, name)))

    def blocks(self, samples: Samples) -> None:
        """Return None: files may be read in any order."""


def open_store(root: str | Path) -> Store:
    """Return the store of a folder of images or of shards."""
    if is_file(Path(root, SHARDS_TABLE)):
        with extra(f'{root}, a folder of shards,'):
            from extras.shards import Shards
        return Shards(root)
    return Files(root)
