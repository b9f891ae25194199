"""Images for a network in use: any number of them, each read when its turn comes."""
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from common.data.folders import Files, Store, find_split, open_store
from common.data.images import BadImage, as_rgb, judging
from common.data.listing import describe_left_out, print_left_out
from common.data.loaders import Loader, choose_handover, image_bytes, init_worker
from common.data.transforms import Transform, eval_transform, fit, least_side
from common.runtime.disks import is_file
from common.runtime.errors import UserError
from common.runtime.names import inside

# What test.py classifies: a folder, one image, shards, or a list of files on standard input

STANDARD_INPUT = '-'
SHOWN_SIDE = 256  # pixels of the shorter side of an image that is opened to be shown; decoding fewer is faster


@dataclass
class Source:
    """Images. Tables call each by its path below `root`; an image of a list keeps the path that the list gives."""
    root: str          # a folder, a file, or STANDARD_INPUT
    store: Store       # what opens the images
    count: int | None  # number of images; None where only time will tell
    is_split: bool = False  # whether `root` holds train, val or test, whose sub-folders are the classes

    @property
    def is_list(self) -> bool:
        """Whether the images are those that standard input lists."""
        return self.root == STANDARD_INPUT

    def __iter__(self) -> Iterator[str]:
        """Yield the path of each image, in order, without having all of them in memory."""
        if self.is_list:
            return listed_files()
        return self.store.paths()

    def name(self, path: str) -> str:
        """Return what tables call the image at a path."""
        if self.is_list:
            return path
        if path == self.root:
            return Path(path).name
        below = path[len(self.root.rstrip(os.sep)) + 1:]
        return below.replace(os.sep, '/')

    def path(self, name: str) -> str:
        """Return the path of the image that tables call by a name. Raises BadName."""
        if self.is_list:
            return name
        if is_file(self.root):
            return self.root
        return inside(self.root, name)

    def below(self, name: str) -> str:
        """Return where a drawing or copy of the image that tables call by a name belongs in a folder of such.

        This is its path below `root`. Of an image of a list it is the last part of the path alone, which other images
        may share.
        """
        if self.is_list:
            return Path(name).name
        return name

    def open(self, name: str) -> Image.Image:
        """Return the RGB image that tables call by a name, perhaps smaller, but large enough to be shown.

        Raises BadImage and BadName.
        """
        return self.store.open(self.path(name), at_least=SHOWN_SIDE)


def listed_files() -> Iterator[str]:
    """Yield the paths that standard input lists, one on each line, whatever bytes they consist of."""
    for line in sys.stdin.buffer:
        path = os.fsdecode(line).rstrip('\r\n')
        if path:
            yield path


def open_source(test_dir: str) -> Source:
    """Return the images of TEST_DIR. Raises UserError where there are none."""
    if test_dir == STANDARD_INPUT:
        return Source(STANDARD_INPUT, Files, count=None)
    if not os.path.exists(test_dir):
        raise UserError(f'TEST_DIR = {test_dir!r}: no such file or folder')
    root = str(Path(test_dir))
    store = open_store(root)
    count = sum(1 for _ in store.paths())
    if not count:
        also = f' (left out: {describe_left_out(store.left_out)})' if store.left_out else ''
        raise UserError(f'TEST_DIR = {test_dir!r}: no images in it{also}')
    print_left_out(store.left_out)
    sides = find_split(root)
    if sides:
        print(f'{root} is split already: its images have the classes of the folders below {", ".join(sides.values())}, '
              'and those of train were learnt from; name one of them in TEST_DIR for an accuracy that means something')
    return Source(root, store, count, is_split=bool(sides))


# Batches of images as tensors, read by worker processes

AnyImage = str | Path | Image.Image | np.ndarray  # a file, or one in memory: an array is (H, W) or (H, W, 3), uint8 RGB


class Batch(NamedTuple):
    """Some images, and those of them that could be read as tensors."""
    images: list[AnyImage]
    tensors: list[torch.Tensor] | None  # the readable ones for each transform, (B, 3, H, W); None where there are none
    errors: list[str]                   # what is wrong with each of `images`, '' for a readable one


def open_any(image: AnyImage, at_least: int | None, store: Store) -> Image.Image:
    """Return an RGB image. Raises BadImage for one that cannot be read, TypeError for an object of another kind."""
    if isinstance(image, (str, Path)):
        return store.open(image, at_least)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f'a path, PIL image or array is needed, not {image!r}')
    name = getattr(image, 'filename', '') or 'an image in memory'
    with judging(name):  # Image.open reads no more than the beginning of a file, which may turn out to be damaged
        return as_rgb(image, name)


class Reader(Dataset):
    """Data set from an image to (its tensor for each of the transforms, ''), or to (None, what is wrong with it)."""

    def __init__(self, transforms: Sequence[Transform], store: Store):
        self.steps = [(least_side(transform), fit(transform), eval_transform(transform)) for transform in transforms]
        self.store = store

    def __getitem__(self, image: AnyImage) -> tuple[list[torch.Tensor] | None, str]:
        tensors = []
        try:
            for least, resize, to_tensor in self.steps:
                opened = open_any(image, least, self.store)
                tensors.append(to_tensor(resize(opened)))
        except BadImage as error:
            return None, str(error)
        return tensors, ''


def collate(items: list[tuple[list[torch.Tensor] | None, str]]) -> tuple[list[torch.Tensor] | None, list[str]]:
    """Return the `tensors` and `errors` of a Batch from what a Reader made of its images."""
    readable = [tensors for tensors, _ in items if tensors is not None]
    errors = [error for _, error in items]
    if not readable:
        return None, errors
    return default_collate(readable), errors


def read_batches(batches: Iterable[list[AnyImage]], transforms: Sequence[Transform], store: Store,
                 workers: int = 0, batch_size: int = 1) -> Iterator[Batch]:
    """Yield a Batch for each list of up to `batch_size` images, read by `workers` processes, or by this one for 0.

    No more of `batches` are asked for than the workers have begun to read.
    """
    waiting = deque()

    def asked_for():
        for batch in batches:
            waiting.append(batch)
            yield batch

    [workers], through_pipes = choose_handover(
        [workers], batch_size * sum(image_bytes(transform) for transform in transforms), len(transforms))
    loader = Loader(Reader(transforms, store), through_pipes, collate, batch_sampler=asked_for(), num_workers=workers,
                    worker_init_fn=init_worker, pin_memory=torch.cuda.is_available())
    for tensors, errors in loader:
        yield Batch(waiting.popleft(), tensors, errors)
