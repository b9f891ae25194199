"""The review of a training run, of labelled and of unlabelled predictions: what train.py and test.py call."""
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from common.reporting.page import Section
from extras.review.candidates import Choices, labelled_candidates
from extras.review.origin import find_origin
from extras.review.page import Review, review_section
from extras.review.pictures import Pictures


class RunReview:
    """Makes the review of a training run, again after each of its epochs that gets a page.

    `open_image(file, at_least)` opens SIDE/CLASS/NAME of the split in `data_dir`.
    """

    def __init__(self, data_dir: str, classes: list[str], open_image: Callable[[str, int], Image.Image]):
        self.data_dir = Path(data_dir)
        self.classes = classes
        self.pictures = Pictures(open_image)

    def section(self, report: dict[str, Any], twins: Iterable[list[str]]) -> Section:
        """Return the section of report.html, {} if nothing is worth a look.

        `report` has the suspects of train, too; `twins` are groups of files that show the same in several classes.
        """
        candidates = labelled_candidates(report, twins)
        files = {file for candidate in candidates for file in candidate.files}
        origin = find_origin(self.data_dir, files)
        review = Review(candidates, self.classes, Choices(self.classes, report['confusion']), report['typical'],
                        root=str(self.data_dir))
        if origin is not None:
            review.root = origin.root
            review.names = origin.names
            review.earlier = origin.earlier
        return review_section(review, self.pictures)
