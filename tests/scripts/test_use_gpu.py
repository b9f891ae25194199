"""USE_GPU: every part that computes is told of it."""
import torch
from helpers import run

import test as predict
from common import settings
from common.evaluation import predictor
from common.runtime import device
from common.training import choices, run_length, setup


def test_every_part_is_told(data, monkeypatch):
    """True is not the default, so a part that is not told shows."""
    told = {}

    def listen(module):
        values = told[module.__name__] = []

        def choose_device(use_gpu='auto'):
            values.append(use_gpu)
            return torch.device('cpu')

        monkeypatch.setattr(module, 'choose_device', choose_device)

    for module in (device, setup, choices, predictor, predict):  # train.py asks the first
        listen(module)
    monkeypatch.setattr(run_length, 'REHEARSAL_SECONDS', 0)
    run(use_gpu=True, batch_size='auto', augmentation='auto', time_budget=0.02)
    predict.main(settings.read(predict, ['--checkpoint', 'out/best.pth', '--test-dir', 'data/val', '--use-gpu', 'true',
                                         '--num-workers', '0']))
    assert {name: set(values) for name, values in told.items()} == {name: {True} for name in told}
