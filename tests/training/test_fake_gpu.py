"""Updates and validation on a GPU that is not there. Fake tensors have a device and no contents: they refuse to be
mixed with those of another device, and to be looked into, for which a GPU would be waited for.
"""
import dataclasses

import pytest
import torch
from helpers import build, measure_norms
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import train
from common.evaluation.validate import EvalModel, validate
from common.training import step
from common.training.losses import LossModel, balanced, choose_loss
from common.training.optimizer import build_optimizer
from common.training.setup import network_spec

GPU = torch.device('cuda')


class Read(Exception):
    """The update has come to the line at which the GPU is waited for."""


class Batches:
    """In place of TimedBatches."""
    seconds = 0.

    def __init__(self, *arguments, **options):
        pass

    def __next__(self):
        return torch.empty(8, 3, 64, 64, device=GPU), torch.zeros(8, dtype=torch.long, device=GPU)


def on_gpu(cfg, state, data):
    """The state with a network there. timm's average has a generator there too, which is real; so there is none."""
    with GPU:
        spec = network_spec(cfg, len(data.classes), cfg.DROP_PATH)
        net = spec.create()
    loss = choose_loss(cfg.TOKEN_LABEL, spec.kwargs['return_dense'])
    if cfg.BALANCE:
        loss = balanced(loss, data.train.dataset.targets)
    optimizer = build_optimizer(cfg.OPTIMIZER, net, cfg.LR, cfg.WEIGHT_DECAY, torch.bfloat16)
    return dataclasses.replace(state, net=net, model=LossModel(net, loss, torch.bfloat16), ema=None, device=GPU,
                               amp_dtype=torch.bfloat16, optimizer=optimizer)


def backward(loss):
    """Autograd needs a real GPU."""
    for parameter in backward.net.parameters():
        parameter.grad = torch.zeros_like(parameter)


@pytest.fixture
def state(data, monkeypatch, request):
    def read(meter, norm, finite):
        raise Read

    cfg, loaded, state = build(img_size=64, **request.param)
    monkeypatch.setattr(step, 'TimedBatches', Batches)
    monkeypatch.setattr(step.UpdateMeter, 'read', read)
    monkeypatch.setattr(torch.Tensor, 'backward', backward)
    with FakeTensorMode():
        state = on_gpu(cfg, state, loaded)
        backward.net = state.net
        yield cfg, loaded, state


@pytest.mark.parametrize('state', [
    {'optimizer': 'muon', 'mixup_prob': 1}, {'optimizer': 'adamw', 'mixup_prob': 1},
    {'optimizer': 'muon', 'token_label': 'true', 'mixup_prob': 0, 'accumulate_steps': 2},
    {'optimizer': 'adamw', 'balance': 'weights', 'grad_checkpointing': 'true', 'drop_path': 0.5}], indirect=True)
def test_an_update_is_all_on_the_gpu_and_waits_for_it_at_its_end(state):
    cfg, data, state = state
    with pytest.raises(Read):
        train.train_one_epoch(cfg, state, data, 0, None)
    remembered = [value for found in state.optimizer.state.values() for value in found.values()]
    assert len(remembered) >= len(list(state.net.parameters()))
    assert {value.device.type for value in remembered} == {'cuda'}


@pytest.mark.parametrize('state', [{'optimizer': 'lion'}], indirect=True)
def test_only_an_optimizer_that_cannot_skip_waits_before(state):
    cfg, data, state = state
    with pytest.raises(DataDependentOutputException):
        train.train_one_epoch(cfg, state, data, 0, None)


@pytest.mark.parametrize('state', [{}], indirect=True)
def test_validation_goes_to_the_gpu_and_comes_back(state):
    cfg, data, state = state
    batches = [(torch.empty(8, 3, 64, 64), torch.zeros(8, dtype=torch.long))] * 2
    measure_norms(state, batches)
    outputs = validate(EvalModel(state.net, state.amp_dtype), batches, GPU, '')
    assert outputs.logits.shape == (16, 2) and outputs.logits.device.type == outputs.features.device.type == 'cpu'
    assert {buffer.device.type for buffer in state.net.buffers()} == {'cuda'}
