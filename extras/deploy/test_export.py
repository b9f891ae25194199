"""extras/deploy/export.py: ONNX files and safetensors compute what the network does."""
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TINY, scene
from torch import nn

import models
from common.data.transforms import Transform, eval_transform, fit
from common.evaluation.outliers import certainty, fit_outliers, typicality
from extras.deploy import export
from extras.deploy.export import Classifier, Preprocessing, convert, open_session, write_network, write_safetensors
from models import VOLO, WeightsError, load_weights

CLASSES = [*(f'种 {i}' for i in range(11)), 'no UTF-8: \udce9']
TRANSFORM = Transform([48, 64], [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


def trained(name, img_size, **kwargs):
    """A network with random weights that are not the initial ones."""
    torch.manual_seed(0)
    net = models.create_model(name, img_size=img_size, num_classes=12, **kwargs).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return net


def metadata_for(name, img_size):
    saved = {'model': name, 'classes': CLASSES, 'transform': Transform(list(img_size), [.5] * 3, [.2] * 3).as_dict()}
    return export.metadata_of(saved)


def check_onnx(path, net, img_size):
    """Batches of 1 and 3, and what the metadata say."""
    session = open_session(path)
    for batch in (1, 3):
        images = torch.randn(batch, 3, *img_size)
        with torch.inference_mode():
            expected = net(images)
        found = torch.from_numpy(session.run(['logits'], {'images': images.numpy()})[0])
        assert found.shape == (batch, 12) and (found - expected).abs().max() < 1e-3
        assert expected.std() > 0.01  # else any answer would be near
        if isinstance(net, VOLO) and not net.return_mean:
            attention = net.class_attention(net.forward_features(images)[0])
            found = torch.from_numpy(session.run(['attention'], {'images': images.numpy()})[0])
            torch.testing.assert_close(found, attention, rtol=1e-3, atol=1e-5)
            assert attention.std() > 1e-4
        else:
            assert len(session.get_outputs()) == 2
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata['classes']) == CLASSES
    assert json.loads(metadata['preprocessing'])['img_size'] == list(img_size)


@pytest.mark.parametrize('name, img_size, kwargs', [
    ('volo_d1', (48, 80), {**TINY, 'return_dense': True}),
    pytest.param('volo_d1', (64, 64), {**TINY, 'return_mean': True}, marks=pytest.mark.slow),
    ('test_resnet', (64, 96), {})])
def test_onnx(tmp_path, name, img_size, kwargs):
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxscript')
    net = trained(name, img_size, **kwargs)
    write_network(Classifier(net, None, 1.).eval(), img_size, metadata_for(name, img_size), tmp_path / 'best.onnx')
    check_onnx(tmp_path / 'best.onnx', net, img_size)
    operators = {node.op_type for node in onnx.load(tmp_path / 'best.onnx').graph.node}
    assert operators and 'Col2Im' not in operators  # which many runtimes lack


@pytest.mark.slow
@pytest.mark.parametrize('name', models.VARIANTS)
def test_onnx_of_every_variant(tmp_path, name):
    pytest.importorskip('onnxscript')
    net = trained(name, (224, 224), return_dense=True)
    write_network(Classifier(net, None, 1.).eval(), (224, 224), metadata_for(name, (224, 224)), tmp_path / 'best.onnx')
    check_onnx(tmp_path / 'best.onnx', net, (224, 224))


def test_safetensors_load_with_their_head_and_preprocessing(tmp_path):
    net = trained('volo_d1', (32, 32), **TINY, return_dense=True)
    write_safetensors(net, metadata_for('volo_d1', (32, 32)), tmp_path / 'best.safetensors')
    assert [path.name for path in tmp_path.iterdir()] == ['best.safetensors']
    assert models.normalisation_of(models.read_file(tmp_path / 'best.safetensors')) == ([.5] * 3, [.2] * 3)
    other = models.create_model('volo_d1', img_size=32, num_classes=12, **TINY, return_dense=True).eval()
    assert load_weights(other, tmp_path / 'best.safetensors').dropped == []
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(other(images), net(images))


def test_a_wrong_onnx_file_is_not_kept(tmp_path, monkeypatch):
    """One whose logits differ from PyTorch's, or that onnxruntime does not run."""
    pytest.importorskip('onnxscript')
    net = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)), None, 1.).eval()
    monkeypatch.setattr(export, 'compare', lambda *arguments: float('nan'))
    with pytest.raises(WeightsError, match='differ by nan'):
        write_network(net, [8, 8], {'model': 'x'}, tmp_path / 'x.onnx')
    monkeypatch.undo()
    monkeypatch.setattr(export, 'convert', lambda *arguments: (tmp_path / 'x.onnx').write_text('no ONNX'))
    with pytest.raises(WeightsError, match='onnxruntime does not run x'):
        write_network(net, [8, 8], {'model': 'x'}, tmp_path / 'x.onnx')
    assert not list(tmp_path.iterdir())


