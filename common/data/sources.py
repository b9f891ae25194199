"""What test.py is to name: a folder, one picture, shards, or a list of files on standard input."""
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.data.folders import list_images
from common.data.stores import Files, Shards, Store, open_store
from common.runtime.errors import UserError

LIST = '-'  # standard input


@dataclass
class Source:
    """Pictures, whose names in tables are their paths below `root`; those of a list are the paths themselves."""
    root: str
    store: Store
    count: int | None  # None: as many as the list has

    def __iter__(self) -> Iterator[str]:
        """Yields the path of each picture, in order, without having all of them in memory."""
        if self.root == LIST:
            return filter(None, (os.fsdecode(line).rstrip('\r\n') for line in sys.stdin.buffer))
        if isinstance(self.store, Shards):
            return (path for path, _ in self.store.all)
        return iter([self.root]) if os.path.isfile(self.root) else list_images(self.root)

    def name(self, path: str) -> str:
        """What tables call a picture."""
        if self.root == LIST:
            return path
        return Path(path).name if path == self.root else path[len(self.root.rstrip(os.sep)) + 1:].replace(os.sep, '/')

    def path(self, name: str) -> str:
        """The path of a picture by that name."""
        if self.root == LIST or os.path.isfile(self.root):
            return name if self.root == LIST else self.root
        return os.path.join(self.root, name.replace('/', os.sep))


def open_source(test_dir: str) -> Source:
    """Raises UserError where there is no picture."""
    if test_dir == LIST:
        return Source(LIST, Files, None)
    if not os.path.exists(test_dir):
        raise UserError(f'TEST_DIR = {test_dir!r}: no such file or folder')
    root = str(Path(test_dir))
    source = Source(root, open_store(root), 0)
    source.count = sum(1 for _ in source)
    if not source.count:
        raise UserError(f'TEST_DIR = {test_dir!r}: no pictures in it')
    return source
