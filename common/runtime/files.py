"""Files that are either whole or not there: written aside, then moved into place."""
import csv
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from common.runtime.console import printable
from common.runtime.errors import UserError

_FORMULA = tuple('=+-@\t\r\n')  # what a formula may begin with
_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # seconds between attempts to move a file


def writable_folder(path: str | Path, constant: str) -> Path:
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
def locked(file: str | Path, refusal: str | None = None) -> Iterator[None]:
    """Holds a lock file, which the system releases when the process ends, however it ends.

    Where another process holds it, waits, or raises UserError with the text `refusal` at once. On a file system without
    locks there is a warning instead: a file that only by its existence says that a run is active would, after a run
    that was killed, lock out the next one on any other machine.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(file, timeout=0 if refusal else -1, fallback_to_soft=False))
        except Timeout:
            raise UserError(refusal) from None
        except OSError as error:
            print(f'warning: {file} cannot be locked ({error.strerror or error}): let no second run write there')
        yield


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns an OSError into a UserError: the file cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror or error}): close programs that have it open, '
                        'free some space or choose another folder') from error


def move(source: str | Path, target: str | Path) -> None:
    """Rename a file, which replaces the one that is there. Raises UserError if that fails.

    Under Windows a virus scanner or a cloud folder may have either open, which refuses the move; it is tried again for
    about six seconds.
    """
    with writing(target):
        for pause in _PAUSES:
            with suppress(PermissionError):
                os.replace(source, target)
                return
            time.sleep(pause)
        os.replace(source, target)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a path to write to; what is there takes the place of `path` at the end. Raises UserError if that fails."""
    path = Path(path)
    aside = path.with_name(f'.{path.name}.tmp')
    try:
        with writing(path):
            aside.unlink(missing_ok=True)  # of a run that was killed; or a link to somewhere else
            yield aside
        move(aside, path)
    finally:
        with suppress(OSError):  # a folder that became read-only
            aside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, with escapes for the bytes of file names that are not. Raises UserError."""
    with replacing(path) as aside:
        aside.write_text(text, encoding='utf-8', errors='backslashreplace')  # as JSON has them


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON. Raises UserError if the file cannot be written."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def write_csv(path: str | Path, rows: list[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Rows are dicts; the header is `columns`, or else the keys of the last; what others lack is empty. Excel needs the
    byte-order mark.

    Texts are quoted and have escapes for invisible characters; one that a spreadsheet would take for a formula and run
    gets an apostrophe in front. Raises UserError if the file cannot be written.
    """
    with replacing(path) as aside, open(aside, 'w', newline='', encoding='utf-8-sig') as file:
        writer = csv.DictWriter(file, fieldnames=columns or list(rows[-1]), quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        writer.writerows({key: harmless(value) for key, value in row.items()} for row in rows)


def harmless(value: Any) -> Any:
    """A cell for a spreadsheet: a text gets escapes for invisible characters, and an apostrophe before a formula."""
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value[:1] in _FORMULA else value)


def beside(folder: Path, purpose: str) -> Path:
    """What lies hidden beside a folder while it is replaced: its 'new' content, the 'old' one, a 'lock'."""
    return folder.with_name(f'.{folder.name}.{purpose}')


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to build in, beside `folder`; at the end it takes its place, after an error it goes.

    Raises UserError where it cannot be written.
    """
    new, old = beside(folder, 'new'), beside(folder, 'old')
    for rest in (new, old):
        shutil.rmtree(rest, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise UserError(f'{folder} cannot be written ({error.strerror or error}): close programs that have files of it '
                        'open, free some space, or choose another folder') from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path) -> bool:
    """Put a folder back that replacing_folder() had moved away when it was killed. Returns whether there is one."""
    if not os.path.lexists(folder) and beside(folder, 'old').exists():
        beside(folder, 'old').rename(folder)
    return os.path.lexists(folder)
