"""common/runtime/device.py: the threads of a CPU that is not free."""
import pytest
import torch

from common.runtime import device


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
    monkeypatch.setattr(device, 'choose_device', lambda: torch.device('cpu'))
    monkeypatch.setattr(device, 'multiplications_per_second', speeds.__getitem__)
    device.use_free_cores()
    printed = capsys.readouterr().out
    assert torch.get_num_threads() == chosen and said in printed and bool(said) == bool(printed)


def test_the_threads_of_a_gpus_program_stay(monkeypatch, threads):
    monkeypatch.setattr(device, 'choose_device', lambda: torch.device('cuda'))
    monkeypatch.setattr(device, 'multiplications_per_second', {4: 1., 2: 9., 1: 5.}.__getitem__)
    device.use_free_cores()
    assert torch.get_num_threads() == 4


def test_numbers_of_threads_are_tried_with_those_threads(monkeypatch, threads):
    monkeypatch.setattr(device, 'PROBE', 0.01)
    assert device.multiplications_per_second(2) > 0 and torch.get_num_threads() == 2
