"""Draws the sample data set: 12 species of crop and weed seedlings on soil, seen from above.

    python data1/draw.py        # half a minute on one core; (re)writes data1/<species>/001.jpg ... 030.jpg

The pictures are drawings, not photographs: every leaf is a curved sheet computed from the table SPECIES below, every
pebble a random polygon. The folder names are those of the Plant Seedlings data set (Aarhus University and SDU), so that
the four scripts run on this sample as they do on the real photographs. What differs between the species is their
anatomy alone; greens, soils, light, blur and noise are drawn at random from the same ranges for all of them.
A picture depends on (SEED, species, number) only, so that any one can be redrawn by itself.

Needs numpy and Pillow. Licence of script and pictures: Apache-2.0, like the repository.
"""
import colorsys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# output
IMAGES_PER_CLASS = 30
SIZE = 192         # pixels, side of a picture
QUALITY = 86       # of the JPEGs; 95 doubles the size of the folder
SEED = 42
ROOT = Path(__file__).resolve().parent

# drawing
OVERSAMPLE = 2     # everything is drawn this much larger and averaged down: smooth edges
CANVAS = SIZE * OVERSAMPLE
UNIT = CANVAS / 2  # pixels per unit of length in SPECIES: 1 reaches from the centre to the edge of the picture
ROWS, COLUMNS = 41, 11  # facets of a leaf, along and across


@dataclass(frozen=True)
class Leaf:
    """One kind of leaf of a species: how many, how they stand round the shoot, and their outline."""
    count: tuple            # fewest and most of them
    length: float           # of the blade without its stalk, in units of half the picture
    width: float            # at the widest, as a share of the length
    stalk: float = 0.0      # length of the stalk, same unit as length
    start: float = 0.0      # direction of the first leaf, in turns from the plant's own axis
    turn: float = 0.0       # from one leaf to the next, in turns; 0: spread evenly (2 opposite, 4 a cross, 6 a whorl)
    form: str = 'sheet'     # sheet: along a midrib; palm: round, lobed like a hand; feather: finely divided
    peak: float = 0.5       # where along the midrib the leaf is widest
    base: float = 0.6       # shape below the peak: 0.1 strap, 0.5 round, 1 straight taper, 2 a slender stalk-like foot
    tip: float = 0.6        # and above it: 0.1 strap, 0.5 round, 1 pointed, 2 drawn out
    teeth: int = 0          # teeth or lobes on each side
    depth: float = 0.0      # of the teeth, as a share of the width
    notch: float = 0.0      # of the tip, as a share of the length: heart- and kidney-shaped cotyledons
    bend: float = 0.15      # radians, how much the midrib may curve
    rib: float = 1.0        # strength of the midrib and veins
    veins: int = 6          # side veins; 0: parallel veins, as grasses have


