"""Classes of very different sizes: BALANCE, BEST_BY; and PATIENCE."""
import numpy as np
import pytest
import torch
from helpers import TINY, draw_folder, prepare, read_json, run

import train
from common.data.loaders import EpochSampler, equal_shares
from common.runtime.errors import UserError
from common.training.log import best_of, out_of_patience
from common.training.losses import balanced, class_loss
from common.training.step import UpdateMeter


@pytest.fixture
def uneven(quick, tmp_path, monkeypatch):
    """32 pictures of one class to learn from and 8 of the other."""
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / 'data' / 'train', {'a': 32})
    draw_folder(tmp_path / 'data' / 'train', {'b': 8}, seed=2)
    draw_folder(tmp_path / 'data' / 'val', {'a': 4, 'b': 4}, seed=1)


def test_weights_counted_by_hand():
    """Three pictures of one class and one of the other: 2/3 and 2, a mixture in between."""
    logits, targets = torch.randn(3, 2), torch.tensor([[1., 0], [0, 1], [0.5, 0.5]])
    found, losses = balanced(class_loss, np.array([0, 0, 1, 0]))(logits, targets)
    expected = class_loss(logits, targets)[1] * torch.tensor([2 / 3, 2, 4 / 3])
    torch.testing.assert_close(losses, expected)
    assert torch.equal(found, logits)


def test_all_classes_are_drawn_equally_often():
    cfg = prepare(balance='sampler')
    targets = np.repeat([0, 1, 2], [900, 90, 10])
    sampler = EpochSampler(1000, 10, cfg.SEED, shares=equal_shares(targets))
    order = sampler.order()
    assert np.bincount(targets[order[:, 0]]) == pytest.approx(1000 / 3, abs=60)
    assert len(np.unique(order[:, 1])) == 1000  # a picture that comes again is augmented anew
    assert np.array_equal(order, sampler.order())
    sampler.begin(1)
    assert not np.array_equal(order, sampler.order())


@pytest.mark.parametrize('balance, share', [('none', 0.2), ('weights', 0.2), ('sampler', 0.5)])
def test_what_a_run_sees(uneven, monkeypatch, balance, share):
    labels, losses, real = [], [], UpdateMeter.add

    def add(meter, each_loss, logits, these, targets):
        labels.extend(these.tolist())
        plain = class_loss(logits, targets)[1]
        losses.append((each_loss.mean().item(), plain.mean().item()))
        real(meter, each_loss, logits, these, targets)

    monkeypatch.setattr(UpdateMeter, 'add', add)
    run(balance=balance, epochs=4, mixup_prob=0, smoothing=0, model_kwargs={**TINY, 'return_dense': False})
    assert np.mean(labels) == pytest.approx(share, abs=0.12)
    same = [loss == pytest.approx(plain, rel=1e-4) for loss, plain in losses]
    assert not any(same) if balance == 'weights' else all(same)


def test_the_best_may_be_judged_by_balanced_accuracy(uneven, monkeypatch):
    rows = [{'epoch': epoch, 'raw_acc1': acc1, 'raw_balanced_accuracy': balanced_accuracy, 'raw_temperature': 1.,
             'ema_acc1': None} for epoch, acc1, balanced_accuracy in ((1, 80., 50.), (2, 70., 60.), (3, 60., 55.))]
    assert best_of(rows)['epoch'] == 1 and best_of(rows, 'balanced_accuracy')['epoch'] == 2
    assert best_of(rows, 'balanced_accuracy')['balanced_accuracy'] == 60
    real = train.evaluate

    def evaluate(*arguments):
        row = next(given)
        return {name: {**found, 'acc1': row['raw_acc1'], 'balanced_accuracy': row['raw_balanced_accuracy']}
                for name, found in real(*arguments).items()}

    for by, expected in (('acc1', 1), ('balanced_accuracy', 2)):
        given = iter(rows)
        monkeypatch.setattr(train, 'evaluate', evaluate)
        run(best_by=by, epochs=3)
        assert read_json('out/result.json')['best']['epoch'] == expected
        assert torch.load('out/best.pth')['best']['epoch'] == expected
        assert len(torch.load('out/best.pth')['history']) == expected


def test_patience_counted_by_hand():
    def ends(*accuracies, patience=2):
        rows = [{'epoch': epoch + 1, 'raw_acc1': acc1, 'raw_balanced_accuracy': acc1, 'raw_temperature': 1.,
                 'ema_acc1': None} for epoch, acc1 in enumerate(accuracies)]
        return out_of_patience(rows, patience, 'acc1')

    assert not ends(70, 60)
    assert ends(70, 60, 70)       # as good is no better
    assert not ends(70, 60, 80)
    assert ends(70, None, 60, None, 60)
    assert not ends(70, None, 60, None)
    assert not ends(70, 60, 60, 60, patience=None)


def test_a_run_out_of_patience_is_complete(uneven, capsys):
    """Nothing is learnt at this rate; the run ends after one validation and two that are no better."""
    run(epochs=20, patience=2, lr=1e-12)
    assert len(torch.load('out/last.pth')['history']) == 3 and read_json('out/result.json')['finished']
    assert 'epoch 3/3' in capsys.readouterr().out
    run(epochs=20, patience=2, lr=1e-12, resume='auto')
    assert 'nothing to do' in capsys.readouterr().out
    run(epochs=5, lr=1e-12, resume='auto')  # with more patience it goes on
    assert len(torch.load('out/last.pth')['history']) == 5


@pytest.mark.parametrize('changes, words', [({'balance': 'both'}, 'BALANCE'), ({'best_by': 'loss'}, 'BEST_BY'),
                                            ({'patience': 0}, 'PATIENCE = 0')])
def test_mistakes(uneven, changes, words):
    with pytest.raises(UserError, match=words):
        run(**changes)
