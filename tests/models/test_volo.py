"""models/volo.py against timm's port and against the paper."""
import pytest
import timm
import torch
from helpers import tiny_volo
from timm.models._manipulate import group_parameters

import models

PARAMETERS = {'volo_d1': 27, 'volo_d2': 59, 'volo_d3': 86, 'volo_d4': 193, 'volo_d5': 296}  # millions, paper


SLOW = pytest.mark.slow
TABLE = [pytest.param(name, size, marks=SLOW if (name, size) not in (('volo_d1', 224), ('volo_d2', 224)) else ())
         for name, sizes in models.PUBLISHED.items() for size in sizes]


@pytest.mark.parametrize('name, size', TABLE)
def test_every_published_variant_and_size(name, size):
    """timm's weights load here and ours there, strictly, and both give the same logits."""
    theirs = timm.create_model(f'{name}_{size}').eval()
    ours = models.create_model(name, img_size=size, num_classes=1000, return_dense=True).eval()
    images = torch.randn(1, 3, size, size)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.inference_mode():
        expected = theirs(images)
        assert (ours(images) - expected).abs().max() < 1e-4
        for p in theirs.parameters():
            p.zero_()
        theirs.load_state_dict(ours.state_dict(), strict=True)
        assert torch.equal(theirs(images), expected)


@pytest.mark.parametrize('name, dense', [
    ('volo_d1', True), ('volo_d1', False), pytest.param('volo_d5', True, marks=pytest.mark.slow)])
