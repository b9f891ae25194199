"""USE_GPU: every part that computes is told of it."""
import pytest
import torch
from helpers import run

import test as predict
import train
from common import settings
from common.evaluation import predictor
from common.runtime.errors import UserError
from common.training import schedule as budget
from common.training import setup
from extras import torchrun as distributed


@pytest.mark.parametrize('use_gpu', [False, True, 'auto'])
def test_every_part_is_told(data, monkeypatch, use_gpu):
    told = {}
    for module in (train, setup, budget, predictor, predict):
        monkeypatch.setattr(module, 'choose_device', lambda use_gpu, name=module.__name__: (
            told.setdefault(name, []).append(use_gpu) or torch.device('cpu')))
    monkeypatch.setattr(budget, 'SECONDS', 0)
    run(use_gpu=use_gpu, batch_size='auto', augmentation='auto', time_budget=0.02)
    predict.main(settings.read(predict, ['--checkpoint', 'out/best.pth', '--test-dir', 'data/val', '--use-gpu',
                                         str(use_gpu), '--num-workers', '0']))
    assert {name: set(values) for name, values in told.items()} == dict.fromkeys(
        ('train', 'common.training.setup', 'common.training.schedule', 'common.evaluation.predictor', 'test'),
        {use_gpu})


@pytest.mark.parametrize('use_gpu, device, backend', [
    (False, 'cpu', 'gloo'), (True, 'mps', 'gloo'), ('auto', 'cuda', 'cpu:gloo,cuda:nccl')])
def test_several_processes_talk_as_their_devices_do(monkeypatch, use_gpu, device, backend):
    """Only processes that compute on GPUs need one each."""
    class Enough(Exception):
        pass

    def init(name, **options):
        raise Enough(name)

    monkeypatch.setattr(distributed, 'LOCAL_WORLD_SIZE', 2)
    monkeypatch.setattr(distributed, 'new_store', lambda: None)
    monkeypatch.setattr(distributed.dist, 'init_process_group', init)
    monkeypatch.setattr(distributed, 'choose_device', lambda given: torch.device(device) if given == use_gpu else None)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda number: None)
    for gpus in (1, 2):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda gpus=gpus: gpus)
        refused = gpus == 1 and device == 'cuda'
        with pytest.raises(UserError if refused else Enough, match='has 1 GPUs' if refused else f'^{backend}$'):
            distributed.process_group(use_gpu).__enter__()
