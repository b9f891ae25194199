"""Where the images of a split came from, and what was corrected before: what makedata.py wrote beside them."""
import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.data.split import CORRECTED_TABLE, MALFORMED, SPLIT_SETTINGS, read_split_table
from common.runtime.console import printable
from common.runtime.disks import regular
from common.runtime.errors import UserError, warn_instead
from common.runtime.names import BadName, find_inside
from common.runtime.user_tables import read_user_table, tidy
from extras.review.corrections import Correction


@dataclass
class Origin:
    """The source of a split."""
    root: str                     # SOURCE_DIR
    names: dict[str, str]         # {file in the split: its path below `root`}
    labels: str | None            # the table of LABELS
    earlier: list[Correction] = field(default_factory=list)  # the corrections that the split follows


def find_origin(folder: Path, files: Collection[str] | None = None) -> Origin | None:
    """Return the source of the split in a folder, or of a fold in it, for these `files` of the split or for all of it.

    None where makedata.py did not make it.
    """
    for place, prefix in ((folder, ''), (folder.parent, f'{folder.name}/')):
        with suppress(*MALFORMED):
            return read_origin(place, prefix, files)
    return None


def read_origin(place: Path, prefix: str, files: Collection[str] | None) -> Origin:
    """Return the source of the split in a folder; `prefix` is '' or the folder of a fold. Raises one of MALFORMED."""
    settings: dict[str, Any] = json.loads(regular(place / SPLIT_SETTINGS).read_text(encoding='utf-8'))['settings']
    root = Path(settings['SOURCE_DIR'])
    names = {}
    for row in read_split_table(place):
        file = row['file'].removeprefix(prefix)
        if files is None or file in files:
            names[file] = Path(row['source']).relative_to(root).as_posix()
    return Origin(str(root), names, settings.get('LABELS'), read_earlier(place / CORRECTED_TABLE))


def read_earlier(path: Path) -> list[Correction]:
    """Return the corrections of a split; none where there is no such table, and with a warning if it is damaged."""
    if not path.exists():
        return []
    with warn_instead():
        return [Correction(cells['file'], tidy(cells['class']), tidy(cells['was']), tidy(cells['when']), str(path))
                for _, cells in read_user_table(str(path), 'CORRECTIONS', required=('file',), blank=('class',),
                                                    optional=('was', 'when'))]
    return []


def read_labelled(table: str, root: str) -> tuple[list[Correction], dict[str, str]]:
    """Return (the rows of a table of LABELS, {file: group}) for the images below `root`. Raises UserError."""
    rows = []
    groups = {}
    for place, cells in read_user_table(table, 'LABELS', required=('file',), blank=('class',), optional=('group',)):
        try:
            file = find_inside(root, cells['file'])
        except BadName:
            raise UserError(f'{place}: {printable(cells["file"])} must be a path below {root}') from None
        rows.append(Correction(file, tidy(cells['class']), '', '', table))
        if tidy(cells['group']):
            groups[file] = tidy(cells['group'])
    return rows, groups
