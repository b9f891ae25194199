"""What is worth a person's look, the most valuable first."""
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

CHOICES = 9  # classes that have a key

# Kinds of candidates, as review.js knows them, and what the page calls them
TWINS = 'twins'
SUSPECT = 'suspect'
MISTAKE = 'mistake'
UNSURE = 'unsure'
KINDS = {TWINS: 'in several classes', SUSPECT: 'suspected label', MISTAKE: 'confident mistake', UNSURE: 'no label'}


class Candidate(NamedTuple):
    """Images to decide on together: one, or several that show the same."""
    kind: str
    files: list[str]          # what the page's thumbnails are called
    labels: list[str | None]  # the class of each
    probable: list[str]       # classes that it may be, the most probable first
    sure: float | None = None  # the confidence of the first of them


def labelled_candidates(report: dict[str, Any], twins: Iterable[list[str]]) -> list[Candidate]:
    """Return what a report (common/evaluation/report.py) says of images with labels.

    First come `twins`, files SIDE/CLASS/… of several classes that show the same or look alike; then suspected labels,
    as they are sorted in the report; then the most confident mistakes. No image comes twice.
    """
    found = []
    seen = set()
    for files in twins:
        labels = [file.split('/')[1] for file in files]
        found.append(Candidate(TWINS, list(files), labels, list(dict.fromkeys(labels))[1:]))
        seen.update(files)
    suspects = [Candidate(SUSPECT, [item['file']], [item['class']], [item['perhaps']]) for item in report['suspects']]
    mistakes = [Candidate(MISTAKE, [item['file']], [item['class']], [item['named']], item['confidence'])
                for item in report['mistakes']]
    for candidate in [*suspects, *mistakes]:
        if candidate.files[0] not in seen:
            found.append(candidate)
            seen.update(candidate.files)
    return found


class Choices:
    """Chooses the classes that get a key for a candidate.

    `confusion` is {true class: {predicted class: images}}: after the label and what is probable come the classes that
    the label is confused with most often, then all others in the order of `classes`.
    """

    def __init__(self, classes: list[str], confusion: dict[str, dict[str, int]] | None = None):
        self.classes = classes
        self.confusion = confusion or {}
        self.followers: dict[str | None, list[str]] = {}

    def of(self, candidate: Candidate) -> list[str]:
        """Return at most CHOICES classes; the label comes first, where there is one."""
        label = candidate.labels[0]
        if label not in self.followers:
            often = Counter(self.confusion.get(label, {})).most_common()
            self.followers[label] = [name for name, _ in often] + self.classes
        labels = [name for name in candidate.labels if name is not None]
        return list(dict.fromkeys([*labels, *candidate.probable, *self.followers[label]]))[:CHOICES]
