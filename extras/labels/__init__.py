"""LABELS of makedata.py: classes from a table, for images that do not lie in a folder for each class."""
import csv
from pathlib import PurePosixPath

from common.data.folders import FoundImages, Samples, refuse_class_names
from common.runtime.errors import UserError
from common.runtime.names import inside, is_below

LABELS_COLUMNS = ('file', 'class', 'group')


def read_labels(table: str, root: str) -> FoundImages:
    """Return the images that a CSV file lists, with their classes and groups.

    Its columns are file (a path below the folder `root`), class and, optionally, group. Raises UserError, naming the
    line, for any other table.
    """
    rows = {}  # {file: (class, group or None)}
    try:
        with open(table, newline='', encoding='utf-8-sig') as file:
            reader = csv.DictReader(file)
            for row in reader:
                place = f'LABELS: {table}, line {reader.line_num}'
                name, label, group = (row.get(column) or '' for column in LABELS_COLUMNS)
                file_name = PurePosixPath(name.replace('\\', '/')).as_posix()
                if not name or not label:
                    raise UserError(f'{place}: a row needs a file and a class, in columns of these names')
                if not is_below(file_name):
                    raise UserError(f'{place}: {name} must be a path below SOURCE_DIR')
                entry = (label, group or None)
                if rows.setdefault(file_name, entry) != entry:
                    raise UserError(f'{place}: {name} was there before, with another class or group')
    except UnicodeDecodeError:
        raise UserError(f'LABELS = {table!r} cannot be read: it is not in UTF-8') from None
    except OSError as error:
        raise UserError(f'LABELS = {table!r} cannot be read: {error.strerror}') from None
    except csv.Error as error:
        raise UserError(f'LABELS = {table!r} cannot be read: {error}') from None
    classes = sorted({label for label, _ in rows.values()})
    if not classes:
        raise UserError(f'LABELS = {table!r}: no images in it')
    refuse_class_names(classes, table)
    index = {name: number for number, name in enumerate(classes)}
    samples = Samples((inside(root, file), index[label]) for file, (label, _) in rows.items())
    groups = [group for _, group in rows.values()]
    return FoundImages(root, classes, samples, class_depth=0, groups=groups)
