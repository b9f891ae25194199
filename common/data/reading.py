"""Pictures for a network in use: any number of them, read as they are named."""
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from common.data.images import BadImage, as_rgb
from common.data.loaders import init_worker
from common.data.stores import Store
from common.data.transforms import Transform, eval_transform, fit, least_side

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
