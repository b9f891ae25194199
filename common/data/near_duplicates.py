"""Images that show the same, but for being saved again, resized, cropped by up to 5 %, turned by 90° or mirrored.

Every two images are compared at 12 x 12 pixels, in all eight orientations and cropped at several borders; those that
look alike are then laid on top of each other at 64 x 64, as exactly as a small crop can bring them there.

Images of one kind are alike without being copies: parts under a fixed camera, plots with their axes, objects on white.
So what most images of the set have in common is subtracted first. An image that is still alike to others without it
is taken for a copy only of what is the same everywhere, in each small square. Thumbnails are squares, so that
those of objects of different shapes can be alike: the sizes of the images tell them apart.
"""
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from PIL import Image

from common.data.grouping import alike, join
from common.runtime.console import Bar
from common.runtime.machine import map_in_threads

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

THUMBNAIL_SIZE = 64  # pixels, of each side
_COARSE = 12         # pixels, of each side
_CROP = 0.05         # fraction of the width or height
_LOOKS_ALIKE = 0.85  # correlation of coarse images above which their thumbnails are compared
_IS_SAME = 0.975     # correlation of thumbnails of the same image; copies have 0.98 and more
_IS_OWN = 0.8        # correlation of what they have of their own; copies of photographs have 0.97 and more
_SAME_SHAPE = 0.05   # by which the logarithm of width over height differs at most, where copies lie on each other
_SAME_SQUARE = 5     # grey levels by which copies differ at most, in the square where they differ most
_SQUARE = 8          # pixels, of each side of such a square
_COMPONENTS = 16     # of what the images of a set have in common, besides their mean
_FEWEST = 20         # images to each component
_SAMPLED = 1000      # images that the components are found in
_LARGE = 10          # images; so many copies of one are rare, and images of a kind that nobody foresaw are not
_WHOLE = 4           # images of a class, all of which are hardly copies of one
_MOST = 10           # images that each one is compared with at 64 x 64, besides those nearest without what is common
_FLAT = 2            # grey levels; images with a smaller standard deviation show nothing to compare
_BLOCK = 512         # images that are compared at a time
_BLUR = 5            # pixels, odd
_CROPS = (  # at which borders: left, top, right, bottom
    (0, 0, 0, 0), (1, 1, 1, 1), (1, 1, 0, 0), (0, 1, 1, 0), (1, 0, 0, 1), (0, 0, 1, 1))
_ORIENTATIONS = 8    # four quarter turns, each mirrored or not


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return the image at 64 x 64 pixels, uint8 (64, 64, RGB)."""
    return np.asarray(image.resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS, reducing_gap=3))


def find_near_duplicates(thumbnails: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the pairs (P, 2) among N images, as places in `thumbnails` (N, 64, 64, RGB), that show the same.

    `sizes` (N, 2) are the widths and heights of the images. An image that is there many times is paired with its next
    copy in the list.
    """
    equal = alike(hashlib.sha256(image).digest() + size.tobytes()
                  for image, size in zip(thumbnails, sizes, strict=True))
    places = np.setdiff1d(np.arange(len(thumbnails)), equal[:, 1])
    distinct = thumbnails[places]
    cv2.setNumThreads(1)  # OpenCV would start threads of its own in each of the threads below
    sampled = np.random.default_rng(0).permutation(len(distinct))[:_SAMPLED]
    common = find_common(np.stack([inner_values(distinct[place]).ravel() for place in sampled]))

    def confirm(first: int, second: int, number: int) -> Comparison | None:
        comparison = compare(distinct[first], variant(distinct[second], number), common)
        if comparison and not is_undistorted(comparison, sizes[places[first]], sizes[places[second]], number):
            return None
        return comparison

    candidates = np.array([*find_candidates(distinct)], np.int64).reshape(-1, 3)
    found = map_in_threads(confirm, *candidates.T, desc='comparing')
    comparisons = {(first, second): comparison for (first, second, _), comparison
                   in zip(candidates.tolist(), found, strict=True) if comparison and comparison.whole > _IS_SAME}
    same = [pair for pair, is_copy in zip(comparisons, are_copies(comparisons), strict=True) if is_copy]
    return np.concatenate([equal, places[without_chains(same)].reshape(-1, 2)])


