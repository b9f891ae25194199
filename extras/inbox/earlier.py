"""The tables of a run that ended, perhaps in the middle of a row."""
import itertools
import json
from collections.abc import Iterator
from typing import Any

from common.reporting.tables import PREDICTION_COLUMNS, Tables, delete
from common.runtime.files import replacing

AT_A_TIME = 1000  # rows in memory

Row = dict[str, Any]


def reopen(tables: Tables) -> Iterator[Row]:
    """Yield the rows of an earlier run, and make both tables whole again in case it was killed.

    Raises UserError.
    """
    if not tables.lines.exists():
        tables.clear()
        return
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


def parse(line: bytes) -> Row | None:
    """Return the row that a line of predictions.jsonl holds; None for a line that was cut off."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    needed = {*PREDICTION_COLUMNS, 'bytes', 'modified_ns'}
    if not line.endswith(b'\n') or not isinstance(row, dict) or not needed <= row.keys():
        return None
    return row
