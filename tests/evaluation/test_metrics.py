"""Scores, plots, tables, files and the clock."""
import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.evaluation.metrics import scores
from common.reporting import plots as report
from common.reporting.tables import write_scores
from common.runtime.console import format_duration
from common.runtime.errors import UserError
from common.runtime.files import replacing, writable_folder, write_csv
from common.training.clock import Clock


def test_scores_of_a_known_case():
    logits = torch.tensor([[3., 0, 0], [3, 0, 0], [0, 3, 0], [3, 0, 0]])
    result = scores(logits, torch.tensor([0, 0, 1, 1]), ['a', 'b', 'never'])
    assert result['acc1'] == 75 and result['acc5'] == 100 and result['balanced_accuracy'] == 75
    assert result['confusion'].tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert result['report']['b']['recall'] == 0.5 and 'never' in result['report_text']
    assert result['loss'] == pytest.approx(torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0, 1, 1])).item())


def test_acc5_counts_the_five_most_probable():
    logits = torch.arange(10.).repeat(10, 1)
    assert scores(logits, torch.arange(10), [str(i) for i in range(10)])['acc5'] == 50


def test_tables_and_pictures(tmp_path):
    history = [{'epoch': epoch, 'lr': 0.1, 'train_loss': 3 / epoch, 'raw_loss': 2., 'ema_loss': None, 'train_acc1': 30.,
                'raw_acc1': 10. * epoch, 'ema_acc1': None} for epoch in (1, 2, 3)]
    report.plot_training(tmp_path, history, {'epoch': 3, 'acc1': 30., 'weights': 'raw'})
    write_csv(tmp_path / 'log.csv', history)
    classes = ['plain', '$x^2$', '植物', 'a_b']
    logits = torch.eye(4)
    write_scores(tmp_path, scores(logits, torch.arange(4), classes), classes, {'epoch': 3})
    cells = [(Image.new('RGB', (9, 9), 'red'), '$y', 'red'), (None, 'unreadable', 'black')]
    report.contact_sheet(tmp_path / 'predictions.png', cells, 'two')
    assert len(list(csv.DictReader((tmp_path / 'log.csv').read_text(encoding='utf-8-sig').splitlines()))) == 3
    found = json.loads((tmp_path / 'report.json').read_text(encoding='utf-8'))
    assert found['epoch'] == 3 and found['confusion'] == {name: {name: 1} for name in classes}
    for name in ('loss', 'acc', 'lr', 'confusion', 'predictions'):
        pixels = np.asarray(Image.open(tmp_path / f'{name}.png').convert('L'))
        assert min(pixels.shape) > 200 and pixels.std() > 5  # something is drawn
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match="OUTPUT_DIR = .*file/x' cannot be written"):
        writable_folder(tmp_path / 'file' / 'x', 'OUTPUT_DIR')


def test_a_file_is_whole_or_the_old_one(tmp_path):
    (tmp_path / 'x').write_text('old')
    with pytest.raises(UserError, match='x cannot be written'), replacing(tmp_path / 'x') as aside:
        aside.write_text('half')
        raise OSError('disk full')
    assert (tmp_path / 'x').read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


def test_clock():
    clock = Clock(steps=10, epochs=4, rest=5)
    assert clock.left(0, 1) is None
    for seconds in (9, 2, 2):  # the first step is not typical
        clock.step(seconds)
    assert clock.epoch_seconds() == 30 and clock.left(0, 0) == 120 and clock.left(3, 9) == pytest.approx(12)
    clock.rest_seconds = 4
    assert clock.left(2, 0) == 48 and clock.left(4, 0) == 0


def test_format_duration():
    assert [format_duration(s) for s in (None, 9.6, 75, 3725)] == ['?', '10 s', '1 min 15 s', '1 h 02 min']
