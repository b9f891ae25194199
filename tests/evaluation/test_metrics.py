"""common/evaluation/metrics.py, by cases that can be counted by hand."""
import math

import pytest
import torch

from common.evaluation.metrics import interval, scores
from common.evaluation.report import build_report
from common.reporting.page import headline_tiles


def test_scores_of_a_known_case():
    logits = torch.tensor([[3., 0, 0], [3, 0, 0], [0, 3, 0], [3, 0, 0]])
    result = scores(logits, torch.tensor([0, 0, 1, 1]), ['a', 'b', 'never'])
    assert result['acc1'] == 75 and result['acc5'] == 100 and result['balanced_accuracy'] == 75
    assert result['acc1_interval'] == interval(75, 4)
    assert result['confusion'].tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert result['report']['b']['recall'] == 0.5 and ' b ' in result['report_text']
    assert result['loss'] == pytest.approx(torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0, 1, 1])).item())


def test_a_class_without_images_lowers_no_mean():
    """The network is right on all but one image, which it takes for a class that has no images here."""
    guess = torch.tensor([0, 0, 1, 2])
    targets = torch.tensor([0, 0, 1, 1])
    classes = ['a', 'b', 'guessed', 'never']
    logits = 9. * torch.eye(4)[guess]
    found = scores(logits, targets, classes)
    macro = {'precision': 1., 'recall': 0.75, 'f1-score': pytest.approx((1 + 2 / 3) / 2), 'support': 4}
    assert found['report']['macro avg'] == macro and 'guessed' not in found['report']
    assert found['balanced_accuracy'] == 75 and found['macro_f1'] == macro['f1-score']
    assert '2 of 4 classes have no images here' in found['report_text'] and 'never' not in found['report_text']

    report = build_report(found, logits, targets, torch.ones(4), list('wxyz'), classes)
    assert [row['recall'] for row in report['per_class']] == [1, 0.5, None, None]
    assert [row['precision'] for row in report['per_class']] == [1, 1, 0, 0]
    notes = {tile.label: tile.note for tile in headline_tiles(report, 'on val')}
    assert notes['macro F1'] == 'mean over the classes, except 2 that have no images'
    assert notes['balanced accuracy'] == 'every class counts the same, except 2 that have no images'


def test_the_interval_is_wilsons():
    for count, right in ((10, 5), (10, 0), (216, 194)):
        z, share = 1.959964, right / count
        middle, half = share + z ** 2 / 2 / count, z * math.sqrt(share * (1 - share) / count + (z / 2 / count) ** 2)
        low, high = interval(100 * share, count)
        assert low == pytest.approx(100 * (middle - half) / (1 + z ** 2 / count), abs=1e-4)
        assert high == pytest.approx(100 * (middle + half) / (1 + z ** 2 / count), abs=1e-4)


def test_an_acc1_that_was_rounded_up_has_an_interval():
    """As 100 % of 1,234,567 images is, in fp32."""
    assert interval(100.00001, 10 ** 8) == interval(100., 10 ** 8)


def test_acc5_counts_the_five_most_probable():
    logits = torch.arange(10.).repeat(10, 1)
    assert scores(logits, torch.arange(10), [str(i) for i in range(10)])['acc5'] == 50
