"""models/init.py: at first every head looks at a neighbour, in windows and among all tokens."""
import pytest
import torch
from helpers import TINY, tiny_volo

import models
from models.attention import Attention
from models.init import OFFSETS
from models.outlook import OutlookAttention


def inputs_of(net, kind, images):
    """[(module, what it got)] in a forward pass."""
    seen = []
    handles = [module.register_forward_pre_hook(lambda module, given: seen.append((module, given[0])))
               for module in net.modules() if isinstance(module, kind)]
    net.eval()(images)
    for handle in handles:
        handle.remove()
    return seen


def shifted(size, offset):
    """For every token of a size x size map: the index of its neighbour at the offset, -1 where there is none."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing='ij')
    rows, columns = rows + offset[0], columns + offset[1]
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    return torch.where(inside, rows * size + columns, -1).flatten()


@pytest.mark.parametrize('size', [64, 224])
def test_each_head_of_the_first_transformer_attends_to_its_neighbour(size):
    net = models.create_model('volo_d1', num_classes=5, img_size=size)
    attention, x = inputs_of(net, Attention, torch.randn(1, 3, size, size))[0]
    side = size // 16
    q, k, _ = attention.qkv(x).view(side * side, 3, 12, 32).permute(1, 2, 0, 3)  # 3 x (heads, tokens, d)
    weights = (q @ k.transpose(1, 2) / 32 ** 0.5).softmax(-1)
    for head, offset in zip(weights, OFFSETS, strict=False):
        target = shifted(side, offset)
        inside = target >= 0
        assert (head.argmax(1) == target)[inside].float().mean() > 0.5  # there is chance in it, too


def test_each_head_of_an_outlooker_takes_its_neighbour():
    """Each of the nine tokens of a window; those whose neighbour lies outside take the nearest one inside."""
    net = models.create_model('volo_d1', num_classes=5, img_size=64)
    heads = 0
    for attention, _ in inputs_of(net, OutlookAttention, torch.randn(1, 3, 64, 64)):
        weights = (attention.attn.bias.view(6, 9, 9) * attention.scale).softmax(-1)  # (heads, queries, keys)
        for head in weights:
            offset = OFFSETS[heads % 9]
            target = shifted(3, offset)
            inside = target >= 0
            assert torch.equal(head.argmax(1)[inside], target[inside]) and head.amax(1).min() > 0.5
            assert head.argmax(1)[4] == target[4], 'the middle has all its neighbours'
            heads += 1
    assert heads == 24


@pytest.mark.parametrize('kwargs', [{'img_size': 16}, {'img_size': (32, 96)}, {'layers': (1,)}, {'layers': (0, 2)},
                                    {'embed_dims': (6, 12), 'num_heads': (2, 4)}])
def test_odd_networks_are_initialised_too(kwargs):
    net = tiny_volo(**{**TINY, **kwargs})
    out = net(torch.randn(2, 3, *net.img_size))
    assert out.isfinite().all() and out.std() > 0


def test_heads_are_small_and_the_seed_decides():
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(models.create_model('volo_d1', num_classes=100, img_size=64, return_dense=True))
    assert all(torch.equal(one, other) for one, other in zip(*(net.parameters() for net in nets), strict=True))
    for head in (nets[0].head, nets[0].aux_head):
        assert head.weight.std().item() == pytest.approx(0.02, rel=0.1) and not head.bias.any()
