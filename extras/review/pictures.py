"""Pictures for a page, as large as the room allows."""
import base64
import io
from collections.abc import Callable, Iterable, Sequence

from PIL import Image

from common.runtime.machine import map_in_threads

PICTURE_SIDES = (512, 448, 384, 320, 256, 224, 192, 160, 128, 112, 96)  # pixels of the longer side, to choose from
USUAL = 0.15  # bytes of a photograph as JPEG, for each square pixel of its longer side
_QUALITY = 80
_SMALLEST = 16  # pixels

Open = Callable[[str, int], Image.Image]  # (name, least pixels of the shorter side) -> the image, or an exception


class Pictures:
    """Makes pictures of images, and keeps them: a page that is written again after an epoch needs many of them."""

    def __init__(self, open_image: Open):
        self.open_image = open_image
        self.made: dict[tuple[str, int], str] = {}  # by name and side
        self.shown: set[tuple[str, int]] = set()

    def of(self, names: Sequence[str], room: int) -> list[str]:
        """Return a JPEG in base64 for each image, '' for one that cannot be read; `room` bytes are enough for all."""
        if not names:
            return []
        most = room // len(names) * 3 // 4  # base64 needs four characters for three bytes
        side = choose_side(most)
        missing = sorted({name for name in names if not self.has(name, side, most)})
        for name, picture in zip(missing, self.draw(missing, side, most), strict=True):
            self.made[name, side] = picture
        self.shown.update((name, side) for name in names)
        return [self.made[name, side] for name in names]

    def has(self, name: str, side: int, most: int) -> bool:
        """Return whether there is a picture of that side, of at most `most` bytes before it became a text."""
        picture = self.made.get((name, side))
        return picture is not None and len(picture) // 4 * 3 <= most + 2  # up to two bytes more than there were

    def keep_shown(self) -> None:
        """Forget the pictures that the page which is now complete does not show: each epoch shows others."""
        self.made = {key: picture for key, picture in self.made.items() if key in self.shown}
        self.shown = set()

    def draw(self, names: list[str], side: int, most: int) -> Iterable[str]:
        """Return the pictures of images, each of which is read."""
        if not names:
            return []

        def draw_one(name: str) -> str:
            try:
                return base64.b64encode(as_jpeg(self.open_image(name, side), side, most)).decode()
            except Exception:  # it was readable a moment ago
                return ''

        return map_in_threads(draw_one, names, desc='pictures to review')


def choose_side(most: int) -> int:
    """Return the longest of PICTURE_SIDES at which photographs usually have fewer than `most` bytes."""
    return next((side for side in PICTURE_SIDES if USUAL * side ** 2 <= most), PICTURE_SIDES[-1])


def as_jpeg(image: Image.Image, side: int, most: int) -> bytes:
    """Return an image as JPEG with at most `side` pixels on its longer side, and at most `most` bytes."""
    small = image.convert('RGB')
    small.info.clear()  # a comment in the image file would come into the page
    while True:
        small.thumbnail((side, side))
        file = io.BytesIO()
        small.save(file, 'JPEG', quality=_QUALITY, optimize=True)
        if len(file.getvalue()) <= most or side <= _SMALLEST:
            return file.getvalue()
        side = side * 3 // 4
