"""Images and folders of images: which files count, how one is opened, one sub-folder per class.

Every script opens pictures through open_image, so statistics, training and test see the same pixels. Nothing here needs
PyTorch, which takes seconds to import.
"""
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from common.settings import UserError

# Formats that Pillow lists but cannot draw by itself (scientific containers, video), or draws by running Ghostscript.
NOT_PICTURES = {'.bufr', '.eps', '.grib', '.h5', '.hdf', '.mpeg', '.mpg', '.ps'}
EXTENSIONS = {ext for ext, kind in Image.registered_extensions().items() if kind in Image.OPEN} - NOT_PICTURES
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
THREADS = min(8, CORES)  # for work that Pillow and hashlib do outside Python's lock


class BadImage(UserError):
    """A file that is no readable picture."""


def loader_workers(value):
    """The number of loader processes that NUM_WORKERS stands for: 'auto' is one for each core, 8 at most."""
    if value == 'auto':
        return min(8, CORES)
    if isinstance(value, str) or value < 0:
        raise UserError(f"NUM_WORKERS = {value!r}: give 'auto' or a number from 0")
    return value


def is_image(path):
    """Whether a file name is one that Pillow reads, in any letter case; hidden files are not."""
    path = Path(path)
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith('.')


def list_images(folder):
    """All image files below a folder, sorted by path."""
    return sorted(path for path in Path(folder).rglob('*') if is_image(path) and path.is_file())


def open_image(path, at_least=None):
    """An image file as an RGB picture: turned as its EXIF says, 16 bits scaled to 8, transparency on white.

    Of an animation the first frame counts. With `at_least`, pixels, a JPEG may come at a half, a quarter or an eighth
    of its size, which is several times faster, but with no side smaller than that. Raises BadImage, naming the file.
    """
    try:
        return decode(path, at_least)
    except Exception as error:  # Pillow's errors on a damaged file are of a dozen types
        raise BadImage(f'{path}: not a readable image ({error})') from None


def decode(file, at_least=None):
    """open_image of a path or an open file, with Pillow's own errors."""
    with Image.open(file) as image:
        if at_least:
            image.draft(None, (at_least, at_least))
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image):
    if image.mode.startswith('I'):  # 16 or 32 bits of grey; 16-bit files also open as 32-bit ones
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    elif image.mode == 'F':  # floating-point grey from 0 to 1
        image = Image.fromarray((np.nan_to_num(np.asarray(image)).clip(0, 1) * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
    return image.convert('RGB')


def class_folders(folder):
    """Names of the sub-folders that are classes, sorted. Raises UserError where there is no folder or none in it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder')
    names = sorted(entry.name for entry in folder.iterdir()
                   if entry.is_dir() and not entry.name.startswith(('.', '__')))
    if not names:
        raise UserError(f'{folder}: no sub-folders in it, and each class needs one of its own')
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
