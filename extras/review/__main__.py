"""Make a page in which the first images of a new set are labelled, before there is a network.

    python -m extras.review --images unlabelled --classes "cat, dog"

draws images at random and writes review.html. What it downloads, labels.csv, is what makedata.py --labels takes.
"""
import random
from pathlib import Path

from common import settings
from common.data.folders import refuse_class_names
from common.data.images import open_image
from common.data.listing import list_images
from common.reporting.page import making, write_page
from common.runtime.console import printable
from common.runtime.errors import UserError
from common.runtime.names import inside
from common.settings import Settings
from extras.review.candidates import UNSURE, Candidate, Choices
from extras.review.origin import read_labelled
from extras.review.page import MOST, Review, review_section
from extras.review.pictures import Pictures

IMAGES: str = 'unlabelled'    # Folder of images, with all its sub-folders.
CLASSES: str = ''             # Names of classes, with commas between them; the page takes new ones, too.
LABELS: str | None = None     # The table of labels to go on with: its images are not asked for again.
COUNT: int = 50               # Images in the page.
SEED: int = 42                # Seed of the draw.
OUTPUT: str = 'review.html'   # The page.


def main(cfg: Settings) -> None:
    settings.check_range('COUNT', cfg.COUNT, least=1, most=MOST)
    root = str(Path(cfg.IMAGES))
    names = [Path(path).relative_to(root).as_posix() for path in list_images(root)]
    earlier, groups = read_labelled(cfg.LABELS, root) if cfg.LABELS else ([], {})
    known = {correction.file for correction in earlier}
    names = [name for name in names if name not in known]
    random.Random(cfg.SEED).shuffle(names)
    classes = [name.strip() for name in cfg.CLASSES.split(',') if name.strip()]
    refuse_class_names(classes, 'CLASSES')
    earlier_classes = sorted({correction.label for correction in earlier if correction.label})
    classes = list(dict.fromkeys([*classes, *earlier_classes]))
    candidates = [Candidate(UNSURE, [name], [None], []) for name in names[:cfg.COUNT]]
    review = Review(candidates, classes, Choices(classes), {}, root, earlier=earlier, groups=groups, makes_labels=True)
    with making(Path(cfg.OUTPUT)):
        section = review_section(review, Pictures(lambda name, side: open_image(inside(root, name), side)))
        if not section:
            raise UserError(f'IMAGES = {cfg.IMAGES!r}: no image in it without a label')
        write_page(Path(cfg.OUTPUT), printable(f'Labels for {cfg.IMAGES}'), f'{len(names)} images have no label', [],
                   [section])
    print(f'{cfg.OUTPUT} is written: open it in a browser')


if __name__ == '__main__':
    settings.run(main)
