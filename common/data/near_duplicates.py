"""Images that show the same, but for being saved again, resized, cropped by up to 5 %, turned by 90° or mirrored.

Every two images are compared at 12 x 12 pixels, in all eight orientations and cropped at several borders; those that
look alike then lie on top of each other at 64 x 64, as exactly as a small crop can bring them there.
"""
import hashlib
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

from common.data.grouping import alike
from common.runtime.console import Bar
from common.runtime.machine import map_in_threads

THUMBNAIL_SIZE = 64  # pixels, of each side
_COARSE = 12         # pixels, of each side
_CROP = 0.05         # fraction of the width or height
_LOOKS_ALIKE = 0.85  # correlation of coarse images above which their thumbnails are compared
_IS_SAME = 0.975     # correlation of thumbnails of the same image; copies have 0.98 and more
_MOST = 10           # images that each one is compared with at 64 x 64
_FLAT = 2            # grey levels; images with a smaller standard deviation show nothing to compare
_BLOCK = 512         # images that are compared at a time
_BLUR = 5            # pixels, odd
_CROPS = (  # at which borders: left, top, right, bottom
    (0, 0, 0, 0), (1, 1, 1, 1), (1, 1, 0, 0), (0, 1, 1, 0), (1, 0, 0, 1), (0, 0, 1, 1))
_ORIENTATIONS = 8    # four quarter turns, each mirrored or not


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return the image at 64 x 64 pixels, uint8 (64, 64, RGB)."""
    return np.asarray(image.resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS, reducing_gap=3))


def find_near_duplicates(thumbnails: np.ndarray) -> np.ndarray:
    """Return the pairs (P, 2) among N images, as places in `thumbnails` (N, 64, 64, RGB), that show the same.

    An image that is there many times is paired with its next copy in the list.
    """
    def confirm(first, second, number):
        return is_same(distinct[first], variant(distinct[second], number))

    equal = alike(hashlib.sha256(image).digest() for image in thumbnails)
    places = np.setdiff1d(np.arange(len(thumbnails)), equal[:, 1])
    distinct = thumbnails[places]
    cv2.setNumThreads(1)  # OpenCV would start threads of its own in each of the threads below
    candidates = np.array([*find_candidates(distinct)], np.int64).reshape(-1, 3)
    same = np.array([*map_in_threads(confirm, *candidates.T, desc='comparing')], bool)
    return np.concatenate([equal, places[candidates[same, :2]]])


def find_candidates(images: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield (first, second, number): as far as 12 x 12 pixels show, the first is that variant of the second.

    For each second image the ten most similar ones are tried.
    """
    whole = np.stack([describe(shrink(image)) for image in images])
    for start in Bar(range(0, len(images), _BLOCK), desc='looking for near-duplicates', unit='block'):
        variants = np.stack([describe_variants(image) for image in images[start:start + _BLOCK]], 1)
        count = variants.shape[1]
        likeness = np.full((count, len(whole)), -1, np.float32)
        for row in variants:
            np.maximum(likeness, row @ whole.T, out=likeness)
        likeness[np.arange(count), start + np.arange(count)] = -1  # each with itself
        most = likeness.argpartition(-min(_MOST, len(whole)), 1)[:, -_MOST:]
        for second, firsts in enumerate(most):
            for first in firsts[likeness[second, firsts] > _LOOKS_ALIKE]:
                yield first, start + second, (variants[:, second] @ whole[first]).argmax()


def describe_variants(image: np.ndarray) -> np.ndarray:
    """Return the descriptions of an image (H, H, RGB) in every crop and orientation, (variants, 144)."""
    crops = [shrink(cut(image, crop)) for crop in _CROPS]
    return np.stack([describe(turn(crop, orientation)) for crop in crops for orientation in range(_ORIENTATIONS)])


def variant(image: np.ndarray, number: int) -> np.ndarray:
    """Return a square image (H, H, RGB) in variant `number` of describe_variants: cropped, scaled back and turned."""
    crop, orientation = divmod(number, _ORIENTATIONS)
    return turn(cut(image, _CROPS[crop]), orientation)


def cut(image: np.ndarray, crop: tuple[int, int, int, int]) -> np.ndarray:
    """Return an image (H, W, RGB) without 5 % at the borders of `crop`, scaled back to its size."""
    height, width = image.shape[:2]
    left = round(_CROP * width * crop[0])
    top = round(_CROP * height * crop[1])
    right = round(_CROP * width * crop[2])
    bottom = round(_CROP * height * crop[3])
    inner = image[top:height - bottom, left:width - right]
    return cv2.resize(inner, (width, height), interpolation=cv2.INTER_LINEAR)


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return a square image (H, H, ...) in one of its eight orientations; from the fifth on it is mirrored."""
    if orientation >= 4:
        image = image[:, ::-1]
    return np.ascontiguousarray(np.rot90(image, orientation % 4))


def shrink(image: np.ndarray) -> np.ndarray:
    """Return the grey values, float32 (12, 12), of an image (H, W, RGB)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return cv2.resize(grey, (_COARSE, _COARSE), interpolation=cv2.INTER_AREA)


def describe(grey: np.ndarray) -> np.ndarray:
    """Return grey values (12, 12) as float32 (144,) of mean 0 and length 1; zeros for a flat image."""
    values = grey.ravel() - grey.mean()
    if values.std() < _FLAT:
        return np.zeros_like(values)
    return values / np.linalg.norm(values)


def is_same(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two thumbnails (64, 64, RGB) show the same, once a small shift and zoom has aligned them."""
    motion = align(first, second)
    if motion is None:
        return False
    moved = cv2.warpAffine(second, motion, (THUMBNAIL_SIZE, THUMBNAIL_SIZE),
                           flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
    one = inner_values(first)
    other = inner_values(moved)
    return (one * other).sum() > _IS_SAME * np.sqrt((one ** 2).sum() * (other ** 2).sum())


def align(first: np.ndarray, second: np.ndarray) -> np.ndarray | None:
    """Return the affine motion (2, 3) from one thumbnail to another, or None where no crop of up to 5 % explains it."""
    first_grey = cv2.cvtColor(first, cv2.COLOR_RGB2GRAY)
    second_grey = cv2.cvtColor(second, cv2.COLOR_RGB2GRAY)
    start = np.eye(2, 3, dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 25, 1e-3)
    try:
        _, motion = cv2.findTransformECC(first_grey, second_grey, start, cv2.MOTION_AFFINE, criteria, None, _BLUR)
    except cv2.error:  # it finds none
        return None
    zoom = abs(motion[:, :2] - np.eye(2)).max()
    shift = abs(motion[:, 2]).max()
    if zoom > 1.5 * _CROP or shift > 1.5 * _CROP * THUMBNAIL_SIZE:
        return None
    return motion


def inner_values(image: np.ndarray) -> np.ndarray:
    """Return the blurred colours of a thumbnail without its border, (pixels, RGB), each channel with mean 0."""
    border = round(_CROP * THUMBNAIL_SIZE)
    blurred = cv2.GaussianBlur(image, (_BLUR, _BLUR), 0)
    values = blurred[border:-border, border:-border].reshape(-1, 3)
    return values - values.mean(0)
