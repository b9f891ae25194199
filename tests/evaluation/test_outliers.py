"""Pictures that are like none of the validation set are less certain, and may be called unknown."""
import numpy as np
import pytest
import torch
from helpers import classify, draw_folder, read_rows, run
from PIL import Image

from common.evaluation.outliers import FEWEST_KNOWN, certainty, fit_outliers, typicality
from common.evaluation.predictor import outliers_of
from models import VOLO, create_model, logits_and_features


def pictures(count, seed, dim=30):
    """Features (count, dim) that vary ten times more in some directions than in others."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator) * torch.logspace(-0.5, 0.5, dim) + 5


@pytest.mark.parametrize('count', [100, 3000])
def test_of_pictures_like_the_known_ones_a_share_of_x_is_below_x(count):
    """Though the known ones lie nearer to their own mean than others do."""
    own, other = pictures(count, 1), pictures(2000, 2)
    known = fit_outliers(own)
    for share in (0.05, 0.2):
        assert (typicality(other, known) < share).double().mean() == pytest.approx(share, abs=0.1)
        assert (typicality(own, known, own=True) < share).double().mean() == pytest.approx(share, abs=0.02)
    assert len(known['squares']) == min(count, 1000)


def test_what_is_far_out_for_its_direction_is_untypical():
    known = fit_outliers(pictures(1000, 1))
    mean, narrow, wide = torch.full((3, 30), 5.)
    narrow[0] += 3  # ten standard deviations of that direction
    wide[-1] += 3   # one
    typical = typicality(torch.stack([mean, narrow, wide]), known)
    assert typical[0] > 0.99 and 0 < typical[1] < 0.01 and typical[2] > 0.3


def test_certainty_is_the_confidence_but_for_rare_pictures():
    found = certainty(torch.tensor([0.9, 0.9, 0.9, 0.1]), torch.tensor([1, 0.05, 0.01, 0.01]))
    assert found.tolist() == pytest.approx([0.9, 0.9, 0.2, 0.1])


@pytest.mark.parametrize('features', [None, pictures(FEWEST_KNOWN - 1, 1), torch.full((50, 4), torch.nan)])
def test_nothing_is_fitted_to_too_little(features):
    assert fit_outliers(features) is None


def test_of_many_pictures_some_are_enough(monkeypatch):
    monkeypatch.setattr('common.evaluation.outliers.MOST_FITTED', 50)
    known = fit_outliers(pictures(3000, 1, dim=5))
    assert len(known['squares']) == 50 and 0.5 / 50 < known['share'] < 1 / 50


def test_pictures_that_are_all_the_same_can_be_known():
    known = fit_outliers(torch.ones(50, 4))
    assert typicality(torch.ones(1, 4), known) > 0.9 and all(value.isfinite().all() for value in known.values())


def test_a_checkpoint_may_hold_anything():
    known = fit_outliers(pictures(50, 1, dim=8))
    assert outliers_of({'outliers': known}, 8) is known
    for spoilt in (None, 3, {}, {**known, 'mean': None}, {**known, 'mean': known['mean'][:3]},
                   {**known, 'squares': known['squares'][None]}, {**known, 'precision': known['precision'].double()},
                   {**known, 'squares': torch.tensor([torch.nan])}):
        assert outliers_of({'outliers': spoilt}, 8) is None
    assert outliers_of({'outliers': known}, 9) is None and outliers_of({}, 8) is None


@pytest.mark.parametrize('name', [
    'volo_d1', 'resnet18', 'vit_tiny_patch16_224', 'convnext_atto', 'swin_tiny_patch4_window7_224',
    'deit_tiny_distilled_patch16_224', 'mobilenetv3_small_050', 'vgg11', 'mixer_s32_224'])
def test_features_leave_the_logits_as_they_are(name):
    net = create_model(name, num_classes=3, img_size=224 if '224' in name else 64).eval()
    images = torch.randn(2, 3, *[224 if '224' in name else 64] * 2)
    with torch.no_grad():
        logits, features = logits_and_features(net, images)
        torch.testing.assert_close(logits, net(images))
    assert len(features) == 2 and features.ndim == 2 and not torch.equal(*features)


def test_a_volos_features_are_the_mean_of_its_tokens():
    net = create_model('volo_d1', num_classes=3, img_size=64, return_dense=True).eval()
    assert isinstance(net, VOLO)
    tokens = []
    net.network[-1][-1].register_forward_hook(lambda module, inputs, output: tokens.append(output))
    with torch.no_grad():
        _, features = logits_and_features(net, torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(features, tokens[0].mean((1, 2)))


def test_a_network_without_timms_methods_has_no_features():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    logits, features = logits_and_features(net, torch.ones(1, 3, 2, 2))
    assert logits.shape == (1, 2) and features is None


def test_test_py_calls_strange_pictures_unknown(tmp_path, monkeypatch, quick):
    """Trained on grey noise; a coloured drawing is unlike it, and more of the same is not."""
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / 'data' / 'train', {'a': 24, 'b': 24})
    draw_folder(tmp_path / 'data' / 'val', {'a': 30, 'b': 30}, seed=1)
    draw_folder(tmp_path / 'new', {'a': 30, 'b': 30}, seed=2)
    run(epochs=3)
    for number, colour in enumerate(('red', 'blue', 'yellow')):
        Image.new('RGB', (24, 20), colour).save(tmp_path / 'new' / f'strange{number}.png')
    arguments = ('--checkpoint', 'out/best.pth', '--test-dir', 'new')
    done = classify(*arguments, '--unknown-below', 0.4)
    rows = {row['path']: row for row in read_rows('predictions')}
    strange = [row for name, row in rows.items() if name.startswith('strange')]
    assert len(strange) == 3 and all(row['class'] == 'unknown' for row in strange)
    assert all(row['certainty'] < 0.4 for row in strange) and all(row['top5'][0]['class'] in 'ab' for row in strange)
    alike = [row for name, row in rows.items() if not name.startswith('strange')]
    answered = np.mean([row['class'] != 'unknown' for row in alike])
    assert answered > 0.85 and f'{answered:.1%} of them are answered with a class' in done.stdout
    assert f'{60 - round(60 * answered) + 3} not recognised, 0 unreadable' in done.stdout
    assert all(row['certainty'] <= row['confidence'] + 1e-6 for row in rows.values())
    assert 'unknown' not in classify(*arguments).stdout