class Comparison(NamedTuple):
    """How alike two images are once they lie on top of each other."""
    whole: float   # correlation of their colours
    own: float     # correlation without what the set has in common
    square: float  # largest difference of a square, in grey levels
    aspect: float  # width over height of what the first shows of the second, where the second is a square


def are_copies(comparisons: dict[tuple[int, int], Comparison]) -> list[bool]:
    """Return for each pair of images that are alike as a whole whether one is a copy of the other."""
    of_a_kind = {image for pair, comparison in comparisons.items() if comparison.own <= _IS_OWN for image in pair}
    return [comparison.square < _SAME_SQUARE if of_a_kind & {*pair} else True for pair, comparison
            in comparisons.items()]


def without_chains(pairs: list[tuple[int, int]]) -> np.ndarray:
    """Return pairs (P, 2) of the first image of each group with every other one of it.

    A group takes in another one only if their first images are a pair themselves: two images do not belong together
    because a third one is between them.
    """
    known = {tuple(sorted(pair)) for pair in pairs}
    first = {}    # {image: the first image of its group}
    members = {}  # {first image of a group: all of its images}
    for pair in sorted(known):
        for image in pair:
            if image not in first:
                first[image] = image
                members[image] = [image]
        leader, led = sorted(first[image] for image in pair)
        if (leader, led) in known:
            for image in members[led]:
                first[image] = leader
            members[leader].extend(members.pop(led))
    return np.array([(leader, image) for image, leader in first.items() if image != leader], np.int64).reshape(-1, 2)


class Trusted(NamedTuple):
    """Pairs (P, 2) of images to be kept together, and the groups that are too large to be believed."""
    pairs: np.ndarray
    doubtful: list[np.ndarray]  # the images of each


def distrust_large_groups(pairs: np.ndarray, targets: np.ndarray) -> Trusted:
    """Leave out the pairs of groups that would cost a class its validation: large ones with images of several classes
    or more than half of a class, and those with all of a class. `targets` (N,) are the classes.
    """
    groups = join(len(targets), pairs)
    classes = np.bincount(targets)
    order = groups.argsort(kind='stable')
    ends = np.cumsum(np.bincount(groups))
    doubtful = []
    for members in np.split(order, ends[:-1]):
        if len(members) == 1:
            continue
        counts = np.bincount(targets[members], minlength=len(classes))
        is_large = len(members) > _LARGE and ((counts > 0).sum() > 1 or (counts > classes / 2).any())
        if is_large or ((counts == classes) & (classes >= _WHOLE)).any():
            doubtful.append(members)
    believed = ~np.isin(pairs[:, 0], np.concatenate([np.empty(0, np.int64), *doubtful]))
    return Trusted(pairs[believed], doubtful)


