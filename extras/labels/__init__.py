"""LABELS of makedata.py: classes from a table, for images that do not lie in a folder for each class."""
import os
from collections import Counter
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from common.data.folders import FoundImages, Samples, list_images, refuse_class_names
from common.runtime.console import printable
from common.runtime.errors import UserError
from common.runtime.names import BadName, find_inside, inside
from common.runtime.user_tables import read_user_table, tidy


def read_labels(table: str, root: str) -> FoundImages:
    """Return the images that a CSV file lists, with their classes and groups.

    Its columns are file (a path below the folder `root`), class and, optionally, group. A file that it lists counts
    whatever its name; without a class it is left out. Raises UserError, naming the line, for any other table.
    """
    rows = {}  # {file: (class, group or None)}
    for place, cells in read_user_table(table, 'LABELS', required=('file',), blank=('class',), optional=('group',)):
        try:
            file = find_inside(root, cells['file'])
        except BadName:
            raise UserError(f'{place}: {printable(cells["file"])} must be a path below SOURCE_DIR') from None
        entry = (tidy(cells['class']), tidy(cells['group']) or None)
        if rows.setdefault(file, entry) != entry:
            raise UserError(f'{place}: {printable(file)} was there before, with another class or group: keep one of '
                            'the rows')
    listed = set(rows)
    rows = {file: entry for file, entry in rows.items() if entry[0]}
    classes = sorted({label for label, _ in rows.values()})
    if not classes:
        raise UserError(f'LABELS = {table!r}: no images in it that have a class')
    refuse_class_names(classes, table)
    if not any(os.path.lexists(inside(root, file)) for file in rows):
        raise UserError(f'LABELS = {table!r}: none of its files is there, the first would be '
                        f'{printable(inside(root, next(iter(rows))))}: give their paths below SOURCE_DIR')
    index = {name: number for number, name in enumerate(classes)}
    samples = Samples((inside(root, file), index[label]) for file, (label, _) in rows.items())
    groups = [group for _, group in rows.values()]
    left_out = count_unlisted(root, listed)
    if len(rows) < len(listed):
        left_out['images without a class in LABELS'] = len(listed) - len(rows)
    return FoundImages(root, classes, samples, class_depth=0, groups=groups, left_out=left_out)


def count_unlisted(root: str, listed: Container[str]) -> Counter:
    """Return how many images below a folder are not among the `listed` names, as FoundImages counts them."""
    start = len(os.path.join(Path(root), ''))
    left_out = Counter()
    with suppress(UserError):  # a folder that cannot be read, which need not concern the table
        for path in list_images(root):
            if path[start:].replace(os.sep, '/') not in listed:
                left_out['images that LABELS does not list'] += 1
    return left_out
