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
        summary.add(Prediction(name, label, 0.6, 0.1 * number, [], torch.tensor([1., 0.]), error), {'path': name})
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


def test_names_are_not_kept_unless_they_are_wanted():
    """A million of them would be."""
    assert summary_of(['a/1', 'flat']).readable == []
