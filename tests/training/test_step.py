"""common/training/step.py: what is known of the images of an update, and its random numbers."""
import random

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from common.training.step import UpdateMeter, seed_batch

NORM, FINITE = torch.tensor(3.), torch.tensor(True)


def test_a_meter_counts_unmixed_images_and_averages_batches():
    meter = UpdateMeter(0.1, 4, [0, 1, 2, 3])
    logits = torch.tensor([[2., 0, 0], [0, 2, 0], [0, 0, 2], [2, 0, 0]])
    labels = torch.tensor([0, 0, 2, 1])
    targets = torch.full((4, 3), 0.1 / 3).scatter(1, labels[:, None], 0.9 + 0.1 / 3)
    targets[2] = torch.tensor([0.3, 0.3, 0.4])  # a mixture, though it is classified correctly
    meter.add(torch.ones(4), logits, labels, targets)
    meter.add(torch.full((4,), 2.), logits.flip(0), labels.flip(0), targets.flip(0))
    update = meter.read(NORM, FINITE)
    assert (update.loss, update.norm, update.finite, update.images) == (1.5, 3., True, 8)
    assert (update.correct, update.unmixed) == (2, 6)
    expected = torch.tensor([[2., 1, 1], [-2, 1, 1], [2, 0, 0], [-2, 0, 1]])
    torch.testing.assert_close(update.margins.float(), torch.cat([expected, expected.flip(0)]))
    meter.add(torch.zeros(4), logits, labels, targets)
    assert meter.read(NORM, FINITE).images == 4, 'the next update begins'


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
        meter = UpdateMeter(0., 4, [0, 1, 2, 3])
        meter.add(torch.ones(4), torch.eye(4), torch.arange(4), torch.eye(4))
        update = meter.read(NORM, FINITE)
        assert (update.loss, update.correct, update.unmixed) == (1, 4, 4)


def test_a_process_that_has_some_rows_leaves_the_others_to_the_rest():
    meter = UpdateMeter(0., 4, [0, 3])
    meter.add(torch.ones(2), torch.tensor([[0., 9], [9, 0]]), torch.tensor([1, 1]), torch.eye(2).flip(0))
    update = meter.read(NORM, FINITE)
    assert update.loss == 0.5, 'its part of the mean'
    assert (update.margins[[1, 2]] == 0).all() and update.margins[[0, 3], 0].sign().tolist() == [1, -1]


def draw(*numbers):
    seed_batch(*numbers)
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_each_batch_has_random_numbers_of_its_own():
    first = draw(1, 2, 3)
    assert draw(1, 2, 3) == first
    for numbers in ((0, 2, 3), (1, 0, 3), (1, 2, 0), (2, 1, 3)):
        assert not set(draw(*numbers)) & set(first)
