"""Take the images for a split: read each file once, put a copy aside, and find out which images belong together."""
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from common.data.folders import FoundImages, Samples, refuse_empty
from common.data.grouping import alike, group_numbers, join
from common.data.images import BadImage, decode, header, judging, read_content
from common.data.listing import ending_of, is_seen
from common.data.near_duplicates import (
    THUMBNAIL_SIZE,
    distrust_large_groups,
    find_near_duplicates,
    thumbnail,
)
from common.runtime.machine import map_in_threads

_SHRUNK_FORMATS = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.png': 'PNG', '.webp': 'WEBP'}  # any other becomes PNG
_LONGEST_NAME = 255  # bytes, of a file on most file systems


@dataclass
class TakenImages:
    """N readable images, which wait as files until the side of each is known."""
    classes: list[str]
    samples: Samples         # the N sources, (path, class index)
    root: str                # the folder of the sources
    class_depth: int         # how many folders at the beginning of a path below `root` stand for the class
    waiting: Path            # the folder in which they wait
    numbers: np.ndarray      # (N,) the name of each one's file in `waiting`
    sha256: np.ndarray       # (N,) of the source, as 64 hexadecimal digits
    is_shrunk: np.ndarray    # (N,) whether the waiting file is smaller than the source
    groups: np.ndarray       # (N,) the number of the group that stays together
    endings: dict[int, str]  # {place: ending that fits the content}, where the name is not that of an image
    copies: int              # how many are copies of whole files, not links
    corrected: dict[int, str] = field(default_factory=dict)  # {place: the reason} of images in another class than in
                             # the source

    def file(self, place: int) -> Path:
        """Return the file that waits."""
        return self.waiting / str(self.numbers[place])

    def name(self, place: int) -> str:
        """Return the path that the image gets below its side: CLASS/… as in the source.

        A corrected image lies below its new class with the whole of its path. A shrunken image of a format that is not
        written becomes a PNG. That, and what a table lists without the name of an image, gets a name that every script
        takes for one, and that no other file has.
        """
        path, target = self.samples[place]
        parts = Path(path).relative_to(self.root).parts
        below = Path(self.classes[target], *parts[self.class_depth:])
        if place in self.corrected:  # its class may have a file of that name
            below = Path(self.classes[target], *parts)
        ending = self.endings.get(place, '')
        if self.is_shrunk[place] and below.suffix.lower() not in _SHRUNK_FORMATS:
            ending = '.shrunk.png'
        named = below.with_name(below.name + ending)
        is_taken = place in self.corrected and os.path.lexists(Path(self.root, below))
        if is_taken or ending and (len(os.fsencode(named.name)) > _LONGEST_NAME or os.path.lexists(path + ending)
                                   or not is_seen(named)):
            named = Path(self.classes[target], f'{self.sha256[place].decode()}-{place}{named.suffix}')
        return named.as_posix()


@dataclass
class TakenFile:
    """What is known of one file, or the problem of one that cannot be read."""
    problem: str = ''
    sha256: str = ''
    is_shrunk: bool = False
    is_link: bool = False
    kind: str = ''  # Pillow's name of its format
    size: tuple[int, int] = (0, 0)  # width and height, in pixels
    thumbnail: np.ndarray | None = None


