"""common/reporting: plots and tables from rows and scores."""
import csv
import itertools
import json
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from helpers import ROOT
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from common.evaluation.metrics import scores
from common.evaluation.report import build_report
from common.reporting import plots
from common.reporting.tables import short_labels, write_report, write_suspects
from common.runtime.console import text_width
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


NAMES = {
    2: ['a', 'b'],
    3: ['cat', 'dog', 'bird'],
    4: [f'0000{number}_' + 'Animalia_' * 21 + f'{number}' for number in range(4)],
    12: ['植物' * 60, 'a 🐟', '$x^2$', 'two\nlines', '\x1b[2Jx', 'W' * 200, 'a', 'b_{c}', 'é' * 40, 'i' * 200, '', '%'],
    70: [f'{number}' * 40 for number in range(70)],
    130: [f'植物{number}' for number in range(130)],
    131: [f'{number}' * 40 for number in range(131)]}


def when_saved(monkeypatch, look):
    """Call look(figure, renderer) with each figure that is saved, when it is laid out."""
    save = Figure.savefig

    def measured(figure, *arguments, **options):
        save(figure, *arguments, **options)
        look(figure, figure.canvas.get_renderer())

    monkeypatch.setattr(Figure, 'savefig', measured)


@pytest.mark.parametrize('count', NAMES)
def test_a_confusion_matrix_is_as_large_as_it_should_be_and_nothing_is_cut(tmp_path, monkeypatch, count):
    """Whatever the names are like: title and names lie inside the picture, beside the matrix, which is not squeezed."""
    found = {}

    def look(figure, renderer):
        axes = figure.axes[0]
        found['matrix'] = axes.get_window_extent(renderer)
        texts = [figure._suptitle, axes.xaxis.label, axes.yaxis.label]
        if count <= 130:  # otherwise these are numbers, some of them of ticks outside
            texts += [*axes.get_xticklabels(), *axes.get_yticklabels()]
            rows = [label.get_window_extent(renderer) for label in axes.get_yticklabels()]
            assert all(lower.y1 < upper.y0 + 1 for upper, lower in itertools.pairwise(rows))
            for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
                assert [label.get_text() for label in labels] == short_labels(NAMES[count], 40)
                assert {label.get_fontsize() > 6.9 for label in labels} == {True}
            assert axes.get_ylabel() == 'true'
        else:
            assert 'class.json' in axes.get_xlabel() and 'class.json' in axes.get_ylabel()
        found['texts'] = [text.get_window_extent(renderer) for text in texts if text.get_text()]
        found['size'] = figure.bbox

    when_saved(monkeypatch, look)
    logits = torch.eye(count)
    plots.plot_confusion(tmp_path / 'x.png', scores(logits, torch.arange(count), NAMES[count]), NAMES[count])
    matrix = found['matrix']
    dots = 110  # an inch
    assert min(matrix.width, matrix.height) > 0.75 * dots * min(18, max(2.5, 0.45 * count))
    for extent in found['texts']:
        assert extent.x0 > -2 and extent.y0 > -2
        assert extent.x1 < found['size'].width + 2 and extent.y1 < found['size'].height + 2
        beside = extent.x1 < matrix.x0 + 1 or extent.y1 < matrix.y0 + 1 or extent.y0 > matrix.y1 - 1
        assert beside


@pytest.mark.parametrize('count, images, shown', [(43, 1, True), (43, 1234, True), (88, 100, True), (88, 12345, False),
                                                  (200, 1, False)])
def test_a_confusion_matrix_has_counts_where_they_fit_its_cells(tmp_path, monkeypatch, count, images, shown):
    found = {}

    def look(figure, renderer):
        axes = figure.axes[0]
        found['cell'] = axes.get_window_extent(renderer).width / count
        found['texts'] = [(text.get_text(), text.get_window_extent(renderer)) for text in axes.texts]

    when_saved(monkeypatch, look)
    result = {'confusion': images * np.eye(count, dtype=int), 'acc1': 100., 'acc1_interval': (90., 100.), 'acc5': 100.,
              'balanced_accuracy': 100.}
    plots.plot_confusion(tmp_path / 'x.png', result, [str(number) for number in range(count)])
    assert [text for text, _ in found['texts']] == [str(images)] * count * shown
    assert all(extent.width < found['cell'] and extent.height < found['cell'] for _, extent in found['texts'])


