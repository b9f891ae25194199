"""common/runtime/device.py: which device computes, how tensors get there, the threads of a CPU that is not free."""
import re
from unittest.mock import Mock

import pytest
import torch
from torch.torch_version import TorchVersion

from common.runtime import device
from common.runtime.errors import UserError


@pytest.mark.parametrize('there, use_gpu, chosen', [
    (None, 'auto', 'cpu'), (None, True, 'cpu'), (None, False, 'cpu'),
    ('cuda', 'auto', 'cuda'), ('cuda', True, 'cuda'), ('cuda', False, 'cpu'),
    ('mps', 'auto', 'cpu'), ('mps', True, 'mps'), ('mps', False, 'cpu')])
def test_the_device_that_use_gpu_takes(monkeypatch, there, use_gpu, chosen):
    monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda check_available: there and torch.device(there))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'a GPU')
    monkeypatch.setattr(torch, '__version__', TorchVersion('2.14.0'))  # older ones are refused on mps
    found = device.choose_device(use_gpu)
    said = device.describe_device(found, None)
    assert found.type == chosen and said.startswith(f'device: {chosen} (')
    unused = f'; the GPU ({there}) is not used: USE_GPU = True takes it'
    assert said.endswith(unused if there and chosen == 'cpu' else '(fp32)')


@pytest.mark.parametrize('version, right', [
    ('2.13.1', False), ('2.7.0', False), ('2.14.0a0+git1', False), ('2.14.0', True), ('2.14.1+cpu', True),
    ('2.15.0.dev20261101', True), ('3.0.0', True)])
def test_apples_gpu_is_refused_where_pytorch_multiplies_wrongly_on_it(monkeypatch, version, right):
    """pytorch/pytorch#193487: 2.7 to 2.13."""
    monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda check_available: torch.device('mps'))
    monkeypatch.setattr(torch, '__version__', TorchVersion(version))
    assert device.choose_device('auto').type == device.choose_device(False).type == 'cpu'
    if right:
        assert device.choose_device(True).type == 'mps'
        return
    with pytest.raises(UserError, match=rf'^USE_GPU = True: PyTorch {re.escape(version)} .*2.14 or newer') as error:
        device.choose_device(True)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind, later', [('cuda', True), ('mps', False), ('cpu', False)])
def test_a_copy_to_apples_gpu_is_waited_for(kind, later):
    tensor = Mock()
    device.to_device(tensor, torch.device(kind))
    tensor.to.assert_called_once_with(torch.device(kind), non_blocking=later)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('speeds, chosen, said', [
    ({4: 10., 2: 9., 1: 5.}, 4, ''),                    # free cores
    ({4: 10., 2: 14., 1: 7.}, 4, ''),                   # a chance result
    ({4: 10., 2: 90., 1: 50.}, 2, '2 instead of 4'),    # two of four are taken
    ({4: 10., 2: 20., 1: 50.}, 1, '1 instead of 4')])   # all are
def test_fewer_threads_where_they_are_faster(monkeypatch, capsys, threads, speeds, chosen, said):
    monkeypatch.setattr(device, 'multiplications_per_second', speeds.__getitem__)
    device.use_free_cores(torch.device('cpu'))
    printed = capsys.readouterr().out
    assert torch.get_num_threads() == chosen and said in printed and bool(said) == bool(printed)


def test_the_threads_of_a_gpus_program_stay(monkeypatch, threads):
    monkeypatch.setattr(device, 'multiplications_per_second', {4: 1., 2: 9., 1: 5.}.__getitem__)
    device.use_free_cores(torch.device('cuda'))
    assert torch.get_num_threads() == 4


def test_numbers_of_threads_are_tried_with_those_threads(monkeypatch, threads):
    monkeypatch.setattr(device, 'THREAD_TRIAL_SECONDS', 0.01)
    assert device.multiplications_per_second(2) > 0 and torch.get_num_threads() == 2
