"""models/init.py: at first every head looks at a neighbour, in windows and among all tokens, and a token is mean and
slopes of each channel over its area.
"""
import itertools

import pytest
import torch
from helpers import TINY, tiny_volo

import models
from models.init import OFFSETS, cosine_filters, filter_images
from models.layers import Attention
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


@pytest.mark.parametrize('size, images', [(64, 32), (224, 4)])
def test_each_head_of_a_transformer_attends_most_to_its_neighbour(size, images):
    """On average over images: their contents have a say in it, too."""
    net = models.create_model('volo_d1', num_classes=5, img_size=size)
    offsets, side, hits = itertools.cycle(OFFSETS), size // 16, []
    for attention, x in inputs_of(net, Attention, torch.randn(images, 3, size, size)):
        q, k, _ = attention.qkv(x).view(images, side * side, 3, 12, 32).permute(2, 3, 0, 1, 4)  # (heads, images, N, d)
        weights = (q @ k.transpose(2, 3) / 32 ** 0.5).softmax(-1).mean(1)  # (heads, queries, keys)
        for head, offset in zip(weights, offsets, strict=False):
            found = {}
            for other in OFFSETS:
                target = shifted(side, other)
                found[other] = head[target >= 0, target[target >= 0]].mean().item()
            hits.append(max(found, key=found.get) == offset)
            assert found[offset] > 1.5 / side ** 2, 'no more than when all get the same'
    assert len(hits) == 14 * 12 and sum(hits) > 0.75 * len(hits)  # there is chance in it, too


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


def test_tokens_begin_as_means_and_slopes():
    net = models.create_model('volo_d1', num_classes=5, img_size=64)
    for conv in (net.patch_embed.proj, net.network[1].proj):
        side, count = conv.kernel_size[0], conv.in_channels
        ramp = torch.linspace(-1, 1, side)
        patterns = [torch.ones(side, side), ramp.expand(side, side), ramp.view(-1, 1).expand(side, side)]
        for number, pattern in enumerate(patterns[:conv.out_channels // count]):
            maps = torch.zeros(count, count, side, side)  # an image with this pattern in one of its channels, for each
            maps[range(count), range(count)] = pattern
            found = conv(maps).flatten(1).abs().argmax(1)
            assert torch.equal(found, number * count + torch.arange(count))


def test_the_stem_begins_with_filters_of_both_signs_for_brightness_and_colour():
    weight = models.create_model('volo_d1', num_classes=5, img_size=64).patch_embed.conv[0].weight.flatten(1)
    assert torch.nn.functional.cosine_similarity(weight[:32], weight[32:]).max() < -0.5
    filters = cosine_filters((3, 7, 7), 32)
    assert torch.allclose(filters.flatten(1) @ filters.flatten(1).T, torch.eye(32), atol=1e-5)
    assert torch.nn.functional.cosine_similarity(weight[:32], filters.flatten(1)).min() > 0.9
    colour = filters.mean(1).abs().amax((1, 2)) < 1e-6  # a grey image leaves it at zero
    assert colour.sum() == 16


@pytest.mark.parametrize('out_channels', [64, 120])
def test_filters_for_grey_images_are_of_brightness_alone(out_channels):
    """The lowest frequencies, of both signs; where there are no more of them they come again."""
    conv = torch.nn.Conv2d(3, out_channels, 7)
    with torch.no_grad():
        filter_images(conv, grey=True)
    weight = conv.weight.detach().flatten(1)
    half = min(out_channels // 2, 49)
    expected = cosine_filters((1, 7, 7), half).expand(-1, 3, -1, -1).flatten(1)
    assert torch.nn.functional.cosine_similarity(weight[:half], expected).min() > 0.9
    assert torch.nn.functional.cosine_similarity(weight[half:2 * half], -expected).min() > 0.9
    assert weight.norm(dim=1).mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize('kwargs', [{'img_size': 16}, {'img_size': (32, 96)}, {'layers': (1,)}, {'layers': (0, 2)},
                                    {'embed_dims': (6, 12), 'num_heads': (2, 4)}, {'in_chans': 1},
                                    {'stem_hidden_dim': 301}, {'embed_dims': (24, 240)}])
def test_odd_networks_are_initialised_too(kwargs):
    net = tiny_volo(**{**TINY, **kwargs})
    out = net(torch.randn(2, kwargs.get('in_chans', 3), *net.img_size))
    assert out.isfinite().all() and out.std() > 0


def test_heads_are_small_and_the_seed_decides():
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(models.create_model('volo_d1', num_classes=100, img_size=64, return_dense=True))
    assert all(torch.equal(one, other) for one, other in zip(*(net.parameters() for net in nets), strict=True))
    for head in (nets[0].head, nets[0].aux_head):
        assert head.weight.std().item() == pytest.approx(0.02, rel=0.1) and not head.bias.any()
