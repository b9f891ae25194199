"""One opener for the images of all four scripts, so that statistics, training and test see the same pixels.

Nothing here needs PyTorch, which takes seconds to import.
"""
import io
import logging
import mmap
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from common.data.metadata import turn_upright, without_metadata
from common.runtime.console import Bar, printable
from common.runtime.disks import disk_error, is_of_the_file, persistently, regular
from common.runtime.errors import UserError

try:
    import pillow_heif  # the photographs of iPhones
    pillow_heif.register_heif_opener()
except ImportError:
    pass

MAX_PIXELS = 120_000_000  # of an image; a file of a few kB may claim to have billions, and fill the memory
MAX_BYTES = 2 ** 30       # of a file
# Bits of grey images deeper than 8, such as a camera's 12 in files of 16. None: as many as each file states. After a
# change start again with mean_std.py.
BIT_DEPTH: int | None = None

# Pillow's formats that are images. Others are drawn by another program (EPS by Ghostscript), or wrap a file of any
# format (IPTC): what a file holds, whatever its name, must not lead there.
FORMATS = sorted({'AVIF', 'BMP', 'DDS', 'DIB', 'GIF', 'HEIF', 'ICNS', 'ICO', 'IM', 'JPEG', 'JPEG2000', 'PCX', 'PNG',
                  'PPM', 'PSD', 'QOI', 'SGI', 'TGA', 'TIFF', 'WEBP', 'XBM', 'XPM'}
                 & set(Image.registered_extensions().values()) & Image.OPEN.keys())


class _OptionalFormat(NamedTuple):
    """A format that Pillow reads in some installations only."""
    name: str
    endings: set[str]
    brands: set[bytes]  # in the first bytes of a file
    needs: str


_OPTIONAL_FORMATS = [
    _OptionalFormat('AVIF', {'.avif', '.avifs'}, {b'avif', b'avis'},
                    'a newer Pillow: python -m pip install --upgrade pillow'),
    _OptionalFormat('HEIF', {'.heic', '.heics', '.heif', '.heifs', '.hif'},
                    {b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'hevm', b'hevs', b'mif1', b'msf1'},
                    'another package: python -m pip install pillow-heif')]

# The endings of images. Those of optional formats are always among them, so that who has such files learns what to
# install.
EXTENSIONS = {ending for ending, name in Image.registered_extensions().items() if name in {*FORMATS, 'MPO'}}
EXTENSIONS.update(*(optional.endings for optional in _OPTIONAL_FORMATS))

_BITS_PER_SAMPLE = 258  # these four are tags of TIFF
_MAX_SAMPLE_VALUE = 281
_PLANAR_CONFIGURATION = 284
_SAMPLE_FORMAT = 339
_DEEP_GREY = ('I', 'F')  # modes deeper than 8 bits, integers or floating point
_UPPER_BYTES = re.compile(';16[BLN]|SGI16')  # in the names of Pillow's decoders that take 8 of a colour's 16 bits

Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)  # header() refuses them
warnings.filterwarnings('ignore', module='PIL')  # odd metadata, which nothing here reads
logging.getLogger('PIL').setLevel(logging.CRITICAL)  # its errors are raised as well, and those name the file

Value = TypeVar('Value')

_has_warned = mmap.mmap(-1, 1)  # a byte that is shared with forked worker processes, so that a run warns once


class BadImage(UserError):
    """A file that is not a readable image."""


def open_image(path: str | Path, at_least: int | None = None) -> Image.Image:
    """Return an image file as RGB: turned as its metadata says, deep grey scaled to 8 bits, transparency on white.

    An animation counts with its first frame. With `at_least`, pixels, a JPEG may come at a half, a quarter or an eighth
    of its size, which is several times faster, but with no side smaller than that. Raises BadImage, naming the file,
    and DiskError where the disk does not answer.
    """
    with judging(path):
        return decode(read_content(path), path, at_least)


@contextmanager
def judging(path: str | Path) -> Iterator[None]:
    """Turn the errors of reading an image inside `with` into BadImage or DiskError."""
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:  # Pillow's errors on a damaged file are of a dozen types
        raise bad_image(path, error) from None


def bad_image(path: str | Path, error: Exception) -> UserError:
    """Return the BadImage, a text of one line, for an error while reading a file.

    For an error that says nothing of the file, but of the disk, it is a DiskError.
    """
    if isinstance(error, OSError) and not is_of_the_file(error):
        return disk_error(path, error)
    return BadImage(printable(f'{path}: not a readable image ({_reason(error)})'))


