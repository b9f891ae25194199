"""The review of a training run, of labelled and of unlabelled predictions: what train.py and test.py call."""
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from common.data.sources import Source
from common.evaluation.predictor import Prediction, Predictor, data_dir_of
from common.reporting.page import Section
from common.runtime.errors import warn_instead
from extras.review.candidates import UNSURE, Candidate, Choices, labelled_candidates
from extras.review.origin import Origin, find_origin, read_labelled
from extras.review.page import Review, review_section
from extras.review.pictures import Pictures
from extras.review.teaching import Pool

USUAL = 1000          # images of REVIEW = True
MOST_OF_RUN = 2000    # candidates in the page of a training run; reading more of them would keep its end waiting
MOST_MEANWHILE = 200  # while it goes on, when early networks suspect half of the images


class RunReview:
    """Makes the review of a training run, again after each of its epochs that gets a page.

    `open_image(file, at_least)` opens an image by its path below `data_dir`, SIDE/CLASS/NAME.
    """

    def __init__(self, data_dir: str, classes: list[str], open_image: Callable[[str, int], Image.Image]):
        self.data_dir = Path(data_dir)
        self.classes = classes
        self.pictures = Pictures(open_image)

    def section(self, report: dict[str, Any], twins: Iterable[list[str]], is_last: bool) -> Section:
        """Return the section of report.html, {} if nothing is worth a look.

        `report` has the suspects of train, too; `twins` are groups of files that show the same in several classes. The
        last page of a run has more candidates.
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
        section = review_section(review, self.pictures, MOST_OF_RUN if is_last else MOST_MEANWHILE)
        self.pictures.keep_shown()
        return section


class PredictionReview:
    """Collects predictions for the review that test.py's REVIEW asks for: `most` images, or True for USUAL of them.

    What the table of labels that the network was trained on has already is carried over, if its images are these.
    """

    def __init__(self, source: Source, predictor: Predictor, most: int | bool):
        self.source = source
        self.classes = predictor.classes
        self.most = USUAL if most is True else most
        self.pool = Pool(self.most)
        self.root = '.' if source.is_list else source.root
        self.split = split_of(predictor.members[0].saved, self.root)
        self.earlier, self.groups = [], {}
        if self.split is not None and self.split.labels:
            with warn_instead():  # the page's own table will lack them, which a person should know
                self.earlier, self.groups = read_labelled(self.split.labels, self.root)
        self.known = {correction.file for correction in self.earlier}

    def add(self, prediction: Prediction, name: str) -> None:
        """Take note of a readable image that has no label; tables call it by `name`."""
        if name not in self.known:
            self.pool.add(name, prediction)

    def section(self, report: dict[str, Any] | None) -> Section:
        """Return the section of report.html, {} if nothing is worth a look; `report` is of the images with labels."""
        unlabelled = [Candidate(UNSURE, [found.name], [None], found.probable, found.confidence)
                      for found in self.pool.most_valuable()]
        if report is None:
            review = Review(unlabelled, self.classes, Choices(self.classes), self.pool.typical, self.root,
                            earlier=self.earlier, groups=self.groups, makes_labels=True)
        else:
            candidates = [*labelled_candidates(report, []), *unlabelled]
            review = Review(candidates, self.classes, Choices(self.classes, report['confusion']), report['typical'],
                            self.root)
            if not follow_split(review) and self.split is not None:
                review.earlier = self.split.earlier
        return review_section(review, Pictures(self.source.open), self.most)


def split_of(saved: dict[str, Any], root: str) -> Origin | None:
    """Return the source of the split that a checkpoint was trained on; None if that is not the folder `root`."""
    data_dir = data_dir_of(saved)
    origin = find_origin(Path(data_dir), files=()) if data_dir is not None else None
    if origin is None or Path(origin.root).resolve() != Path(root).resolve():
        return None
    return origin


def follow_split(review: Review) -> bool:
    """Give the images of a review the names that they have in their source, where makedata.py put them into its folder.

    That may be a whole split, or one side of it. Returns whether it is one.
    """
    files = {file for candidate in review.candidates for file in candidate.files}
    folder = Path(review.root)
    for place, prefix in ((folder, ''), (folder.parent, f'{folder.name}/')):
        origin = find_origin(place, {prefix + file for file in files})
        if origin is not None and origin.names:
            review.root = origin.root
            review.names = {file.removeprefix(prefix): name for file, name in origin.names.items()}
            review.earlier = origin.earlier
            return True
    return False
