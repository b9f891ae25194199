"""Which images belong together: pairs of them, and the groups that follow from the pairs."""
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from common.runtime.console import printable
from common.runtime.errors import UserError
from common.runtime.signals import OutOfTime, processor_time

_SECONDS = 5                # of the processor, for GROUP to search all names, and more of them for many names:
_NAMES_PER_SECOND = 10_000  # a tenth of what is usual


def join(count: int, *pairs: np.ndarray) -> np.ndarray:
    """Return the group (N,), a number from 0, of each of N = `count` images.

    The two images of each pair, (P, 2), belong together, and so do images that belong to the same third one.
    """
    first, second = np.concatenate([np.empty((0, 2), np.int64), *pairs]).T
    links = coo_array((np.ones(len(first)), (first, second)), (count, count))
    _, groups = connected_components(links, directed=False)
    return groups


def alike(keys: Iterable[str | bytes | None]) -> np.ndarray:
    """Return pairs (P, 2) of places with the same key: each with the next one. None is like no other."""
    last = {}  # {key: the last place that has it}
    pairs = []
    for place, key in enumerate(keys):
        if key is None:
            continue
        if key in last:
            pairs.append((last[key], place))
        last[key] = place
    return np.array(pairs, np.int64).reshape(-1, 2)


def group_numbers(paths: Iterable[Path], count: int, group: str | None, class_depth: int) -> np.ndarray:
    """Return a number for what GROUP finds in each of `count` paths of images below SOURCE_DIR, -1 for nothing.

    Images with the same number from 0 stay together. `class_depth` is the number of folders that stand for the class.
    Raises UserError for a regular expression that takes too long: with each letter of a name some take twice the time.
    """
    keys = {}
    numbers = []
    current = None
    try:
        with processor_time(_SECONDS + count / _NAMES_PER_SECOND):
            for path in paths:
                current = path
                key = group_key(path, group, class_depth)
                numbers.append(-1 if key is None else keys.setdefault(key, len(keys)))
    except OutOfTime:
        raise UserError(printable(f'GROUP = {group!r} takes too long to search {current.as_posix()}: a repetition of a '
                                  'repetition, such as (a+)+, may be the cause')) from None
    return np.array(numbers, np.int64)


def group_key(below: Path, group: str | None, class_depth: int) -> str | None:
    """Return what GROUP finds in the path of an image below SOURCE_DIR, or None."""
    if group is None:
        return None
    if group == 'folder':
        is_in_folder = len(below.parts) > class_depth + 1
        return below.parent.as_posix() if is_in_folder else None
    match = re.search(group, below.as_posix())
    if match is None:
        return None
    return repr(match.groups() or match.group())