SPECIES = {
    # Grass, a single slim shoot: two long, narrow, pointed blades leaning apart.
    'Black-grass': (Leaf((2, 2), 1.0, 0.115, turn=0.38, peak=0.3, base=0.4, tip=0.9, bend=0.7, rib=0.5, veins=0),),
    # Two broad kidney-shaped cotyledons with a notched tip; the first true leaves oblong and coarsely toothed.
    'Charlock': (Leaf((2, 2), 0.40, 1.40, stalk=0.30, peak=0.6, base=0.6, tip=0.3, notch=0.35, rib=0.4),
                 Leaf((2, 2), 0.62, 0.46, stalk=0.08, start=0.25, peak=0.6, base=0.9, tip=0.6, teeth=5, depth=0.3)),
    # Two oval cotyledons on stalks; above them a star: whorl of six lanceolate leaves without stalks.
    'Cleavers': (Leaf((2, 2), 0.42, 0.68, stalk=0.46, start=0.08, peak=0.5, base=0.5, tip=0.35, notch=0.08, rib=0.4),
                 Leaf((6, 6), 0.56, 0.25, peak=0.6, base=0.9, tip=0.7, bend=0.1)),
    # Opposite pairs, each crossing the last, of small egg-shaped, pointed leaves on long thin stalks.
    'Common Chickweed': (Leaf((2, 2), 0.40, 0.66, stalk=0.54, peak=0.36, base=0.5, tip=1.1, bend=0.1),
                         Leaf((2, 2), 0.38, 0.70, stalk=0.44, start=0.25, peak=0.36, base=0.5, tip=1.1, bend=0.1),
                         Leaf((2, 2), 0.22, 0.70, stalk=0.07, start=0.12, peak=0.36, base=0.5, tip=1.1)),
    # Grass of medium width: four long blades from one shoot, the youngest short.
    'Common wheat': (Leaf((3, 3), 1.02, 0.135, peak=0.35, base=0.35, tip=0.8, bend=0.9, rib=0.7, veins=0),
                     Leaf((1, 1), 0.60, 0.150, start=0.17, peak=0.35, base=0.35, tip=0.8, bend=0.6, rib=0.7, veins=0)),
    # Goosefoot: four diamond-shaped, toothed true leaves in a cross, over two narrow cotyledons.
    'Fat Hen': (Leaf((2, 2), 0.58, 0.19, stalk=0.14, start=0.125, peak=0.5, base=0.3, tip=0.4, rib=0.4),
                Leaf((4, 4), 0.56, 0.66, stalk=0.18, peak=0.42, base=1.1, tip=1.1, teeth=5, depth=0.14)),
    # Grass with a tuft of many hair-thin blades.
    'Loose Silky-bent': (Leaf((11, 14), 0.95, 0.040, peak=0.3, base=0.3, tip=0.7, bend=0.8, rib=0.0, veins=0),),
    # Two broad arching blades with a strong pale midrib and a third rolled out of the whorl between them.
    'Maize': (Leaf((2, 2), 0.92, 0.35, turn=0.44, peak=0.5, base=0.5, tip=0.9, bend=0.6, rib=2.0, veins=0),
              Leaf((1, 1), 0.58, 0.36, start=0.22, peak=0.5, base=0.5, tip=0.9, bend=0.4, rib=2.0, veins=0)),
    # Two small oval cotyledons; feathery leaves, twice divided into threads.
    'Scentless Mayweed': (Leaf((2, 2), 0.26, 0.55, stalk=0.04, start=0.1, peak=0.55, tip=0.4, rib=0.4),
                          Leaf((4, 5), 0.88, 0.52, form='feather', teeth=6, peak=0.55, bend=0.4)),
    # Rosette of slender-footed leaves cut into deep lobes, the oldest longest.
    'Shepherds Purse': (Leaf((5, 5), 0.84, 0.32, start=0.05, peak=0.75, base=0.8, tip=0.5, teeth=4, depth=0.72),
                        Leaf((3, 3), 0.44, 0.36, start=0.15, peak=0.75, base=0.9, tip=0.5, teeth=3, depth=0.5)),
    # Round leaves cut like a hand into lobes, each on a long thin stalk; a young one in the middle.
    'Small-flowered Cranesbill': (Leaf((3, 3), 0.54, 1.0, stalk=0.54, form='palm', teeth=7, depth=0.36, bend=0.3),
                                  Leaf((1, 1), 0.28, 1.0, stalk=0.08, start=0.15, form='palm', teeth=5, depth=0.4)),
    # Two long strap-shaped cotyledons; across them two glossy, egg-shaped first leaves on stout stalks.
    'Sugar beet': (Leaf((2, 2), 0.92, 0.19, peak=0.6, base=0.7, tip=0.35, bend=0.35, rib=0.5),
                   Leaf((2, 2), 0.38, 0.64, stalk=0.12, start=0.25, peak=0.5, base=0.5, tip=0.5, rib=1.6)),
}


# ---------------------------------------------------------------- soil

def random_colour(rng, hue, saturation, value):
    """RGB (3,), 0..255, drawn evenly between the given (low, high) of each."""
    return 255 * np.array(colorsys.hsv_to_rgb(*(rng.uniform(low, high) for low, high in (hue, saturation, value))))


