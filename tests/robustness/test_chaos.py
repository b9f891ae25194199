"""A short version of `make chaos`, in a process of its own: it forks, which wants no threads yet."""
import os
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs os.fork')
def test_a_few_kills():
    done = subprocess.run([sys.executable, ROOT / 'tests' / 'robustness' / 'chaos.py', '--kills', '2', '--epochs', '3'],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'makedata.py: 2 kills' in done.stdout and 'the weights are the same' in done.stdout
