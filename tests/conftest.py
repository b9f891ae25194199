"""What several tests share: a network small enough to train in a test, folders of pictures, a way to run scripts."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import models

ROOT = Path(__file__).resolve().parent.parent
SEEDLINGS = Path(os.environ.get('SEEDLINGS', ROOT.parent / 'shared' / 'seedlings'))
TINY = {'layers': (1, 1, 1, 1), 'embed_dims': (24, 48), 'num_heads': (2, 4), 'stem_hidden_dim': 16}


def tiny_volo(**kwargs):
    return models.create_model('volo_d1', **{'num_classes': 5, 'img_size': 64, **TINY, **kwargs})


def draw_folder(root, counts, size=(20, 24), suffix='.png', seed=0):
    """root/<class>/<number><suffix>, every class a different grey level under noise, every picture different."""
    rng = np.random.default_rng(seed)
    for level, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 60, (*size, 3)) + 180 * level // max(1, len(counts) - 1)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f'{number:03}{suffix}')
    return root


def run_script(script, *arguments, cwd=None, env=None):
    """Run a script as a user would, in a folder of its own; returns the finished process with its output as text."""
    env = {**os.environ, 'HF_HUB_OFFLINE': '1', 'PYTHONUTF8': '1', **(env or {})}
    return subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], cwd=cwd, env=env, text=True,
                          encoding='utf-8', capture_output=True)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Runs in the tests' own process do not wait until the disk has what they write: some disks take seconds."""
    monkeypatch.setattr(os, 'fsync', lambda file: None)


@pytest.fixture
def seedlings():
    if not SEEDLINGS.is_dir():
        pytest.skip('set SEEDLINGS to a folder of the Plant Seedlings photographs')
    return SEEDLINGS