def test_thousands_of_counts_are_not_drawn(tmp_path, monkeypatch):
    """They would take seconds after every epoch."""
    texts = []
    when_saved(monkeypatch, lambda figure, renderer: texts.append(len(figure.axes[0].texts)))
    for side in (40, 60):
        result = {'confusion': np.ones((side, side), int), 'acc1': 1., 'acc1_interval': (0., 2.), 'acc5': 5.,
                  'balanced_accuracy': 1.}
        plots.plot_confusion(tmp_path / 'x.png', result, [str(number) for number in range(side)])
    assert texts == [1600, 0]


def test_labels_are_short_printable_and_different():
    names = ['a', 'x' * 99, '\x1b[2J', 'x' * 98, '植' * 30, f'{"y" * 30}1{"z" * 30}', f'{"y" * 30}2{"z" * 30}']
    labels = short_labels(names, 20)
    assert labels[:2] == ['a', 'xxxxxxxx…xxxxxxxx #1'] and labels[2] == '\\x1b[2J'
    assert len(set(labels)) == len(names) and max(map(text_width, labels)) <= 20
    assert labels[4] == '植' * 5 + '…' + '植' * 4


def test_names_below_an_image_of_the_contact_sheet_are_whole_in_short_lines(tmp_path, monkeypatch):
    """Two classes may differ in their middle alone, also where an image of one is taken for the other."""
    drawn = []
    label = Axes.set_xlabel

    def noted(axes, text, **options):
        drawn.append(text.split('\n'))
        return label(axes, text, **options)

    monkeypatch.setattr(Axes, 'set_xlabel', noted)
    names = ['hydromedusae_shapeA_sideview_small', 'hydromedusae_shapeB_sideview_small']
    cells = [plots.Cell(Image.new('RGB', (9, 9)), 'a 9%', 'green')]
    for predicted, true_class in (names, ('n' * 200, 'two\nlines'), ('植' * 80, 'b')):
        row = {'path': 'a/1.png', 'class': predicted, 'confidence': 0.87, 'error': ''}
        cells.append(plots.prediction_cell(row, true_class, lambda path: Image.new('RGB', (9, 99))))
    plots.contact_sheet(tmp_path / 'x.png', cells, 'four')
    assert drawn[:2] == [['a 9%'], ['hydromedusae_shapeA_', 'sideview_small 87%', 'is hydromedusae_shapeB_',
                                    'sideview_small']]
    assert [''.join(lines) for lines in drawn[2:]] == ['n' * 200 + ' 87%is two\\nlines', '植' * 80 + ' 87%is b']
    assert max(text_width(line) for lines in drawn for line in lines) <= 24


def test_a_name_that_no_folder_could_have_is_cut_on_the_contact_sheet(tmp_path):
    """It may stand in the checkpoint of a stranger."""
    plots.contact_sheet(tmp_path / 'x.png', [plots.Cell(None, 'n' * 3000, 'black')], 'one')
    assert Image.open(tmp_path / 'x.png').height < 800


def test_drawing_leaves_a_users_settings_of_matplotlib_as_they_are(tmp_path):
    """And does not follow them: LaTeX may be missing, and class names are no formulas."""
    rows = [{'epoch': 1, 'loss': 1.}]
    with matplotlib.rc_context({'text.usetex': True, 'font.family': ['no such font'], 'text.parse_math': True}):
        matplotlib.rcParams['backend'] = 'svg'
        before = dict(matplotlib.rcParams)
        plots.plot_curves(tmp_path / 'x.png', rows, {'loss': '$loss$ %'}, 'loss')
        assert dict(matplotlib.rcParams) == before
    assert Image.open(tmp_path / 'x.png').format == 'PNG'


def test_plots_are_drawn_where_a_notebooks_backend_is_missing(tmp_path):
    """Jupyter and Colab set MPLBACKEND also for `!python train.py`, whose environment may be another one."""
    code = ('import os, sys; from pathlib import Path; from common.reporting.plots import plot_curves\n'
            'plot_curves(Path("x.png"), [{"epoch": 1, "loss": 1.0}], {"loss": "loss"}, "loss")\n'
            'assert os.environ["MPLBACKEND"] == sys.argv[1]; import matplotlib\n'
            'assert sys.argv[1] != "svg" or matplotlib.rcParams["backend"] == "svg"')
    for backend in ('module://matplotlib_inline.backend_inline', 'no_such_backend', 'svg'):
        env = {**os.environ, 'PYTHONPATH': str(ROOT), 'MPLBACKEND': backend}
        done = subprocess.run([sys.executable, '-c', code, backend], cwd=tmp_path, env=env, text=True,
                              capture_output=True)
        assert done.returncode == 0, done.stderr
        (tmp_path / 'x.png').unlink()


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
