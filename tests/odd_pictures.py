"""More than 300 odd and bad pictures, always the same: what scanners, phones, editors, crashes and pranks leave."""
import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ['with space.png', 'quote\'s".png', 'semi;colon & $(echo).png', '-dash.png', '%s {0}.png', '=cmd|calc!A0.png',
         '@sum(1).png', '$x_1$ \\frac.png', '<script>alert(1).png', '\x1b[2J\x1b]0;title\x07.png', 'new\nline.png',
         'tab\there.png', '鱼🐟é.png', '\u202egnp.png', 'UPPER.PNG', 'two..dots..png', 'latin-\udce9\udcff.png',
         251 * 'n' + '.png']
FUZZED = {'JPEG': 'jpg', 'PNG': 'png', 'WEBP': 'webp', 'GIF': 'gif', 'TIFF': 'tif', 'BMP': 'bmp'}
MUTANTS = 35  # of each of them


def pixels(size=(24, 32), channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (*size, channels) if channels > 1 else size).astype(np.uint8)


def encoded(image, kind, **options):
    """The bytes of an image file, or None where this Pillow cannot write it."""
    file = io.BytesIO()
    try:
        image.save(file, kind, **options)
    except (KeyError, OSError, ValueError, SystemError):
        return None
    return file.getvalue()


def png_chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def png(values, *chunks):
    """The bytes of a PNG of 16 bits: grey for values (H, W), RGB for (H, W, 3); `chunks` are more (name, content)."""
    height, width = values.shape[:2]
    header = struct.pack('>IIBBBBB', width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        png_chunk(*chunk) for chunk in ((b'IHDR', header), *chunks, (b'IDAT', zlib.compress(rows)), (b'IEND', b'')))


def jpeg_segment(marker, body):
    return b'\xff' + bytes([marker]) + struct.pack('>H', len(body) + 2) + body


def exif_block(*entries):
    """The bytes of an EXIF block of some entries, each (tag, type, count, four bytes or fewer)."""
    packed = [struct.pack('<HHL4s', *entry) for entry in sorted(entries)]
    return b'Exif\0\0II*\0' + struct.pack('<LH', 8, len(packed)) + b''.join(packed) + bytes(4)


def tiff(data, size, bits, tags=(), channels=1, entries=(), order='<', big=False):
    """The bytes of an uncompressed TIFF of (width, height) unsigned integers, with more `tags`, {number: value}.

    `data` are its pixels: an array, or the bytes. `entries` are more tags, as for exif_block; `order` is that of the
    bytes, and `big` for a BigTIFF.
    """
    data = data if isinstance(data, bytes) else data.astype(f'{order}u{bits // 8}').tobytes()
    tags = {256: size[0], 257: size[1], 258: bits, 259: 1, 262: 2 if channels == 3 else 1, 273: 0, 277: channels,
            278: size[1], 279: len(data), **dict(tags)}
    if big:
        header = struct.pack(f'{order}HHHQ', 43, 8, 0, 16)
        entry = f'{order}HHQ8s'
        length = f'{order}Q'
        no_more = bytes(8)  # the place of the next directory
    else:
        header = struct.pack(f'{order}HL', 42, 8)
        entry = f'{order}HHL4s'
        length = f'{order}H'
        no_more = bytes(4)
    entries = {number: (kind, count, value) for number, kind, count, value in entries}
    mark = b'II' if order == '<' else b'MM'
    directory = struct.calcsize(length) + len({**tags, **entries}) * struct.calcsize(entry) + len(no_more)
    tags[273] = len(mark) + len(header) + directory  # where the pixels begin
    for number, value in tags.items():
        entries[number] = (4, 1, struct.pack(f'{order}L', value))
    packed = [struct.pack(entry, number, *entries[number]) for number in sorted(entries)]
    return b''.join([mark, header, struct.pack(length, len(entries)), *packed, no_more, data])


