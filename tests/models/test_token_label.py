"""Training with token labels against a plain second implementation of the network and of the loss."""
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_volo

import models
from models import token_label_loss
from models.token_label import random_box

LAYERS, HEADS = (2, 1, 1, 1), (2, 4)


def attention(q, k, v, heads):
    """One head after the other: (B, N, C) each."""
    out = []
    for q, k, v in zip(*(x.chunk(heads, dim=-1) for x in (q, k, v)), strict=True):  # noqa: B020
        scores = torch.einsum('bnd,bmd->bnm', q, k) / math.sqrt(q.shape[-1])
        out.append(torch.einsum('bnm,bmd->bnd', scores.exp() / scores.exp().sum(-1, keepdim=True), v))
    return torch.cat(out, dim=-1)


def outlook_attention(x, p):
    """Window by window, as algorithm 1 of the paper says it: nested loops, no Unfold and no Fold. (B, H, W, C)."""
    B, H, W, C = x.shape
    d = C // HEADS[0]
    v = x @ p['v.weight'].T
    out = torch.zeros_like(v)
    for i in range(0, H, 2):
        for j in range(0, W, 2):
            anchor = x[:, i:i + 2, j:j + 2].mean((1, 2))
            weights = anchor @ p['attn.weight'].T + p['attn.bias']
            weights = (weights.view(B, HEADS[0], 9, 9) / math.sqrt(d)).softmax(-1)  # (B, heads, queries, keys)
            cells = [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
            inside = [(n, y, x) for n, (y, x) in enumerate(cells) if 0 <= y < H and 0 <= x < W]
            for query, y, z in inside:
                mixed = sum(weights[:, :, query, key, None] * v[:, y2, z2].view(B, HEADS[0], d)
                            for key, y2, z2 in inside)
                out = out.index_put((torch.arange(B)[:, None], torch.tensor(y), torch.tensor(z), torch.arange(C)),
                                    mixed.reshape(B, C), accumulate=True)
    return out @ p['proj.weight'].T + p['proj.bias']


def norm(x, q):
    return F.layer_norm(x, x.shape[-1:], q['weight'], q['bias'])


def mlp(x, q):
    return F.gelu(x @ q['fc1.weight'].T + q['fc1.bias']) @ q['fc2.weight'].T + q['fc2.bias']


def stem(p, x):
    for conv, bn, stride in ((0, 1, 2), (3, 4, 1), (6, 7, 1)):
        kernel = p[f'patch_embed.conv.{conv}.weight']
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        scale, shift = (p[f'patch_embed.conv.{bn}.{name}'].view(1, -1, 1, 1) for name in ('weight', 'bias'))
        x = ((x - mean) / (var + 1e-5).sqrt() * scale + shift).relu()
    return F.conv2d(x, p['patch_embed.proj.weight'], p['patch_embed.proj.bias'], stride=4).permute(0, 2, 3, 1)


def reference(p, images, box):
    """(class logits, token logits) of a VOLO in training mode with the parameters p, tokens mixed inside the box."""
    def sub(prefix):
        return {name[len(prefix):]: value for name, value in p.items() if name.startswith(prefix)}

    def mix(x, scale):
        keep = torch.ones(x.shape[1:3], dtype=torch.bool)
        keep[scale * box[0]:scale * box[2], scale * box[1]:scale * box[3]] = False
        return torch.where(keep[None, :, :, None], x, x.flip(0))

    x = mix(stem(p, images), 2)
    for i in range(LAYERS[0]):
        q = sub(f'network.0.{i}.')
        part = {name: {k[len(name) + 1:]: v for k, v in q.items() if k.startswith(f'{name}.')}
                for name in ('norm1', 'attn', 'norm2', 'mlp')}
        x = x + outlook_attention(norm(x, part['norm1']), part['attn'])
        x = x + mlp(norm(x, part['norm2']), part['mlp'])
    x = F.conv2d(x.permute(0, 3, 1, 2), p['network.1.proj.weight'], p['network.1.proj.bias'], stride=2)
    x = x.permute(0, 2, 3, 1) + p['pos_embed']
    height, width = x.shape[1:3]
    x = x.flatten(1, 2)
    for stage in (2, 3, 4):
        for i in range(LAYERS[stage - 1]):
            q = sub(f'network.{stage}.{i}.')
            y = norm(x, {'weight': q['norm1.weight'], 'bias': q['norm1.bias']})
            y = attention(*(y @ q['attn.qkv.weight'].T).chunk(3, dim=-1), HEADS[1])
            x = x + y @ q['attn.proj.weight'].T + q['attn.proj.bias']
            y = norm(x, {'weight': q['norm2.weight'], 'bias': q['norm2.bias']})
            x = x + mlp(y, {k[4:]: v for k, v in q.items() if k.startswith('mlp.')})
    cls = p['cls_token'].expand(len(x), -1, -1)
    for i in range(2):
        q = sub(f'post_network.{i}.')
        y = norm(torch.cat([cls, x], 1), {'weight': q['norm1.weight'], 'bias': q['norm1.bias']})
        y = attention(y[:, :1] @ q['attn.q.weight'].T, *(y @ q['attn.kv.weight'].T).chunk(2, dim=-1), HEADS[1])
        cls = cls + y @ q['attn.proj.weight'].T + q['attn.proj.bias']
        y = norm(cls, {'weight': q['norm2.weight'], 'bias': q['norm2.bias']})
        cls = cls + mlp(y, {k[4:]: v for k, v in q.items() if k.startswith('mlp.')})
    cls, x = (norm(y, sub('norm.')) for y in (cls, x))
    tokens = x @ p['aux_head.weight'].T + p['aux_head.bias']
    return (cls[:, 0] @ p['head.weight'].T + p['head.bias'],
            mix(tokens.unflatten(1, (height, width)), 1).flatten(1, 2))


def reference_loss(logits, tokens, box, targets):
    """Per image, as the official recipe has it where there are no maps of labels."""
    lam = 1 - (box[2] - box[0]) * (box[3] - box[1]) / tokens.shape[1]
    out = []
    for i in range(len(logits)):
        target = lam * targets[i] + (1 - lam) * targets[len(logits) - 1 - i]
        dense = torch.stack([-(targets[i] * token.log_softmax(0)).sum() for token in tokens[i]]).mean()
        out.append(-(target * logits[i].log_softmax(0)).sum() + 0.5 * dense)
    return torch.stack(out)


@pytest.mark.parametrize('box', [(0, 0, 0, 0), (1, 0, 3, 2), (0, 1, 3, 5), (0, 0, 3, 5)])
def test_forward_loss_and_gradients_equal_the_plain_reference(monkeypatch, box):
    monkeypatch.setattr('models.volo.random_box', lambda height, width, device: box)
    torch.manual_seed(0)
    model = tiny_volo(layers=LAYERS, img_size=(48, 80), return_dense=True, mix_token=True).double()
    with torch.no_grad():  # at the initial scale all tokens are nearly alike
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
            elif name.endswith('bias'):
                parameter.normal_(std=0.1)
    images = torch.randn(3, 3, 48, 80, dtype=torch.float64)
    targets = torch.rand(3, 5, dtype=torch.float64).softmax(1)
    outputs = model(images)
    losses = token_label_loss(outputs, targets)
    losses.mean().backward()

    p = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    logits, tokens = reference(p, images, box)
    expected = reference_loss(logits, tokens, box, targets)
    expected.mean().backward()

    assert outputs[2] == box
    for ours, theirs in ((outputs[0], logits), (outputs[1], tokens), (losses, expected)):
        assert (ours - theirs).abs().max() < 1e-5 * max(1, theirs.abs().max())
    for name, parameter in model.named_parameters():
        difference = (parameter.grad - p[name].grad).abs().max()
        assert difference < 1e-5 * max(1, p[name].grad.abs().max()), name
        assert p[name].grad.any(), name


def test_losses_of_replicas_are_those_of_the_whole_batch():
    """A row for each image, so that the shares of a batch under DataParallel may differ in size."""
    torch.manual_seed(0)
    outputs = torch.randn(5, 7), torch.randn(5, 6, 7), (0, 0, 0, 0)
    targets = torch.rand(5, 7).softmax(1)
    whole = token_label_loss(outputs, targets)
    parts = [token_label_loss((outputs[0][s], outputs[1][s], outputs[2]), targets[s]) for s in (slice(3), slice(3, 5))]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_boxes_lie_on_the_grid_and_follow_torchs_generator():
    torch.manual_seed(3)
    boxes = [random_box(7, 10, torch.device('cpu')).tolist() for _ in range(500)]
    assert all(0 <= top <= bottom <= 7 and 0 <= left <= right <= 10 for top, left, bottom, right in boxes)
    area = sum((b - t) * (r - left) for t, left, b, r in boxes) / 500 / 70
    assert 0.15 < area < 0.5  # 0.5 less what the border and rounding cut off
    torch.manual_seed(3)
    assert boxes == [random_box(7, 10, torch.device('cpu')).tolist() for _ in range(500)]


def test_mix_token_swaps_and_swaps_back(monkeypatch):
    """With the whole grid in the box each image is computed as its partner, and its token logits return to it."""
    monkeypatch.setattr('models.volo.random_box', lambda height, width, device: (0, 0, height, width))
    model = models.create_model('volo_d1', img_size=32, num_classes=5, layers=(1, 1, 1, 1), embed_dims=(24, 48),
                                num_heads=(2, 4), stem_hidden_dim=16, return_dense=True, mix_token=True)
    images = torch.randn(4, 3, 32, 32)
    logits, tokens, box = model(images)
    model.mix_token = False
    plain_logits, plain_tokens, _ = model(images)
    assert box == (0, 0, 2, 2)
    torch.testing.assert_close(logits, plain_logits.flip(0))
    torch.testing.assert_close(tokens, plain_tokens)
