"""Reading from a disk that hiccups: what is wrong with a file is told from what is wrong with the disk it lies on.

A network disk fails now and then, and answers a moment later. Then a good file must not be taken for a damaged one.
"""
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from common.runtime.console import printable
from common.runtime.errors import UserError

Value = TypeVar('Value')

_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # seconds between attempts to read
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)

# What is wrong with the name, the kind or the permissions of a file. Every other error is one of the disk.
_OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM,
                errno.EINVAL, errno.EILSEQ, errno.EFBIG, errno.EOVERFLOW}
# The same for Windows, which has codes of its own; Python gives EINVAL or ENOENT to those of a lost network, too.
# Not found (2, 3), access denied (5), sharing violation (32), an invalid (123) or too long name (206), a link that
# leads nowhere (1921).
_OF_THE_FILE_ON_WINDOWS = {2, 3, 5, 32, 123, 206, 1921}


class DiskError(UserError):
    """A disk that does not answer. Nothing is known of the file."""


def is_of_the_file(error: OSError) -> bool:
    """Return whether an error says that something is wrong with the file itself, not with the disk or the system.

    Errors without a number are those of a program that has read the content, such as Pillow.
    """
    if getattr(error, 'winerror', None) is not None:
        return error.winerror in _OF_THE_FILE_ON_WINDOWS
    return error.errno is None or error.errno in _OF_THE_FILE


def disk_error(path: str | Path, error: OSError) -> DiskError:
    """Return the DiskError, a text of one line, for an error that is not of the file."""
    if error.errno in _TOO_MANY_FILES:
        text = f'{path}: too many files are open: allow more of them (ulimit -n 4096), or lower NUM_WORKERS'
    else:
        text = (f'{path} cannot be read ({error.strerror or error}), which is the fault of the disk or the network: '
                'start again when it works; if it is always this file, replace it')
    return DiskError(printable(text))


def persistently(function: Callable[..., Value], path: str | Path, *args) -> Value:
    """Return function(path, *args). Where it fails because of the disk, it is called again for about six seconds.

    Raises DiskError if it never succeeds, and at once the OSErrors that are of the file.
    """
    for pause in _PAUSES:
        try:
            return function(path, *args)
        except OSError as error:
            if is_of_the_file(error):
                raise
        time.sleep(pause)
    with reading(path):
        return function(path, *args)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn the OSErrors inside `with` that are of the disk into DiskErrors: for a file that is read bit by bit."""
    try:
        yield
    except OSError as error:
        if is_of_the_file(error):
            raise
        raise disk_error(path, error) from error


def status(path: str | Path) -> os.stat_result | None:
    """Return what os.stat says of a file or folder, or None where there is none. Raises DiskError."""
    try:
        return persistently(os.stat, path)
    except (OSError, ValueError):  # ValueError is for a name that no file can have.
        return None


def regular(path: str | Path) -> Path:
    """Return the path of a file, or of a link to one. Raises OSError for what may have no end, such as a pipe."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError('a folder, pipe or device, not a file')
    return Path(path)


def is_folder(path: str | Path) -> bool:
    """Return whether there is a folder, or a link to one. Raises DiskError where the disk does not say."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_file(path: str | Path) -> bool:
    """Return whether there is a regular file, or a link to one. Raises DiskError where the disk does not say."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)
