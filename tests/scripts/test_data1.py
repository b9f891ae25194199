"""The sample data set: complete, small, redrawn by its script, and not to be told apart by colour alone."""
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

DATA = Path(__file__).resolve().parents[2] / 'data1'
SPECIES = ['Black-grass', 'Charlock', 'Cleavers', 'Common Chickweed', 'Common wheat', 'Fat Hen', 'Loose Silky-bent',
           'Maize', 'Scentless Mayweed', 'Shepherds Purse', 'Small-flowered Cranesbill', 'Sugar beet']
VAL_SHARE = 0.3    # of the pictures, as makedata.py splits them
MAX_BYTES = 6e6
GREY_LEVELS = 8    # of 255: mean difference that JPEG compression may make


@pytest.fixture(scope='module')
def script():
    """data1/draw.py, imported without leaving a __pycache__ beside the twelve folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'dont_write_bytecode', True)
        patch.syspath_prepend(str(DATA))
        yield importlib.import_module('draw')


def colour_statistics(path):
    """(6,) channel means and standard deviations."""
    pixels = np.asarray(Image.open(path), np.float64)
    return np.concatenate([pixels.mean((0, 1)), pixels.std((0, 1))])


def test_twelve_folders_of_thirty_square_pictures_in_six_megabytes(script):
    assert sorted(p.name for p in DATA.iterdir() if p.is_dir() and p.name != '__pycache__') == SPECIES
    assert sorted(script.SPECIES) == SPECIES
    for species in SPECIES:
        pictures = sorted((DATA / species).iterdir())
        assert [p.name for p in pictures] == [f'{n:03d}.jpg' for n in range(1, script.IMAGES_PER_CLASS + 1)]
        assert all(Image.open(p).size == (script.SIZE, script.SIZE) for p in pictures)
    assert sum(p.stat().st_size for p in DATA.rglob('*.jpg')) <= MAX_BYTES


@pytest.mark.parametrize('species', SPECIES)
def test_script_redraws_the_committed_picture(script, species):
    number = 1 + 2 * SPECIES.index(species)
    drawn = np.asarray(script.draw(species, number), np.float64)
    assert np.array_equal(drawn, script.draw(species, number))
    committed = np.asarray(Image.open(DATA / species / f'{number:03d}.jpg'), np.float64)
    assert np.abs(drawn - committed).mean() < GREY_LEVELS
    another = np.asarray(script.draw(species, number + 1), np.float64)
    assert np.abs(another - committed).mean() > 2 * GREY_LEVELS


def test_colour_alone_does_not_tell_the_species():
    paths = sorted(DATA.glob('*/*.jpg'))
    x, y = np.stack([colour_statistics(p) for p in paths]), [p.parent.name for p in paths]
    accuracy = []
    for seed in range(5):
        x_train, x_val, y_train, y_val = train_test_split(x, y, test_size=VAL_SHARE, stratify=y, random_state=seed)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x_train, y_train)
        accuracy.append(model.score(x_val, y_val))
    assert np.mean(accuracy) < 0.40
    assert max(accuracy) < 0.45
