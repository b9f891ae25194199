"""Folders of pictures, with one sub-folder for each class: which files count, and in which order."""
import hashlib
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from common.data.images import FORMATS, open_image
from common.runtime.errors import UserError, extra

EXTENSIONS = {extension for extension, kind in Image.registered_extensions().items() if kind in {*FORMATS, 'MPO'}}


def is_image(path: str | Path) -> bool:
    """Whether a file has the name of a picture that Pillow reads, in any letter case; hidden files have not."""
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith('.')


def is_hidden(name: str) -> bool:
    """Whether a folder has the name of one that programs made for themselves, such as .thumbnails or __MACOSX."""
    return name.startswith(('.', '__'))


def list_files(folder: str | Path) -> Iterator[str]:
    """Yields the paths of all files below a folder, in the order of their names, folder by folder.

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
    """The entries of a folder, sorted by name; none of one that has been entered."""
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            return iter(())
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            return iter(sorted(entries, key=lambda entry: entry.name))
    except OSError as error:
        raise UserError(f'{folder}: this folder cannot be read ({error.strerror})') from None


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def list_images(folder: str | Path) -> Iterator[str]:
    """The files of list_files that is_image takes for pictures."""
    return filter(is_image, list_files(folder))


def stamp(path: str | Path) -> list[int]:
    """[size in bytes, modification time in ns] of a file, zeros where it cannot be found."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # a name that no file can have
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]


def class_folders(folder: str | Path) -> list[str]:
    """Names of the sub-folders that are classes, sorted.

    Raises UserError where there is no such folder, none in it, or one with control characters in its name.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # unlike Path.is_dir also for names that are too long
        raise UserError(f'{folder}: no such folder')
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    except OSError as error:
        raise UserError(f'{folder}: this folder cannot be read ({error.strerror})') from None
    if not names:
        raise UserError(f'{folder}: no sub-folders in it, and each class needs one of its own')
    refuse_class_names(names, folder)
    return names


def refuse_class_names(names: Iterable[str], place: str | Path) -> None:
    """Raise UserError for a class that cannot be the name of a folder."""
    for name in names:
        if any(unicodedata.category(character) == 'Cc' for character in name):
            raise UserError(f'{place}: the class {name!r} has control characters in its name, rename it')
        if '/' in name or '\\' in name * (os.sep == '\\') or is_hidden(name):
            raise UserError(f'{place}: the class {name!r} cannot be the name of a folder, rename it')


def find_pictures(folder: str | Path) -> list[tuple[str, str]]:
    """[(class, path)] of all pictures in a folder's class folders. Raises UserError where a class has none."""
    found = [(name, path) for name in class_folders(folder) for path in list_images(Path(folder, name))]
    refuse_empty(class_folders(folder), {name for name, _ in found}, folder)
    return found


def refuse_empty(names: Iterable[str], filled: Collection[str], place: str | Path) -> None:
    """Raise UserError for classes that are not among `filled`, the names of those with pictures."""
    empty = [name for name in names if name not in filled]
    if empty:
        raise UserError(f'{place}: no pictures in {", ".join(empty)}: add some or remove the class')


# Lists and maps of many paths in a few arrays

class Samples(Sequence):
    """Read-only [(path, class index), ...] of an image folder. `targets` are the class indices, int32."""

    def __init__(self, samples: Iterable[tuple[str, int]]):
        names, ends, targets = bytearray(), [], []
        for path, target in samples:
            names += os.fsencode(path)
            ends.append(len(names))
            targets.append(target)
        self.names = np.frombuffer(bytes(names), np.uint8)
        self.ends, self.targets = np.array(ends, np.int64), np.array(targets, np.int32)

    def __len__(self) -> int:
        return len(self.ends)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Samples) and all(map(
            np.array_equal, (self.names, self.ends, self.targets), (other.names, other.ends, other.targets)))

    def __getitem__(self, index: int | slice) -> tuple[str, int] | list[tuple[str, int]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # raises IndexError
        start = self.ends[number - 1] if number else 0
        return os.fsdecode(self.names[start:self.ends[number]].tobytes()), int(self.targets[number])


class Rows:
    """Read-only map from a text, such as a path, to a number, by default its place; in 16 bytes for each."""

    def __init__(self, texts: Iterable[str], numbers: Iterable[int] | None = None):
        digests = np.fromiter(map(_digest, texts), np.uint64)
        order = digests.argsort()
        self.digests = digests[order]
        self.numbers = order if numbers is None else np.fromiter(numbers, np.int64, len(order))[order]

    def get(self, text: str, default: int | None = None) -> int | None:
        place = self.digests.searchsorted(digest := _digest(text))
        return int(self.numbers[place]) if place < len(self.numbers) and self.digests[place] == digest else default


def _digest(text):
    """64 bits of a hash: of ten million texts, two have the same with a probability of 3e-6."""
    return np.uint64(int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), 'little'))


# Where the pictures of a data set lie

SHARDS_TABLE = 'pictures.csv'  # a folder with this file holds shards (extras/shards), not pictures


class Store(Protocol):
    """What opens pictures by their paths: files, or shards that are treated as if they were files."""

    def open(self, path: str | Path, at_least: int | None = None) -> Image.Image: ...

    def stamp(self, path: str | Path) -> list[int]: ...


class Files:
    """A folder of pictures, one sub-folder for each class."""
    open = staticmethod(open_image)
    stamp = staticmethod(stamp)

    def __init__(self, root: str | Path):
        self.root = str(root)

    def paths(self) -> Iterator[str]:
        """Yield the path of each picture, in order; of a single file its own."""
        return iter([self.root]) if os.path.isfile(self.root) else list_images(self.root)

    def classes(self) -> list[str]:
        return class_folders(self.root)

    def samples(self, classes: Mapping[str, int]) -> Samples:
        """[(path, class index)] of all pictures of `classes`, {name: index}."""
        return Samples((path, index) for name, index in classes.items()
                       for path in list_images(Path(self.root, name)))

    def blocks(self, samples: Samples) -> None:
        """Files may be read in any order."""


def open_store(root: str | Path) -> Store:
    """Return the store of a folder of pictures or of shards."""
    if Path(root, SHARDS_TABLE).is_file():
        with extra(f'{root}, a folder of shards,'):
            from extras.shards import Shards
        return Shards(root)
    return Files(root)
