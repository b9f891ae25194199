"""USE_GPU under torchrun: how the processes talk to each other, and that each has a GPU."""
import pytest
import torch

from common.runtime.errors import UserError
from extras import torchrun


@pytest.mark.parametrize('use_gpu, device, backend', [
    (False, 'cpu', 'gloo'), (True, 'mps', 'gloo'), ('auto', 'cuda', 'cpu:gloo,cuda:nccl')])
def test_several_processes_talk_as_their_devices_do(monkeypatch, use_gpu, device, backend):
    """Only processes that compute on GPUs need one each."""
    class Enough(Exception):
        pass

    def init(name, **options):
        raise Enough(name)

    monkeypatch.setattr(torchrun, 'LOCAL_WORLD_SIZE', 2)
    monkeypatch.setattr(torchrun, 'new_store', lambda: None)
    monkeypatch.setattr(torchrun.dist, 'init_process_group', init)
    monkeypatch.setattr(torchrun, 'choose_device', lambda given: torch.device(device) if given == use_gpu else None)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda number: None)
    for gpus in (1, 2):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda gpus=gpus: gpus)
        refused = gpus == 1 and device == 'cuda'
        with pytest.raises(UserError if refused else Enough, match='has 1 GPUs' if refused else f'^{backend}$'):
            torchrun.process_group(use_gpu).__enter__()
