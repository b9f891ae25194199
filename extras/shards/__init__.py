"""Images in shards, the large files that `makedata.py --shards` writes, in litdata's format.

Shards may come from anyone, so they are read here: litdata runs whatever code the items of a stranger's shards contain.
"""
import csv
import io
import json
import os
import stat
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from common.data.folders import SHARDS_COLUMNS, SHARDS_TABLE, Rows, Samples, refuse_class_names, stamp
from common.data.images import MAX_BYTES, bad_image, decode, read_content
from common.runtime.disks import regular
from common.runtime.errors import UserError
from common.runtime.names import BadName, inside, is_one_part

SHARDS_INDEX = 'index.json'      # litdata's own, in a folder of shards, beside SHARDS_TABLE
SHARDS_CLASSES = 'classes.json'  # the names of all classes

_MOST_OPEN = 16  # shards that a thread keeps open: as many as an epoch goes through at a time
_MALFORMED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error, BadName)


class Shards:
    """A folder of shards, whose images have paths as if they were files: ROOT/CLASS/NAME.

    Any image can be read at any time, so that the order of an epoch and the share of each process are up to the
    sampler. Other paths are those of files, which TEACHER may add. Raises UserError for shards that are not whole, or
    whose items are not the bytes of files.
    """
    left_out: Counter = Counter()  # nothing: the shards hold what makedata.py took

    def __init__(self, root: str | Path):
        self.root = str(root)
        try:
            listing = read_listing(self.root)
            index = read_index(self.root)
        except _MALFORMED as error:
            raise UserError(f'{self.root}: {SHARDS_INDEX}, {SHARDS_TABLE} or {SHARDS_CLASSES} cannot be read '
                            f'({error}): make the shards again') from None
        self.files = index.files
        self.ends = np.cumsum(index.lengths)
        self.time = os.stat(Path(self.root, SHARDS_INDEX)).st_mtime_ns
        self.names = listing.classes
        self.all = listing.samples
        self.sizes = listing.sizes
        count = sum(index.lengths)
        if count != len(self.all):
            raise UserError(f'{self.root}: {count} images in {SHARDS_INDEX}, {len(self.all)} in {SHARDS_TABLE}: make '
                            'the shards again')
        self.rows = Rows((path for path, _ in self.all), range(len(self.all)))
        self.local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), 'local': None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, local=threading.local())

    def classes(self) -> list[str]:
        """Return the names of the classes, sorted."""
        return self.names

    def paths(self) -> Iterator[str]:
        """Yield the path of each image, in the order of the shards."""
        return (path for path, _ in self.all)

    def samples(self, classes: Mapping[str, int]) -> Samples:
        """Return [(path, class index)] of all images of `classes`, {name: index}, in the order of the shards."""
        return Samples((path, classes[self.names[index]]) for path, index in self.all)

    def blocks(self, samples: Samples) -> np.ndarray:
        """Return the number of the shard (N,) that each sample is in; files follow, as many to a number as to a shard.
        """
        end = len(self.all)
        rows = np.fromiter((self.rows.get(path, end) for path, _ in samples), np.int64, len(samples))
        numbers = self.ends.searchsorted(rows, 'right')
        files, = (rows == end).nonzero()
        numbers[files] += np.arange(len(files)) * len(self.files) // end
        return numbers

    def stamp(self, path: str | Path) -> list[int]:
        """Return [size in bytes, modification time in ns of the shards' index]."""
        number = self.rows.get(str(path))
        if number is None:
            return stamp(path)
        return [int(self.sizes[number]), self.time]

    def open(self, path: str | Path, at_least: int | None = None) -> Image.Image:
        """Return what open_image makes of a file."""
        try:
            return decode(self.content(path), path, at_least)
        except (MemoryError, UserError):
            raise
        except Exception as error:  # Pillow's errors on damaged files are of a dozen types
            raise bad_image(path, error) from None

    def content(self, path: str | Path) -> bytes:
        """Return the bytes of an image's file. Raises OSError."""
        number = self.rows.get(str(path))
        if number is None:
            return read_content(path)
        return self.read(number)

    def read(self, number: int) -> bytes:
        """Return the bytes of an image's file. Raises OSError.

        A shard begins with the number of its items, and where each of them begins and the last one ends. An item is the
        size of its content, and the content. All these numbers are uint32.
        """
        shard = int(self.ends.searchsorted(number, 'right'))
        first = self.ends[shard - 1] if shard else 0
        size = int(self.sizes[number])
        try:
            file = self.opened(shard)
            file.seek(4 * (1 + number - first))
            place = file.read(8)
            begin = int.from_bytes(place[:4], 'little')
            end = int.from_bytes(place[4:], 'little')
            if end - begin != 4 + size or size > MAX_BYTES:
                raise OSError(f'it does not lie where the beginning of {self.files[shard]} says')
            file.seek(begin)
            content = file.read(4 + size)
        except OSError:
            self.local.files = {}  # a network disk may have lost them
            raise
        if content[:4] != struct.pack('<I', size) or len(content) != 4 + size:
            raise OSError(f'{self.files[shard]} is truncated or damaged')
        return content[4:]

    def opened(self, shard: int) -> io.FileIO:
        """Return the file of a shard.

        Each thread of each process opens the shards for itself, since an open file has one position for all.
        """
        if getattr(self.local, 'process', None) != os.getpid():
            self.local.process = os.getpid()
            self.local.files = {}
        files = self.local.files
        if shard not in files:
            if len(files) == _MOST_OPEN:
                oldest = next(iter(files))
                files.pop(oldest).close()
            files[shard] = open(inside(self.root, self.files[shard]), 'rb', buffering=0)  # noqa: SIM115 - it stays open
        return files[shard]


