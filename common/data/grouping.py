"""Which images belong together: pairs of them, and the groups that follow from the pairs."""
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from common.data.folders import Samples
from common.runtime.console import printable
from common.runtime.errors import UserError
from common.runtime.signals import OutOfTime, processor_time

_SECONDS = 5                # of the processor, for GROUP to search all names, and more of them for many names:
_NAMES_PER_SECOND = 10_000  # a tenth of what is usual

# Values of GROUP that join the images whose names differ in their last number alone. The first one finds them all, the
# others are easier to read.
_SERIES = (r'^(.*\D)\d+\.', 'folder', r'^(.+)_\d+\.', r'^(.+)-\d+\.')
_MOST_OF_CLASS = 1 / 3  # fraction of a class that a series has at most; larger ones are named after the class
_LEAST_OF_ALL = 1 / 2   # fraction of the images that are in series at least, if names are taken to mean series


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
    Raises UserError where GROUP finds nothing, and for a regular expression that takes too long: with each letter of a
    name some take twice the time.
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
    if group is not None and max(numbers, default=0) < 0:
        where = 'no image lies in a folder below that of its class' if group == 'folder' else 'it is in no path'
        raise UserError(printable(f'GROUP = {group!r} keeps nothing together, since {where}, such as '
                                  f'{current.as_posix()}: correct it, or set it to None'))
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


def suggest_group(samples: Samples, root: str, class_depth: int) -> str | None:
    """Return the value of GROUP that joins the images of a series, such as the frames of each video, by their names.

    None is returned unless most of the `samples`, images below the folder `root`, are in a series. `class_depth` is
    that of group_numbers.
    """
    count = count_in_series(samples, root, class_depth, _SERIES[0])
    if count < _LEAST_OF_ALL * len(samples):
        return None
    return next(group for group in (*_SERIES[1:], _SERIES[0])
                if count_in_series(samples, root, class_depth, group) >= count)


def count_in_series(samples: Samples, root: str, class_depth: int, group: str) -> int:
    """Return how many images are in series if GROUP is `group`.

    A series has a number of its own, several images, and others beside it in its class: so glass1.jpg and glass2.jpg
    are in none, but glass1_1.jpg and glass1_2.jpg may be in one.
    """
    known = {}
    numbers = []
    for path, _ in samples:
        key = group_key(Path(path).relative_to(root), group, class_depth)
        is_series = key is not None and any(letter.isdigit() for letter in key.split('/', class_depth)[-1])
        numbers.append(known.setdefault(key, len(known)) if is_series else -1)
    numbers = np.array(numbers, np.int64)
    targets = samples.targets
    sizes = np.bincount(numbers[numbers >= 0], minlength=1)[numbers]
    is_part = sizes <= _MOST_OF_CLASS * np.bincount(targets)[targets]
    return int(((numbers >= 0) & is_part & (sizes > 1)).sum())
