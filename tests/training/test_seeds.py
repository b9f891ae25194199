"""common/training/seeds.py: the random numbers of a batch follow from its number."""
import random

import numpy as np
import torch

from common.training.step import seed_batch


def draw(*numbers):
    seed_batch(*numbers)
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_each_batch_has_random_numbers_of_its_own():
    first = draw(1, 2, 3)
    assert draw(1, 2, 3) == first
    for numbers in ((0, 2, 3), (1, 0, 3), (1, 2, 0), (2, 1, 3)):
        assert not set(draw(*numbers)) & set(first)
