"""Files and folders that are whole or absent, even after a power cut.

They are written beside their place, synced to the disk, and then moved into it. A system that is asked for nothing
writes the new name first and the content up to half a minute later, so that a power cut leaves empty files.
"""
import csv
import ctypes
import errno
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from common.runtime.console import as_json, printable
from common.runtime.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# A spreadsheet may take what begins so for a formula: a cell, and what follows a semicolon, where one that expects
# semicolons between cells finds the beginning of another cell. Quotation marks are part of how cells are written.
_FORMULA = re.compile(r'((?:\A|;)[\s"]*)(?=[=+\-@＝＋－＠])')
_LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT)  # errors of a sync that say that something is not on the disk
_MOVE_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # seconds between attempts to move a file


def writable_folder(path: str | Path, constant: str) -> Path:
    """Make a folder, check that it can be written to, and return its Path. Raises UserError that names the constant."""
    path = Path(path)
    try:
        make_folder(path)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f'{constant} = {str(path)!r} cannot be written to ({error.strerror}): '
                        'choose another folder') from None
    return path


def make_folder(path: Path) -> None:
    """Make a folder and those above it, and sync their names. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


@contextmanager
def locked(file: str | Path, refusal: str | None = None) -> Iterator[None]:
    """Hold the lock of a file inside `with`. The system releases it when the process ends, even if it is killed.

    If another process holds the lock, wait, or with `refusal` raise UserError with that text at once. Another user's
    file is locked as well, if it can be read. A file system without locks leads to a warning. Nothing else takes the
    place of the lock there: a file that merely exists while a run is active would outlive a killed run and lock out
    the next one.
    """
    with ExitStack() as stack:
        try:
            try:
                stack.enter_context(FileLock(file, timeout=0 if refusal else -1, fallback_to_soft=False))
            except PermissionError:
                stack.enter_context(_locked_unwritable(file, wait=refusal is None))
        except Timeout:
            raise UserError(refusal) from None
        except PermissionError:
            raise UserError(f'{file} is the lock of another user and cannot be opened, so that their run may be active '
                            'here: choose another folder, or have them delete it') from None
        except OSError as error:
            print(f'warning: {file} cannot be locked ({error.strerror or error}): let no second run write there')
        yield


@contextmanager
def _locked_unwritable(file: str | Path, wait: bool) -> Iterator[None]:
    """Hold the lock of a file that is there and must not be written to, such as another user's.

    Raises Timeout where another process holds it, unless it is to `wait`; OSError where there is no such file, and
    PermissionError where it cannot even be read.
    """
    if fcntl is None:
        raise OSError('it cannot be written to')  # Windows locks what it can write to, nothing else
    handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Timeout(str(file)) from None
        yield
    finally:
        os.close(handle)


def sole_writer(folder: Path, constant: str) -> AbstractContextManager[None]:
    """Return what holds, inside `with`, the lock of a folder in which one run at a time writes; `constant` names it.

    Raises UserError there if another run writes in it.
    """
    refusal = f'{constant} = {str(folder)!r}: another run is writing there; choose another folder'
    return locked(folder / '.lock', refusal)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError into a UserError: the file cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror or error}): close programs that have it open, '
                        'free some space or choose another folder') from error


def move(source: str | Path, target: str | Path) -> None:
    """Rename a file, replacing the one at `target`. Raises UserError if that fails.

    Under Windows a move fails while a virus scanner or a cloud folder has one of the files open. So it is tried again
    for about six seconds.
    """
    with writing(target):
        for pause in _MOVE_PAUSES:
            with suppress(PermissionError):
                os.replace(source, target)
                return
            time.sleep(pause)
        os.replace(source, target)


# ---- onto the disk ---------------------------------------------------------------------------------------------------

def sync(path: str | Path, drive: bool = True) -> None:
    """Wait until the disk has the content of a file, or the names in a folder. Raises OSError if it was not written.

    Some file systems cannot sync a folder; Windows does it by itself. macOS also has to be told to empty the cache of
    the drive, unless `drive` is False.
    """
    posix = os.name == 'posix'
    if os.path.isdir(path) and not posix:
        return
    try:
        handle = os.open(path, os.O_RDONLY if posix else os.O_RDWR)  # Windows syncs only what may be written
    except PermissionError:  # a folder that may be written to but not read
        return
    try:
        if drive and sys.platform == 'darwin':
            empty_drive_cache(handle)
        os.fsync(handle)
    except OSError as error:
        if error.errno in _LOST:
            raise
    finally:
        os.close(handle)


def empty_drive_cache(handle: int) -> None:
    """Do for an open file what os.fsync leaves out under macOS, where the file system can do it."""
    with suppress(OSError):
        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)


def sync_below(folder: Path) -> None:
    """Wait until the disk has a folder and everything below it. Raises OSError if something was not written.

    Thousands of files take a moment where one call syncs the file system, and a millisecond or more each elsewhere.
    """
    if sync_file_system(folder):
        return
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = Path(place, name)
            if not file.is_symlink():
                sync(file, drive=False)
        sync(place, drive=False)
    sync(folder)


def sync_file_system(path: Path) -> bool:
    """Wait until the disk has all of the file system of `path`. Return False where that is not known to have worked."""
    if sys.platform != 'linux':
        return False
    try:
        syncfs = ctypes.CDLL(None).syncfs
    except (OSError, AttributeError):  # another C library
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        return syncfs(handle) == 0  # it may also fail because of a file of somebody else's
    finally:
        os.close(handle)


# ---- into their place ------------------------------------------------------------------------------------------------

@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield the path of an empty file to write to, which is synced and takes the place of `path` at the end.

    Raises UserError if that fails.
    """
    path = Path(path)
    aside = path.with_name(f'.{path.name}.tmp')
    try:
        with writing(path):
            discard(aside)  # a killed run may have left it behind
            open(aside, 'xb').close()  # not through a link that somebody puts there, which would change its target
            yield aside
        install(aside, path)
    finally:
        with suppress(OSError):  # The folder may have become read-only.
            aside.unlink(missing_ok=True)


