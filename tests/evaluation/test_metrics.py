"""common/evaluation/metrics.py, by cases that can be counted by hand."""
import math

import pytest
import torch
from torch.overrides import TorchFunctionMode

from common.evaluation.metrics import BatchMeter, interval, scores


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


def test_acc5_counts_the_five_most_probable():
    logits = torch.arange(10.).repeat(10, 1)
    assert scores(logits, torch.arange(10), [str(i) for i in range(10)])['acc5'] == 50


def test_a_meter_counts_unmixed_images_and_averages_batches():
    meter = BatchMeter(0.1, 4, [0, 1, 2, 3])
    logits = torch.tensor([[2., 0, 0], [0, 2, 0], [0, 0, 2], [2, 0, 0]])
    labels = torch.tensor([0, 0, 2, 1])
    targets = torch.full((4, 3), 0.1 / 3).scatter(1, labels[:, None], 0.9 + 0.1 / 3)
    targets[2] = torch.tensor([0.3, 0.3, 0.4])  # a mixture, though it is classified correctly
    meter.add(torch.tensor(1.), logits, labels, targets)
    meter.add(torch.tensor(2.), logits.flip(0), labels.flip(0), targets.flip(0))
    loss, correct, unmixed, images = meter.read()
    assert (loss, correct, unmixed) == (1.5, 2, 6)
    expected = torch.tensor([[2., 1, 1], [-2, 1, 1], [2, 0, 0], [-2, 0, 1]])
    torch.testing.assert_close(images.float(), torch.cat([expected, expected.flip(0)]))


class WithoutDouble(TorchFunctionMode):
    """Only what comes from cpu() can become float64, as on Apple's GPUs."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.double and not getattr(args[0], 'on_cpu', False):
            raise TypeError('this GPU has no float64')
        found = func(*args, **(kwargs or {}))
        if func is torch.Tensor.cpu:
            found.on_cpu = True
        return found


def test_a_meter_needs_no_float64_on_the_gpu():
    with WithoutDouble():
        meter = BatchMeter(0., 4, [0, 1, 2, 3])
        meter.add(torch.tensor(1.), torch.eye(4), torch.arange(4), torch.eye(4))
        assert meter.read()[:3] == (1, 4, 4)


def test_a_process_that_has_some_rows_leaves_the_others_to_the_rest():
    meter = BatchMeter(0., 4, [0, 3])
    meter.add(torch.tensor(1.), torch.tensor([[0., 9], [9, 0]]), torch.tensor([1, 1]), torch.eye(2).flip(0))
    images = meter.read()[3]
    assert (images[[1, 2]] == 0).all() and images[[0, 3], 0].sign().tolist() == [1, -1]
