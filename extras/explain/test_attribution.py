"""Where a VOLO looks."""
import itertools

import pytest
import torch
from helpers import tiny_volo

from extras.explain.attribution import explain
from models.layers import ClassAttention, attend


def awake(net):
    """Weights as after some training: at the beginning a class token looks everywhere alike."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return net.eval()


def test_the_weights_of_class_attention_are_what_it_mixes_with(monkeypatch):
    attention, x = awake(ClassAttention(24, 4)), torch.randn(2, 7, 24)
    values, used = [], []

    def spy(q, k, v, dropout):
        values.append(v)
        used.append(attend(q, k, v, dropout))
        return used[-1]

    monkeypatch.setattr('models.layers.attend', spy)
    attention(x)
    weights = attention.weights(x)
    assert weights.shape == (2, 4, 7) and weights.std() > 0.01
    torch.testing.assert_close(torch.einsum('bhn,bhnd->bhd', weights, values[0]), used[0][:, :, 0])


@pytest.mark.parametrize('kwargs', [{}, {'return_dense': True}, {'return_mean': True}])
def test_attribution_is_the_logits_slope(kwargs):
    """To first order: as a token becomes a little like the mean one, the logit falls by its attribution."""
    net = awake(tiny_volo(**kwargs)).double()
    images = torch.randn(2, 3, 64, 48).double()
    logits, attention, attribution = explain(net, images)
    assert attention.shape == attribution.shape == (2, 4, 3) and (attribution >= 0).all()
    assert (attention > 0).all() and (attention.sum((1, 2)) < 1).all()
    torch.testing.assert_close(logits, net(images))
    with torch.no_grad():
        tokens, box = net.forward_features(images)
        best = logits.argmax(1)
        assert (attribution.amax((1, 2)) > 1e-3).all()
        for y, x in itertools.product(range(4), range(3)):
            other = tokens.clone()
            other[:, y, x] += 1e-6 * (tokens.mean((1, 2)) - other[:, y, x])
            change = (logits - net.forward_head(other, box))[range(2), best] / 1e-6
            torch.testing.assert_close(attribution[:, y, x], change.clamp(min=0), rtol=1e-3, atol=1e-6)


def test_class_attention_is_the_mean_over_heads_and_blocks():
    net = awake(tiny_volo())
    inputs = []
    for block in net.post_network:
        block.attn.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    _, attention, _ = explain(net, torch.randn(1, 3, 64, 64))
    expected = [block.attn.weights(x)[:, :, 1:].mean(1)
                for block, x in zip(net.post_network, inputs[:2], strict=True)]
    torch.testing.assert_close(attention.flatten(1), sum(expected) / 2)
