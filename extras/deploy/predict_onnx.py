"""Classify images with a file that `python -m extras.deploy` wrote: onnxruntime, Pillow and NumPy are enough.

    python extras/deploy/predict_onnx.py best_pictures.onnx photo.jpg another.jpg

Copy this file alone to wherever it is needed. open_image and fit prepare an image as the project does, and deploy
measures the ONNX files through them. Only damaged metadata, which test.py passes over, can make an image unreadable.
The exit code is 0 where all images could be read, 3 where some could not.
"""
import json
import struct
import sys

import numpy as np
from PIL import Image

try:
    import pillow_heif  # the photographs of iPhones
    pillow_heif.register_heif_opener()
except ImportError:
    pass

MAX_PIXELS = 120_000_000  # of an image that is opened at all
MOST_PIXELS = 4_000_000   # of an image that the ONNX file resizes itself, for which it takes 50 bytes a pixel
FORMATS = ['AVIF', 'BMP', 'DDS', 'DIB', 'GIF', 'HEIF', 'ICNS', 'ICO', 'IM', 'JPEG', 'JPEG2000', 'PCX', 'PNG', 'PPM',
           'PSD', 'QOI', 'SGI', 'TGA', 'TIFF', 'WEBP', 'XBM', 'XPM']  # others may run another program, such as EPS
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # by the orientation of EXIF
ORIENTATION = 274  # tags of EXIF and TIFF
BITS = 258
LARGEST = 281
PLANES = 284
KIND = 339

Image.init()
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


def open_image(file, at_least, bit_depth=None):
    """Return an image, a path or an open file, as RGB: turned as its EXIF says, deep grey scaled, transparency on
    white. A large JPEG comes smaller, but with no side below `at_least` pixels. `bit_depth` is that of deep grey, None
    for what the file says. Raises OSError, ValueError and others for what is no image.
    """
    with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
        tags = image.tag_v2 if image.format == 'TIFF' else {}
        if image.width * image.height > MAX_PIXELS:
            raise OSError(f'{image.width}x{image.height}: too many pixels')
        if image.tile[:1] and image.tile[0][0] == 'raw' and tags.get(PLANES) == 2 and tags.get(BITS, (1,))[0] == 16:
            raise OSError('16-bit colours in separate planes, which Pillow misreads')
        image.draft(None, (at_least, at_least))
        is_deep = image.mode.startswith(('I', 'F'))
        significant = significant_bits(image.fp) if is_deep and image.format == 'PNG' else None
        image.load()
        turned = turn(image)
        if is_deep:
            turned = Image.fromarray(scale_grey(np.asarray(turned), tags, significant, bit_depth))
        if turned.has_transparency_data:
            turned = Image.alpha_composite(Image.new('RGBA', turned.size, 'white'), turned.convert('RGBA'))
        return turned.convert('RGB')


def turn(image):
    """Return an image turned as its EXIF or XMP says. What cannot be read turns nothing."""
    try:
        orientation = stated_orientation(image.info.get('exif', b'')) or image.getexif().get(ORIENTATION)
    except Exception:  # of a dozen types
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def stated_orientation(exif):
    """Return the orientation in an EXIF block, or None. Pillow stops reading at the first fault ahead of it."""
    block = exif.removeprefix(b'Exif\0\0')
    order = {b'II': '<', b'MM': '>'}.get(block[:2])
    if order is None:
        return None
    [start] = struct.unpack_from(order + 'L', block, 4)
    [number] = struct.unpack_from(order + 'H', block, start)
    for place in range(start + 2, start + 2 + 12 * number, 12):
        tag, kind, count, value = struct.unpack_from(order + 'HHLH', block, place)
        if (tag, kind, count) == (ORIENTATION, 3, 1):
            return value
    return None


def significant_bits(file):
    """Return the significant bits that a PNG states in its chunk sBIT, or None. Pillow has read it up to the pixels."""
    pixels = file.tell()
    bits = None
    file.seek(8)
    while file.tell() < pixels:
        length, name = struct.unpack('>I4s', file.read(8))
        content = file.read(length + 4)
        if name == b'sBIT':
            bits = content[0]
    file.seek(pixels)
    return bits


