"""Classes from a table, for pictures that do not lie in a folder for each class."""
import csv
from pathlib import Path, PurePosixPath

from common.data.folders import Samples, refuse_class_names
from common.runtime.errors import UserError

_COLUMNS = ('file', 'class', 'group')


def read_labels(table: str, root: str) -> tuple[list[str], Samples, list[str | None]]:
    """(class names, sorted; [(path, class index)]; group of each picture or None) from a CSV file.

    Its columns are file, a path below the folder `root`, class, and perhaps group. Raises UserError, naming the line,
    for a table that is not so.
    """
    rows = {}  # {file: (class, group)}
    try:
        with open(table, newline='', encoding='utf-8-sig') as file:
            reader = csv.DictReader(file)
            for row in reader:
                place = f'LABELS: {table}, line {reader.line_num}'
                name, label, group = (row.get(column) or '' for column in _COLUMNS)
                path = PurePosixPath(name.replace('\\', '/'))
                if not name or not label:
                    raise UserError(f'{place}: a row needs a file and a class, in columns of these names')
                if path.is_absolute() or '..' in path.parts:
                    raise UserError(f'{place}: {name} must be a path below SOURCE_DIR')
                if rows.setdefault(path.as_posix(), (label, group or None)) != (label, group or None):
                    raise UserError(f'{place}: {name} was there before, with another class or group')
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = 'it is not in UTF-8' if isinstance(error, UnicodeDecodeError) else getattr(error, 'strerror', error)
        raise UserError(f'LABELS = {table!r} cannot be read: {reason}') from None
    classes = sorted({label for label, _ in rows.values()})
    if not classes:
        raise UserError(f'LABELS = {table!r}: no pictures in it')
    refuse_class_names(classes, table)
    index = {name: number for number, name in enumerate(classes)}
    samples = Samples((str(Path(root, file)), index[label]) for file, (label, _) in rows.items())
    return classes, samples, [group for _, group in rows.values()]
