"""Files of JSON lines that grow while work is done, so that a run that was killed has not worked in vain."""
import json
from collections.abc import Iterable, Iterator
from pathlib import Path


def append(file: Path, values: Iterable[list]) -> None:
    """Add a line for each value. Raises OSError."""
    lines = ''.join(f'{json.dumps(value)}\n' for value in values)
    if lines:
        with open(file, 'ab') as out:
            out.write(f'\n{lines}'.encode())  # after a line that was cut off


def read(file: Path, length: int) -> Iterator[list]:
    """Yields the values, lists of `length` that begin with a text; damaged lines are left out, no file has none."""
    try:
        with open(file, 'rb') as lines:
            for line in lines:
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(value, list) and len(value) == length and isinstance(value[0], str):
                    yield value
    except OSError:
        return
