"""TTA: uncertain images are looked at again, in the views that training had."""
import pickle

import pytest
import torch
from fuzzing import cases, spoiled
from helpers import draw_folder, untrained
from PIL import Image

import test
from common import settings
from common.data.folders import list_images
from common.evaluation.predictor import Predictor
from extras.tta import symmetries, trained_views


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Paths of twelve images of noise."""
    monkeypatch.chdir(tmp_path)
    return list(list_images(draw_folder(tmp_path / 'photos', {'a': 6, 'b': 6})))


def test_the_views_of_a_square_are_its_symmetries():
    images = torch.arange(18.).view(1, 2, 3, 3)
    views = [images, *(view(images) for view in symmetries(square=True))]
    assert len(views) == 8 == len({tuple(view.flatten().tolist()) for view in views})
    corners = {tuple(sorted(view[0, 0, ::2, ::2].flatten().tolist())) for view in views}
    assert corners == {(0, 2, 6, 8)} and all(view[0, 0, 1, 1] == 4 for view in views)


def test_the_views_of_a_rectangle_keep_its_shape():
    images = torch.arange(12.).view(1, 2, 2, 3)
    views = [images, *(view(images) for view in symmetries(square=False))]
    assert len({tuple(view.flatten().tolist()) for view in views}) == 4
    assert {view.shape for view in views} == {images.shape}


def views(width=32, **of_training):
    return trained_views({'settings': of_training, 'transform': {'img_size': [32, width]}})


def test_views_are_those_of_training():
    images = torch.rand(2, 3, 32, 32)
    (mirror_image,) = views(VIEW='upright')
    assert mirror_image(images).equal(images.flip(3))
    assert len(views(VIEW='above')) == 7 and len(views(width=48, VIEW='above')) == 3
    assert views(VIEW='text') == views(VIEW=None) == views() == []


@pytest.mark.parametrize('of_training', [
    None, 7, 'upright', ['VIEW'], {'VIEW': 7}, {'VIEW': ['above']}, {'VIEW': torch.ones(2)}, {'VIEW': {}},
    {3: 'above'}])
def test_settings_that_make_no_sense_mean_no_other_view(of_training):
    assert trained_views({'settings': of_training, 'transform': {'img_size': [32, 32]}}) == []


def logits(predictor, images):
    return torch.stack([found.logits for found in predictor(images)])


def test_uncertain_images_are_looked_at_again(photos, monkeypatch):
    """The mean of the logits of both mirror images; sure ones are as they were."""
    untrained('x.pth', settings={'VIEW': 'upright'})
    once = list(Predictor('x.pth', use_amp=False)(photos))
    mirrored = logits(Predictor('x.pth', use_amp=False), [Image.open(path).transpose(0) for path in photos])
    middle = sorted(prediction.confidence for prediction in once)[6]
    found = list(Predictor('x.pth', use_amp=False, tta=True, tta_below=middle)(photos))
    for before, other, after in zip(once, mirrored, found, strict=True):
        expected = (before.logits + other) / 2 if before.confidence < middle else before.logits
        torch.testing.assert_close(after.logits, expected)
    assert sum(before.logits.allclose(after.logits) for before, after in zip(once, found, strict=True)) == 6


def test_sure_images_are_looked_at_once(photos, monkeypatch):
    untrained('x.pth', settings={'VIEW': 'above'})
    predictor = Predictor('x.pth', use_amp=False, tta=True, tta_below=0.)
    looks = []

    def look(tensors):
        looks.append(tensors)
        return Predictor.look(predictor, tensors)

    monkeypatch.setattr(predictor, 'look', look)
    assert logits(predictor, photos).equal(logits(Predictor('x.pth', use_amp=False), photos)) and len(looks) == 1


def test_the_script_says_how_many_views_there_are(photos, capsys):
    untrained('x.pth', settings={'VIEW': 'upright'})
    test.main(settings.read(test, ['--checkpoint', 'x.pth', '--test-dir', 'photos/a', '--num-workers', '0', '--tta']))
    assert 'images below 90% are also looked at in 1 other views' in capsys.readouterr().out


def test_a_predictor_with_views_can_be_pickled(photos):
    """For another process."""
    untrained('x.pth', settings={'VIEW': 'above'})
    predictor = Predictor('x.pth', tta=True, use_amp=False)
    again = pickle.loads(pickle.dumps(predictor))
    assert len(again.views) == 7
    assert [found.top for found in again(photos)] == [found.top for found in predictor(photos)]


@cases(100)
def test_fuzz_the_settings_of_a_checkpoint(random):
    """Whatever they are, there are views that keep the shape, or none."""
    images = torch.zeros(1, 3, 4, 6)
    saved = {'settings': {'VIEW': 'above', 'DATA_DIR': 'data'}, 'transform': {'img_size': [4, 6]}}
    for view in trained_views(spoiled(random, saved, [('settings',), ('settings', 'VIEW')])):
        assert view(images).shape == images.shape