def _reason(error):
    """Return what an error says, on one line, without the path or the Python object that it may name."""
    if isinstance(error, UnidentifiedImageError):
        return 'the content is no image, or of a kind that Pillow cannot read'
    if isinstance(error, Image.DecompressionBombError):
        return 'more pixels than the MAX_PIXELS of common/data/images.py'
    text = ' '.join((getattr(error, 'strerror', None) or str(error)).split())
    if text and isinstance(error, (OSError, SyntaxError)):  # SyntaxError is Pillow's for a broken file
        return text
    kind = f'damaged, {type(error).__name__}'
    return f'{kind}: {text}' if text else kind


def read_content(path: str | Path) -> bytes:
    """Return the bytes of a regular file, read again where the disk hiccups.

    They are read as a whole before they are decoded. So an error of the disk cannot be mistaken for a damaged image,
    and does not kill the process, as it does where a file is mapped into memory. Raises DiskError, and OSError for
    anything but a file, for an empty file, and for one above MAX_BYTES.
    """
    return persistently(_read_once, path)


def _read_once(path):
    size = regular(path).stat().st_size
    if size == 0:
        raise OSError('an empty file')
    if size > MAX_BYTES:
        raise OSError('larger than the MAX_BYTES of common/data/images.py')
    return Path(path).read_bytes()


def header(content: bytes, path: str | Path) -> Image.Image:
    """Return the image in the content of a file; its pixels have not been read yet.

    Raises Pillow's errors, and OSError above MAX_PIXELS, for a TIFF that Pillow would scramble, and for a format that
    it does not read here.
    """
    return _despite_metadata(_open, content, path)


def _despite_metadata(read: Callable[..., Value], content: bytes, *args) -> Value:
    """Return read(content, *args). Where that fails, the file is read again without its metadata, if it has any."""
    try:
        return read(content, *args)
    except (MemoryError, UserError):
        raise
    except Exception:
        bare = without_metadata(content)
        if bare == content:
            raise
    return read(bare, *args)


def _open(content, path):
    """Do as header, for a file whose metadata Pillow accepts."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        _refuse_lacking(content, path)
        raise
    problem = None
    if image.width * image.height > MAX_PIXELS:
        problem = f'{image.width}x{image.height}: more than the MAX_PIXELS of common/data/images.py'
    elif _is_scrambled(image):
        problem = '16-bit colours in separate planes, which Pillow misreads: save it with interleaved channels'
    if problem:
        image.close()
        raise OSError(problem)
    return image


def _refuse_lacking(content, path):
    """Raise OSError for a file that Pillow would read if another package were installed."""
    brands = set()
    if content[4:8] == b'ftyp':
        length = int.from_bytes(content[:4], 'big')
        brands = {content[place:place + 4] for place in range(8, min(length, len(content)), 4)}
    ending = os.path.splitext(path)[1].lower()
    for optional in _OPTIONAL_FORMATS:
        is_meant = brands & optional.brands if brands else ending in optional.endings
        if is_meant and optional.name not in FORMATS:
            raise OSError(f'{optional.name} needs {optional.needs}')


def _is_scrambled(image):
    """Return whether it is an uncompressed TIFF with planes of 16-bit colours, which Pillow takes for 8-bit ones."""
    return (image.format == 'TIFF' and image.tile[:1] and image.tile[0][0] == 'raw'
            and image.tag_v2.get(_PLANAR_CONFIGURATION) == 2 and image.tag_v2.get(_BITS_PER_SAMPLE, (1,))[0] == 16)


def decode(content: bytes, path: str | Path, at_least: int | None = None) -> Image.Image:
    """Do as open_image for the content of a file, with Pillow's own errors; `path` is for messages."""
    return _despite_metadata(_decode, content, path, at_least)


def _decode(content, path, at_least):
    """Do as decode, for a file whose metadata Pillow accepts."""
    with _open(content, path) as image:
        if at_least:
            image.draft(None, (at_least, at_least))
        deep = image.mode.startswith(_DEEP_GREY)
        halved = not deep and _UPPER_BYTES.search(str(image.tile[:1]))
        if deep and image.format == 'PNG':
            image.info['sBIT'] = _read_sbit(image.fp)
        image.load()
        if halved and _brightest_colour(image) < 16:
            _warn(f'{path} is almost black: of 16-bit colours Pillow reads the upper 8 bits, and it hardly uses those. '
                  'Scale such images to the full 16 bits, or to 8, with another program')
        return as_rgb(image, path)


def _brightest_colour(image):
    """Return the largest value of any channel but transparency."""
    return max(image.getchannel(band).getextrema()[1] for band in image.getbands() if band != 'A')


