"""Files that are either whole or not there: written aside, then moved into place."""
import csv
import json
import os
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from common.runtime.console import printable
from common.runtime.errors import UserError

_FORMULA = tuple('=+-@\t\r\n')  # what a formula may begin with


def writable_folder(path, constant):
    """Make a folder, check that files can be written in it, return its Path. Raises UserError naming the constant."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f'{constant} = {str(path)!r} cannot be written to ({error.strerror}): '
                        'choose another folder') from None
    return path


@contextmanager
def locked(file, refusal=None):
    """Holds a lock file, which ends with the process however that ends.

    Where another process has it, waits, or raises UserError with the text `refusal` at once. On a network file system
    without locks there is a warning instead of a lock.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(file, timeout=0 if refusal else -1))
        except Timeout:
            raise UserError(refusal) from None
        except (NotImplementedError, OSError) as error:
            print(f'warning: {file} cannot be locked ({error}): let no second run write there')
        yield


@contextmanager
def replacing(path):
    """Yields a path to write to; what is there takes the place of `path` at the end. Raises UserError if that fails."""
    path = Path(path)
    aside = path.with_name(f'.{path.name}.tmp')
    try:
        aside.unlink(missing_ok=True)  # of a run that was killed; or a link to somewhere else
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error}): close programs that have it open, free some space or '
                        'choose another folder') from error
    finally:
        with suppress(OSError):  # a folder that became read-only
            aside.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    os.replace(source, target)


def write_text(path, text):
    with replacing(path) as aside:
        aside.write_text(text, encoding='utf-8', errors='backslashreplace')  # names that are no UTF-8, as JSON has them


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def write_csv(path, rows):
    """Rows are dicts with the same keys; the keys are the header. With a byte-order mark, for Excel's sake.

    Texts are quoted and have escapes for invisible characters; one that a spreadsheet would take for a formula and run
    gets an apostrophe in front.
    """
    def cell(value):
        if not isinstance(value, str):
            return value
        return printable(f"'{value}" if value[:1] in _FORMULA else value)

    with replacing(path) as aside, open(aside, 'w', newline='', encoding='utf-8-sig') as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
