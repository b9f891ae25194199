"""common/evaluation/metrics.py, by cases that can be counted by hand."""
import math

import pytest
import torch

from common.evaluation.metrics import interval, scores


def test_scores_of_a_known_case():
    logits = torch.tensor([[3., 0, 0], [3, 0, 0], [0, 3, 0], [3, 0, 0]])
    result = scores(logits, torch.tensor([0, 0, 1, 1]), ['a', 'b', 'never'])
    assert result['acc1'] == 75 and result['acc5'] == 100 and result['balanced_accuracy'] == 75
    assert result['acc1_interval'] == interval(75, 4)
    assert result['confusion'].tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert result['report']['b']['recall'] == 0.5 and 'never' in result['report_text']
    assert result['loss'] == pytest.approx(torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0, 1, 1])).item())


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
