"""Random numbers of training that follow from the seed and the number of the batch, and from nothing before it."""
import numpy as np
from timm.utils import random_seed


def seed_batch(seed: int, update: int, batch: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators for Mixup, boxes of tokens, stochastic depth and dropout of a
    batch, by its number within its update, and that of the update within the run.

    A run that was interrupted, or is shared by several processes, thus draws the same numbers as one that was not.
    """
    random_seed(int(np.random.SeedSequence([seed, update, batch]).generate_state(1)[0]))
