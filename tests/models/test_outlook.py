"""The formulations of outlook attention against each other.

Triton's runs in its interpreter, which needs no GPU; tests/test_cuda.py runs it on a GPU.
"""
import os
import subprocess
import sys
import warnings

import pytest
import torch
from helpers import ROOT

from models import outlook
from models.outlook import MixWindows, TritonMix, mix_windows_plain, mix_windows_sliced

SCRIPT = """
import torch
from models import outlook, outlook_triton
outlook_triton.wrap_triton = lambda kernel: kernel  # takes no interpreted ones
torch.manual_seed(0)
for window, size in (((3, 1, 2), (4, 6)), ((3, 1, 2), (5, 3)), ((3, 1, 1), (3, 4)), ((2, 0, 2), (4, 2))):
    k, padding, stride = window
    h, w = ((side + 2 * padding - k) // stride + 1 for side in size)
    values = torch.randn(2, *size, 3, 16, requires_grad=True)
    logits = torch.randn(2, h, w, k * k, 3, k * k, requires_grad=True)
    grad = torch.randn_like(values)
    expected = outlook.mix_windows_plain(values, logits, window)
    found = outlook_triton.mix(logits.softmax(3), values, *window)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(found, (values, logits), grad),
                               torch.autograd.grad(expected, (values, logits), grad), atol=1e-5, rtol=1e-5)
"""


def test_the_kernels_compute_the_plain_formula_and_its_gradients():
    pytest.importorskip('triton')
    process = subprocess.run([sys.executable, '-c', SCRIPT], cwd=ROOT, text=True, capture_output=True,
                             env={**os.environ, 'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': ''})
    assert process.returncode == 0, process.stderr


@pytest.fixture
def attention(monkeypatch):
    """An attention that takes the CPU for a GPU."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.Tensor, 'is_cuda', True)
    return outlook.OutlookAttention(32, 2)


def test_a_gpu_on_which_triton_fails_goes_on_without_it(attention, monkeypatch):
    """It fails without Python's headers, for instance, which many systems lack."""
    calls, images = [], torch.randn(2, 6, 6, 32)

    def broken(*arguments):
        calls.append(arguments)
        raise subprocess.CalledProcessError(1, ['gcc', 'cuda_utils.c'])

    monkeypatch.setattr(outlook, 'TRITON', TritonMix(None))
    expected = attention(images)
    monkeypatch.setattr(outlook, 'TRITON', TritonMix(broken))
    with pytest.warns(UserWarning, match='python3-dev.*CalledProcessError.*cuda_utils.c'):
        found = attention(images)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        again = attention(images)
    assert len(calls) == 1 and torch.equal(found, expected) and torch.equal(again, expected)


def test_a_gpu_without_memory_is_no_reason_to_go_on_without_triton(attention, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(outlook, 'TRITON', TritonMix(full))
    with pytest.raises(torch.OutOfMemoryError):
        attention(torch.randn(2, 6, 6, 32))
    assert not outlook.TRITON.failed


@pytest.mark.parametrize('grid', [(4, 6), (5, 7), (1, 1), (14, 14)])
@pytest.mark.parametrize('window', [(3, 1, 2), (3, 1, 1), (5, 2, 2), (1, 0, 1)])
def test_outlook_mixing_equals_the_plain_formula(grid, window):
    torch.manual_seed(0)
    kernel, padding, stride = window
    h, w = ((side + 2 * padding - kernel) // stride + 1 for side in grid)
    values = torch.randn(2, *grid, 3, 4, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, h, w, kernel ** 2, 3, kernel ** 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(values)
    results = []
    for mix in (MixWindows.apply, mix_windows_sliced, mix_windows_plain):
        out = mix(values, logits, window)
        results.append((out, *torch.autograd.grad((out * weight).sum(), (values, logits))))
    for found in results[:2]:
        torch.testing.assert_close(found, results[2])
