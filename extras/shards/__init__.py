"""Pictures in shards, the large files that `makedata.py --shards` writes, read with litdata."""
import csv
import io
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from common.data.folders import SHARDS_TABLE as LISTING
from common.data.folders import Rows, Samples
from common.data.images import bad_image, decode
from common.runtime.errors import UserError

INDEX, CLASSES = 'index.json', 'classes.json'  # in a folder of shards, beside LISTING; the first is litdata's
COLUMNS = ['file', 'class', 'bytes']  # of the listing


class Shards:
    """A folder of litdata's shards, whose pictures have paths as if they were files: ROOT/CLASS/NAME.

    Any picture can be read at any time, so that the order of an epoch and the share of each process are up to the
    sampler. Raises UserError for shards that are not whole.
    """

    def __init__(self, root: str | Path):
        self.root = str(root)
        litdata()  # so that forked worker processes have it in common
        try:
            self.names, self.all, self.sizes = read_listing(self.root)
            index = Path(self.root, INDEX)
            lengths = [shard['chunk_size'] for shard in json.loads(index.read_bytes())['chunks']]
            self.ends, count = np.cumsum(lengths), sum(lengths)
            self.time = index.stat().st_mtime_ns
        except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
            raise UserError(f'{self.root}: {INDEX}, {LISTING} or {CLASSES} cannot be read ({error}): make the shards '
                            'again') from None
        if count != len(self.all):
            raise UserError(f'{self.root}: {count} pictures in {INDEX}, {len(self.all)} in {LISTING}: make the '
                            'shards again')
        self.rows = Rows((path for path, _ in self.all), range(len(self.all)))
        self.local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), 'local': None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, local=threading.local())

    def classes(self) -> list[str]:
        return self.names

    def paths(self) -> Iterator[str]:
        """Yield the path of each picture, in the order of the shards."""
        return (path for path, _ in self.all)

    def samples(self, classes: Mapping[str, int]) -> Samples:
        """[(path, class index)] of all pictures of `classes`, {name: index}, in the order of the shards."""
        return Samples((path, classes[self.names[index]]) for path, index in self.all)

    def blocks(self, samples: Samples) -> np.ndarray:
        """The number of the shard (N,) that each sample is in."""
        rows = np.fromiter((self.rows.get(path) for path, _ in samples), np.int64, len(samples))
        return self.ends.searchsorted(rows, 'right')

    def stamp(self, path: str | Path) -> list[int]:
        """[size in bytes, modification time in ns of the shards' index]."""
        return [int(self.sizes[self.rows.get(str(path))]), self.time]

    def open(self, path: str | Path, at_least: int | None = None) -> Image.Image:
        """What open_image makes of a file."""
        try:
            return decode(io.BytesIO(self.read(self.rows.get(str(path)))), path, at_least)
        except (MemoryError, UserError):
            raise
        except Exception as error:  # litdata's and Pillow's errors on damaged files are of a dozen types
            raise bad_image(path, error) from None

    def read(self, number: int) -> bytes:
        """The picture's file. Each thread of each process has the shards open for itself: their files have a place."""
        if getattr(self.local, 'process', None) != os.getpid():
            self.local.process = os.getpid()
            self.local.dataset = litdata().StreamingDataset(self.root, batch_decode=False)  # not its neighbours, too
        return self.local.dataset[number]


def litdata() -> ModuleType:
    """The library. Raises UserError where it is not installed."""
    try:
        import litdata
    except ImportError:
        raise UserError('shards need another package: python -m pip install -U litdata') from None
    return litdata


def read_listing(root: str) -> tuple[list[str], Samples, np.ndarray]:
    """(class names; [(path, class index)]; bytes of each picture) of a folder of shards.

    Raises ValueError, KeyError, TypeError, RecursionError, OSError and csv.Error.
    """
    names, sizes = json.loads(Path(root, CLASSES).read_bytes()), []
    index = {name: number for number, name in enumerate(names)}

    def listed(rows: Iterator[list[str]]) -> Iterator[tuple[str, int]]:
        for file, name, size in rows:
            sizes.append(int(size))
            yield f'{root}/{file}', index[name]

    with open(Path(root, LISTING), newline='', encoding='utf-8', errors='surrogateescape') as file:
        rows = csv.reader(file)
        if next(rows, None) != COLUMNS:
            raise ValueError(f'{LISTING} has not the columns {", ".join(COLUMNS)}')
        return names, Samples(listed(rows)), np.array(sizes, np.int64)
