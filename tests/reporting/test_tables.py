"""The tables of predictions, which grow."""
import csv
import json

from common.evaluation.predictor import Prediction
from common.evaluation.report import table_row
from common.reporting.tables import Tables


def row(name):
    return table_row(Prediction(name, 'a', 0.75, 0.5, [('a', 0.75), ('b', 0.25)]), name, (12, 34))


def test_rows_are_added(tmp_path):
    tables = Tables(tmp_path)
    rows = [row('1.png'), table_row(Prediction('x', error='bad'), 'x', (0, 0)), row('=1+1\n\u2028\udc80.png')]
    tables.append(rows[:2])
    tables.append(rows[2:])
    with open(tables.lines, encoding='utf-8') as file:
        assert [json.loads(line) for line in file] == rows
    assert tables.lines.read_text(encoding='utf-8').replace('\n', '').isprintable()
    with open(tables.csv, encoding='utf-8-sig', newline='') as file:
        cells = list(csv.DictReader(file))
    assert [cell['path'] for cell in cells] == ['1.png', 'x', "'=1+1\\n\\u2028\\udc80.png"]
    assert cells[0] == {'path': '1.png', 'class': 'a', 'confidence': '0.75', 'certainty': '0.5',
                        'top5': 'a 0.7500; b 0.2500', 'error': ''}
    assert tables.csv.read_bytes().count(b'\xef\xbb\xbf') == 1