class ShardIndex(NamedTuple):
    """What SHARDS_INDEX lists."""
    files: list[str]    # names of the shards
    lengths: list[int]  # number of images in each


def read_index(root: str) -> ShardIndex:
    """Return the shards of a folder, all of which are there and not truncated.

    Raises BadName, ValueError, KeyError, TypeError, AttributeError, RecursionError and OSError.
    """
    index = json.loads(regular(Path(root, SHARDS_INDEX)).read_bytes())
    config = index['config']
    if config['data_format'] != ['bytes']:
        raise ValueError('its items are not the bytes of image files')
    for name in ('compression', 'encryption'):
        if config.get(name) is not None:
            raise ValueError(f'{name} is not supported')
    files = []
    lengths = []
    for shard in index['chunks']:
        name = shard['filename']
        path = inside(root, name)
        if not is_one_part(name):
            raise BadName(f'{name!r} lies in another folder')
        for key in ('chunk_size', 'chunk_bytes'):
            if type(shard[key]) is not int or shard[key] < 0:
                raise ValueError(f'{key} is no number')
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # reading from a pipe, for instance, could wait without end
            raise OSError(f'{name} is no file')
        if status.st_size < shard['chunk_bytes']:
            raise OSError(f'{name} is truncated')
        files.append(name)
        lengths.append(shard['chunk_size'])
    return ShardIndex(files, lengths)


class ShardListing(NamedTuple):
    """What SHARDS_CLASSES and SHARDS_TABLE list."""
    classes: list[str]
    samples: Samples   # [(path, class index)]
    sizes: np.ndarray  # (N,) bytes of each image


def read_listing(root: str) -> ShardListing:
    """Return the classes and images of a folder of shards.

    Raises UserError, BadName, ValueError, KeyError, TypeError, RecursionError, OSError and csv.Error.
    """
    classes = json.loads(regular(Path(root, SHARDS_CLASSES)).read_bytes())
    if not isinstance(classes, list):
        raise TypeError(f'{SHARDS_CLASSES} is no list')
    refuse_class_names(classes, Path(root, SHARDS_CLASSES))
    if classes != sorted(set(classes)):
        raise ValueError(f'{SHARDS_CLASSES} does not list each class once, in order')
    index = {name: number for number, name in enumerate(classes)}
    sizes = []

    def listed(rows: Iterator[list[str]]) -> Iterator[tuple[str, int]]:
        for file, name, size in rows:
            sizes.append(int(size))
            if not 0 <= sizes[-1] < 2 ** 32:
                raise ValueError(f'{size} bytes')
            yield inside(root, file), index[name]

    with open(regular(Path(root, SHARDS_TABLE)), newline='', encoding='utf-8', errors='surrogateescape') as file:
        rows = csv.reader(file)
        if next(rows, None) != SHARDS_COLUMNS:
            raise ValueError(f'{SHARDS_TABLE} has not the columns {", ".join(SHARDS_COLUMNS)}')
        samples = Samples(listed(rows))
    return ShardListing(classes, samples, np.array(sizes, np.int64))
