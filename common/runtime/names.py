"""Names that stand in files, which may come from anyone: the one place that decides where such a name may lead."""
import os
import re
import unicodedata
from pathlib import Path, PurePosixPath

from common.runtime.errors import UserError

_NO_NAMES = {'', '.', '..'}  # parts of a path that lead up or nowhere, such as the first one of '/etc'
# What Windows takes for a drive, a stream, another separator or a device, or leaves out at the end of a name.
_ODD_ON_WINDOWS = re.compile(
    r'[\\:<>"|?*\x00-\x1f]|[. ](/|\Z)|(\A|/)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.|/|\Z)',
    re.IGNORECASE)
_DRIVE = re.compile('[A-Za-z]:')


class BadName(UserError):
    """A name in a file that leads out of the folder to which it belongs, or that no file can have."""


def inside(folder: str | Path, name: str) -> str:
    """Return the path of what a file calls `name`: a path below `folder`, with '/' between its parts.

    Nothing is looked up, so that links in the folder, which are its owner's, lead where they lead. Raises BadName.
    """
    if not is_below(name):
        raise BadName(f'{folder}: {name!r} leads out of this folder, or can be the name of no file')
    return os.path.join(folder, name.replace('/', os.sep))


def find_inside(folder: str | Path, text: str) -> str:
    """Return the name, with '/' between its parts, of the file below `folder` that a person means by a text.

    If there is no file by exactly this name, spaces around it, the backslashes of Windows and another way to store
    accented letters are forgiven. Raises BadName.
    """
    stripped = text.strip()
    slashed = stripped.replace('\\', '/')
    spellings = [text, stripped, slashed, *(unicodedata.normalize(form, slashed) for form in ('NFC', 'NFD'))]
    for spelling in spellings:
        name = PurePosixPath(spelling).as_posix()
        if is_below(name) and os.path.lexists(inside(folder, name)):
            return name
    name = PurePosixPath(slashed).as_posix()
    inside(folder, name)
    return name


def is_below(name: str) -> bool:
    """Return whether a name leads down from every folder, without a detour, to what can be a file."""
    if not isinstance(name, str) or '\0' in name:
        return False
    if not _NO_NAMES.isdisjoint(name.split('/')):
        return False
    if os.sep == '\\' and _ODD_ON_WINDOWS.search(name):
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def is_one_part(name: str) -> bool:
    """Return whether a name can be that of a file or folder directly in another folder."""
    return is_below(name) and '/' not in name


def is_folder_name(name: str) -> bool:
    """Return whether a name can be that of a folder, on this system, and is no drive on another."""
    return is_one_part(name) and _DRIVE.match(name) is None
