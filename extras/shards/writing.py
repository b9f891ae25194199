"""Writes pictures into shards: large files, which a network disk reads faster than many small ones."""
import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.runtime.files import write_json
from extras.shards import CLASSES, COLUMNS, LISTING, litdata

SHARD_BYTES = 64 * 2 ** 20


class ShardWriter:
    """Adds pictures to the shards of a folder, in litdata's format, each as the bytes of its file.

    `listing` is the csv writer of the folder's LISTING, `cache` what litdata writes with.
    """

    def __init__(self, cache: Any, listing: Any):
        self.cache, self.listing, self.count = cache, listing, 0

    def add(self, content: bytes, name: str, file: str) -> None:
        """`name` is the picture's class, `file` its own name, CLASS/… ."""
        self.cache[self.count] = content
        self.listing.writerow([file, name, len(content)])
        self.count += 1


@contextmanager
def writing_shards(folder: Path, classes: list[str]) -> Iterator[ShardWriter]:
    """Yields the ShardWriter of a new folder; `classes` are all of the split, also those without a picture there."""
    litdata()
    from litdata.streaming import Cache  # takes two seconds

    folder.mkdir(parents=True)
    write_json(folder / CLASSES, classes)
    cache = Cache(str(folder), chunk_bytes=SHARD_BYTES)
    with open(folder / LISTING, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        listing = csv.writer(file)
        listing.writerow(COLUMNS)
        yield ShardWriter(cache, listing)
    cache.done()
    cache.merge()
