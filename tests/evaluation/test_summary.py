"""What is kept while any number of predictions passes."""
import pytest
import torch

from common.evaluation.predictor import Prediction
from common.evaluation.report import Sample, Summary


@pytest.mark.parametrize('length', [1, 5, 6, 11, 12, 13, 100, 1000, 12345])
def test_a_sample_is_even_and_small(length):
    sample, largest = Sample(6), 0
    for number in range(length):
        sample.add(number)
        largest = max(largest, len(sample.kept))
    items = sample.items()
    assert len(items) == min(6, length) and largest < 12 and items[0] == 0 and items == sorted(set(items))
    gaps = [after - before for before, after in zip(items, [*items[1:], length], strict=True)]
    assert length < 6 or max(gaps) <= 3 * min(gaps)


def test_a_sample_of_none():
    assert Sample(6).items() == []


def summary_of(names, **options):
    summary = Summary(['a', 'b'], 3, **options)
    for number, name in enumerate(names):
        error = 'bad' if 'bad' in name else ''
        label = '' if error else 'unknown' if 'odd' in name else 'a'
        summary.add(Prediction(name, label, 0.6, 0.1 * number, [], torch.tensor([1., 0.]), error,
                               is_unknown=label == 'unknown'), {'path': name})
    return summary


def test_what_is_counted():
    summary = summary_of(['a/1', 'b/2', 'a/x/odd', 'b/bad', 'c/4', 'flat'], keep_names=True)
    assert (summary.count, summary.unreadable, summary.unknown) == (6, 1, 1)
    assert summary.names == ['a/1', 'b/2', 'a/x/odd'] and summary.targets == [0, 1, 0]
    assert summary.true_class('a') is None  # a file by the name of a class
    assert summary.other_folders == {'c'} and summary.readable == ['a/1', 'b/2', 'a/x/odd', 'c/4', 'flat']
    found, report = summary.scores()
    assert found['acc1'] == pytest.approx(200 / 3) and report['pictures'] == 3
    assert summary.answered(0.05) == (pytest.approx(2 / 3), 0.5)


def test_a_class_that_is_called_unknown_is_an_answer():
    summary = Summary(['a', 'unknown'], 3)
    for name, is_unknown in (('a/1', False), ('unknown/2', True)):
        summary.add(Prediction(name, 'unknown', 0.6, 0.6, [], torch.tensor([0., 1.]), is_unknown=is_unknown),
                    {'path': name})
    assert (summary.classified, summary.unknown, summary.targets) == (1, 1, [0, 1])


def test_in_a_split_the_class_is_the_second_folder():
    """Also of classes that are called like its sides."""
    summary = Summary(['train', 'val', 'caf\u00e9'], 3, is_split=True)
    names = ['train/val/1', 'val/train/2', 'val/val/deep/3', 'train/4', 'val/caf\u0065\u0301/5', 'val/x/6']
    for name in names:
        summary.add(Prediction(name, 'val', 0.6, 0.6, [], torch.tensor([0., 1., 0.])), {'path': name})
    assert [summary.true_class(name) for name in names] == ['val', 'train', 'val', None, 'caf\u00e9', None]
    assert summary.targets == [1, 0, 1, 2] and summary.other_folders == {'x'}


def test_names_are_not_kept_unless_they_are_wanted():
    """A million of them would be."""
    assert summary_of(['a/1', 'flat']).readable == []
