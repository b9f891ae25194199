"""Folders of images: which files count, one sub-folder per class."""
import os
import unicodedata
from pathlib import Path

from common.data.images import EXTENSIONS
from common.runtime.errors import UserError


def is_image(path):
    """Whether a file name is one that Pillow reads, in any letter case; hidden files are not."""
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith('.')


def is_hidden(name):
    """Whether a folder is one that programs made for themselves, such as .thumbnails or __MACOSX."""
    return name.startswith(('.', '__'))


def list_files(folder):
    """All files below a folder, sorted by path: links are followed, no folder is entered twice or if it is hidden.

    Raises UserError for a folder that cannot be read.
    """
    def refuse(error):
        raise UserError(f'{error.filename}: this folder cannot be read ({error.strerror})')

    found, entered = [], set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        about = os.stat(place)
        if (about.st_dev, about.st_ino) in entered:
            folders.clear()
            continue
        entered.add((about.st_dev, about.st_ino))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [Path(place, name) for name in files]
    return sorted(found)


def list_images(folder):
    """The files of list_files whose names are those of pictures."""
    return [path for path in list_files(folder) if is_image(path)]


def stamp(path):
    """[size, time of change] of a file, zeros where it cannot be found."""
    try:
        found = os.stat(path)
    except OSError:
        return [0, 0]
    return [found.st_size, found.st_mtime_ns]


def class_folders(folder):
    """Names of the sub-folders that are classes, sorted. Raises UserError where there is no folder or none in it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder')
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    except OSError as error:
        raise UserError(f'{folder}: this folder cannot be read ({error.strerror})') from None
    if not names:
        raise UserError(f'{folder}: no sub-folders in it, and each class needs one of its own')
    for name in names:
        if any(unicodedata.category(character) == 'Cc' for character in name):
            raise UserError(f'{folder}: the folder {name!r} has control characters in its name, rename it')
    return names


def find_pictures(folder):
    """[(class, path)] of all image files in a folder's class folders. Raises UserError where a class has none."""
    found = [(name, path) for name in class_folders(folder) for path in list_images(Path(folder, name))]
    refuse_empty(folder, {name for name, _ in found})
    return found


def refuse_empty(folder, filled):
    """Raise UserError unless the class folders are just those in `filled`, a set of names."""
    empty = [name for name in class_folders(folder) if name not in filled]
    if empty:
        raise UserError(f'{folder}: no pictures in {", ".join(empty)}: add some or remove the folder')
