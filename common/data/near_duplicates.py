"""Pictures that show the same, but for being saved again, resized, cropped by up to 5 %, turned by 90° or mirrored.

Every two pictures are compared at 12 x 12 pixels, in all eight orientations and cropped at several borders; those that
look alike then lie on top of each other at 64 x 64, as exactly as a small crop can bring them there.
"""
import hashlib
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

from common.data.split import alike
from common.runtime.console import Bar
from common.runtime.machine import map_in_threads

SIZE = 64            # of a thumbnail, in pixels
_COARSE = 12
_CROP = 0.05         # of the width or height
_LOOKS_ALIKE = 0.85  # correlation of the coarse ones
_IS_SAME = 0.975     # correlation of thumbnails: copies have 0.98 and more; docs/split.md has what it finds
_MOST = 10           # pictures that each is compared with at 64 x 64
_FLAT = 2            # grey levels; pictures with a smaller standard deviation show nothing to compare
_BLOCK = 512         # pictures that are compared at a time
_BLUR = 5            # pixels, odd
_CROPS = (  # at which borders: left, top, right, below
    (0, 0, 0, 0), (1, 1, 1, 1), (1, 1, 0, 0), (0, 1, 1, 0), (1, 0, 0, 1), (0, 0, 1, 1))


def thumbnail(picture: Image.Image) -> np.ndarray:
    """uint8 (64, 64, RGB)."""
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS, reducing_gap=3))


def find_near_duplicates(thumbnails: np.ndarray) -> np.ndarray:
    """(P, 2): the pairs among N pictures, as places in thumbnails (N, 64, 64, RGB), that show the same.

    Of a picture that is there many times, each pair of neighbours in the list.
    """
    def confirm(first, second, number):
        return is_same(distinct[first], variant(distinct[second], number))

    equal = alike(hashlib.sha256(picture).digest() for picture in thumbnails)
    places = np.setdiff1d(np.arange(len(thumbnails)), equal[:, 1])
    distinct = thumbnails[places]
    cv2.setNumThreads(1)  # of its own, in each of these threads
    candidates = np.array([*find_candidates(distinct)], np.int64).reshape(-1, 3)
    same = np.array([*map_in_threads(confirm, *candidates.T, desc='comparing')], bool)
    return np.concatenate([equal, places[candidates[same, :2]]])


def find_candidates(pictures: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yields (first, second, number): as far as 12 x 12 pixels show, the first is that variant of the second. For each
    second those that are most like it.
    """
    whole = np.stack([describe(shrink(picture)) for picture in pictures])
    for start in Bar(range(0, len(pictures), _BLOCK), desc='looking for near-duplicates', unit='block'):
        parts = ([shrink(cut(picture, crop)) for crop in _CROPS] for picture in pictures[start:start + _BLOCK])
        block = np.stack([[describe(turn(part, orientation)) for part in crops for orientation in range(8)]
                          for crops in parts], 1)  # (variants, pictures, 144)
        likeness = np.full((block.shape[1], len(whole)), -1, np.float32)
        for row in block:
            np.maximum(likeness, row @ whole.T, out=likeness)
        likeness[np.arange(len(likeness)), start + np.arange(len(likeness))] = -1  # each with itself
        most = likeness.argpartition(-min(_MOST, len(whole)), 1)[:, -_MOST:]
        for second, firsts in enumerate(most):
            for first in firsts[likeness[second, firsts] > _LOOKS_ALIKE]:
                yield first, start + second, (block[:, second] @ whole[first]).argmax()


def variant(picture: np.ndarray, number: int) -> np.ndarray:
    """A picture (H, W, RGB) cut by one of _CROPS and turned: (H, W, RGB), too."""
    crop, orientation = divmod(number, 8)
    return turn(cut(picture, _CROPS[crop]), orientation)


def cut(picture: np.ndarray, crop: tuple[int, int, int, int]) -> np.ndarray:
    """A picture (H, W, RGB) without a share of it at some borders, at its size."""
    height, width = picture.shape[:2]
    left, top, right, below = (round(_CROP * side * at) for side, at in zip((width, height) * 2, crop, strict=True))
    return cv2.resize(picture[top:height - below, left:width - right], (width, height), interpolation=cv2.INTER_LINEAR)


def turn(picture: np.ndarray, orientation: int) -> np.ndarray:
    """A square picture (H, H, ...) in one of its eight orientations, mirrored from the fourth on."""
    return np.ascontiguousarray(np.rot90(picture[:, ::-1] if orientation >= 4 else picture, orientation % 4))


def shrink(picture: np.ndarray) -> np.ndarray:
    """The grey values, float32 (12, 12), of a picture (H, W, RGB)."""
    return cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32), (_COARSE, _COARSE),
                      interpolation=cv2.INTER_AREA)


def describe(grey: np.ndarray) -> np.ndarray:
    """Grey values (12, 12) as float32 (144,) of mean 0 and length 1; zeros for a flat picture."""
    values = grey.ravel() - grey.mean()
    return values / np.linalg.norm(values) if values.std() >= _FLAT else np.zeros_like(values)


def is_same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two thumbnails (64, 64, RGB) show the same, once a small shift and zoom has brought them together."""
    greys = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (first, second)]
    start, criteria = np.eye(2, 3, dtype=np.float32), (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 25, 1e-3)
    try:
        _, motion = cv2.findTransformECC(*greys, start, cv2.MOTION_AFFINE, criteria, None, _BLUR)
    except cv2.error:  # it finds none
        return False
    if abs(motion[:, :2] - np.eye(2)).max() > 1.5 * _CROP or abs(motion[:, 2]).max() > 1.5 * _CROP * SIZE:
        return False  # what brings them together is no crop
    moved = cv2.warpAffine(second, motion, (SIZE, SIZE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                           borderMode=cv2.BORDER_REPLICATE)
    border = round(_CROP * SIZE)
    inner = [cv2.GaussianBlur(picture, (_BLUR, _BLUR), 0)[border:-border, border:-border].reshape(-1, 3)
             for picture in (first, moved)]
    first, second = (values - values.mean(0) for values in inner)
    return (first * second).sum() > _IS_SAME * np.sqrt((first ** 2).sum() * (second ** 2).sum())