def good_pictures():
    """{file name: bytes} of odd pictures, each of which can be read."""
    rgb, grey = Image.fromarray(pixels()), Image.fromarray(pixels(channels=1))
    files = {name: encoded(Image.fromarray(pixels(seed=number)), 'PNG') for number, name in enumerate(NAMES)}
    for suffix in ('jpg', 'png', 'gif', 'bmp', 'tif', 'webp', 'ppm', 'tga', 'pcx', 'sgi', 'dds', 'jp2', 'avif', 'qoi',
                   'im', 'heic', 'ico', 'icns', 'dib', 'jpeg'):
        kind = Image.registered_extensions().get(f'.{suffix}')
        files[f'format.{suffix}'] = kind and encoded(rgb.resize((64, 64)), kind)
    for suffix, kind, modes in (('png', 'PNG', ('1', 'L', 'LA', 'P', 'RGBA', 'I;16')),
                                ('tif', 'TIFF', ('1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'YCbCr', 'LAB', 'I', 'F')),
                                ('jpg', 'JPEG', ('L', 'CMYK', 'YCbCr')), ('webp', 'WEBP', ('RGBA', 'L')),
                                ('gif', 'GIF', ('1', 'L', 'P')), ('bmp', 'BMP', ('1', 'L', 'P', 'RGBA'))):
        for mode in modes:
            image = Image.new(mode, (30, 20)) if mode in ('LAB', 'YCbCr', 'I;16', 'LA') else grey.convert(mode)
            files[f'mode {mode.replace(";", "-")}.{suffix}'] = encoded(image, kind)
    try:
        Image.open(io.BytesIO(files['mode YCbCr.tif'])).load()
    except OSError:  # Pillow 12 and older do not read what they wrote
        del files['mode YCbCr.tif']
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        files[f'turned {turn}.jpg'] = encoded(rgb, 'JPEG', exif=exif)
    frames = [Image.fromarray(pixels(seed=seed)) for seed in range(3)]
    for kind, suffix in (('GIF', 'gif'), ('WEBP', 'webp'), ('PNG', 'apng'), ('TIFF', 'tif')):
        files[f'animated.{suffix}'] = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    for kind, suffix in (('PNG', 'jpg'), ('JPEG', 'png'), ('GIF', 'webp'), ('WEBP', 'bmp'), ('BMP', 'tif')):
        files[f'{kind.lower()} inside.{suffix}'] = encoded(rgb, kind)
    deep = 16 * pixels(channels=1).astype(np.uint16)
    files['12 bits in 16.png'], files['12 of 16 bits.png'] = png(deep), png(deep + 3, (b'sBIT', b'\x0c'))
    files['16-bit colours.png'] = png(np.dstack([deep] * 3))
    files['12 bits in 16.tif'] = tiff(deep, (32, 24), 16, {281: 4095})
    files['12 bits.tif'] = tiff(pixels((24, 48), 1).tobytes(), (32, 24), 12)
    files['8 bits in 32.tif'] = tiff(pixels(channels=1), (32, 24), 32)
    files['palette with alpha.png'] = encoded(rgb.convert('P'), 'PNG', transparency=3)
    files['progressive.jpg'] = encoded(rgb, 'JPEG', progressive=True)
    files['garbage behind.jpg'] = encoded(rgb, 'JPEG') + bytes(500)
    files['wrong exif.jpg'] = encoded(rgb, 'JPEG', exif=b'Exif\x00\x00' + bytes(range(40)))
    odd_exif = exif_block((0x112, 3, 1, b'\6\0'), (0x213, 4, 1, b'\xff\xff\xff\xff'))
    files['turned, odd exif.jpg'] = encoded(rgb, 'JPEG', exif=odd_exif)
    long_text = png_chunk(b'zTXt', b'x\0\0' + zlib.compress(bytes(3 * 2 ** 20)))
    plain = encoded(rgb, 'PNG')
    files['long text.png'] = plain[:33] + long_text + plain[33:]
    files['one pixel.png'] = encoded(rgb.resize((1, 1)), 'PNG')
    files['line.png'] = encoded(rgb.resize((3000, 1)), 'PNG')
    files['column.jpg'] = encoded(rgb.resize((1, 3000)), 'JPEG')
    return {name: content for name, content in files.items() if content}


def bad_pictures():
    """{file name: bytes}, none of which can be read."""
    files = {'empty.jpg': b'', 'zeros.png': bytes(1000), 'text.jpg': b'hello', 'page.png': b'<!doctype html><html>404',
             'program.jpg': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n',
             'link.bmp': b'[InternetShortcut]\nURL=http://localhost', 'half a name.gif': b'GIF8'}
    image = Image.fromarray(pixels((64, 64)))
    for kind, suffix in FUZZED.items():
        whole = encoded(image, kind)
        files |= {f'cut {part}.{suffix}': whole[:int(len(whole) * part / 100)] for part in (1, 20, 60)}
    files['colours in planes.tif'] = tiff(np.zeros((3, 64, 64)), (64, 64), 16, {284: 2}, channels=3)
    files['colours of 32 bits.tif'] = tiff(np.zeros((64, 64, 3)), (64, 64), 32, channels=3)
    header = struct.pack('>IIBBBBB', 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = b''.join(png_chunk(name, data) for name, data in (
        (b'IHDR', header), (b'IDAT', zlib.compress(bytes(10 ** 6))), (b'IEND', b'')))
    files['bomb.png'] = b'\x89PNG\r\n\x1a\n' + chunks
    files['bomb.bmp'] = b'BM' + struct.pack('<IHHIIiiHH', 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24) + bytes(24)
    return files


def mutated_pictures(seed=1):
    """{file name: bytes}: pictures with some bytes changed, left out or doubled; some can still be read."""
    rng, files = random.Random(seed), {}
    image = Image.fromarray(pixels())
    for kind, suffix in FUZZED.items():
        whole = encoded(image, kind)
        for number in range(MUTANTS):
            content = bytearray(whole)
            for _ in range(rng.choice((1, 2, 8))):
                place = rng.randrange(len(content) if rng.random() < 0.5 else 64)
                edit = rng.randrange(4)
                if edit == 0:
                    content[place] = rng.randrange(256)
                elif edit == 1:
                    content[place:place + 4] = rng.choice((b'\xff\xff\xff\xff', bytes(4), b'\x7f\xff\xff\xff'))
                elif edit == 2:
                    del content[place:place + rng.randrange(1, 20)]
                else:
                    content[place:place] = content[place:place + 30]
            files[f'mutant {number}.{suffix}'] = bytes(content)
    return files


def special_files(folder, good):
    """Links, pipes and folders in `folder`; returns (number of pictures among them, number of others)."""
    (folder / 'link.png').symlink_to(good)
    (folder / 'nowhere.png').symlink_to('gone.png')
    (folder / 'loop.png').symlink_to('loop.png')
    (folder / 'endless.png').symlink_to('/dev/zero')
    os.mkfifo(folder / 'pipe.png')
    (folder / 'folder.png').mkdir()
    (folder / 'folder.png' / 'inside.png').write_bytes(good.read_bytes())
    (folder / 'round').symlink_to(folder, target_is_directory=True)
    (folder / '__MACOSX').mkdir()
    for hidden in ('.hidden.png', '__MACOSX/._x.png', 'Thumbs.db', '.DS_Store', 'notes.txt', 'desktop.ini'):
        (folder / hidden).write_bytes(good.read_bytes())
    return 2, 4


def draw(folder):
    """Fill a folder with all of them. Returns (the least number of readable ones, the least of unreadable ones)."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    good, bad = good_pictures(), bad_pictures()
    for name, content in (good | bad | mutated_pictures()).items():
        (folder / name).write_bytes(content)
    extra_good, extra_bad = special_files(folder, folder / 'with space.png')
    return len(good) + extra_good, len(bad) + extra_bad
