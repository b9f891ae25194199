"""Images for a network in use: any number of them, each read when its turn comes."""
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from common.data.folders import Files, Store, find_split, open_store
from common.data.images import BadImage, as_rgb, decode, judging
from common.data.listing import describe_left_out, print_left_out
from common.data.loaders import Loader, choose_handover, image_bytes, init_worker
from common.data.transforms import Transform, eval_transform, fit, least_side
from common.runtime.device import dtype_name
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

    def open(self, name: str, at_least: int = SHOWN_SIDE) -> Image.Image:
        """Return the RGB image that tables call by a name, perhaps smaller, but large enough to be shown.

        Its shorter side has `at_least` so many pixels if the file has them. Raises BadImage and BadName.
        """
        return self.store.open(self.path(name), at_least)


def listed_files() -> Iterator[str]:
    """Yield the paths that standard input lists, one on each line, whatever bytes they consist of."""
    if sys.stdin is None:  # closed, or a program without a console
        return
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

AnyImage = str | Path | bytes | Image.Image | np.ndarray  # a file, its content, or an image in memory
_BYTES = (bytes, bytearray, memoryview)
_TO_PASS = 'pass a path, the bytes of an image file, a PIL image, or an array (H, W, 3) of uint8 RGB'


class Batch(NamedTuple):
    """Some images, and those of them that could be read as tensors."""
    images: list[AnyImage]
    tensors: list[torch.Tensor] | None  # the readable ones for each transform, (B, 3, H, W); None where there are none
    errors: list[str]                   # what is wrong with each of `images`, '' for a readable one


def as_images(images: Any) -> Iterable[AnyImage]:
    """Return the images that a caller gave: a single one becomes a list. Raises UserError for what is none at all."""
    is_array = isinstance(images, np.ndarray) and images.ndim < 4 and images.dtype.kind in 'biufc'
    is_single = isinstance(images, (str, Path, *_BYTES, Image.Image, torch.Tensor)) or hasattr(images, 'read')
    if is_array or is_single:
        return [images]
    if not isinstance(images, Iterable):
        raise UserError(f'{type(images).__name__} is no image, and no list of images: {_TO_PASS}, or a list of them')
    return images


def open_any(image: Any, at_least: int | None, store: Store) -> Image.Image:
    """Return an RGB image. Raises BadImage for what is none, and for arrays that could mean several things."""
    if isinstance(image, (str, Path)):
        return store.open(image, at_least)
    if isinstance(image, BadImage):
        raise image
    name = getattr(image, 'filename', '') or 'an image in memory'
    with judging(name):
        if isinstance(image, _BYTES):
            return decode(bytes(image), name, at_least)
        if isinstance(image, np.ndarray):
            image = image_of_array(image)
        if isinstance(image, torch.Tensor):
            raise BadImage(f'a tensor of {dtype_name(image.dtype)}, {tuple(image.shape)}: pass an array (H, W, 3) of '
                           'uint8 RGB, such as tensor.permute(1, 2, 0).cpu().numpy()')
        if not isinstance(image, Image.Image):
            raise BadImage(f'{type(image).__name__} is no image: {_TO_PASS}')
        if not image.width or not image.height:
            raise BadImage(f'{name}: {image.width} x {image.height} pixels')
        return as_rgb(image, name)


def image_of_array(array: np.ndarray) -> Image.Image:
    """Return (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, or grey of uint16, as an image. Raises BadImage."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    is_grey = array.ndim == 2
    has_colours = array.ndim == 3 and array.shape[2] in (3, 4)
    if (array.dtype == np.uint8 and (is_grey or has_colours)) or (array.dtype == np.uint16 and is_grey):
        return Image.fromarray(array)
    raise BadImage(f'an array of {array.dtype}, {array.shape}: pass (H, W, 3) of uint8, RGB from 0 to 255')


def sendable(image: Any) -> Any:
    """Return an image as a worker process can get it: one in memory as an array, what is none as its BadImage.

    What cannot be pickled, such as a PIL image whose file is cut off, would be waited for without end.
    """
    if isinstance(image, (str, Path, bytes)):
        return image
    try:
        return np.asarray(open_any(image, None, Files))
    except BadImage as error:
        return error


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
            yield [sendable(image) for image in batch] if workers else batch

    [workers], through_pipes = choose_handover(
        [workers], batch_size * sum(image_bytes(transform) for transform in transforms), len(transforms))
    loader = Loader(Reader(transforms, store), through_pipes, collate, batch_sampler=asked_for(), num_workers=workers,
                    worker_init_fn=init_worker, pin_memory=torch.cuda.is_available())
    for tensors, errors in loader:
        yield Batch(waiting.popleft(), tensors, errors)