def find_common(values: np.ndarray) -> 'PCA | None':
    """Return what the rows of `values` (N, D), one for each image, have in common: their mean and main components.

    None is returned for a few images, among which a copy would be a component.
    """
    count = min(_COMPONENTS, len(values) // _FEWEST)
    if not count:
        return None
    from sklearn.decomposition import PCA  # takes a second
    return PCA(count, svd_solver='randomized', random_state=0).fit(values)


def own_part(values: np.ndarray, common: 'PCA') -> np.ndarray:
    """Return rows (N, D) without what the set has in common."""
    return values - common.inverse_transform(common.transform(values))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two arrays of the same shape whose means are 0; 0 where one is flat."""
    norms = np.sqrt((one ** 2).sum() * (other ** 2).sum())
    return float((one * other).sum() / norms) if norms else 0.


def find_candidates(images: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield (first, second, number): as far as 12 x 12 pixels show, the first is that variant of the second.

    For each second image those are tried that are most similar as a whole, and those that are it without what the set
    has in common.
    """
    whole = np.stack([describe(shrink(image)) for image in images])
    common = find_common(whole)
    own = own_descriptions(whole, common)
    for start in Bar(range(0, len(images), _BLOCK), desc='looking for near-duplicates', unit='block'):
        variants = np.stack([describe_variants(image) for image in images[start:start + _BLOCK]], 1)
        own_variants = np.stack([own_descriptions(row, common) for row in variants])
        candidates = nearest(variants, whole, start) | nearest(own_variants, own, start)
        for first, second in sorted(candidates):
            likeness = variants[:, second] @ whole[first]
            if likeness.max() > _LOOKS_ALIKE:
                yield first, start + second, likeness.argmax()


def nearest(variants: np.ndarray, descriptions: np.ndarray, start: int) -> set[tuple[int, int]]:
    """Return pairs (first, second): the images whose descriptions (N, 144) are nearest to a variant of the second.

    `variants` (variants, B, 144) are those of B images, from the image `start` on.
    """
    count = variants.shape[1]
    likeness = np.full((count, len(descriptions)), -1, np.float32)
    for row in variants:
        np.maximum(likeness, row @ descriptions.T, out=likeness)
    most = likeness.argpartition(-min(_MOST + 1, len(descriptions)), 1)[:, -_MOST - 1:]  # each finds itself, too
    return {(first, second) for second, firsts in enumerate(most.tolist()) for first in firsts
            if first != start + second}


def own_descriptions(descriptions: np.ndarray, common: 'PCA | None') -> np.ndarray:
    """Return descriptions (N, 144) without what the set has in common, each of length 1 again."""
    if common is None:
        return descriptions
    own = own_part(descriptions, common)
    return own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-6)


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


def compare(first: np.ndarray, second: np.ndarray, common: 'PCA | None') -> Comparison | None:
    """Return how alike two thumbnails (64, 64, RGB) are once a small shift and zoom has aligned them.

    None is returned where no crop of up to 5 % aligns them.
    """
    motion = align(first, second)
    if motion is None:
        return None
    moved = cv2.warpAffine(second, motion, (THUMBNAIL_SIZE, THUMBNAIL_SIZE),
                           flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
    one = inner_values(first)
    other = inner_values(moved)
    whole = correlation(one, other)
    if common is None or whole <= _IS_SAME:
        own = whole
    else:
        own = correlation(*own_part(np.stack([one.ravel(), other.ravel()]), common))
    return Comparison(whole, own, largest_difference(first, moved), float(motion[0, 0] / motion[1, 1]))


def is_undistorted(comparison: Comparison, first: np.ndarray, second: np.ndarray, number: int) -> bool:
    """Return whether an image shows variant `number` of a second one neither wider nor higher than it is.

    Their thumbnails are squares, so objects of different shapes can lie on top of each other. `first` and `second` are
    the width and the height of the images, each rounded by up to half a pixel.
    """
    if number % _ORIENTATIONS % 2:  # a quarter turn
        second = second[::-1]
    wider = np.log(first[0] / first[1]) - np.log(second[0] / second[1]) - np.log(comparison.aspect)
    return abs(wider) <= _SAME_SHAPE + (0.5 / first).sum() + (0.5 / second).sum()


def largest_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean difference of the grey values of two thumbnails in the square where it is largest."""
    difference = cv2.absdiff(inner_grey(first), inner_grey(second))
    side = len(difference) // _SQUARE * _SQUARE
    return float(cv2.resize(difference[:side, :side], (side // _SQUARE, side // _SQUARE),
                            interpolation=cv2.INTER_AREA).max())


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
    """Return the blurred colours of a thumbnail without its border, float32 (pixels, RGB), each channel with mean 0."""
    values = inner(image).reshape(-1, 3).astype(np.float32)
    return values - values.mean(0)


def inner_grey(image: np.ndarray) -> np.ndarray:
    """Return the blurred grey values of a thumbnail without its border, float32 (H, W)."""
    return inner(image).mean(2, dtype=np.float32)


def inner(image: np.ndarray) -> np.ndarray:
    """Return a thumbnail, blurred, without its border, uint8 (H, W, RGB)."""
    border = round(_CROP * THUMBNAIL_SIZE)
    blurred = cv2.GaussianBlur(image, (_BLUR, _BLUR), 0)
    return blurred[border:-border, border:-border]
