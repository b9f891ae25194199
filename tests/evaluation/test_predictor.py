"""Predictor: the same answers for files, images and arrays; several networks."""
import io
import itertools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import draw_folder, untrained
from odd_pictures import exif_block
from PIL import Image

from common.data.folders import list_images
from common.data.split import DECIDING, describe_draw, read_split_settings
from common.evaluation import predictor as module
from common.evaluation.predictor import Predictor, paths_of, role_in_training
from common.runtime.errors import UserError


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Paths of twelve images of noise, beside x.pth."""
    monkeypatch.chdir(tmp_path)
    untrained('x.pth')
    return list(list_images(draw_folder(tmp_path / 'photos', {'a': 6, 'b': 6})))


def logits(predictor, images, **options):
    return torch.stack([found.logits for found in predictor(images, **options)])


def test_files_images_and_arrays_are_classified_alike(photos):
    predictor = Predictor('x.pth', batch_size=5, use_amp=False)
    files, images = list(predictor(photos)), [Image.open(path) for path in photos]
    assert [found.image for found in files] == photos and len({found.label for found in files}) > 1
    expected = torch.stack([found.logits for found in files])
    assert logits(predictor, images).equal(expected)
    assert logits(predictor, [np.asarray(image) for image in images]).equal(expected)
    assert logits(predictor, photos, workers=2).equal(expected)
    torch.testing.assert_close(logits(Predictor('x.pth', batch_size=1, use_amp=False), photos), expected)
    for found in files:
        shares = found.logits.softmax(0)
        assert found.label == 'abc'[shares.argmax()] == found.top[0][0]
        assert found.confidence == shares.max() and [share for _, share in found.top] == sorted(shares, reverse=True)


def test_images_in_memory_are_read_as_files_are(photos):
    """Turned as their EXIF says, transparency on white, 16 bits scaled to 8."""
    rng = np.random.default_rng(0)
    turned, exif = Image.open(photos[0]), Image.Exif()
    exif[0x0112] = 6
    turned.save('turned.png', exif=exif)
    Image.fromarray(rng.integers(0, 256, (9, 9, 4), np.uint8)).save('clear.png')
    Image.fromarray(rng.integers(0, 65536, (9, 9), np.uint16)).save('deep.png')
    names, predictor = ['turned.png', 'clear.png', 'deep.png'], Predictor('x.pth')
    assert logits(predictor, [Image.open(name) for name in names]).equal(logits(predictor, names))
    assert logits(predictor, [np.asarray(Image.open('deep.png'))]).equal(logits(predictor, ['deep.png']))


def test_an_image_in_memory_with_odd_metadata_is_read_and_a_damaged_one_is_an_answer(photos):
    odd = exif_block((0x0112, 3, 1, b'\6\0'), (0x0213, 4, 1, b'\xff\xff\xff\xff'))
    Image.open(photos[0]).save('odd.png', exif=odd)
    content = Path(photos[1]).read_bytes()
    Path('cut.png').write_bytes(content[:len(content) // 2])
    found = list(Predictor('x.pth')([Image.open(name) for name in (photos[0], 'odd.png', 'cut.png', photos[2])]))
    assert [bool(prediction.error) for prediction in found] == [False, False, True, False]
    assert found[2].error.startswith('cut.png: not a readable image (')


def test_an_unreadable_file_is_an_answer_too(photos):
    found = list(Predictor('x.pth', batch_size=2)([photos[0], 'gone.jpg', photos[1], photos[2], 'gone.jpg', 'no.jpg']))
    assert [bool(prediction.error) for prediction in found] == [False, True, False, False, True, True]
    assert 'gone.jpg: not a readable image (No such file' in found[1].error and found[1].logits is None
    assert logits(Predictor('x.pth'), photos[:3]).allclose(torch.stack([found[i].logits for i in (0, 2, 3)]), atol=1e-2)


def test_a_single_image_has_a_single_answer(photos):
    """Not one for each row of an array, or for each character of a path."""
    predictor = Predictor('x.pth', use_amp=False)
    content = Path(photos[0]).read_bytes()
    image = Image.open(photos[0])
    [expected] = predictor([photos[0]])
    for given in (photos[0], Path(photos[0]), content, bytearray(content), image, np.asarray(image)):
        [found] = predictor(given)
        assert found.error == '' and found.logits.equal(expected.logits) and found.image is given
    both = np.stack([np.asarray(Image.open(path)) for path in photos[:2]])
    assert [found.label for found in predictor(both)] == [found.label for found in predictor(photos[:2])]
    assert [found.label for found in predictor(np.array(photos))] == [found.label for found in predictor(photos)]


def test_arrays_of_other_shapes(photos):
    """Grey in two ways, and a transparent image on white."""
    predictor = Predictor('x.pth', use_amp=False)
    grey = np.asarray(Image.open(photos[0]).convert('L'))
    clear = np.dstack([grey, grey, grey, np.zeros_like(grey)])
    coloured = np.dstack([grey] * 3)
    expected = logits(predictor, [coloured, coloured, np.full_like(coloured, 255)])
    assert logits(predictor, [grey, grey[..., None], clear]).equal(expected)


@pytest.mark.parametrize('workers', [0, 2])
def test_what_is_no_image_is_an_answer_too(photos, workers):
    """It says what to pass, and the others of the batch are classified."""
    cut = io.BytesIO(Path(photos[0]).read_bytes()[:700])
    pixels = np.asarray(Image.open(photos[0]))
    array = r'^an array of {}, \({}\): pass \(H, W, 3\) of uint8, RGB from 0 to 255$'
    tensor = r'^a tensor of {}, \({}\): pass an array \(H, W, 3\) of uint8 RGB, such as tensor.permute'
    bad = [(Image.open(cut), '^an image in memory: not a readable image .image file is truncated'),
           (pixels / 255, array.format('float64', '20, 24, 3')), (pixels[..., :2], array.format('uint8', '20, 24, 2')),
           (pixels > 9, array.format('bool', '20, 24, 3')),
           (pixels.astype(np.int64), array.format('int64', '20, 24, 3')),
           (pixels.transpose(2, 0, 1), array.format('uint8', '3, 20, 24')),
           (np.zeros(5, np.uint8), array.format('uint8', '5,')),
           (torch.zeros(3, 9, 9), tensor.format('float32', '3, 9, 9')),
           (torch.zeros(3, 9, 9, dtype=torch.uint8), tensor.format('uint8', '3, 9, 9')),
           (np.zeros((0, 0, 3), np.uint8), '^an image in memory: 0 x 0 pixels'),
           (Image.new('RGB', (5, 0)), '^an image in memory: 5 x 0 pixels'),
           (b'hello', '^an image in memory: not a readable image'), (b'', '^an image in memory: not a readable image'),
           (None, '^NoneType is no image: pass a path'), (7, '^int is no image: pass a path'),
           (io.BytesIO(b'x'), '^BytesIO is no image: pass a path'), ((thing for thing in ()), '^generator is no image')]
    images = [photos[0], *(image for image, _ in bad), photos[1]]
    first, *found, last = Predictor('x.pth', use_amp=False)(images, workers=workers)
    assert first.label and last.label and not first.error and not last.error
    for prediction, (image, words) in zip(found, bad, strict=True):
        assert prediction.image is image and prediction.logits is None
        assert re.match(words, prediction.error) and '\n' not in prediction.error, prediction.error


def test_what_is_neither_an_image_nor_a_list_of_them(photos):
    predictor = Predictor('x.pth')
    for thing in (None, 5, object()):
        with pytest.raises(UserError, match='is no image, and no list of images: pass a path'):
            list(predictor(thing))
    for thing in (torch.zeros(2, 3, 9, 9), np.zeros((9, 9, 3)), io.BytesIO(b'x\ny')):
        [found] = predictor(thing)
        assert 'pass ' in found.error


def test_no_more_images_are_asked_for_than_are_being_read(photos):
    """An endless list is classified as far as someone wants the answers."""
    asked = []

    def endless():
        for path in itertools.cycle(photos):
            asked.append(path)
            yield path

    found = list(itertools.islice(Predictor('x.pth', batch_size=4)(endless()), 10))
    assert [prediction.image for prediction in found] == photos[:10] and len(asked) <= 16


def test_unknown_is_what_is_too_uncertain(photos):
    found = list(Predictor('x.pth')(photos))
    middle = sorted(prediction.certainty for prediction in found)[6]
    again = list(Predictor('x.pth', unknown_below=middle)(photos))
    assert [prediction.label == 'unknown' for prediction in again] == [p.certainty < middle for p in found]
    assert {p.label for p in again} > {'unknown'} and all(p.confidence == q.confidence for p, q in
                                                            zip(found, again, strict=True))


@pytest.mark.parametrize('name', ['unknown', 'Unknown'])
def test_a_class_may_be_called_unknown(photos, name):
    untrained('x.pth', classes=('a', name, 'unknown (no class)'))
    found = list(Predictor('x.pth')(photos))
    middle = sorted(prediction.certainty for prediction in found)[6]
    again = list(Predictor('x.pth', unknown_below=middle)(photos))
    assert not any(prediction.is_unknown for prediction in found)
    assert [prediction.is_unknown for prediction in again] == [p.certainty < middle for p in found]
    for before, after in zip(found, again, strict=True):
        assert after.label == ('unknown (no class) (no class)' if after.is_unknown else before.label)


def test_the_validation_set_is_known_by_any_of_its_names():
    saved = {'settings': {'DATA_DIR': 'ds'}}
    for folder in ('ds/val', 'ds/Valid/', os.path.abspath('ds/validation')):
        assert 'chose the weights' in role_in_training(folder, saved)
    assert not any(role_in_training(folder, saved) for folder in ('ds/test', 'ds', 'elsewhere/val', 'ds/val/a'))
    assert 'has learnt from these images' in role_in_training('ds/training', saved)
    fold = {'settings': {'DATA_DIR': 'ds/fold1'}}
    assert 'chose the weights' in role_in_training('ds/fold1/val', fold)
    assert 'has learnt from these images' in role_in_training('ds/fold12/val', fold)
    assert not any(role_in_training(folder, fold) for folder in ('ds/fold2/test', 'other/fold2/val', 'ds/folder/val'))


@pytest.mark.parametrize('folder', ['data', 'data/fold1'])
def test_a_split_that_was_drawn_anew_is_told(tmp_path, monkeypatch, folder):
    """Images that the network has learnt from measure it then."""
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir(parents=True)

    def draw(**changes):
        drawn = {**dict.fromkeys(DECIDING), 'SEED': 1, 'MAX_SIDE': 64, **changes}
        Path('data/split.json').write_text(json.dumps({'made_by': 'makedata.py', 'settings': drawn}))

    draw()
    saved = {'settings': {'DATA_DIR': folder}, 'split': describe_draw(read_split_settings(Path(folder))),
             'source': 'photos'}
    draw(MAX_SIDE=32)
    assert not role_in_training(f'{folder}/test', saved)
    draw(TEST_RATIO=0.15)
    for side in ('test', 'val'):
        assert f'{folder} was drawn anew after the training' in role_in_training(f'{folder}/{side}', saved)
    assert not role_in_training('elsewhere/test', saved)
    assert 'learnt from most of these images' in role_in_training(os.path.abspath('photos'), saved)
    for older in ({}, {'split': None}, {'split': torch.zeros(3), 'source': torch.zeros(3)}):
        assert 'chose' in role_in_training(f'{folder}/val', {'settings': saved['settings'], **older})


def test_several_networks_are_averaged(photos):
    """Each with its own size of images and its own temperature."""
    untrained('y.pth', seed=1, size=48, best={'temperature': 2.})
    torch.testing.assert_close(logits(Predictor('y.pth', use_amp=False), photos), logits(Predictor({'y': {
        **torch.load('y.pth', weights_only=True), 'best': {}}}, use_amp=False), photos) / 2)
    single = [logits(Predictor(name, use_amp=False), photos) for name in ('x.pth', 'y.pth')]
    both = logits(Predictor(['x.pth', 'y.pth'], use_amp=False, batch_size=5), photos)
    torch.testing.assert_close(both, (single[0] + single[1]) / 2)
    untrained('z.pth', classes='abd')
    with pytest.raises(UserError, match='z.pth: its classes are not those of x.pth'):
        Predictor(['x.pth', 'z.pth'])


def test_the_mean_of_weights(photos):
    saved = [torch.load(untrained(f'{seed}.pth', seed=seed), weights_only=True) for seed in range(3)]
    mean = {name: sum(content['state_dict'][name] for content in saved) / 3 if tensor.is_floating_point() else tensor
            for name, tensor in saved[0]['state_dict'].items()}
    torch.save({**saved[0], 'state_dict': mean}, 'mean.pth')
    averaged = Predictor(['0.pth', '1.pth', '2.pth'], use_amp=False, average_weights=True)
    assert len(averaged.members) == 1
    torch.testing.assert_close(logits(averaged, photos), logits(Predictor('mean.pth', use_amp=False), photos))
    untrained('y.pth', size=48)
    with pytest.raises(UserError, match='y.pth: its transform is not that of 0.pth'):
        Predictor(['0.pth', 'y.pth'], average_weights=True)


def test_the_mean_of_weights_has_its_own_temperature_and_no_features_of_others(photos):
    untrained('x.pth', seed=1, best={'temperature': 2.}, outliers={})
    untrained('y.pth', seed=2, best={'temperature': 8.}, outliers={})
    (member,) = Predictor(['x.pth', 'y.pth'], average_weights=True).members
    assert module.temperature_of(member.saved) == pytest.approx(4) and member.saved['outliers'] is None
    for name, tensor in member.model.net.state_dict().items():  # its checkpoint is that of the mean, for EXPLAIN
        assert member.saved['state_dict'][name].equal(tensor)


@pytest.mark.parametrize('amp_dtype, expected', [
    ('bfloat16', True), ('float16', True), (None, False), (7, False), ({}, False), ('missing', False)])
def test_mixed_precision_is_as_in_training(amp_dtype, expected):
    saved = {} if amp_dtype == 'missing' else {'amp_dtype': amp_dtype}
    assert module.trained_with_amp(saved) == expected


@pytest.mark.parametrize('settings', [None, 7, [], {}, {'DATA_DIR': 7}, {'DATA_DIR': None}, {'DATA_DIR': 'other'}])
def test_a_folder_is_not_taken_for_the_validation_set(settings):
    assert not role_in_training('data/val', {'settings': settings})
    assert role_in_training('./data/val/', {'settings': {'DATA_DIR': 'data'}})


def good_outliers():
    return {'mean': torch.zeros(3), 'precision': torch.eye(3), 'share': torch.tensor(0.1), 'squares': torch.arange(9.)}


@pytest.mark.parametrize('name, value', [
    ('mean', torch.zeros(4)), ('mean', [0.] * 3), ('precision', torch.eye(4)), ('precision', torch.zeros(3)),
    ('precision', torch.eye(3).to_sparse()), ('share', torch.zeros(1)), ('squares', torch.tensor(1.)),
    ('squares', torch.zeros(9, dtype=torch.int32)), ('mean', torch.full((3,), float('nan'))), ('squares', None),
    ('squares', torch.ones(1).expand(2 ** 40)), ('mean', torch.zeros(3, device='meta')),
    ('precision', torch.ones(1).expand(3, 3))])
def test_outliers_that_make_no_sense_are_left_out(name, value):
    assert module.outliers_of({'outliers': good_outliers()}, 3) is not None
    assert module.outliers_of({'outliers': {**good_outliers(), name: value}}, 3) is None
    assert module.outliers_of({'outliers': [value]}, 3) is None


def test_an_error_names_the_weights_that_diverged(photos):
    saved = torch.load('x.pth', weights_only=True)
    saved['state_dict']['head.bias'] += float('nan')
    torch.save(saved, 'nan.pth')
    with pytest.raises(UserError, match='nan.pth: its weights give non-finite logits'):
        list(Predictor(['x.pth', 'nan.pth'])(photos))


def test_several_paths_may_have_spaces_between_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths_of('a.pth, b c.pth') == ('a.pth', 'b c.pth') and paths_of((' a.pth', 'b')) == (' a.pth', 'b')
    Path('a, b.pth').touch()
    assert paths_of('a, b.pth') == ('a, b.pth',)
