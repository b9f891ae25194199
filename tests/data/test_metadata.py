"""common/data/metadata.py: the orientation counts wherever it stands, and nothing else beside the pixels matters."""
import io
import random
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from odd_pictures import exif_block, jpeg_segment, png_chunk, tiff
from PIL import Image, features

from common.data import images
from common.data.images import open_image
from common.data.metadata import without_metadata

ORIENTATION = 274
CORNERS = [(0, 0), (-1, 0), (0, -1), (-1, -1)]
PICTURE = np.zeros((32, 48, 3), np.uint8)  # red, green, blue and yellow quarters
PICTURE[:16, :24] = 255, 0, 0
PICTURE[:16, 24:] = 0, 255, 0
PICTURE[16:, :24] = 0, 0, 255
PICTURE[16:, 24:] = 255, 255, 0
STORED = {  # the picture as a camera stores it for each orientation
    1: PICTURE, 2: PICTURE[:, ::-1], 3: PICTURE[::-1, ::-1], 4: PICTURE[::-1], 5: PICTURE.transpose(1, 0, 2),
    6: PICTURE.transpose(1, 0, 2)[::-1], 7: PICTURE[::-1, ::-1].transpose(1, 0, 2),
    8: PICTURE.transpose(1, 0, 2)[:, ::-1]}

# Tags that Pillow cannot write again, or cannot even read: (tag, type, count, value or place of the value)
ODD_TAGS = [
    (0x100, 2, 4, b'640\0'), (0x10e, 2, 2 ** 32 - 1, b'\xff\xff\xff\xff'), (0x10f, 2, 8, b'\xf0\xff\xff\0'),
    (0x110, 5, 1, b'\xff\xff\xff\x7f'), (0x11a, 5, 1, b'\xf0\xff\xff\xff'), (0x11b, 2, 1, b'\0'),
    (0x131, 99, 1, b'abcd'), (0x14a, 4, 1, b'\x08\0\0\0'), (0x213, 4, 1, b'\xff\xff\xff\xff'),
    (0x2bc, 2, 4, b'abc\0'), (0x4746, 9, 1, b'\xff\xff\xff\xff'), (0x8769, 4, 1, b'\x08\0\0\0'),
    (0x8825, 9, 1, b'\xff\xff\xff\xff'), (0x927c, 7, 4, b'\0\xff\0\xff'), (0x9286, 2, 4, '鱼'.encode() + b'\xff'),
    (0xa005, 4, 1, b'\x08\0\0\0')]


