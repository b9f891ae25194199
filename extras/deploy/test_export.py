"""extras/deploy/export.py, and best.pth in other programs: ONNX, safetensors, timm, the official loader's format."""
import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from helpers import TINY

import models
from common.training import checkpoint
from extras.deploy import export
from models import WeightsError, load_weights

CLASSES = [f'种 {i}' for i in range(12)]


def save(folder, name='volo_d1', img_size=(64, 64), **kwargs):
    """A best.pth with random weights that are not the initial ones. Returns (its path, the network)."""
    torch.manual_seed(0)
    net = models.create_model(name, img_size=img_size, num_classes=12, **kwargs).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    transform = {'img_size': list(img_size), 'mean': [.5] * 3, 'std': [.2] * 3, 'interpolation': 'bicubic',
                 'crop': None}
    checkpoint.save(folder / 'best.pth', {'model': name, 'model_kwargs': kwargs, 'classes': CLASSES,
                                          'transform': transform, 'state_dict': net.state_dict()})
    return folder / 'best.pth', net


def check_onnx(path, net, img_size):
    """Batches of 1 and 3, and what the metadata say."""
    onnxruntime = pytest.importorskip('onnxruntime')
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 3):
        images = torch.randn(batch, 3, *img_size)
        with torch.inference_mode():
            expected = net(images)
        found = torch.from_numpy(session.run(['logits'], {'images': images.numpy()})[0])
        assert found.shape == (batch, 12) and (found - expected).abs().max() < 1e-3
        assert expected.std() > 0.01  # else any answer would be near
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata['classes']) == CLASSES
    assert json.loads(metadata['preprocessing'])['img_size'] == list(img_size)


@pytest.mark.parametrize('name, img_size, kwargs', [
    ('volo_d1', (48, 80), {**TINY, 'return_dense': True}), ('volo_d1', (64, 64), {**TINY, 'return_mean': True}),
    ('test_resnet', (64, 96), {})])
def test_onnx_and_safetensors(tmp_path, monkeypatch, capsys, name, img_size, kwargs):
    pytest.importorskip('onnxscript')
    path, net = save(tmp_path, name, img_size, **kwargs)
    monkeypatch.setattr(sys, 'argv', ['export', str(path)])
    export.main()
    assert 'logits within' in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {'best.pth', 'best.onnx', 'best.safetensors'}
    check_onnx(tmp_path / 'best.onnx', net, img_size)
    operators = {node.op_type for node in pytest.importorskip('onnx').load(tmp_path / 'best.onnx').graph.node}
    assert operators and 'Col2Im' not in operators  # which many runtimes lack
    other = models.create_model(name, img_size=img_size, num_classes=12, **kwargs).eval()
    assert load_weights(other, tmp_path / 'best.safetensors')['dropped'] == []
    assert models.normalisation_of(models.read_file(tmp_path / 'best.safetensors')) == ([.5] * 3, [.2] * 3)
    images = torch.randn(1, 3, *img_size)
    with torch.inference_mode():
        assert torch.equal(other(images), net(images))


@pytest.mark.slow
@pytest.mark.parametrize('name', models.VARIANTS)
def test_onnx_of_every_variant(tmp_path, name):
    pytest.importorskip('onnxscript')
    path, net = save(tmp_path, name, (224, 224), return_dense=True)
    export.write_onnx(net, (224, 224), export.open_checkpoint(path)[2], tmp_path / 'best.onnx')
    check_onnx(tmp_path / 'best.onnx', net, (224, 224))


def test_a_wrong_onnx_file_is_not_kept(tmp_path, monkeypatch):
    pytest.importorskip('onnxscript')
    path, net = save(tmp_path, 'test_resnet')
    monkeypatch.setattr(export, 'compare', lambda *arguments: float('nan'))
    with pytest.raises(WeightsError, match='differ by nan'):
        export.write_onnx(net, (64, 64), {'model': 'volo_d1'}, tmp_path / 'best.onnx')
    assert {p.name for p in tmp_path.iterdir()} == {'best.pth'}


@pytest.mark.parametrize('content, words', [(b'hello', 'not a readable file'), (None, 'no such file')])
def test_what_cannot_be_exported_gets_one_line(tmp_path, monkeypatch, capsys, content, words):
    path = tmp_path / 'best.pth'
    if content:
        path.write_bytes(content)
    monkeypatch.setattr(sys, 'argv', ['export', str(path)])
    with pytest.raises(SystemExit) as end:
        export.main()
    message = capsys.readouterr().err
    assert end.value.code == 2 and message.count('\n') == 1 and words in message


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(WeightsError, match='pip install onnx'):
        export.write_onnx(None, (64, 64), {}, tmp_path / 'best.onnx')


@pytest.mark.parametrize('dense', [False, True])
def test_best_pth_loads_in_plain_timm(tmp_path, dense):
    """As the README says: img_size, num_classes and use_aux_head as in training. In a process that knows no models/."""
    path, net = save(tmp_path, img_size=(96, 96), **({'return_dense': True} if dense else {}))
    images = torch.randn(2, 3, 96, 96)
    torch.save(images, tmp_path / 'images.pt')
    code = ('import sys, timm, torch; '
            f'net = timm.create_model("volo_d1_224", num_classes=12, img_size=96, use_aux_head={dense}, '
            'checkpoint_path=sys.argv[1]).eval(); '
            'torch.save(net(torch.load(sys.argv[2])).detach(), sys.argv[2])')
    subprocess.run([sys.executable, '-c', code, path, tmp_path / 'images.pt'], check=True, cwd=tmp_path)
    with torch.inference_mode():
        assert (torch.load(tmp_path / 'images.pt') - net(images)).abs().max() < 1e-4


def test_best_pth_has_the_official_loaders_format(tmp_path):
    """What the official load_pretrained_weights does for num_classes=1000: it takes `state_dict` out of the file, cuts
    `module.` off, and loads strictly; the published names and shapes are those of timm's port."""
    path, net = save(tmp_path, return_dense=True)
    content = torch.load(Path(path), map_location='cpu')
    state = OrderedDict((name.removeprefix('module.'), tensor) for name, tensor in content['state_dict'].items())
    official = timm.create_model('volo_d1_224', num_classes=12, img_size=64, use_aux_head=True).eval()
    official.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert (official(images) - net(images)).abs().max() < 1e-4
