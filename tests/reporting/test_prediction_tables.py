"""Tables that grow, and are whole again after a kill."""
import csv

import pytest

from common.evaluation.predictor import Prediction
from common.reporting.tables import Tables, describe


def row(name, **changes):
    found = {'label': 'a', 'confidence': 0.75, 'certainty': 0.5, 'top': [('a', 0.75), ('b', 0.25)], **changes}
    return describe(Prediction(name, **found), name, (12, 34))


def cells(folder):
    with open(folder / 'predictions.csv', encoding='utf-8-sig', newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture
def tables(tmp_path):
    return Tables(tmp_path)


def test_rows_are_added(tables, tmp_path):
    rows = [row('1.png'), describe(Prediction('x', error='bad'), 'x', (0, 0)), row('=1+1\n\u2028\udc80.png')]
    tables.append(rows[:2])
    tables.append(rows[2:])
    sheet = tables.csv.read_bytes()
    assert list(Tables(tmp_path).reopen()) == rows and tables.csv.read_bytes() == sheet
    assert [cell['path'] for cell in cells(tmp_path)] == ['1.png', 'x', "'=1+1\\n\\u2028\\udc80.png"]
    assert cells(tmp_path)[0] == {'path': '1.png', 'class': 'a', 'confidence': '0.75', 'certainty': '0.5',
                                  'top5': 'a 0.7500; b 0.2500', 'error': ''}
    assert (tmp_path / 'predictions.csv').read_bytes().count(b'\xef\xbb\xbf') == 1


def test_a_run_that_was_killed_left_whole_rows(tables, tmp_path):
    """A row that was cut off is dropped, and one that had not reached the spreadsheet is there."""
    tables.append([row('1.png'), row('2.png')])
    sheet, lines = tables.csv.read_bytes(), tables.lines.read_bytes()
    tables.append([row('3.png')])
    whole = tables.lines.read_bytes()
    for left in (whole[:-1], whole[:-20], lines + b'\0\0', lines + b'{"path": 3}\n', lines + b'[]\n'):
        tables.lines.write_bytes(left)
        tables.csv.write_bytes(sheet[:-30])
        assert [found['path'] for found in Tables(tmp_path).reopen()] == ['1.png', '2.png']
        assert tables.lines.read_bytes() == lines and tables.csv.read_bytes() == sheet


def test_without_rows_there_is_no_old_spreadsheet(tables, tmp_path):
    tables.csv.write_text('of an earlier version')
    assert list(tables.reopen()) == [] and not tables.csv.exists()
