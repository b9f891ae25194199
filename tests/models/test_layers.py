"""models/layers.py against plain formulas, PyTorch and timm."""
import pytest
import timm.layers
import torch
from helpers import tiny_volo

from models import set_rows
from models.layers import ClassAttention, DropPath, GeluLinear, Mlp, PatchEmbed, attend


def test_stochastic_depth_draws_as_timms_does():
    x, results = torch.randn(50, 3, 2), []
    for drop in (DropPath(0.4), timm.layers.DropPath(0.4)):
        torch.manual_seed(0)
        results.append(drop(x))
        assert drop.eval()(x) is x
    assert torch.equal(*results) and 10 < (results[0] == 0).all((1, 2)).sum() < 30
    assert DropPath(0.)(x) is x


def test_processes_that_share_a_batch_draw_what_one_would():
    """Otherwise the same random numbers would drop the same paths in each process."""
    net, images, logits = tiny_volo(drop_path_rate=0.9).train(), torch.randn(6, 3, 64, 64), []
    for norm in net.patch_embed.conv[1::3]:
        norm.eval()  # what follows then depends on each image alone
    for rows in ([0, 1, 2, 3, 4, 5], [0, 5], [1, 2, 3, 4]):
        set_rows(net, rows, 6)
        torch.manual_seed(1)
        logits.append(net(images[rows]))
    whole, first, second = logits
    torch.testing.assert_close(torch.cat([first[:1], second, first[1:]]), whole)


@pytest.mark.parametrize('qkv_bias', [False, True])
def test_class_attention_equals_the_plain_formula(qkv_bias):
    torch.manual_seed(0)
    attention = ClassAttention(24, 4, qkv_bias=qkv_bias).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_()
    x = torch.randn(3, 7, 24, dtype=torch.float64, requires_grad=True)
    k, v = attention.kv(x).view(3, 7, 2, 4, 6).permute(2, 0, 3, 1, 4)
    q = attention.q(x[:, :1]).view(3, 1, 4, 6).transpose(1, 2)
    plain = attention.proj(((q @ k.transpose(2, 3)) / 6 ** 0.5).softmax(-1).matmul(v).transpose(1, 2).flatten(2))
    results = []
    for out in (attention(x), plain):
        results.append((out, *torch.autograd.grad(out.sin().sum(), (x, *attention.parameters()))))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)


def test_the_weights_of_class_attention_are_what_it_mixes_with():
    torch.manual_seed(0)
    attention = ClassAttention(24, 4).double()
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    weights = attention.weights(x)                                     # (B, heads, N)
    values = attention.kv(x)[..., 24:].view(2, 7, 4, 6)                # (B, N, heads, d)
    mixed = torch.einsum('bhn,bnhd->bhd', weights, values).flatten(1)  # (B, dim)
    assert weights.shape == (2, 4, 7) and weights.std() > 0.01
    torch.testing.assert_close(attention.proj(mixed), attention(x)[:, 0])


def test_attention_equals_pytorchs():
    q, k, v = (torch.randn(2, 3, 50, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    results = []
    for f in (attend, torch.nn.functional.scaled_dot_product_attention):
        out = f(q, k, v)
        results.append((out, *torch.autograd.grad(out.sin().sum(), (q, k, v))))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)


def test_batchnorm_goes_into_the_convolutions_in_evaluation():
    torch.manual_seed(0)
    stem = PatchEmbed(3, 16, 24).double()
    for norm in stem.conv[1::3]:
        for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    stem.eval()
    images = torch.randn(1, 3, 48, 80, dtype=torch.float64)
    parameters = list(stem.parameters())
    results = []
    for out in (stem(images), stem.proj(stem.conv(images))):
        results.append((out, *torch.autograd.grad(out.sin().sum(), parameters)))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize('shape', [(1, 24), (2, 1, 24), (3, 5, 7, 24)])
def test_perceptron_equals_timms(shape):
    torch.manual_seed(0)
    ours, theirs = Mlp(24, 40).double(), timm.layers.Mlp(24, 40).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    results = [(out := mlp(x), *torch.autograd.grad(out.sin().sum(), (x, *mlp.parameters()))) for mlp in (ours, theirs)]
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)
    inner = ours.fc1(x).detach().requires_grad_()
    assert torch.autograd.gradgradcheck(GeluLinear.apply, (inner, *ours.fc2.parameters()), fast_mode=True)


def test_a_perceptron_whose_layer_is_watched_or_replaced_uses_it():
    calls, mlp, x = [], Mlp(8, 16), torch.randn(2, 8)
    handle = mlp.fc2.register_forward_hook(lambda *arguments: calls.append(1))
    mlp(x)
    handle.remove()
    mlp.fc2 = torch.nn.Sequential(torch.nn.Linear(16, 8, bias=False))
    mlp(x).sum().backward()
    assert calls == [1] and mlp.fc2[0].weight.grad.any()
