"""extras/torchrun/shared_batch.py in one process; test_processes.py has several."""
import copy

import timm
import torch
from torch import nn

from common.data.loaders import own_rows
from extras.torchrun.shared_batch import SyncBatchNorm, synchronise_norms


def test_alone_it_is_batch_norm():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    nn.init.normal_(plain[1].weight)
    nn.init.normal_(plain[1].bias)
    other = copy.deepcopy(plain)
    synchronise_norms(other)
    assert type(other[1]) is SyncBatchNorm and other.state_dict().keys() == plain.state_dict().keys()
    images, weights = 5 + 3 * torch.randn(6, 3, 8, 8), torch.randn(6, 4, 6, 6)
    for net in (plain, other):
        for _ in range(3):
            (net(images) * weights).sum().backward()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.state_dict(), plain.state_dict())
    torch.testing.assert_close(other(images), plain(images))
    torch.testing.assert_close(other.eval()(images), plain.eval()(images))
    other.train(), plain.train()
    with torch.autocast('cpu', torch.bfloat16):
        assert other(images).dtype == plain(images).dtype == torch.bfloat16


def test_other_norms_are_told(capsys):
    net = timm.create_model('test_efficientnet')
    before = [type(module) for module in net.modules()]
    synchronise_norms(net)
    assert [type(module) for module in net.modules()] == before
    assert 'bn1, a BatchNormAct2d, normalises with the images of each process alone' in capsys.readouterr().out


def test_each_row_has_its_partner_in_the_same_process():
    for batch_size, processes in ((24, 5), (7, 3), (2, 1), (16, 8)):
        rows = [own_rows(batch_size, rank, processes) for rank in range(processes)]
        assert sorted(sum(rows, [])) == list(range(batch_size)) and all(rows)
        for own in rows:
            assert own == sorted(own) == [batch_size - 1 - row for row in reversed(own)]
