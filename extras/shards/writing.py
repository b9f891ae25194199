"""Write images into shards: large files, which a network disk reads faster than many small ones."""
import csv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from common.data.folders import SHARDS_COLUMNS, SHARDS_TABLE
from common.data.split import SIDES, FileLayout, split_row, used_sides
from common.data.taking import TakenImages
from common.runtime.errors import UserError
from common.runtime.files import write_json
from common.runtime.machine import map_in_threads
from extras.shards import SHARDS_CLASSES

SHARD_BYTES = 64 * 2 ** 20
_READ_AHEAD = 64  # images


class ShardLayout(FileLayout):
    """The split of FileLayout, in which the folder of each side holds shards. Images are in random order there, so that
    any part of the shards is a fair sample.
    """
    links_suffice = True  # the waiting files are read into the shards

    def __init__(self, val_ratio: float, test_ratio: float, seed: int):
        """Raise UserError where litdata is not installed."""
        super().__init__(val_ratio, test_ratio, seed)
        cache_class()

    def write(self, images: TakenImages, parts: np.ndarray, folder: Path, rows: Any) -> None:
        """Put every image into the shards of its side, and a row for it into split.csv."""
        order = np.random.default_rng(self.seed).permutation(len(parts))
        contents = map_in_threads(lambda place: images.file(place).read_bytes(), order, desc='writing shards',
                                  at_a_time=_READ_AHEAD)
        with ExitStack() as stack:
            writers = {side: stack.enter_context(writing_shards(folder / SIDES[side], images.classes))
                       for side in used_sides(parts)}
            for place, content in zip(order, contents, strict=True):
                side = parts[place]
                name = images.name(place)
                target = images.samples[place][1]
                writers[side].add(content, images.classes[target], name)
                images.file(place).unlink()  # so that they do not take the room twice
                rows.writerow(split_row(images, place, side, f'{SIDES[side]}/{name}'))


class ShardWriter:
    """Adds images to the shards of a folder, in litdata's format, each as the bytes of its file.

    `table` is the csv writer of the folder's SHARDS_TABLE, `cache` what litdata writes with.
    """

    def __init__(self, cache: Any, table: Any):
        self.cache = cache
        self.table = table
        self.count = 0

    def add(self, content: bytes, label: str, name: str) -> None:
        """Add the bytes of an image of the class `label`; `name` is its path below the folder, CLASS/… ."""
        self.cache[self.count] = content
        self.table.writerow([name, label, len(content)])
        self.count += 1


@contextmanager
def writing_shards(folder: Path, classes: list[str]) -> Iterator[ShardWriter]:
    """Yield the ShardWriter of a new folder; `classes` are all of the split, also those without an image there."""
    folder.mkdir(parents=True)
    write_json(folder / SHARDS_CLASSES, classes)
    cache = cache_class()(str(folder), chunk_bytes=SHARD_BYTES)
    with open(folder / SHARDS_TABLE, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        table = csv.writer(file)
        table.writerow(SHARDS_COLUMNS)
        yield ShardWriter(cache, table)
    cache.done()
    cache.merge()


def cache_class() -> type:
    """Return the class that writes litdata's format. Raises UserError where litdata is not installed."""
    try:
        from litdata.streaming import Cache  # takes two seconds
    except ImportError:
        raise UserError('SHARDS needs another package: python -m pip install -U litdata') from None
    return Cache
