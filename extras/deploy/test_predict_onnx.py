"""extras/deploy/predict_onnx.py, which users copy, prepares images as test.py does."""
import io
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT, draw_folder, scene
from odd_pictures import bad_pictures, exif_block, good_pictures, mutated_pictures, pixels, png, tiff
from PIL import Image

from common.data import images
from common.data.metadata import without_metadata
from common.data.transforms import Transform, fit
from extras.deploy import measure, predict_onnx

TRANSFORM = Transform([48, 64], [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning:PIL')  # odd metadata


def opened(open_file, content):
    """The pixels of an image, or None where it cannot be read."""
    try:
        return np.asarray(open_file(content))
    except Exception:  # of a dozen types
        return None


@pytest.mark.parametrize('files', [good_pictures, bad_pictures, mutated_pictures])
def test_images_are_opened_as_by_the_project(files):
    """Transparency, 16 bits, palettes, CMYK, EXIF, animations, other formats; and what is no image is none."""
    for name, content in files().items():
        expected = opened(lambda content, name=name: images.decode(content, name, 64), content)
        found = opened(lambda content: predict_onnx.open_image(io.BytesIO(content), 64), content)
        if found is not None:
            assert expected is not None and np.array_equal(found, expected), name
        elif expected is not None:  # the project reads such a file without its metadata, which takes much code
            assert without_metadata(content) != content, name


def test_formats_and_limits_are_the_projects():
    assert sorted(set(predict_onnx.FORMATS) & Image.OPEN.keys()) == images.FORMATS
    assert predict_onnx.MAX_PIXELS == images.MAX_PIXELS


@pytest.mark.parametrize('depth', [None, 10, 12, 16])
def test_grey_deeper_than_8_bits(monkeypatch, depth):
    monkeypatch.setattr(images, 'BIT_DEPTH', depth)
    deep = 16 * pixels(channels=1).astype(np.uint16)
    floating = io.BytesIO()
    Image.fromarray(deep.astype(np.float32)).save(floating, 'TIFF')
    for content in (png(deep), png(deep + 3, (b'sBIT', b'\x0c')), png(16 * deep, (b'sBIT', b'\x0c')),
                    tiff(deep, (32, 24), 16, {281: 4095}), tiff(deep, (32, 24), 16), tiff(deep, (32, 24), 32),
                    floating.getvalue()):
        found = predict_onnx.open_image(io.BytesIO(content), 64, depth)
        assert np.array_equal(found, images.decode(content, 'x'))


def jpeg(size, **options):
    file = io.BytesIO()
    scene(3, size).save(file, 'JPEG', **options)
    return file.getvalue()


def test_a_large_jpeg_comes_smaller_as_for_test_py():
    content = jpeg((900, 700))
    found = predict_onnx.open_image(io.BytesIO(content), 128)
    assert found.size == (225, 175) and np.array_equal(found, images.decode(content, 'x', 128))


def test_exif_turns_an_image_whatever_else_is_wrong_with_it():
    """YCbCrPositioning as a number that no reader can write again, and EXIF that is cut off."""
    entries = b'\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00' b'\x13\x02\x04\x00\x01\x00\x00\x00\xff\xff\xff\xff'
    odd = b'Exif\0\0II*\0\x08\0\0\0\x02\0' + entries + bytes(4)
    assert predict_onnx.open_image(io.BytesIO(jpeg((90, 70), exif=odd)), 64).size == (70, 90)
    for fault in [(0x10e, 2, 2 ** 32 - 1, b'\xff\xff\xff\xff'), (0x110, 5, 1, b'\xff\xff\xff\x7f')]:  # ahead of it
        block = exif_block(fault, (0x112, 3, 1, b'\6\0'))
        assert predict_onnx.open_image(io.BytesIO(jpeg((90, 70), exif=block)), 64).size == (70, 90)
    assert predict_onnx.open_image(io.BytesIO(jpeg((90, 70), exif=odd[:30])), 64).size in ((70, 90), (90, 70))
    assert predict_onnx.open_image(io.BytesIO(jpeg((90, 70), exif=b'Exif\0\0nonsense')), 64).size == (90, 70)


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('crop', [0.5, 0.8, 0.96, 1.15])
def test_a_crop_is_that_of_training(crop, interpolation):
    for img_size in ([48, 64], [50, 33]):
        transform = Transform(img_size, [0.5] * 3, [0.2] * 3, interpolation, crop)
        for size in ((64, 48), (200, 301), (30, 20), (640, 100), (3000, 1), (1, 1), (49, 65)):
            image = scene(3, size)
            assert np.array_equal(predict_onnx.fit(image, transform.as_dict()), fit(transform)(image)), size


def test_the_file_itself_resizes_images_of_usual_sizes_only(monkeypatch):
    """A large one would take gigabytes there."""
    image = scene(3, (200, 301))
    assert predict_onnx.fit(image, TRANSFORM.as_dict()) is image
    monkeypatch.setattr(predict_onnx, 'MOST_PIXELS', 200 * 301 - 1)
    assert np.array_equal(predict_onnx.fit(image, TRANSFORM.as_dict()), fit(TRANSFORM)(image))


def test_deploy_measures_what_the_example_makes_of_an_image(tmp_path, monkeypatch):
    draw_folder(tmp_path / 'val', {'a': 2, 'b': 1})
    (tmp_path / 'val' / 'a' / 'bad.png').write_text('no image')
    val = measure.sample_images(tmp_path / 'val', 9, TRANSFORM)
    assert [picture.shape for picture in val.pictures()] == [(1, 20, 24, 3)] * 3
    monkeypatch.setattr(predict_onnx, 'open_image', lambda file, at_least, bit_depth: Image.new('RGB', (5, 5), 'red'))
    assert {tuple(picture[0, 0, 0]) for picture in val.pictures()} == {(255, 0, 0)}


def test_an_image_that_the_example_cannot_read_does_not_agree(monkeypatch):
    val = measure.SampledImages({'x.png': 'a', 'y.png': 'b'}, None, TRANSFORM)
    answers = {'PyTorch': {'x.png': 0, 'y.png': 1}, 'file': {'x.png': 0}}
    monkeypatch.setattr(measure, 'candidate_of_file', lambda file: measure.Candidate('file', None))
    monkeypatch.setattr(measure, 'classify', lambda candidate, val: answers[candidate.name])
    monkeypatch.setattr(measure, 'measure_speed', lambda candidates, img_size, batch_size: [1.] * len(candidates))
    _, found = measure.measure(None, ['x.onnx'], val, ['a', 'b'], 1)
    assert (found.agreement, found.accuracy) == (0.5, 0.5)


@pytest.fixture
def session(monkeypatch):
    """An onnxruntime whose only file gives bright images the second of two classes, one with a terminal code."""
    metadata = {'classes': json.dumps(['dark', 'li\x1b[2Jght']), 'temperature': '2.0', 'bit_depth': 'null',
                'preprocessing': json.dumps(TRANSFORM.as_dict())}
    fake = SimpleNamespace(
        input_name='pictures', get_inputs=lambda: [SimpleNamespace(name=fake.input_name)],
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map=metadata),
        run=lambda outputs, inputs: [np.array([[0., (inputs['pictures'].mean() - 127) / 10]])])
    monkeypatch.setitem(sys.modules, 'onnxruntime', SimpleNamespace(InferenceSession=lambda model: fake))
    return fake


def test_what_it_prints(session, tmp_path, monkeypatch, capsys):
    """Names without terminal codes, a line for what is no image, and a transparent image on white."""
    monkeypatch.chdir(tmp_path)
    clear = np.zeros((48, 48, 4), np.uint8)
    clear[14:20, 14:20] = 200, 60, 60, 255
    Image.fromarray(clear).save('cle\x07ar.png')
    (tmp_path / 'bad.png').write_text('no image')
    Image.new('RGB', (9, 9), 'black').save('dark.png')
    assert predict_onnx.main('x.onnx', ['cle\x07ar.png', 'bad.png', 'dark.png']) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'cle\\x07ar.png: li\\x1b[2Jght (99.8%)'
    assert lines[1].startswith('bad.png: not a readable image (') and lines[2].startswith('dark.png: dark (99.8%)')
    assert predict_onnx.main('x.onnx', ['dark.png']) == 0


def test_a_file_for_normalised_images_is_refused_in_one_line(session, capsys):
    session.input_name = 'images'
    assert predict_onnx.main('best.onnx', ['x.png']) == 2
    assert capsys.readouterr().err.startswith('best.onnx: give best_pictures.onnx or best_int8.onnx')


@pytest.mark.parametrize('content', [None, b'no ONNX'])
def test_a_model_that_cannot_be_read_gets_one_line(tmp_path, capsys, content):
    pytest.importorskip('onnxruntime')
    if content:
        (tmp_path / 'x.onnx').write_bytes(content)
    assert predict_onnx.main(str(tmp_path / 'x.onnx'), ['x.png']) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert 'x.onnx: onnxruntime cannot read it' in line


def test_it_works_alone(tmp_path):
    """A copy elsewhere needs neither the project nor PyTorch."""
    (tmp_path / 'classify.py').write_text((ROOT / 'extras/deploy/predict_onnx.py').read_text(encoding='utf-8'),
                                      encoding='utf-8')
    code = ('import sys, runpy\n'
            'sys.modules.update(dict.fromkeys(["torch", "torchvision", "timm", "common", "models", "extras"]))\n'
            'runpy.run_path("classify.py")')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
