"""Maps drawn over images."""
import numpy as np
import torch
from PIL import Image, ImageDraw

from common.reporting.plots import import_matplotlib

STRENGTH = 0.6     # of the colours over the image
TITLE_HEIGHT = 18  # pixels


def overlay(image: Image.Image, values: torch.Tensor) -> Image.Image:
    """Return an image with a map (h, w) of values from 0 on over it: yellow where they are largest, dark where 0."""
    matplotlib = import_matplotlib()
    shares = (values / values.max().clamp(min=1e-12)).numpy()
    smooth = Image.fromarray(np.uint8(255 * shares)).resize(image.size, Image.Resampling.BICUBIC)
    coloured = Image.fromarray(matplotlib.colormaps['inferno'](np.asarray(smooth), bytes=True)[..., :3])
    return Image.blend(image.convert('RGB'), coloured, STRENGTH)


def side_by_side(panels: dict[str, Image.Image]) -> Image.Image:
    """Return images of one size beside each other, {title in ASCII: image}."""
    width, height = next(iter(panels.values())).size
    sheet = Image.new('RGB', (len(panels) * width, height + TITLE_HEIGHT), 'white')
    draw = ImageDraw.Draw(sheet)
    for place, (title, image) in enumerate(panels.items()):
        sheet.paste(image, (place * width, TITLE_HEIGHT))
        draw.text((place * width + 4, 3), title, 'black')
    return sheet