def smooth_noise(rng, cells):
    """(CANVAS, CANVAS) noise, about -1..1, whose blobs are CANVAS / cells pixels wide."""
    noise = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(noise.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC))


def pebble(pen, rng, colour, light, largest):
    """One grain with its shadow and its lit side."""
    radius = largest * rng.uniform(0.3, 1) ** 2 + 1.5
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    rim = radius * rng.uniform(0.75, 1.1, (9, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
    rim *= rng.uniform(0.7, 1.2, 2)
    centre = rng.uniform(0, CANVAS, 2)
    toward = np.array([np.cos(light), np.sin(light)]) * radius
    body = colour * rng.uniform(0.65, 1.35) * rng.uniform(0.92, 1.08, 3)
    for shift, scale, shade in ((-0.3, 1.1, 0.45), (0, 1, 1), (0.2, 0.6, 1.14)):
        fill = tuple((body * shade).clip(0, 255).astype(int).tolist())
        pen.polygon((centre + toward * shift + rim * scale).ravel().tolist(), fill=fill)


def soil(rng, light):
    """RGB picture of bare ground: noise on several scales, then grains, from fine earth to gravel."""
    colour = random_colour(rng, (0.04, 0.14), (0.1, 0.5), (0.24, 0.54))
    noise = sum(weight * smooth_noise(rng, cells) for cells, weight in ((3, 0.16), (9, 0.12), (40, 0.16), (150, 0.22)))
    ground = (colour * (0.85 + noise[..., None])).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(ground)
    pen = ImageDraw.Draw(picture)
    largest = rng.uniform(5, 15)  # pixels of the canvas
    for _ in range(int(rng.uniform(0.3, 0.9) * CANVAS ** 2 / largest ** 2)):
        pebble(pen, rng, colour, light, largest)
    return picture


# ---------------------------------------------------------------- leaves

def curve(start, heading, length, bend, rows=ROWS):
    """A line that sets out from start and turns evenly by bend: points (rows, 2) and directions (rows,)."""
    angles = heading + bend * np.linspace(0, 1, rows)
    steps = length / (rows - 1) * np.stack([np.cos(angles), np.sin(angles)], 1)
    return start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps[:-1], 0)]), angles


def ribbon(points, angles, half, columns=3):
    """Sheet (rows, columns, 2) that reaches half (rows,) pixels to either side of a line."""
    normals = np.stack([-np.sin(angles), np.cos(angles)], 1)
    across = np.linspace(-1, 1, columns)
    return points[:, None] + (half[:, None] * across)[..., None] * normals[:, None]


def scallops(phase, depth):
    """A factor 1 - depth .. 1 for the rim of a leaf: round lobes, one per unit of phase, with narrow cuts between."""
    return 1 - depth * (1 - np.abs(np.sin(np.pi * phase)) ** 0.7)


def outline(leaf):
    """Half width (ROWS,) along the midrib, 1 at the widest."""
    t = np.linspace(0, 1, ROWS)
    below, above = np.sin(np.pi / 2 * t / leaf.peak), np.sin(np.pi / 2 * (1 - t) / (1 - leaf.peak))
    half = np.where(t < leaf.peak, below.clip(0) ** leaf.base, above.clip(0) ** leaf.tip)
    return half * scallops(t * leaf.teeth, leaf.depth)


def paint(layer, sheet, tone, green):
    """Fills the facets of sheet (rows, columns, 2) with green, each as bright as tone (rows, columns) says."""
    pen = ImageDraw.Draw(layer)
    corners = np.stack([sheet[:-1, :-1], sheet[:-1, 1:], sheet[1:, 1:], sheet[1:, :-1]], 2).reshape(-1, 8)
    tone = (tone[:-1, :-1] + tone[1:, 1:]).reshape(-1, 1) / 2
    colours = np.concatenate([(tone * green).clip(0, 255), np.full_like(tone, 255)], 1).astype(int)
    for corner, colour in zip(corners.tolist(), colours.tolist(), strict=True):
        pen.polygon(corner, fill=tuple(colour))


