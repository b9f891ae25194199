"""What belongs together lies on one side, and the shares are right all the same."""
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from common.data import grouping
from common.data.folders import Samples
from common.data.grouping import alike, group_numbers, join, suggest_group
from common.data.split import TEST, TRAIN, VAL, choose_sides, print_sides
from common.runtime.errors import UserError


def digests(count, seed=0):
    return np.array([f'{number:064x}' for number in np.random.default_rng(seed).permutation(count)], 'S64')


def draw(groups, targets=None, earlier=None, ratios=(0.3, 0.), seed=42, images=None):
    """`images` says which are the same, all different by default."""
    groups, count = np.array(groups), len(groups)
    sha256 = digests(count)[np.arange(count) if images is None else images]
    return choose_sides(sha256, np.zeros(count, int) if targets is None else np.array(targets), groups,
                        np.full(count, -1) if earlier is None else np.array(earlier), ratios, seed)


def test_join_follows_every_link():
    groups = join(7, alike(['a', 'b', None, 'a', None, 'c', 'c']), np.array([[3, 6]]))
    assert groups[0] == groups[3] == groups[6] == groups[5] and len({*groups.tolist()}) == 4


@pytest.mark.parametrize('groups, targets', [
    ([1, 2, 2, 1, 1, 0, 1], [0, 0, 1, 2, 2, 2, 2]),   # a class gives no new side to a group that another has
    ([2, 2, 2, 0, 0, 1, 2], [0, 0, 0, 0, 1, 2, 2])])  # a class with one group has it in train before others draw
def test_classes_that_share_groups_have_val_where_they_can(groups, targets):
    """Whatever the seed."""
    for seed in range(6):
        sides = draw(groups, targets, seed=seed)
        for target in {*targets}:
            of_class = np.array(targets) == target
            has_several = len({*np.array(groups)[of_class]}) > 1
            assert {*sides[of_class]} == ({TRAIN, VAL} if has_several else {TRAIN})


def test_a_class_without_train_gets_a_new_group_rather_than_an_old_one():
    sides = draw([0, 1, 2, 0], [0, 0, 1, 1], earlier=[-1, TRAIN, VAL, -1])
    assert sides.tolist() == [TRAIN, TRAIN, VAL, TRAIN]


def test_single_pictures_are_drawn_as_scikit_learn_draws_them():
    from sklearn.model_selection import train_test_split
    sides, names = draw(np.arange(40)), digests(40)
    train, val = train_test_split(np.sort(names), test_size=12, random_state=42)
    assert {*names[sides == VAL]} == {*val} and {*names[sides == TRAIN]} == {*train}


@pytest.mark.parametrize('seed', range(20))
def test_no_group_is_divided_and_shares_are_kept(seed):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(60), rng.integers(1, 9, 60))
    targets = groups % 3
    sides = draw(groups, targets, ratios=(0.2, 0.1), seed=seed)
    assert all(len({*sides[groups == group].tolist()}) == 1 for group in range(60))
    for target in range(3):
        counts = np.bincount(sides[targets == target], minlength=3)
        assert (abs(counts - np.array([0.7, 0.2, 0.1]) * counts.sum())[1:] <= 8 / 2 + 0.5).all()  # half a group


@pytest.mark.parametrize('groups, expected', [
    ([0], {TRAIN: 1}), ([0, 1], {TRAIN: 1, VAL: 1}), ([0, 1, 2], {TRAIN: 1, VAL: 1, TEST: 1}), ([0, 0, 0], {TRAIN: 3})])
def test_small_classes(groups, expected):
    assert Counter(draw(groups, ratios=(0.3, 0.1)).tolist()) == expected


def test_one_large_group_is_left_to_train():
    sides = draw([0] * 90 + list(range(1, 11)))
    assert (sides[:90] == TRAIN).all() and (sides[90:] == VAL).any()


def test_a_class_of_large_groups_has_one_in_val_all_the_same():
    sides = draw([0] * 50 + [1] * 60 + [2] * 55, ratios=(0.1, 0.))
    assert (sides[:50] == VAL).all() and (sides[50:] == TRAIN).all()


def test_train_is_never_empty():
    for seed in range(10):
        assert (draw([0] * 6 + [1] * 4, ratios=(0.9, 0.), seed=seed) == TRAIN).any()


def test_pictures_keep_their_side_and_new_ones_follow_their_group():
    first = draw(np.arange(30))
    again = draw([*range(30), 3, 4, *range(30, 38)], earlier=[*first, *[-1] * 10])
    assert (again[:30] == first).all() and (again[30:32] == first[3:5]).all()
    assert Counter(again.tolist())[VAL] == 12


def test_a_group_that_was_on_two_sides_goes_to_train():
    """What has been learnt from must not measure."""
    assert (draw([0, 0, 1, 1, 2, 3], earlier=[VAL, TRAIN, TEST, VAL, TRAIN, VAL])
            == [TRAIN, TRAIN, VAL, VAL, TRAIN, VAL]).all()


def test_a_group_over_two_classes_is_not_divided():
    groups = [*range(10), *range(5, 15)]
    sides = draw(groups, [0] * 10 + [1] * 10)
    assert all(len({*sides[np.array(groups) == group].tolist()}) == 1 for group in groups)


def sides_of(target, targets, sides):
    return {*sides[np.array(targets) == target].tolist()}


def plants(rng, classes=6, count=12):
    """Classes of one to three plants each, of which others have images, too: (groups, targets)."""
    targets = []
    groups = []
    for target in range(classes):
        for plant in rng.choice(count, rng.integers(1, 4), replace=False):
            size = rng.integers(1, 5)
            targets += [target] * size
            groups += [plant] * size
    return np.unique(groups, return_inverse=True)[1], targets


