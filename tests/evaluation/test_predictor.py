"""Predictor: the same answers for files, images and arrays; several looks, several networks."""
import itertools

import numpy as np
import pytest
import torch
from helpers import draw_folder, untrained
from PIL import Image

from common.data.folders import list_images
from common.evaluation import predictor as module
from common.evaluation.predictor import Predictor
from common.runtime.errors import UserError
from extras.tta import other_views, trained_views


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Paths of twelve pictures of noise, beside x.pth."""
    monkeypatch.chdir(tmp_path)
    untrained('x.pth')
    return list(list_images(draw_folder(tmp_path / 'photos', {'a': 6, 'b': 6})))


def logits(predictor, pictures, **options):
    return torch.stack([found.logits for found in predictor(pictures, **options)])


def test_files_images_and_arrays_are_named_alike(photos):
    predictor = Predictor('x.pth', batch_size=5, use_amp=False)
    files, images = list(predictor(photos)), [Image.open(path) for path in photos]
    assert [found.picture for found in files] == photos and len({found.label for found in files}) > 1
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


def test_an_unreadable_file_is_an_answer_too(photos):
    found = list(Predictor('x.pth', batch_size=2)([photos[0], 'gone.jpg', photos[1], photos[2], 'gone.jpg', 'no.jpg']))
    assert [bool(prediction.error) for prediction in found] == [False, True, False, False, True, True]
    assert 'gone.jpg: not a readable image (No such file' in found[1].error and found[1].logits is None
    assert logits(Predictor('x.pth'), photos[:3]).allclose(torch.stack([found[i].logits for i in (0, 2, 3)]), atol=1e-2)


def test_no_more_pictures_are_asked_for_than_are_being_read(photos):
    """An endless list is named as far as someone wants the answers."""
    asked = []
    endless = (asked.append(path) or path for path in itertools.cycle(photos))
    found = list(itertools.islice(Predictor('x.pth', batch_size=4)(endless), 10))
    assert [prediction.picture for prediction in found] == photos[:10] and len(asked) <= 16


def test_unknown_is_what_is_too_uncertain(photos):
    found = list(Predictor('x.pth')(photos))
    middle = sorted(prediction.certainty for prediction in found)[6]
    again = list(Predictor('x.pth', unknown_below=middle)(photos))
    assert [prediction.label == 'unknown' for prediction in again] == [p.certainty < middle for p in found]
    assert {p.label for p in again} > {'unknown'} and all(p.confidence == q.confidence for p, q in
                                                            zip(found, again, strict=True))


@pytest.mark.parametrize('arguments, count', [
    ((False, False, False), 0), ((True, False, False), 1), ((False, True, False), 1), ((True, True, False), 3),
    ((False, False, True), 3), ((True, False, True), 7), ((False, True, True), 7), ((True, True, True), 7)])
def test_views_are_different_symmetries_of_the_square(arguments, count):
    images = torch.arange(18.).view(1, 2, 3, 3)
    views = [images, *(view(images) for view in other_views(*arguments))]
    assert len(views) == count + 1 == len({tuple(view.flatten().tolist()) for view in views})
    corners = {tuple(sorted(view[0, 0, ::2, ::2].flatten().tolist())) for view in views}
    assert corners == {(0, 2, 6, 8)} and all(view[0, 0, 1, 1] == 4 for view in views)


def test_views_are_those_of_training():
    def count(side=32, **settings):
        return len(trained_views({'settings': settings, 'transform': {'img_size': [32, side]}}))
    assert count() == 0 and count(FLIP=0.5) == 1 and count(FLIP=0.5, FLIP_VERTICAL=0.5) == 3
    assert count(FLIP=0.5, ROTATION=89) == 1 and count(FLIP=0.5, ROTATION=180) == 7
    assert count(side=48, FLIP=0.5, ROTATION=180) == 1 and count(FLIP='auto') == 0
    assert trained_views({'settings': None, 'transform': {'img_size': [32, 32]}}) == []


def test_uncertain_pictures_are_looked_at_again(photos, monkeypatch):
    """The mean of the logits of both mirror images; sure ones are as they were."""
    untrained('x.pth', settings={'FLIP': 0.5})
    once = list(Predictor('x.pth', use_amp=False)(photos))
    mirrored = logits(Predictor('x.pth', use_amp=False), [Image.open(path).transpose(0) for path in photos])
    middle = sorted(prediction.confidence for prediction in once)[6]
    found = list(Predictor('x.pth', use_amp=False, tta=True, tta_below=middle)(photos))
    for before, other, after in zip(once, mirrored, found, strict=True):
        expected = (before.logits + other) / 2 if before.confidence < middle else before.logits
        torch.testing.assert_close(after.logits, expected)
    assert sum(before.logits.allclose(after.logits) for before, after in zip(once, found, strict=True)) == 6
    sure, looks = Predictor('x.pth', use_amp=False, tta=True, tta_below=0.), []
    monkeypatch.setattr(sure, 'look', lambda images: looks.append(1) or Predictor.look(sure, images))
    assert logits(sure, photos).equal(torch.stack([prediction.logits for prediction in once])) and len(looks) == 1


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
    for name, temperature in (('x.pth', 2.), ('y.pth', 8.)):
        untrained(name, best={'temperature': temperature}, outliers={})
    (member,) = Predictor(['x.pth', 'y.pth'], average_weights=True).members
    assert module.temperature_of(member.saved) == pytest.approx(4) and member.saved['outliers'] is None


def test_weights_that_diverged_are_named(photos):
    saved = torch.load('x.pth', weights_only=True)
    saved['state_dict']['head.bias'] += float('nan')
    torch.save(saved, 'nan.pth')
    with pytest.raises(UserError, match='nan.pth: its weights give non-finite logits'):
        list(Predictor(['x.pth', 'nan.pth'])(photos))
