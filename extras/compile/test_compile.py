"""extras/compile: what a compiled model computes, and what happens where compiling fails."""
import shutil

import pytest
import torch
from helpers import tiny_volo

from common.training.losses import LossModel, class_loss
from extras.compile import compiled


def small_model():
    torch.manual_seed(0)
    return LossModel(tiny_volo(img_size=32), class_loss, None).train()


def step(model):
    torch.manual_seed(1)
    logits, losses = model(torch.randn(2, 3, 32, 32), torch.eye(5)[:2])
    losses.mean().backward()
    return logits, [p.grad for p in model.parameters()]


def test_compiling_that_fails_leaves_the_model_as_it_was(monkeypatch, capsys):
    def broken(*inputs):
        raise RuntimeError('no C++ compiler\nand a long trace')

    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(torch, 'compile', lambda model, **options: broken)
    assert compiled(model, torch.zeros(2, 3, 32, 32), torch.zeros(2, 5)) is model
    assert 'going on without, since RuntimeError: no C++ compiler\n' in capsys.readouterr().out
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile needs g++')
def test_a_compiled_model_computes_the_same(capsys):
    model, plain = small_model(), small_model()
    faster = compiled(model, torch.zeros(2, 3, 32, 32), torch.zeros(2, 5))
    assert 'going on without' not in capsys.readouterr().out and faster is not model
    for found, expected in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(found, expected)  # the trial left nothing behind, in BatchNorm either
    (logits, grads), (expected_logits, expected_grads) = step(faster), step(plain)
    torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=1e-4)
    for found, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
