"""models/cost.py: counted by hand where that can be done."""
import pytest
import torch
from helpers import tiny_volo

import models
from models.cost import multiply_adds, training_memory


def test_a_convolution_by_hand():
    """8 filters of 3x3x3 on 4 pictures of 16x16, the result summed up."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
    memory = training_memory(net, (16, 16), 4, copies=2)
    assert multiply_adds(net, (16, 16)) == 16 * 16 * 27 * 8
    parameters, images, maps = 4 * (8 * 27 + 8), 4 * 4 * 3 * 256, 4 * 4 * 8 * 256
    kept = images + 2 * maps                     # the input and both outputs; ReLU needs its own for the backward pass
    assert 3 * parameters + kept <= memory <= 3 * parameters + kept + 2 * maps + parameters


@pytest.mark.parametrize('name, size, expected', [('volo_d1', 224, 6.8e9), ('volo_d2', 224, 14.1e9),
                                                  ('volo_d1', 384, 22.8e9), ('volo_d3', 224, 20.6e9)])
def test_multiply_adds_are_the_papers(name, size, expected):
    net = models.create_model(name, img_size=size)
    assert multiply_adds(net, (size, size)) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize('name', ['swin_tiny_patch4_window7_224', 'levit_128s', 'resnet18'])
def test_other_networks_of_timm_keep_what_they_have(name):
    net = models.create_model(name, num_classes=3)
    before = {key: tensor.clone() for key, tensor in net.named_buffers()}
    assert multiply_adds(net, (224, 224)) > 3e8 and training_memory(net, (224, 224), 2) > 1e7
    assert all(torch.equal(before[key], tensor) for key, tensor in net.named_buffers())
    net.eval()(torch.zeros(1, 3, 224, 224))


def test_memory_grows_with_the_batch_and_shrinks_with_checkpointing_and_bf16():
    net = tiny_volo(layers=(4, 4, 4, 2))
    small, large = (training_memory(net, (64, 64), batch) for batch in (8, 32))
    assert 2.5 < large / small < 4  # the weights do not grow
    assert training_memory(net, (64, 64), 32, torch.bfloat16) < 0.75 * large
    net.set_grad_checkpointing(True)
    assert training_memory(net, (64, 64), 32) < 0.7 * large


def test_the_network_and_the_random_numbers_stay_as_they_were():
    net = tiny_volo(return_dense=True, mix_token=True, drop_rate=0.1)
    before, random = {name: t.clone() for name, t in net.state_dict().items()}, torch.get_rng_state()
    training_memory(net, (64, 64), 2, torch.bfloat16)
    multiply_adds(net, (64, 64))
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and net.mix_token
    assert all(p.grad is None for p in net.parameters())
