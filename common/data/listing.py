"""Which files count as images and which folders are entered, for all scripts alike; what is left out is counted."""
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from common.data.images import EXTENSIONS
from common.runtime.console import printable
from common.runtime.disks import is_file, is_folder, persistently
from common.runtime.errors import UserError

# What file managers and network disks leave in every folder that they show; nobody misses it.
LITTER = {'.DS_Store', 'Thumbs.db', 'desktop.ini'}
_LITTER_FOLDERS = {'@eaDir', '.@__thumb', '.AppleDouble', '.thumbnails', '__MACOSX'}

# What systems, network disks and programs keep among a user's folders, in lower case, beside all with a dot in front.
_PROGRAM_FOLDERS = {'__macosx', '__pycache__', '@eadir', '@recycle', '#recycle', '#snapshot', '$recycle.bin',
                    'recycler', 'lost+found', 'system volume information', 'network trash folder', 'temporary items'}
# A folder with one of these files is what makedata.py, train.py or test.py wrote.
_OUTPUT_FILES = {'split.json', 'best.pth', 'last.pth', 'predictions.jsonl'}
_NO_ENDING = 'without an ending'
_KINDS_SHOWN = 8  # of what is left out


def is_image(path: str | Path) -> bool:
    """Return whether a file has the name of an image, in any letter case; hidden files have not."""
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith('.')


def is_of_programs(name: str) -> bool:
    """Return whether a folder is named as one that programs make for themselves, such as .thumbnails or @eaDir."""
    return name.startswith('.') or name.lower() in _PROGRAM_FOLDERS


def is_seen(below: str | Path) -> bool:
    """Return whether a file counts as an image by its path below a folder that is listed."""
    return is_image(below) and not any(map(is_of_programs, Path(below).parts[:-1]))


def is_litter(below: Path) -> bool:
    """Return whether a path below a folder is that of something which file managers and network disks leave there."""
    return below.name in LITTER or below.name.startswith('._') or not _LITTER_FOLDERS.isdisjoint(below.parts[:-1])


def ending_of(kind: str) -> str:
    """Return an ending that is_image knows for files of one of Pillow's formats, such as '.jpeg' for 'JPEG'."""
    usual = f'.{kind.lower()}'
    if usual in EXTENSIONS:
        return usual
    return next(ending for ending in sorted(EXTENSIONS) if Image.registered_extensions().get(ending) == kind)


def is_output(folder: Path) -> bool:
    """Return whether these scripts wrote a folder, or all that is in it, as in checkpoints/."""
    if _has_results(folder):
        return True
    try:
        return persistently(_holds_results_alone, folder)
    except OSError:  # whoever lists it will say so
        return False


def _has_results(folder):
    """Return whether one of these scripts wrote a folder."""
    return any(is_file(os.path.join(folder, name)) for name in _OUTPUT_FILES)


def _holds_results_alone(folder):
    """Return whether a folder holds nothing but folders that these scripts wrote. Raises OSError."""
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith('.'):
                continue
            if not is_folder_entry(entry) or not _has_results(entry.path):
                return False
            count += 1
    return count > 0


def list_images(folder: str | Path, left_out: Counter | None = None) -> Iterator[str]:
    """Yield the paths of all images below a folder, in the order of their names, folder by folder.

    Links are followed; no folder is entered twice, and none of programs, nor results of these scripts. What does not
    count is added to `left_out`, {kind: number}. Raises UserError for a folder that cannot be read.
    """
    if left_out is None:
        left_out = Counter()
    entered = set()  # the folders, as (device, inode)
    left = [iter(read_folder(str(Path(folder)), entered))]  # of each folder on the way down, the entries to come
    while left:
        entry = next(left[-1], None)
        if entry is None:
            left.pop()
        elif not is_folder_entry(entry):
            if is_image(entry.name):
                yield entry.path
            else:
                left_out[_kind(entry.name)] += 1
        elif is_of_programs(entry.name):
            left_out[f'{entry.name}/'] += 1
        else:
            entries = read_folder(entry.path, entered)
            if _OUTPUT_FILES.isdisjoint(found.name for found in entries):
                left.append(iter(entries))
            else:
                left_out[f'{entry.name}/ (results of these scripts)'] += 1


def _kind(name):
    """Return what a file that is no image by its name is counted as."""
    if name in LITTER:
        return name
    if name.startswith('.'):
        return 'hidden files'
    return os.path.splitext(name)[1].lower() or _NO_ENDING


def describe_left_out(left_out: Counter) -> str:
    """Return '6 without an ending, 2 .txt, 1 @eaDir/' for what was left out, {kind: number}; a '/' marks folders."""
    shown = left_out.most_common(_KINDS_SHOWN)
    parts = [printable(f'{number} {kind}') for kind, number in shown]
    others = left_out.total() - sum(number for _, number in shown)
    if others:
        parts.append(f'{others} others')
    text = ', '.join(parts)
    if _NO_ENDING in left_out:
        text += '; an image needs an ending, such as .jpg'
    return text


def print_left_out(left_out: Counter) -> None:
    """Print what was left out, if anything."""
    if left_out:
        print(f'left out: {describe_left_out(left_out)}')


def read_folder(folder: str, entered: set[tuple[int, int]]) -> list[os.DirEntry]:
    """Return the entries of a folder, sorted by name; none if it is among `entered`, to which it is added.

    Those are (device, inode) of folders. Raises UserError for a folder that cannot be read.
    """
    try:
        found = persistently(os.stat, folder)
        if (found.st_dev, found.st_ino) in entered:
            return []
        entries = persistently(_entries, folder)
    except OSError as error:
        raise UserError(f'{folder}: this folder cannot be read ({error.strerror})') from None
    entered.add((found.st_dev, found.st_ino))
    return entries


def _entries(folder):
    """Return the entries of a folder, sorted by name. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def is_folder_entry(entry: os.DirEntry) -> bool:
    """Return whether an entry of os.scandir is a folder, or a link to one. Raises DiskError."""
    try:
        return entry.is_dir()  # which seldom asks the disk
    except OSError:
        return is_folder(entry.path)
