"""common/data/loaders.py: worker processes."""
import gc
import sys

import pytest
from torch.utils.data import Dataset

from common.data.loaders import Loader, init_worker


class Collecting(Dataset):
    """Numbers; the garbage of the process that reads one is collected."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        gc.collect()
        return index


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere worker processes inherit nothing')
def test_a_worker_does_not_end_the_loaders_that_its_parent_has_left(capfd, monkeypatch):
    """PyTorch's iterator of a loader fails where another process than its own deletes it."""
    monkeypatch.setattr(sys, 'unraisablehook', sys.__unraisablehook__)  # pytest's own prints nothing in a worker
    left = [iter(Loader(Collecting(), num_workers=1, worker_init_fn=init_worker))]
    left.append(left)
    gc.disable()
    try:
        del left
        found = list(Loader(Collecting(), num_workers=1, worker_init_fn=init_worker))
    finally:
        gc.enable()
        gc.collect()
    assert [batch.item() for batch in found] == [0, 1]
    assert not capfd.readouterr().err
