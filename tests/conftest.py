"""Fixtures that several tests use."""
import os
import random

import numpy as np
import pytest
import torch
from helpers import SEEDLINGS, draw_folder

import makedata


@pytest.fixture(autouse=True)
def the_same_random_numbers():
    """No test passes by luck, or fails by it. The threads of a busy machine (use_free_cores) change sums a little."""
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Runs in the tests' own process do not wait until the disk has what they write: some disks take seconds."""
    monkeypatch.setattr(os, 'fsync', lambda file: None)


@pytest.fixture
def seedlings():
    if not SEEDLINGS.is_dir():
        pytest.skip('set SEEDLINGS to a folder of the Plant Seedlings photographs')
    return SEEDLINGS


@pytest.fixture
def quick(monkeypatch):
    """Runs in the tests' own process draw no pictures and do not work out what a step costs: most of their time."""
    monkeypatch.setattr('common.training.setup.print_cost', lambda *arguments: None)
    for name in ('plot_training', 'plot_confusion'):
        monkeypatch.setattr(f'common.training.log.{name}', lambda *arguments: None)
    monkeypatch.setattr('common.training.page.RunPage.write', lambda *arguments: None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """data/train with 20 pictures of two classes and data/val with 8, in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / 'data' / 'train', {'a': 10, 'b': 10})
    draw_folder(tmp_path / 'data' / 'val', {'a': 4, 'b': 4}, seed=1)
    return tmp_path / 'data'


@pytest.fixture
def data(quick, folder):
    """The same for quick runs."""
    return folder


@pytest.fixture
def source(tmp_path, monkeypatch):
    """data1 in the current folder, of noise that looks alike: near-duplicates have tests of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(makedata, 'NEAR_DUPLICATES', False)
    return draw_folder(tmp_path / 'data1', {'a': 20, 'b': 10})