def scale_grey(values, tags, significant, bit_depth):
    """Return grey values (H, W) deeper than 8 bits as uint8. `tags` are a TIFF's, `significant` a PNG's bits."""
    if values.dtype.kind == 'f':
        values = np.nan_to_num(values)
        white = 1 if values.max() <= 1 else 255
        if bit_depth:
            white = 2 ** bit_depth - 1
        return (values.clip(0, white) * (255 / white)).round().astype(np.uint8)
    if BITS in tags and values.dtype == np.int32 and tags.get(KIND, (1,))[0] == 1:
        values = values.view(np.uint32)
    bits = 16
    if BITS in tags:
        bits = min(tags[BITS][0], 16)
        for depth in range(8, 16):
            if tags.get(LARGEST) == (2 ** depth - 1,):
                bits = depth
    elif significant in range(8, 16):
        is_scaled = values.max() >= 2 ** significant or (values % 2 ** (16 - significant)).max() <= 1
        bits = 16 if is_scaled else significant  # writers should scale
    bits = bit_depth or bits
    levels = 2 ** min(bits, 16)
    table = (np.arange(levels) * 255 // (levels - 1)).astype(np.uint8)
    return table.take(values >> max(bits - 16, 0), mode='clip')


def fit(image, preprocessing):
    """Return what the ONNX file takes of an RGB image: all of it or, where training had a CROP, what that leaves."""
    height, width = preprocessing['img_size']
    crop = preprocessing['crop']
    resampling = Image.Resampling[preprocessing['interpolation'].upper()]
    if crop is None:
        is_large = image.width * image.height > MOST_PIXELS
        return image.resize((width, height), resampling) if is_large else image
    longest = 50 * min(image.size)
    image = middle(image, min(image.width, longest), min(image.height, longest))
    ratio = min(image.height / int(height / crop), image.width / int(width / crop))
    image = image.resize((round(image.width / ratio), round(image.height / ratio)), resampling)
    return middle(image, width, height)


def middle(image, width, height):
    """Return the middle of an image, with a black border where the image is smaller."""
    left, top = (round(rest / 2) if rest > 0 else -(-rest // 2)
                 for rest in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


def prepare(file, preprocessing, bit_depth=None):
    """Return an image, a path or an open file, as the ONNX file takes it: uint8 (1, height, width, 3)."""
    at_least = int(2 * max(preprocessing['img_size']) / min(1, preprocessing['crop'] or 1))
    image = open_image(file, at_least, bit_depth)
    return np.asarray(fit(image, preprocessing))[None]


def printable(text):
    """Return the text with escapes for invisible characters, such as terminal codes."""
    return ''.join(character if character.isprintable() else character.encode('unicode_escape').decode()
                   for character in text)


def main(model, paths):
    """Print the class of each image. Return the exit code."""
    import onnxruntime  # here, so that open_image and fit can be imported without it

    try:
        session = onnxruntime.InferenceSession(model)
    except Exception as error:  # onnxruntime's are of a dozen types
        print(printable(f'{model}: onnxruntime cannot read it ({error})'), file=sys.stderr)
        return 2
    metadata = session.get_modelmeta().custom_metadata_map
    if session.get_inputs()[0].name != 'pictures' or 'bit_depth' not in metadata:
        print(f'{printable(model)}: give best_pictures.onnx or best_int8.onnx of `python -m extras.deploy`',
              file=sys.stderr)
        return 2
    classes = json.loads(metadata['classes'])
    temperature = json.loads(metadata['temperature'])
    preprocessing = json.loads(metadata['preprocessing'])
    bit_depth = json.loads(metadata['bit_depth'])
    code = 0
    for path in paths:
        try:
            pictures = prepare(path, preprocessing, bit_depth)
        except Exception as error:  # Pillow's are of a dozen types
            print(printable(f'{path}: not a readable image ({error})'))
            code = 3
            continue
        logits = session.run(None, {'pictures': pictures})[0][0] / temperature
        exponentials = np.exp(logits - logits.max())
        probabilities = exponentials / exponentials.sum()
        print(printable(f'{path}: {classes[probabilities.argmax()]} ({probabilities.max():.1%})'))
    return code


if __name__ == '__main__':
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.stdout.reconfigure(errors='backslashreplace')
    sys.exit(main(sys.argv[1], sys.argv[2:]))
