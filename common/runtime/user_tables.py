"""Tables that a person writes: CSV files as any spreadsheet or text editor saves them."""
import codecs
import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from common.runtime.console import printable
from common.runtime.disks import regular
from common.runtime.errors import UserError

_DELIMITERS = (',', ';', '\t', '|')  # Excel saves semicolons where the comma is the decimal sign
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_WORKBOOK = b'PK\x03\x04'            # how .xlsx and .ods begin
_SHOWN = 80                          # characters of a line in an error


class TableRow(NamedTuple):
    """A row of a table."""
    place: str              # what errors call it, such as "LABELS = 'labels.csv', line 3"
    cells: dict[str, str]   # {column: text}; '' where the table has no such column or cell


def read_user_table(path: str, constant: str, required: Sequence[str], optional: Sequence[str] = (),
                    blank: Sequence[str] = ()) -> Iterator[TableRow]:
    """Yield the rows of a table that has the `required` columns, and perhaps the `optional` ones, in any order.

    It must also have the `blank` columns, in which a cell may be empty.

    `constant` is the setting that names the file. Commas, semicolons, tabs or bars divide the cells. The names of the
    columns may be in any letter case. Other columns and empty rows are passed over. The texts are as they were written,
    but for spaces before them. Raises UserError, naming the file, for a file that is no such table, and for a row
    without one of the required texts.
    """
    named = f'{constant} = {path!r}'
    text = _read_text(path, named)
    try:
        header, rows = _find_header(text, named, (*required, *blank))
        columns = {}
        for name in (*required, *blank, *optional):
            if header.count(name) > 1:
                raise UserError(f'{named}: it has more than one column {name}: keep one of them')
            if name in header:
                columns[name] = header.index(name)
        for number, row in rows:
            place = f'{named}, line {number}'
            if len(row) > len(header) and any(map(tidy, row[len(header):])):
                raise UserError(f'{place}: it has {len(row)} cells, and the first line has {len(header)}: put a text '
                                'with a comma in it into quotation marks')
            cells = dict.fromkeys((*required, *blank, *optional), '')
            for name, column in columns.items():
                if column < len(row):
                    cells[name] = row[column]
            if not all(tidy(cells[name]) for name in required):
                raise UserError(f'{place}: a row needs a {" and a ".join(required)}')
            yield TableRow(place, cells)
    except csv.Error as error:
        raise UserError(f'{named} cannot be read: {error}') from None


def tidy(text: str) -> str:
    """Return a text of a table without the spaces around it, and with each accented letter as one character.

    Two texts that look alike, 'cat' and 'cat ', or 'é' and 'e' with an accent, are then the same.
    """
    return unicodedata.normalize('NFC', text.strip())


def _find_header(text, named, required):
    """Return (the names of the columns, an iterator over the rows below). Raises UserError and csv.Error."""
    for delimiter in _DELIMITERS:
        rows = _rows(text, delimiter)
        _, first = next(rows, (0, []))
        header = [tidy(cell).lower() for cell in first]
        if set(required) <= set(header):
            return header, rows
    _, first = next(_rows(text, _DELIMITERS[0]), (0, []))
    found = printable(','.join(first)[:_SHOWN])
    raise UserError(f'{named}: the first line must name the columns {" and ".join(required)}, as in '
                    f'"{",".join(required)}", but is "{found}"')


def _rows(text, delimiter):
    """Yield (the number of its last line, its cells) of each row that has any text. Raises csv.Error.

    'sep=;' and the like in the first line are Excel's, and no row.
    """
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, skipinitialspace=True)
    for row in reader:
        is_note = reader.line_num == 1 and row and row[0].lower().startswith('sep=')
        if not is_note and any(map(tidy, row)):
            yield reader.line_num, row


def _read_text(path, named):
    """Return the text of a file. Raises UserError."""
    try:
        content = regular(path).read_bytes()
    except OSError as error:
        raise UserError(f'{named} cannot be read: {error.strerror or error}') from None
    if content.startswith(_WORKBOOK):
        raise UserError(f'{named} is a workbook: save it as "CSV UTF-8"')
    try:
        return content.decode('utf-16' if content.startswith(_UTF_16) else 'utf-8-sig')
    except UnicodeDecodeError:
        raise UserError(f'{named} cannot be read: it is not in UTF-8; a spreadsheet saves it as "CSV UTF-8"') from None