def as_rgb(image: Image.Image, name: str | Path = 'an image') -> Image.Image:
    """Return what open_image makes of an opened image of any mode; `name` is for a warning."""
    image.load()
    upright = turn_upright(image)
    if image.mode.startswith(_DEEP_GREY):
        upright = Image.fromarray(_scale_grey(np.asarray(upright), image, name))
    if upright.has_transparency_data:
        white = Image.new('RGBA', upright.size, 'white')
        upright = Image.alpha_composite(white, upright.convert('RGBA'))
    rgb = upright.convert('RGB')
    rgb.info = {}  # Pillow would save it with the image, and fails for a comment that the format cannot hold.
    return rgb


def _scale_grey(values, image, path):
    """Return the grey values (H, W) of the opened file `image` as uint8 of the same shape.

    White is at 16 bits, or as many as BIT_DEPTH or else the file states; for floating point without a BIT_DEPTH at 1,
    or at 255 where any value is above 1. An image's own largest value decides no more than that, since images of
    different exposures would come out alike.
    """
    if BIT_DEPTH is not None and BIT_DEPTH not in range(8, 33):
        raise UserError(f'BIT_DEPTH = {BIT_DEPTH!r} in common/data/images.py must be from 8 to 32, or None')
    if values.dtype.kind == 'f':
        return _scale_floating(np.nan_to_num(values), path)
    if image.format == 'TIFF' and values.dtype == np.int32 and image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == 1:
        values = values.view(np.uint32)  # Pillow has no mode for them
    stated = BIT_DEPTH or _stated_bits(values, image)
    bits = stated or 16
    least = 0 if stated else 2 ** 12  # values that are all below may be those of a 12-bit camera
    _warn_of_range(values.max(), least, 2 ** bits - 1, path)
    levels = 2 ** min(bits, 16)
    table = (np.arange(levels) * 255 // (levels - 1)).astype(np.uint8)
    return table.take(values >> max(bits - 16, 0), mode='clip')  # below 0 is black, above white is white


def _scale_floating(values, path):
    """Return finite grey values (H, W) in floating point as uint8 of the same shape."""
    if BIT_DEPTH:
        white = 2 ** BIT_DEPTH - 1
    elif values.max() <= 1:
        white = 1
    else:
        white = 255
    _warn_of_range(values.max(), 0, white, path)
    return (values.clip(0, white) * (255 / white)).round().astype(np.uint8)


def _stated_bits(values, image):
    """Return how many bits of the integers (H, W) a file says it uses, if fewer than 16; else None.

    What other formats than these two state, Pillow has scaled to 16 bits already.
    """
    if image.format == 'TIFF':
        bits = image.tag_v2[_BITS_PER_SAMPLE][0]
        # MaxSampleValue may also be the largest value of this one image; only 2^n - 1 is taken for a depth.
        largest = image.tag_v2.get(_MAX_SAMPLE_VALUE)
        for depth in range(8, 16):
            if largest == (2 ** depth - 1,):
                bits = depth
        return bits if bits < 16 else None
    bits = image.info.get('sBIT') if image.format == 'PNG' else None
    # Writers are to scale what they state here to 16 bits, which leaves the lowest bits of dark values 0, or 1 if they
    # round. Some do not scale.
    unscaled = bits in range(8, 16) and values.max() < 2 ** bits and (values % 2 ** (16 - bits)).max() > 1
    return bits if unscaled else None


def _read_sbit(file):
    """Return the significant bits that a grey PNG states, or None. The file, read as far as its pixels, stays there.

    Pillow skips this chunk.
    """
    pixels = file.tell()
    bits = None
    file.seek(8)  # behind the signature
    while file.tell() < pixels:
        length, name = struct.unpack('>I4s', file.read(8))
        content = file.read(length + 4)  # and the checksum, which Pillow has compared
        if name == b'sBIT':
            bits = content[0]
    file.seek(pixels)
    return bits


def _warn_of_range(largest, least, white, path):
    """Warn of an image whose largest grey value is below `least`, and not 0, or above `white`."""
    if 0 < largest < least or largest > white:
        bits = min(max(12, int(largest).bit_length()), 32)
        problem = 'almost black' if largest < white else 'partly cut to white'
        _warn(f'{path} is {problem}: its grey values reach {largest:.10g}, and white is {white}. Set BIT_DEPTH in '
              'common/data/images.py to the bits that the images of this folder have, such as '
              f'BIT_DEPTH: int | None = {bits}')


def _warn(text):
    """Print the first warning of a run; where worker processes are not forked, the first one of each process."""
    if not _has_warned[0]:
        _has_warned[0] = 1
        Bar.write(printable(f'warning: {text}'))