def take_images(found: FoundImages, waiting: Path, link: bool, max_side: int | None, compare: bool,
                group: str | None) -> TakenImages:
    """Read all images once, put each into the new folder `waiting`, and group those that belong together.

    `link` prefers hard links to copies; `max_side`, in pixels, shrinks larger images; `compare` looks for
    near-duplicates; `group` is makedata.py's GROUP. Prints the files that cannot be read. Raises UserError for a class
    without readable images.
    """
    count = len(found.samples)
    sha256 = np.zeros(count, 'S64')
    is_shrunk = np.zeros(count, bool)
    thumbnails = np.empty((count if compare else 0, THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3), np.uint8)
    sizes = np.zeros((count, 2), np.int64)
    endings = {}
    copies = 0
    below = (Path(path).relative_to(found.root) for path, _ in found.samples)
    named = group_numbers(below, count, group, found.class_depth)  # before anything is read, which may take hours

    def take_one(number: int, sample: tuple[str, int]) -> TakenFile:
        return take_file(Path(sample[0]), waiting / str(number), link, max_side, compare)

    problems = {}  # of some file of a class
    waiting.mkdir()
    taken = map_in_threads(take_one, range(count), found.samples, desc='reading' if link else 'copying')
    for number, one in enumerate(taken):
        if one.problem:
            print(f'left out: {one.problem}')
            problems.setdefault(found.classes[found.samples.targets[number]], one.problem)
            continue
        sha256[number] = one.sha256
        if not is_seen(Path(found.samples[number][0]).relative_to(found.root)):
            endings[number] = ending_of(one.kind)
        is_shrunk[number] = one.is_shrunk
        sizes[number] = one.size
        if compare:
            thumbnails[number] = one.thumbnail
        if not one.is_shrunk and not one.is_link:
            copies += 1

    numbers = np.flatnonzero(sha256 != b'')
    samples = Samples(found.samples[number] for number in numbers)
    refuse_empty(found.classes, {found.classes[target] for target in np.unique(samples.targets)}, found.root,
                 found.left_out, problems)

    pairs = [alike(sha256[numbers].tolist())]
    pairs.append(alike(None if number < 0 else number for number in named[numbers].tolist()))
    if found.groups is not None:
        pairs.append(alike(found.groups[number] for number in numbers))
    if compare:
        same = find_near_duplicates(thumbnails[numbers], sizes[numbers])
        found_pairs, doubtful = distrust_large_groups(same, samples.targets)
        pairs.append(found_pairs)
        for members in doubtful:
            one, other = (Path(samples[place][0]).relative_to(found.root).as_posix() for place in members[[0, -1]])
            print(f'NEAR_DUPLICATES: {len(members)} images look alike, such as {one} and {other}, but are of several '
                  'classes or most of one, and are not kept together; if they belong together, set GROUP')

    return TakenImages(
        classes=found.classes, samples=samples, root=found.root, class_depth=found.class_depth, waiting=waiting,
        numbers=numbers, sha256=sha256[numbers], is_shrunk=is_shrunk[numbers], groups=join(len(numbers), *pairs),
        endings={place: endings[number] for place, number in enumerate(numbers) if number in endings}, copies=copies)


def take_file(path: Path, file: Path, link: bool, max_side: int | None, compare: bool) -> TakenFile:
    """Read an image once: put its copy, link or shrunken version at `file`, and return what is known of it."""
    try:
        with judging(path):
            content = read_content(path)
            with header(content, path) as opened:
                kind = opened.format
                size = opened.size
                is_large = max_side is not None and max(size) > max_side
            if compare or is_large:
                at_least = 2 * THUMBNAIL_SIZE
                if is_large:
                    at_least = max(at_least, 2 * max_side)
                image = decode(content, path, at_least)
    except BadImage as error:
        return TakenFile(problem=str(error))

    small = thumbnail(image) if compare else None
    is_link = False
    if is_large:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        image.save(file, _SHRUNK_FORMATS.get(path.suffix.lower(), 'PNG'), quality=95)
    else:
        is_link = link and make_link(path, file)
        if not is_link:
            file.write_bytes(content)
    return TakenFile(sha256=hashlib.sha256(content).hexdigest(), is_shrunk=is_large, is_link=is_link, kind=kind,
                     size=size, thumbnail=small)


def make_link(path: Path, file: Path) -> bool:
    """Make `file` a hard link to `path`. Returns False where the file system has none, or it is another one."""
    try:
        os.link(path.resolve(), file)
    except OSError:
        return False
    return True
