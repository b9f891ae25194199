"""Folders of pictures, with one sub-folder for each class: which files count, and in which order."""
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from PIL import Image

from common.data.images import FORMATS
from common.runtime.errors import UserError

EXTENSIONS = {extension for extension, kind in Image.registered_extensions().items() if kind in {*FORMATS, 'MPO'}}


def is_image(path: str | Path) -> bool:
    """Whether a file has the name of a picture that Pillow reads, in any letter case; hidden files have not."""
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith('.')


def is_hidden(name: str) -> bool:
    """Whether a folder has the name of one that programs made for themselves, such as .thumbnails or __MACOSX."""
    return name.startswith(('.', '__'))


def list_files(folder: str | Path) -> Iterator[str]:
    """Yields the paths of all files below a folder, in the order of their names, folder by folder.

    Links are followed; no folder is entered twice, and no hidden one. Raises UserError for a folder that cannot be
    read.
    """
    entered = set()  # the folders, as (device, inode)
    left = [_read_folder(str(Path(folder)), entered)]  # of each folder on the way down, the entries to come
    while left:
        entry = next(left[-1], None)
        if entry is None:
            left.pop()
        elif not _is_folder(entry):
            yield entry.path
        elif not is_hidden(entry.name):
            left.append(_read_folder(entry.path, entered))


def _read_folder(folder, entered):
    """The entries of a folder, sorted by name; none of one that has been entered."""
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            return iter(())
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            return iter(sorted(entries, key=lambda entry: entry.name))
    except OSError as error:
        raise UserError(f'{folder}: this folder cannot be read ({error.strerror})') from None


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def list_images(folder: str | Path) -> Iterator[str]:
    """The files of list_files that is_image takes for pictures."""
    return filter(is_image, list_files(folder))


def stamp(path: str | Path) -> list[int]:
    """[size in bytes, modification time in ns] of a file, zeros where it cannot be found."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # a name that no file can have
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]


def class_folders(folder: str | Path) -> list[str]:
    """Names of the sub-folders that are classes, sorted.

    Raises UserError where there is no such folder, none in it, or one with control characters in its name.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # unlike Path.is_dir also for names that are too long
        raise UserError(f'{folder}: no such folder')
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    except OSError as error:
        raise UserError(f'{folder}: this folder cannot be read ({error.strerror})') from None
    if not names:
        raise UserError(f'{folder}: no sub-folders in it, and each class needs one of its own')
    refuse_class_names(names, folder)
    return names


def refuse_class_names(names: Iterable[str], place: str | Path) -> None:
    """Raise UserError for a class that cannot be the name of a folder."""
    for name in names:
        if any(unicodedata.category(character) == 'Cc' for character in name):
            raise UserError(f'{place}: the class {name!r} has control characters in its name, rename it')
        if '/' in name or '\\' in name * (os.sep == '\\') or is_hidden(name):
            raise UserError(f'{place}: the class {name!r} cannot be the name of a folder, rename it')


def find_pictures(folder: str | Path) -> list[tuple[str, str]]:
    """[(class, path)] of all pictures in a folder's class folders. Raises UserError where a class has none."""
    found = [(name, path) for name in class_folders(folder) for path in list_images(Path(folder, name))]
    refuse_empty(class_folders(folder), {name for name, _ in found}, folder)
    return found


def refuse_empty(names: Iterable[str], filled: Collection[str], place: str | Path) -> None:
    """Raise UserError for classes that are not among `filled`, the names of those with pictures."""
    empty = [name for name in names if name not in filled]
    if empty:
        raise UserError(f'{place}: no pictures in {", ".join(empty)}: add some or remove the class')