def test_parity_with_timm_at_another_number_of_classes(name, dense):
    theirs = timm.create_model(f'{name}_224', num_classes=12, use_aux_head=dense).eval()
    ours = timm.create_model(name, num_classes=12, return_dense=dense).eval()  # registered by `import models`
    images = torch.randn(2, 3, 224, 224)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.inference_mode():
        assert (ours(images) - theirs(images)).abs().max() < 1e-4


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameter_counts_are_the_papers(name):
    with torch.device('meta'):
        model = models.create_model(name, num_classes=1000, return_dense=True)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PARAMETERS[name], abs=0.6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_checkpointing_changes_nothing_but_memory(dtype):
    torch.manual_seed(0)
    model = tiny_volo(layers=(2, 2, 1, 1), drop_path_rate=0.5, drop_rate=0.2, return_dense=True, mix_token=True)
    images, results = torch.randn(4, 3, 64, 64), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(1)
        with torch.autocast('cpu', dtype, enabled=dtype is not torch.float32):
            logits, tokens, _ = model(images)
        (logits.float().square().sum() + tokens.float().square().sum()).backward()
        results.append([logits, tokens, *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_layers_from_the_stem_to_the_heads():
    """timm.optim lets the lower layers learn more slowly, in the order that the group matcher gives."""
    model = tiny_volo(layers=(2, 1, 2, 1), return_dense=True)
    layer = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    order = ['patch_embed.proj.bias', 'network.0.0.norm1.bias', 'network.0.1.norm1.bias', 'network.1.proj.bias',
             'network.2.0.norm1.bias', 'network.3.0.norm1.bias', 'network.3.1.norm1.bias', 'network.4.0.norm1.bias',
             'post_network.0.norm1.bias', 'post_network.1.norm1.bias', 'head.bias']
    assert [layer[name] for name in order] == list(range(len(order)))
    assert layer['pos_embed'] == layer['network.1.proj.bias'] and layer['cls_token'] == layer[order[-3]]
    assert layer['norm.bias'] == layer[order[-2]] and layer['aux_head.bias'] == layer['head.bias'] == len(order) - 1
    assert layer.keys() == dict(model.named_parameters()).keys()


def test_bf16_predictions_follow_fp32():
    torch.manual_seed(0)
    model = tiny_volo().eval()
    images = torch.randn(4, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        with torch.autocast('cpu', torch.bfloat16):
            assert (model(images).float() - expected).abs().max() < 0.05


@pytest.mark.parametrize('kwargs', [{}, {'return_mean': True}, {'return_dense': True},
                                    {'return_dense': True, 'mix_token': True}, {'img_size': (32, 80)}])
def test_every_parameter_gets_a_gradient(kwargs):
    model = tiny_volo(**kwargs)
    out = model(torch.randn(2, 3, *model.img_size))
    sum(part.sum() for part in (out[:2] if isinstance(out, tuple) else [out])).backward()
    unused = {'cls_token'} if model.return_mean else set()
    assert {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()} <= unused


def test_outputs_by_switch():
    images = torch.randn(4, 3, 64, 64)
    for model in (tiny_volo(), tiny_volo(return_dense=True), tiny_volo(return_dense=True, mix_token=True)):
        assert model.eval()(images).shape == (4, 5)
    assert tiny_volo()(images).shape == (4, 5)
    logits, tokens, box = tiny_volo(return_dense=True)(images)
    assert logits.shape == (4, 5) and tokens.shape == (4, 16, 5) and box == (0, 0, 0, 0)
    assert tiny_volo(num_classes=0).eval()(images).shape == (4, 48)


def test_stochastic_depth_counts_all_layers_but_is_in_the_transformers_alone():
    model = models.create_model('volo_d1', drop_path_rate=0.17)
    rates = [block.drop_path.drop_prob for stage in list(model.network)[2:] for block in stage]
    assert rates == pytest.approx([0.17 * i / 17 for i in range(4, 18)])
    assert not hasattr(model.network[0][0], 'drop_path')


@pytest.mark.parametrize('kwargs, word', [
    ({'imgsize': 64}, 'imgsize'), ({'img_size': 100}, 'multiple of 16'), ({'img_size': (64, 40)}, 'multiple of 16'),
    ({'mix_token': True}, 'return_dense'), ({'return_mean': True, 'return_dense': True}, 'return_mean')])
def test_wrong_settings_are_refused(kwargs, word):
    with pytest.raises(ValueError, match=word):
        models.create_model('volo_d1', **kwargs)


def test_convolutions_of_timms_networks_are_channels_last():
    """That layout made mobilenetv3_small train twice as fast on a CPU."""
    weight = models.create_model('test_resnet', num_classes=3).layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_networks_with_other_convolutions_are_built_too():
    """Those of three dimensions cannot be channels last."""
    with torch.device('meta'):
        net = models.create_model('lambda_resnet26t', num_classes=3)
    assert any(parameter.ndim == 5 for parameter in net.parameters())
    assert not net.stages[0][0].conv2_kxk.conv.weight.is_contiguous()


def test_unknown_names_and_sizes_are_refused():
    with pytest.raises(ValueError, match='volo_d1'):
        models.create_model('volo_d9')
    with pytest.raises(ValueError, match='72, 64.*multiple of 16'):
        tiny_volo()(torch.randn(1, 3, 72, 64))


@pytest.mark.parametrize('size', [(32, 32), (48, 96), (128, 128)])
def test_another_image_size_is_that_of_a_network_whose_pos_embed_was_resized(size):
    model, other = tiny_volo(return_dense=True).eval(), tiny_volo(return_dense=True, img_size=size).eval()
    models.load_weights(other, model.state_dict())
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(model(images), other(images), rtol=0, atol=1e-6)
    model.train()(images)[0].sum().backward()
    assert model.pos_embed.grad.any(), 'the gradient reaches pos_embed through the resizing'


def test_token_labels_at_another_image_size():
    model = tiny_volo(return_dense=True, mix_token=True)
    assert model(torch.randn(2, 3, 32, 48))[1].shape == (2, 6, 5)


def test_where_the_class_token_looks():
    """What each class block takes from each token, on average."""
    torch.manual_seed(1)
    net = tiny_volo().eval()
    with torch.no_grad():
        for parameter in net.parameters():  # at first a class token looks everywhere alike
            parameter += 0.2 * torch.randn_like(parameter)
    inputs = []
    for block in net.post_network:
        block.attn.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    tokens, box = net.forward_features(torch.randn(2, 3, 64, 48))
    net.forward_head(tokens, box)
    expected = [block.attn.weights(x)[:, :, 1:].mean(1) for block, x in zip(net.post_network, inputs, strict=True)]
    found = net.class_attention(tokens)
    assert found.shape == (2, 4, 3) and (expected[0] - expected[1]).abs().max() > 1e-3
    torch.testing.assert_close(found.flatten(1), sum(expected) / 2)
