"""What makedata.py writes about a split: split.json, its settings, and split.csv, a row for each picture."""
import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.data.packed import Rows
from common.runtime.errors import UserError
from common.runtime.files import write_json
from common.settings import Settings

SETTINGS, PICTURES = 'split.json', 'split.csv'
SIDES = ('train', 'val', 'test')
COLUMNS = ('file', 'source', 'class', 'side', 'group', 'sha256')  # pictures of one group lie on one side
LITTER = {'.DS_Store', 'Thumbs.db', 'desktop.ini'}  # what file managers leave in every folder that they show

_MADE_BY = 'makedata.py'
_DECIDING = {  # settings with which a split is the same, and what held before there was such a setting
    'VAL_RATIO': None, 'SEED': None, 'TEST_RATIO': 0., 'GROUP': None, 'LABELS': None,
    'FOLDS': None}


@contextmanager
def writing_manifest(folder: Path, cfg: Settings) -> Iterator[Any]:
    """Yields a csv writer for the rows of split.csv; at the end both files are complete."""
    with open(folder / PICTURES, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        yield rows
    shards = [path.relative_to(folder).as_posix() for side in SIDES for path in sorted(folder.glob(f'{side}/*'))
              if path.is_file()]
    write_json(folder / SETTINGS, {'made_by': _MADE_BY, 'settings': vars(cfg), 'shards': shards})


def read_sides(target: Path, cfg: Settings) -> Rows:
    """The split that is there: from the SHA-256 of a picture to the number of its side in SIDES.

    Empty where the split has another VAL_RATIO, TEST_RATIO, SEED, GROUP, LABELS or FOLDS. Raises UserError if the
    folder is anything but a split of makedata.py, or holds a file that makedata.py did not put there.
    """
    advice = 'move it away or choose another TARGET_DIR; it was not touched'
    try:
        manifest = json.loads((target / SETTINGS).read_text(encoding='utf-8'))
        ours = manifest['made_by'] == _MADE_BY and not target.is_symlink()
        files = Rows(row['file'] for row in read_rows(target, manifest))
        sides = [SIDES.index(row['side']) for row in read_rows(target, manifest)]
        earlier = Rows((row['sha256'] for row in read_rows(target, manifest)), sides)
        others = {SETTINGS, PICTURES, *manifest.get('shards', [])}
        same = all(manifest['settings'].get(name, before) == getattr(cfg, name) for name, before in _DECIDING.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error):
        ours = False
    if not ours:
        raise UserError(f'{target} exists and was not made by {_MADE_BY}: {advice}')
    for place, folders, names in os.walk(target):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for path in (Path(place, name) for name in names + links):
            file = path.relative_to(target).as_posix()
            if file not in others and files.get(file) is None and path.name not in LITTER:
                raise UserError(f'{path} was not put there by {_MADE_BY} and would be lost: {advice}')
    return earlier if same else Rows([])


def read_rows(target: Path, manifest: dict) -> Iterator[dict[str, str]]:
    """Yields the rows of split.csv as {column: text}; in splits of earlier versions split.json has them."""
    if 'files' in manifest:
        yield from manifest['files']
        return
    with open(target / PICTURES, newline='', encoding='utf-8', errors='surrogateescape') as file:
        yield from csv.DictReader(file)
