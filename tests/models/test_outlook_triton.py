"""models/outlook_triton.py in Triton's interpreter, which needs no GPU; tests/test_cuda.py has it on one."""
import os
import subprocess
import sys
import warnings

import pytest
import torch
from helpers import ROOT

from models import outlook

SCRIPT = """
import torch
from models import outlook, outlook_triton
outlook_triton.wrap_triton = lambda kernel: kernel  # takes no interpreted ones
torch.manual_seed(0)
for window, size in (((3, 1, 2), (6, 8)), ((3, 1, 2), (7, 5)), ((3, 1, 1), (5, 4)), ((2, 0, 2), (4, 6))):
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
    """An attention that takes the CPU for a GPU, without autograd's own functions being told."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.Tensor, 'is_cuda', True)
    return outlook.OutlookAttention(32, 2)


def test_a_gpu_where_triton_fails_goes_on_without(attention, monkeypatch):
    """As without Python's headers, which many systems lack."""
    calls, images = [], torch.randn(2, 6, 6, 32)

    def broken(*arguments):
        calls.append(arguments)
        raise subprocess.CalledProcessError(1, ['gcc', 'cuda_utils.c'])

    monkeypatch.setattr(outlook, 'mix', None)
    expected = attention(images)
    monkeypatch.setattr(outlook, 'mix', broken)
    with pytest.warns(UserWarning, match='python3-dev.*CalledProcessError.*cuda_utils.c'):
        found = attention(images)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        again = attention(images)
    assert len(calls) == 1 and torch.equal(found, expected) and torch.equal(again, expected)


def test_a_gpu_without_memory_is_no_reason_to_go_on_without_triton(attention, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(outlook, 'mix', full)
    with pytest.raises(torch.OutOfMemoryError):
        attention(torch.randn(2, 6, 6, 32))
    assert outlook.mix is full
