"""common/runtime/parallel.py: DataParallel, autocast in its threads, torch.compile and what happens without it."""
import shutil
import threading

import pytest
import torch
from helpers import TINY, tiny_volo

import models
from common.runtime.device import Autocast, parallel
from common.training.losses import class_loss, token_loss
from extras.compile import compiled


def small_model():
    torch.manual_seed(0)
    return parallel(tiny_volo(img_size=32), torch.device('cpu'), None, False, class_loss).train()


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
    assert compiled(model, [(32, 32)], torch.zeros(2, 5)) is model
    assert 'going on without, since RuntimeError: no C++ compiler\n' in capsys.readouterr().out
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile needs g++')
def test_a_compiled_model_computes_the_same(capsys):
    model, plain = small_model(), small_model()
    faster = compiled(model, [(32, 32)], torch.zeros(2, 5))
    assert 'going on without' not in capsys.readouterr().out and faster is not model
    for found, expected in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(found, expected)  # the trial left nothing behind, in BatchNorm either
    (logits, grads), (expected_logits, expected_grads) = step(faster), step(plain)
    torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=1e-4)
    for found, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_dataparallel_is_used_with_several_gpus(monkeypatch):
    net, kinds = torch.nn.Linear(1, 1), []
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.nn, 'DataParallel', lambda module: kinds.append(type(module)))
    for device, use_dp in (('cuda', False), ('cpu', True), ('cuda', True)):
        model = parallel(net, torch.device(device), torch.bfloat16, use_dp)
        assert (model is None) == (device == 'cuda' and use_dp)
    assert kinds == [Autocast]


@pytest.mark.parametrize('token_label', [False, True])
def test_replicas_compute_their_own_losses(monkeypatch, token_label):
    """What DataParallel does with a batch of five on two GPUs, here one share after the other."""
    boxes = []
    monkeypatch.setattr('models.volo.random_box', lambda height, width, device: boxes.pop(0))
    kwargs = {'return_dense': True, 'mix_token': True} if token_label else {}
    net = models.create_model('volo_d1', img_size=32, num_classes=3, **TINY, **kwargs)
    model = parallel(net, torch.device('cpu'), None, False, token_loss if token_label else class_loss)
    images, targets = torch.randn(5, 3, 32, 32), torch.rand(5, 3).softmax(1)
    net.patch_embed.eval()  # the shares' BatchNorm statistics would differ
    boxes += [(0, 0, 1, 2), (0, 1, 2, 2), (0, 0, 1, 2), (0, 1, 2, 2)]
    shares = [model(images[share], targets[share]) for share in (slice(3), slice(3, 5))]
    logits, losses = (torch.cat(parts) for parts in zip(*shares, strict=True))
    assert logits.shape == (5, 3) and losses.shape == (5,) and losses.requires_grad
    if not token_label:
        whole = model(images, targets)
        torch.testing.assert_close((logits, losses), whole)
        assert losses.mean().item() == pytest.approx(
            torch.nn.functional.cross_entropy(net(images), targets).item(), rel=1e-5)
    else:
        expected = [models.token_label_loss(net(images[share]), targets[share]) for share in (slice(3), slice(3, 5))]
        torch.testing.assert_close(losses, torch.cat(expected))


def test_autocasts_dtype_holds_in_other_threads():
    """DataParallel runs its replicas in threads, where the dtype of the caller's autocast is forgotten."""
    model, dtypes = Autocast(torch.nn.Linear(4, 4), torch.float16), []
    thread = threading.Thread(target=lambda: dtypes.append(model(torch.randn(2, 4)).dtype))
    thread.start()
    thread.join()
    assert dtypes == [torch.float16]
