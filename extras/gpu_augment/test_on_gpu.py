"""GPU_AUGMENT: what only a machine with a GPU can show; skipped on others."""
import pytest
import torch
from helpers import run
from torch.utils.data import default_collate

from extras.gpu_augment import divide
from extras.gpu_augment.test_gpu_augment import ALL, pictures, transform

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')


def test_a_gpu_makes_what_a_cpu_makes_and_is_not_waited_for():
    fetch, augment = divide(transform(**ALL))
    fetched = default_collate([fetch(picture) for picture in pictures()])
    expected = augment(fetched)
    on_gpu = [tensor.cuda() for tensor in fetched]
    augment.cuda()
    torch.cuda.set_sync_debug_mode('error')
    try:
        found = augment(on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    levels = (found.cpu() - expected).abs() * augment.parts[-1].std.cpu()
    assert levels.max() < 6.5 and (levels > 0.5).float().mean() < 0.02


@pytest.mark.parametrize('workers', [0, 2])
def test_it_is_the_default_there(data, monkeypatch, workers):
    called = []

    def forward(augment, fetched):
        called.append(fetched)
        return torch.zeros(fetched[0].shape, device=fetched[0].device)

    monkeypatch.setattr('extras.gpu_augment.Augment.forward', forward)
    run(num_workers=workers, epochs=1)
    assert called and all(tensor.is_cuda for fetched in called for tensor in fetched)