def saved(pixels, kind, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def opened(folder, content):
    (folder / 'x.jpg').write_bytes(content)  # of whatever format
    return open_image(folder / 'x.jpg')


def assert_upright(image):
    """Whether the corners have their colours, about."""
    assert image.size == (48, 32)
    pixels = np.asarray(image).astype(int)
    for x, y in CORNERS:
        assert abs(pixels[y, x] - PICTURE[y, x]).max() < 60, (x, y, pixels[y, x])


def tags_of(orientation, odd=()):
    return [(ORIENTATION, 3, 1, struct.pack('<HH', orientation, 0)), *odd]


def jpeg(pixels, *segments):
    content = saved(pixels, 'JPEG', quality=95)
    return content[:2] + b''.join(segments) + content[2:]


def png(pixels, *chunks):
    content = saved(pixels, 'PNG')
    return content[:33] + b''.join(chunks) + content[33:]


def avif(pixels, orientation, odd=()):
    """An AVIF file that is turned, with another tag in its EXIF block if `odd`."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x10e] = 'x' * 200
    content = saved(pixels, 'AVIF', exif=exif, quality=95)
    [place] = [found.start() for found in re.finditer(struct.pack('>HHL', 0x10e, 2, 201), content)]
    if odd:
        content = content[:place] + struct.pack('>HHLL', 0x213, 4, 1, 2 ** 32 - 1) + content[place + 12:]
    return content


def with_exif(kind, orientation, odd=()):
    """The bytes of a file whose EXIF block states an orientation, and has more tags."""
    pixels = STORED[orientation]
    block = exif_block(*tags_of(orientation, odd))
    if kind == 'JPEG':
        return jpeg(pixels, jpeg_segment(0xe1, block))
    if kind == 'PNG':
        return png(pixels, png_chunk(b'eXIf', block[6:]))
    if kind == 'PNG of ImageMagick':
        text = f'\nexif\n{len(block):8}\n{block.hex()}\n'.encode()
        return png(pixels, png_chunk(b'zTXt', b'Raw profile type exif\0\0' + zlib.compress(text)))
    if kind == 'WEBP':
        return saved(pixels, 'WEBP', exif=block, quality=95)
    if kind == 'TIFF':
        return tiff(pixels, pixels.shape[1::-1], 8, channels=3, entries=tags_of(orientation, odd))
    if kind == 'AVIF':
        return avif(pixels, orientation, odd)
    return saved(pixels, 'HEIF', exif=block, quality=95)


def skip_unless_written(kind):
    if kind == 'HEIF':
        pytest.importorskip('pillow_heif')
    if kind == 'AVIF' and not features.check('avif'):
        pytest.skip('this Pillow does not write AVIF')


@pytest.mark.parametrize('odd', [[], ODD_TAGS], ids=['plain', 'odd tags'])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'PNG of ImageMagick', 'WEBP', 'TIFF', 'AVIF', 'HEIF'])
def test_every_orientation_of_exif_turns_once(tmp_path, kind, odd):
    skip_unless_written(kind)
    for orientation in STORED:
        assert_upright(opened(tmp_path, with_exif(kind, orientation, odd)))


@pytest.mark.parametrize('tag', ODD_TAGS, ids=lambda tag: f'{tag[0]:#x}')
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_each_odd_tag_for_itself(tmp_path, kind, tag):
    assert_upright(opened(tmp_path, with_exif(kind, 6, [tag])))


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def with_xmp(kind, orientation):
    """The bytes of a file whose XMP states an orientation."""
    pixels = STORED[orientation]
    xmp = XMP % orientation
    if kind == 'JPEG':
        return jpeg(pixels, jpeg_segment(0xe1, b'http://ns.adobe.com/xap/1.0/\0' + xmp))
    if kind == 'PNG':
        return png(pixels, png_chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + xmp))
    if kind == 'compressed PNG':
        return png(pixels, png_chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + zlib.compress(xmp)))
    return saved(pixels, kind, **({'tiffinfo': {700: xmp}} if kind == 'TIFF' else {'xmp': xmp, 'quality': 95}))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'compressed PNG', 'WEBP', 'TIFF'])
def test_every_orientation_of_xmp_turns_once(tmp_path, kind):
    for orientation in STORED:
        content = with_xmp(kind, orientation)
        assert_upright(opened(tmp_path, content))
        assert_upright(opened(tmp_path, without_metadata(content)))


@pytest.mark.parametrize('exif, xmp', [(1, 6), (6, 1), (6, 6)])
def test_exif_goes_before_xmp(tmp_path, exif, xmp):
    """Also in a TIFF, which Pillow turns."""
    pixels = STORED[exif]
    block = exif_block(*tags_of(exif))
    segments = jpeg_segment(0xe1, block), jpeg_segment(0xe1, b'http://ns.adobe.com/xap/1.0/\0' + XMP % xmp)
    chunks = png_chunk(b'eXIf', block[6:]), png_chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + XMP % xmp)
    for content in (jpeg(pixels, *segments), png(pixels, *chunks),
                    saved(pixels, 'WEBP', exif=block, xmp=XMP % xmp, quality=95),
                    saved(pixels, 'TIFF', tiffinfo={ORIENTATION: exif, 700: XMP % xmp})):
        assert_upright(opened(tmp_path, content))
        assert_upright(opened(tmp_path, without_metadata(content)))


def test_xmp_does_not_turn_a_heif_again(tmp_path):
    """It states elsewhere how it must be turned, and pillow-heif does not know this spelling."""
    pytest.importorskip('pillow_heif')
    xmp = (XMP % 6).replace(b'"', b"'")
    assert_upright(opened(tmp_path, saved(PICTURE, 'HEIF', xmp=xmp, quality=95)))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'PNG of ImageMagick', 'WEBP', 'TIFF', 'AVIF'])
def test_the_orientation_survives_without_the_rest(tmp_path, kind):
    skip_unless_written(kind)
    for orientation in STORED:
        content = with_exif(kind, orientation, ODD_TAGS)
        assert_upright(opened(tmp_path, without_metadata(content)))


@pytest.mark.parametrize('kind, value', [(3, b'\0\0'), (3, b'\x09\0'), (3, b'\xff\xff'), (1, b'\6'), (2, b'6\0'),
                                         (4, b'\xff\xff\xff\xff'), (9, b'\xfa\xff\xff\xff'), (11, b'\0\0\xd0\x40')])
def test_an_orientation_that_does_not_exist_is_upright(tmp_path, kind, value):
    """0, 9, a byte, a text, a negative number, 6.5."""
    block = exif_block((ORIENTATION, kind, len(value) if kind in (1, 2) else 1, value))
    for content in (jpeg(PICTURE, jpeg_segment(0xe1, block)), png(PICTURE, png_chunk(b'eXIf', block[6:])),
                    saved(PICTURE, 'WEBP', exif=block, quality=95),
                    tiff(PICTURE, (48, 32), 8, channels=3, entries=[(ORIENTATION, kind, 1, value)])):
        assert_upright(opened(tmp_path, content))
        assert_upright(opened(tmp_path, without_metadata(content)))


@pytest.mark.parametrize('block', [b'', b'II', b'MM\0*\0\0\0\x08', b'II*\0\xff\xff\xff\xff', b'II+\0\x08\0\0\0',
                                   bytes(30), b'II*\0\x08\0\0\0\xff\xff', bytes(range(200))], ids=range(8))
def test_a_damaged_block_is_upright(tmp_path, block):
    for content in (jpeg(PICTURE, jpeg_segment(0xe1, b'Exif\0\0' + block)), png(PICTURE, png_chunk(b'eXIf', block)),
                    saved(PICTURE, 'WEBP', exif=block, quality=95)):
        assert_upright(opened(tmp_path, content))


def test_any_bytes_in_a_block_refuse_no_image(tmp_path):
    """200 blocks, each with some bytes changed; the image may come turned, but has its colours."""
    rng = random.Random(0)
    whole = exif_block(*tags_of(6, ODD_TAGS))[6:] + bytes(range(200))
    colours = sorted(PICTURE[y, x].tolist() for x, y in CORNERS)
    for number in range(200):
        block = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            place = min(int(rng.expovariate(0.02)), len(block) - 4)
            new = rng.choice((b'\xff\xff\xff\xff', bytes(4), b'\7', rng.randbytes(2)))
            block[place:place + len(new)] = new
        block = bytes(block[:rng.choice((None, None, rng.randrange(len(block))))])
        contents = [png(PICTURE, png_chunk(b'eXIf', block)),
                    saved(PICTURE, 'WEBP', exif=block, lossless=True),
                    tiff(PICTURE, (48, 32), 8, channels=3, entries=[
                        (rng.randrange(340, 40_000), *struct.unpack('<HL4s', block.ljust(14)[:10]))])]
        pixels = np.asarray(opened(tmp_path, contents[number % 3]))
        assert sorted(pixels[y, x].tolist() for x, y in CORNERS) == colours


# ---- what else nobody reads --------------------------------------------------------------------------------------

BOMB = zlib.compress(bytes(3 * 2 ** 20), 9)
WRONG_SUM = png_chunk(b'tEXt', b'Comment\0text')[:-4] + b'oops'
ODD_CHUNKS = {
    'profile of 3 MiB': png_chunk(b'iCCP', b'x\0\0' + BOMB), 'text of 3 MiB': png_chunk(b'zTXt', b'x\0\0' + BOMB),
    'international text of 3 MiB': png_chunk(b'iTXt', b'x\0\1\0\0\0' + BOMB),
    'XMP of 3 MiB': png_chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + BOMB), 'wrong sum': WRONG_SUM,
    'profile of another method': png_chunk(b'iCCP', b'x\0\1abc'), 'profile without a name': png_chunk(b'iCCP', b'x'),
    'text of another method': png_chunk(b'zTXt', b'x\0\1abc'), 'short gamma': png_chunk(b'gAMA', b'\0'),
    'short colours': png_chunk(b'cHRM', b'\0'), 'short intent': png_chunk(b'sRGB', b''),
    'short resolution': png_chunk(b'pHYs', b'\0'), 'short animation': png_chunk(b'acTL', b'\0'),
    'frame out of order': png_chunk(b'fcTL', struct.pack('>IIIIIHHBB', 9, 48, 32, 0, 0, 1, 1, 0, 0)),
    'wrong sum of bits': png_chunk(b'sBIT', b'\5\5\5')[:-4] + b'oops', 'no name': png_chunk(b'12 4', b'')}


@pytest.mark.parametrize('chunk', ODD_CHUNKS.values(), ids=ODD_CHUNKS)
def test_chunks_of_a_png_that_nobody_reads(tmp_path, chunk):
    for orientation in (1, 6):
        eXIf = png_chunk(b'eXIf', exif_block(*tags_of(orientation))[6:])
        content = png(STORED[orientation], chunk, eXIf)
        assert_upright(opened(tmp_path, content))
        content = png(STORED[orientation], eXIf)
        assert_upright(opened(tmp_path, content[:-12] + chunk + content[-12:]))


@pytest.mark.parametrize('mode, chunk', [
    ('L', png_chunk(b'tRNS', b'\0')), ('RGB', png_chunk(b'tRNS', bytes(5))), ('P', png_chunk(b'tRNS', bytes(300))),
    ('P', png_chunk(b'tRNS', b'\0')[:-4] + b'oops'), ('RGBA', png_chunk(b'tRNS', b'')[:-4] + b'oops')],
    ids=['short', 'short colour', 'long', 'wrong sum', 'none needed'])
def test_a_damaged_transparency_of_a_png_is_none(tmp_path, mode, chunk):
    file = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(file, 'PNG')
    content = file.getvalue()
    expected = np.asarray(opened(tmp_path, content))
    place = content.index(b'IDAT') - 4
    assert np.array_equal(opened(tmp_path, content[:place] + chunk + content[place:]), expected)


def test_texts_of_a_png_that_would_be_gigabytes(tmp_path):
    """300 times 16 MiB, of two kinds; and one that may state the orientation."""
    bomb = zlib.compress(bytes(2 ** 24), 9)
    chunks = [png_chunk(b'zTXt', b'x\0\0' + bomb), png_chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + bomb)] * 150
    content = png(PICTURE, *chunks)
    tracemalloc.start()
    try:
        assert_upright(opened(tmp_path, content))
        assert tracemalloc.get_traced_memory()[1] < 2 ** 26
    finally:
        tracemalloc.stop()


def test_many_small_texts_of_a_png(tmp_path):
    """Each of them within Pillow's limit, all together above it."""
    text = png_chunk(b'zTXt', b'x\0\0' + zlib.compress(bytes(2 ** 20 - 1), 9))
    assert_upright(opened(tmp_path, png(PICTURE, *[text] * 70)))


ODD_SEGMENTS = {
    'short JFIF': jpeg_segment(0xe0, b'JFIF\0'), 'short profile': jpeg_segment(0xe2, b'ICC_PROFILE\0'),
    'profile in 9 parts': jpeg_segment(0xe2, b'ICC_PROFILE\0\1\x09'), 'short Adobe': jpeg_segment(0xee, b'Adobe'),
    'Photoshop': jpeg_segment(0xed, b'Photoshop 3.0\x008BIM\3\xed'), 'MPF': jpeg_segment(0xe2, b'MPF\0II*\0\xff'),
    'MPF of 9 images': jpeg_segment(0xe2, b'MPF\0' + exif_block((0xb001, 4, 1, b'\x09\0\0\0'))[6:]),
    'resolution without a number': jpeg_segment(0xe1, exif_block(
        (0x11a, 2, 1, b'\0'), (0x128, 3, 1, b'\2\0'))),
    'XMP of binary data': jpeg_segment(0xe1, b'http://ns.adobe.com/xap/1.0/\0' + bytes(range(256))),
    'comment': jpeg_segment(0xfe, b'\xff\xd8\xff\xda')}


@pytest.mark.parametrize('segment', ODD_SEGMENTS.values(), ids=ODD_SEGMENTS)
def test_segments_of_a_jpeg_that_nobody_reads(tmp_path, segment):
    for orientation in (1, 6):
        exif = jpeg_segment(0xe1, exif_block(*tags_of(orientation)))
        plain = jpeg(STORED[orientation])
        content = plain[:20] + exif + segment + plain[20:]  # behind JFIF
        assert_upright(opened(tmp_path, content))


def test_large_blocks_of_a_jpeg(tmp_path):
    """Of 4 MiB each, in segments of 64 kB."""
    part = bytes(65_000)
    profile = b''.join(jpeg_segment(0xe2, b'ICC_PROFILE\0' + bytes([number + 1, 64]) + part) for number in range(64))
    exif = jpeg_segment(0xe1, exif_block(*tags_of(6))) + jpeg_segment(0xe1, b'Exif\0\0' + part) * 64
    assert_upright(opened(tmp_path, jpeg(STORED[6], exif, profile)))


@pytest.mark.parametrize('order, big', [('<', False), ('>', False), ('<', True)])
@pytest.mark.parametrize('orientation', [1, 6])
def test_tags_of_every_kind_of_tiff(tmp_path, order, big, orientation):
    pixels = STORED[orientation]
    tags = [(tag, kind, count, value) for tag, kind, count, value in ODD_TAGS if tag != 0x100]
    tags.append((ORIENTATION, 3, 1, struct.pack(f'{order}H', orientation)))
    assert_upright(opened(tmp_path, tiff(pixels, pixels.shape[1::-1], 8, channels=3, entries=tags, order=order,
                                         big=big)))


@pytest.mark.parametrize('orientation', [1, 6])
def test_chunks_of_a_webp_that_end_elsewhere(tmp_path, orientation):
    """Too long, too short, cut off; and one too many."""
    content = saved(STORED[orientation], 'WEBP', exif=exif_block(*tags_of(orientation)), xmp=b'text', quality=95)
    place = content.index(b'XMP ') + 4
    for length in (0, 2, 9, 2 ** 31 - 1):
        assert_upright(opened(tmp_path, content[:place] + struct.pack('<I', length) + content[place + 4:]))
    assert_upright(opened(tmp_path, content[:-2]))
    assert_upright(opened(tmp_path, content[:-8]))
    assert_upright(opened(tmp_path, content[:4] + b'\xff\xff\xff\x7f' + content[8:]))


def test_a_png_that_ends_within_a_text(tmp_path):
    for orientation in (1, 6):
        content = png(STORED[orientation], png_chunk(b'eXIf', exif_block(*tags_of(orientation))[6:]))
        assert_upright(opened(tmp_path, content[:-12] + png_chunk(b'tEXt', b'Comment\0text')[:15]))


def test_what_photoshop_remembers(tmp_path):
    remembered = b'8BIM\4\x0f\0\0\xff\xff\xff\xff' + b'oops' * 3
    header = b'8BPS' + struct.pack('>H6xHIIHHI', 1, 3, 32, 48, 8, 3, 0)
    pixels = struct.pack('>IH', 0, 0) + PICTURE.transpose(2, 0, 1).tobytes()
    assert_upright(opened(tmp_path, header + struct.pack('>I', len(remembered)) + remembered + pixels))


def test_a_resolution_of_jpeg_2000(tmp_path):
    content = saved(PICTURE, 'JPEG2000')
    place = content.index(b'jp2h') - 4
    length = int.from_bytes(content[place:place + 4], 'big')
    resolution = struct.pack('>I4sI4s', 26, b'res ', 2 ** 32 - 1, b'resc') + bytes(10)
    longer = struct.pack('>I', length + len(resolution))
    content = (content[:place] + longer + content[place + 4:place + length] + resolution + content[place + length:])
    assert_upright(opened(tmp_path, content))


def test_pixels_stay_as_they_are(tmp_path):
    """What is cut out is not of the pixels: all kinds of compression and colours."""
    picture = Image.fromarray(PICTURE)
    cases = [('JPEG', 'RGB', {}), ('JPEG', 'L', {}), ('JPEG', 'CMYK', {}), ('JPEG', 'RGB', {'progressive': True}),
             ('PNG', 'P', {}), ('PNG', 'P', {'transparency': 1}), ('PNG', 'RGBA', {}), ('PNG', '1', {}),
             ('WEBP', 'RGB', {}), ('WEBP', 'RGBA', {'lossless': True}),
             *[('TIFF', mode, {'compression': compression}) for mode in ('RGB', 'L', 'P', 'CMYK', 'RGBA')
               for compression in (None, 'tiff_lzw', 'tiff_adobe_deflate', 'packbits')],
             ('TIFF', 'RGB', {'compression': 'jpeg'}), ('TIFF', '1', {'compression': 'group4'}),
             ('TIFF', '1', {'compression': 'group3'}), ('TIFF', 'L', {'big_tiff': True})]
    for kind, mode, options in cases:
        file = io.BytesIO()
        more = {'JPEG': {'comment': 'text'}, 'WEBP': {'xmp': b'text'}}.get(kind, {'dpi': (72, 72)})
        picture.convert(mode).save(file, kind, **more, **options)
        content = file.getvalue()
        bare = without_metadata(content)
        assert bare != content, (kind, mode, options)
        expected = np.asarray(opened(tmp_path, content))
        assert np.array_equal(np.asarray(opened(tmp_path, bare)), expected), (kind, mode, options)


def test_content_of_other_kinds_comes_back():
    for content in (b'', b'hello', b'\xff\xd8', b'\xff\xd8\xff', b'II*\0', b'\x89PNG\r\n\x1a\n', saved(PICTURE, 'GIF')):
        assert without_metadata(content) == content


# ---- formats that need another package ---------------------------------------------------------------------------

HEIC = struct.pack('>I', 24) + b'ftypheic\0\0\0\0mif1heic' + bytes(100)
AVIF = struct.pack('>I', 24) + b'ftypmif1\0\0\0\0mif1avif' + bytes(100)


@pytest.mark.parametrize('name, content, words', [
    ('x.heic', HEIC, 'HEIF needs another package: python -m pip install pillow-heif'),
    ('x.jpg', HEIC, 'HEIF needs another package: python -m pip install pillow-heif'),
    ('x.HEIF', b'anything', 'HEIF needs another package: python -m pip install pillow-heif'),
    ('x.png', AVIF, 'AVIF needs a newer Pillow: python -m pip install --upgrade pillow'),
    ('x.avif', b'anything', 'AVIF needs a newer Pillow: python -m pip install --upgrade pillow'),
    ('x.jpg', b'anything', 'the content is no image, or of a kind that Pillow cannot read')])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, content, words):
    monkeypatch.setattr(images, 'FORMATS', [kind for kind in images.FORMATS if kind not in ('HEIF', 'AVIF')])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(images.BadImage) as error:
        open_image(tmp_path / name)
    assert str(error.value) == f'{tmp_path / name}: not a readable image ({words})'
