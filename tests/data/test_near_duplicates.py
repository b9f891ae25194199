"""Near-duplicates: found whatever was done to the copy, and nothing else is taken for one."""
import random

import numpy as np
import pytest
from helpers import COPIES, SEEDLINGS, cropped, saved, scene
from PIL import Image

from common.data.folders import list_images
from common.data.images import open_image
from common.data.near_duplicates import find_near_duplicates, is_same, thumbnail


def found(pictures):
    pairs = find_near_duplicates(np.stack([thumbnail(picture.convert('RGB')) for picture in pictures]))
    return {tuple(sorted(pair)) for pair in pairs.tolist()}


@pytest.mark.parametrize('copy', COPIES)
def test_a_copy_is_found(copy):
    scenes = [scene(seed) for seed in range(20)]
    copies = [COPIES[copy](picture) for picture in scenes]
    assert found(scenes + copies) == {(number, number + 20) for number in range(20)}


def test_flat_pictures_are_like_none():
    flat = [Image.new('RGB', (90, 90), (grey, grey, grey)) for grey in range(100, 110)]
    for picture in flat[5:]:
        picture.paste((90, 90, 90), (0, 0, 3, 90))
    assert found(flat) == set()


def test_the_same_place_seen_from_another_is_no_copy():
    whole = scene(5, (400, 300))
    for share in (0.11, 0.13):
        assert not is_same(thumbnail(whole), thumbnail(cropped(whole, share, 0, 0, 0)))
    assert is_same(thumbnail(whole), thumbnail(cropped(whole, 0.05, 0, 0, 0)))


def test_one_that_is_there_many_times_leads_to_all():
    pairs = found([scene(1)] * 30 + [scene(2), saved(scene(1), format='JPEG', quality=80)])
    assert {(number, number + 1) for number in range(29)} <= pairs
    assert {number for pair in pairs for number in pair} == {*range(30), 31}


def test_a_single_picture():
    assert found([scene(1)]) == set()


@pytest.mark.skipif(not SEEDLINGS.is_dir(), reason=f'needs the photographs of {SEEDLINGS}')
def test_photographs():
    """Of photographs of one kind, on the same soil, two copies in a hundred may be missed, and no pair is wrong."""
    paths = sorted(list_images(SEEDLINGS / 'Maize')) + sorted(list_images(SEEDLINGS / 'Cleavers'))
    pictures = [open_image(path) for path in random.Random(1).sample(paths, 150)]
    known = found(pictures)  # the set has some itself
    copies = [COPIES[name](picture) for picture, name in zip(pictures, list(COPIES) * 15, strict=True)]
    pairs = found(pictures + copies)
    expected = {(number, number + 150) for number in range(150)}
    assert len(expected - pairs) <= 3
    assert {pair for pair in pairs if pair[1] < 150} == known and len(known) <= 1
    assert len({(first, second % 150) for first, second in pairs if first % 150 != second % 150} - known) == 0
