"""common/training/auto.py: what 'auto' becomes, and that it says why."""
import pytest
from helpers import build, configure, prepare

import train
from common.runtime.errors import UserError
from common.training.auto import choose_settings
from common.training.provenance import Provenance


@pytest.mark.parametrize('model, source, lr, start', [
    ('volo_d1', 'scratch', 2e-4, 0.5), ('volo_d1', 'out/best.pth', 1e-4, 1.), ('resnet18', 'scratch', 2e-4, 0.5),
    ('test_vit', 'scratch', 2e-4, 1.)])
def test_auto_depends_on_whether_weights_were_loaded(capsys, model, source, lr, start):
    cfg = train.resolved(configure(model=model, model_kwargs={}, lr='auto', start_size='auto'))
    found = choose_settings(cfg, Provenance(source))
    assert (lr, start) == (found.LR, found.START_SIZE)
    assert vars(found) == {**vars(cfg), 'LR': lr, 'START_SIZE': start}
    said = capsys.readouterr().out
    how = 'training from scratch' if source == 'scratch' else 'the weights are trained already'
    assert f"LR = 'auto': {lr:g}, {how}\n" in said
    if model == 'test_vit':
        how = 'test_vit takes images of one size'
    assert f"START_SIZE = 'auto': {start:g}, {how}\n" in said


def test_numbers_stay_as_they_are(capsys):
    cfg = prepare(lr=0.5, start_size=0.75)
    assert choose_settings(cfg, Provenance('scratch')) == cfg and not capsys.readouterr().out


def test_a_network_that_takes_no_small_images(data):
    with pytest.raises(UserError, match=r'inception_v3 takes no pictures of \(64, 64\).*set START_SIZE, now 0.5, to 1'):
        build(model='inception_v3', model_kwargs={}, img_size=128, start_size=0.5)
