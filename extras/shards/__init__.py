"""Images in shards, the large files that `makedata.py --shards` writes, read with litdata."""
import csv
import io
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from common.data.folders import SHARDS_TABLE, Rows, Samples
from common.data.images import bad_image, decode
from common.runtime.errors import UserError

SHARDS_INDEX = 'index.json'      # litdata's own, in a folder of shards, beside SHARDS_TABLE
SHARDS_CLASSES = 'classes.json'  # the names of all classes
SHARDS_COLUMNS = ['file', 'class', 'bytes']  # of SHARDS_TABLE


class Shards:
    """A folder of litdata's shards, whose images have paths as if they were files: ROOT/CLASS/NAME.

    Any image can be read at any time, so that the order of an epoch and the share of each process are up to the
    sampler. Raises UserError for shards that are not whole.
    """

    def __init__(self, root: str | Path):
        self.root = str(root)
        litdata()  # so that forked worker processes have it in common
        index = Path(self.root, SHARDS_INDEX)
        try:
            listing = read_listing(self.root)
            lengths = [shard['chunk_size'] for shard in json.loads(index.read_bytes())['chunks']]
            self.ends = np.cumsum(lengths)
            self.time = index.stat().st_mtime_ns
            count = sum(lengths)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
            raise UserError(f'{self.root}: {SHARDS_INDEX}, {SHARDS_TABLE} or {SHARDS_CLASSES} cannot be read '
                            f'({error}): make the shards again') from None
        self.names = listing.classes
        self.all = listing.samples
        self.sizes = listing.sizes
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
        """Return the number of the shard (N,) that each sample is in."""
        rows = np.fromiter((self.rows.get(path) for path, _ in samples), np.int64, len(samples))
        return self.ends.searchsorted(rows, 'right')

    def stamp(self, path: str | Path) -> list[int]:
        """Return [size in bytes, modification time in ns of the shards' index]."""
        return [int(self.sizes[self.rows.get(str(path))]), self.time]

    def open(self, path: str | Path, at_least: int | None = None) -> Image.Image:
        """Return what open_image makes of a file."""
        try:
            return decode(io.BytesIO(self.read(self.rows.get(str(path)))), path, at_least)
        except (MemoryError, UserError):
            raise
        except Exception as error:  # litdata's and Pillow's errors on damaged files are of a dozen types
            raise bad_image(path, error) from None

    def read(self, number: int) -> bytes:
        """Return the bytes of an image's file.

        Each thread of each process opens the shards for itself, since an open file has one position for all.
        """
        if getattr(self.local, 'process', None) != os.getpid():
            self.local.process = os.getpid()
            # Without batch_decode=False litdata decodes the neighbours of an image, too.
            self.local.dataset = litdata().StreamingDataset(self.root, batch_decode=False)
        return self.local.dataset[number]


def litdata() -> ModuleType:
    """Return the library. Raises UserError where it is not installed."""
    try:
        import litdata
    except ImportError:
        raise UserError('shards need another package: python -m pip install -U litdata') from None
    return litdata


class ShardListing(NamedTuple):
    """What SHARDS_CLASSES and SHARDS_TABLE list."""
    classes: list[str]
    samples: Samples   # [(path, class index)]
    sizes: np.ndarray  # (N,) bytes of each image


def read_listing(root: str) -> ShardListing:
    """Return the classes and images of a folder of shards.

    Raises ValueError, KeyError, TypeError, RecursionError, OSError and csv.Error.
    """
    classes = json.loads(Path(root, SHARDS_CLASSES).read_bytes())
    index = {name: number for number, name in enumerate(classes)}
    sizes = []

    def listed(rows: Iterator[list[str]]) -> Iterator[tuple[str, int]]:
        for file, name, size in rows:
            sizes.append(int(size))
            yield f'{root}/{file}', index[name]

    with open(Path(root, SHARDS_TABLE), newline='', encoding='utf-8', errors='surrogateescape') as file:
        rows = csv.reader(file)
        if next(rows, None) != SHARDS_COLUMNS:
            raise ValueError(f'{SHARDS_TABLE} has not the columns {", ".join(SHARDS_COLUMNS)}')
        samples = Samples(listed(rows))
    return ShardListing(classes, samples, np.array(sizes, np.int64))
