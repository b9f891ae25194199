"""Confidence that says how often it is right."""
import pytest
import torch
from helpers import classify, draw_folder, read_rows, run

from common.evaluation.calibration import calibration_error, fit_temperature, reliability
from common.evaluation.metrics import scores
from common.evaluation.predictor import temperature_of
from common.reporting.plots import plot_reliability


def drawn(temperature, count=4000, classes=5):
    """(logits, targets) of a network whose logits are so many times too large."""
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(count, classes, generator=generator)
    return temperature * logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize('temperature', [0.3, 1, 4])
def test_the_temperature_is_found(temperature):
    logits, targets = drawn(temperature)
    assert fit_temperature(logits, targets) == pytest.approx(temperature, rel=0.1)
    assert calibration_error(logits / temperature, targets) < 0.03
    if temperature != 1:
        assert calibration_error(logits, targets) > 0.1


def test_a_few_pictures_that_are_all_right_are_no_reason_for_certainty():
    logits = torch.eye(4).repeat(3, 1)
    temperature = fit_temperature(logits, torch.arange(4).repeat(3))
    assert 0.9 < (logits / temperature).softmax(1).max() < 0.97


def test_reliability_counted_by_hand():
    confidence = torch.tensor([0.95, 0.95, 0.55, 0.55, 1])
    logits = torch.stack([confidence, 1 - confidence], 1).clamp(1e-9).log()
    found = reliability(logits, torch.tensor([0, 1, 0, 0, 0]))
    assert found['count'].sum() == 5 and found['count'][-1] == 3 and found['count'][8] == 2
    assert found['accuracy'][8] == 1 and found['accuracy'][-1] == pytest.approx(2 / 3)
    assert found['confidence'][-1] == pytest.approx(2.9 / 3)
    error = calibration_error(logits, torch.tensor([0, 1, 0, 0, 0]))
    assert error == pytest.approx((2 * 0.45 + 3 * (2.9 - 2) / 3) / 5, abs=1e-6)


def test_the_diagram_is_drawn(tmp_path):
    logits, targets = drawn(3, 200)
    plot_reliability(tmp_path / 'x.png', scores(logits, targets, list('abcde')))
    assert (tmp_path / 'x.png').stat().st_size > 5000


@pytest.mark.parametrize('saved', [{}, {'best': None}, {'best': {'temperature': None}}, {'best': {'temperature': 'x'}},
                                   {'best': {'temperature': 0.}}, {'best': {'temperature': float('nan')}}])
def test_checkpoints_without_a_temperature_have_one(saved):
    assert temperature_of(saved) == 1 and temperature_of({'best': {'temperature': 2.5}}) == 2.5


def test_predictions_are_divided_by_that_of_validation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for side, count in (('train', 16), ('val', 8)):
        draw_folder(tmp_path / 'data' / side, {'a': count, 'b': count}, seed=count)
    run(use_amp='false')
    saved = torch.load('out/best.pth', weights_only=True)
    assert saved['best']['temperature'] == saved['history'][saved['best']['epoch'] - 1][
        f'{saved["best"]["weights"]}_temperature'] != 1
    confidences = []
    for name, temperature in (('as it is', saved['best']['temperature']), ('plain', 1.)):
        saved['best']['temperature'] = temperature
        torch.save(saved, f'{name}.pth')
        classify('--checkpoint', f'{name}.pth', '--output-dir', name)
        confidences.append(torch.tensor([
            [top['confidence'] for top in row['top5']] for row in read_rows(tmp_path / name)]))
    divided = (confidences[1].log() / torch.load('as it is.pth', weights_only=True)['best']['temperature']).softmax(1)
    torch.testing.assert_close(confidences[0], divided, atol=1e-4, rtol=1e-3)
    assert (tmp_path / 'out' / 'calibration.png').exists() and (tmp_path / 'plain' / 'calibration.png').exists()
