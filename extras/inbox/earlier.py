"""The tables of a run that ended, perhaps in the middle of a row."""
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.reporting.tables import Tables, delete
from common.runtime.disks import regular
from common.runtime.errors import UserError
from common.runtime.files import replacing
from common.runtime.schema import is_amount, is_count, is_number, is_text, optional, wrong_place

AT_A_TIME = 1000  # rows in memory

Row = dict[str, Any]
ROW = {  # what a line of predictions.jsonl has, as common/evaluation/report.py makes it
    'path': is_text, 'class': optional(is_text), 'confidence': optional(is_amount), 'certainty': optional(is_amount),
    'top5': [{'class': is_text, 'confidence': is_amount}], 'error': is_text, 'bytes': is_count,
    'modified_ns': is_number}


def reopen(tables: Tables) -> Iterator[Row]:
    """Yield the rows of an earlier run, and make both tables whole again in case it was killed.

    Raises UserError, before anything is changed, where a line is none of this program's.
    """
    if not tables.lines.exists():
        tables.clear()
        return
    refuse_strange(tables.lines)
    delete(tables.csv)
    with replacing(tables.lines) as aside, open(tables.lines, 'rb') as old, open(aside, 'wb') as new:
        while True:
            lines = list(itertools.islice(old, AT_A_TIME))
            if not lines:
                break
            rows = []
            for line in lines:
                row = parse(line)
                if row is not None:
                    new.write(line)
                    rows.append(row)
            tables.append_csv(rows)
            yield from rows


def refuse_strange(path: Path) -> None:
    """Raise UserError, naming the line, for a predictions.jsonl that another program wrote or changed.

    Only its end may be no row: there a run was killed, or lost its power.
    """
    try:
        with open(regular(path), 'rb') as file:
            for number, line in enumerate(file, start=1):
                if parse(line) is not None:
                    continue
                last = not file.read(1)
                if not last or is_json(line):
                    raise UserError(f'{path}, line {number}, is no row of test.py: move it away or choose another '
                                    'OUTPUT_DIR')
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror or error}): choose another OUTPUT_DIR') from error


def is_json(line: bytes) -> bool:
    """Return whether a line is whole, and JSON, of whatever kind."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return line.endswith(b'\n')


def parse(line: bytes) -> Row | None:
    """Return the row that a line of predictions.jsonl holds; None for anything else, such as a line that was cut off.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not line.endswith(b'\n') or wrong_place(row, ROW) is not None:
        return None
    return row
