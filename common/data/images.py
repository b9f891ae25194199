"""Images and folders of images: which files count, how one is opened, one sub-folder per class.

Every script opens pictures through open_image, so statistics, training and test see the same pixels. Nothing here needs
PyTorch, which takes seconds to import.
"""
import os
import stat
import warnings

import numpy as np
from PIL import Image, ImageOps

from common.runtime.console import printable
from common.runtime.errors import UserError

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

Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)  # header() refuses them
warnings.filterwarnings('ignore', module='PIL')  # odd metadata, which nothing here reads


class BadImage(UserError):
    """A file that is no readable picture."""


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
