"""What only a machine with a GPU can show: all of it is skipped on others."""
import pytest
import torch
from helpers import build, read_json, run, run_script, update_without_waiting

import models
import train
from models.layers import GeluLinear
from models.outlook import MixWindows, mix_windows, mix_windows_plain

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
POWERS = {'embed_dims': (32, 64), 'layers': (1, 1, 1, 1), 'num_heads': (2, 4), 'stem_hidden_dim': 16}  # heads of 16
CHANGES = {'model_kwargs': POWERS, 'epochs': 3, 'lr': 1e-3, 'batch_size': 4}
WINDOW = (3, 1, 2)


def random_map(size=(7, 5), dtype=torch.float32, d=16, window=WINDOW, batch=2, heads=3):
    """(values, logits) of a map, as mix_windows takes them."""
    kernel, padding, stride = window
    h, w = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    values = torch.randn(batch, *size, heads, d, dtype=dtype, device='cuda')
    logits = torch.randn(batch, h, w, kernel ** 2, heads, kernel ** 2, dtype=dtype, device='cuda')
    return values.requires_grad_(), logits.requires_grad_()


@pytest.mark.parametrize('size', [(28, 28), (8, 6), (7, 5), (1, 2)])
@pytest.mark.parametrize('window', [(3, 1, 2), (3, 1, 1), (2, 0, 2)])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2),
                                              (torch.float16, 3e-3)])
def test_outlook_mixing_in_triton_equals_the_plain_formula(size, window, dtype, tolerance):
    if min(size) < window[0] - 2 * window[1]:
        pytest.skip('no window fits')
    found = random_map(size, dtype, 32, window)
    exact = [tensor.detach().double().requires_grad_() for tensor in found]
    out, expected = mix_windows(*found, window), mix_windows_plain(*exact, window)
    assert 'mix' in type(out.grad_fn).__name__.lower() and 'MixWindows' not in type(out.grad_fn).__name__
    grad = torch.randn_like(out)
    gradients = torch.autograd.grad(out, found, grad)
    for one, other in zip((out, *gradients), (expected, *torch.autograd.grad(expected, exact, grad.double())),
                          strict=True):
        assert one.dtype == dtype
        assert torch.linalg.vector_norm(one - other) <= tolerance * torch.linalg.vector_norm(other)


def test_more_than_two_to_the_31_elements():
    """Offsets in large batches need more than 32 bits."""
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip('needs 40 GiB of memory')
    values, logits = random_map((28, 28), torch.float16, 32, batch=15_000, heads=6)
    with torch.no_grad():
        out = mix_windows(values, logits, WINDOW)
        last = mix_windows(values[-2:], logits[-2:], WINDOW)
    assert out.numel() > 2 ** 31 and torch.equal(out[-2:], last)


def test_gradients_of_our_own_functions():
    values, logits = random_map((4, 3), torch.float64)
    assert torch.autograd.gradcheck(lambda *inputs: mix_windows(*inputs, WINDOW), (values, logits))
    assert torch.autograd.gradcheck(lambda *inputs: MixWindows.apply(*inputs, WINDOW), (values, logits))
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64, device='cuda', requires_grad=True)
                       for shape in ((3, 5), (4, 5), (4,)))
    assert torch.autograd.gradcheck(GeluLinear.apply, (x, weight, bias))


def test_logits_are_those_of_the_cpu():
    net = models.create_model('volo_d1', num_classes=10, img_size=96).eval()
    images = torch.randn(4, 3, 96, 96)
    with torch.no_grad():
        expected = net(images)
        found = net.cuda()(images.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_costs_are_those_of_the_cpu():
    net = models.create_model('volo_d1', img_size=96)
    costs = [(models.cost.multiply_adds(net.to(device), (96, 96)),
              models.cost.training_memory(net.train(), (96, 96), 8, torch.bfloat16)) for device in ('cpu', 'cuda')]
    assert costs[1][0] == pytest.approx(costs[0][0], rel=0.01) and costs[1][1] == pytest.approx(costs[0][1], rel=0.2)


@pytest.mark.parametrize('changes', [
    {}, {'use_amp': 'false'}, {'accumulate_steps': 2}, {'grad_checkpointing': 'true'},
    {'token_label': 'true', 'mixup_prob': 0}, {'drop_path': 0.3, 'num_workers': 2}, {'optimizer': 'muon'}])
def test_every_way_to_train_learns(data, capsys, changes):
    run(**{**CHANGES, 'epochs': 6, **changes})
    out, result = capsys.readouterr().out, read_json('out/result.json')
    assert 'device: cuda' in out
    assert result['finished'] and result['best']['acc1'] == 100, out
    process = run_script('test.py', '--checkpoint', 'out/best.pth', '--num-workers', 0)
    assert process.returncode == 0 and 'ACC1 100' in process.stdout, process.stdout + process.stderr


def test_float16_scales_its_gradients(data, monkeypatch):
    monkeypatch.setattr(train.devices, 'choose_amp_dtype', lambda device: torch.float16)
    run(**{**CHANGES, 'epochs': 6})
    assert torch.load('out/last.pth', weights_only=True)['scaler']['scale'] > 1
    assert read_json('out/result.json')['best']['acc1'] == 100


def test_dataparallel_on_one_gpu(data, monkeypatch):
    one = torch.nn.DataParallel
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.nn, 'DataParallel', lambda module: one(module, device_ids=[0]))
    run(**{**CHANGES, 'epochs': 6})
    assert read_json('out/result.json')['best']['acc1'] == 100


def test_nothing_is_waited_for_between_forward_and_the_log(data):
    _, _, state = build(**CHANGES, token_label='true', mixup_prob=0)
    update_without_waiting(state)
