"""Labels that were swapped are found, in what the network did not learn and in what it did."""
import csv
import math

import numpy as np
import pytest
import torch
from helpers import draw_folder, read_json, run
from PIL import Image

from common.evaluation.metrics import scores
from common.evaluation.report import answers, build_report
from common.evaluation.suspects import Margins, find_suspects


def test_confident_learning_counted_by_hand():
    """Pictures labelled 0 are 0.8 probable there on average, those labelled 1 are 0.5: these are the bars."""
    shares = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.1, 0.9], [0.95, 0.05], [0.55, 0.45]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    assert [(index, guess) for index, guess, _ in find_suspects(shares, labels)] == [(5, 0)]
    assert find_suspects(shares, labels)[0][2] == pytest.approx(0.05 - 0.95)


def test_a_class_without_pictures_suspects_nobody():
    shares = torch.tensor([[0.2, 0.1, 0.7]] * 3)
    assert find_suspects(shares, torch.tensor([0, 0, 1])) == [(2, 0, pytest.approx(-0.1))]


def test_margins_average_unmixed_pictures():
    margins = Margins(5)
    margins.add(np.array([3, 1]), torch.tensor([[-0.5, 2, 1], [0.9, 4, 1]]))
    margins.add(np.array([1, 3]), torch.tensor([[0.7, 0, 1], [-1., 4, 1]]))
    margins.add(np.array([3, 2]), torch.tensor([[0.9, 1, 0], [-0.1, 0, 1]]))
    assert margins.suspects() == [(3, 4, pytest.approx(math.tanh(-0.375))), (2, 0, pytest.approx(math.tanh(-0.05)))]
    two = torch.tensor([-0.75, 0]).softmax(0)
    assert margins.suspects()[0][2] == pytest.approx((two[0] - two[1]).item())
    again = Margins(5)
    again.load(vars(margins))
    assert again.suspects() == margins.suspects()


def test_answers_are_accuracy_over_the_share_answered():
    found = answers(torch.tensor([0.5, 0.9, 0.7, 0.6]), torch.tensor([False, True, True, False]))
    assert found['answered'] == [0.25, 0.5, 0.75, 1]
    assert found['accuracy'] == pytest.approx([1, 1, 2 / 3, 0.5])
    assert found['certainty'] == pytest.approx([0.9, 0.7, 0.6, 0.5])
    assert len(answers(torch.rand(5000), torch.ones(5000) > 0)['answered']) == 200


def test_the_report_shows_the_most_confident_mistakes_and_the_least_confident_hits():
    shares = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.8, 0.2], [0.45, 0.55], [0.65, 0.35]])
    targets, classes = torch.tensor([0, 0, 1, 1, 0]), ['a', 'b']
    report = build_report(scores(shares.log(), targets, classes), shares.log(), targets, shares.amax(1),
                          list('vwxyz'), classes)
    assert [item['file'] for item in report['mistakes']] == ['x', 'w']
    assert [item['file'] for item in report['doubtful']] == ['y', 'z', 'v']
    assert report['mistakes'][0] == {'file': 'x', 'class': 'b', 'named': 'a', 'confidence': pytest.approx(0.8)}
    assert [row['roc_auc'] for row in report['per_class']] == [0.5, 0.5]
    assert report['macro_f1'] == pytest.approx(report['report']['macro avg']['f1-score'])


def test_swapped_labels_come_first_in_suspects_csv(tmp_path, monkeypatch, folder):
    """Grey levels are easily learnt: two training pictures and one of val lie in the wrong folder. That one is a
    clearer b than those of val are on average, since one of them is halfway to a.
    """
    draw_folder(tmp_path / 'more', {'a': 12, 'b': 12}, seed=3)
    wrong = {'train/a/1.png': 'more/b/001.png', 'train/b/2.png': 'more/a/002.png', 'val/a/3.png': 'more/b/003.png'}
    for target, source in wrong.items():
        (tmp_path / source).rename(tmp_path / 'data' / target)
    halfway = tmp_path / 'data' / 'val' / 'b' / '000.png'
    Image.open(halfway).point(lambda value: value - 90).save(halfway)
    for name in 'ab':
        for path in (tmp_path / 'more' / name).iterdir():
            path.rename(tmp_path / 'data' / 'train' / name / f'more{path.name}')
    monkeypatch.setattr('common.training.log.plot_training', lambda *arguments: None)
    run(epochs=8, validate_every=8, mixup_prob=0.2, accumulate_steps=2)
    with open('out/suspects.csv', encoding='utf-8-sig', newline='') as file:
        rows = list(csv.DictReader(file))
    assert {row['file'] for row in rows[:3]} == set(wrong)
    assert all(row['perhaps'] != row['class'] for row in rows)
    assert [row['file'] for row in read_json('out/report.json')['suspects']][:1] == ['val/a/3.png']
    saved = torch.load('out/last.pth')['margins']
    assert saved['counts'].max() <= 8 and saved['counts'].float().mean() > 3
