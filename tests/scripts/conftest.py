import pytest
from helpers import draw_folder

import makedata


@pytest.fixture
def source(tmp_path, monkeypatch):
    """data1 in the current folder, of noise that looks alike: near-duplicates have tests of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(makedata, 'NEAR_DUPLICATES', False)
    return draw_folder(tmp_path / 'data1', {'a': 20, 'b': 10})
