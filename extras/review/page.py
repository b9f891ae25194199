"""The review mode of report.html, as a section of it that works without anything else."""
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.reporting.page import Section
from extras.review.candidates import KINDS, Candidate, Choices
from extras.review.corrections import Correction
from extras.review.pictures import Pictures

MOST = 10_000            # candidates in a page
PICTURE_ROOM = 32 * 10 ** 6  # bytes of a page for pictures of candidates
TYPICAL_ROOM = 4 * 10 ** 6   # and for typical images of the classes
BLOCK = 200              # pictures that the page takes apart together

_FOLDER = Path(__file__).parent
_THEN = {True: 'Put labels.csv where makedata.py is, and run: python makedata.py --labels labels.csv',
         False: 'Put corrections.csv where makedata.py is: its next run and train.py use it.'}


@dataclass
class Review:
    """What a person is asked, and what was answered before."""
    candidates: list[Candidate]
    classes: list[str]                            # of the network
    choices: Choices
    typical: dict[str, list[str]]                 # {class: files of images that are typical of it}
    root: str                                     # the folder of the images, by which a browser knows them again
    names: dict[str, str] | None = None           # {file: its path below `root`}, where `files` are called otherwise
    earlier: list[Correction] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)  # {path below `root`: what the table of labels groups}
    makes_labels: bool = False                    # whether the answers are a table for LABELS, not for CORRECTIONS

    def name(self, file: str) -> str | None:
        """Return what the table of answers calls a file, None for one that cannot stand in a table."""
        name = file if self.names is None else self.names.get(file)
        return name if name is not None and is_unicode(name) else None


def is_unicode(text: str) -> bool:
    """Return whether a text has characters alone: names of files may hold other bytes, which a table would lose."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def review_section(review: Review, pictures: Pictures, most: int = MOST) -> Section:
    """Return the section of report.html in which a person decides on candidates; {} where there are none left.

    Those on which earlier tables decided are left out, and so are all but the first `most`.
    """
    answered = {correction.file for correction in review.earlier}
    candidates = []
    for candidate in review.candidates:
        names = [review.name(file) for file in candidate.files]
        if None not in names and not answered.issuperset(names):
            candidates.append(candidate)
    total = len(candidates)
    candidates = candidates[:most]
    if not candidates:
        return {}

    candidates, drawn = draw(candidates, pictures)
    classes = list(dict.fromkeys([*filter(is_unicode, review.classes), *used_classes(candidates, review.choices)]))
    index = {name: number for number, name in enumerate(classes)}
    typical_of, typical_drawn = draw_typical(review, candidates, pictures, index, first=len(drawn))
    data = {
        'id': identity(review), 'table': 'labels.csv' if review.makes_labels else 'corrections.csv',
        'labels': review.makes_labels, 'then': _THEN[review.makes_labels], 'classes': classes, 'all': sorted(classes),
        'kinds': KINDS,
        'items': describe(candidates, review, index), 'typical': typical_of, 'block': BLOCK,
        'earlier': [{'file': one.file, 'label': one.label, 'was': one.was, 'when': one.when,
                     'group': review.groups.get(one.file, '')} for one in review.earlier]}
    blocks = as_blocks([*drawn, *typical_drawn])
    return {
        'name': 'review', 'heading': 'Labels to review',
        'note': summary(candidates, total, blocks, review.makes_labels),
        'html': markup(data, blocks), 'script': (_FOLDER / 'review.js').read_text(encoding='utf-8')}


def draw(candidates: Iterable[Candidate], pictures: Pictures) -> tuple[list[Candidate], list[str]]:
    """Return the candidates that can be read, and the picture of each of their files."""
    files = [file for candidate in candidates for file in candidate.files]
    picture_of = dict(zip(files, pictures.of(files, PICTURE_ROOM), strict=True))
    readable = [candidate for candidate in candidates if all(picture_of[file] for file in candidate.files)]
    return readable, [picture_of[file] for candidate in readable for file in candidate.files]


def used_classes(candidates: Iterable[Candidate], choices: Choices) -> Iterable[str]:
    """Yield all classes that candidates name, some of them several times."""
    for candidate in candidates:
        yield from filter(is_unicode, choices.of(candidate))


def describe(candidates: Iterable[Candidate], review: Review, index: dict[str, int]) -> list[dict[str, Any]]:
    """Return the candidates for the script of the page; classes are numbers, -1 for none."""
    described = []
    number = 0
    for candidate in candidates:
        perhaps = candidate.probable[0] if candidate.probable else None
        described.append({
            'files': [review.name(file) for file in candidate.files],
            'labels': [index.get(label, -1) for label in candidate.labels],
            'perhaps': index.get(perhaps, -1),
            'choices': [index[name] for name in review.choices.of(candidate) if name in index],
            'kind': candidate.kind,
            'sure': None if candidate.sure is None else round(candidate.sure, 4),
            'picture': number})
        number += len(candidate.files)
    return described


def draw_typical(review: Review, candidates: Iterable[Candidate], pictures: Pictures, index: dict[str, int],
                 first: int) -> tuple[dict[int, list[int]], list[str]]:
    """Return ({class: numbers of its typical pictures, from `first` on}, these pictures) for the classes in use."""
    used = {name for candidate in candidates for name in [*candidate.labels, *candidate.probable[:2]]}
    shown = {name: review.typical.get(name, []) for name in index if name in used}
    files = [file for of_class in shown.values() for file in of_class]
    picture_of = dict(zip(files, pictures.of(files, TYPICAL_ROOM), strict=True))
    drawn = []
    numbers = {}
    for name, of_class in shown.items():
        readable = [picture_of[file] for file in of_class if picture_of[file]]
        numbers[index[name]] = list(range(first + len(drawn), first + len(drawn) + len(readable)))
        drawn.extend(readable)
    return numbers, drawn


def as_blocks(pictures: Sequence[str]) -> list[str]:
    """Return pictures as texts of BLOCK lines each."""
    return ['\n'.join(pictures[start:start + BLOCK]) for start in range(0, len(pictures), BLOCK)]


def identity(review: Review) -> str:
    """Return what a browser keeps the decisions on these images under; it says nothing of the folder."""
    place = f'{review.makes_labels} {Path(review.root).resolve()}'
    return hashlib.sha256(place.encode(errors='surrogateescape')).hexdigest()[:16]


def summary(candidates: Sequence[Candidate], total: int, blocks: Sequence[str], makes_labels: bool) -> str:
    """Return what there is to review, in words."""
    megabytes = sum(map(len, blocks)) / 1e6
    if makes_labels:
        text = f'{len(candidates)} images have no label yet; those that would teach most come first. '
    else:
        text = f'{len(candidates)} images or groups of them are worth a look, the most valuable first. '
    if total > len(candidates):
        text += f'{total - len(candidates)} more are left for later. '
    return (f'{text}Their pictures take {megabytes:.1f} MB of this file. One key or one tap decides, and nothing is '
            'lost if you close the page.')


def markup(data: dict[str, Any], blocks: Iterable[str]) -> str:
    """Return the HTML of the section, with all that its script needs."""
    style = (_FOLDER / 'review.css').read_text(encoding='utf-8')
    body = (_FOLDER / 'review.html').read_text(encoding='utf-8')
    content = json.dumps(data).replace('<', '\\u003c')  # no name can end the element
    parts = [f'<style>{style}</style>', body, f'<script type="application/json" id="review-data">{content}</script>']
    parts += [f'<script type="text/plain" class="review-block">{block}</script>' for block in blocks]
    return '\n'.join(parts)
