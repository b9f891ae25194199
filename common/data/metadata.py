"""What an image file says beside its pixels: how the image must be turned counts, and nothing else.

Pillow parses texts, colour profiles, resolutions and more on its way to the pixels, and refuses a file for a fault in
any of them. Such a file can be read without them.
"""
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from PIL import Image

_ORIENTATION = 274  # a tag; EXIF has those of TIFF
_TRANSPOSED = {  # by the orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90}
_TURNED_BY_PILLOW = ('HEIF', 'TIFF')  # formats whose images are upright as soon as their pixels are loaded
_INTEGERS = {3: 'H', 4: 'L', 8: 'h', 9: 'l'}  # types of a tag's value
_BYTES = (1, 7)
_EXIF_BEGINNING = re.compile(rb'(Exif\0\0){1,2}')
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:=["\']|>)([0-9]+)')


def turn_upright(image: Image.Image) -> Image.Image:
    """Return an image, whose pixels have been loaded, as its metadata says that it must be turned.

    ImageOps.exif_transpose does so, too, but reads and writes the whole EXIF block, and fails for many that cameras and
    editors leave.
    """
    if image.format in _TURNED_BY_PILLOW:
        return image
    method = _TRANSPOSED.get(read_orientation(image.info))
    return image if method is None else image.transpose(method)


def read_orientation(info: Mapping[Any, Any]) -> int:
    """Return the orientation, 1 to 8, that EXIF or else XMP in Pillow's `info` of an image states, by default 1."""
    stated = _stated_by_exif(info)
    if stated is None:
        stated = _stated_by_xmp(info)
    return stated if stated in _TRANSPOSED else 1


def _stated_by_exif(info):
    """Return the number that an EXIF block states; None without one, and where it is damaged."""
    block = info.get('exif')
    try:
        if block is None:  # ImageMagick writes it into a PNG as a text: three lines, then hexadecimal digits
            block = bytes.fromhex(''.join(info['Raw profile type exif'].split('\n')[3:]))
        directory = _read_directory(_EXIF_BEGINNING.sub(b'', block, count=1))
    except (KeyError, TypeError, *_DAMAGED):
        return None
    for entry in directory.entries:
        tag, kind, count, value = struct.unpack(f'{directory.order}HHL4s', entry[:12])
        if tag == _ORIENTATION and kind in _INTEGERS and count == 1:
            return struct.unpack_from(directory.order + _INTEGERS[kind], value)[0]
    return None


def _stated_by_xmp(info):
    """Return the number that XMP states, or None."""
    text = info.get('XML:com.adobe.xmp') or info.get('xmp')
    if isinstance(text, str):
        text = text.encode()
    found = _XMP_ORIENTATION.search(text or b'')
    return int(found[1]) if found else None


# The first directory of a TIFF file, or of an EXIF block, which is one without pixels

_DAMAGED = (IndexError, OverflowError, ValueError, struct.error)  # what parsing raises where a file ends too early


class _Directory(NamedTuple):
    order: str            # of bytes: '<' or '>'
    count: str            # formats of the number of entries
    place: str            # and of a place in the file
    start: int
    entries: list[bytes]  # each a tag, a type, a count, and the value or its place


def _read_directory(content):
    """Return the _Directory. Raises one of _DAMAGED."""
    if content[:2] not in (b'II', b'MM'):
        raise ValueError('neither a TIFF file nor an EXIF block')
    order = '<' if content[:2] == b'II' else '>'
    is_big = b'+' in content[2:4]  # BigTIFF
    count = 'Q' if is_big else 'H'
    place = 'Q' if is_big else 'L'
    header = 8 if is_big else 4  # where the place of the directory stands
    size = 20 if is_big else 12  # bytes of an entry
    [start] = struct.unpack_from(order + place, content, header)
    [number] = struct.unpack_from(order + count, content, start)
    first = start + struct.calcsize(order + count)
    end = min(first + size * number, len(content) - size + 1)
    return _Directory(order, count, place, start, [content[at:at + size] for at in range(first, end, size)])


# Files without their metadata

def without_metadata(content: bytes) -> bytes:
    """Return an image file without metadata, except the orientation.

    The content itself comes back where it has none, and for a format or a damage that this function does not know.
    """
    for beginning, strip in _STRIPPERS:
        if beginning.match(content):
            try:
                return strip(content)
            except _DAMAGED:
                return content
    return content


def _block_of_orientation(info):
    """Return an EXIF block with the orientation that Pillow's `info` of an image has; b'' if that is upright."""
    orientation = read_orientation(info)
    if orientation == 1:
        return b''
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return exif.tobytes()


# JPEG: segments, each a marker (0xff and a byte), its length and a body

_JPEG_XMP = b'http://ns.adobe.com/xap/1.0/\0'
_JPEG_METADATA = {0xfe, 0xef, *range(0xe1, 0xee)}  # comments, and APP1 to APP15 but for Adobe's APP14
_JPEG_LEAST = {0xe0: 14, 0xee: 12}  # bytes of JFIF's APP0 and Adobe's APP14, which tell the decoder the colour space


def _strip_jpeg(content):
    kept = []
    exif = b''
    xmp = b''
    place = 2
    while True:
        place = content.index(b'\xff', place)
        marker = content[place + 1]
        if marker == 0xff:  # padding
            place += 1
            continue
        if marker == 0:
            place += 2
            continue
        if marker == 0xda:  # the pixels begin
            break
        end = place + 2 + int.from_bytes(content[place + 2:place + 4], 'big')
        body = content[place + 4:end]
        if marker == 0xe1 and body.startswith(b'Exif\0\0'):
            exif += body[6:]
        elif marker == 0xe1 and body.startswith(_JPEG_XMP):
            xmp = body[len(_JPEG_XMP):]
        elif marker not in _JPEG_METADATA and len(body) >= _JPEG_LEAST.get(marker, 0):
            kept.append(content[place:end])
        place = end
    block = _block_of_orientation({'exif': exif, 'xmp': xmp})
    if block:
        kept.insert(0, b'\xff\xe1' + struct.pack('>H', len(block) + 2) + block)
    return b''.join([content[:2], *kept, content[place:]])


# PNG: chunks, each a length, a name, a body and a checksum

_PNG_PIXELS = {b'IHDR', b'PLTE', b'IDAT', b'IEND'}
_PNG_TRANSPARENCY = {0: range(2, 257), 2: range(6, 257), 3: range(1, 257)}  # lengths of tRNS, by the kind of colours
_PNG_TEXTS = {b'tEXt', b'zTXt', b'iTXt'}
_PNG_ORIENTATION = {b'XML:com.adobe.xmp', b'Raw profile type exif'}  # keywords of the texts that may state it
_LONGEST_TEXT = 2 ** 20  # bytes that are looked at; a few kB may stand for gigabytes


def _strip_png(content):
    kept = []
    info = {}
    place = 8
    while place + 12 <= len(content):
        length, name = struct.unpack_from('>I4s', content, place)
        end = place + 12 + length
        counts = name == b'sBIT' or name == b'tRNS' and length in _PNG_TRANSPARENCY.get(content[25], ())
        if name in _PNG_PIXELS or counts and _is_whole(content[place + 4:end]):
            kept.append(content[place:end])
        elif name == b'eXIf':
            info['exif'] = content[place + 8:end - 4]
        elif name in _PNG_TEXTS:
            info |= _png_text(name, content[place + 8:end - 4])
        place = end
    block = _block_of_orientation(info)[6:]
    if block:
        kept.insert(1, struct.pack('>I', len(block)) + b'eXIf' + block + struct.pack('>I', zlib.crc32(b'eXIf' + block)))
    return b''.join([content[:8], *kept, content[place:]])


def _is_whole(chunk):
    """Return whether the checksum at the end of a chunk is that of its name and body."""
    return struct.pack('>I', zlib.crc32(chunk[:-4])) == chunk[-4:]


def _png_text(name, body):
    """Return {keyword: text}, as in Pillow's `info`, of a text chunk that may state the orientation, else {}."""
    keyword, _, text = body.partition(b'\0')
    if keyword not in _PNG_ORIENTATION:
        return {}
    is_compressed = name == b'zTXt'
    if name == b'zTXt':
        text = text[1:]  # behind the method
    elif name == b'iTXt':
        is_compressed = text[:1] == b'\1'
        text = text[2:].split(b'\0', 2)[-1]  # behind the method, the language and the translated keyword
    if is_compressed:
        try:
            text = zlib.decompressobj().decompress(text, _LONGEST_TEXT)
        except zlib.error:
            return {}
    return {keyword.decode('latin-1'): text.decode('latin-1')}


# WebP: chunks, each a name, a length and a body that is padded to an even length

_WEBP_KEPT_FLAGS = 0x12  # of VP8X: an animation, transparency
_WEBP_HAS_EXIF = 0x08
_WEBP_PIXELS = {b'VP8 ', b'VP8L', b'ALPH', b'ANIM', b'ANMF'}


def _strip_webp(content):
    kept = []
    info = {}
    place = 12
    while place + 8 <= len(content):
        name, length = struct.unpack_from('<4sI', content, place)
        end = place + 8 + length + length % 2
        if name == b'VP8X':
            flags = content[place + 8] & _WEBP_KEPT_FLAGS | _WEBP_HAS_EXIF
            kept.append(content[place:place + 8] + bytes([flags]) + content[place + 9:end])
        elif name in _WEBP_PIXELS:
            kept.append(content[place:end])
        elif name in (b'EXIF', b'XMP '):
            info[name.decode().strip().lower()] = content[place + 8:place + 8 + length]
        place = end
    block = _block_of_orientation(info)[6:]
    if block:
        kept.append(b'EXIF' + struct.pack('<I', len(block)) + block + bytes(len(block) % 2))
    body = b'WEBP' + b''.join(kept)
    return b'RIFF' + struct.pack('<I', len(body)) + body


# TIFF: what decoders read, such as size, compression, colours and places of the pixels; and MaxSampleValue

_TIFF_PIXELS = {*range(256, 260), 262, 266, 273, *range(277, 282), 284, 292, 293, 317, *range(320, 326), 332, 334, 338,
                339, 347, *range(512, 522), 529, 530, 532, 32995, 32996, 32997, 32998, 50674}
_TIFF_XMP = 700


def _strip_tiff(content):
    order, count, place, start, entries = _read_directory(content)
    kept = []
    for entry in entries:
        tag, kind = struct.unpack_from(f'{order}HH', entry)
        [items] = struct.unpack_from(order + place, entry, 4)
        states_orientation = (tag == _ORIENTATION and kind in _INTEGERS and items == 1
                              or tag == _TIFF_XMP and kind in _BYTES)
        if tag in _TIFF_PIXELS or states_orientation:
            kept.append(entry)
    directory = struct.pack(order + count, len(kept)) + b''.join(kept) + struct.pack(order + place, 0)
    return content[:start] + directory + content[start + len(directory):]


# Photoshop: a header, the palette, what Photoshop remembers, and the pixels; a length before each but the header

def _strip_psd(content):
    [palette] = struct.unpack_from('>I', content, 26)
    place = 30 + palette
    [length] = struct.unpack_from('>I', content, place)
    return content[:place] + bytes(4) + content[place + 4 + length:]


# JPEG 2000 and AVIF: boxes with names, or items of which a box says what they are. An unknown one is passed over. How
# an AVIF must be turned stands elsewhere than in EXIF.

_AVIF_EXIF = re.compile(rb'(infe(?:\x02.{3}.{2}|\x03.{3}.{4}).{2})Exif', re.DOTALL)


def _strip_jpeg2000(content):
    header, codestream, rest = content.partition(b'jp2c')
    return header.replace(b'res ', b'none') + codestream + rest  # the resolution


def _strip_avif(content):
    return _AVIF_EXIF.sub(rb'\1none', content)


_STRIPPERS: list[tuple[re.Pattern, Callable[[bytes], bytes]]] = [  # by how a file begins
    (re.compile(rb'\xff\xd8'), _strip_jpeg),
    (re.compile(rb'\x89PNG\r\n\x1a\n'), _strip_png),
    (re.compile(rb'RIFF....WEBP', re.DOTALL), _strip_webp),
    (re.compile(rb'II[*+]\0|MM\0[*+]'), _strip_tiff),
    (re.compile(rb'8BPS'), _strip_psd),
    (re.compile(rb'\0\0\0\x0cjP  '), _strip_jpeg2000),
    (re.compile(rb'....ftyp', re.DOTALL), _strip_avif)]