def test_large_logits_may_differ_by_a_share_of_them(tmp_path):
    """Of noise, some networks have logits of hundreds, and fp32 has seven digits."""
    given = torch.tensor([[400., -20.]])
    classifier = Classifier(Given(), None, 1.)
    for found, most in (([400.1, -20.], 0.0003), ([401., -20.], 0.003)):
        session = SimpleNamespace(run=lambda names, inputs, found=found: [np.array([found], np.float32)])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(classifier, 'forward', lambda images: (given,))
            assert most / 2 < export.compare(classifier, session, torch.zeros(1)) < most


class Given(nn.Module):
    """A network that takes (logits, features) and returns them."""

    def forward_features(self, given):
        return given

    def forward_head(self, given, pre_logits=False):
        return given[pre_logits]


def test_the_certainty_is_that_of_test_py():
    """For images that are as usual as those of val, and for others."""
    torch.manual_seed(0)
    features = torch.randn(200, 48) @ torch.diag(torch.linspace(0.01, 3, 48))
    known = fit_outliers(features)
    classifier = Classifier(Given(), known, 2.)
    for scale in (0.1, 1., 3.):
        usual = scale * torch.randn(7, 48) @ torch.diag(torch.linspace(0.01, 3, 48))
        given = torch.cat([usual, 1e4 * torch.ones(1, 48)])
        logits = torch.randn(8, 12)
        found_logits, found = classifier((logits, given))
        assert torch.equal(found_logits, logits)
        confidence = (logits / 2).softmax(1).amax(1)
        torch.testing.assert_close(found, certainty(confidence, typicality(given, known)), rtol=0, atol=0.02)
        assert 0 < found[7] < 0.2
    assert torch.equal(Classifier(Given(), None, 2.)((logits, given))[1], confidence)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(export.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(WeightsError, match='pip install onnx'):
        export.check_packages()


def grey_levels(found, image, transform):
    """The largest difference between a normalised image and what train.py makes of the same image, of 255."""
    expected = eval_transform(transform)(fit(transform)(image))
    return (255 * torch.tensor(transform.std).view(3, 1, 1) * (found - expected).abs()).max().item()


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('size', [(64, 48), (200, 301), (30, 20), (640, 100)])
def test_the_preprocessing_of_a_file_is_that_of_training(interpolation, size):
    image = scene(3, size)
    transform = dataclasses.replace(TRANSFORM, interpolation=interpolation)
    found = Preprocessing(transform)(torch.from_numpy(np.array(image))[None])
    assert found.shape == (1, 3, 48, 64)
    assert grey_levels(found[0], image, transform) < (1.01 if interpolation == 'bilinear' else 2.01)


def test_onnxruntime_resizes_alike(tmp_path):
    pytest.importorskip('onnxscript')
    convert(Preprocessing(TRANSFORM).eval(), torch.zeros(2, 70, 50, 3, dtype=torch.uint8), 'pictures', ['normalised'],
            {1: 'height', 2: 'width'}, {'model': 'x'}, tmp_path / 'x.onnx')
    session = open_session(tmp_path / 'x.onnx')
    for size in ((64, 48), (200, 301), (30, 20)):
        found = session.run(None, {'pictures': np.asarray(scene(3, size))[None]})[0]
        assert grey_levels(torch.from_numpy(found[0]), scene(3, size), TRANSFORM) < 1.01


def test_with_a_crop_images_come_cropped(tmp_path):
    """Their size is then fixed to the network's, and nothing is resized."""
    pytest.importorskip('onnxscript')
    transform = dataclasses.replace(TRANSFORM, crop=0.8)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 64, 2)).eval()
    write_network(Classifier(net, None, 1.).eval(), [48, 64], {'model': 'x'}, tmp_path / 'network.onnx')
    export.put_preprocessing_before(tmp_path / 'network.onnx', transform, {'model': 'x'}, tmp_path / 'x.onnx', tmp_path)
    session = open_session(tmp_path / 'x.onnx')
    assert session.get_inputs()[0].shape[1:] == [48, 64, 3]
    image = scene(3, (200, 301))
    with torch.inference_mode():
        expected = net(eval_transform(transform)(fit(transform)(image))[None])
    found, _ = session.run(None, {'pictures': np.asarray(fit(transform)(image))[None]})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)