@pytest.mark.parametrize('seed', range(60))
def test_each_class_has_an_image_in_train_though_groups_lie_across_classes(seed):
    groups, targets = plants(np.random.default_rng(seed))
    sides = draw(groups, targets, seed=seed)
    assert all(TRAIN in sides_of(target, targets, sides) for target in range(6))
    assert (sides == draw(groups, targets, seed=seed)).all()
    assert (sides == draw(groups, targets, earlier=sides, seed=seed)).all()


def test_a_class_does_not_take_back_what_another_one_drew():
    """The last class has an image of each group; the others have one group each, which train needs."""
    assert (draw([0] * 5 + [1] * 5 + [0] * 3 + [1] * 3, [0] * 5 + [1] * 5 + [2] * 6) == TRAIN).all()


@pytest.mark.parametrize('seed', range(30))
def test_a_class_whose_only_image_is_a_copy_of_an_image_of_another(seed):
    sides = draw([0, 1, 2, 2], [0, 0, 0, 1], seed=seed, images=[0, 1, 2, 2])
    assert sides[3] == TRAIN and sides_of(0, [0, 0, 0, 1], sides) == {TRAIN, VAL}


@pytest.mark.parametrize('seed', range(30))
def test_a_class_with_groups_to_spare_has_one_in_val(seed):
    sides = draw([0, 1, 2, 2], [0, 0, 0, 1], seed=seed)
    assert sides[3] == TRAIN and sides_of(0, [0, 0, 0, 1], sides) == {TRAIN, VAL}


def test_a_class_that_lost_its_training_images_gets_some_and_leaves_others_their_sides():
    """Class 1 has but what it shares with class 0: an old group comes back to train, none leaves it."""
    earlier = [TRAIN, TRAIN, VAL, VAL, VAL, VAL]
    targets = [0, 0, 0, 0, 1, 1]
    sides = draw([0, 1, 2, 3, 2, 3], targets, earlier)
    assert sides_of(1, targets, sides) == {TRAIN, VAL} and (sides[:2] == TRAIN).all()


def test_a_class_without_an_image_in_train_is_warned_of(capsys):
    print_sides(np.array([0, 0, 1]), np.array([TRAIN, VAL, VAL]), ['a', 'b'], 'data')
    assert 'warning: b has no image in train, and train.py refuses such a split: add im' in capsys.readouterr().out


def numbered(*patterns, classes=('a', 'b5'), count=40):
    """Samples, whose names are those of `patterns` in turn, with the number of the image and of its ten."""
    return Samples((f'ds/{name}/{patterns[number % len(patterns)].format(number, number // 10)}.jpg', target)
                   for target, name in enumerate(classes) for number in range(count))


@pytest.mark.parametrize('pattern, expected', [
    ('{1:05}_{0:05}', r'^(.+)_\d+\.'), ('person{1}-virus-{0}', r'^(.+)-\d+\.'), ('video{1}frame{0}', r'^(.*\D)\d+\.'),
    ('video{1}/{0:04}', 'folder'), ('scan_{1}/slice_{0}', 'folder'),
    ('glass{0}', None), ('{0:03}', None), ('IMG_{0}', None), ('b5_{0}', None), ('{0}_f52e8ee0{0}_n', None),
    ('x{1}/{0}_y', None), ('{0}x_{0}', None)])
def test_names_that_tell_series(pattern, expected):
    """A folder of a class may have a number, too."""
    samples = numbered(pattern)
    assert suggest_group(samples, 'ds', 1) == expected
    if expected:
        groups = group_numbers([Path(path).relative_to('ds') for path, _ in samples], 80, expected, 1)
        assert (groups == np.arange(80) // 10).all()


def test_names_that_tell_no_series_for_most():
    assert suggest_group(numbered('IMG_{0}', 'DSC_{0}', 'P{0}', 'image{0}'), 'ds', 1) is None  # of several cameras
    assert suggest_group(numbered('{1}_{0}', 'a{0}', 'b{0}'), 'ds', 1) is None
    assert suggest_group(numbered('{1}_{0}', count=11), 'ds', 1) is None  # all but one are one series
    assert suggest_group(Samples([('ds/a/1_1.jpg', 0), ('ds/b/1_1.jpg', 1)]), 'ds', 1) is None


@pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason='Windows has no such timer')
def test_a_regular_expression_that_tries_for_ever(monkeypatch):
    monkeypatch.setattr(grouping, '_SECONDS', 0.1)
    paths = [Path('a', name) for name in ('1.png', f'{"a" * 60}.png')]
    with pytest.raises(UserError, match=r"GROUP = '\(a\+\)\+\$' takes too long to search a/aaa"):
        group_numbers(paths, 2, '(a+)+$', 1)
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    assert group_numbers(paths, 2, r'a/(\d|a)', 1).tolist() == [0, 1]
    assert group_numbers(paths, 2, 'a{60}', 1).tolist() == [-1, 0]


@pytest.mark.parametrize('group, words', [(r'plant(\d+)', 'it is in no path'), ('folder', 'no image lies in a folder')])
def test_a_group_that_joins_nothing_is_refused(group, words):
    """A slip in it would let what belongs together lie on both sides."""
    with pytest.raises(UserError, match=f'keeps nothing together, since {words}.*, such as a/x1.png: correct it'):
        group_numbers([Path('a/x0.png'), Path('a/x1.png')], 2, group, 1)
    assert group_numbers([], 0, None, 1).tolist() == []
