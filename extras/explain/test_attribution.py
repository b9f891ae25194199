"""Where a VOLO looks."""
import itertools

import pytest
import torch
from helpers import tiny_volo

from extras.explain.attribution import explain


def awake(net):
    """Weights as after some training: at the beginning a class token looks everywhere alike."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return net.eval()


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