def draw_line(layer, points, angles, thick, green, tone=1.0):
    """A stalk, rib or thread: thick pixels at its foot, half as much at its end."""
    half = np.linspace(thick / 2, thick / 4, len(points))
    shade = np.broadcast_to(tone * np.array([1.08, 0.98, 0.84]), (len(points), 3))
    paint(layer, ribbon(points, angles, half), shade, green)


def draw_sheet(layer, rng, leaf, start, heading, length, light, green):
    """A leaf along a midrib: grass blades, cotyledons, toothed and lobed leaves."""
    points, angles = curve(start, heading, length, rng.uniform(-1, 1) * leaf.bend)
    half = outline(leaf) * length * leaf.width / 2 * rng.uniform(0.9, 1.1)
    sheet = ribbon(points, angles, half, COLUMNS)
    t, across = np.linspace(0, 1, ROWS)[:, None], np.linspace(-1, 1, COLUMNS)
    forward = np.stack([np.cos(angles), np.sin(angles)], 1)[:, None]
    lobes = leaf.notch * np.abs(across) * t ** 2 * half[:, None] / half.max() + rng.uniform(-0.03, 0.03) * across
    sheet += forward * (length * lobes)[..., None]            # beside the notched tip; and no leaf is quite symmetrical
    facing = np.cos(angles + np.pi / 2 - light)[:, None]      # the half turned to the light is brighter
    tone = 0.86 + 0.2 * t + 0.13 * facing * np.sign(across) * np.abs(across) ** 0.5 - 0.07 * across ** 2
    tone = tone + 0.05 * leaf.rib * np.cos(2 * np.pi * (leaf.veins * t - 1.4 * np.abs(across)))  # slanting forward
    paint(layer, sheet, tone, green)
    if leaf.rib:
        draw_line(layer, points[:-2], angles[:-2], (1.2 + 0.018 * length) * leaf.rib ** 0.5, green, 1 + 0.22 * leaf.rib)


def draw_palm(layer, rng, leaf, start, heading, length, light, green):
    """A round leaf, its lobes spread like a hand about the end of the stalk, with a slit towards the stalk."""
    radius = length / 2
    turn = np.linspace(-np.pi * 0.96, np.pi * 0.96, 97)
    phase = (turn / np.pi / 0.96 + 1) / 2 * leaf.teeth
    rim = radius * scallops(phase, leaf.depth) * (1 + 0.12 * np.cos(turn)) * rng.uniform(0.95, 1.05)
    centre = start + radius * 0.55 * np.array([np.cos(heading), np.sin(heading)])
    rays = np.stack([np.cos(heading + turn), np.sin(heading + turn)], 1)
    r = np.linspace(0.02, 1, 9)[:, None]
    sheet = centre + (r * rim)[..., None] * rays
    veins = 0.16 * np.abs(np.sin(np.pi * phase)) ** 6 * (1 - r)
    tone = 0.88 + 0.12 * r + 0.13 * r * np.cos(heading + turn - light) + veins
    paint(layer, sheet, tone, green)


def draw_feather(layer, rng, leaf, start, heading, length, light, green):
    """A leaf divided twice into threads, as in the mayweeds."""
    points, angles = curve(start, heading, length, rng.uniform(-1, 1) * leaf.bend)
    thick = 0.026 * UNIT
    draw_line(layer, points, angles, thick * 1.2, green)
    half = outline(Leaf((1, 1), 1, 1, peak=leaf.peak, base=0.5, tip=0.5)) * length * leaf.width / 2
    for row in np.linspace(6, ROWS - 4, leaf.teeth).astype(int):
        for side in (-1, 1):
            tone = 0.95 + 0.12 * np.cos(angles[row] + side - light)
            reach, toward = half[row] * rng.uniform(0.9, 1.15), angles[row] + side * rng.uniform(0.8, 1.0)
            twig, _ = curve(points[row], toward, reach, -side * 0.3, 7)
            draw_line(layer, *curve(points[row], toward, reach, -side * 0.3, 7), thick, green, tone)
            for fork in (-0.6, 0.6):
                draw_line(layer, *curve(twig[3], toward + fork, reach * 0.45, 0, 5), thick * 0.9, green, tone)


