"""Pictures for a network in use: any number of them, read as they are named."""
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from common.data.folders import Files, Store, open_store
from common.data.images import BadImage, as_rgb
from common.data.loaders import init_worker
from common.data.transforms import Transform, eval_transform, fit, least_side
from common.runtime.errors import UserError

# What test.py is to name: a folder, one picture, shards, or a list of files on standard input

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
        return self.store.paths()

    @property
    def is_shards(self) -> bool:
        """Whether the pictures lie in shards, not in files of their own."""
        return self.root != LIST and not isinstance(self.store, Files)

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
Picture = str | Path | Image.Image | np.ndarray  # a file, or one in memory: an array is (H, W) or (H, W, 3), uint8 RGB
Batch = tuple[list[Picture], list[torch.Tensor] | None, list[str]]


def open_picture(picture: Picture, at_least: int | None, store: Store) -> Image.Image:
    """An RGB picture. Raises BadImage for a file that is none, TypeError for an array of another kind."""
    if isinstance(picture, (str, Path)):
        return store.open(picture, at_least)
    return as_rgb(Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture)


class Reader(Dataset):
    """picture -> (its image for each of the transforms, ''), or (None, what is wrong with the file)."""

    def __init__(self, transforms: Sequence[Transform], store: Store):
        self.steps = [(least_side(transform), fit(transform), eval_transform(transform)) for transform in transforms]
        self.store = store

    def __getitem__(self, picture: Picture) -> tuple[list[torch.Tensor] | None, str]:
        try:
            return [to_tensor(resize(open_picture(picture, least, self.store)))
                    for least, resize, to_tensor in self.steps], ''
        except BadImage as error:
            return None, str(error)


def collate(items: list) -> tuple[list[torch.Tensor] | None, list[str]]:
    """(batches of the readable images or None, [error or '' for each item])."""
    images = [image for image, _ in items if image is not None]
    return default_collate(images) if images else None, [error for _, error in items]


def read_batches(batches: Iterable[list[Picture]], transforms: Sequence[Transform], store: Store,
                 workers: int = 0) -> Iterator[Batch]:
    """Yields (pictures, for each transform the readable ones as a tensor (B, 3, H, W), or None if none is readable,
    [error or '' for each]) for each batch.

    No more of `batches` are asked for than `workers` processes have begun to read.
    """
    waiting = deque()

    def asked_for():
        for batch in batches:
            waiting.append(batch)
            yield batch

    loader = DataLoader(Reader(transforms, store), batch_sampler=asked_for(), collate_fn=collate, num_workers=workers,
                        worker_init_fn=init_worker, pin_memory=torch.cuda.is_available())
    for images, errors in loader:
        yield waiting.popleft(), images, errors
