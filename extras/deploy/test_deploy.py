"""python -m extras.deploy: the files classify val as PyTorch does, or it is said."""
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, assert_annotated, draw_folder, scene, untrained
from odd_pictures import exif_block
from PIL import Image

from common import settings
from common.data.transforms import Transform
from common.evaluation.predictor import Predictor
from common.runtime.errors import UserError
from extras.deploy import __main__ as deploy
from extras.deploy import measure
from extras.deploy.export import OnnxFile, open_session
from models import load_weights, restore_model

TRANSFORM = Transform([48, 64], [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
CLASSES = ['a', 'b', 'c \udce9']  # the last as Python names a folder whose name is no UTF-8
ONNX = ('x.onnx', 'x_pictures.onnx', 'x_int8.onnx')


def photographs(folder):
    """data/train and data/val of smooth images of all sizes; one of val is unreadable."""
    for side, count in (('train', 6), ('val', 9)):
        for name in 'ab':
            (folder / 'data' / side / name).mkdir(parents=True)
            for number in range(count):
                size = 30 + 7 * number, 90 - 5 * number
                scene(ord(name) + number, size).save(folder / 'data' / side / name / f'{number}.png')
    (folder / 'data' / 'val' / 'a' / 'bad.jpg').write_text('no image')


def run(*arguments):
    deploy.main(settings.read(deploy, ['--checkpoint', 'x.pth', '--page', 'none', *arguments]))


@pytest.fixture(scope='module')
def deployed(tmp_path_factory):
    """(a folder with x.pth, its files and data/, what was printed)."""
    pytest.importorskip('onnxscript')
    folder = tmp_path_factory.mktemp('deployed')
    photographs(folder)
    untrained(folder / 'x.pth', CLASSES, best={'temperature': 2.})
    done = subprocess.run([sys.executable, '-m', 'extras.deploy', '--checkpoint', folder / 'x.pth',
                           '--data-dir', folder / 'data', '--batch-size', '2', '--page', 'none'], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_path_that_is_not_utf_8_is_refused_at_once():
    with pytest.raises(UserError, match='copy the file elsewhere'):
        run('--checkpoint', 'a \udcff/x.pth')


def test_every_constant_says_which_types_it_may_have():
    assert_annotated(deploy)


def test_errors_name_what_the_user_called():
    done = subprocess.run([sys.executable, '-m', 'extras.deploy', '--page', 'x'], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.stderr.startswith('deploy: PAGE') and done.returncode == 2


def test_every_file_says_how_often_it_agrees(deployed):
    folder, out = deployed
    assert {path.name for path in folder.iterdir()} == {'x.pth', 'data', 'x.safetensors', *ONNX}
    paths = sorted((folder / 'data' / 'val').rglob('*.png'))
    right = np.mean([found.label == found.image.parent.name for found in Predictor(folder / 'x.pth')(paths)])
    for name in ONNX:
        metadata = open_session(folder / name).get_modelmeta().custom_metadata_map
        agreement = json.loads(metadata['agreement'])
        assert agreement['pictures'] == 18 and agreement['top1'] >= (0.5 if 'int8' in name else 1)
        assert json.loads(metadata['classes']) == CLASSES and json.loads(metadata['temperature']) == 2
        assert json.loads(metadata['preprocessing'])['img_size'] == [32, 32]
        line = next(line for line in out.splitlines() if line.startswith(f'{name} '))
        assert f'{agreement["top1"]:>10.2%}' in line
        if 'int8' not in name:
            assert f'{right:>8.2%}' in line
    assert 'PyTorch' in out and '18 images of val; batches of 2, 1 threads' in out


def test_the_safetensors_are_the_checkpoints_weights(deployed):
    folder, _ = deployed
    saved = torch.load(folder / 'x.pth', weights_only=True)
    net = restore_model({**saved, 'state_dict': {name: torch.zeros_like(tensor)
                                                 for name, tensor in saved['state_dict'].items()}})
    assert load_weights(net, folder / 'x.safetensors').dropped == []
    assert all(torch.equal(tensor, saved['state_dict'][name]) for name, tensor in net.state_dict().items())


def test_images_get_the_logits_of_the_checkpoint(deployed):
    """They differ by what a grey level here and there makes, and for INT8 by what 8 bits make."""
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
    """The second image is turned, and has a tag that Pillow cannot write."""
    folder, _ = deployed
    upright = folder / 'data' / 'val' / 'b' / '3.png'
    turned = folder / 'turned.png'
    odd = exif_block((0x112, 3, 1, b'\6\0'), (0x213, 4, 1, b'\xff\xff\xff\xff'))
    Image.open(upright).save(turned, exif=odd)
    images = [str(upright), str(turned)]
    code = ('import runpy, sys; example = sys.argv.pop(1); '
            'sys.modules.update(dict.fromkeys(["torch", "torchvision", "timm", "common", "models"])); '
            'runpy.run_path(example, run_name="__main__")')
    example = ROOT / 'extras/deploy/predict_onnx.py'
    done = subprocess.run([sys.executable, '-c', code, example, folder / 'x_pictures.onnx', *images], text=True,
                          capture_output=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    for line, found in zip(done.stdout.splitlines(), Predictor(folder / 'x.pth', use_amp=False)(images), strict=True):
        name, share = line.removeprefix(f'{found.image}: ').split(' (')
        assert name == found.label and float(share.rstrip('%)')) == pytest.approx(100 * found.confidence, abs=1)


def test_a_file_that_agrees_too_seldom_is_not_kept(tmp_path, monkeypatch, capsys):
    """INT8 is kept, with a warning."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path)
    untrained('x.pth', settings='odd')  # they do not say where the data are
    hundred = [str(number) for number in range(100)]

    def write_files(classifier, transform, metadata, calibration, folder, stem, with_fp16):
        for name in ONNX:
            (folder / name).write_text(name)
        return [OnnxFile(folder / name, name != 'x.onnx', 'int8' if 'int8' in name else 'fp32') for name in ONNX]

    def classify(candidate, val):
        wrong = {'x_pictures.onnx': 2, 'x_int8.onnx': 50}.get(candidate.name, 0)
        return {path: int(number < wrong) for number, path in enumerate(hundred)}

    def sample_images(folder, count, transform):
        return measure.SampledImages(dict.fromkeys(hundred, 'a'), None, transform)
    monkeypatch.setattr(deploy, 'check_packages', lambda: None)
    monkeypatch.setattr(deploy, 'write_onnx_files', write_files)
    monkeypatch.setattr(deploy, 'sample_images', sample_images)
    monkeypatch.setattr(deploy, 'add_metadata', lambda *arguments: None)
    monkeypatch.setattr(measure, 'candidate_of_file', lambda file: measure.Candidate(file.path.name, None))
    monkeypatch.setattr(measure, 'classify', classify)
    monkeypatch.setattr(measure, 'measure_speed', lambda candidates, img_size, batch_size: [1.] * len(candidates))
    (tmp_path / 'x_pictures.onnx').write_text('of an earlier checkpoint')
    with pytest.raises(UserError, match='^x_pictures.onnx: not kept'):
        run()
    assert {path.name for path in tmp_path.iterdir()} == {'x.pth', 'data', 'x.safetensors', 'x.onnx', 'x_int8.onnx'}
    out = capsys.readouterr().out
    assert 'WARNING: x_int8.onnx classifies 50.0% of the images unlike PyTorch: compare its ACC1' in out
    assert '100.00%  100.00%' in out and '50.00%   50.00%' in out


def test_a_checkpoint_does_not_say_which_folder_is_read_and_a_full_disk_gets_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path)
    untrained('x.pth', settings={'DATA_DIR': str(tmp_path / 'elsewhere')})
    read = []

    def sample(folder, *arguments):
        read.append(folder)
        return measure.SampledImages({}, None, TRANSFORM)

    def full_disk(*arguments, with_fp16):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(deploy, 'check_packages', lambda: None)
    monkeypatch.setattr(deploy, 'sample_images', sample)
    monkeypatch.setattr(deploy, 'write_onnx_files', full_disk)
    with pytest.raises(UserError, match=r'^x\.onnx cannot be written \(No space left on device\)'):
        run()
    assert read == [Path('data/val'), Path('data/train')]
    assert {path.name for path in tmp_path.iterdir()} == {'x.pth', 'data', 'x.safetensors'}


def test_images_of_another_data_set_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path)
    untrained('x.pth', ['a', 'cat'])
    monkeypatch.setattr(deploy, 'check_packages', lambda: None)
    monkeypatch.setattr(deploy, 'write_onnx_files', lambda *arguments, **kwargs: pytest.fail('too late'))
    with pytest.raises(UserError, match="^DATA_DIR = 'data' has classes that x.pth does not have, b: set it to what"):
        run()


@pytest.mark.parametrize('content, words', [(b'hello', 'not a readable file'), (None, 'no such file')])
def test_what_is_no_checkpoint_gets_one_line(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    if content:
        Path('x.pth').write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        run()
    assert '\n' not in str(error.value)


def test_without_the_packages_there_are_safetensors_and_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    untrained('x.pth')
    monkeypatch.setattr('extras.deploy.export.PACKAGES', ('onnx', 'no_such_package'))
    with pytest.raises(UserError, match='^x.pth: no_such_package is missing'):
        run()
    assert {path.name for path in tmp_path.iterdir()} == {'x.pth', 'x.safetensors'}


def test_both_kinds_of_files_get_the_same_images(tmp_path):
    """With a crop, what is of any size otherwise is cropped as test.py crops it."""
    photographs(tmp_path)
    for crop in (None, 0.8):
        val = measure.sample_images(tmp_path / 'data' / 'val', 5, dataclasses.replace(TRANSFORM, crop=crop))
        pictures = dict(val.paths_and_pictures())
        images = dict(val.paths_and_images())
        assert pictures.keys() == images.keys() and len(images) >= 4
        assert {image.shape for image in images.values()} == {(1, 3, 48, 64)}
        shapes = {picture.shape for picture in pictures.values()}
        assert shapes == {(1, 48, 64, 3)} if crop else len(shapes) > 1


def test_images_are_taken_evenly(tmp_path):
    draw_folder(tmp_path / 'val', {'a': 10, 'b': 10})
    paths = measure.sample_images(tmp_path / 'val', 3, TRANSFORM).truth
    assert [Path(path).relative_to(tmp_path / 'val').as_posix() for path in paths] in (
        ['a/000.png', 'a/009.png', 'b/009.png'], ['a/000.png', 'b/000.png', 'b/009.png'])
    assert len(measure.sample_images(tmp_path / 'val', 99, TRANSFORM).truth) == 20


def test_what_a_killed_deploy_left_goes_with_the_next(tmp_path):
    left = tmp_path / '.x.deploy'
    left.mkdir()
    (left / 'x.onnx').write_text('half')
    with deploy.unfinished_files(tmp_path / 'x.pth') as folder:
        assert not os.listdir(folder)
        with pytest.raises(UserError, match='another deploy writes beside it'), \
                deploy.unfinished_files(tmp_path / 'x.pth'):
            pass
    assert not os.listdir(tmp_path)


def test_a_library_that_stumbles_on_a_full_disk(tmp_path, monkeypatch):
    with pytest.raises(ValueError), deploy.noticing_a_full_disk(tmp_path):
        raise ValueError('Wire format was corrupt')
    monkeypatch.setattr(deploy, '_LEAST_FREE', 2 ** 60)
    with pytest.raises(OSError, match='No space left'), deploy.noticing_a_full_disk(tmp_path):
        raise ValueError('Wire format was corrupt')
