"""ONNX files that take pictures, and their INT8 variant: they name val as PyTorch does, or it is said."""
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT, draw_folder, scene, untrained
from PIL import Image

from common import settings
from common.data.transforms import Transform, eval_transform, fit
from common.evaluation.predictor import Predictor
from common.runtime.errors import UserError
from extras.deploy import __main__ as deploy
from extras.deploy.export import Preprocessing, convert, open_session

TRANSFORM = Transform([48, 64], [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
FILES = {'x.onnx', 'x_pictures.onnx', 'x_int8.onnx'}


def grey_levels(found, image, transform):
    """The largest difference between a normalised image and what train.py makes of the picture, of 255."""
    expected = eval_transform(transform)(fit(transform)(image))
    return (255 * torch.tensor(transform.std).view(3, 1, 1) * (found - expected).abs()).max().item()


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('size', [(64, 48), (200, 301), (30, 20), (640, 100)])
def test_the_preprocessing_of_a_file_is_that_of_training(interpolation, size):
    image, transform = scene(3, size), dataclasses.replace(TRANSFORM, interpolation=interpolation)
    found = Preprocessing(transform.as_dict())(torch.from_numpy(np.array(image))[None])
    assert found.shape == (1, 3, 48, 64)
    assert grey_levels(found[0], image, transform) < (1.01 if interpolation == 'bilinear' else 2.01)


def test_onnxruntime_resizes_likewise(tmp_path):
    pytest.importorskip('onnxscript')
    convert(Preprocessing(TRANSFORM.as_dict()), torch.zeros(2, 70, 50, 3, dtype=torch.uint8), 'pictures',
            {1: 'height', 2: 'width'}, {'model': 'x'}, tmp_path / 'x.onnx')
    session = open_session(tmp_path / 'x.onnx')
    for size in ((64, 48), (200, 301), (30, 20)):
        found = session.run(None, {'pictures': np.asarray(scene(3, size))[None]})[0]
        assert grey_levels(torch.from_numpy(found[0]), scene(3, size), TRANSFORM) < 1.01


def photographs(folder):
    """data/train and data/val of smooth pictures of all sizes, one of val unreadable."""
    for side, count in (('train', 6), ('val', 9)):
        for name in 'ab':
            (folder / 'data' / side / name).mkdir(parents=True)
            for number in range(count):
                size = 30 + 7 * number, 90 - 5 * number
                scene(ord(name) + number, size).save(folder / 'data' / side / name / f'{number}.png')
    (folder / 'data' / 'val' / 'a' / 'bad.jpg').write_text('no picture')


def run(*arguments):
    deploy.main(settings.read(deploy, ['--checkpoint', 'x.pth', *map(str, arguments)]))


@pytest.fixture(scope='module')
def deployed(tmp_path_factory):
    """(a folder with x.pth, its files and data/, what was printed)."""
    pytest.importorskip('onnxscript')
    folder = tmp_path_factory.mktemp('deployed')
    photographs(folder)
    untrained(folder / 'x.pth', best={'temperature': 2.})
    done = subprocess.run([sys.executable, '-m', 'extras.deploy', '--checkpoint', folder / 'x.pth',
                           '--data-dir', folder / 'data', '--batch-size', '2'], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_every_file_says_how_often_it_agrees(deployed):
    folder, out = deployed
    assert {path.name for path in folder.iterdir()} == {'x.pth', 'data', *FILES}
    paths = sorted((folder / 'data' / 'val').rglob('*.png'))
    right = np.mean([found.label == found.image.parent.name for found in Predictor(folder / 'x.pth')(paths)])
    for name in FILES:
        metadata = open_session(folder / name).get_modelmeta().custom_metadata_map
        agreement = json.loads(metadata['agreement'])
        assert agreement['pictures'] == 18 and agreement['top1'] >= (0.5 if 'int8' in name else 1)
        assert json.loads(metadata['classes']) == ['a', 'b', 'c'] and json.loads(metadata['temperature']) == 2
        assert json.loads(metadata['preprocessing'])['img_size'] == [32, 32]
        line = next(line for line in out.splitlines() if line.startswith(f'{name} '))
        assert f'{agreement["top1"]:>10.2%}' in line
        if 'int8' not in name:
            assert f'{right:>8.2%}' in line
    assert 'PyTorch' in out and '18 pictures of val; batches of 2, 1 threads' in out


def test_pictures_get_the_logits_of_the_checkpoint(deployed):
    """Within what a grey level here and there makes; INT8 within what 8 bits make."""
    folder, _ = deployed
    paths = sorted((folder / 'data' / 'val').rglob('*.png'))
    expected = torch.stack([found.logits for found in Predictor(folder / 'x.pth', use_amp=False)(paths)])
    for name, tolerance in (('x_pictures.onnx', 0.05), ('x_int8.onnx', 1.)):
        session = open_session(folder / name)
        found = [session.run(None, {'pictures': np.asarray(Image.open(path))[None]})[0][0] / 2 for path in paths]
        difference = (torch.from_numpy(np.stack(found)) - expected).abs().max()
        assert difference < tolerance * expected.std(), difference


def test_int8_is_smaller_and_has_the_linear_layers_in_8_bits(deployed):
    onnx = pytest.importorskip('onnx')
    model = onnx.load(deployed[0] / 'x_int8.onnx')
    operators = [node.op_type for node in model.graph.node]
    assert operators.count('QuantizeLinear') > 10 and 'Col2Im' not in operators
    weights = {tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) > 500}
    assert onnx.TensorProto.INT8 in weights
    assert os.path.getsize(deployed[0] / 'x_int8.onnx') < 0.8 * os.path.getsize(deployed[0] / 'x_pictures.onnx')


def test_the_example_needs_no_torch(deployed):
    folder, _ = deployed
    picture = folder / 'data' / 'val' / 'b' / '3.png'
    code = ('import runpy, sys; example = sys.argv.pop(1); '
            'sys.modules.update(dict.fromkeys(["torch", "torchvision", "timm", "common", "models"])); '
            'runpy.run_path(example, run_name="__main__")')
    example = ROOT / 'extras/deploy/predict_onnx.py'
    done = subprocess.run([sys.executable, '-c', code, example, folder / 'x_pictures.onnx', picture], text=True,
                          capture_output=True, cwd=folder)
    [found] = Predictor(folder / 'x.pth', use_amp=False)([picture])
    assert done.returncode == 0, done.stderr
    name, share = done.stdout.strip().removeprefix(f'{picture}: ').split(' (')
    assert name == found.label and float(share.rstrip('%)')) == pytest.approx(100 * found.confidence, abs=1)


def test_what_agrees_too_seldom_is_not_kept(tmp_path, monkeypatch, capsys):
    """INT8 is, and it is said."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path)
    untrained('x.pth', settings='odd')
    hundred = [str(number) for number in range(100)]

    def write_files(net, saved, train, folder, stem):
        for name in FILES:
            (folder / name).write_text(name)
        return {name: folder / name for name in ('x.onnx', 'x_pictures.onnx', 'x_int8.onnx')}

    def named(run, name, val):
        wrong = {'x_pictures.onnx': 2, 'x_int8.onnx': 50}.get(name, 0)
        return {path: int(number < wrong) for number, path in enumerate(hundred)}
    monkeypatch.setattr(deploy, 'write_files', write_files)
    monkeypatch.setattr(deploy, 'named', named)
    monkeypatch.setattr(deploy, 'open_session', lambda file: None)
    monkeypatch.setattr(deploy, 'as_function', lambda session: None)
    monkeypatch.setattr(deploy, 'measure_speed', lambda runs, saved, batch_size: dict.fromkeys(runs, 1.))
    monkeypatch.setattr(deploy, 'add_metadata', lambda *arguments: None)
    monkeypatch.setattr(deploy, 'pictures_of', lambda *arguments: SimpleNamespace(truth=dict.fromkeys(hundred, 'a')))
    with pytest.raises(UserError, match='x_pictures.onnx: not kept, they name too many'):
        run()
    assert {path.name for path in tmp_path.iterdir()} == {'x.pth', 'data', 'x.onnx', 'x_int8.onnx'}
    out = capsys.readouterr().out
    assert 'WARNING: x_int8.onnx names 50.0% of the pictures unlike PyTorch: compare its ACC1' in out
    assert '100.00%  100.00%' in out and '50.00%   50.00%' in out


def test_with_a_crop_pictures_come_cropped(tmp_path, monkeypatch, capsys):
    """As test.py crops them; their size is that of the network."""
    pytest.importorskip('onnxscript')
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path)
    untrained('x.pth')
    saved = torch.load('x.pth', weights_only=True)
    torch.save({**saved, 'transform': {**saved['transform'], 'crop': 0.8}}, 'x.pth')
    run('--pictures', 6, '--calibration', 2)
    session = open_session('x_pictures.onnx')
    assert session.get_inputs()[0].shape[1:] == [32, 32, 3] and json.loads(
        session.get_modelmeta().custom_metadata_map['agreement']) == {'top1': 1.0, 'pictures': 6}


def test_pictures_are_taken_evenly(tmp_path):
    draw_folder(tmp_path / 'val', {'a': 10, 'b': 10})
    saved = {'transform': TRANSFORM.as_dict()}
    paths = deploy.pictures_of(tmp_path / 'val', 3, saved).truth
    assert [Path(path).relative_to(tmp_path / 'val').as_posix() for path in paths] in (
        ['a/000.png', 'a/009.png', 'b/009.png'], ['a/000.png', 'b/000.png', 'b/009.png'])
    assert len(deploy.pictures_of(tmp_path / 'val', 99, saved).truth) == 20