def install(file: Path, path: Path) -> None:
    """Move a file that is complete to `path`, so that a power cut leaves it or the old one. Raises UserError."""
    with writing(path):
        sync(file)
    move(file, path)
    with writing(path):
        sync(path.parent)


def discard(path: Path) -> None:
    """Delete a file, a folder with all that is in it, or a link, but not what it leads to; nothing may be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder for what is not complete yet. It is deleted at the end; after a kill, by the next run.

    Only the user may look into it. Raises UserError if it cannot be made.
    """
    with writing(folder):
        discard(folder)
        folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        discard(folder)


def no_link(path: str, flags: int) -> int:
    """Open a file for open(…, opener=no_link). Raises OSError for a link, since writing would change another file, and
    for a pipe, which could be waited for without end.
    """
    handle = os.open(path, flags | getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_NONBLOCK', 0), 0o666)
    status = os.fstat(handle)
    if status.st_nlink > 1 or not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise OSError(errno.EMLINK, 'a link or a pipe, not a file', path)
    return handle


def drop_link(path: Path) -> None:
    """Delete a link, symbolic or hard, by the name of a file that is to grow. Raises OSError."""
    if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
        path.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8. Raises UserError if it cannot be written.

    File names may hold bytes that are not UTF-8; they become escapes, as in JSON.
    """
    with replacing(path) as aside:
        aside.write_text(text, encoding='utf-8', errors='backslashreplace')


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON. Raises UserError if the file cannot be written."""
    write_text(path, as_json(value, indent=2) + '\n')


def write_csv(path: str | Path, rows: list[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows, {column: value}, as a CSV file. Raises UserError if it cannot be written.

    The header is `columns`, or else the keys of all rows. A value that a row lacks is an empty cell. Texts are quoted
    and pass through `harmless`. Excel needs the byte-order mark at the beginning.
    """
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as aside, open(aside, 'w', newline='', encoding='utf-8-sig') as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(map(harmless, columns))
        writer.writerows([harmless(row.get(name)) for name in columns] for row in rows)


def harmless(value: Any) -> Any:
    """Return a value for a cell of a spreadsheet, with escapes for invisible characters in a text.

    What a spreadsheet would take for a formula, and run, gets an apostrophe in front.
    """
    if not isinstance(value, str):
        return value
    return printable(_FORMULA.sub(r"\1'", value))


def beside(folder: Path, purpose: str) -> Path:
    """Return the hidden path beside a folder that serves a purpose: its 'new' content, its 'old' one, its 'lock'."""
    return folder.with_name(f'.{folder.name}.{purpose}')


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, which is synced and takes the place of `folder` at the end. After an error it is deleted.

    Raises UserError if it cannot be written.
    """
    new = beside(folder, 'new')
    old = beside(folder, 'old')
    try:
        discard(new)  # A killed run may have left them behind.
        discard(old)
        new.mkdir(parents=True)
        yield new
        sync_below(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        sync(folder.parent)  # before the old one goes
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise UserError(f'{folder} cannot be written ({error.strerror or error}): close programs that have files of it '
                        'open, free some space, or choose another folder') from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path) -> bool:
    """Put back the folder that replacing_folder() had moved away when it was killed. Return whether `folder` exists."""
    old = beside(folder, 'old')
    if old.exists() and not old.is_symlink() and not os.path.lexists(folder):
        old.rename(folder)
    return os.path.lexists(folder)
