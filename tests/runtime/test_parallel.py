"""common/runtime/device.py: DataParallel, the losses of its replicas, autocast in its threads."""
import threading

import pytest
import torch
from helpers import TINY

import models
from common.runtime.device import Autocast, parallel
from common.training.losses import class_loss, token_loss


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
