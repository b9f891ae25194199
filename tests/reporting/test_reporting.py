"""common/reporting: plots and tables from rows and scores."""
import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.evaluation.metrics import scores
from common.evaluation.report import build_report
from common.reporting import plots
from common.reporting.tables import write_report, write_suspects
from common.runtime.errors import UserError
from common.runtime.files import write_csv


def test_tables_and_plots(tmp_path):
    history = [{'epoch': epoch, 'lr': 0.1, 'train_loss': 3 / epoch, 'raw_loss': 2., 'ema_loss': None, 'train_acc1': 30.,
                'raw_acc1': 10. * epoch, 'ema_acc1': None} for epoch in (1, 2, 3)]
    plots.plot_training(tmp_path, history, {'epoch': 3, 'acc1': 30., 'weights': 'raw'})
    write_csv(tmp_path / 'log.csv', history)
    classes = ['plain', '$x^2$', '植物', 'a_b']
    logits = torch.eye(4)
    result = scores(logits, torch.arange(4), classes)
    report = build_report(result, logits, torch.arange(4), torch.ones(4), list('abcd'), classes)
    write_report(tmp_path, result, {'epoch': 3, **report})
    write_suspects(tmp_path / 'suspects.csv', report['suspects'])
    plots.plot_confusion(tmp_path / 'confusion.png', result, classes)
    cells = [plots.Cell(Image.new('RGB', (9, 9), 'red'), '$y', 'red'), plots.Cell(None, 'unreadable', 'black')]
    plots.contact_sheet(tmp_path / 'predictions.png', cells, 'two')
    assert len(list(csv.DictReader((tmp_path / 'log.csv').read_text(encoding='utf-8-sig').splitlines()))) == 3
    found = json.loads((tmp_path / 'report.json').read_text(encoding='utf-8'))
    assert found['epoch'] == 3 and found['confusion'] == {name: {name: 1} for name in classes}
    assert (tmp_path / 'suspects.csv').read_text(encoding='utf-8-sig') == '"file","class","perhaps","score"\n'
    for name in ('loss', 'acc', 'lr', 'confusion', 'predictions'):
        pixels = np.asarray(Image.open(tmp_path / f'{name}.png').convert('L'))
        assert min(pixels.shape) > 200 and pixels.std() > 5  # something is drawn
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]


def test_class_names_are_no_terminal_codes_in_the_report(tmp_path):
    classes = ['\x1b]0;x\x07\x1b[2Ja', 'b']
    logits = torch.eye(2)
    result = scores(logits, torch.arange(2), classes)
    report = build_report(result, logits, torch.arange(2), torch.ones(2), ['a', 'b'], classes)
    write_report(tmp_path, result, report)
    for name in ('report.txt', 'report.json'):
        text = (tmp_path / name).read_text(encoding='utf-8')
        assert all(character.isprintable() or character == '\n' for character in text) and '[2Ja' in text
    assert json.loads((tmp_path / 'report.json').read_text(encoding='utf-8'))['per_class'][0]['class'] == classes[0]


def test_what_fails_in_drawing_is_an_error_of_one_line(tmp_path):
    with pytest.raises(UserError, match=r'x\.png could not be drawn \(KeyError: .epoch.\)'):
        plots.plot_curves(tmp_path / 'x.png', [{'loss': 1.}], {'loss': 'loss'}, 'loss')
    assert not list(tmp_path.iterdir())


def test_a_cell_is_green_where_the_answer_is_right():
    def open_image(path):
        if path == 'gone.png':
            raise UserError(f'{path}: no such file')
        return Image.new('RGB', (999, 9))

    def cell(true_class, path='a/1.png', error=''):
        return plots.prediction_cell({'path': path, 'class': 'a', 'confidence': 0.9, 'error': error}, true_class,
                                     open_image)

    assert [cell(name).colour for name in ('a', 'b', None)] == ['green', 'red', 'black']
    assert cell('a').text == 'a 90%' and cell('b').text == 'a 90%\nis b' and cell('a').image.width < 999
    assert cell('a', error='bad') == (None, 'a/1.png\nunreadable', 'black')
    assert cell('a', path='gone.png') == (None, 'gone.png: no such file', 'black')