FORMS = {'sheet': draw_sheet, 'palm': draw_palm, 'feather': draw_feather}


# ---------------------------------------------------------------- plant and picture

def draw_leaf(rng, leaf, centre, heading, scale, light, green):
    """One leaf with its stalk on a layer of its own."""
    layer = Image.new('RGBA', (CANVAS, CANVAS))
    stalk = leaf.stalk * scale * rng.uniform(0.88, 1.12)
    length = leaf.length * scale * rng.uniform(0.9, 1.1)
    points, angles = curve(centre, heading, stalk + 1, rng.uniform(-0.25, 0.25), 9)
    green = green * rng.uniform(0.92, 1.08) + rng.normal(0, 3, 3)
    if leaf.stalk:
        draw_line(layer, points, angles, 0.05 * scale, green, 1.12)
    FORMS[leaf.form](layer, rng, leaf, points[-1], angles[-1], length, light, green)
    return layer


def plant(rng, kinds, light):
    """The layers of one plant, oldest leaf first: later ones lie on top."""
    green = random_colour(rng, (0.19, 0.32), (0.4, 0.7), (0.6, 0.88))
    centre = CANVAS / 2 + rng.uniform(-0.06, 0.06, 2) * UNIT
    scale = UNIT * rng.uniform(0.82, 1.05)
    axis = rng.uniform(0, 2 * np.pi)
    layers = []
    for leaf in kinds:
        count = rng.integers(leaf.count[0], leaf.count[1] + 1)
        for i in range(count):
            heading = axis + 2 * np.pi * (leaf.start + i * (leaf.turn or 1 / count)) + rng.normal(0, 0.12)
            layers.append(draw_leaf(rng, leaf, centre, heading, scale, light, green))
    return layers


def photograph(rng, picture):
    """What light and camera add: uneven light, exposure, contrast, white balance, blur and sensor noise."""
    picture = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    pixels = np.asarray(picture, np.float64)
    y, x = np.mgrid[-1:1:SIZE * 1j, -1:1:SIZE * 1j]
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.2)
    pixels *= (1 + slope * (x * np.cos(angle) + y * np.sin(angle)))[..., None]
    pixels *= rng.uniform(0.85, 1.2) * rng.uniform(0.93, 1.07, 3)
    middle = pixels.mean((0, 1))
    pixels = middle + (pixels - middle) * rng.uniform(0.85, 1.25)
    pixels += rng.normal(0, rng.uniform(1, 4), pixels.shape)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def draw(species, number):
    """The picture of that number, a SIZE x SIZE RGB image; the same at every call."""
    rng = np.random.default_rng((SEED, list(SPECIES).index(species), number))
    light = rng.uniform(0, 2 * np.pi)
    picture = soil(rng, light)
    shift = -0.035 * UNIT * np.array([np.cos(light), np.sin(light)])
    for layer in plant(rng, SPECIES[species], light):
        mask = layer.getchannel('A')
        shadow = mask.transform(mask.size, Image.Transform.AFFINE, (1, 0, -shift[0], 0, 1, -shift[1]))
        shadow = shadow.filter(ImageFilter.GaussianBlur(0.02 * UNIT)).point(lambda v: v * 0.55)
        picture.paste((12, 10, 8), mask=shadow)
        picture.paste(layer, mask=mask)
    return photograph(rng, picture)


def main():
    for species in SPECIES:
        folder = ROOT / species
        folder.mkdir(exist_ok=True)
        for number in range(1, IMAGES_PER_CLASS + 1):
            draw(species, number).save(folder / f'{number:03d}.jpg', quality=QUALITY)
        print(f'{species}: {IMAGES_PER_CLASS} pictures')


if __name__ == '__main__':
    main()
