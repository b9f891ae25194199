"""CORRECTIONS of makedata.py: labels that a person corrected, images to leave out. The source is not touched.

Nothing here needs PyTorch.
"""
import csv
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.folders import FoundImages, Rows, Samples, refuse_class_names
from common.data.split import TRAIN, split_row, warn_of_similar_names
from common.data.taking import TakenImages
from common.runtime.console import printable
from common.runtime.errors import UserError
from common.runtime.names import BadName, find_inside
from common.runtime.user_tables import read_user_table, tidy

CORRECTION_COLUMNS = ('file', 'class', 'was', 'when')

_SHOWN = 10  # differences between tables that are printed
_TIME = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z')  # as the page writes it: such texts sort by time


class Correction(NamedTuple):
    """What a person decided on an image."""
    file: str   # its path below the folder of the images, with '/' between the parts
    label: str  # its class, '' to leave the image out
    was: str    # the class that it had when the person saw it
    when: str   # the time, '' if that is not known
    table: str  # the file in which it stands


class Corrected(NamedTuple):
    """What corrections make of the images of a split."""
    images: TakenImages    # those that stay, with corrected classes
    sides: np.ndarray      # (N,) their sides
    left_out: list[tuple]  # rows of split.csv for the others


def read_corrections(tables: Iterable[str], found: FoundImages) -> 'Corrections':
    """Return what the `tables` say of the images that were found, and print it.

    Of two tables that differ on an image, the later decision counts. Raises UserError, naming the line, for a table
    that cannot be read, an image that is not among those found, and two answers for an image in one table.
    """
    start = len(os.path.join(Path(found.root), ''))
    names = [_below(path, start) for path, _ in found.samples]
    places = Rows(names)
    decided: dict[str, Correction] = {}
    differences = []
    for table in tables:
        for file, new in _read_table(table, found.root, places).items():
            old = decided.get(file)
            counts = new
            if old is not None and old.label != new.label:
                counts = _later(old, new)
                differences.append(f'{file}: {_told(old)} in {old.table}, {_told(new)} in {new.table}; '
                                   f'{_told(counts)} counts, the later one')
            decided[file] = counts
    for text in differences[:_SHOWN]:
        print(printable(f'corrections differ on {text}'))
    if len(differences) > _SHOWN:
        print(f'corrections differ on {len(differences) - _SHOWN} more images')
    return Corrections(', '.join(tables), decided)


def _later(old, new):
    """Return the later one of two corrections of an image: by their times, or else the one that was read later."""
    if _TIME.fullmatch(old.when) and _TIME.fullmatch(new.when) and old.when > new.when:
        return old
    return new


def _told(correction):
    """Return what a correction says, in words."""
    return f'{correction.label!r}' if correction.label else 'leave out'


def _below(path, start):
    """Return the path of an image below the folder whose path has `start` characters, with '/' between its parts."""
    return path[start:].replace(os.sep, '/')


def _read_table(table, root, places):
    """Return {file: Correction} of a table; `places` has the names of the images that there are. Raises UserError."""
    decided = {}
    unknown = []
    for place, cells in read_user_table(table, 'CORRECTIONS', required=('file',), blank=('class',),
                                        optional=('was', 'when')):
        file = cells['file']
        if places.get(file) is None:
            try:
                file = find_inside(root, file)
            except BadName:
                raise UserError(f'{place}: {file} must be a path below {root}') from None
        if places.get(file) is None:
            unknown.append(f'{file} ({place.rpartition(", ")[2]})')
            continue
        new = Correction(file, tidy(cells['class']), tidy(cells['was']), tidy(cells['when']), table)
        if new.label:
            refuse_class_names([new.label], place)
        old = decided.setdefault(file, new)
        if old.label != new.label:
            raise UserError(f'{place}: {file} was there before with another answer, {_told(old)}: keep one of the rows')
    if unknown:
        more = f' and {len(unknown) - _SHOWN} more' if len(unknown) > _SHOWN else ''
        named = '; '.join(unknown[:_SHOWN]) + more
        raise UserError(f'CORRECTIONS = {table!r}: {root} has no {named}: bring the images back, remove '
                        'the rows, or set CORRECTIONS = None if they are of another data set')
    return decided


