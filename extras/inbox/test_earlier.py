"""Tables are whole again after a kill."""
import contextlib
import json

import pytest
from fuzzing import STRANGE, as_lines, cases, check_line, confined, not_waited_for, put_strange, spoiled_file

from common.evaluation.predictor import Prediction
from common.evaluation.report import table_row
from common.reporting.tables import Tables
from common.runtime.errors import UserError
from common.runtime.files import discard
from common.runtime.schema import wrong_place
from extras.inbox.earlier import ROW, reopen


def row(name):
    return table_row(Prediction(name, 'a', 0.75, 0.5, [('a', 0.75), ('b', 0.25)]), name, (12, 34))


@pytest.fixture
def tables(tmp_path):
    return Tables(tmp_path)


def test_rows_come_back_as_they_were(tables):
    rows = [row('1.png'), table_row(Prediction('x', error='bad'), 'x', (0, 0)), row('=1+1\n\u2028\udc80.png')]
    tables.append(rows)
    sheet = tables.csv.read_bytes()
    assert list(reopen(tables)) == rows and tables.csv.read_bytes() == sheet


def test_a_run_that_was_killed_left_whole_rows(tables):
    """A row that was cut off is dropped, and one that had not reached the spreadsheet is there."""
    tables.append([row('1.png'), row('2.png')])
    sheet, lines = tables.csv.read_bytes(), tables.lines.read_bytes()
    tables.append([row('3.png')])
    whole = tables.lines.read_bytes()
    for left in (whole[:-1], whole[:-20], lines + b'\0\0', lines + b'\0\0\n'):
        tables.lines.write_bytes(left)
        tables.csv.write_bytes(sheet[:-30])
        assert [found['path'] for found in reopen(tables)] == ['1.png', '2.png']
        assert tables.lines.read_bytes() == lines and tables.csv.read_bytes() == sheet


GOOD = {'path': 'a.png', 'class': 'a', 'confidence': 1, 'certainty': 0.5, 'top5': [{'class': 'a', 'confidence': 1}],
        'error': '', 'bytes': 1, 'modified_ns': 17 * 10 ** 17}


@pytest.mark.parametrize('change', [
    {'path': 5}, {'path': 'a\ud800.png'}, {'path': 'a\0'}, {'top5': [1]}, {'top5': None}, {'top5': [{'class': 'a'}]},
    {'top5': [{'class': 'a', 'confidence': '1'}]}, {'class': []}, {'bytes': -1}, {'bytes': True},
    {'modified_ns': 'now'}, {'modified_ns': 10 ** 400}, {'confidence': float('nan')}, {'error': []}])
def test_a_row_of_someone_else_is_refused_and_nothing_is_changed(tables, change):
    bad = json.dumps({**GOOD, **change})
    good = json.dumps(GOOD)
    tables.csv.write_text('old')
    for text in (f'{bad}\n', f'{good}\n{bad}\n{good}\n', f'{good}\n[]\n', f'{good}\nx\n{good}\n'):
        tables.lines.write_text(text)
        with pytest.raises(UserError, match=r'predictions\.jsonl, line [12], is no row of test\.py: move') as error:
            list(reopen(tables))
        assert '\n' not in str(error.value)
        assert tables.lines.read_text() == text and tables.csv.read_text() == 'old'
    tables.lines.write_text(f'{good}\n{good}\n')
    assert list(reopen(tables)) == [GOOD] * 2


@cases(100)
def test_fuzz_rows(tmp_path_factory, random):
    """Rows come back, or the file is refused and left as it is; no other file is touched."""
    tables = Tables(tmp_path_factory.getbasetemp())
    content = spoiled_file(random, [GOOD, GOOD, GOOD], as_lines)
    tables.lines.write_bytes(content)
    with confined(tables.folder):
        try:
            rows = list(reopen(tables))
        except UserError as error:
            check_line(error)
            assert tables.lines.read_bytes() == content
        else:
            assert [*reopen(tables)] == rows and all(wrong_place(row, ROW) is None for row in rows)


@pytest.mark.parametrize('what', STRANGE)
def test_what_is_no_table_is_not_waited_for(tables, what):
    for path in (tables.lines, tables.csv):
        put_strange(path, what)
        with not_waited_for(), confined(tables.folder), contextlib.suppress(UserError):
            list(reopen(tables))
            tables.append([GOOD])
        discard(path)


def test_without_rows_there_is_no_old_spreadsheet(tables):
    tables.csv.write_text('of another run')
    assert list(reopen(tables)) == [] and not tables.csv.exists()
