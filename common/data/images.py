"""Images and folders of images: which files count, how one is opened, one sub-folder per class.

Every script opens pictures through open_image, so statistics, training and test see the same pixels. Nothing here needs
PyTorch, which takes seconds to import.
"""
import os
import stat
import unicodedata
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from common.settings import UserError, printable

try:
    import pillow_heif  # the photographs of iPhones; `pip install pillow-heif`
    pillow_heif.register_heif_opener()
except ImportError:
    pass

MAX_PIXELS = 120_000_000  # of a picture; a file of a few kB may claim to have billions, and fill the memory
MAX_BYTES = 2 ** 30       # of a file

# The pictures among Pillow's formats. Others are drawn by another program (EPS by Ghostscript), or wrap a file of any
# format (IPTC): what a file holds, whatever its name, must not lead there.
FORMATS = sorted({'AVIF', 'BMP', 'DDS', 'DIB', 'GIF', 'HEIF', 'ICNS', 'ICO', 'IM', 'JPEG', 'JPEG2000', 'PCX', 'PNG',
                  'PPM', 'PSD', 'QOI', 'SGI', 'TGA', 'TIFF', 'WEBP', 'XBM', 'XPM'}
                 & set(Image.registered_extensions().values()) & Image.OPEN.keys())
EXTENSIONS = {extension for extension, kind in Image.registered_extensions().items() if kind in {*FORMATS, 'MPO'}}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
THREADS = min(8, CORES)  # for work that Pillow and hashlib do outside Python's lock

Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)  # header() refuses them
warnings.filterwarnings('ignore', module='PIL')  # odd metadata, which nothing here reads


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


def open_image(path, at_least=None):
    """An image file as an RGB picture: turned as its EXIF says, 16 bits scaled to 8, transparency on white.

    Of an animation the first frame counts. With `at_least`, pixels, a JPEG may come at a half, a quarter or an eighth
    of its size, which is several times faster, but with no side smaller than that. Raises BadImage, naming the file.
    """
    try:
        return decode(regular(path), at_least)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's errors on a damaged file are of a dozen types
        raise bad_image(path, error) from None


def bad_image(path, error):
    """The BadImage that an error while reading a file stands for."""
    return BadImage(f'{printable(str(path))}: not a readable image ({str(error) or type(error).__name__})')


def regular(path):
    """The path, if it is that of a file and not of a pipe, say, which could be waited for without end."""
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise OSError('not a file')
    if not 0 < about.st_size <= MAX_BYTES:
        raise OSError('an empty file' if not about.st_size else 'larger than the MAX_BYTES of common/data/images.py')
    return path


def header(file):
    """A picture whose pixels have not been read yet. Raises Pillow's errors, and ValueError above MAX_PIXELS."""
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(f'{image.width}x{image.height}: more than the MAX_PIXELS of common/data/images.py')
    return image


def decode(file, at_least=None):
    """open_image of a path or an open file, with Pillow's own errors."""
    with header(file) as image:
        if at_least:
            image.draft(None, (at_least, at_least))
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image):
    if image.mode.startswith('I'):  # 16 or 32 bits of grey; 16-bit files also open as 32-bit ones
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    elif image.mode == 'F':  # floating-point grey from 0 to 1; from 0 to 255 where there is more than 1
        grey = np.nan_to_num(np.asarray(image)).clip(0)
        image = Image.fromarray((grey * (255 if grey.max() <= 1 else 1)).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
    return image.convert('RGB')


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