@dataclass
class Corrections:
    """What people decided on images. `origin` names their tables."""
    origin: str
    decided: dict[str, Correction]  # by file

    def apply(self, taken: TakenImages, sides: np.ndarray, remember: bool) -> Corrected:
        """Return the images with corrected classes.

        `sides` (N,) are those that the images were drawn for by the classes of the source: so none changes its side.
        The rows of those that are left out `remember` them, for images that come back; folds (of FOLDS) are no sides.
        Prints what changes. Raises UserError if no image is left, or none of a class in train.
        """
        start = len(os.path.join(Path(taken.root), ''))
        labels = [taken.classes[target] for target in taken.samples.targets]
        kept = []      # places
        left_out = []  # rows of split.csv
        reasons = {}   # {new place: text}
        replaced = 0
        confirmed = 0
        for place, (path, _) in enumerate(taken.samples):
            correction = self.decided.get(_below(path, start))
            if correction is not None and not correction.label:
                *row, _ = split_row(taken, place, sides[place] if remember else TRAIN, file='')
                left_out.append((*row, f'{self.origin}: left out'))
                continue
            if correction is not None and correction.label != labels[place]:
                reasons[len(kept)] = f'{self.origin}: was {labels[place]}'
                labels[place] = correction.label
                replaced += 1
            elif correction is not None:
                confirmed += 1
            kept.append(place)
        classes = sorted({labels[place] for place in kept})
        if remember:
            self.refuse_untrained(classes, {labels[place] for place in kept if sides[place] == TRAIN})
        self.tell(replaced, len(left_out), confirmed, taken.classes, classes)
        index = {name: number for number, name in enumerate(classes)}
        endings = {new: taken.endings[old] for new, old in enumerate(kept) if old in taken.endings}
        images = replace(
            taken, classes=classes, samples=Samples((taken.samples[place][0], index[labels[place]]) for place in kept),
            numbers=taken.numbers[kept], sha256=taken.sha256[kept], is_shrunk=taken.is_shrunk[kept],
            groups=taken.groups[kept], endings=endings, corrected=reasons)
        return Corrected(images, sides[kept], left_out)

    def refuse_untrained(self, classes: list[str], in_train: set[str]) -> None:
        """Raise UserError for a class without an image in train, with which train.py could not begin."""
        missing = sorted(set(classes) - in_train)
        if missing:
            raise UserError(f'CORRECTIONS: {self.origin} leaves no image of {", ".join(missing)} in train, and a '
                            'corrected image stays on its side: correct images of train, too, or leave these out')

    def tell(self, replaced: int, left_out: int, confirmed: int, before: list[str], classes: list[str]) -> None:
        """Print in one line what the corrections changed. Raises UserError if they leave no class."""
        if not classes:
            raise UserError(f'CORRECTIONS: {self.origin} leaves out all images')
        line = f'{self.origin}: {replaced} replaced, {left_out} left out, {confirmed} confirmed'
        new = sorted(set(classes) - set(before))
        gone = sorted(set(before) - set(classes))
        if new:
            line += f'; new: {", ".join(new)}'
        if gone:
            line += f'; no images are left in {", ".join(gone)}'
        print(printable(line))
        if new:
            warn_of_similar_names(classes)

    def write(self, path: Path) -> None:
        """Write them as one table, which the page of the next training run goes on from."""
        write_corrections(path, self.decided.values())


def write_corrections(path: Path, corrections: Iterable[Correction]) -> None:
    """Write a table of corrections. Raises OSError."""
    with open(path, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        rows = csv.writer(file, quoting=csv.QUOTE_ALL)
        rows.writerow(CORRECTION_COLUMNS)
        for correction in corrections:
            rows.writerow(correction[:len(CORRECTION_COLUMNS)])
