"""Tables are whole again after a kill."""
import pytest

from common.evaluation.predictor import Prediction
from common.evaluation.report import table_row
from common.reporting.tables import Tables
from extras.inbox.earlier import reopen


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
    for left in (whole[:-1], whole[:-20], lines + b'\0\0', lines + b'{"path": 3}\n', lines + b'[]\n'):
        tables.lines.write_bytes(left)
        tables.csv.write_bytes(sheet[:-30])
        assert [found['path'] for found in reopen(tables)] == ['1.png', '2.png']
        assert tables.lines.read_bytes() == lines and tables.csv.read_bytes() == sheet


def test_without_rows_there_is_no_old_spreadsheet(tables):
    tables.csv.write_text('of another run')
    assert list(reopen(tables)) == [] and not tables.csv.exists()
